#!/usr/bin/env python3
"""A server and two workers over TLS, each in a network namespace of its own, as if on three machines.

Needs root, iproute2 and the three binaries in NIBBLE_BIN_DIR; exits 77 with a sentence without them.
Nothing of the host's own network is touched: the namespaces are joined by cables of their own, and this
script calls itself inside one of them to play the user.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import client
import stack as stack_module
from foreign_client import expect_error

HERE = pathlib.Path(__file__).resolve()
PORT = 7070


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """Namespace s with a cable each to a (10.77.1.x) and b (10.77.2.x)."""

    def __init__(self):
        self.prefix = f"nibble{os.getpid()}"
        self.names = {part: f"{self.prefix}{part}" for part in "sab"}

    def __enter__(self):
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number, part in ((1, "a"), (2, "b")):
            # Made inside the server's namespace, so that the host never sees either end.
            ip("-n", self.names["s"], "link", "add", f"to{part}", "type", "veth", "peer", "name", "tos",
               "netns", self.names[part])
            for name, device, host in ((self.names["s"], f"to{part}", 1), (self.names[part], "tos", 2)):
                ip("-n", name, "addr", "add", f"10.77.{number}.{host}/24", "dev", device)
                ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, kind, value, trace):
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def run(self, part, arguments, log):
        with open(log, "ab") as out:
            return subprocess.Popen(["ip", "netns", "exec", self.names[part], *map(str, arguments)],
                                    stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                    start_new_session=True)


def tls_api(address, directory, role):
    import grpc
    channel = grpc.ssl_channel_credentials((directory / "ca.crt").read_bytes())
    if role is None:
        return client.Api(address, channel)
    token = (directory / f"{role}.token").read_text().strip()
    return client.Api(address, grpc.composite_channel_credentials(
        channel, grpc.access_token_call_credentials(token)))


def drive(directory):
    """The user, on the machine of worker a."""
    import grpc
    client.stubs()
    address = f"10.77.1.1:{PORT}"
    api, admin = tls_api(address, directory, "client"), tls_api(address, directory, "admin")
    fleet = api.pb.fleet

    def workers():
        return {w.name for w in api.fleet.ListWorkers(fleet.ListWorkersRequest()).workers
                if w.state == fleet.IDLE}

    stack_module.wait_for("two workers", lambda: workers() == {"workers/a", "workers/b"})
    expect_error(lambda: tls_api(address, directory, None).get("jobs/x"), "UNAUTHENTICATED", "TOKEN_INVALID")
    expect_error(lambda: tls_api(address, directory, "worker").get("jobs/x"), "PERMISSION_DENIED",
                 "ROLE_NOT_ALLOWED")
    expect_error(lambda: api.fleet.DrainWorker(fleet.DrainWorkerRequest(name="workers/a")),
                 "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    try:
        client.Api(address).jobs.ListJobs(api.pb.job.ListJobsRequest(), timeout=5)
        raise AssertionError("a call without TLS was answered")
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), error
    model = api.add_model(stack_module.base_directory())
    dataset = api.add_dataset(stack_module.rows())
    # One job on each: the other worker is drained meanwhile.
    for mine, other in (("a", "b"), ("b", "a")):
        admin.fleet.UndrainWorker(fleet.UndrainWorkerRequest(name=f"workers/{mine}"))
        admin.fleet.DrainWorker(fleet.DrainWorkerRequest(name=f"workers/{other}"))
        job = stack_module.submit(api, stack_module.small_spec(api.pb, model, dataset, steps=6))
        done = api.wait(job.name, until=("SUCCEEDED",))
        used = [a.worker for a in done.attempts]
        assert used == [f"workers/{mine}"], used
        files = api.download(done.adapter)
        assert json.loads(files["adapter_config.json"])["r"] == 4 and files["adapter_model.safetensors"]
        print(f"{done.name} trained on {used[0]} over TLS, {len(files)} files downloaded")


def run(binaries):
    directory = pathlib.Path(tempfile.mkdtemp(prefix="nibble-tls-"))
    data = directory / "server"
    server = binaries / "nibble-server"
    subprocess.run([server, "init-tls", "--data-dir", data, "--host", "10.77.1.1", "--host", "10.77.2.1"],
                   check=True, capture_output=True)
    shutil.copy(data / "tls" / "ca.crt", directory / "ca.crt")
    for role in ("client", "worker", "admin"):
        made = subprocess.run([server, "token", "create", "--data-dir", data, "--name", role, "--role", role],
                              check=True, capture_output=True, text=True)
        (directory / f"{role}.token").write_text(made.stdout)
    processes, good = [], False
    with Network() as network:
        try:
            processes.append(network.run("s", [
                server, "--data-dir", data, "--listen", f"0.0.0.0:{PORT}", "--http-listen", "127.0.0.1:0",
                "--tls-cert", data / "tls/server.crt", "--tls-key", data / "tls/server.key",
                "--lease-seconds", "10"], directory / "server.log"))
            stack_module.wait_for("server.json", (data / "run/server.json").exists, process=processes[0])
            for number, part in ((1, "a"), (2, "b")):
                processes.append(network.run(part, [
                    binaries / "nibble-worker", "--server", f"10.77.{number}.1:{PORT}", "--worker-id", part,
                    "--data-dir", directory / part, "--threads", 1, "--memory", "1GiB",
                    "--ca-file", directory / "ca.crt", "--token-file", directory / "worker.token"],
                    directory / f"{part}.log"))
            user = subprocess.run(["ip", "netns", "exec", network.names["a"], sys.executable, HERE,
                                   "--drive", directory], timeout=180)
            good = user.returncode == 0
        except subprocess.TimeoutExpired:
            print("the user's part took more than three minutes")
        finally:
            for process in processes:
                stack_module.Stack._end(None, process)
            if not good:
                for log in sorted(directory.glob("*.log")):
                    print(f"---- {log.name}\n" + "\n".join(log.read_text().splitlines()[-20:]))
    shutil.rmtree(directory, ignore_errors=True)
    return 0 if good else 1


def cannot():
    """None, or why namespaces cannot be made here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip is not installed (iproute2)"
    probe = f"nibble{os.getpid()}p"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return None if made.returncode == 0 else f"network namespaces cannot be made here: {made.stderr.strip()}"


def main():
    if "--drive" in sys.argv:
        drive(pathlib.Path(sys.argv[sys.argv.index("--drive") + 1]))
        return 0
    why = client.missing() or cannot()
    if why is not None:
        print(f"skipped: {why}")
        return 77
    binaries = stack_module.bin_dir()
    return 77 if binaries is None else run(binaries)


if __name__ == "__main__":
    sys.exit(main())
