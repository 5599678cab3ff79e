#!/usr/bin/env python3
"""The server without workers of ours: every service over real gRPC, and a worker played by this script.

    server_alone.py            starts nibble-server of NIBBLE_BIN_DIR

Exits 77 with a sentence where something needed is missing.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import client
from alone_command import check_removed
from alone_data import check_blobs, check_datasets, check_models
from alone_durable import check_backup, check_damage, check_full_disk, check_restart
from alone_jobs import Watch, check_fleet, check_jobs, check_refusal, check_training
from alone_tls import check_certificates, check_exposure, check_tls
from alone_why import check_failed, check_numerics, check_why
from foreign_client import expect_error
from lone_server import Server, spec_of


def main():
    try:
        return run()
    finally:
        for server in Server.started:
            if server.process is not None and server.process.poll() is None:
                server.process.kill()


def run():
    why = client.missing()
    binary = pathlib.Path(os.environ.get("NIBBLE_BIN_DIR", client.ROOT / "build" / "bin")) / "nibble-server"
    if why is None and not binary.is_file():
        why = f"{binary} is not built"
    if why is not None:
        print(f"skipped: {why}")
        return 77
    in_memory = ["--in-memory"] if "--in-memory" in sys.argv else []
    client.stubs()
    check_exposure(binary)
    server = Server(binary, *in_memory).start()
    api = client.Api(server.address)
    assert server.get("/healthz") == "ok\n" and server.get("/readyz") == "ready\n"
    second = subprocess.run([binary, "--data-dir", server.data, "--listen", "127.0.0.1:0"], capture_output=True,
                            text=True, timeout=20)
    assert second.returncode != 0 and "another nibble-server" in second.stderr, second
    check_blobs(api)
    dataset = check_datasets(api)
    model = check_models(api)
    job = check_jobs(api, spec_of(api, model, dataset))
    worker = check_training(server, api, job)
    check_fleet(api, worker)
    check_refusal(api, model, dataset)
    check_why(server, api, model, dataset, worker)
    check_failed(server, api, model, dataset, worker)
    check_numerics(server, api, model, dataset, worker)
    expect_error(lambda: api.models.DeleteModel(api.pb.model.DeleteModelRequest(name="models/none")),
                 "NOT_FOUND", "BASE_MODEL_NOT_FOUND")
    check_restart(server, api, job, worker)
    api = client.Api(server.address)
    check_damage(server, api, job)
    check_full_disk(server, api, job)
    check_backup(server, api, job)
    watching = Watch(client.Api(server.address), name=job.name) if in_memory else None
    if not in_memory:
        check_removed(server.address, job.name)
    code = server.stop()
    log = (server.data / "log").read_text()
    assert code == 0, log[-3000:]
    assert "job.queued job=" in log and 'job=""' not in log and "blob.recorded" not in log, log[-3000:]
    assert not (server.data / "run" / "server.json").exists()
    if watching:
        watching.join(5)
    check_tls(binary, in_memory)
    check_certificates(binary, in_memory)
    shutil.rmtree(server.data)
    print("the server alone: all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
