"""Why a job waits, over the wire and from the command line: asked by who may see what is in its way, and by
who may not."""

import json

from alone_command import Nibble
from foreign_client import expect_error
from lone_server import PlayedWorker, spec_of

HIDDEN = "another project's job"


def holder_spec(api, model, dataset):
    """A job with more bytes of its own than one more row of a batch takes."""
    spec = spec_of(api, model, dataset)
    spec.lora.r = 128
    return spec


def largest_spec(api, model, dataset):
    """A job whose batch fills w1 to the last row, so that it does not fit beside the holder."""
    pb, spec = api.pb.job, spec_of(api, model, dataset)
    spec.data.sequence_len = 512

    def fits(rows):
        spec.training.micro_batch_size = rows
        found = api.jobs.PlanJob(pb.PlanJobRequest(spec=spec)).fits
        return next(fit for fit in found if fit.worker == "workers/w1").verdict != pb.DeviceFit.NEVER
    low, high = 1, 512
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    spec.training.micro_batch_size = low
    return spec


def check_explanation(api, why, holder):
    pb = api.pb.job
    Verdict = pb.DeviceExplanation.Verdict
    device = why.devices[0]
    assert Verdict.Name(device.verdict) == "NO_BYTES" and device.needed_bytes > device.free_bytes, why
    assert list(device.held_by) == [holder] and device.capacity_bytes == 300 << 20, why
    assert why.queue_position == 1 and api.state(why) == "QUEUED" and why.devices_total == 1, why
    assert why.counterfactuals, "a smaller batch would start at once"
    for change in why.counterfactuals:
        assert change.worker == "workers/w1" and change.change.changes, change
        assert change.change.total_bytes < device.capacity_bytes, change


def check_why(server, api, model, dataset, worker):
    """ExplainJob and `nibble why -o json` say the same of a job that waits for another's bytes."""
    pb = api.pb.job
    spec = largest_spec(api, model, dataset)
    holder = api.jobs.CreateJob(pb.CreateJobRequest(spec=holder_spec(api, model, dataset), job_id="holder"))
    worker.wait_for(lambda a: a.job_id == "holder")
    waiter = api.jobs.CreateJob(pb.CreateJobRequest(spec=spec, job_id="waiter"))
    assert api.state(waiter) == "QUEUED" and "held by holder" in waiter.state_reason, waiter
    why = api.jobs.ExplainJob(pb.ExplainJobRequest(name=waiter.name))
    check_explanation(api, why, holder.name)
    if Nibble.binary.is_file():
        nibble = Nibble(server.address)
        said = json.loads(nibble("-o", "json", "why", "waiter"))
        device = said["devices"][0]
        assert said["name"] == waiter.name and said["state"] == "QUEUED" and said["queuePosition"] == 1, said
        assert device["verdict"] == "NO_BYTES" and device["heldBy"] == [holder.name], said
        assert int(device["neededBytes"]) == why.devices[0].needed_bytes, said
        assert len(said["counterfactuals"]) == len(why.counterfactuals), said
        text = nibble("why", "waiter")
        assert "held by holder" in text and "would start now with one of" in text, text
    for name in (waiter.name, holder.name):
        api.jobs.CancelJob(pb.CancelJobRequest(name=name))
    for key in [key for key in worker.running if key[0] == "holder"]:
        del worker.running[key]
    worker.synchronize()


def check_failed(server, api, model, dataset, worker):
    """Whoever asks for a job, or for the adapter it does not have, hears why."""
    pb = api.pb.job
    job = api.jobs.CreateJob(pb.CreateJobRequest(spec=spec_of(api, model, dataset), job_id="hopeless"))
    mine = worker.wait_for(lambda a: a.job_id == "hopeless")
    worker.report(mine, failed=worker.pb.FailedReport(reason="LOSS_NOT_FINITE", message="the loss was no number"))
    worker.let_go(mine)
    worker.synchronize()
    assert api.state(api.get(job.name)) == "FAILED"
    expect_error(lambda: api.adapters.GetAdapter(api.pb.adapter.GetAdapterRequest(name="adapters/hopeless")),
                 "NOT_FOUND", "ADAPTER_NOT_FOUND", says="LOSS_NOT_FINITE: the loss was no number")
    if Nibble.binary.is_file():
        nibble, why = Nibble(server.address), "LOSS_NOT_FINITE: the loss was no number"
        assert nibble("get", "hopeless").splitlines()[-1] == why
        assert why in nibble("adapter", "get", "hopeless", code=3)
        said = nibble("download", "hopeless", "-o", "/nowhere/at/all", code=1)
        assert f"hopeless is FAILED ({why}); it has no adapter" in said, said
        assert why in nibble("wait", "hopeless", code=10)


def check_numerics(server, api, model, dataset, worker):
    """A job that began under other numerics than are left goes on once it may; `why` names the command."""
    if not Nibble.binary.is_file():
        return
    pb, nibble = api.pb.job, Nibble(server.address)
    job = api.jobs.CreateJob(pb.CreateJobRequest(spec=spec_of(api, model, dataset), job_id="moved"))
    mine = worker.wait_for(lambda a: a.job_id == "moved")
    worker.report(mine, plan=worker.pb.PlanReport(planned_steps=20, plan_json="{}", numerics_id="n1"))
    api.fleet.DrainWorker(api.pb.fleet.DrainWorkerRequest(name="workers/w1"))
    worker.report(mine, released=worker.pb.ReleasedReport(step=0))
    worker.let_go(mine)
    worker.synchronize()
    newer = PlayedWorker(server.address, "w2")
    newer.profile = {"build": "newer"}
    newer.register()
    newer.synchronize()
    assert api.state(api.get(job.name)) == "QUEUED"
    why = nibble("why", "moved")
    assert "`nibble update moved --allow-numerics-change`" in why and "other numerics" in why, why
    nibble("update", "moved", "--allow-numerics-change")
    mine = newer.wait_for(lambda a: a.job_id == "moved")
    assert json.loads(mine.spec_json)["allow_numerics_change"] is True, mine.spec_json
    newer.report(mine, plan=newer.pb.PlanReport(planned_steps=20, plan_json="{}", numerics_id="n2"))
    assert api.get(job.name).numerics_id == "n2"
    api.jobs.CancelJob(pb.CancelJobRequest(name=job.name))
    newer.let_go(mine)
    newer.synchronize()
    api.fleet.UndrainWorker(api.pb.fleet.UndrainWorkerRequest(name="workers/w1"))


def check_hidden(ann, bob, root, address, channel, model, own, foreign):
    """Bob's job waits for ann's: he hears that it does, and not what hers is called."""
    pb = ann.pb
    worker = PlayedWorker(address, channel=channel)
    worker.register()
    holder = ann.jobs.CreateJob(pb.job.CreateJobRequest(spec=holder_spec(ann, model, own), job_id="anns-secret"))
    worker.wait_for(lambda a: a.job_id == "anns-secret")
    waiter = bob.jobs.CreateJob(pb.job.CreateJobRequest(spec=largest_spec(bob, model, foreign), job_id="waiter"))
    for api, name in ((bob, HIDDEN), (root, holder.name)):
        job = api.get(waiter.name)
        assert ("secret" in str(job)) == (api is root), job
        why = api.jobs.ExplainJob(pb.job.ExplainJobRequest(name=waiter.name))
        check_explanation(api, why, name)
        assert ("secret" in str(why)) == (api is root), why
        fleet = api.fleet.ListWorkers(pb.fleet.ListWorkersRequest())
        assert ("secret" in str(fleet)) == (api is root), fleet
    watch = bob.jobs.WatchJob(pb.job.WatchJobRequest(name=waiter.name))
    assert "secret" not in str(next(iter(watch)))
    watch.cancel()
