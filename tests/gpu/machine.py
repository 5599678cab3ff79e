"""The machine ./dev gpu finds itself on: device, driver, toolkit, what is in the way; and the bundle, unpacked."""

import os
import pathlib
import shutil
import subprocess
import sys

import kernels
from runner import Failure, Skip


def find_cublas(name="libcublasLt.so.13"):
    """The library that multiplies; its folder is put on the path of libraries when the loader has it not."""
    loaded = subprocess.run(["sh", "-c", f"ldconfig -p | grep -m1 {name}"], capture_output=True, text=True,
                            check=False).stdout
    if loaded.strip():
        return loaded.split()[-1]
    nvcc = pathlib.Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc").resolve()
    folders = [pathlib.Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    folders += [nvcc.parent.parent / "lib64", *sorted(pathlib.Path("/usr/local").glob("cuda*/targets/*/lib"))]
    # A wheel's, as PyTorch brings it.
    for prefix in {pathlib.Path(sys.prefix), pathlib.Path(shutil.which("python3") or sys.executable).parent.parent}:
        folders += sorted(prefix.glob("lib/python*/*-packages/nvidia/*/lib"))
    for folder in folders:
        if (folder / name).exists():
            os.environ["LD_LIBRARY_PATH"] = f"{folder}:" + os.environ.get("LD_LIBRARY_PATH", "")
            return str(folder / name)
    return ""


def find_header(library):
    """cublasLt.h beside the library, for a toolkit that came without it; on the path of every compiler."""
    folder = pathlib.Path(library).parent.parent / "include"
    if (folder / "cublasLt.h").exists():
        os.environ["CPATH"] = ":".join(filter(None, [os.environ.get("CPATH", ""), str(folder)]))


def unpack(run, root):
    """The folder of what is prebuilt: --bundle, or out of the archive where only that was brought along."""
    archive = root / "gpu-bundle.tar.gz"
    if run.emulated or pathlib.Path(run.options.bundle).exists() or not archive.exists():
        return
    try:
        run.command(["tar", "-xzf", archive, "-C", run.scratch, "gpu-bundle"], 60)
        run.options.bundle = str(run.scratch / "gpu-bundle")
    except (Failure, Skip) as why:
        print(f"   {archive} cannot be unpacked: {why}", flush=True)


def said(run, words, lines):
    """The first lines of what a program says; or why not."""
    try:
        return run.command(words, 20, check=False).strip().splitlines()[:lines]
    except (Failure, Skip) as why:
        return [str(why).split("\n", maxsplit=1)[0]]


def processor():
    """Its name, and the instructions that our kernels ask for."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    return " ".join([fields.get("model name", "?"), *sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"})])


def read_ahead(run, library):
    """What is started later is read from the disk beside the first sections: half a gigabyte of library, PyTorch."""
    words = f"cat {library} >/dev/null; for p in python3 python; do $p -c 'import torch, transformers, peft'; done"
    run.beside(["nice", "sh", "-c", words])


# Bits of clocks_event_reasons.active that slow a device which has work (NVML's reference manual).
SLOWED_BY = {0x2: "an application's clocks", 0x4: "the power limit", 0x8: "hardware slowdown", 0x10: "sync boost",
             0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake"}


def watch_clocks(run):
    """Clocks, power and what slows the device, once a second while the sections run."""
    run.clocks = run.scratch / "clocks.csv"
    with run.clocks.open("wb") as out:
        run.beside(["nvidia-smi", f"--id={run.options.device}", "--format=csv,noheader,nounits", "-lms", "1000",
                    "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu,"
                    "clocks_event_reasons.active"], out)


def clocks(run, figures):
    """What the watch saw while there was work."""
    rows = []
    for line in run.clocks.read_text().splitlines() if run.clocks else []:
        try:
            *numbers, reasons = line.split(", ")
            sm, memory, power, heat, busy = map(float, numbers)
            rows += [(sm, memory, power, heat, busy, int(reasons, 16))] if busy >= 50 else []
        except ValueError:  # what this device does not tell, or the last line, cut off
            continue
    if not rows:
        return
    rows.sort()
    slowed = {why: sum(bool(row[5] & bit) for row in rows) for bit, why in SLOWED_BY.items()}
    figures["clocks while it worked"] = {
        "seconds": len(rows), "sm, MHz": f"{rows[0][0]:.0f} to {rows[-1][0]:.0f}, median {rows[len(rows) // 2][0]:.0f}",
        "memory, MHz": f"{min(row[1] for row in rows):.0f}", "most power, W": max(row[2] for row in rows),
        "hottest, C": max(row[3] for row in rows),
        "slowed by": ", ".join(f"{why} in {seconds} s" for why, seconds in slowed.items() if seconds)}


def look(run, figures):
    """Which device, driver, toolkit; and what another process has of the device."""
    if run.emulated:
        figures["device"] = "emulated on " + os.uname().machine
        kernels.find_tools(run)
        return
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # nvidia-smi's
    fields = "name,driver_version,memory.total,compute_cap,clocks.max.sm,power.limit,uuid"
    query = ["nvidia-smi", "--format=csv,noheader", f"--id={run.options.device}"]
    line = run.command([*query, f"--query-gpu={fields}"], 60).strip().splitlines()[-1]
    figures.update(zip(fields.split(","), [part.strip() for part in line.split(",")]))
    run.facts["capability"] = figures["compute_cap"].replace(".", "")
    state = "memory.used,utilization.gpu,temperature.gpu,clocks.sm,clocks.mem,ecc.mode.current,mig.mode.current"
    figures["before"] = dict(zip(state.split(","), [
        part.strip() for part in "".join(said(run, [*query, f"--query-gpu={state}"], 1)).split(",")]))
    used = figures["before"].get("memory.used", "").split()
    if used and used[0].isdigit() and int(used[0]) > 2048:
        figures["busy"] = f"another process has {' '.join(used)} of the device: its figures are not ours alone"
    if figures["before"].get("mig.mode.current") == "Enabled":
        figures["MIG"] = "a part of a device: its shares of copying count, its tokens per second do not compare"
    figures["cuBLASLt"] = find_cublas() or "not found: our own products are measured"
    watch_clocks(run)
    read_ahead(run, figures["cuBLASLt"] if figures["cuBLASLt"].startswith("/") else "/dev/null")
    kernels.find_tools(run)
    figures["prebuilt checks"] = "start here" if run.tools else "do not start here: built from source"
    if run.tools is None:
        # What is built here wants the library of this toolkit.
        figures["cuBLASLt 12"] = find_cublas("libcublasLt.so.12") or "not found"
        run.done.pop(kernels.BUILD, None)
    if run.tools is None or run.wants(kernels.BUILD):
        find_header(figures.get("cuBLASLt 12", figures["cuBLASLt"]))
        kernels.start_build(run)
    figures["host"] = f"{os.cpu_count()} cores, {os.uname().release}, {processor()}"
    figures["lines"] = [
        *said(run, ["nvcc", "--version"], 9)[-2:], *said(run, ["g++", "--version"], 1),
        *said(run, ["cmake", "--version"], 1), *said(run, ["compute-sanitizer", "--version"], 9)[-2:],
        *said(run, ["ldd", "--version"], 1), *said(run, ["df", "-h", run.scratch], 2), *said(run, ["free", "-g"], 2),
        *said(run, ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv"], 9)]
