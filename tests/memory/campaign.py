#!/usr/bin/env python3
"""Whole processes of random models and recipes: the plan's total against the process's peak.

    campaign.py BIN_DIR [--count 24] [--seed 1] [--parallel 1] [--table FILE]

Case N follows from the number --seed + N alone: `--seed S --count 1` repeats case S. Each is an engine process of
its own that trains a job (or several on one base, or one that goes on from a checkpoint) to its adapter. The plan
is the one that admits it: with the process's share as `nibble-engine profile` measured it before, which is what a
worker registers. The peak is VmHWM, with the mapped base counted once.

It is an error when a peak is above its plan, or more than 64 MiB below it. Then a device that offers the peak and
64 MiB more never refuses the job. Closes with a line of count, least, median and most bytes between.
"""

import argparse
import concurrent.futures
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))
import random_jobs  # noqa: E402
import shared  # noqa: E402

MIB = 1 << 20
MOST_OVER = 64 * MIB
MEDIAN_OVER = 16 * MIB
HOST_DEVICES = ("cpu", "cpu", "cpu", "cpu:avx512_vnni", "cpu:avx512", "cpu:avx2", "cpu:portable")


def profile(binaries, device, threads):
    """What a worker registers for the device; None where it does not run."""
    done = subprocess.run([binaries / "nibble-engine", "profile", "--device", device, "--threads", str(threads)],
                          capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


class Campaign:
    def __init__(self, binaries):
        self.binaries = binaries
        self.profiles = {}
        self.devices = [name for name in HOST_DEVICES if profile(binaries, name, 1)]

    def registered(self, case):
        key = (case.device, case.threads)
        if key not in self.profiles:
            self.profiles[key] = profile(self.binaries, *key)
        return self.profiles[key]

    def engine(self, case, directory):
        return shared.Engine(self.binaries, directory / "model", directory / "cache", case.threads,
                             flags=case.flags())

    def run(self, case, directory):
        """(planned, peak) of the case's process; of the second one of a job that goes on."""
        case.model.write(directory / "model", case.rng)
        data = []
        for i, job in enumerate(case.jobs):
            data.append(directory / f"rows{i}.jsonl")
            job.write_rows(data[-1], case.rng)
        resume = ""
        if case.resumes or case.cached:
            first = self.engine(case, directory)
            if case.resumes:
                first.attach("before", directory / "before", case.jobs[0].spec | {"save_steps": 1}, data[0])
                first.wait(1)
                resume = first.checkpoints["before/1"][0]
            first.close()
        engine = self.engine(case, directory)
        for i, job in enumerate(case.jobs):
            spec = job.spec | ({"save_steps": 1} if resume else {})
            engine.attach(f"job{i}", directory / f"job{i}", spec, data[i], resume)
        engine.wait(len(case.jobs))
        planned = engine.planned() - engine.profile["fixed_bytes"] + self.registered(case)["fixed_bytes"]
        engine.close()
        return planned, engine.peak

    def measure(self, seed):
        """(case, planned, peak), or (case, what went wrong)."""
        case = random_jobs.Case(seed, self.devices)
        directory = pathlib.Path(tempfile.mkdtemp(prefix="nibble-peak-"))
        try:
            return (case, *self.run(case, directory))
        except (AssertionError, ValueError, KeyError, OSError, subprocess.SubprocessError) as error:
            return case, f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--table", type=pathlib.Path, help="a line per case: seed, planned, peak, the case")
    args = parser.parse_args()
    campaign = Campaign(args.bin)
    overs, wrong = [], 0
    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        seeds = range(args.seed, args.seed + args.count)
        for case, *found in pool.map(campaign.measure, seeds):
            if len(found) == 1:
                print(f"FAILED {found[0]}\n  {case}", flush=True)
                wrong += 1
                continue
            planned, peak = found
            overs.append(planned - peak)
            right = 0 <= planned - peak <= MOST_OVER
            wrong += not right
            if not right:
                print(f"WRONG: planned {planned / MIB:.1f} MiB, peak {peak / MIB:.1f} MiB, "
                      f"{(planned - peak) / MIB:.1f} MiB below\n  {case}", flush=True)
            if args.table:
                with open(args.table, "a", encoding="utf-8") as out:
                    out.write(f"{case.seed}\t{planned}\t{peak}\t{case}\n")
    if overs:
        median = statistics.median(overs)
        refused = sum(over > MOST_OVER for over in overs)
        print(f"{len(overs)} processes: plan less peak from {min(overs) / MIB:.1f} to {max(overs) / MIB:.1f} MiB, "
              f"median {median / MIB:.1f}; {sum(over < 0 for over in overs)} under, {refused} refused where peak "
              f"and 64 MiB are offered", flush=True)
        if median > MEDIAN_OVER:
            print(f"WRONG: the median is above {MEDIAN_OVER // MIB} MiB")
            wrong += 1
    return 1 if wrong or not overs else 0


if __name__ == "__main__":
    sys.exit(main())
