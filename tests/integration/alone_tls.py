"""Off loopback: TLS, tokens and roles."""

import importlib
import pathlib
import subprocess
import tempfile

import client
from foreign_client import expect_error
from lone_server import Server



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
