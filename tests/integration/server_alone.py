#!/usr/bin/env python3
"""The server without workers of ours: every service over real gRPC, and a worker played by this script.

    server_alone.py            starts nibble-server of NIBBLE_BIN_DIR

Exits 77 with a sentence where something needed is missing.
"""

import hashlib
import importlib
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid

import client
from foreign_client import expect_error

PROFILE = json.dumps({"backend": "cpu", "body": "avx2", "build": "test", "threads": 1, "act_bytes": 2,
                      "fixed_bytes": 50 << 20, "capacity_bytes": 300 << 20})
ROWS = b"".join(b'{"prompt": "q%d", "completion": "a%d"}\n' % (i, i) for i in range(40))


class Server:
    """nibble-server on ephemeral ports in a directory of its own."""

    started = []

    def __init__(self, binary, *flags):
        Server.started.append(self)
        self.binary = binary
        self.flags = flags
        self.data = pathlib.Path(tempfile.mkdtemp(prefix="nibble-alone-"))
        self.process = None

    def start(self, *more):
        info = self.data / "run" / "server.json"
        info.unlink(missing_ok=True)
        self.log = open(self.data / "log", "ab")
        self.process = subprocess.Popen(
            [self.binary, "--data-dir", self.data, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
             "--lease-seconds", "6", "--metrics-job-linger", "3", "--watch-heartbeat-seconds", "1",
             "--min-free-mb", "0", *self.flags, *more], stdout=self.log, stderr=self.log)
        end = time.monotonic() + 20
        while not info.exists():
            assert self.process.poll() is None, (self.data / "log").read_text()
            assert time.monotonic() < end, "the server did not come up"
            time.sleep(0.02)
        self.info = json.loads(info.read_text())
        self.address = f"127.0.0.1:{self.info['port']}"
        return self

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.info['http_port']}{path}", timeout=10) as answer:
            return answer.read().decode()

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        code = self.process.wait(30)
        self.log.close()
        return code


class PlayedWorker:
    """Speaks WorkerService by hand."""

    def __init__(self, address, name="w1"):
        import grpc
        self.pb = importlib.import_module("nibble.worker.v1.worker_pb2")
        stubs = importlib.import_module("nibble.worker.v1.worker_pb2_grpc")
        self.stub = stubs.WorkerServiceStub(grpc.insecure_channel(address))
        self.name, self.incarnation, self.revision, self.running = name, uuid.uuid4().hex, 0, {}

    def register(self):
        return self.stub.Register(self.pb.RegisterRequest(
            worker_id=self.name, incarnation=self.incarnation, version="test", shares_file_system=True,
            devices=[self.pb.DeviceProfile(id="cpu0", backend="cpu", body="avx2", description="test CPU",
                                           capacity_bytes=300 << 20, profile_json=PROFILE)]))

    def synchronize(self):
        answer = self.stub.Synchronize(self.pb.SynchronizeRequest(
            worker_id=self.name, incarnation=self.incarnation, known_revision=self.revision,
            attempts=self.running.values()))
        self.revision = answer.revision
        return answer

    def wait_for(self, condition, timeout=20):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            answer = self.synchronize()
            for assignment in answer.assignments:
                self.running[(assignment.job_id, assignment.epoch)] = self.pb.RunningAttempt(
                    job_id=assignment.job_id, epoch=assignment.epoch, device_id=assignment.device_id,
                    phase=self.pb.TRAINING)
            found = [a for a in answer.assignments if condition(a)]
            if found:
                return found[0]
        raise AssertionError(f"no such assignment; the last answer was {answer}")

    def let_go(self, assignment):
        self.running.pop((assignment.job_id, assignment.epoch), None)

    def fence(self, a):
        return self.pb.Fence(job_id=a.job_id, epoch=a.epoch, worker_id=self.name,
                             incarnation=self.incarnation, token=a.token)

    def report(self, assignment, metrics=(), **report):
        return self.stub.ReportProgress(self.pb.ReportProgressRequest(
            fence=self.fence(assignment), metrics=metrics, **report))

    def step(self, n, **more):
        return self.pb.StepMetric(step=n, loss=3.0 / n, gradient_norm=1.0, learning_rate=1e-4, tokens=100,
                                  target_tokens=80, step_time_us=10000, time_us=time.time_ns() // 1000,
                                  used_bytes=1 << 28, **more)

    def put(self, assignment, name, data):
        digest = hashlib.sha256(data).hexdigest()
        begun = self.stub.BeginBlob(self.pb.BeginBlobRequest(
            fence=self.fence(assignment), sha256=digest, size_bytes=len(data)))
        if not begun.complete:
            done = self.stub.PutBlob(iter([
                self.pb.BlobChunk(upload_id=begun.upload_id, offset=at, data=data[at:at + client.CHUNK])
                for at in range(begun.committed_bytes, len(data), client.CHUNK)]))
            assert done.complete, done
        return self.pb.BlobRef(name=name, sha256=digest, size_bytes=len(data))

    def fetch(self, digest):
        return b"".join(part.data for part in self.stub.FetchBlob(
            self.pb.FetchBlobRequest(worker_id=self.name, sha256=digest)))


def model_files():
    """A whole model of one small layer, weights zero."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256,
              "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 1, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu"}
    shapes = {"model.embed_tokens.weight": [256, 64], "model.norm.weight": [64]}
    layer = "model.layers.0."
    for name, shape in {"input_layernorm": [64], "post_attention_layernorm": [64],
                        "self_attn.q_proj": [64, 64], "self_attn.k_proj": [32, 64],
                        "self_attn.v_proj": [32, 64], "self_attn.o_proj": [64, 64],
                        "mlp.gate_proj": [128, 64], "mlp.up_proj": [128, 64],
                        "mlp.down_proj": [64, 128]}.items():
        shapes[layer + name + ".weight"] = shape
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}
    return {"config.json": json.dumps(config).encode(), "tokenizer.json": json.dumps(tokenizer).encode(),
            "model.safetensors": struct.pack("<Q", len(text)) + text + bytes(at)}


def add_model(api, files, **more):
    manifest = [api.pb.model.ModelFile(name=name, size_bytes=len(data), sha256=api.upload(data))
                for name, data in files.items()]
    return api.models.RegisterModel(api.pb.model.RegisterModelRequest(manifest=manifest, **more))


def spec_of(api, model, dataset):
    spec = api.pb.job.JobSpec(base_model=model.name, dataset=dataset.name)
    spec.lora.r, spec.data.sequence_len, spec.training.max_steps = 4, 64, 20
    return spec


def check_blobs(api):
    pb, blob = api.pb, api.blobs
    data = os.urandom(3 << 20)
    digest = hashlib.sha256(data).hexdigest()
    begun = blob.BeginUpload(pb.blob.BeginUploadRequest(sha256=digest, size_bytes=len(data)))
    assert not begun.complete and begun.committed_bytes == 0
    part = blob.Upload(iter([pb.blob.UploadChunk(upload_id=begun.upload_id, offset=0, data=data[:1 << 20])]))
    assert part.committed_bytes == 1 << 20 and not part.complete, part
    state = blob.GetUpload(pb.blob.GetUploadRequest(upload_id=begun.upload_id))
    assert state.committed_bytes == 1 << 20, state
    metadata = expect_error(lambda: blob.Upload(iter([pb.blob.UploadChunk(
        upload_id=begun.upload_id, offset=(1 << 20) + 5, data=b"x")])), "OUT_OF_RANGE", "OFFSET_MISMATCH")
    assert metadata["committed_bytes"] == str(1 << 20), metadata
    expect_error(lambda: blob.Upload(iter([pb.blob.UploadChunk(
        upload_id=begun.upload_id, offset=1 << 20, data=bytes((1 << 20) + 1))])),
        "INVALID_ARGUMENT", "REQUEST_TOO_LARGE", "data")
    expect_error(lambda: blob.Upload(iter([])), "INVALID_ARGUMENT", "SPEC_INVALID", "upload_id")
    assert api.upload(data) == digest
    assert blob.BeginUpload(pb.blob.BeginUploadRequest(sha256=digest, size_bytes=len(data))).complete
    expect_error(lambda: blob.BeginUpload(pb.blob.BeginUploadRequest(sha256="../../etc/passwd", size_bytes=1)),
                 "INVALID_ARGUMENT", "NAME_INVALID", "sha256")
    expect_error(lambda: blob.GetUpload(pb.blob.GetUploadRequest(upload_id="nothing")),
                 "NOT_FOUND", "UPLOAD_NOT_FOUND")
    wrong = blob.BeginUpload(pb.blob.BeginUploadRequest(sha256="0" * 64, size_bytes=1))
    expect_error(lambda: blob.Upload(iter([pb.blob.UploadChunk(
        upload_id=wrong.upload_id, offset=0, data=b"x")])), "DATA_LOSS", "DIGEST_MISMATCH")


def check_datasets(api):
    pb = api.pb.dataset
    first = api.add_dataset(ROWS)
    assert (first.rows, first.format) == (40, "completion"), first
    assert api.add_dataset(ROWS).name == first.name, "the same content twice is one data set"
    named = api.add_dataset(ROWS, dataset_id="orders")
    assert named.name == "datasets/orders"
    expect_error(lambda: api.add_dataset(ROWS[ROWS.index(b'\n') + 1:], dataset_id="orders"), "ALREADY_EXISTS", "DATASET_EXISTS")
    expect_error(lambda: api.add_dataset(ROWS, dataset_id="../x"), "INVALID_ARGUMENT", "NAME_INVALID",
                 "dataset_id")
    expect_error(lambda: api.add_dataset(b'{"text":"a"}\n{"text":1}\n'), "INVALID_ARGUMENT",
                 "DATASET_SCHEMA_MISMATCH", "rows[1].text")
    expect_error(lambda: api.add_dataset(b"\n\n"), "INVALID_ARGUMENT", "DATASET_EMPTY")
    expect_error(lambda: api.add_dataset(b'{"text":"' + b"x" * (5 << 20)), "INVALID_ARGUMENT",
                 "REQUEST_TOO_LARGE", "rows[0]")
    expect_error(lambda: api.datasets.CreateDataset(pb.CreateDatasetRequest(path="/etc/passwd")),
                 "FAILED_PRECONDITION", "PATH_NOT_ALLOWED", "path")
    expect_error(lambda: api.datasets.CreateDataset(pb.CreateDatasetRequest(sha256="1" * 64)),
                 "NOT_FOUND", "BLOB_NOT_FOUND")
    rows = api.datasets.PreviewDataset(pb.PreviewDatasetRequest(name=first.name, rows=2)).rows
    assert list(rows) == ['{"prompt": "q0", "completion": "a0"}', '{"prompt": "q1", "completion": "a1"}']
    page = api.datasets.ListDatasets(pb.ListDatasetsRequest(page_size=1))
    assert len(page.datasets) == 1 and page.next_page_token
    rest = api.datasets.ListDatasets(pb.ListDatasetsRequest(page_token=page.next_page_token))
    assert {d.name for d in [*page.datasets, *rest.datasets]} == {first.name, named.name}
    api.datasets.DeleteDataset(pb.DeleteDatasetRequest(name=named.name))
    expect_error(lambda: api.datasets.GetDataset(pb.GetDatasetRequest(name=named.name)),
                 "NOT_FOUND", "DATASET_NOT_FOUND")
    return first


def check_models(api):
    files = model_files()
    model = add_model(api, files, display_name="tiny")
    assert model.model_type == "llama" and model.parameters > 0 and len(model.files) == 3, model
    assert add_model(api, files).name == model.name, "the same files twice are one model"
    for name, change, reason in (
            ("model.safetensors", None, "MODEL_FILE_INVALID"), ("tokenizer.json", None, "TOKENIZER_UNSUPPORTED"),
            ("model.safetensors", files["model.safetensors"][:-10], "MODEL_FILE_INVALID"),
            ("model.safetensors", b"\xff" * 64, "MODEL_FILE_INVALID"),
            ("tokenizer.json", b'{"model":{"type":"BPE","vocab":{"a":0}}}', "TOKENIZER_UNSUPPORTED"),
            ("config.json", b'{"model_type":"mamba"}', "UNSUPPORTED_ARCHITECTURE")):
        bad = {k: v for k, v in files.items() if k != name}
        if change is not None:
            bad[name] = change
        expect_error(lambda: add_model(api, bad), "FAILED_PRECONDITION", reason)
    expect_error(lambda: add_model(api, {**files, "a..b": b"x"}), "INVALID_ARGUMENT", "NAME_INVALID",
                 "manifest[3].name")
    expect_error(lambda: add_model(api, files, model_id="No"), "INVALID_ARGUMENT", "NAME_INVALID", "model_id")
    return model


def check_jobs(api, spec):
    pb = api.pb.job
    plan = api.jobs.PlanJob(pb.PlanJobRequest(spec=spec))
    verdicts = {fit.worker: pb.DeviceFit.Verdict.Name(fit.verdict) for fit in plan.fits}
    assert verdicts["card-24gb"] == "FITS_NOW" and plan.effective_spec.lora.alpha == 32, plan
    dry = api.jobs.CreateJob(pb.CreateJobRequest(spec=spec, validate_only=True))
    assert not dry.name and dry.effective_spec.optimizer.learning_rate == 2e-4, dry
    assert not api.jobs.ListJobs(pb.ListJobsRequest()).jobs
    request = pb.CreateJobRequest(spec=spec, request_id=str(uuid.uuid4()), display_name="first",
                                  labels={"team": "a"})
    job = api.jobs.CreateJob(request)
    assert api.state(job) == "QUEUED" and job.queue_position == 1 and "worker" in job.state_reason, job
    assert api.jobs.CreateJob(request).name == job.name, "a repeated request_id is the same job"
    request.display_name = "other"
    expect_error(lambda: api.jobs.CreateJob(request), "ALREADY_EXISTS", "REQUEST_ID_REUSED")
    named = api.jobs.CreateJob(pb.CreateJobRequest(spec=spec, job_id="second"))
    expect_error(lambda: api.jobs.CreateJob(pb.CreateJobRequest(spec=spec, job_id="second")),
                 "ALREADY_EXISTS", "JOB_EXISTS")
    bad = pb.JobSpec()
    bad.CopyFrom(spec)
    bad.lora.r, bad.optimizer.lr_scheduler = 0, "zigzag"
    expect_error(lambda: api.jobs.CreateJob(pb.CreateJobRequest(spec=bad)), "INVALID_ARGUMENT",
                 "SPEC_INVALID", "spec.optimizer.lr_scheduler")
    bad.optimizer.lr_scheduler = "linear"
    expect_error(lambda: api.jobs.CreateJob(pb.CreateJobRequest(spec=bad)), "INVALID_ARGUMENT",
                 "SPEC_INVALID", "spec.lora.r")
    bad.CopyFrom(spec)
    bad.data.sequence_len = 4096
    expect_error(lambda: api.jobs.CreateJob(pb.CreateJobRequest(spec=bad)), "INVALID_ARGUMENT",
                 "SPEC_INVALID", "spec.data.sequence_len")
    expect_error(lambda: api.get("jobs/../etc"), "INVALID_ARGUMENT", "NAME_INVALID", "name")
    page = api.jobs.ListJobs(pb.ListJobsRequest(page_size=1))
    assert [j.name for j in page.jobs] == [named.name], "newest first"
    rest = api.jobs.ListJobs(pb.ListJobsRequest(page_size=1, page_token=page.next_page_token))
    assert [j.name for j in rest.jobs] == [job.name] and not rest.next_page_token
    expect_error(lambda: api.jobs.ListJobs(pb.ListJobsRequest(
        page_token=page.next_page_token, states=[pb.QUEUED])), "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID",
        "page_token")
    updated = api.jobs.UpdateJob(pb.UpdateJobRequest(
        job=pb.Job(name=named.name, priority=7), update_mask={"paths": ["priority"]}))
    assert updated.priority == 7 and updated.etag != named.etag
    expect_error(lambda: api.jobs.UpdateJob(pb.UpdateJobRequest(
        job=pb.Job(name=named.name, etag=named.etag), update_mask={"paths": ["labels"]})),
        "ABORTED", "ETAG_MISMATCH")
    expect_error(lambda: api.jobs.UpdateJob(pb.UpdateJobRequest(
        job=pb.Job(name=named.name), update_mask={"paths": ["state"]})), "INVALID_ARGUMENT", "SPEC_INVALID")
    for _ in range(2):
        assert api.state(api.jobs.PauseJob(pb.PauseJobRequest(name=named.name))) == "PAUSED"
    assert api.state(api.jobs.ResumeJob(pb.ResumeJobRequest(name=named.name))) == "QUEUED"
    expect_error(lambda: api.jobs.DeleteJob(pb.DeleteJobRequest(name=named.name)),
                 "FAILED_PRECONDITION", "JOB_NOT_TERMINAL")
    for _ in range(2):
        assert api.state(api.jobs.CancelJob(pb.CancelJobRequest(name=named.name))) == "CANCELLED"
    expect_error(lambda: api.jobs.PauseJob(pb.PauseJobRequest(name=named.name)),
                 "FAILED_PRECONDITION", "JOB_NOT_PAUSABLE")
    events = api.jobs.ListJobEvents(pb.ListJobEventsRequest(name=named.name)).events
    assert [e.sequence for e in events] == list(range(1, len(events) + 1)), events
    api.jobs.DeleteJob(pb.DeleteJobRequest(name=named.name))
    expect_error(lambda: api.get(named.name), "NOT_FOUND", "JOB_NOT_FOUND")
    expect_error(lambda: api.adapters.GetAdapter(api.pb.adapter.GetAdapterRequest(
        name=job.name.replace("jobs", "adapters"))), "FAILED_PRECONDITION", "ARTIFACT_NOT_READY")
    return job


class Watch(threading.Thread):
    def __init__(self, api, **request):
        super().__init__(daemon=True)
        self.stream = api.jobs.WatchJob(api.pb.job.WatchJobRequest(**request))
        self.updates, self.error = [], None
        self.start()

    def run(self):
        import grpc
        try:
            for update in self.stream:
                self.updates.append(update)
        except grpc.RpcError as error:
            self.error = error

    def of(self, kind):
        return [getattr(u, kind) for u in list(self.updates) if u.WhichOneof("update") == kind]

    def until(self, condition, timeout=20):
        end = time.monotonic() + timeout
        while not condition(self):
            assert time.monotonic() < end, f"waited in vain; saw {self.updates} {self.error}"
            time.sleep(0.02)


def check_training(server, api, job):
    """A worker played by hand takes the job, reports steps, a checkpoint and a result."""
    pb = api.pb.job
    worker = PlayedWorker(server.address)
    assert worker.synchronize().register_again
    lease = worker.register()
    assert lease.lease_lost_ms == 6000 and lease.generation >= 1, lease
    watch = Watch(api, name=job.name)
    watch.until(lambda w: w.of("heartbeat"))
    assert watch.of("snapshot")[0].name == job.name
    job_id = job.name.split("/")[1]
    seen = []
    check = worker.wait_for(lambda a: seen.append(a) or a.kind == worker.pb.Assignment.CHECK or a.job_id == job_id)
    if check.kind == worker.pb.Assignment.CHECK:
        worker.report(check, check=worker.pb.CheckReport(report_json='{"rows":40}', planned_steps=20))
        worker.let_go(check)
    mine = worker.wait_for(lambda a: a.job_id == job_id)
    assert mine.want == worker.pb.Assignment.RUN and json.loads(mine.spec_json)["lora_r" if "lora_r" in json.loads(
        mine.spec_json) else "lora"], mine
    assert worker.fetch(mine.dataset.sha256) == ROWS
    for ref in mine.base_files:
        assert hashlib.sha256(worker.fetch(ref.sha256)).hexdigest() == ref.sha256
    expect_error(lambda: worker.fetch("2" * 64), "NOT_FOUND", "BLOB_NOT_FOUND")
    worker.report(mine, plan=worker.pb.PlanReport(planned_steps=20, plan_json="{}", numerics_id="n1"))
    for n in range(1, 11):
        worker.report(mine, metrics=[worker.step(n)])
    worker.report(mine, metrics=[worker.step(10, eval_loss=2.5)])
    watch.until(lambda w: len({m.step for m in w.of("metric")}) == 10)
    now = api.get(job.name)
    assert api.state(now) == "RUNNING" and now.progress.completed_steps == 10, now
    assert now.progress.trained_tokens == 1000 and now.progress.eval_loss == 2.5 and now.worker == "workers/w1"
    assert now.used_bytes == 1 << 28 and now.plan.total_bytes > 0
    text = server.get("/metrics")
    for series in (f'nibble_job_loss{{job_id="{job_id}",split="train"}} 0.3', 'nibble_jobs{state="RUNNING",queue="default"} 1',
                   f'nibble_job_trained_tokens_total{{job_id="{job_id}"}} 1000', 'nibble_workers{state="BUSY",backend="cpu"} 1'):
        assert any(line.startswith(series) for line in text.splitlines()), f"{series} is not in\n{text}"
    assert len([line for line in text.splitlines() if f'job_id="{job_id}"' in line]) <= 20
    promtool(text)
    checkpoint = worker.put(mine, "state.bin", os.urandom(2000))
    worker.report(mine, checkpoint=worker.pb.CheckpointReport(step=10, files=[checkpoint], manifest_sha256="3" * 64))
    saved = api.jobs.ListCheckpoints(pb.ListCheckpointsRequest(name=job.name)).checkpoints
    assert [(c.step, c.size_bytes) for c in saved] == [(10, 2000)], saved
    stale = worker.pb.Fence()
    stale.CopyFrom(worker.fence(mine))
    stale.token = "0" * 64
    expect_error(lambda: worker.stub.ReportProgress(worker.pb.ReportProgressRequest(
        fence=stale, metrics=[worker.step(11)])), "FAILED_PRECONDITION", "STALE_ATTEMPT")
    expect_error(lambda: worker.stub.BeginBlob(worker.pb.BeginBlobRequest(
        fence=stale, sha256="4" * 64, size_bytes=1)), "FAILED_PRECONDITION", "STALE_ATTEMPT")
    cut = Watch(api, name=job.name, after_sequence=1, after_step=4)
    cut.until(lambda w: len(w.of("metric")) >= 6)
    assert [e.sequence for e in cut.of("event")][:2] == [2, 3], cut.of("event")
    assert min(m.step for m in cut.of("metric")) == 5
    cut.stream.cancel()
    weights = os.urandom((1 << 20) + 12345)
    files = [worker.put(mine, "adapter_model.safetensors", weights), worker.put(mine, "adapter_config.json", b"{}")]
    done = dict(metrics=[worker.step(n) for n in range(11, 21)],
                finished=worker.pb.FinishedReport(step=20, files=files, stop_reason="MAX_STEPS"))
    worker.report(mine, **done)
    worker.report(mine, **{k: v for k, v in done.items() if k == "finished"})
    worker.let_go(mine)
    watch.join(20)
    assert not watch.is_alive() and watch.error is None, watch.error
    assert watch.of("event")[-1].type == "job.succeeded", watch.of("event")[-1]
    assert sorted({m.step for m in watch.of("metric")}) == list(range(1, 21))
    sequences = [e.sequence for e in watch.of("event")]
    assert sequences == sorted(set(sequences)), sequences
    again = Watch(api, name=job.name, after_step=19)
    again.join(20)
    assert [m.step for m in again.of("metric")] == [20] and again.error is None
    final = api.get(job.name)
    assert api.state(final) == "SUCCEEDED" and final.adapter == f"adapters/{job_id}"
    points = api.jobs.QueryMetrics(pb.QueryMetricsRequest(name=job.name, after_step=5, until_step=15)).points
    assert [p.step for p in points] == list(range(6, 16)), points
    got = api.download(final.adapter, chunk_limit=1)
    assert got == {"adapter_model.safetensors": weights, "adapter_config.json": b"{}"}
    expect_error(lambda: list(api.adapters.DownloadAdapter(api.pb.adapter.DownloadAdapterRequest(
        name=final.adapter, file="../../secret"))), "NOT_FOUND", "ADAPTER_NOT_FOUND", "file")
    end = time.monotonic() + 15
    while f'job_id="{job_id}"' in server.get("/metrics"):
        assert time.monotonic() < end, "the job's series linger"
        time.sleep(0.2)
    return worker


def check_fleet(api, worker):
    pb = api.pb.fleet
    worker.synchronize()
    shown = api.fleet.ListWorkers(pb.ListWorkersRequest()).workers
    assert [w.name for w in shown] == ["workers/w1"] and shown[0].devices[0].capacity_bytes == 300 << 20
    drained = api.fleet.DrainWorker(pb.DrainWorkerRequest(name="workers/w1"))
    assert pb.WorkerState.Name(drained.state) == "DRAINING", drained
    api.fleet.UndrainWorker(pb.UndrainWorkerRequest(name="workers/w1"))
    expect_error(lambda: api.fleet.GetWorker(pb.GetWorkerRequest(name="workers/none")), "NOT_FOUND",
                 "WORKER_NOT_FOUND")


def check_refusal(api, model, dataset):
    """A plan no worker could ever hold is refused with bytes and what would make it fit."""
    spec = spec_of(api, model, dataset)
    spec.data.sequence_len, spec.training.micro_batch_size = 512, 512
    metadata = expect_error(lambda: api.jobs.CreateJob(api.pb.job.CreateJobRequest(spec=spec)),
                            "FAILED_PRECONDITION", "EXCEEDS_DEVICE_MEMORY")
    assert int(metadata["shortfall_bytes"]) > 0 and "suggestion_1" in metadata, metadata
    plan = api.jobs.PlanJob(api.pb.job.PlanJobRequest(spec=spec))
    mine = next(fit for fit in plan.fits if fit.worker == "workers/w1")
    assert mine.shortfall_bytes > 0 and 0 < mine.largest_micro_batch_size < 512 and plan.suggestions, plan


def promtool(text):
    if shutil.which("promtool") is None:
        print("promtool is not installed: the exposition was not linted")
        return
    lint = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
    assert lint.returncode == 0, lint.stdout + lint.stderr


def check_restart(server, api, job):
    """Acknowledged means durable: kill -9, and everything is there."""
    if "--in-memory" in server.flags:
        return
    before = api.get(job.name)
    server.stop(signal.SIGKILL)
    server.start()
    again = client.Api(server.address)
    after = again.get(job.name)
    assert after == before, (after, before)
    assert len(again.download(after.adapter)) == 2
    again.close()


def check_backup(server, api, job):
    """A copy made while the server runs can be started from, on another timeline."""
    if "--in-memory" in server.flags:
        return
    copy, there = server.data.with_name(server.data.name + "-copy"), Server(server.binary)
    shutil.rmtree(there.data)
    run = lambda *words: subprocess.run([server.binary, *words], check=True, capture_output=True, timeout=30)
    try:
        run("backup", "--data-dir", server.data, "--to", copy)
        again = subprocess.run([server.binary, "backup", "--data-dir", server.data, "--to", copy],
                               capture_output=True, text=True)
        assert again.returncode != 0 and "not empty" in again.stderr, again
        run("restore", "--from", copy, "--data-dir", there.data)
        there.start()
        restored = client.Api(there.address)
        assert restored.get(job.name) == api.get(job.name)
        assert restored.download(api.get(job.name).adapter) == api.download(api.get(job.name).adapter)
        timelines = [PlayedWorker(s.address, "w9").register().timeline for s in (server, there)]
        assert timelines[0] != timelines[1], timelines
        restored.close()
        assert there.stop() == 0
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.rmtree(there.data, ignore_errors=True)


def check_exposure(binary):
    """Off loopback, nothing is served without TLS and a token."""
    with tempfile.TemporaryDirectory() as data:
        def refused(*flags):
            run = subprocess.run([binary, "--data-dir", data, "--http-listen", "", *flags], text=True,
                                 capture_output=True, timeout=20)
            assert run.returncode != 0, run
            return run.stderr
        assert "--tls-cert" in refused("--listen", "0.0.0.0:0")
        assert "is no flag" in refused("--lissen", "0.0.0.0:0")
        subprocess.run([binary, "init-tls", "--data-dir", data, "--host", "localhost"], check=True,
                       capture_output=True)
        tls = ["--tls-cert", f"{data}/tls/server.crt", "--tls-key", f"{data}/tls/server.key"]
        assert "token" in refused("--listen", "0.0.0.0:0", *tls)


def check_tls(binary, in_memory):
    """Over TLS: every method refuses a call without a token, and one with the wrong role."""
    import grpc
    server = Server(binary, *in_memory)
    data = str(server.data)
    subprocess.run([binary, "init-tls", "--data-dir", data, "--host", "127.0.0.1", "--host", "localhost"], check=True,
                   capture_output=True)
    token = {role: subprocess.run([binary, "token", "create", "--data-dir", data, "--name", role, "--role", role],
                                  check=True, capture_output=True, text=True).stdout.strip()
             for role in ("client", "worker")}
    server.start("--tls-cert", f"{data}/tls/server.crt", "--tls-key", f"{data}/tls/server.key",
                 "--reflection")
    credentials = grpc.ssl_channel_credentials(pathlib.Path(data, "tls/ca.crt").read_bytes())
    channel = grpc.secure_channel(server.address, credentials)
    pb = client.stubs()
    worker = importlib.import_module("nibble.worker.v1.worker_pb2")
    modules = [pb.job, pb.blob, pb.dataset, pb.model, pb.adapter, pb.fleet, worker]
    count = 0
    for module in modules:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                for bearer, code, reason in ((None, "UNAUTHENTICATED", "TOKEN_INVALID"),
                                             (token["worker" if module is not worker else "client"],
                                              "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")):
                    metadata = expect_error(lambda: call(channel, path, method, bearer), code, reason)
                    if reason == "ROLE_NOT_ALLOWED":
                        assert metadata["method"] == path, (metadata, path)
                count += 1
    assert count == 40, count
    call(channel, "/nibble.v1.JobService/ListJobs", pb.job.DESCRIPTOR.services_by_name["JobService"].methods_by_name[
        "ListJobs"], token["client"])
    health = pb.health_grpc.HealthStub(channel).Check(pb.health.HealthCheckRequest())
    assert health.status == pb.health.HealthCheckResponse.SERVING
    reflect = pb.reflection_grpc.ServerReflectionStub(channel)
    try:
        list(reflect.ServerReflectionInfo(iter([pb.reflection.ServerReflectionRequest(list_services="")])))
        raise AssertionError("reflection answered without a token")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED, error
    channel.close()
    assert server.stop() == 0


def call(channel, path, method, bearer):
    kind = ("stream" if method.client_streaming else "unary") + "_" + ("stream" if method.server_streaming else "unary")
    stub = getattr(channel, kind)(path, request_serializer=lambda data: data, response_deserializer=lambda data: data)
    request = iter([b""]) if method.client_streaming else b""
    metadata = [("authorization", f"Bearer {bearer}")] if bearer else []
    answer = stub(request, metadata=metadata, timeout=10)
    return list(answer) if method.server_streaming else answer


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
    expect_error(lambda: api.models.DeleteModel(api.pb.model.DeleteModelRequest(name="models/none")),
                 "NOT_FOUND", "BASE_MODEL_NOT_FOUND")
    check_restart(server, api, job)
    api = client.Api(server.address)
    check_backup(server, api, job)
    watching = Watch(client.Api(server.address), name=job.name) if in_memory else None
    code = server.stop()
    assert code == 0, (server.data / "log").read_text()[-3000:]
    assert not (server.data / "run" / "server.json").exists()
    if watching:
        watching.join(5)
    check_tls(binary, in_memory)
    shutil.rmtree(server.data)
    print("the server alone: all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
