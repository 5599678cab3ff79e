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
import socket
import subprocess
import sys
import tempfile
import time
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("NIBBLE_BIN_DIR", ROOT / "build" / "bin"))
PATIENCE = int(os.environ.get("NIBBLE_PATIENCE", "1"))  # as client.py, which needs gRPC


class Nibble:
    """The command with a data directory of its own."""

    def __init__(self, data):
        self.data = data
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("NIBBLE_")}

    def __call__(self, *words, code=0, say=(), never=()):
        run = subprocess.run([BIN / "nibble", "--data-dir", self.data, *words], capture_output=True, text=True,
                             timeout=60 * PATIENCE, env=self.environment)
        said = f"nibble {' '.join(map(str, words))}: code {run.returncode}\n{run.stdout}{run.stderr}"
        assert run.returncode == code, said
        for text in say:
            assert re.search(text, run.stdout + run.stderr), f"{text!r} is not in what it said\n{said}"
        for text in never:
            assert not re.search(text, run.stdout + run.stderr), f"{text!r} is in what it said\n{said}"
        return run.stdout


def until_it_catches(process, signal_number):
    def catches():
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        return int(re.search(r"SigCgt:\s*([0-9a-f]+)", status)[1], 16) >> (signal_number - 1) & 1

    while not catches():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


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
    assert [fit["plan"]["recompute"] for fit in plan["fits"]] == ["none"] * 4, plan["fits"]
    nibble("plan", "--model-config", folder / "nothing", code=5, say=[r"does not exist"])
    nibble("plan", code=5, say=[r"needs a recipe"])
    nibble("plan", "--model-config", model, "sequence_len=999999999", code=5, say=[r"sequence_len", r"512"])
    nibble("plan", "--model-config", model, "--device", "card-1tb", code=3, say=[r"no known card \(card-24gb, card-48gb, card-80gb, card-141gb\)"])


def check_models(nibble):
    nibble("model", "register", "--on-server", ROOT / "demo" / "base", "--name", "by-path", say=[r"by-path"])
    model = json.loads(nibble("-o", "json", "model", "get", "by-path"))
    assert model.get("rootPath", model.get("root_path")) == str(ROOT / "demo" / "base"), model
    nibble("model", "register", "--on-server", "demo/base", code=5, say=[r"absolute path"])
    nibble("model", "register", "--on-server", "/nothing/there", code=1, say=[r"--model-root"])


def check_recipes(nibble, folder):
    schema = json.loads(nibble("schema"))
    assert schema["properties"]["lora_r"]["type"] == ["integer", "null"] and "fsdp" not in schema["properties"]
    text = nibble("recipe", ROOT / "demo" / "recipe.yaml", say=[r"\nlora_r: ", r"\nsequence_len: ", r"recompute: "])
    (folder / "full.yaml").write_text(text)
    # Written out, it says the same again.
    assert nibble("recipe", folder / "full.yaml") == text, text
    nibble("recipe", folder / "full.yaml", "lora_r=3", say=[r"\nlora_r: 3\n"])
    nibble("recipe", folder / "full.yaml", "datasets[0].type=alpaca", say=[r"\n    type: alpaca\n"])
    nibble("recipe", folder / "none.yaml", code=5, say=[r"no such file"])


def check_help():
    """The first words anybody types, alone and behind every command."""
    def ask(*words, code=0):
        run = subprocess.run([BIN / "nibble", *words], capture_output=True, text=True, timeout=60 * PATIENCE, check=False)
        assert run.returncode == code, f"nibble {' '.join(words)}: code {run.returncode}\n{run.stdout}{run.stderr}"
        return run.stdout + run.stderr

    def commands_of(text):
        listed = text.partition("\nSubcommands:\n")[2]
        return [line.split(",")[0].split()[0] for line in listed.splitlines() if re.match(r"  [a-z]", line)]

    assert re.fullmatch(r"nibble \d+\.\d+\.\d+\n", ask("--version")) and ask("version") == ask("--version")
    assert "--help" in ask(code=2) and "no command" in ask("no-such-command", code=2)
    assert "nibble model has no command push; see nibble model --help" in ask("model", "push", code=2)
    assert "did you mean nibble dataset push?" in ask("dataset", "pus", code=2)
    groups = commands_of(ask("--help"))
    assert {"run", "plan", "generate", "token", "model"} <= set(groups), groups
    for command in groups:
        text = ask(command, "--help")
        assert f"nibble {command}" in text, text
        for inner in commands_of(text):
            assert f"{command} {inner}" in ask(command, inner, "--help")
    assert "behind its name" in ask("-q", "generate", "x", code=2)
    if (BIN / "nibble-engine").is_file():
        for words in (["generate", "--nonsense"], ["generate", "--base", "."], ["merge", "--base", ".", "--onto", "x"]):
            assert "(SPEC_INVALID)" in ask(*words, code=2)
        assert "--base is missing" in ask("generate", "hello", code=2)
        assert "a prompt of several words stands in quotes" in ask("generate", "--base", ".", "hello", "world", code=2)
        assert "(BASE_MODEL_NOT_FOUND)" in ask("generate", "--base", "/nonexistent", "hello", code=3)


def check_watch(nibble):
    process = subprocess.Popen([BIN / "nibble", "--data-dir", nibble.data, "ps", "--watch"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=nibble.environment)
    assert process.stdout.readline().startswith("NAME")
    until_it_catches(process, signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0


def check_words(nibble, folder):
    """What is typed wrongly is told what there is; a full disk is no success."""
    nibble(code=2, say=[r"Subcommands:", r"\n  download "])
    nibble("worker", code=2, say=[r"drain"])
    run = subprocess.run([BIN / "nibble", "token"], capture_output=True, text=True)
    assert run.returncode == 2 and "revoke" in run.stderr, run
    nibble("ps", "--limit", "-1", code=2, say=[r"at least 0, got -1"])
    nibble("wait", "x", "--timeout", "-1", code=2, say=[r"at least 0, got -1"])
    nibble("worker", "ls", "--all", say=[r"no workers; start one"])
    recipe = ROOT / "demo" / "recipe.yaml"
    # Nobody reads the data, but where the job fits is known.
    nibble("--call-timeout", "3", "validate", recipe, code=12,
           say=[r"\nmemory on card-24gb/gpu0\n", r"planned with +recompute=none", r"\nfits\n  card-24gb/gpu0 +now; ", r"not yet read"])
    nibble("run", recipe, "--name", "B A", code=5, say=[r"--name must be 1 to 63 .*got \"B A\""], never=[r"uploading"])
    nibble("run", "-n", recipe, "lora_r=300", code=5, say=[r"\blora_r is 300, outside 1 to 256"],
           never=[r"spec\.", r"uploading"])
    (folder / "empty.yaml").write_text("")
    nibble("run", folder / "empty.yaml", code=5, say=[r"empty\.yaml: base_model is required"], never=[r"override"])
    nibble("run", folder, code=5, say=[r"is a directory; give the YAML file"])
    nibble("dataset", "push", folder, code=3, say=[r"is a directory"])
    nibble("dataset", "push", "/dev/zero", code=3, say=[r"/dev/zero is a pipe or a device"])
    os.mkfifo(folder / "pipe")
    nibble("run", recipe, f"datasets={folder / 'pipe'}", code=3, say=[r"pipe is a pipe or a device"], never=[r"uploading"])
    odd = folder / "odd\x1b[2J\nname.jsonl"
    odd.write_text('{"text": "x"}\n')
    nibble("dataset", "push", odd, say=[r"uploading odd\?\[2J\?name\.jsonl"])
    nibble("dataset", "ls", say=[r"odd\?\[2J\?name\.jsonl"], never=[r"\x1b"])
    listed = json.loads(nibble("-o", "json", "dataset", "ls"))["datasets"]
    assert odd.name in [dataset["displayName"] for dataset in listed], listed
    latin = os.path.join(os.fsencode(folder), b"caf\xe9.jsonl")
    pathlib.Path(os.fsdecode(latin)).write_text('{"text": "y"}\n')
    nibble("dataset", "push", latin, say=[r"1 rows? of text"], never=[r"libprotobuf"])
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            run = subprocess.run([BIN / "nibble", "--data-dir", nibble.data, "dataset", "ls"], stdout=full,
                                 stderr=subprocess.PIPE, text=True, env=nibble.environment)
        assert run.returncode == 1 and "cannot write the output" in run.stderr, run


def check_jobs(nibble, folder):
    """Submitted once however often it is asked for, listed by state, paused, waited for, removed."""
    recipe, request = ROOT / "demo" / "recipe.yaml", str(uuid.uuid4())
    words = ("submit", recipe, "--name", "first", "--label", "team=a", "--label", "cost=b=c", "--priority", "3",
             "--request-id", request)
    for _ in range(2):
        assert nibble(*words).split() == ["first"]
    nibble("submit", recipe, "--name", "other", "--request-id", request, code=1, say=[r"request"])
    nibble("submit", recipe, "--name", "first", code=1, say=[r"first.*exists"])
    nibble("submit", recipe, "--name", "second", "--priority", "-2", say=[r"second"])
    nibble("submit", recipe, "--priority", "1001", code=5, say=[r"priority.*1000"])
    nibble("submit", recipe, "--label", "nothing", code=5, say=[r"--label"])
    job = json.loads(nibble("-o", "json", "get", "first"))
    assert job["labels"] == {"team": "a", "cost": "b=c"} and job["priority"] == 3, job
    assert nibble("-q", "ps").split() == ["second", "first"], "newest first"
    assert nibble("-q", "ps", "--label", "team=a", "--label", "cost=b=c", "--limit", "1").split() == ["first"]
    assert nibble("-q", "ps", "--label", "team=a", "--label", "cost=c") == nibble("-q", "ps", "--label", "team=") == ""
    nibble("ps", "--label", "team", code=5, say=[r"--label"])
    nibble("pause", "first", say=[r"first"])
    assert nibble("wait", "first", "--for", "state=PAUSED").split() == ["first", "PAUSED"]
    assert nibble("-q", "ps", "--state", "paused").split() == ["first"]
    assert nibble("-q", "ps", "--state", "PAUSED", "--state", "queued", "--limit", "1").split() == ["second"]
    nibble("wait", "first", "--timeout", "1", code=12, say=[r"first is still PAUSED: paused; resume it"])
    nibble("resume", "first")
    nibble("get", "first", say=[r"\nwaits for a worker: none is registered"])
    nibble("download", "first", code=1, say=[r"first is QUEUED \(waits for a worker: none is registered\); its adapter can"])
    nibble("rm", "first", code=1, say=[r"(?i)first"])
    assert nibble("metrics", "first", "--csv") == "step,loss,eval_loss\n"
    nibble("cancel", "first", "second")
    nibble("pause", "first", code=1, say=[r"CANCELLED"])
    assert nibble("-q", "ps") == "" and set(nibble("-q", "ps", "-a").split()) == {"first", "second"}
    nibble("rm", "first", "second")
    nibble("get", "first", code=3)
    name = nibble("dataset", "push", recipe.parent / "data" / "train.jsonl", "--name", "rows").split()[0]
    assert "rows" in name and len(nibble("dataset", "preview", "rows", "--rows", "2").strip().splitlines()) >= 2
    nibble("dataset", "rm", "rows")
    nibble("dataset", "get", "rows", code=3)
    for shell in ("bash", "zsh", "fish"):
        assert "download" in nibble("completion", shell)
    nibble("completion", "tcsh", code=2)


def check_stopped_upload(nibble, folder):
    """Ctrl-C in an upload says what became of it, even while the server does not answer."""
    file = folder / "rows.jsonl"
    file.write_text('{"text": "x"}\n' * 1000)
    server = json.loads((nibble.data / "server" / "run" / "server.json").read_text())["pid"]
    os.kill(server, signal.SIGSTOP)
    try:
        push = subprocess.Popen([BIN / "nibble", "--data-dir", nibble.data, "dataset", "push", file], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=nibble.environment)
        until_it_catches(push, signal.SIGINT)
        push.send_signal(signal.SIGINT)
        said, _ = push.communicate(timeout=30 * PATIENCE)
    finally:
        os.kill(server, signal.SIGCONT)
    assert push.returncode == 130 and "the same command goes on from there" in said, (push.returncode, said)
    nibble("dataset", "push", file, say=[r"1000 rows of text"])


def check_tls_restart(folder):
    """Over TLS a watch finds a server that was started again."""
    data = folder / "tls"
    server = BIN / "nibble-server"
    subprocess.run([server, "init-tls", "--data-dir", data, "--host", "127.0.0.1"], check=True, capture_output=True)
    token = subprocess.run([server, "token", "create", "--data-dir", data, "--name", "ann"], check=True,
                           capture_output=True, text=True).stdout.strip()
    flags = ["--data-dir", data, "--http-listen", "", "--tls-cert", data / "tls/server.crt", "--tls-key",
             data / "tls/server.key"]
    info = data / "run" / "server.json"

    def start(port):
        info.unlink(missing_ok=True)
        process = subprocess.Popen([server, *flags, "--listen", f"127.0.0.1:{port}"], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30 * PATIENCE
        while not info.exists():
            assert process.poll() is None and time.monotonic() < end, "the server does not start"
            time.sleep(0.02)
        return process

    running = start(0)
    watch = None
    try:
        port = json.loads(info.read_text())["port"]
        nibble = Nibble(folder / "nothing")
        nibble.environment |= {"NIBBLE_SERVER": f"127.0.0.1:{port}", "NIBBLE_CA_FILE": str(data / "tls/ca.crt"),
                               "NIBBLE_TOKEN": token}
        nibble("submit", ROOT / "demo" / "recipe.yaml", "--name", "waiting")
        nibble("update", "waiting", "--priority", "-7", say=[r"waiting has priority -7"])
        assert json.loads(nibble("-o", "json", "get", "waiting"))["priority"] == -7
        nibble("update", "waiting", "--priority", "5000", code=5, say=[r"priority.*1000"])
        nibble("update", "nothing", "--priority", "1", code=3, say=[r"does not exist"])
        nibble("update", "waiting", code=5, say=[r"needs --priority N or --allow-numerics-change"])
        nibble("update", "waiting", "--allow-numerics-change", say=[r"waiting may go on where numerics are other"],
               never=[r"priority"])
        changed = json.loads(nibble("-o", "json", "get", "waiting"))
        for spec in ("spec", "effectiveSpec"):
            assert changed[spec]["training"]["allowNumericsChange"] is True, changed
        assert changed["priority"] == -7, changed
        watch = subprocess.Popen([BIN / "nibble", "watch", "waiting"], stdout=subprocess.PIPE, text=True,
                                 stderr=subprocess.STDOUT, env=nibble.environment)
        while "waiting:" not in watch.stdout.readline():
            assert watch.poll() is None
        running.terminate()
        running.wait(30 * PATIENCE)
        while "connection lost" not in watch.stdout.readline():
            assert watch.poll() is None
        time.sleep(1)
        running = start(port)
        cancelled = json.loads(nibble("-o", "json", "cancel", "waiting"))
        assert [(job["name"], job["state"]) for job in cancelled["jobs"]] == [("jobs/waiting", "CANCELLED")], cancelled
        said, _ = watch.communicate(timeout=50 * PATIENCE)
        assert watch.returncode == 11, (watch.returncode, said)
        waited = json.loads(nibble("-o", "json", "wait", "waiting", code=11))
        assert waited["jobs"][0]["state"] == "CANCELLED", waited
        events = nibble("-o", "json", "events", "--follow", "waiting").splitlines()
        assert len(events) > 1 and all(json.loads(event)["type"] for event in events), events
        assert json.loads(nibble("-o", "json", "rm", "waiting")) == {}
    finally:
        running.terminate()
        running.wait(30 * PATIENCE)
        if watch is not None:
            watch.kill()


def check_crash(nibble):
    """A server that is killed is started again where it was."""
    info = nibble.data / "server" / "run" / "server.json"
    before = json.loads(info.read_text())
    os.kill(before["pid"], signal.SIGKILL)
    end = time.monotonic() + 30 * PATIENCE
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


def check_closed_terminal(folder):
    """What was started with nohup outlives its terminal; what was not ends in order."""
    def hears(pid):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        ignored, blocked = (int(re.search(rf"{name}:\s*([0-9a-f]+)", status)[1], 16) for name in ("SigIgn", "SigBlk"))
        return not ignored & 1 or bool(blocked & 1)

    def children(parent):
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                state, its_parent = path.read_text().rsplit(")", 1)[1].split()[:2]
            except OSError:
                continue  # it has ended meanwhile
            if its_parent == str(parent) and state != "Z":
                found.append(int(path.parent.name))
        return found

    whole = all((BIN / name).is_file() for name in ("nibble-worker", "nibble-engine"))
    for nohup in (True, False):
        data = folder / f"nohup-{nohup}"
        up = subprocess.Popen([BIN / "nibble", "--data-dir", data, "up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
                               *(["--memory", "2GiB"] if whole else ["--no-worker"])], stdout=subprocess.PIPE, text=True,
                              preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL))
        try:
            while "nibble is up" not in (line := up.stdout.readline()):
                assert line, "nibble up ended"
            started = children(up.pid)
            assert len(started) == 1 + whole, started
            assert [hears(pid) for pid in (up.pid, *started)] == [not nohup] * (2 + whole), (nohup, started)
            up.send_signal(signal.SIGTERM if nohup else signal.SIGHUP)
            up.communicate(timeout=60 * PATIENCE)
            assert up.returncode == 0, up.returncode
        finally:
            up.kill()  # what it has started ends with it
    data = folder / "hung-up"
    server = subprocess.Popen([BIN / "nibble-server", "--data-dir", data, "--listen", "127.0.0.1:0", "--http-listen", ""],
                              stderr=subprocess.PIPE, text=True,
                              preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    try:
        while "server.serving" not in (line := server.stderr.readline()):
            assert line, "the server ended"
        server.send_signal(signal.SIGHUP)
        said = server.communicate(timeout=30 * PATIENCE)[1]
        assert server.returncode == 0 and "server.stopped" in said, (server.returncode, said)
    finally:
        server.kill()


def check_worker_that_ends(folder):
    """A worker that does not come up is said to, whatever the server remembers of an earlier one."""
    if not all((BIN / name).is_file() for name in ("nibble-worker", "nibble-engine")):
        print("nibble-worker or nibble-engine is not built: how `nibble up` takes their end was not looked at")
        return
    nibble = Nibble(folder / "with-worker")
    up = ("up", "-d", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--memory")
    try:
        nibble(*up, "2GiB", say=[r"nibble is up"])
        nibble("worker", "ls", say=[r"IDLE"])
        nibble("down")
        nibble(*up, "much", code=1, say=[r"nibble-worker ended", r"--memory must be a size"], never=[r"nibble is up"])
    finally:
        nibble("down")


def main():
    for name in ("nibble", "nibble-server"):
        if not (BIN / name).is_file():
            print(f"skipped: {BIN / name} is not built")
            return 77
    check_help()
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
            # Measured where the folder would be, not on the root's disk.
            Nibble("/proc/none/data")("--server", "127.0.0.1:1", "doctor", code=6,
                                      say=[r"disk +0 B free for /proc/none/data; .*--data-dir",
                                           r"127\.0\.0\.1:1: cannot reach 127\.0\.0\.1:1: Connection refused"])
            check_plans(nibble, folder)
            check_models(nibble)
            check_recipes(nibble, folder)
            check_jobs(nibble, folder)
            check_words(nibble, folder)
            check_stopped_upload(nibble, folder)
            check_watch(nibble)
            check_crash(nibble)
        finally:
            nibble("down", say=[r"nibble is down"])
        nibble("down", say=[r"no nibble up runs"])
        check_worker_that_ends(folder)
        check_closed_terminal(folder)
        check_tls_restart(folder)
        # Unless somebody's own server is where a command looks last.
        with socket.socket() as usual:
            if usual.connect_ex(("127.0.0.1", 7070)) != 0:
                nibble("ps", code=6, say=[r"nibble up"])
    print("up, down and all that needs no worker: all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
