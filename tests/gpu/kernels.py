"""The sections of ./dev gpu about kernels alone: built from source, right, fast; and PyTorch beside us."""

import collections
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

from runner import MOST_ENDS, QUIET_S, Failure, Skip, kill, last_lines, tail_of
import shapes

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


BUILD = "kernels built from source"  # the section
# Made for the processor it is built on, so it does not travel prebuilt.
CPU_BENCH = "nibble-bench-kernels"


def find_tools(run):
    """The prebuilt checks, if they start here and this is a GPU they were built for."""
    folder = pathlib.Path(run.options.bin or run.options.bundle)
    check = folder / "nibble-kernel-check"
    if not check.exists() or not (run.emulated or run.facts.get("capability", "90") == "90"):
        return
    # One that starts may still not reach the device: a driver older than the bundle's runtime wants.
    words = ["--list"] if run.emulated else [f"--table={run.table}", "--device", run.options.device, "sum_squares"]
    try:
        # The first to read the libraries from the disk.
        text = run.command([check, *words], 90, check=run.emulated)
    except (Failure, Skip) as why:
        text = str(why)
    if run.emulated or re.search(r"\d+ passed, \d+ failed", text):
        run.tools = folder
    else:
        print(f"   the prebuilt checks do not start here, so they are built: {last_lines(text)}", flush=True)


def build_commands(run):
    """Configure and build kernels/ and its checks."""
    if run.emulated:
        return [["cmake", "-S", ROOT, "-B", run.build, "-DNIBBLE_KERNELS_ONLY=ON", "-DNIBBLE_CUDA=OFF"],
                ["cmake", "--build", run.build, "--parallel", os.cpu_count(), "--target",
                 "nibble-kernel-check"]]
    capability = run.facts.get("capability", "90")
    architecture = "90a" if capability == "90" else capability
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    return [["cmake", "-S", ROOT, "-B", run.build, *generator, "-DNIBBLE_KERNELS_ONLY=ON",
             "-DNIBBLE_CUDA=ON", f"-DNIBBLE_CUDA_ARCHITECTURES={architecture}",
             "-DNIBBLE_BUILD_BENCH=ON", "-DNIBBLE_WERROR=OFF"],  # what another compiler warns of is no reason to measure nothing
            # Two cores for what is measured meanwhile.
            ["nice", "cmake", "--build", run.build, "--parallel", max(1, os.cpu_count() - 2), "--target",
             "nibble-kernel-check", "nibble-bench-cuda", CPU_BENCH]]


def start_build(run):
    """Builds beside the sections that follow; what is timed waits for its end."""
    lines = " && ".join(shlex.join(str(word) for word in words) for words in build_commands(run))
    run.build_log = (run.scratch / "build.log").open("w+b")
    run.build_began = time.monotonic()
    run.building = subprocess.Popen(["sh", "-c", lines], stdin=subprocess.DEVNULL, stdout=run.build_log,
                                    stderr=subprocess.STDOUT, start_new_session=True)


def build_kernels(run, figures):
    """kernels/ and its checks, from source."""
    if run.emulated and run.options.bin:
        figures["built"] = "by the test run"
        return
    if run.building is None:
        start_build(run)
    try:
        run.building.wait(timeout=max(1, run.left()))
    except subprocess.TimeoutExpired:
        raise Failure("the build did not end in time\n" + last_lines(tail_of(run.build_log))) from None
    finally:
        kill(run.building)
    figures["seconds_from_its_start"] = round(time.monotonic() - run.build_began, 1)
    if run.building.returncode != 0:
        raise Failure(last_lines(tail_of(run.build_log)))
    run.tools = run.tools or run.build / "bin"


def tool(run, name):
    """The path of one of the kernels' programs."""
    if run.tools is None and run.building is not None and run.building.poll() is None:
        raise Skip("the build from source has not ended")
    path = (run.tools or run.build / "bin") / name
    if not path.exists():
        raise Skip(f"{name} is not there: it does not start here, and was not built")
    return path


def has_wgmma(run):
    """Whether this GPU can run Hopper's attention, which is asked for by WGMMA."""
    return run.emulated or run.facts.get("capability") == "90"


def bench_lines(run, figures, words, filters, limit_s):
    """nibble-bench-cuda; where a line ends or stops it, it goes on behind that one. All rows."""
    figures.setdefault("lines", [])
    until = time.monotonic() + limit_s
    out = run.scratch / "lines.json"
    rows, skip = None, 0
    for _ in range(MOST_ENDS):
        out.unlink(missing_ok=True)
        ended = ""
        try:
            text = run.command([*words, "--json", out, "--skip", skip, *filters], max(2, until - time.monotonic()),
                               quiet_s=QUIET_S)
        except Failure as why:
            text, ended = why.text, str(why)
        figures["lines"] += text.strip().splitlines()
        part = json.loads(out.read_text()) if out.exists() else {"lines": []}
        rows = {**part, "lines": (rows["lines"] if rows else []) + part["lines"]}
        if not ended:
            return rows
        skip += len(part["lines"])
        figures.setdefault("ended", []).append(f"the line behind the first {skip}: {last_lines(ended, 3)}")
        skip += 1
        if until - time.monotonic() < 5:
            break
    if not rows["lines"]:
        raise Failure("\n".join(figures["ended"]))
    return rows


def kernel_speed(run, figures):
    """Kernels as shares of measured copy bandwidth and of cuBLAS; attention beside cuDNN's."""
    if run.emulated:
        raise Skip("an emulation has no speed")
    words = [tool(run, "nibble-bench-cuda"), "--device", run.options.device]
    rows = bench_lines(run, figures, words, [], min(90, run.left() - 60))
    figures["json"] = rows
    shares = collections.defaultdict(dict)
    for row in rows["lines"]:
        shares[row["kernel"]][row["shape"]] = row["share"]
    figures["decode, least share of copying"] = min(shares.get("decode", {"": math.nan}).values())
    bound = {kernel: min(of.values()) for kernel, of in shares.items()
             if kernel in shapes.MEMORY_BOUND and kernel != "decode"}
    figures["memory-bound kernels, least share of copying"] = min(bound.values(), default=math.nan)
    figures["the slowest of them"] = min(bound, key=bound.get, default="")
    figures["below their goal"] = [
        f"{row['kernel']} {row['shape']}: {row['share']:.0%} of {row['limit']:.0f} {row['unit']}" for row in rows["lines"]
        if row["kernel"] in shapes.MEMORY_BOUND
        and row["share"] < (shapes.DECODE_GOAL if row["kernel"] == "decode" else shapes.MEMORY_GOAL)]
    figures["copying"] = f"{rows['copy_bytes_per_second'] / 1e9:.0f} GB/s"
    attention = [row for row in rows["lines"] if row["kernel"] in shapes.ATTENTION]
    if has_wgmma(run):
        try:
            if run.facts.get("wgmma ends"):
                raise Skip("its parity cases ended in a fault or hung")
            attention += by_wgmma(run, figures, words, {(row["kernel"], row["shape"]): row for row in attention})
        except (Failure, Skip) as why:
            figures["attention by wgmma"] = f"not measured: {why}"
    beside_cudnn(run, figures, attention)
    if "ended" in figures:
        raise Failure("\n".join(figures["ended"]))


def cpu_speed(run, figures):
    """The CPU's kernels as shares of its own limits: beside such a GPU is often one with AMX, which few others have."""
    if run.emulated:
        raise Skip("the processor of a machine without a GPU is for ./dev bench cpu")
    bench = run.build / "bin" / CPU_BENCH
    if not bench.exists():
        raise Skip(f"{CPU_BENCH} was not built from source")
    text = run.command([bench, "--json", 1, "1.1B 512x"], 60)
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    if not rows:
        raise Failure(last_lines(text))
    figures["body"] = rows[0]["body"]
    figures["shares of the limit"] = {f"{row['kernel']} {row['shape']}": row["share"] for row in rows}
    figures["lines"] = text.strip().splitlines()


def by_wgmma(run, figures, words, ours):
    """The same lines by Hopper's attention, and how they stand beside the others."""
    figures["lines"] += ["", "Attention by wgmma:"]
    rows = [row for row in bench_lines(run, figures, [*shapes.WGMMA, *words], ["attention"],
                                       min(30, run.left() - 45))["lines"] if row["kernel"] in shapes.ATTENTION]
    figures["attention by wgmma, of the other kernels' time"] = {
        f"{row['kernel']} {row['shape']}": row["milliseconds"] / ours[row["kernel"], row["shape"]]["milliseconds"]
        for row in rows if (row["kernel"], row["shape"]) in ours}
    return [{**row, "by": "wgmma"} for row in rows]


def beside_cudnn(run, figures, ours):
    """The same attention by cuDNN, in the same minutes."""
    wanted = sorted({row["shape"] for row in ours})
    script = pathlib.Path(__file__).resolve().parent / "attention_peer.py"
    try:
        result = last_json(run, [python_with_torch(run), script, *wanted], min(90, run.left() - 5))
    except (Failure, Skip) as why:
        figures["cuDNN"] = f"not measured: {why}"
        return
    if "skipped" in result:
        figures["cuDNN"] = f"not measured: {result['skipped']}"
        return
    figures["cuDNN"] = {key: result[key] for key in ("torch", "cudnn")}
    shares = {}
    for row in ours:
        theirs = result["shapes"].get(row["shape"], {}).get(shapes.ATTENTION[row["kernel"]])
        name = " ".join(filter(None, (row["kernel"], row.get("by"), row["shape"])))
        if isinstance(theirs, float):
            shares[name] = {"share": theirs / row["milliseconds"], "cudnn_milliseconds": theirs,
                            "note": result["shapes"][row["shape"]].get("note", "")}
        else:
            shares[name] = {"cudnn": theirs or result["shapes"].get(row["shape"], {}).get("failed", "no answer")}
    figures["attention as a share of cuDNN's rate"] = shares


def last_json(run, words, limit_s):
    """The last object that a program prints a line each of, however it ends."""
    try:
        text = run.command(words, limit_s, check=False)
    except Failure as why:
        text = why.text
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:  # cut off while it was printed
                continue
    raise Failure(f"{words[1]} printed no figures:\n{text[-800:]}")


def python_with_torch(run):
    """The interpreter that has PyTorch: python3 of the PATH may be another one than this."""
    if "python" not in run.facts:
        run.facts["python"] = sys.executable
        for name in (sys.executable, "python3", "python"):
            try:
                run.command([name, "-c", "import importlib.util as i, sys; sys.exit(not i.find_spec('torch'))"], 60)
                run.facts["python"] = name
                break
            except (Failure, Skip):
                continue
    return run.facts["python"]


def peer(run, figures):
    """The same shapes under PyTorch, transformers and PEFT, when they are here."""
    if run.emulated:
        raise Skip("an emulation has no peer")
    script = pathlib.Path(__file__).resolve().parent / "peer.py"
    result = last_json(run, [python_with_torch(run), script], max(5, run.left() - 5))
    if "skipped" in result:
        raise Skip(result["skipped"])
    figures.update(result)
