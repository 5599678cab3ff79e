#!/usr/bin/env python3
"""Starts a server and a worker on ephemeral ports, runs a tiny job, says how it went, stops all.

    run_stack.py [--hold] [--steps N] [--threads N] [--save DIR]

--hold keeps everything running until Ctrl-C, for looking at it with other tools; --save downloads the
adapter. Exits 77 with a
sentence where something needed is missing.
"""

import argparse
import pathlib
import signal
import sys
import time

import client
import stack as stack_module


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hold", action="store_true", help="keep running until Ctrl-C")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=pathlib.Path, metavar="DIR", help="download the adapter there")
    options = parser.parse_args()
    if client.missing():
        print(f"skipped: {client.missing()}")
        return 77
    binaries = stack_module.bin_dir()
    if binaries is None:
        return 77
    with stack_module.Stack(binaries, keep=options.hold) as stack:
        stack.start_server().start_worker(threads=options.threads)
        print(f"gRPC {stack.address}, HTTP http://{stack.http}/metrics, files {stack.root}", flush=True)
        api = stack.api()
        model = api.add_model(stack_module.base_directory())
        dataset = api.add_dataset(stack_module.rows())
        began = time.monotonic()
        job = stack_module.submit(
            api, stack_module.small_spec(api.pb, model, dataset, steps=options.steps))
        done = api.wait(job.name)
        rows = api.metrics(job.name)
        print(f"{job.name}: {api.state(done)} after {time.monotonic() - began:.1f} s, "
              f"{len(rows)} steps, loss {rows[0][1]:.4f} to {rows[-1][1]:.4f}, planned "
              f"{done.plan.total_bytes} bytes, used {done.used_bytes}", flush=True)
        if options.save:
            options.save.mkdir(parents=True, exist_ok=True)
            for name, data in api.download(done.adapter).items():
                (options.save / name).write_bytes(data)
        if options.hold:
            print("running until Ctrl-C", flush=True)
            try:
                signal.pause()
            except KeyboardInterrupt:
                pass
        return 0 if api.state(done) == "SUCCEEDED" else 1


if __name__ == "__main__":
    sys.exit(main())
