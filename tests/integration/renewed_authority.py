#!/usr/bin/env python3
"""A server gets a certificate of another authority: its worker and a watch go on without a restart of theirs, once
the file they trust has that authority.

    renewed_authority.py PATH_OF_NIBBLE_FAKE_ENGINE     runs the programs of NIBBLE_BIN_DIR
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("NIBBLE_BIN_DIR", ROOT / "build" / "bin"))
PATIENCE = int(os.environ.get("NIBBLE_PATIENCE", "1"))
started = []


def until(what, condition):
    end = time.monotonic() + 60 * PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.05)


def start(log, *words):
    process = subprocess.Popen([str(word) for word in words], stdout=log, stderr=subprocess.STDOUT)
    started.append(process)
    return process


class Server:
    def __init__(self, folder):
        self.folder, self.data, self.live = folder, folder / "server", folder / "live"
        self.live.mkdir()
        self.log = folder / "server.log"
        self.port = 0

    def authority(self, name):
        """Certificates of an authority of that name."""
        made = self.folder / name
        subprocess.run([BIN / "nibble-server", "init-tls", "--data-dir", made, "--host", "127.0.0.1"], check=True,
                       capture_output=True)
        return made / "tls"

    def start(self, tls):
        for name in ("server.crt", "server.key"):
            shutil.copy(tls / name, self.live / name)
        info = self.data / "run" / "server.json"
        info.unlink(missing_ok=True)
        self.process = start(self.log.open("ab"), BIN / "nibble-server", "--data-dir", self.data, "--listen",
                             f"127.0.0.1:{self.port}", "--http-listen", "", "--tls-cert", self.live / "server.crt",
                             "--tls-key", self.live / "server.key", "--min-free-mb", 0)
        until("the server", info.exists)
        self.port = json.loads(info.read_text())["port"]

    def stop(self):
        self.process.terminate()
        self.process.wait(60 * PATIENCE)

    def token(self, role):
        made = subprocess.run([BIN / "nibble-server", "token", "create", "--data-dir", self.data, "--name", role,
                               "--role", role], check=True, capture_output=True, text=True)
        path = self.folder / f"{role}.token"
        path.write_text(made.stdout)
        return path


def check(folder, engine):
    server = Server(folder)
    first, second = server.authority("first"), server.authority("second")
    tokens = {role: server.token(role) for role in ("admin", "worker")}
    server.start(first)
    trusted = folder / "trusted.crt"
    shutil.copy(first / "ca.crt", trusted)
    reach = ["--server", f"127.0.0.1:{server.port}", "--ca-file", trusted]

    def nibble(*words):
        run = subprocess.run([str(word) for word in (BIN / "nibble", *reach, "--token-file", tokens["admin"], *words)],
                             capture_output=True, text=True, timeout=60 * PATIENCE)
        assert run.returncode == 0, run
        return run.stdout

    worker_log, watch_log = folder / "worker.log", folder / "watch.log"
    worker = start(worker_log.open("ab"), BIN / "nibble-worker", *reach, "--token-file", tokens["worker"], "--engine",
                   engine, "--device", "cpu", "--data-dir", folder / "worker", "--worker-id", "w1")
    until("the worker", lambda: "w1" in nibble("worker", "ls"))
    nibble("worker", "drain", "w1")  # what is submitted waits
    nibble("submit", ROOT / "demo" / "recipe.yaml", "--name", "waits")
    watch = start(watch_log.open("ab"), BIN / "nibble", *reach, "--token-file", tokens["admin"], "watch", "waits")
    until("the watch", lambda: "waits" in watch_log.read_text())

    server.stop()
    server.start(second)
    until("a worker that does not trust it", lambda: "server.unreachable" in worker_log.read_text())
    until("a watch that does not trust it", lambda: "connection lost" in watch_log.read_text())
    assert "server.trusted_anew" not in worker_log.read_text()
    shutil.copy(second / "ca.crt", folder / "half")
    os.replace(folder / "half", trusted)
    until("the worker to come back", lambda: "server.trusted_anew" in worker_log.read_text()
          and "server.reached" in worker_log.read_text().partition("server.trusted_anew")[2])
    nibble("cancel", "waits")
    assert watch.wait(60 * PATIENCE) != 0 and "cancelled" in watch_log.read_text(), watch_log.read_text()
    assert worker.poll() is None


def main():
    with tempfile.TemporaryDirectory(prefix="nibble-authority-") as folder:
        try:
            check(pathlib.Path(folder), sys.argv[1])
        except BaseException:
            for log in pathlib.Path(folder).glob("*.log"):
                print(f"--- {log.name}\n{log.read_text()[-4000:]}")
            raise
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                    process.wait()
    print("the worker and the watch went on")


if __name__ == "__main__":
    sys.exit(main())
