"""Jobs of a server without workers: created, watched, and trained by a worker played by hand."""

import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
import uuid

from alone_command import check_command
from client import PATIENCE
from foreign_client import expect_error
from lone_server import ROWS, PlayedWorker, spec_of



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
    moves = pb.Job(name=named.name)
    moves.spec.training.allow_numerics_change = False
    paths = {"paths": ["spec.training.allow_numerics_change"]}
    expect_error(lambda: api.jobs.UpdateJob(pb.UpdateJobRequest(job=moves, update_mask=paths)), "INVALID_ARGUMENT",
                 "SPEC_INVALID", "job.spec.training.allow_numerics_change")
    moves.spec.training.allow_numerics_change = True
    assert not updated.spec.training.allow_numerics_change
    updated = api.jobs.UpdateJob(pb.UpdateJobRequest(job=moves, update_mask=paths))
    assert updated.spec.training.allow_numerics_change and updated.effective_spec.training.allow_numerics_change
    for _ in range(2):
        assert api.state(api.jobs.PauseJob(pb.PauseJobRequest(name=named.name))) == "PAUSED"
    assert api.state(api.jobs.ResumeJob(pb.ResumeJobRequest(name=named.name))) == "QUEUED"
    expect_error(lambda: api.jobs.DeleteJob(pb.DeleteJobRequest(name=named.name)),
                 "FAILED_PRECONDITION", "JOB_NOT_TERMINAL")
    for _ in range(2):
        assert api.state(api.jobs.CancelJob(pb.CancelJobRequest(name=named.name))) == "CANCELLED"
    expect_error(lambda: api.jobs.PauseJob(pb.PauseJobRequest(name=named.name)),
                 "FAILED_PRECONDITION", "JOB_NOT_PAUSABLE")
    expect_error(lambda: api.jobs.UpdateJob(pb.UpdateJobRequest(
        job=pb.Job(name=named.name, priority=3), update_mask={"paths": ["priority"]})),
        "FAILED_PRECONDITION", "JOB_NOT_RESUMABLE")
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
        end = time.monotonic() + timeout * PATIENCE
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
    check_values(text, now)
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
    ended = values(server.get("/metrics"))
    assert figure(ended, 'nibble_jobs_finished_total{queue="default",outcome="SUCCEEDED",reason=""}') == 1, ended
    assert figure(ended, 'nibble_job_run_duration_seconds_count{queue="default",outcome="SUCCEEDED"}') == 1, ended
    adapters = api.adapters.ListAdapters(api.pb.adapter.ListAdaptersRequest()).adapters
    assert [(a.name, a.job) for a in adapters] == [(final.adapter, job.name)], adapters
    points = api.jobs.QueryMetrics(pb.QueryMetricsRequest(name=job.name, after_step=5, until_step=15)).points
    assert [p.step for p in points] == list(range(6, 16)), points
    got = api.download(final.adapter, chunk_limit=1)
    assert got == {"adapter_model.safetensors": weights, "adapter_config.json": b"{}"}
    check_command(server.address, job.name, got)
    expect_error(lambda: list(api.adapters.DownloadAdapter(api.pb.adapter.DownloadAdapterRequest(
        name=final.adapter, file="../../secret"))), "NOT_FOUND", "ADAPTER_NOT_FOUND", "file")
    end = time.monotonic() + 15 * PATIENCE
    while f'job_id="{job_id}"' in server.get("/metrics"):
        assert time.monotonic() < end, "the job's series linger"
        time.sleep(0.2)
    return worker


def values(text):
    """What /metrics says: figure by series, as written there."""
    return {series: float(figure) for series, _, figure in
            (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#")}


def figure(seen, series):
    """Of the one series with that name and those labels, in whatever order they are written."""
    def parts(name):
        return set(name.rstrip("}").replace("{", ",").split(","))
    found = [name for name in seen if parts(name) == parts(series)]
    assert len(found) == 1, f"{series} is there {len(found)} times: {sorted(seen)}"
    return seen[found[0]]


def check_values(text, job):
    """Each figure of a job that runs is the one the API gives, and what the server counts of it is counted once."""
    seen, job_id = values(text), job.name.split("/")[1]
    of_job = f'{{job_id="{job_id}"}}'
    of_device = '{device="cpu0",worker="w1"}'
    want = {
        f"nibble_job_completed_steps{of_job}": 10, f"nibble_job_planned_steps{of_job}": 20,
        f"nibble_job_learning_rate{of_job}": 1e-4, f"nibble_job_gradient_norm{of_job}": 1,
        f'nibble_job_loss{{job_id="{job_id}",split="eval"}}': 2.5,
        f'nibble_job_memory_bytes{{job_id="{job_id}",kind="planned"}}': job.plan.total_bytes,
        f'nibble_job_memory_bytes{{job_id="{job_id}",kind="used"}}': 1 << 28,
        f'nibble_job_state{{job_id="{job_id}",state="RUNNING"}}': 1,
        f"nibble_device_capacity_bytes{of_device}": 300 << 20,
        # Alone there: base, its own and the engine's.
        f"nibble_device_reserved_bytes{of_device}": job.plan.total_bytes,
        'nibble_job_attempts_total{reason="first"}': 1, 'nibble_job_attempts_total{reason="retry"}': 0,
        'nibble_job_queue_wait_seconds_count{queue="default"}': 1,
        'nibble_jobs_submitted_total{api="grpc",queue="default"}': 2,  # the one that was deleted as well
        'nibble_jobs_finished_total{outcome="CANCELLED",queue="default",reason=""}': 1,
        "nibble_worker_lease_expirations_total": 0, "nibble_auth_refusals_total": 0,
    }
    for series, value in want.items():
        got = figure(seen, series)
        assert abs(got - value) <= 1e-6 * abs(value), f"{series} is {got}, not {value}\n{text}"
    created = seen[f"nibble_job_created_timestamp_seconds{of_job}"]
    started = seen[f"nibble_job_started_timestamp_seconds{of_job}"]
    assert created <= started <= seen[f"nibble_job_last_progress_timestamp_seconds{of_job}"] <= time.time() + 1
    assert abs(created - job.create_time.seconds) <= 1, (created, job.create_time)


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
    expect_error(lambda: api.fleet.DeleteWorker(pb.DeleteWorkerRequest(name="workers/w1")),
                 "FAILED_PRECONDITION", "RESOURCE_IN_USE")
    expect_error(lambda: api.fleet.DeleteWorker(pb.DeleteWorkerRequest(name="workers/none")), "NOT_FOUND",
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
