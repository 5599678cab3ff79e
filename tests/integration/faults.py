#!/usr/bin/env python3
"""Bad days of a stack of real processes that kill_test.py does not have: damaged bytes, a name taken twice, a small
cache, a machine that sleeps.

    faults.py [CASE ...]        checkpoint, base, twin, cache, sleep

Exits 77 with a sentence where something needed is missing.
"""

import hashlib
import sys

import client
import stack as stack_module
from stack import Stack, base_directory, rows, small_spec, submit, wait_for


def training(stack, steps=100_000, **more):
    """A job that trains until it is told otherwise."""
    api = stack.api()
    spec = small_spec(api.pb, api.add_model(base_directory()), api.add_dataset(rows()), steps=steps,
                      save_steps=steps, eval_steps=steps, **more)
    job = submit(api, spec)
    going(api, job.name)
    return api, job.name


def going(api, name, beyond=0):
    """Waits until the job has done more steps than that; returns how many."""
    def steps():
        job = api.get(name)
        return api.state(job) == "RUNNING" and job.progress.completed_steps > beyond and job.progress.completed_steps
    return wait_for(f"steps beyond {beyond}", steps, timeout=60)


def pause(api, name):
    api.jobs.PauseJob(api.pb.job.PauseJobRequest(name=name))
    api.wait(name, 60, until=("PAUSED",))


def events(api, name):
    return api.jobs.ListJobEvents(api.pb.job.ListJobEventsRequest(name=name)).events


def flip(path):
    """One bit in the middle, everything else as it was."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    path.chmod(mode)


def checkpoint(binaries):
    """The newest checkpoint is damaged on the server: the job goes on from the one before."""
    with Stack(binaries) as stack:
        stack.start_server().start_worker()
        api, name = training(stack)
        blobs = lambda: set((stack.root / "server" / "blobs" / "cas").glob("*/*"))
        pause(api, name)
        first = api.get(name).progress.completed_steps
        resume = lambda: api.jobs.ResumeJob(api.pb.job.ResumeJobRequest(name=name))
        before = blobs()
        resume()
        going(api, name, first)
        pause(api, name)
        damaged = max(blobs() - before, key=lambda path: path.stat().st_size)
        flip(damaged)
        # What its worker has in its cache it need not fetch.
        for cached in (stack.root / "w1" / "cache" / "blobs").glob(damaged.name):
            cached.unlink()
        resume()
        going(api, name, first)
        told = [event for event in events(api, name) if event.type == "checkpoint.dropped"]
        assert len(told) == 1, events(api, name)
        failed = [event.message for event in events(api, name) if "damaged on the server" in event.message]
        assert failed, events(api, name)
        api.jobs.CancelJob(api.pb.job.CancelJobRequest(name=name))
        api.wait(name, 60, until=("CANCELLED",))


def base(binaries):
    """The quantized base has another bit than it was made with: it is made anew, and nobody trains on it."""
    with Stack(binaries) as stack:
        stack.start_server().start_worker()
        api, name = training(stack)
        pause(api, name)
        folder = stack.root / "w1" / "cache" / "base"
        made, = [path for path in folder.glob("base-*") if not path.suffix]
        sound = made.read_bytes()
        for engine in stack.engines():
            stack_module.os.kill(engine, stack_module.signal.SIGKILL)
        wait_for("the engine's end", lambda: not stack.engines())
        flip(made)
        steps = api.get(name).progress.completed_steps
        api.jobs.ResumeJob(api.pb.job.ResumeJobRequest(name=name))
        going(api, name, steps)
        assert made.read_bytes() == sound
        assert "base.damaged" in (stack.root / "w1" / "log" / "engine-cpu0.log").read_text()


def twin(binaries):
    """A second machine with the first one's name: the first gives way, with a code that nobody restarts on."""
    with Stack(binaries) as stack:
        first = stack.start_server().start_worker()
        api, name = training(stack)
        second = stack.start_worker("w2", flags=["--worker-id", "w1"])
        wait_for("the end of the first", lambda: first.poll() is not None)
        assert first.returncode == 3, first.returncode
        assert "worker.superseded" in (stack.root / "worker-w1.log").read_text()
        going(api, name)
        assert second.poll() is None


def cache(binaries):
    """Of what it has fetched and no job needs, a worker keeps as much as --cache-size says; it looks when it fetches."""
    with Stack(binaries) as stack:
        stack.start_server()
        api = stack.api()
        model, first, second = api.add_model(base_directory()), api.add_dataset(rows(48)), api.add_dataset(rows(40))
        for name, flags in (("w1", ["--cache-size", "1MiB"]), ("w2", [])):
            worker = stack.start_worker(name, flags=flags)
            kept = stack.root / name / "cache" / "blobs" / hashlib.sha256(rows(48)).hexdigest()
            for dataset in (first, second):
                api.wait(submit(api, small_spec(api.pb, model, dataset, steps=3)).name, 120)
                assert dataset is second or kept.exists(), "what was fetched"
            assert kept.exists() != bool(flags), (name, flags)
            worker.terminate()
            worker.wait(30)


def sleep(binaries):
    """Server, worker and engine are stopped for longer than a lease and go on: no retry, no step is lost."""
    with Stack(binaries) as stack:
        stack.start_server().start_worker()
        api, name = training(stack)
        pids = [stack.server.pid, stack.workers["w1"].pid, *stack.engines()]
        steps = going(api, name, 3)
        for pid in pids:
            stack_module.os.kill(pid, stack_module.signal.SIGSTOP)
        stack_module.time.sleep(12)  # of a lease of 8 s
        for pid in pids:
            stack_module.os.kill(pid, stack_module.signal.SIGCONT)
        going(api, name, steps + 3)
        job = api.get(name)
        assert [(a.epoch, a.state) for a in job.attempts] == [(1, "ACTIVE")], job.attempts
        log = (stack.root / "server.log").read_text()
        assert "server.slept" in log and "worker.lost" not in log, log


CASES = {"checkpoint": checkpoint, "base": base, "twin": twin, "cache": cache, "sleep": sleep}


def main():
    if client.missing():
        print(f"skipped: {client.missing()}")
        return 77
    binaries = stack_module.bin_dir()
    if binaries is None:
        return 77
    for case in sys.argv[1:] or CASES:
        CASES[case](binaries)
        print(f"{case}: as it should be", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
