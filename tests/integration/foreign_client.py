#!/usr/bin/env python3
"""Creates, watches and downloads with a client that is not ours: grpcio, stubs from the protos.

    foreign_client.py [--server HOST:PORT]     without it, a stack of its own is started

Exits 77 with a sentence where something needed is missing.
"""

import argparse
import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import threading
import uuid

import client
import stack as stack_module

SERVICES = {f"nibble.v1.{name}Service" for name in
            ("Job", "Blob", "Dataset", "Model", "Adapter", "Fleet")}


def check_reflection(api):
    """What a generic tool sees: the services by name, and a descriptor of one method."""
    pb = api.pb
    stub = pb.reflection_grpc.ServerReflectionStub(api.channel)
    request = pb.reflection.ServerReflectionRequest
    answers = list(stub.ServerReflectionInfo(iter([
        request(list_services=""), request(file_containing_symbol="nibble.v1.JobService")])))
    names = {service.name for service in answers[0].list_services_response.service}
    assert SERVICES <= names, f"reflection lists {sorted(names)}"
    from google.protobuf import descriptor_pb2
    files = [descriptor_pb2.FileDescriptorProto.FromString(data)
             for data in answers[1].file_descriptor_response.file_descriptor_proto]
    methods = {method.name for file in files for service in file.service for method in service.method}
    assert {"CreateJob", "WatchJob", "PlanJob"} <= methods, methods
    health = pb.health_grpc.HealthStub(api.channel).Check(pb.health.HealthCheckRequest())
    assert health.status == pb.health.HealthCheckResponse.SERVING, health


def expect_error(call, code, reason, field=None, says=""):
    import grpc
    try:
        call()
    except grpc.RpcError as error:
        found, metadata, fields = client.error_details(error)
        assert error.code() == getattr(grpc.StatusCode, code), (error.code(), error.details())
        assert found == reason, f"reason {found}, not {reason}: {error.details()}"
        assert field is None or field in fields, f"fields {fields} without {field}"
        assert error.details() and says in error.details(), error.details() or "an error without a message"
        return metadata
    raise AssertionError(f"no error; expected {reason}")


def check_errors(api, spec):
    """Every error carries google.rpc.ErrorInfo with a stable reason, bad fields their path."""
    job = api.pb.job
    expect_error(lambda: api.get("jobs/no-such-job"), "NOT_FOUND", "JOB_NOT_FOUND")
    expect_error(lambda: api.adapters.GetAdapter(
        api.pb.adapter.GetAdapterRequest(name="adapters/none")), "NOT_FOUND", "ADAPTER_NOT_FOUND")
    bad = job.JobSpec()
    bad.CopyFrom(spec)
    bad.lora.r = 0
    expect_error(lambda: stack_module.submit(api, bad), "INVALID_ARGUMENT", "SPEC_INVALID",
                 "spec.lora.r")
    unknown = job.JobSpec()
    unknown.CopyFrom(spec)
    unknown.base_model = "models/none"
    expect_error(lambda: stack_module.submit(api, unknown), "NOT_FOUND", "BASE_MODEL_NOT_FOUND")
    expect_error(lambda: stack_module.submit(api, spec, job_id="Not A Name"), "INVALID_ARGUMENT",
                 "NAME_INVALID")
    expect_error(lambda: api.add_dataset(b"this is not JSON\n"), "INVALID_ARGUMENT",
                 "DATASET_SCHEMA_MISMATCH")
    expect_error(lambda: api.jobs.ListJobs(job.ListJobsRequest(page_token="nonsense")),
                 "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


class Watch(threading.Thread):
    """Reads WatchJob to its end on a thread of its own."""

    def __init__(self, api, name):
        super().__init__()
        self.api, self.name_of_job = api, name
        self.snapshots, self.events, self.metrics, self.error = [], [], [], None

    def run(self):
        try:
            for update in self.api.jobs.WatchJob(
                    self.api.pb.job.WatchJobRequest(name=self.name_of_job), timeout=300):
                kind = update.WhichOneof("update")
                if kind == "snapshot":
                    self.snapshots.append(update.snapshot)
                elif kind == "event":
                    self.events.append(update.event)
                elif kind == "metric":
                    self.metrics.append(update.metric)
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def check(self, steps):
        assert self.error is None, f"watch ended badly: {self.error}"
        assert len(self.snapshots) == 1, f"{len(self.snapshots)} snapshots"
        sequences = [event.sequence for event in self.events]
        assert sequences == sorted(set(sequences)), f"events out of order: {sequences}"
        assert self.events[-1].state == self.api.pb.job.SUCCEEDED, self.events[-1]
        seen = {point.step for point in self.metrics if point.tokens > 0}
        assert seen == set(range(1, steps + 1)), f"steps seen: {sorted(seen)}"


def check_safetensors(data):
    """Finite fp32 tensors under PEFT's names."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    names = [name for name in header if name != "__metadata__"]
    assert names and all(name.startswith("base_model.model.model.layers.") for name in names), names
    assert {name.split(".")[-2] for name in names} == {"lora_A", "lora_B"}
    assert max(header[name]["data_offsets"][1] for name in names) == len(data) - 8 - size


def run(api, steps=12):
    pb = api.pb
    check_reflection(api)
    model = api.add_model(stack_module.base_directory())
    assert model.model_type == "llama" and model.parameters > 0, model
    dataset = api.add_dataset(stack_module.rows())
    assert dataset.rows == 48, dataset
    spec = stack_module.small_spec(pb, model, dataset, steps=steps)
    check_errors(api, spec)

    plan = api.jobs.PlanJob(pb.job.PlanJobRequest(spec=spec))
    assert any(fit.verdict == pb.job.DeviceFit.FITS_NOW for fit in plan.fits), plan
    request_id = str(uuid.uuid4())
    job = stack_module.submit(api, spec, request_id=request_id, labels={"client": "foreign"})
    again = stack_module.submit(api, spec, request_id=request_id, labels={"client": "foreign"})
    assert again.uid == job.uid, "the same request_id made two jobs"
    watch = Watch(api, job.name)
    watch.start()
    done = api.wait(job.name)
    assert api.state(done) == "SUCCEEDED", f"{api.state(done)}: {done.error}"
    watch.join(30)
    assert not watch.is_alive(), "the watch did not end after the terminal event"
    watch.check(steps)
    assert done.labels["client"] == "foreign"
    assert done.progress.completed_steps == steps
    # A sanitizer, with which everybody has to be patient, has memory of its own that no plan knows.
    assert done.used_bytes > 0
    assert client.PATIENCE > 1 or done.plan.total_bytes >= done.used_bytes, (done.plan, done.used_bytes)
    expect_error(lambda: api.jobs.DeleteJob(pb.job.DeleteJobRequest(name="jobs/none")), "NOT_FOUND",
                 "JOB_NOT_FOUND")

    rows = api.metrics(job.name)
    assert [row[0] for row in rows] == list(range(1, steps + 1)), rows
    files = api.download(done.adapter)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md",
                 "trainer_state.json", "metrics.jsonl"):
        assert name in files, f"no {name} in {sorted(files)}"
    check_safetensors(files["adapter_model.safetensors"])
    config = json.loads(files["adapter_config.json"])
    assert config["peft_type"] == "LORA" and config["r"] == 4, config
    assert api.download(done.adapter, chunk_limit=1) == files, "a resumed download differs"
    print(f"foreign client: {job.name} watched ({len(watch.events)} events, {len(watch.metrics)} metric "
          f"points), {len(files)} files downloaded, loss {rows[0][1]:.3f} to {rows[-1][1]:.3f}")


def check_manual(api, address):
    """The example of docs/api.md runs as it stands there."""
    api.add_model(client.ROOT / "demo" / "base", "demo-base")
    api.add_dataset((client.ROOT / "demo" / "data" / "train.jsonl").read_bytes(), "demo-train")
    page = (client.ROOT / "docs" / "api.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.S).group(1)
    assert "127.0.0.1:7070" in example, example
    with tempfile.TemporaryDirectory() as folder:
        here = pathlib.Path(folder)
        (here / "stubs").symlink_to(client.stubs().directory.name)
        said = subprocess.run([sys.executable, "-c", example.replace("127.0.0.1:7070", address)], cwd=here,
                              capture_output=True, text=True, timeout=120 * client.PATIENCE, check=False)
        assert said.returncode == 0 and "SUCCEEDED adapters/" in said.stdout, said
        assert "step 3 loss" in said.stdout and "step 0" not in said.stdout, said
        check_safetensors((here / "adapter_model.safetensors").read_bytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--server", help="HOST:PORT of a running server with a worker")
    options = parser.parse_args()
    if client.missing():
        print(f"skipped: {client.missing()}")
        return 77
    if options.server:
        run(client.Api(options.server))
        return 0
    binaries = stack_module.bin_dir()
    if binaries is None:
        return 77
    with stack_module.Stack(binaries) as stack:
        stack.start_server().start_worker()
        run(stack.api())
        check_manual(stack.api(), stack.address)
    return 0


if __name__ == "__main__":
    sys.exit(main())
