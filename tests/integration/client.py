"""A client in Python that shares nothing with ours but the .proto files.

Stubs are generated at run time by protoc and Debian's grpc_python_plugin; the rest is grpcio. `available`
says in a sentence what is missing, so that tests can skip.
"""

import hashlib
import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHUNK = 1 << 20
TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
# What every wait is multiplied with: a sanitizer's build takes that much longer (tests/run_tests.py).
PATIENCE = int(os.environ.get("NIBBLE_PATIENCE", "1"))


def missing():
    """None, or why a foreign client cannot be built here."""
    for program in ("protoc", "grpc_python_plugin"):
        if shutil.which(program) is None:
            return f"{program} is not installed (protobuf-compiler-grpc)"
    for module, package in (("grpc", "python3-grpcio"), ("google.protobuf", "python3-protobuf")):
        try:
            importlib.import_module(module)
        except ImportError:
            return f"Python has no module {module} ({package})"
    return None


class Stubs:
    """The generated modules of our protos, reflection and health."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory(prefix="nibble-stubs-")
        out = self.directory.name
        sources = {ROOT / "proto": [p for p in (ROOT / "proto").rglob("*.proto")],
                   ROOT / "tests/integration/proto": list((ROOT / "tests/integration/proto").glob("*.proto"))}
        for base, files in sources.items():
            subprocess.run(
                ["protoc", f"-I{base}", f"--python_out={out}", f"--grpc_python_out={out}",
                 f"--plugin=protoc-gen-grpc_python={shutil.which('grpc_python_plugin')}",
                 *map(str, files)], check=True)
        sys.path.insert(0, out)
        import google  # the installed package; ours adds google.rpc to it
        google.__path__.append(out + "/google")
        for name in ("job", "blob", "dataset", "model", "adapter", "fleet"):
            setattr(self, name, importlib.import_module(f"nibble.v1.{name}_pb2"))
            setattr(self, name + "_grpc", importlib.import_module(f"nibble.v1.{name}_pb2_grpc"))
        self.status = importlib.import_module("google.rpc.status_pb2")
        self.details = importlib.import_module("google.rpc.error_details_pb2")
        for name in ("reflection", "health"):
            setattr(self, name, importlib.import_module(f"{name}_pb2"))
            setattr(self, name + "_grpc", importlib.import_module(f"{name}_pb2_grpc"))


_stubs = None


def stubs():
    global _stubs
    if _stubs is None:
        _stubs = Stubs()
    return _stubs


def error_details(error):
    """(reason, metadata, fields) of an RPC error, read from its google.rpc.Status."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = stubs().status.Status.FromString(value)
            break
    else:
        return None, {}, []
    reason, metadata, fields = None, {}, []
    for detail in status.details:
        info, bad = stubs().details.ErrorInfo(), stubs().details.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
    return reason, metadata, fields


class Api:
    """All public services over one channel, and the few steps that need more than one call."""

    def __init__(self, address, credentials=None):
        import grpc
        s = stubs()
        self.pb = s
        # Reconnect at once: tests kill servers. The least time between attempts, which is also what an attempt to
        # connect may take, stays at 20 s: a busy machine needs more than none.
        options = [
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000)]
        self.channel = (grpc.secure_channel(address, credentials, options) if credentials
                        else grpc.insecure_channel(address, options))
        self.jobs = s.job_grpc.JobServiceStub(self.channel)
        self.blobs = s.blob_grpc.BlobServiceStub(self.channel)
        self.datasets = s.dataset_grpc.DatasetServiceStub(self.channel)
        self.models = s.model_grpc.ModelServiceStub(self.channel)
        self.adapters = s.adapter_grpc.AdapterServiceStub(self.channel)
        self.fleet = s.fleet_grpc.FleetServiceStub(self.channel)

    def close(self):
        self.channel.close()

    def upload(self, data):
        """Uploads bytes, chunk by chunk; returns their digest."""
        digest = hashlib.sha256(data).hexdigest()
        begun = self.blobs.BeginUpload(
            self.pb.blob.BeginUploadRequest(sha256=digest, size_bytes=len(data)))
        if begun.complete:
            return digest

        def chunks():
            offset = begun.committed_bytes
            while True:
                yield self.pb.blob.UploadChunk(upload_id=begun.upload_id, offset=offset,
                                               data=data[offset:offset + CHUNK])
                offset += CHUNK
                if offset >= len(data):
                    return

        done = self.blobs.Upload(chunks())
        assert done.complete and done.committed_bytes == len(data), done
        return digest

    def add_model(self, directory, model_id=""):
        """Registers a Hugging Face directory by uploading its files."""
        manifest = []
        for path in sorted(pathlib.Path(directory).iterdir()):
            if path.suffix in (".json", ".safetensors", ".model") and path.is_file():
                data = path.read_bytes()
                manifest.append(self.pb.model.ModelFile(
                    name=path.name, size_bytes=len(data), sha256=self.upload(data)))
        return self.models.RegisterModel(self.pb.model.RegisterModelRequest(
            model_id=model_id, display_name=pathlib.Path(directory).name, manifest=manifest))

    def add_dataset(self, data, dataset_id=""):
        return self.datasets.CreateDataset(self.pb.dataset.CreateDatasetRequest(
            dataset_id=dataset_id, display_name="rows", sha256=self.upload(data)))

    def state(self, job):
        return self.pb.job.JobState.Name(job.state)

    def get(self, name):
        return self.jobs.GetJob(self.pb.job.GetJobRequest(name=name))

    def wait(self, name, timeout=300, until=TERMINAL, patient=False):
        """Polls until the job is in one of the states. `patient`: a server that is away is waited for."""
        import grpc
        end, job = time.monotonic() + timeout * PATIENCE, None
        while time.monotonic() < end:
            try:
                job = self.get(name)
                if self.state(job) in until:
                    return job
                if self.state(job) in TERMINAL:
                    break
            except grpc.RpcError as error:
                if not (patient and error.code() == grpc.StatusCode.UNAVAILABLE):
                    raise
            time.sleep(0.05)
        state = self.state(job) if job else "unknown"
        raise AssertionError(f"{name} is {state}, not one of {until}: "
                             f"{job.state_reason if job else ''} {job.error if job else ''}")

    def download(self, adapter, chunk_limit=None):
        """All files of an adapter: name -> bytes; sizes and digests checked. With a chunk limit every
        download is cut after that many chunks and resumed where it ended."""
        files = {}
        for entry in self.adapters.GetAdapter(self.pb.adapter.GetAdapterRequest(name=adapter)).files:
            data = b""
            while len(data) < entry.size_bytes:
                stream = self.adapters.DownloadAdapter(self.pb.adapter.DownloadAdapterRequest(
                    name=adapter, file=entry.name, offset=len(data)))
                for number, part in enumerate(stream, 1):
                    assert part.offset == len(data), (entry.name, part.offset, len(data))
                    data += part.data
                    if number == chunk_limit:
                        stream.cancel()
                        break
            assert len(data) == entry.size_bytes, entry.name
            assert hashlib.sha256(data).hexdigest() == entry.sha256, entry.name
            files[entry.name] = data
        return files

    def metrics(self, name):
        """Per step the row of the highest attempt, evaluations apart: what two equal runs share."""
        points = self.jobs.QueryMetrics(self.pb.job.QueryMetricsRequest(
            name=name, max_points=1_000_000)).points
        rows = {}
        for point in points:
            if point.tokens == 0:   # an evaluation
                continue
            if point.step not in rows or rows[point.step].epoch <= point.epoch:
                rows[point.step] = point
        return [(p.step, p.loss, p.gradient_norm, p.learning_rate, p.tokens)
                for _, p in sorted(rows.items())]
