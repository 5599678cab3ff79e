"""What a server has acknowledged survives kill -9, and a backup of it can be started from."""

import re
import resource
import shutil
import signal
import subprocess

import client
from alone_command import Nibble
from lone_server import PlayedWorker, Server



def check_restart(server, api, job, worker):
    """Acknowledged means durable: kill -9, and everything is there, also the last steps of a job that runs."""
    if "--in-memory" in server.flags:
        return
    runs = api.jobs.CreateJob(api.pb.job.CreateJobRequest(spec=job.spec, job_id="runs")).name
    mine = worker.wait_for(lambda a: a.job_id == "runs")
    for n in range(1, 4):
        worker.report(mine, metrics=[worker.step(n)])
    worker.report(mine, metrics=[worker.step(3, eval_loss=2.5)])
    before, told = api.get(job.name), api.get(runs).progress
    assert told.completed_steps == 3 and told.eval_loss == 2.5, told
    server.stop(signal.SIGKILL)
    server.start()
    again = client.Api(server.address)
    after = again.get(job.name)
    assert after == before, (after, before)
    shown = again.get(runs).progress
    for field in ("completed_steps", "trained_tokens", "loss", "eval_loss", "learning_rate"):
        assert getattr(shown, field) == getattr(told, field), (field, shown, told)
    again.jobs.CancelJob(again.pb.job.CancelJobRequest(name=runs))
    again.fleet.DrainWorker(again.pb.fleet.DrainWorkerRequest(name="workers/w1"))  # it is to take nothing else
    PlayedWorker(server.address).register()  # another process: what the first had is over
    assert again.state(again.get(runs)) == "CANCELLED", again.get(runs)
    assert len(again.download(after.adapter)) == 2
    again.close()


def check_damage(server, api, job):
    """A blob that the disk has changed is found, and sending it again makes it whole."""
    if "--in-memory" in server.flags:
        return
    verify = lambda: subprocess.run([server.binary, "verify", "--data-dir", server.data], capture_output=True,
                                    text=True, timeout=30 * client.PATIENCE)
    whole = verify()
    assert whole.returncode == 0 and " 0 damaged" in whole.stdout, whole
    rows = b"".join(b'{"prompt": "a%d", "completion": "b"}\n' % i for i in range(30))
    digest = api.upload(rows)
    name = api.add_dataset(rows).name
    path = server.data / "blobs" / "cas" / digest[:2] / digest
    path.chmod(0o600)
    path.write_bytes(rows[:-2] + b"?\n")
    found = verify()
    assert found.returncode == 1 and f"damaged {digest}, of {name}" in found.stdout, found
    assert "nibble dataset push" in found.stdout, found
    assert api.upload(rows) == digest
    assert verify().returncode == 0 and path.read_bytes() == rows


def check_full_disk(server, api, job):
    """While the server cannot write, everything that is read says that it may be old; on one line, and no longer
    than that."""
    if "--in-memory" in server.flags or not Nibble.binary.is_file():
        return
    nibble, name = Nibble(server.address), job.name.split("/")[1]
    warned = re.compile(r"^warning: the server cannot write its database.*may be older than it looks$", re.M)

    def said(*words):
        run = subprocess.run([nibble.binary, "--server", nibble.address, *words], capture_output=True, text=True,
                             timeout=60 * client.PATIENCE, check=False)
        return run.returncode, run.stdout, run.stderr

    waits = api.jobs.CreateJob(api.pb.job.CreateJobRequest(spec=job.spec, job_id="waits")).name
    commands = (["ls", "--all"], ["get", name], ["-o", "json", "get", name], ["watch", name], ["describe", name])
    for words in commands:
        assert not warned.search(said(*words)[2]), words
    pid, limit = server.process.pid, resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        for words in commands:
            # Each time: what has not failed for half a minute counts as mended, and a slow build's commands take long.
            code, _, err = said("update", "waits", "--priority", "4")
            assert code == 1 and ("STORAGE_FULL" in err or "STORE_UNAVAILABLE" in err), (code, err)
            assert str(server.data) not in err, err
            code, out, err = said(*words)
            assert code == 0 and len(warned.findall(err)) == 1, (words, out, err)
            assert "warning" not in out, out
        said("update", "waits", "--priority", "4")
        doctor = said("doctor")[1]
        assert re.search(r" server +\S+: the server cannot write its database", doctor), doctor
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    assert said("update", "waits", "--priority", "4")[0] == 0
    for words in commands:
        assert not warned.search(said(*words)[2]), words
    api.jobs.CancelJob(api.pb.job.CancelJobRequest(name=waits))
    api.jobs.DeleteJob(api.pb.job.DeleteJobRequest(name=waits))


def check_backup(server, api, job):
    """A copy made while the server runs can be started from, on another timeline."""
    if "--in-memory" in server.flags:
        return
    copy, there = server.data.with_name(server.data.name + "-copy"), Server(server.binary)
    shutil.rmtree(there.data)
    run = lambda *words: subprocess.run([server.binary, *words], check=True, capture_output=True, timeout=30 * client.PATIENCE)
    try:
        run("backup", "--data-dir", server.data, "--to", copy)
        assert copy.stat().st_mode & 0o77 == 0, oct(copy.stat().st_mode)
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
