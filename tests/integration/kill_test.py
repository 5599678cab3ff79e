#!/usr/bin/env python3
"""Interrupted, crowded or on other threads: the finished adapter is the same, byte for byte.

    kill_test.py [--seed N] [--rounds N] [CASE ...]

Cases: again (same seed twice), threads (2 instead of 1), beside (another job on the same base), engine,
worker, server (kill -9 at a random moment, once per round), crowd (the engine is killed under two jobs),
graceful (the worker is drained and comes back), silence (worker and engine stand still until the lease is
lost, and go on in memory). A worker comes back with two threads. The moments come from the seed, which is printed. Compared with one uninterrupted run:
adapter_model.safetensors, adapter_config.json, and the columns step, loss, grad_norm, learning_rate,
tokens (per step the row of the last attempt). Exits 77 with a sentence where something needed is missing.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import time

import client
import stack as stack_module

STEPS = 60
CASES = ("again", "threads", "beside", "engine", "worker", "server", "crowd", "graceful", "silence")
ROUNDS_OF = ("engine", "worker", "server", "crowd", "graceful", "silence")


class Result:
    """What two equal runs share."""

    def __init__(self, api, job):
        files = api.download(job.adapter)
        self.weights = files["adapter_model.safetensors"]
        self.config = files["adapter_config.json"]
        self.rows = api.metrics(job.name)
        trained = [a for a in job.attempts if a.kind != "CHECK"]
        self.attempts = len(trained)
        self.why = ", ".join(f"{a.state.lower()} {a.reason}".strip() for a in trained[:-1])

    def difference(self, other):
        """None, or the first thing that is not the same."""
        if self.rows != other.rows:
            for mine, theirs in zip(self.rows, other.rows):
                if mine != theirs:
                    return f"step {mine[0]}: {mine} != {theirs}"
            return f"{len(self.rows)} rows != {len(other.rows)}"
        if self.config != other.config:
            return "adapter_config.json differs"
        if self.weights != other.weights:
            return "adapter_model.safetensors differs"
        return None


class Campaign:
    def __init__(self, binaries, seed):
        self.binaries = binaries
        self.random = random.Random(seed)
        self.reference = None

    @contextlib.contextmanager
    def running(self, threads=1):
        """A server and a worker: the stack, its worker, the api, and what makes the spec of a job."""
        with stack_module.Stack(self.binaries) as stack:
            worker = stack.start_server().start_worker(threads=threads)
            api = stack.api()
            yield stack, worker, api, self.prepare(api)

    def prepare(self, api):
        model = api.add_model(stack_module.base_directory(), model_id="base")
        dataset = api.add_dataset(stack_module.rows(), dataset_id="rows")
        return lambda **changes: stack_module.small_spec(
            api.pb, model, dataset, **{"steps": STEPS, **changes})

    def finish(self, api, job, timeout=240):
        done = api.wait(job.name, timeout=timeout, patient=True)
        assert api.state(done) == "SUCCEEDED", f"{api.state(done)}: {done.error}"
        return Result(api, done)

    def wait_for_step(self, api, name, step):
        stack_module.wait_for(
            f"step {step}", lambda: api.get(name).progress.completed_steps >= step, timeout=120)

    def strike(self, api, name):
        """Waits for the random moment: a step, and a while into it."""
        step = self.random.randrange(0, STEPS * 3 // 4)
        pause = self.random.uniform(0, 0.25)
        self.wait_for_step(api, name, step)
        if step == 0:
            pause *= 8   # somewhere in fetching, loading and tokenizing
        time.sleep(pause)
        return f"at step {step} + {pause:.3f} s"

    def run_reference(self):
        with self.running() as (_, _, api, spec):
            began = time.monotonic()
            self.reference = self.finish(api, stack_module.submit(api, spec()))
            print(f"reference: {STEPS} steps in {time.monotonic() - began:.1f} s, "
                  f"loss {self.reference.rows[0][1]:.4f} to {self.reference.rows[-1][1]:.4f}", flush=True)
            assert self.reference.attempts == 1, self.reference.attempts
            # The neighbour of `beside` alone, for the same comparison the other way round.
            self.neighbour = self.finish(api, stack_module.submit(api, spec(seed=8)))
            assert self.neighbour.difference(self.reference), "another seed gave the same bytes"
            return self.compare("again", self.finish(api, stack_module.submit(api, spec())), "")

    def compare(self, case, result, when, expected=None):
        difference = result.difference(expected or self.reference)
        verdict = "identical" if difference is None else f"DIFFERS: {difference}"
        print(f"{case}: {when + ', ' if when else ''}{result.attempts} attempt(s)"
              f"{' (' + result.why + ')' if result.why else ''}, {verdict}", flush=True)
        return difference is None

    def threads(self):
        with self.running(threads=2) as (_, _, api, spec):
            return self.compare("threads", self.finish(api, stack_module.submit(api, spec())),
                                "2 threads")

    def beside(self):
        with self.running() as (_, _, api, spec):
            first = stack_module.submit(api, spec())
            second = stack_module.submit(api, spec(seed=8))
            together = []

            def both_running():
                states = {api.state(api.get(job.name)) for job in (first, second)}
                together.append(states == {"RUNNING"})
                return together[-1] or states & {"SUCCEEDED", "FAILED"}

            stack_module.wait_for("both jobs to run", both_running, timeout=120)
            assert together[-1], "the two jobs did not run at the same time"
            results = [self.finish(api, job) for job in (first, second)]
            # Both comparisons are made, also when the first fails.
            return all([self.compare("beside", results[0], "a job beside"),
                        self.compare("beside", results[1], "the job beside", self.neighbour)])

    def engine(self):
        with self.running() as (stack, _, api, spec):
            job = stack_module.submit(api, spec())
            stack_module.wait_for("an engine", stack.engines, timeout=60)
            when = self.strike(api, job.name)
            engines = stack.engines()
            assert engines, "the engine was gone before it could be killed"
            for pid in engines:
                os.kill(pid, signal.SIGKILL)
            result = self.finish(api, job)
            assert result.attempts >= 2, f"{when}: the engine was killed too late"
            return self.compare("engine", result, f"killed {when}")

    def crowd(self):
        with self.running() as (stack, _, api, spec):
            first = stack_module.submit(api, spec())
            second = stack_module.submit(api, spec(seed=8))
            stack_module.wait_for("an engine", stack.engines, timeout=60)
            when = self.strike(api, second.name)
            for pid in stack.engines():
                os.kill(pid, signal.SIGKILL)
            results = [self.finish(api, job) for job in (first, second)]
            assert max(result.attempts for result in results) >= 2, f"{when}: killed too late"
            return all([self.compare("crowd", results[0], f"engine killed {when}"),
                        self.compare("crowd", results[1], f"engine killed {when}", self.neighbour)])

    def worker(self):
        with self.running() as (stack, worker, api, spec):
            job = stack_module.submit(api, spec())
            when = self.strike(api, job.name)
            engines = stack.engines()
            stack.kill(worker)
            stack_module.wait_for("engines to end with their worker", lambda: not any(
                stack_module.comm(pid).startswith("nibble-engine") for pid in engines), timeout=20)
            stack.start_worker(threads=2)
            return self.compare("worker", self.finish(api, job), f"killed {when}")

    def server(self):
        with self.running() as (stack, _, api, spec):
            job = stack_module.submit(api, spec())
            when = self.strike(api, job.name)
            away = self.random.uniform(0, 2.5)
            stack.kill(stack.server)
            time.sleep(away)
            stack.start_server()
            return self.compare("server", self.finish(api, job), f"killed {when}, away {away:.1f} s")

    def graceful(self):
        with self.running() as (stack, worker, api, spec):
            job = stack_module.submit(api, spec())
            when = self.strike(api, job.name)
            worker.terminate()
            worker.wait(60)
            stack.start_worker(threads=2)
            return self.compare("graceful", self.finish(api, job), f"stopped {when}")

    def silence(self):
        with self.running() as (stack, worker, api, spec):
            job = stack_module.submit(api, spec())
            self.wait_for_step(api, job.name, 1)
            when = self.strike(api, job.name)
            frozen = [worker.pid, *stack.engines()]
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            try:
                stack_module.wait_for(
                    "the lease to be lost",
                    lambda: api.get(job.name).attempts[-1].state in ("LOST", "DONE"), timeout=60)
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)
            result = self.finish(api, job)
            last = api.get(job.name).attempts[-1]
            assert result.attempts == 1 or last.continues_epoch == last.epoch - 1, last
            return self.compare("silence", result, f"silent {when}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5 if os.environ.get("NIBBLE_FULL") == "1" else 1,
                        help="of the cases with a random moment; 5 when NIBBLE_FULL is 1")
    parser.add_argument("cases", nargs="*", metavar="CASE", default=list(CASES),
                        help=", ".join(CASES))
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if client.missing():
        print(f"skipped: {client.missing()}")
        return 77
    binaries = stack_module.bin_dir()
    if binaries is None:
        return 77
    print(f"seed {options.seed}", flush=True)
    campaign = Campaign(binaries, options.seed)
    good = [campaign.run_reference()]
    for case in options.cases:
        if case == "again":
            continue   # part of the reference
        rounds = options.rounds if case in ROUNDS_OF else 1
        good += [getattr(campaign, case)() for _ in range(rounds)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
