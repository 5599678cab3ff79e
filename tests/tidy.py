#!/usr/bin/env python3
"""Is the house still the house? Checks what design rules say about includes, sizes and leftovers.

Rules: who may include whom (the table in CONTRIBUTING.md), nothing at the top but what belongs there, no
file over 600 lines, no line over 110 columns in C++ (raw strings apart), no banned calls, every *_test.cc
listed by a CMake file, no leftover markers. Prints one line per finding; exits 1 when there is any.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Room -> the rooms (path prefixes) its files may include besides their own.
MAY_INCLUDE = {
    "base": [],
    "kernels": [],
    "engine/spec": ["base/"],
    "engine/text": ["base/"],
    "engine/data": ["base/", "engine/spec/", "engine/text/", "kernels/counter.h"],
    "engine/model": ["base/", "engine/spec/", "engine/text/", "kernels/kernel_table.h", "kernels/backend.h",
                     "kernels/parallel.h", "kernels/nf4.h"],
    "engine": ["base/", "engine/spec/", "kernels/kernel_table.h", "kernels/tables.h",
               "kernels/backend.h", "kernels/counter.h", "kernels/parallel.h", "kernels/nf4.h",
               "kernels/cpu/isa.h"],
    "server/core": ["base/", "engine/spec/"],
    "worker/core": ["base/", "engine/spec/"],
    "server/store": ["base/", "engine/spec/", "server/core/", "server/watch_hub.h"],
    "server/rpc": ["base/", "engine/spec/", "server/core/", "server/control_loop.h",
                   "server/watch_hub.h", "server/blob_store.h", "server/store/history.h",
                   "server/store/store.h", "server/"],
    "server": ["base/", "engine/spec/"],
    "worker": ["base/", "engine/spec/", "proto/endpoint.h", "proto/from_grpc.h", "proto/trusted_channel.h"],
    "client": ["base/", "proto/endpoint.h", "proto/from_grpc.h", "proto/trusted_channel.h"],
}
OUTSIDE_ENGINE = [r"grpc", r"google/protobuf", r"sqlite3", r'[<"](cuda|cublas|cudnn|nvml)']
# Rooms whose own prefix includes other rooms' folders must not reach into these.
NEVER = {
    "engine": OUTSIDE_ENGINE,
    "engine/text": OUTSIDE_ENGINE,
    "engine/data": OUTSIDE_ENGINE,
    "engine/model": OUTSIDE_ENGINE,
    "kernels": [r"absl/", r"\bbase/", r"\bengine/"],
    "engine/spec": [r"kernels/", r"<fstream>", r"<thread>", r"base/file\.h", r"base/clock\.h"],
    "server/core": [r"grpc", r"google/protobuf", r"\.pb\.h", r"<thread>", r"<mutex>", r"<chrono>",
                    r"<fstream>", r"base/(file|clock|log|random|mailbox)\.h", r"prometheus"],
    "worker/core": [r"grpc", r"google/protobuf", r"\.pb\.h", r"<thread>", r"<mutex>", r"<chrono>",
                    r"<fstream>", r"base/(file|clock|log|random|mailbox)\.h", r"prometheus"],
    "server/store": [r"grpc", r"\.pb\.h"],
    "server": [r"\bkernels/", r'"engine/(?!spec/)'],
    "worker": [r"\bkernels/", r'"engine/(?!spec/)', r'"server/'],
    "client": [r'"server/', r'"worker/', r'"engine/', r'"kernels/'],
}
ROOMS = sorted(MAY_INCLUDE, key=len, reverse=True)
# What lies beside the rooms.
TOP = {"base", "client", "cmake", "demo", "deploy", "docs", "engine", "kernels", "proto", "server", "tests", "worker",
       ".ci", ".clang-format", ".gitignore", "CHANGELOG.md", "CMakeLists.txt", "CMakePresets.json", "CONTRIBUTING.md",
       "LICENSE", "README.md", "dev"}
PROTO = ("nibble/v1/", "nibble/worker/v1/", "google/rpc/")
PROTO_ROOMS = {"server/rpc", "server", "worker", "client"}
MARKERS = re.compile(r"\b(TODO|FIXME|XXX)\b|not (yet )?implemented|placeholder", re.I)
BANNED = {
    r"\busing namespace std\b": "using namespace std",
    r"\b(sprintf|strcpy|strcat|gets)\s*\(": "unbounded C string call",
    r"\brand\s*\(\)": "rand()",
    r"\.detach\(\)": "detached thread",
}


def tracked():
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]
    # Unpacked from an archive: what is at the top and belongs there.
    return [path for name in sorted(TOP) for path in [ROOT / name, *(ROOT / name).rglob("*")]
            if path.is_file() and "__pycache__" not in path.parts and ".run" not in path.parts]


def room_of(relative):
    for room in ROOMS:
        if relative.startswith(room + "/"):
            return room
    return None


def check_includes(relative, text, findings):
    room = room_of(relative)
    if room is None:
        return
    is_test = relative.endswith("_test.cc") or "/testing/" in relative
    for number, line in enumerate(text.split("\n"), 1):
        match = re.match(r'\s*#\s*include\s+([<"])([^>"]+)[>"]', line)
        if not match:
            continue
        target = match.group(2)
        for pattern in NEVER.get(room, []):
            if re.search(pattern, line) and not (is_test and "<" in line):
                findings.append(f"{relative}:{number}: {room} must not include {target}")
        if match.group(1) != '"' or not (ROOT / target.split("/")[0]).is_dir():
            continue  # a library's header; which libraries a room may use is in NEVER
        if target.startswith(PROTO):
            if room not in PROTO_ROOMS and not is_test:
                findings.append(f"{relative}:{number}: {room} must not include protobuf types")
            continue
        allowed = [room + "/"] + MAY_INCLUDE[room]
        if room == "engine" and is_test:
            allowed.append("kernels/")
        if room in ("engine/data", "engine/model") and is_test:
            allowed.append("engine/testing/")
        if "/" in target and not any(target.startswith(prefix) for prefix in allowed):
            findings.append(f"{relative}:{number}: {room} may not include {target}")


def check_text(relative, text, findings):
    lines = text.split("\n")
    if len(lines) > 601:
        findings.append(f"{relative}: {len(lines)} lines; what is its second reason to exist?")
    for number, line in enumerate(lines, 1):
        if len(line) > 110 and 'R"' not in line:  # a raw string cannot be broken
            findings.append(f"{relative}:{number}: {len(line)} columns")
        if MARKERS.search(line) and not relative.startswith("tests/tidy"):
            findings.append(f"{relative}:{number}: leftover marker: {line.strip()[:60]}")
        for pattern, name in BANNED.items():
            if re.search(pattern, line):
                findings.append(f"{relative}:{number}: banned: {name}")


def check_tests_are_built(files, findings):
    cmake = "\n".join(path.read_text() for path in files
                      if path.name == "CMakeLists.txt" or path.suffix == ".cmake")
    for path in files:
        if path.name.endswith("_test.cc") and path.name not in cmake:
            findings.append(f"{path.relative_to(ROOT)}: no CMake file builds this test")


def check_top(files, findings):
    for name in sorted({path.relative_to(ROOT).parts[0] for path in files} - TOP):
        findings.append(f"{name}: does not belong at the top; what a test leaves goes to its build folder")


def main():
    findings = []
    files = tracked()
    check_top(files, findings)
    for path in files:
        relative = str(path.relative_to(ROOT))
        if path.suffix in (".cc", ".h"):
            text = path.read_text(encoding="utf-8")
            check_includes(relative, text, findings)
            check_text(relative, text, findings)
    check_tests_are_built(files, findings)
    for finding in findings:
        print(finding)
    print(f"tidy: {len(files)} files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
