#!/usr/bin/env python3
"""Plants one mistake at a time into the code that plans memory and expects its unit tests to fail.

    plan_mutants.py [NAME ...]      all of them, or those named

Works on a copy of the sources and builds only engine/spec and its tests, so a mistake costs one or two
compiled files. The mistakes of the scheduler and of the leases are planted by nibble-sim (tests/sim/mutants.h).
Exit code 1 when a mistake passed the tests, 2 when one no longer fits the sources.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPIED = ["CMakeLists.txt", "cmake", "base", "engine/spec", "kernels", "server/core", "worker/core", "proto", "tests"]
SPEC = "engine/spec/"

# Name, file, what is there, what is planted.
MUTANTS = [
    ("offset-overlap", "offset_planner.cc",
     "begin = std::max(begin, other.end);", "begin = std::max(begin, other.begin);"),
    ("liveness-off-by-one", "offset_planner.cc",
     "return last_use >= other.first_use && first_use <= other.last_use;",
     "return last_use >= other.first_use && first_use < other.last_use;"),
    ("size-not-rounded", "offset_planner.cc",
     "const int64_t size = RoundUp(buffer.size_bytes, alignment);", "const int64_t size = buffer.size_bytes;"),
    ("gap-too-small", "offset_planner.cc",
     "if (other.begin - begin >= size) return begin;", "if (other.begin - begin >= size / 2) return begin;"),
    ("lower-bound-short", "offset_planner.cc",
     "change[b.last_use + 1] -= RoundUp", "change[b.last_use] -= RoundUp"),
    ("last-use-forgotten", "counting_executor.cc",
     "tensor.last_use = number;", "if (tensor.last_use < 0) tensor.last_use = number;"),
    ("tensor-missing", "counting_executor.cc",
     "Run(Op::kLinearBackward, LinearShapeOf(module), {dx, dy, x, u});",
     "Run(Op::kLinearBackward, LinearShapeOf(module), {dx, dy, x});"),
    ("workspace-missing", "compile_plan.cc",
     "if (bytes == 0) continue;", "if (bytes >= 0) continue;"),
    ("moment-too-small", "compile_plan.cc",
     'place("optimizer.v", Category::kOptimizer, count * (small ? 1 : real));',
     'place("optimizer.v", Category::kOptimizer, count);'),
    ("scales-of-moments-short", "compile_plan.cc",
     "const int64_t absmax = count / kMomentBlock * 4;", "const int64_t absmax = count / kMomentBlock;"),
    ("region-rounded-down", "compile_plan.cc",
     "  memory.step_bytes = RoundUp(placed.total_bytes, kPage);\n  return placed;\n}",
     "  memory.step_bytes = placed.total_bytes / kPage * kPage;\n  return placed;\n}"),
    ("persistent-unaligned", "compile_plan.cc",
     "next = RoundUp(offset + size, Alignment(profile)) + red_zone;", "next = offset + size + red_zone;"),
    ("evaluation-not-planned", "compile_plan.cc",
     "  EvalMicroBatch(counting, model, spec);\n", ""),
    ("nested-scales-missing", "base_layout.cc",
     "builder.Add(BasePart::kNestedAbsmax, 4 * CeilDiv(blocks, kNestedBlock), layer, module);",
     "builder.Add(BasePart::kNestedAbsmax, 4 * (blocks / kNestedBlock), layer, module);"),
    ("tied-head-counted", "base_layout.cc",
     "if (!model.tie_word_embeddings) builder.Add(BasePart::kHead",
     "if (model.tie_word_embeddings) builder.Add(BasePart::kHead"),
    ("adapter-unaligned", "adapter_layout.cc",
     "layout.elements = (start + elements + alignment - 1) / alignment * alignment;",
     "layout.elements = start + elements;"),
    ("host-copy-missing", "compile_plan.cc",
     "plan.memory.host_bytes += plan.adapters.elements * 4 * (plan.paged ? 1 : 3);",
     "plan.memory.host_bytes += plan.adapters.elements * 4;"),
    ("workspace-unrounded-rank", "workspace.cc",
     "32 * s.m * RoundUp(s.r, 32)", "32 * s.m * s.r"),
    ("gradient-too-small", "compile_plan.cc",
     'place("gradients", Category::kGradients, count * real);',
     'place("gradients", Category::kGradients, count * profile.act_bytes);'),
    ("sequence-not-counted", "counting_executor.cc",
     "tokens_(int64_t{spec.micro_batch_size} * spec.sequence_len)", "tokens_(int64_t{spec.sequence_len})"),
]


def run(command, **kwargs):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **kwargs)


def build(folder):
    # A mistake may leave a constant or a parameter unused; that is no test.
    return run(["ninja", "-C", str(folder), "spec_test"])


def passes(folder):
    environment = dict(os.environ, NIBBLE_SOURCE_DIR=str(ROOT))
    try:
        result = run([str(folder / "tests" / "spec_test"), "--gtest_brief=1", "--gtest_fail_fast"],
                     env=environment, timeout=300)
    except subprocess.TimeoutExpired:
        return False, "it did not end"
    failed = [line.split("]", 1)[1].strip() for line in result.stdout.splitlines() if "[  FAILED  ]" in line]
    return result.returncode == 0, failed[0] if failed else f"exit code {result.returncode}"


def plant(source, name, file, old, new, folder):
    path = source / SPEC / file
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        print(f"mutant {name}: its place in {file} is there {text.count(old)} times", flush=True)
        return 2
    began = time.monotonic()
    path.write_text(text.replace(old, new), encoding="utf-8")
    built = build(folder)
    path.write_text(text, encoding="utf-8")
    if built.returncode != 0:
        print(f"mutant {name}: does not compile\n{built.stdout[-2000:]}", flush=True)
        return 2
    lives, message = passes(folder)
    verdict = "NOT FOUND" if lives else f"found by {message}"
    print(f"mutant {name}: {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
    return 1 if lives else 0


def main():
    names = sys.argv[1:]
    chosen = [m for m in MUTANTS if not names or m[0] in names]
    with tempfile.TemporaryDirectory(prefix="nibble-mutants-") as scratch:
        source, folder = pathlib.Path(scratch, "source"), pathlib.Path(scratch, "build")
        for part in COPIED:
            target = source / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, target, ignore=shutil.ignore_patterns("build*", "data"))
            else:
                shutil.copy(ROOT / part, target)
        configured = run(["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja",
                          "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
                          "-DNIBBLE_WERROR=OFF", "-DNIBBLE_CUDA=OFF", "-DNIBBLE_BUILD_ENGINE=OFF",
                          "-DNIBBLE_BUILD_SERVER=OFF", "-DNIBBLE_BUILD_WORKER=OFF", "-DNIBBLE_BUILD_CLIENT=OFF"])
        built = build(folder) if configured.returncode == 0 else configured
        if built.returncode != 0:
            sys.exit(f"the sources as they are do not build:\n{built.stdout[-3000:]}")
        sound, message = passes(folder)
        if not sound:
            sys.exit(f"the tests fail without any mistake: {message}")
        codes = [plant(source, *mutant, folder) for mutant in chosen]
    print(f"{len(codes)} mistakes planted, {codes.count(0)} found")
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    main()
