#!/usr/bin/env python3
"""nibble up and down, and what a user can ask of a server that has no worker and no model yet.

    up_down.py                 runs the nibble of NIBBLE_BIN_DIR

Exits 77 with a sentence where something needed is missing.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("NIBBLE_BIN_DIR", ROOT / "build" / "bin"))


class Nibble:
    """The command with a data directory of its own."""

    def __init__(self, data):
        self.data = data
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("NIBBLE_")}

    def __call__(self, *words, code=0, say=(), never=()):
        run = subprocess.run([BIN / "nibble", "--data-dir", self.data, *words], capture_output=True, text=True,
                             timeout=60, env=self.environment)
        said = f"nibble {' '.join(map(str, words))}: code {run.returncode}\n{run.stdout}{run.stderr}"
        assert run.returncode == code, said
        for text in say:
            assert re.search(text, run.stdout + run.stderr), f"{text!r} is not in what it said\n{said}"
        for text in never:
            assert not re.search(text, run.stdout + run.stderr), f"{text!r} is in what it said\n{said}"
        return run.stdout


def check_plans(nibble, folder):
    model = ROOT / "demo" / "base"
    out = nibble("plan", "--model-config", model, "--methods", "--plot", "--svg", folder / "step.svg",
                 "micro_batch_size=2",
                 say=[r"memory on card-24gb/gpu0", r"card-141gb/gpu0 +now", r"\nqlora ", r"\nfull-mixed ",
                      r"peak \S+ \S+ in ", r"2 x 4", r"wrote ", r"lower bound "])
    assert "-nan" not in out and "inf" not in out.replace("info", ""), out
    svg = (folder / "step.svg").read_text()
    assert svg.startswith("<svg ") and svg.endswith("</svg>\n") and "peak" in svg
    plan = json.loads(nibble("-o", "json", "plan", "--model-config", model / "config.json"))
    assert [fit["worker"] for fit in plan["fits"]] == ["card-24gb", "card-48gb", "card-80gb", "card-141gb"]
    nibble("plan", "--model-config", folder / "nothing", code=5, say=[r"does not exist"])
    nibble("plan", code=5, say=[r"needs a recipe"])
    nibble("plan", "--model-config", model, "sequence_len=999999999", code=5, say=[r"sequence_len", r"512"])
    nibble("plan", "--model-config", model, "--device", "card-1tb", code=3, say=[r"no known card"])


def check_recipes(nibble, folder):
    schema = json.loads(nibble("schema"))
    assert schema["properties"]["lora_r"]["type"] == ["integer", "null"] and "fsdp" not in schema["properties"]
    text = nibble("recipe", ROOT / "demo" / "recipe.yaml", say=[r"\nlora_r: ", r"\nsequence_len: ", r"recompute: "])
    (folder / "full.yaml").write_text(text)
    # Written out, it says the same again.
    assert nibble("recipe", folder / "full.yaml") == text, text
    nibble("recipe", folder / "full.yaml", "lora_r=3", say=[r"\nlora_r: 3\n"])
    nibble("recipe", folder / "none.yaml", code=5, say=[r"no such file"])


def check_watch(nibble):
    process = subprocess.Popen([BIN / "nibble", "--data-dir", nibble.data, "ps", "--watch"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=nibble.environment)
    assert process.stdout.readline().startswith("NAME")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


def check_crash(nibble):
    """A server that is killed is started again where it was."""
    info = nibble.data / "server" / "run" / "server.json"
    before = json.loads(info.read_text())
    os.kill(before["pid"], signal.SIGKILL)
    end = time.monotonic() + 30
    while True:
        try:
            after = json.loads(info.read_text())
        except (OSError, ValueError):
            after = before
        if after["pid"] != before["pid"]:
            break
        assert time.monotonic() < end, "the server was not started again"
        time.sleep(0.05)
    assert (after["host"], after["port"]) == (before["host"], before["port"]), (before, after)
    nibble("ps", say=[r"no jobs"])
    log = (nibble.data / "log" / "up.log").read_text()
    assert "nibble-server was ended by signal 9; it is started again in 1 s" in log, log


def main():
    for name in ("nibble", "nibble-server"):
        if not (BIN / name).is_file():
            print(f"skipped: {BIN / name} is not built")
            return 77
    with tempfile.TemporaryDirectory(prefix="nibble-up-") as folder:
        folder = pathlib.Path(folder)
        nibble = Nibble(folder / "data")
        nibble("down", say=[r"no nibble up runs"])
        try:
            nibble("up", "-d", "--no-worker", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
                   say=[r"nibble is up", r"127\.0\.0\.1:\d+", r"/metrics"])
            nibble("up", "-d", "--no-worker", code=1, say=[r"(?i)already|another|runs"])
            nibble("ps", say=[r"no jobs"])
            nibble("worker", "ls")
            nibble("get", "nothing", code=3, say=[r"does not exist"])
            nibble("doctor", code=1, say=[r"server +127", r"workers +0 ready of 0"])
            check_plans(nibble, folder)
            check_recipes(nibble, folder)
            check_watch(nibble)
            check_crash(nibble)
        finally:
            nibble("down", say=[r"nibble is down"])
        nibble("down", say=[r"no nibble up runs"])
        nibble("ps", code=6, say=[r"nibble up"])
    print("up, down and all that needs no worker: all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
