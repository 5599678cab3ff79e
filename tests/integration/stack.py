"""A server and workers as processes on ephemeral ports, in a directory of their own, for tests.

    with Stack(bin_dir) as stack:
        stack.start_server(); stack.start_worker("w1"); stack.api()
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from client import PATIENCE, ROOT, Api


def bin_dir():
    """Where the binaries are, or None with the reason printed."""
    found = pathlib.Path(os.environ.get("NIBBLE_BIN_DIR", ROOT / "build" / "bin"))
    for name in ("nibble-server", "nibble-worker", "nibble-engine"):
        if not (found / name).is_file():
            print(f"skipped: {found / name} is not built")
            return None
    return found


def wait_for(what, condition, timeout=30.0, process=None):
    timeout *= PATIENCE
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        if process is not None and process.poll() is not None:
            raise AssertionError(f"process ended with {process.returncode} while waiting for {what}")
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout:.0f} s for {what}")


class Stack:
    # Leases of seconds, so that a killed worker is noticed within a test.
    SERVER_FLAGS = ["--lease-seconds", "8", "--metrics-job-linger", "4"]

    def __init__(self, binaries, server_flags=(), keep=False):
        self.binaries = pathlib.Path(binaries)
        self.server_flags = list(server_flags)
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="nibble-stack-"))
        self.keep = keep
        self.server = None
        self.workers = {}
        self.address = self.http = None
        self._apis = []

    def __enter__(self):
        # A test runner that loses patience sends SIGTERM; what was started must not outlive us.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return self

    def __exit__(self, kind, value, trace):
        for api in self._apis:
            api.close()
        for process in [*self.workers.values(), self.server]:
            self._end(process)
        if kind is not None:
            self._show_logs()
        if self.keep or kind is not None:
            print(f"left behind for inspection: {self.root}")
        else:
            shutil.rmtree(self.root, ignore_errors=True)

    def _end(self, process):
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)

    def _show_logs(self):
        for log in sorted(self.root.glob("*.log")):
            print(f"---- {log.name}, last lines")
            print("\n".join(log.read_text(errors="replace").splitlines()[-25:]))

    def _spawn(self, log, arguments):
        with open(self.root / log, "ab") as out:
            # A group of its own: the engine can be killed with its worker or apart from it.
            return subprocess.Popen([str(a) for a in arguments], stdout=out, stderr=out,
                                    stdin=subprocess.DEVNULL, start_new_session=True)

    def start_server(self):
        data = self.root / "server"
        info = data / "run" / "server.json"
        info.unlink(missing_ok=True)
        # A restarted server must come back where its workers look for it.
        self.server = self._spawn("server.log", [
            self.binaries / "nibble-server", "--data-dir", data, "--listen", self.address or "127.0.0.1:0",
            "--http-listen", self.http or "127.0.0.1:0", *self.SERVER_FLAGS, *self.server_flags])

        def started():
            try:
                found = json.loads(info.read_text())
                return found if found.get("port") else None
            except (OSError, ValueError):
                return None

        found = wait_for("server.json", started, process=self.server)
        self.address = f"{found['host']}:{found['port']}"
        self.http = f"{found['host']}:{found['http_port']}"
        return self

    def start_worker(self, name="w1", threads=1, flags=()):
        self.workers[name] = self._spawn(f"worker-{name}.log", [
            self.binaries / "nibble-worker", "--server", self.address, "--data-dir", self.root / name,
            "--worker-id", name, "--threads", threads, "--memory", "1500MiB", *flags])
        return self.workers[name]

    def api(self):
        api = Api(self.address)
        self._apis.append(api)
        return api

    def kill(self, process):
        """kill -9 of one process, not of its group."""
        process.kill()
        process.wait()

    def engines(self, name="w1"):
        """Process ids of the engines a worker has started."""
        return [pid for pid in children(self.workers[name].pid) if comm(pid).startswith("nibble-engine")]


def children(parent):
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


def comm(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


# ---- a job small enough for tests -----------------------------------------------------------------

def base_directory():
    return ROOT / "demo" / "base"


def rows(count=48):
    with open(ROOT / "demo" / "data" / "train.jsonl", "rb") as file:
        return b"".join(next(file) for _ in range(count))


def small_spec(pb, model, dataset, steps=30, seed=7, **training):
    spec = pb.job.JobSpec(base_model=model.name, dataset=dataset.name)
    spec.lora.r, spec.lora.alpha, spec.lora.dropout = 4, 8, 0.05
    spec.data.sequence_len, spec.data.sample_packing, spec.data.val_set_size = 128, True, 0.1
    spec.optimizer.learning_rate, spec.optimizer.warmup_steps = 2e-3, 3
    values = dict(micro_batch_size=1, gradient_accumulation_steps=2, max_steps=steps, seed=seed,
                  eval_steps=10, save_steps=5, save_interval_seconds=0)
    for key, value in {**values, **training}.items():
        setattr(spec.training, key, value)
    return spec


def submit(api, spec, job_id="", **request):
    return api.jobs.CreateJob(api.pb.job.CreateJobRequest(spec=spec, job_id=job_id, **request))
