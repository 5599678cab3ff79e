#!/usr/bin/env python3
"""Plants mistakes into the memory plan and into the scheduler's core, one at a time, and expects a test to fail.

    run.py [plan] [policy] [NAME ...]      all of them, those of one list, or those named

All mistakes are compiled into one copy of the sources at once, each behind a question: MUTANT in what is planted
is true when it is that mistake's turn. So there is one build, of engine/spec, server/core and their tests alone, and
for each mistake a run of the tests that are to find it, one after the other until one fails, told by NIBBLE_MUTANT which
to make. What needs a network or a crash to do harm is planted by nibble-sim (tests/sim/mutants.h).
Exit code 1 when a mistake passed the tests, 2 when one no longer fits the sources.
"""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import zlib

import plan_mistakes
import policy_mistakes

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build-mutants"
JOBS = int(os.environ.get("NIBBLE_JOBS") or os.cpu_count())
COPIED = ["CMakeLists.txt", "cmake", "base", "engine/spec", "server/core", "worker/core",
          "tests/CMakeLists.txt", "tests/fleet", "tests/sim"]
LISTS = {"plan": plan_mistakes, "policy": policy_mistakes}
# Name, file, what is there, what stands in its place, the tests that are to find it.
MISTAKES = [(*mistake, module.TESTS) for module in LISTS.values() for mistake in module.MISTAKES]
HEADER = "planted_mutant.h"
# In every file with a mistake. A mistake's number follows from its name, so that another one in the list compiles
# only the file it is in; 0 is none.
CHOICE = """#pragma once
#include <cstdlib>
namespace nibble {
inline const unsigned long g_planted =
    std::getenv("NIBBLE_MUTANT") == nullptr ? 0 : std::strtoul(std::getenv("NIBBLE_MUTANT"), nullptr, 10);
}
"""


def number_of(name):
    return zlib.crc32(name.encode())


def run(command, **kwargs):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **kwargs)


def write(path, text):
    """Only what differs, so that a second run compiles nothing."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def plant():
    """Texts of the changed files, by name; the names of mistakes whose place is not there once."""
    places, lost = {}, []
    for name, file, old, new, _ in MISTAKES:
        text = (ROOT / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            print(f"mutant {name}: its place in {file} is there {text.count(old)} times", flush=True)
            lost.append(name)
            continue
        begin = text.index(old)
        planted = new.replace("MUTANT", f"(g_planted == {number_of(name)}u)")
        places.setdefault(file, []).append((begin, begin + len(old), planted, name))
    return {file: with_mistakes(file, sorted(all_of)) for file, all_of in places.items()}, lost


def with_mistakes(file, places):
    """The file's text with (begin, end) of each place replaced by what is planted there."""
    text, at = [f'#include "{HEADER}"\n'], 0
    original = (ROOT / file).read_text(encoding="utf-8")
    for begin, end, planted, name in places:
        if begin < at:
            sys.exit(f"mutant {name}: its place in {file} is another's, too; name less of what is there")
        text += [original[at:begin], planted]
        at = end
    return "".join(text) + original[at:]


def copy(source, texts):
    files = []
    for part in COPIED:
        path = ROOT / part
        files += [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
    for path in files:
        name = str(path.relative_to(ROOT))
        if path.suffix in (".cc", ".h", ".txt", ".cmake"):
            write(source / name, texts.get(name) or path.read_text(encoding="utf-8"))
        else:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, source / name)
    write(source / HEADER, CHOICE)


def build(source, tests):
    folder = source / "build"
    configured = run(["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                      "-DNIBBLE_CUDA=OFF", "-DNIBBLE_BUILD_ENGINE=OFF", "-DNIBBLE_BUILD_SERVER=OFF",
                      "-DNIBBLE_BUILD_WORKER=OFF", "-DNIBBLE_BUILD_CLIENT=OFF"])
    built = run(["ninja", "-C", str(folder), "-j", str(JOBS), *tests]) if configured.returncode == 0 else configured
    if built.returncode != 0:
        sys.exit(f"the sources with the mistakes in them do not build:\n{built.stdout[-3000:]}")
    return folder / "tests"


def survives(folder, tests, name, timeout=300):
    """Whether each of the tests passes with that mistake; else which case did not."""
    environment = dict(os.environ, NIBBLE_SOURCE_DIR=str(ROOT), NIBBLE_MUTANT=str(number_of(name) if name else 0))
    environment.pop("GTEST_OUTPUT", None)
    for test in tests:
        try:
            result = run([str(folder / test), "--gtest_brief=1", "--gtest_fail_fast"], env=environment, timeout=timeout)
        except subprocess.TimeoutExpired:
            return False, f"{test}, which did not end"
        if result.returncode != 0:
            failed = re.findall(r"\[  FAILED  \] ([^ ,]+)", result.stdout)
            return False, failed[0] if failed else f"{test}, exit code {result.returncode}"
    return True, ""


def main():
    names = sys.argv[1:]
    unknown = set(names) - set(LISTS) - {mistake[0] for mistake in MISTAKES}
    if unknown:
        sys.exit(f"there is no mistake or list called {', '.join(sorted(unknown))}")
    texts, lost = plant()
    chosen = [(name, tests) for name, *_, tests in MISTAKES
              if name not in lost and (not names or name in names
                                       or any(tests is LISTS[part].TESTS for part in names if part in LISTS))]
    targets = sorted({test for _, tests in chosen for test in tests})
    source = FOLDER / "source"
    copy(source, texts)
    folder = build(source, targets)
    began = time.monotonic()
    sound, message = survives(folder, targets, "")
    if not sound:
        sys.exit(f"the tests fail without any mistake: {message}")
    patience_s = max(300, 20 * (time.monotonic() - began))

    def try_one(mistake):
        name, tests = mistake
        began = time.monotonic()
        lives, message = survives(folder, tests, name, patience_s)
        verdict = "NOT FOUND" if lives else f"found by {message}"
        print(f"mutant {name}: {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
        return name if lives else None

    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        passed = {name for name in pool.map(try_one, chosen) if name}
    print(f"{len(chosen)} mistakes planted, {len(chosen) - len(passed)} found")
    sys.exit(2 if lost else int(bool(passed)))


if __name__ == "__main__":
    main()
