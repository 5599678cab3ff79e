#!/usr/bin/env python3
"""Plants mistakes into the code that plans memory, one at a time, and expects its unit tests to fail.

    plan_mutants.py [NAME ...]      all of them, or those named

All mistakes are compiled into one copy of the sources at once, each behind a question: MUTANT in what is planted
is true when it is that mistake's turn. So there is one build, of engine/spec and its tests alone, and a run of the
tests for each mistake, told by NIBBLE_MUTANT which to make. The mistakes of the scheduler and of the leases are
planted by nibble-sim (tests/sim/mutants.h).
Exit code 1 when a mistake passed the tests, 2 when one no longer fits the sources.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build-mutants"
COPIED = ["CMakeLists.txt", "cmake", "base", "engine/spec", "server/core", "worker/core",
          "tests/CMakeLists.txt"]
SPEC = "engine/spec/"
HEADER = "planted_mutant.h"
# In every file with a mistake; 0 is none.
CHOICE = """#pragma once
#include <cstdlib>
namespace nibble::spec {
inline const int g_planted = std::getenv("NIBBLE_MUTANT") == nullptr ? 0 : std::atoi(std::getenv("NIBBLE_MUTANT"));
}
"""

# Name, file, what is there, what stands in its place.
MUTANTS = [
    ("offset-overlap", "placed_buffers.h",
     "bytes.begin >= begin + size;", "bytes.begin >= begin + (MUTANT ? 1 : size);"),
    ("piece-in-the-way-passed-over", "placed_buffers.h",
     "if (bytes.end <= begin) continue;", "if ((MUTANT ? bytes.begin : bytes.end) < begin) continue;"),
    ("liveness-off-by-one", "placed_buffers.h",
     "(part.last_use >= buffer.first_use) & (part.first_use <= buffer.last_use)",
     "(part.last_use >= buffer.first_use) &\n"
     "            (MUTANT ? part.first_use < buffer.last_use : part.first_use <= buffer.last_use)"),
    ("size-not-rounded", "offset_planner.cc",
     "sizes.push_back(RoundUp(buffer.size_bytes, alignment));",
     "sizes.push_back(MUTANT ? buffer.size_bytes : RoundUp(buffer.size_bytes, alignment));"),
    ("gap-too-small", "placed_buffers.h",
     "if (bytes.begin - begin >= size) break;", "if (bytes.begin - begin >= (MUTANT ? size / 2 : size)) break;"),
    ("whole-slot-forgotten", "placed_buffers.h",
     "        here.all.Add(begin, end);", "        if (!MUTANT) here.all.Add(begin, end);"),
    ("whole-span-forgotten", "placed_buffers.h",
     "        around.all.Add(begin, end);", "        if (!MUTANT) around.all.Add(begin, end);"),
    ("later-order-wrongly-dropped", "offset_planner.cc",
     "if (plan.total_bytes <= RoundUp(plan.lower_bound_bytes, enough)) break;",
     "if (MUTANT || plan.total_bytes <= RoundUp(plan.lower_bound_bytes, enough)) break;"),
    ("lower-bound-short", "offset_planner.cc",
     "change[buffers[i].last_use + 1] -= sizes[i];",
     "change[buffers[i].last_use + (MUTANT ? 0 : 1)] -= sizes[i];"),
    ("last-use-forgotten", "counting_executor.cc",
     "tensor.last_use = number;", "if (!MUTANT || tensor.last_use < 0) tensor.last_use = number;"),
    ("tensor-missing", "counting_executor.cc",
     "Run(Op::kLinearBackward, LinearShapeOf(module), {dx, dy, x, u});",
     "Run(Op::kLinearBackward, LinearShapeOf(module), {dx, dy, x, MUTANT ? x : u});"),
    ("workspace-missing", "compile_plan.cc",
     "if (bytes == 0) continue;", "if (bytes == 0 || MUTANT) continue;"),
    ("moment-too-small", "compile_plan.cc",
     'place("optimizer.v", Category::kOptimizer, count * (small ? 1 : real));',
     'place("optimizer.v", Category::kOptimizer, count * (small || MUTANT ? 1 : real));'),
    ("scales-of-moments-short", "compile_plan.cc",
     "const int64_t absmax = count / kMomentBlock * 4;",
     "const int64_t absmax = count / kMomentBlock * (MUTANT ? 1 : 4);"),
    ("region-rounded-down", "compile_plan.cc",
     "  memory.step_bytes = RoundUp(placed.total_bytes, kPage);\n  return placed;\n}",
     "  memory.step_bytes = MUTANT ? placed.total_bytes / kPage * kPage : RoundUp(placed.total_bytes, kPage);\n"
     "  return placed;\n}"),
    ("persistent-unaligned", "compile_plan.cc",
     "next = RoundUp(offset + size, Alignment(profile)) + red_zone;",
     "next = (MUTANT ? offset + size : RoundUp(offset + size, Alignment(profile))) + red_zone;"),
    ("evaluation-not-planned", "compile_plan.cc",
     "  EvalMicroBatch(counting, model, spec);\n", "  if (!MUTANT) EvalMicroBatch(counting, model, spec);\n"),
    ("nested-scales-missing", "base_layout.cc",
     "builder.Add(BasePart::kNestedAbsmax, 4 * CeilDiv(blocks, kNestedBlock), layer, module);",
     "builder.Add(BasePart::kNestedAbsmax,\n"
     "            4 * (MUTANT ? blocks / kNestedBlock : CeilDiv(blocks, kNestedBlock)), layer, module);"),
    ("tied-head-counted", "base_layout.cc",
     "if (!model.tie_word_embeddings) builder.Add(BasePart::kHead",
     "if (model.tie_word_embeddings == MUTANT) builder.Add(BasePart::kHead"),
    ("adapter-unaligned", "adapter_layout.cc",
     "layout.elements = (start + elements + alignment - 1) / alignment * alignment;",
     "layout.elements = MUTANT ? start + elements : (start + elements + alignment - 1) / alignment * alignment;"),
    ("host-copy-missing", "compile_plan.cc",
     "plan.memory.host_bytes += plan.adapters.elements * 4 * (plan.paged ? 1 : 3);",
     "plan.memory.host_bytes += plan.adapters.elements * 4 * (plan.paged || MUTANT ? 1 : 3);"),
    ("workspace-unrounded-rank", "workspace.cc",
     "32 * s.m * RoundUp(s.r, 32)", "32 * s.m * (MUTANT ? s.r : RoundUp(s.r, 32))"),
    ("gradient-too-small", "compile_plan.cc",
     'place("gradients", Category::kGradients, count * real);',
     'place("gradients", Category::kGradients, count * (MUTANT ? profile.act_bytes : real));'),
    ("sequence-not-counted", "counting_executor.cc",
     "tokens_(int64_t{spec.micro_batch_size} * spec.sequence_len)",
     "tokens_(int64_t{MUTANT ? 1 : spec.micro_batch_size} * spec.sequence_len)"),
]


def run(command, **kwargs):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **kwargs)


def write(path, text):
    """Only what differs, so that a second run compiles nothing."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def plant():
    """Texts of the changed files, by name; the numbers of mistakes whose place is not there once."""
    texts, lost = {}, []
    for number, (name, file, old, new) in enumerate(MUTANTS, 1):
        text = texts.get(file) or f'#include "{SPEC}{HEADER}"\n' + (ROOT / SPEC / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            print(f"mutant {name}: its place in {file} is there {text.count(old)} times", flush=True)
            lost.append(number)
        else:
            text = text.replace(old, new.replace("MUTANT", f"(g_planted == {number})"))
        texts[file] = text
    return texts, lost


def copy(source, texts):
    files = []
    for part in COPIED:
        path = ROOT / part
        files += [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else [path]
    for path in files:
        name = path.relative_to(ROOT)
        planted = texts.get(name.name) if name.parent == pathlib.Path(SPEC) else None
        if path.suffix in (".cc", ".h", ".txt", ".cmake"):
            write(source / name, planted or path.read_text(encoding="utf-8"))
        else:
            shutil.copy2(path, source / name)
    write(source / SPEC / HEADER, CHOICE)


def build(source):
    folder = source / "build"
    configured = run(["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                      "-DNIBBLE_CUDA=OFF", "-DNIBBLE_BUILD_ENGINE=OFF", "-DNIBBLE_BUILD_SERVER=OFF",
                      "-DNIBBLE_BUILD_WORKER=OFF", "-DNIBBLE_BUILD_CLIENT=OFF"])
    built = run(["ninja", "-C", str(folder), "spec_test"]) if configured.returncode == 0 else configured
    if built.returncode != 0:
        sys.exit(f"the sources with the mistakes in them do not build:\n{built.stdout[-3000:]}")
    return folder / "tests" / "spec_test"


def passes(test, number):
    environment = dict(os.environ, NIBBLE_SOURCE_DIR=str(ROOT), NIBBLE_MUTANT=str(number))
    try:
        result = run([str(test), "--gtest_brief=1", "--gtest_fail_fast"], env=environment, timeout=300)
    except subprocess.TimeoutExpired:
        return False, "it did not end"
    failed = [line.split("]", 1)[1].strip() for line in result.stdout.splitlines() if "[  FAILED  ]" in line]
    return result.returncode == 0, failed[0] if failed else f"exit code {result.returncode}"


def main():
    names = sys.argv[1:]
    texts, lost = plant()
    source = FOLDER / "source"
    copy(source, texts)
    test = build(source)
    sound, message = passes(test, 0)
    if not sound:
        sys.exit(f"the tests fail without any mistake: {message}")
    found, chosen = 0, 0
    for number, (name, *_) in enumerate(MUTANTS, 1):
        if number in lost or (names and name not in names):
            continue
        began = time.monotonic()
        lives, message = passes(test, number)
        chosen, found = chosen + 1, found + (not lives)
        verdict = "NOT FOUND" if lives else f"found by {message}"
        print(f"mutant {name}: {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{chosen} mistakes planted, {found} found")
    sys.exit(2 if lost else int(found != chosen))


if __name__ == "__main__":
    main()
