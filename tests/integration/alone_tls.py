"""Off loopback: TLS, tokens, roles and projects."""

import hashlib
import importlib
import pathlib
import subprocess
import tempfile
import time

import client
from alone_why import check_hidden
from foreign_client import expect_error
from lone_server import ROWS, PlayedWorker, Server, add_model, model_files



def check_exposure(binary):
    """Off loopback, nothing is served without TLS and a token."""
    with tempfile.TemporaryDirectory() as data:
        def refused(*flags):
            run = subprocess.run([binary, "--data-dir", data, "--http-listen", "", *flags], text=True,
                                 capture_output=True, timeout=20 * client.PATIENCE)
            assert run.returncode != 0, run
            return run.stderr
        assert "--tls-cert" in refused("--listen", "0.0.0.0:0")
        assert "is no flag" in refused("--lissen", "0.0.0.0:0")
        subprocess.run([binary, "init-tls", "--data-dir", data, "--host", "localhost"], check=True,
                       capture_output=True)
        tls = ["--tls-cert", f"{data}/tls/server.crt", "--tls-key", f"{data}/tls/server.key"]
        assert "token" in refused("--listen", "0.0.0.0:0", *tls)
        assert "needs --tls-cert" in refused("--client-ca", f"{data}/tls/ca.crt")
        for project in ("research", "=2", "research=", "research=0", "research=1001", "research=2:x", "research=2:-1",
                        "research=1:2:3:4", "Research=1"):
            assert "--project" in refused("--project", project), project


def check_tls(binary, in_memory):
    """Over TLS: every method refuses a call without a token, and one with the wrong role."""
    import grpc
    server = Server(binary, *in_memory)
    data = str(server.data)
    subprocess.run([binary, "init-tls", "--data-dir", data, "--host", "127.0.0.1", "--host", "localhost"], check=True,
                   capture_output=True)
    token = {name: subprocess.run([binary, "token", "create", "--data-dir", data, "--name", name, "--role", role],
                                  check=True, capture_output=True, text=True).stdout.strip()
             for name, role in (("client", "client"), ("worker", "worker"), ("one/ann", "client"),
                                ("two/bob", "client"), ("root", "admin"), ("one/eve", "client"))}
    flags = ["--tls-cert", f"{data}/tls/server.crt", "--tls-key", f"{data}/tls/server.key", "--reflection"]
    check_expiry(binary, data)
    server.start(*flags)
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
    assert count == 42, count
    assert f"nibble_auth_refusals_total {2 * count}\n" in server.get("/metrics"), server.get("/metrics")
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
    def bearing(name):
        return grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token[name]))
    def come_in():
        return [client.Api(server.address, bearing(name)) for name in ("one/ann", "two/bob", "root")]
    people = come_in()
    model, anns, bobs = check_projects(*people)
    check_hidden(*people, server.address, grpc.secure_channel(server.address, bearing("worker")), model, anns, bobs)
    check_revoked(people[2], client.Api(server.address, bearing("one/eve")), lambda: subprocess.run(
        [binary, "token", "revoke", token["one/eve"].split("_")[1], "--data-dir", data], check=True, capture_output=True))
    late = b"sent by ann, of use to nobody yet"
    people[0].upload(late)
    for api in people:
        api.close()
    assert server.stop() == 0
    if in_memory:
        return
    # Who has sent what is known to the next server.
    server.start(*flags)
    ann, bob, root = come_in()
    assert begin(ann, late).complete and not begin(bob, late).complete
    for api in (ann, bob, root):
        api.close()
    assert server.stop() == 0


def check_revoked(root, eve, revoke):
    """A watch ends with the token it was begun with; others' go on."""
    pb = root.pb.job
    spec = pb.JobSpec(base_model="models/shared", dataset="datasets/mine")
    job = eve.jobs.CreateJob(pb.CreateJobRequest(spec=spec, job_id="watched"))
    streams = [api.jobs.WatchJob(pb.WatchJobRequest(name=job.name), timeout=30 * client.PATIENCE) for api in (eve, root)]
    for stream in streams:
        assert next(stream).snapshot.name == job.name
    revoke()
    expect_error(lambda: list(streams[0]), "UNAUTHENTICATED", "TOKEN_INVALID")
    root.jobs.CancelJob(pb.CancelJobRequest(name=job.name))
    assert [update.event.type for update in streams[1] if update.WhichOneof("update") == "event"][-1] == "job.cancelled"
    eve.close()


def check_expiry(binary, data):
    """A token has the last day it was given, and is refused from the start when that is no day."""
    def token(*words):
        return subprocess.run([binary, "token", *words, "--data-dir", data], capture_output=True, text=True, timeout=20 * client.PATIENCE)
    brief = token("create", "--name", "brief", "--expires-days", "3").stdout.strip()
    day = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 3 * 86400))
    listed = [line.split() for line in token("ls").stdout.splitlines() if "brief" in line]
    assert len(listed) == 1 and listed[0][-1] == day and listed[0][0] in brief, (listed, day)
    assert token("create", "--name", "x", "--expires-days", "-1").returncode == 2
    assert token("create", "--name", "x", "--role", "king").returncode != 0
    assert token("revoke", listed[0][0]).returncode == 0 and "brief" not in token("ls").stdout
    assert token("revoke", listed[0][0]).returncode != 0


def check_certificates(binary, in_memory):
    """A client certificate of the operator's authority is as good as a token, for the role in its name; without one,
    or with another authority's, nobody comes in."""
    import grpc
    server = Server(binary, *in_memory)

    def issue(directory, *clients):
        words = [word for client in clients for word in ("--client", client)]
        subprocess.run([binary, "init-tls", "--data-dir", directory, "--host", "127.0.0.1", *words], check=True,
                       capture_output=True)
        return pathlib.Path(directory, "tls")

    tls = issue(server.data, "client:ann", "worker:w1", "admin:root", "client:research/ann")
    assert subprocess.run([binary, "init-tls", "--data-dir", server.data, "--client", "king:arthur"],
                          capture_output=True).returncode == 2
    server.start("--tls-cert", tls / "server.crt", "--tls-key", tls / "server.key", "--client-ca", tls / "ca.crt")

    def channel(directory=tls, name=None):
        key, chain = [(directory / f"{name}.{kind}").read_bytes() if name else None for kind in ("key", "crt")]
        return grpc.secure_channel(server.address, grpc.ssl_channel_credentials(
            (tls / "ca.crt").read_bytes(), key, chain))

    services = client.stubs().job.DESCRIPTOR.services_by_name["JobService"].methods_by_name
    drain = client.stubs().fleet.DESCRIPTOR.services_by_name["FleetService"].methods_by_name["DrainWorker"]

    def jobs(channel):
        return call(channel, "/nibble.v1.JobService/ListJobs", services["ListJobs"], None)

    ann, worker, root, nobody = channel(name="client-ann"), channel(name="worker-w1"), channel(name="admin-root"), channel()
    jobs(ann)
    jobs(root)
    expect_error(lambda: jobs(nobody), "UNAUTHENTICATED", "TOKEN_INVALID")
    expect_error(lambda: jobs(worker), "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    assert PlayedWorker(server.address, channel=worker).register().generation >= 1
    expect_error(lambda: PlayedWorker(server.address, channel=ann).register(), "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    for who, code in ((ann, "PERMISSION_DENIED"), (root, "INVALID_ARGUMENT")):  # the request names no worker
        expect_error(lambda: call(who, "/nibble.v1.FleetService/DrainWorker", drain, None), code,
                     "ROLE_NOT_ALLOWED" if who is ann else "NAME_INVALID")
    with tempfile.TemporaryDirectory() as other:
        stranger = channel(issue(other, "client:ann"), "client-ann")
        try:
            jobs(stranger)
            raise AssertionError("a certificate of another authority was let in")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    for one in (ann, worker, root, nobody, stranger):
        one.close()

    def api(server, name):
        key, chain = [(tls / f"{name}.{kind}").read_bytes() for kind in ("key", "crt")]
        return client.Api(server.address, grpc.ssl_channel_credentials((tls / "ca.crt").read_bytes(), key, chain))

    def data_of(server, name):
        caller = api(server, name)
        listed = caller.datasets.ListDatasets(caller.pb.dataset.ListDatasetsRequest()).datasets
        caller.close()
        return [dataset.name for dataset in listed]

    ann = api(server, "client-ann")
    ann.add_dataset(ROWS, dataset_id="hers")
    ann.close()
    who = ("client-ann", "client-research_ann", "admin-root")
    assert [data_of(server, name) for name in who] == [["datasets/hers"], [], ["datasets/hers"]]
    if not in_memory:
        check_restored_certificates(server, lambda restored: data_of(restored, "client-ann") == ["datasets/hers"])
    assert server.stop() == 0


def check_restored_certificates(server, goes_on):
    """A server that is restored elsewhere speaks as the old one did: callers need nothing new."""
    with tempfile.TemporaryDirectory() as folder:
        copy, there = pathlib.Path(folder, "copy"), Server(server.binary)
        run = lambda *words: subprocess.run([server.binary, *words], capture_output=True, text=True, timeout=30 * client.PATIENCE)
        made = run("backup", "--data-dir", server.data, "--to", copy)
        assert made.returncode == 0 and "of tls/ ca.crt, ca.key, server.crt, server.key" in made.stdout, made
        assert not list((copy / "tls").glob("client-*")), "keys of callers"
        restored = run("restore", "--from", copy, "--data-dir", there.data)
        assert restored.returncode == 0 and "server.key" in restored.stdout, restored
        tls = there.data / "tls"
        there.start("--tls-cert", tls / "server.crt", "--tls-key", tls / "server.key", "--client-ca", tls / "ca.crt")
        assert goes_on(there)
        assert there.stop() == 0
        (copy / "tls" / "ca.key").chmod(0o644)
        found = run("verify", "--data-dir", copy)
        assert found.returncode == 1 and "tls: ca.key can be read by others" in found.stdout, found


def check_projects(ann, bob, root):
    """What belongs to one project does not exist for another; models are everybody's, to use."""
    pb = ann.pb
    model = add_model(ann, model_files(), model_id="shared")
    data = ann.add_dataset(ROWS, dataset_id="mine")
    spec = pb.job.JobSpec(base_model=model.name, dataset=data.name)
    job = ann.jobs.CreateJob(pb.job.CreateJobRequest(spec=spec, job_id="secret"))
    ann.jobs.PauseJob(pb.job.PauseJobRequest(name=job.name))

    def hidden(reason, call):
        expect_error(call, "NOT_FOUND", reason)

    for method, request in ((bob.jobs.GetJob, pb.job.GetJobRequest(name=job.name)),
                            (bob.jobs.UpdateJob, pb.job.UpdateJobRequest(
                                job=pb.job.Job(name=job.name, priority=3), update_mask={"paths": ["priority"]})),
                            (bob.jobs.CancelJob, pb.job.CancelJobRequest(name=job.name)),
                            (bob.jobs.PauseJob, pb.job.PauseJobRequest(name=job.name)),
                            (bob.jobs.ResumeJob, pb.job.ResumeJobRequest(name=job.name)),
                            (bob.jobs.DeleteJob, pb.job.DeleteJobRequest(name=job.name)),
                            (bob.jobs.ExplainJob, pb.job.ExplainJobRequest(name=job.name)),
                            (bob.jobs.ListJobEvents, pb.job.ListJobEventsRequest(name=job.name)),
                            (bob.jobs.QueryMetrics, pb.job.QueryMetricsRequest(name=job.name)),
                            (bob.jobs.ListCheckpoints, pb.job.ListCheckpointsRequest(name=job.name)),
                            (lambda r: list(bob.jobs.WatchJob(r)), pb.job.WatchJobRequest(name=job.name))):
        hidden("JOB_NOT_FOUND", lambda: method(request))
    for method, request in ((bob.datasets.GetDataset, pb.dataset.GetDatasetRequest(name=data.name)),
                            (bob.datasets.PreviewDataset, pb.dataset.PreviewDatasetRequest(name=data.name)),
                            (bob.datasets.DeleteDataset, pb.dataset.DeleteDatasetRequest(name=data.name)),
                            (bob.datasets.ValidateDataset, pb.dataset.ValidateDatasetRequest(
                                name=data.name, base_model=model.name)),
                            (bob.jobs.PlanJob, pb.job.PlanJobRequest(spec=spec)),
                            (bob.jobs.CreateJob, pb.job.CreateJobRequest(spec=spec))):
        hidden("DATASET_NOT_FOUND", lambda: method(request))
    name = "adapters/secret"
    for method, request in ((bob.adapters.GetAdapter, pb.adapter.GetAdapterRequest(name=name)),
                            (bob.adapters.DeleteAdapter, pb.adapter.DeleteAdapterRequest(name=name)),
                            (lambda r: list(bob.adapters.DownloadAdapter(r)),
                             pb.adapter.DownloadAdapterRequest(name=name, file="README.md"))):
        hidden("ADAPTER_NOT_FOUND", lambda: method(request))   # also while ann's job still runs
    jobs, datasets = pb.job.ListJobsRequest(), pb.dataset.ListDatasetsRequest()
    assert not bob.jobs.ListJobs(jobs).jobs and not bob.datasets.ListDatasets(datasets).datasets
    assert bob.models.GetModel(pb.model.GetModelRequest(name=model.name)).name == model.name
    expect_error(lambda: bob.models.DeleteModel(pb.model.DeleteModelRequest(name=model.name)),
                 "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    for who in (ann, root):
        assert [j.name for j in who.jobs.ListJobs(jobs).jobs] == [job.name]
        assert [d.name for d in who.datasets.ListDatasets(datasets).datasets] == [data.name]
        assert who.get(job.name).name == job.name
    check_possession(ann, bob)
    mine = bob.add_dataset(ROWS, dataset_id="bobs")
    bob.jobs.CreateJob(pb.job.CreateJobRequest(
        spec=pb.job.JobSpec(base_model=model.name, dataset=mine.name), job_id="bobs"))
    assert len(root.jobs.ListJobs(jobs).jobs) == 2 and len(ann.jobs.ListJobs(jobs).jobs) == 1
    for name in (job.name, "jobs/bobs"):
        root.jobs.CancelJob(pb.job.CancelJobRequest(name=name))
    return model, data, mine


def begin(api, data):
    return api.blobs.BeginUpload(api.pb.blob.BeginUploadRequest(
        sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)))


def check_possession(ann, bob):
    """Who only knows a digest does not get at the bytes of another project."""
    pb = ann.pb
    hers, his = begin(ann, ROWS), begin(bob, ROWS)
    assert hers.complete and not his.complete and his.committed_bytes == 0, (hers, his)
    digest = hashlib.sha256(ROWS).hexdigest()
    expect_error(lambda: bob.datasets.CreateDataset(pb.dataset.CreateDatasetRequest(
        dataset_id="stolen", sha256=digest)), "NOT_FOUND", "BLOB_NOT_FOUND")
    expect_error(lambda: bob.models.RegisterModel(pb.model.RegisterModelRequest(manifest=[pb.model.ModelFile(
        name="config.json", sha256=digest, size_bytes=len(ROWS))])), "NOT_FOUND", "BLOB_NOT_FOUND")
    part = b"only ann has all of this" * 100
    unfinished = begin(ann, part)
    for upload in (unfinished.upload_id, hers.upload_id):
        expect_error(lambda: bob.blobs.GetUpload(pb.blob.GetUploadRequest(upload_id=upload)),
                     "NOT_FOUND", "UPLOAD_NOT_FOUND")
        expect_error(lambda: bob.blobs.Upload(iter([pb.blob.UploadChunk(upload_id=upload, data=b"x")])),
                     "NOT_FOUND", "UPLOAD_NOT_FOUND")
    assert begin(bob, part).upload_id != unfinished.upload_id
    # A model is everybody's, so nobody has to send its files again.
    assert begin(bob, model_files()["config.json"]).complete
    assert bob.upload(ROWS) == digest and begin(bob, ROWS).complete, "once sent, it is his as well"


def call(channel, path, method, bearer):
    kind = ("stream" if method.client_streaming else "unary") + "_" + ("stream" if method.server_streaming else "unary")
    stub = getattr(channel, kind)(path, request_serializer=lambda data: data, response_deserializer=lambda data: data)
    request = iter([b""]) if method.client_streaming else b""
    metadata = [("authorization", f"Bearer {bearer}")] if bearer else []
    answer = stub(request, metadata=metadata, timeout=10 * client.PATIENCE)
    return list(answer) if method.server_streaming else answer
