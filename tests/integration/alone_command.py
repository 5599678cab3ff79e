"""What the command line makes of a job that was trained: its series, its adapter, its place in lists."""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import tempfile

import client


class Nibble:
    """The command, asking one server; None of it where it is not built."""

    binary = pathlib.Path(os.environ.get("NIBBLE_BIN_DIR", client.ROOT / "build" / "bin")) / "nibble"

    def __init__(self, address):
        self.address = address

    def __call__(self, *words, code=0):
        run = subprocess.run([self.binary, "--server", self.address, *words], capture_output=True, text=True,
                             timeout=60 * client.PATIENCE, check=False)
        assert run.returncode == code, f"nibble {' '.join(map(str, words))}: code {run.returncode}\n{run.stdout}{run.stderr}"
        return run.stdout + (run.stderr if code else "")


def check_command(address, name, adapter):
    """`adapter` is its files, by name; the job had twenty steps with a loss of 3 / step and was evaluated at the tenth."""
    if not Nibble.binary.is_file():
        print(f"{Nibble.binary} is not built: what it says of a trained job was not looked at")
        return
    nibble, job = Nibble(address), name.split("/")[1]
    rows = [line.split(",") for line in nibble("metrics", job, "--csv", "--name", "loss,tokens,tokens_per_second").splitlines()]
    assert rows[0] == ["step", "loss", "tokens", "tokens_per_second"], rows[0]
    assert [int(row[0]) for row in rows[1:]] == list(range(1, 21)), rows
    for row in rows[1:]:
        assert abs(float(row[1]) - 3 / int(row[0])) < 1e-8 and row[2:] == ["100", "10000"], row
    assert nibble("metrics", job, "--csv", "--name", "eval_loss") == "step,eval_loss\n10,2.5\n"
    few = nibble("metrics", job, "--csv", "--points", "5").splitlines()
    assert len(few) <= 1 + 5 + 3 and few[1].startswith("1,") and few[-1].startswith("20,"), few  # ends and evaluations stay
    points = json.loads(nibble("-o", "json", "metrics", job))["points"]
    assert [int(point["step"]) for point in points] == list(range(1, 21)), points
    assert "there are loss, eval_loss" in nibble("metrics", job, "--name", "lost", code=5)
    nibble("metrics", job, "--points", "1", code=2)
    assert nibble("metrics", job, "--plot").strip(), "a figure"
    phases = nibble("metrics", job, "--phases")
    for words in (r"linear +6\.00 ", r"attention +2\.50 ", r"data +1\.00 ", r"20 steps, 11\.00 ms each"):
        assert re.search(words, phases), phases
    assert "step,loss" not in phases and "eval" not in phases, phases
    check_lists(nibble, job)
    check_format(nibble, job)
    check_download(nibble, job, adapter)


def check_lists(nibble, job):
    assert job not in nibble("-q", "ps").split() and job in nibble("-q", "ps", "--all").split()
    assert nibble("-q", "ps", "--state", "succeeded", "--state", "failed").split() == [job]
    assert nibble("-q", "ps", "--state", "cancelled") == ""
    assert "succeeded" in nibble("ps", "--state", "over", code=5)
    assert nibble("-q", "ps", "--all", "--limit", "1").split() == [job]
    text = nibble("describe", job)
    assert "job.succeeded" in text and "checkpoint at step 10" in text and job in text, text
    assert nibble("wait", job).split() == [job, "SUCCEEDED"]
    nibble("wait", job, "--for", "paused", code=1)
    nibble("wait", job, "--for", "over", code=5)
    assert nibble("-q", "adapter", "ls").split() == [job]
    assert nibble("--call-timeout", "0", "ps", code=2)
    assert "\x1b" not in nibble("--no-color", "ps", "--all")


def check_format(nibble, job):
    """A recipe that calls the rows of its data set what they are not hears so in its own words, whoever is asked."""
    spec = json.loads(nibble("-o", "json", "get", job))["spec"]
    with tempfile.TemporaryDirectory() as directory:
        recipe = pathlib.Path(directory, "recipe.yaml")
        recipe.write_text(f"base_model: {spec['baseModel']}\ndatasets: [{{path: {spec['dataset']}, type: alpaca}}]\n"
                          "sequence_len: 64\n")
        for command in ("plan", "validate", "run"):
            refused = nibble(command, recipe, code=5)
            assert "datasets[0].type is \"alpaca\", but the rows of datasets/" in refused, refused
            assert "are completion;" in refused and "DATASET_SCHEMA_MISMATCH" in refused, refused


def check_removed(address, name):
    """An adapter outlives its job, is found by the job's name, and can be removed itself."""
    if not Nibble.binary.is_file():
        return
    nibble, job = Nibble(address), name.split("/")[1]
    run = subprocess.run([Nibble.binary, "--server", address, "rm", job], capture_output=True, text=True, check=False,
                         timeout=60 * client.PATIENCE)
    assert run.returncode == 0 and f"nibble adapter rm {job} removes it" in run.stderr, run
    with tempfile.TemporaryDirectory() as folder:
        nibble("download", job, "-o", pathlib.Path(folder, "mine"))
        assert (pathlib.Path(folder, "mine") / "adapter_model.safetensors").is_file()
    nibble("adapter", "rm", job)
    assert "JOB_NOT_FOUND" in nibble("download", job, "-o", "/nowhere/at/all", code=3)


def check_download(nibble, job, adapter):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "mine")
        for damage in (None, "adapter_model.safetensors"):
            if damage:
                (out / damage).write_bytes(b"not what was sent")
            nibble("download", job, "-o", out)
            got = {path.name: path.read_bytes() for path in out.iterdir()}
            for name, data in adapter.items():
                assert hashlib.sha256(got[name]).digest() == hashlib.sha256(data).digest(), (name, damage)
            assert not [name for name in got if name.startswith(".")], list(got)
    nibble("download", "nothing", "-o", "/nowhere/at/all", code=3)
