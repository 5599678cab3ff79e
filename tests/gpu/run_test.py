#!/usr/bin/env python3
"""./dev gpu when things go wrong: sections that crash, hang or are cut off, binaries that do not start.

  run_test.py [SCRATCH]

A machine with a GPU is played by scripts: nvidia-smi, nvcc, cmake and what is prebuilt.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import types
import unittest
import unittest.mock

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import explain  # noqa: E402
import machine  # noqa: E402
import rehearse  # noqa: E402
import report  # noqa: E402
import run as gpu  # noqa: E402
from runner import Failure, Run, Skip  # noqa: E402
import shapes  # noqa: E402
import training  # noqa: E402

# A kernel check with one case that is right.
GOOD_CHECK = ["echo \"cuda sm_90 threads=2 'x' : ok 0.250 of tolerance\"", 'echo "1 passed, 0 failed, 0 missing"']

SCRATCH = pathlib.Path(sys.argv.pop() if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="gpu-script-"))


def options(**more):
    return types.SimpleNamespace(**{"emulated": False, "minutes": 5, "patience": 1, "bin": "", "bundle": "", "device": 0,
                                    "only": "", **more})


def figures_of(path):
    """The JSON at the end of a results file, by section."""
    sections = json.loads(re.search(r"```json\n(.*)\n```", path.read_text(), re.S)[1])
    return {entry["name"]: entry for entry in sections}


class RunnerTest(unittest.TestCase):
    def run_sections(self, sections, **more):
        run = Run(options(**more))
        writes = []
        for name, function, limit_s in sections:
            run.section(name, lambda figures, f=function: f(run, figures), limit_s,
                        lambda: writes.append([entry["state"] for entry in run.sections]))
        return run.sections, writes

    def test_what_goes_wrong_costs_its_section_alone(self):
        def crash(run, figures):
            figures["before"] = 1
            run.command(["sh", "-c", "echo last words; kill -SEGV $$"])

        def wrong(run, figures):
            raise KeyError("the script's own fault")

        def missing(run, figures):
            run.command(["nibble-no-such-program"])

        def good(run, figures):
            figures["text"] = run.command(["echo", "fine"]).strip()

        sections, writes = self.run_sections([("crash", crash, 60), ("wrong", wrong, 60),
                                              ("missing", missing, 60), ("good", good, 60)])
        self.assertEqual([entry["state"] for entry in sections], ["FAILED", "FAILED", "skipped", "ok"])
        self.assertEqual(sections[0]["figures"], {"before": 1})
        self.assertIn("last words", sections[0]["why"])
        self.assertIn("SIGSEGV", sections[0]["why"])
        self.assertEqual(sections[3]["figures"]["text"], "fine")
        # Written before and after each, so that a cut run says where.
        self.assertEqual(writes[0], ["cut off"])
        self.assertEqual(writes[-1], ["FAILED", "FAILED", "skipped", "ok"])
        self.assertEqual(len(writes), 8)

    def test_a_section_that_hangs_is_ended_with_all_it_started(self):
        marker = SCRATCH / "grandchild"
        marker.unlink(missing_ok=True)

        def hang(run, figures):
            run.command(["sh", "-c", f"(sleep 300; echo)& echo $! > {marker}; echo waiting; sleep 300"])

        def good(run, figures):
            figures["left"] = run.left()

        began = time.monotonic()
        sections, _ = self.run_sections([("hang", hang, 6), ("good", good, 60)])
        self.assertLess(time.monotonic() - began, 30)
        self.assertEqual([entry["state"] for entry in sections], ["FAILED", "ok"])
        self.assertIn("did not end within", sections[0]["why"])
        self.assertIn("waiting", sections[0]["why"])
        grandchild = int(marker.read_text())
        for _ in range(50):  # it may be reaped a moment later
            try:
                state = pathlib.Path(f"/proc/{grandchild}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                break
            if state == "Z":
                break
            time.sleep(0.1)
        else:
            self.fail("what the section started lives on")

    def test_what_falls_silent_is_ended(self):
        def hang(run, figures):
            run.command(["sh", "-c", "echo a case; sleep 300"], quiet_s=1)

        began = time.monotonic()
        sections, _ = self.run_sections([("hang", hang, 60)])
        self.assertLess(time.monotonic() - began, 30)
        self.assertIn("said nothing for 1 s", sections[0]["why"])
        self.assertIn("a case", sections[0]["why"])

    def test_a_fault_of_the_device_is_remembered(self):
        run = Run(options())
        run.section_deadline = run.deadline
        for text in ("error: an illegal memory access was encountered", "cannot read the data set"):
            with self.assertRaises(Failure):
                run.command(["sh", "-c", f"echo '{text}'; exit 1"])
        self.assertEqual(len(run.suspects), 1)
        self.assertIn("illegal memory access", next(iter(run.suspects)))

    def test_the_bundle_may_come_as_its_archive(self):
        root = SCRATCH / "archived"
        (root / "gpu-bundle").mkdir(parents=True, exist_ok=True)
        (root / "gpu-bundle" / "nibble-engine").write_text("x")
        subprocess.run(["tar", "-czf", "gpu-bundle.tar.gz", "gpu-bundle"], cwd=root, check=True)
        run = Run(options(bundle=str(root / "elsewhere")))
        run.section_deadline = run.deadline
        machine.unpack(run, root)
        self.assertEqual((pathlib.Path(run.options.bundle) / "nibble-engine").read_text(), "x")

    def test_training_that_is_not_right_is_taken_apart(self):
        run = Run(options())
        run.section_deadline = run.deadline
        with self.assertRaises(Skip):
            explain.what_makes_the_difference(run, {})
        run.facts.update({"training differs": True, "losses_cpu": [2.0, 1.0]})

        def train(_, name, device, steps, more, before):
            if device.endswith("fp16"):
                raise Failure("it crashed")
            return [(1, 2.0, 1.0), (2, 1.0 if "own" in name else 1.5, 1.0)], name[-1:].encode() if before else b"same"

        figures = {}
        with unittest.mock.patch.object(explain.training, "train", train), self.assertRaises(Failure):
            explain.what_makes_the_difference(run, figures)
        self.assertEqual(figures["our own products"]["distance"], 0)
        self.assertFalse(figures["our own products"]["twice the same"])
        self.assertEqual(figures["as it was"]["distance"], 0.5)
        self.assertTrue(figures["as it was"]["twice the same"])
        self.assertEqual(figures["fp16"], {"failed": "it crashed"})

    def test_a_rehearsal_asks_the_emulation_what_a_gpu_is_asked(self):
        self.assertEqual(
            rehearse.translated("nibble-kernel-check", ["--table=cuda", "--device", "0", "--part", "0/2", "linear"]),
            ("nibble-kernel-check", ["--table=cuda-emulated", "--part", "0/2", "linear"]))
        name, words = rehearse.translated("nibble-bench-step", ["--device", "cuda:0", "--shape", "8b", "--paged", "1"])
        self.assertEqual(name, "nibble-bench-step-emulated")
        self.assertEqual(words[-4:], ["--device", "cuda-emulated", "--paged", "1"])
        self.assertNotIn("8b", words)
        self.assertEqual(rehearse.translated("nibble-engine", ["train", "--device", "cuda:0,fp16"])[1],
                         ["train", "--device", "cuda-emulated,fp16"])

    def test_time_that_is_up_skips_what_is_left(self):
        def good(run, figures):
            raise AssertionError("no time is left for this")

        sections, _ = self.run_sections([("good", good, 60)], minutes=0.01)
        self.assertEqual(sections[0]["state"], "skipped")
        self.assertIn("no time was left", sections[0]["why"])

    def test_sections_that_hang_leave_the_time_that_is_set_aside(self):
        run = Run(options(minutes=10))
        began = time.monotonic()
        with unittest.mock.patch("time.monotonic", lambda: began + clock[0]):
            clock, ends = [0.0], {}
            run.deadline = began + 570

            def hang(name):
                def function(_):
                    clock[0] += max(0, run.left())
                    ends[name] = clock[0]
                return function

            names = [section[0] for section in gpu.SECTIONS]
            for i, (name, _, limit_s) in enumerate(gpu.SECTIONS):
                before = clock[0]
                run.section(name, hang(name), limit_s, lambda: None, gpu.KEPT_S.get(name, 0),
                            sum(gpu.KEPT_S.get(later, 0) for later in names[i + 1:]))
                self.assertLessEqual(clock[0] - before, limit_s + 0.01, name)
                self.assertGreaterEqual(clock[0] - before, min(limit_s, gpu.KEPT_S.get(name, 0)) - 0.01, name)
            self.assertLessEqual(clock[0], 570.01)
        self.assertLessEqual(set(gpu.KEPT_S), set(names))
        self.assertLess(sum(gpu.KEPT_S.values()), 570)

    def test_shapes_that_hang_leave_time_for_the_others(self):
        run = Run(options())
        run.bench = run.options.bin
        clock, limits = [0.0], []

        def hang(_, figures, name, words, goal, limit_s):
            limits.append(limit_s)
            clock[0] += min(limit_s, run.left())
            raise Failure("it hung")

        run.facts["wgmma ends"] = True
        figures = {}
        began = time.monotonic()
        with unittest.mock.patch.object(training, "one_step_speed", hang), \
                unittest.mock.patch("time.monotonic", lambda: began + clock[0]), self.assertRaises(Failure):
            run.deadline = run.section_deadline = began + 190
            training.step_speed(run, figures)
        self.assertGreaterEqual(len(limits), 5)
        self.assertTrue(all(25 <= limit <= 75 for limit in limits), limits)
        self.assertIn("parity", figures["Llama-3.1-8B, 4x4096, full recomputation, attention by wgmma"]["skipped"])

    def test_shapes_with_other_bits_are_wrong(self):
        norms = {"a": {"grad_norms": [1.5, 1.25, 1.0]}, "b": {"grad_norms": [1.5, 1.25]},
                 "c": {"grad_norms": [1.5, 1.2500000001]}, "d": {"failed": "it hung"}, "e": {"skipped": "no time"}}
        pairs = [("a", "b"), ("b", "c"), ("a", "d"), ("e", "a"), ("a", "not there")]
        wrong = training.other_bits(norms, pairs)
        self.assertEqual([line.split(":")[0] for line in wrong], ["c"])
        for emulated in (False, True):
            names = [name for name, *_ in shapes.STEPS[emulated]]
            self.assertTrue(all(name in names for pair in shapes.SAME_BITS[emulated] for name in pair))

    def test_goals_are_of_what_was_measured(self):
        figures = {}
        report.goals([{"name": "kernel speed", "figures": {
            "decode, least share of copying": 0.9, "memory-bound kernels, least share of copying": 0.7,
            "attention as a share of cuDNN's rate": {"attention fwd x": {"share": 0.71},
                                                     "attention bwd x": {"cudnn": "refused"}}}},
                      {"name": "training speed and memory", "figures": {
                          "8B": {"goal": ("tokens/s", 100), "tokens_per_second": 99.0},
                          "memory": {"goal": ("GiB", 7.0), "allocated_bytes": 7 << 30},
                          "cut": {"failed": "it crashed"}}}], figures)
        met = {name: entry["met"] for name, entry in figures.items()}
        self.assertEqual(met, {"decoding, of copy bandwidth": "yes",
                               "memory-bound kernels, of copy bandwidth": "NO",
                               "attention fwd x, of cuDNN's rate": "yes", "8B, tokens/s": "NO",
                               "memory, GiB": "yes"})


class AdviceTest(unittest.TestCase):
    """A results file that is read cold says what is wrong and what to do next."""

    def steps(self, *entries):
        return "\n".join(report.steps([{"name": name, "state": state, "seconds": 1, "why": why, "figures": figures}
                                       for name, state, why, figures in entries]))

    def test_nothing_wrong(self):
        self.assertIn("put this file into docs/results", self.steps(("machine", "ok", "", {"name": "x"})))
        self.assertIn("no GPU was there", self.steps(("machine", "ok", "", {"device": "emulated on x86_64"})))

    def test_a_wrong_case_comes_with_its_command_and_source(self):
        said = self.steps(("kernel parity fp16", "FAILED", "…", {
            "passed": 340, "failed": 2, "bad": ["rmsnorm m=5 dim=192: FAILED y: 3.2 of tolerance",
                                                "rmsnorm m=3 dim=7: nothing came back; said nothing for 30 s"]}))
        self.assertIn("wrong cases of rmsnorm: 2 (340 cases are right)", said)
        self.assertIn("`nibble-kernel-check --table=cuda --device 0 --fp16 'rmsnorm m=5 dim=192'`", said)
        self.assertIn("kernels/cuda/norm.cu", said)
        said = self.steps(("parity of wgmma attention", "FAILED", "…", {
            "bf16": {"passed": 1, "bad": ["attention_forward h=2: FAILED out: 9 of tolerance"]}}))
        self.assertIn("`NIBBLE_CUDA_ATTENTION=wgmma nibble-kernel-check --table=cuda --device 0 'attention_forward h=2'`",
                      said)
        self.assertIn("attention_hopper_forward.cu", said)
        of_add = {"passed": 1, "bad": ["add count=1: FAILED out: 9 of tolerance"]}
        said = self.steps(("kernel parity bf16", "FAILED", "…", of_add), ("kernel parity fp16", "FAILED", "…", of_add),
                          ("kernel parity of the CPU", "FAILED", "…", of_add))
        self.assertIn("kernel parity fp16: also wrong here, as above: add (1); 1 cases are right", said)
        self.assertIn("`nibble-kernel-check --table=cpu 'add count=1'`; kernels/cpu/body", said)

    def test_what_changes_a_wrong_training_is_named(self):
        def of(**variants):
            base = {"as it was": {"distance": 0.4, "twice the same": True}}
            return self.steps(("training parity", "FAILED", "losses differ", {}),
                              ("what makes the difference", "FAILED", "see", {**base, **{
                                  name.replace("_", " "): row for name, row in variants.items()}}))
        self.assertIn("cuBLASLt", of(our_own_products={"distance": 0.001, "twice the same": True}))
        self.assertIn("recorded micro-batches", of(without_graphs={"distance": 0.002, "twice the same": True}))
        self.assertIn("nothing that was tried", of(without_graphs={"distance": 0.4, "twice the same": True}))
        self.assertIn("order between streams", self.steps(("what makes the difference", "FAILED", "see", {
            "as it was": {"distance": 0.001, "twice the same": False},
            "every launch waited for": {"distance": 0.001, "twice the same": True}})))

    def test_what_hung_is_not_taken_for_wrong(self):
        said = self.steps(("rerun and resume", "FAILED", "/a/nibble-engine train --spec x.json --device cuda:0 "
                           "did not end within 60 s\nstep 3/10", {}))
        self.assertIn("nibble-engine was ended, as it did not end within 60 s", said)

    def test_goals_that_were_missed_say_where_the_time_goes(self):
        said = self.steps(
            ("machine", "ok", "", {"clocks while it worked": {"seconds": 9, "sm, MHz": "345 to 600, median 400",
                                                             "slowed by": "hardware slowdown in 9 s"}}),
            ("kernel speed", "ok", "", {"below their goal": ["decode 8B 1x4096x4096: 61% of 4100 GB/s",
                                                            "adamw8 44040192: 70% of 4100 GB/s"]}),
            ("training speed and memory", "ok", "", {
                "8B": {"goal": ["tokens/s", 10800], "tokens_per_second": 9000.0},
                "8B, op by op": {"ops": training.time_of_ops({"linear_group_forward": {"calls": 64, "us": 900000},
                                                              "add": {"calls": 64, "us": 100000}})},
                "8B on 15 GB": {"skipped": "no time was left"}}),
            ("goals", "ok", "", {"8B, tokens/s": {"wanted": "at least 10,800", "measured": 9000.0, "met": "NO"},
                                 "attention bwd x, of cuDNN's rate": {"wanted": "", "measured": 0.5, "met": "NO"}}),
            ("PyTorch beside us", "skipped", "no time was left", {}))
        for what in ("decode 8B 1x4096x4096: 61%", "kernels/cuda/decode.cu", "kernels/cuda/optimizer.cu", "8B, tokens/s",
                     "linear_group_forward 90.0% 64x 14.062 ms", "wgmma", "hardware slowdown in 9 s",
                     "not run for want of time: PyTorch beside us, 8B on 15 GB (a shape)"):
            self.assertIn(what, said)

    def test_what_could_not_be_recorded_is_told(self):
        small = {"tokens_per_second": 9e4, "planned_recording_bytes": 50 << 20}
        said = self.steps(("training speed and memory", "ok", "", {
            "0.6B": {**small, "recording_bytes": 0}, "1.7B": {**small, "recording_bytes": 30 << 20},
            "0.6B, op by op": {**small, "recording_bytes": 0, "ops": {}},
            "8B": {"planned_recording_bytes": 0, "recording_bytes": 0}, "of an older run": {"tokens_per_second": 9e4}}))
        self.assertIn("not recorded: 0.6B: ", said)

    def test_every_section_has_its_word(self):
        for name, *_ in gpu.SECTIONS:
            said = self.steps((name, "FAILED", "why", {}))
            self.assertNotIn("nothing went wrong", said)
            self.assertNotIn("advice failed", said)

    def test_what_slows_the_device_is_told(self):
        run = Run(options())
        run.clocks = SCRATCH / "clocks.csv"
        run.clocks.write_text("1980, 3201, 690.5, 60, 99, 0x0000000000000004\n1500, 3201, 700.1, 71, 100, 0x4\n"
                              "345, 3201, 90, 40, 0, 0x1\n1980, 3201, [N/A], 60, 99, 0x4\n19")
        figures = {}
        machine.clocks(run, figures)
        self.assertEqual(figures["clocks while it worked"], {
            "seconds": 2, "sm, MHz": "1500 to 1980, median 1980", "memory, MHz": "3201", "most power, W": 700.1,
            "hottest, C": 71.0, "slowed by": "the power limit in 2 s"})


class ScriptTest(unittest.TestCase):
    def setUp(self):
        self.folder = SCRATCH / self.id().rpartition(".")[2]
        subprocess.run(["rm", "-rf", self.folder], check=True)
        self.path, self.bundle = self.folder / "path", self.folder / "bundle"
        self.path.mkdir(parents=True)
        self.bundle.mkdir()
        self.out = self.folder / "results.md"

    def play(self, folder, name, *lines):
        script = folder / name
        script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        script.chmod(0o755)

    def a_gpu(self, capability="9.0"):
        self.play(self.path, "nvidia-smi", f'case "$*" in -L) echo "GPU 0: played";; '
                  f'*) echo "played, 580, 143771 MiB, {capability}, 1980 MHz, 700 W, GPU-1";; esac')
        self.play(self.path, "nvcc", "echo release 13.0")
        self.play(self.path, "compute-sanitizer", "shift 4", '"$@"', 'echo "========= ERROR SUMMARY: 0 errors"')
        self.play(self.bundle, "nibble-kernel-check", *GOOD_CHECK)
        # What cmake "builds" is put there beforehand.
        self.play(self.path, "cmake", 'case "$1" in -S) mkdir -p "$4/bin";; --build) '
                  f'cp {self.bundle}/nibble-kernel-check "$2/bin/";; esac')

    def script(self, *words):
        environment = {**os.environ, "PATH": f"{self.path.resolve()}:{os.environ['PATH']}"}
        return subprocess.Popen([sys.executable, HERE / "run.py", "--bundle", self.bundle.resolve(), "--out",
                                 self.out.resolve(), *words], env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def test_without_a_gpu_it_says_so_and_claims_nothing(self):
        self.play(self.path, "nvidia-smi", "exit 9")
        process = self.script()
        said = process.communicate(timeout=60)[0]
        self.assertEqual(process.returncode, 2)
        self.assertIn("there is no NVIDIA GPU here", said)
        self.assertFalse(self.out.exists())

    def test_an_engine_that_does_not_start_leaves_the_kernels_checks(self):
        self.a_gpu()
        self.play(self.bundle, "nibble-engine", "echo \"version 'GLIBC_2.99' not found\" >&2; exit 1")
        process = self.script()
        said = process.communicate(timeout=100)[0]
        self.assertEqual(process.returncode, 1, said)
        of = figures_of(self.out)
        self.assertEqual(of["engine"]["state"], "FAILED")
        self.assertIn("GLIBC_2.99", of["engine"]["why"])
        for name in ("model parity", "training parity", "rerun and resume", "training speed and memory",
                     "jobs beside each other", "an 8B model on 15 GB", "fp16 training"):
            self.assertEqual(of[name]["state"], "skipped", name)
            self.assertIn("did not start", of[name]["why"])
            self.assertEqual(of[name]["figures"], {})
        for name in ("kernel parity bf16", "kernel parity fp16", "kernel parity of the CPU",
                     "compute-sanitizer", "kernels built from source"):
            self.assertEqual(of[name]["state"], "ok", name)
        self.assertGreaterEqual(of["kernel parity bf16"]["figures"]["passed"], 1)
        self.assertEqual(of["goals"]["figures"], {})
        self.assertEqual(of["what broke"]["state"], "skipped")
        self.assertLess(said.index("kernel parity bf16"), said.index("kernels built from source"))

    def test_a_run_that_is_told_to_end_ends_what_it_started(self):
        self.a_gpu()
        self.play(self.bundle, "nibble-kernel-check", 'case "$*" in *--skip*) exec sleep 300;; esac', *GOOD_CHECK)
        process = self.script("--only", "machine,kernel parity bf16")
        for _ in range(600):
            if self.out.exists() and "kernel parity bf16" in figures_of(self.out):
                break
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 143)
        self.assertEqual(figures_of(self.out)["kernel parity bf16"]["state"], "cut off")

    def test_a_case_that_ends_the_check_costs_itself_alone(self):
        self.a_gpu()
        self.play(self.bundle, "nibble-kernel-check", 'case "$*" in *"--skip 0"*)',
                  "echo \"cuda sm_90 threads=2 'a' : ok 0.100 of tolerance\"",
                  "printf \"cuda sm_90 threads=2 'b' : \"; kill -SEGV $$;; esac", *GOOD_CHECK)
        process = self.script("--only", "machine,kernel parity bf16,what broke")
        said = process.communicate(timeout=100)[0]
        self.assertEqual(process.returncode, 1, said)
        of = figures_of(self.out)
        figures = of["kernel parity bf16"]["figures"]
        self.assertEqual(figures["passed"], 2 * figures["failed"])
        self.assertIn("b: nothing came back", figures["bad"][0])
        self.assertIn("b", of["what broke"]["figures"])

    def test_a_second_run_takes_up_the_first(self):
        self.a_gpu()
        only = ["--only", "machine,kernel parity bf16,kernel parity fp16"]
        self.script(*only[:1], "machine,kernel parity bf16").communicate(timeout=100)
        first = self.out
        self.out = self.folder / "second.md"
        self.play(self.bundle, "nibble-kernel-check", 'case "$*" in *--fp16*|*sum_squares) ;; *) exit 1;; esac',
                  *GOOD_CHECK)
        process = self.script("--after", first.resolve(), *only)
        said = process.communicate(timeout=100)[0]
        self.assertEqual(process.returncode, 0, said)
        of = figures_of(self.out)
        self.assertEqual([of[name]["state"] for name in ("kernel parity bf16", "kernel parity fp16")], ["ok", "ok"])

    def test_a_folder_that_is_not_there_costs_no_results(self):
        self.a_gpu()
        self.out = self.folder / "missing" / f"{self.id()}.md"
        process = self.script("--only", "machine")
        said = process.communicate(timeout=100)[0]
        self.assertEqual(process.returncode, 0, said)
        written = pathlib.Path(re.search(r"^Results in (.*?);", said, re.M)[1])
        self.assertEqual(figures_of(written)["machine"]["state"], "ok")
        written.unlink()

    def test_another_gpu_gets_kernels_of_its_own(self):
        self.a_gpu("8.9")
        process = self.script("--only", "machine,kernels built from source,kernel parity bf16")
        said = process.communicate(timeout=100)[0]
        self.assertEqual(process.returncode, 0, said)
        self.assertLess(said.index("kernels built from source"), said.index("kernel parity bf16"))
        self.assertEqual(figures_of(self.out)["kernel parity bf16"]["state"], "ok")

    def test_checks_that_a_driver_is_too_old_for_are_built(self):
        self.a_gpu()
        self.play(self.bundle, "nibble-kernel-check", 'case "$*:$0" in *table=cuda*bundle/*) '
                  'echo "the NVIDIA driver is older than this build\'s CUDA runtime wants" >&2; exit 2;; esac',
                  *GOOD_CHECK)
        process = self.script("--only", "machine,kernels built from source,kernel parity bf16")
        said = process.communicate(timeout=100)[0]
        self.assertEqual(process.returncode, 0, said)
        self.assertIn("the NVIDIA driver is older", said)
        self.assertLess(said.index("kernels built from source"), said.index("kernel parity bf16"))
        self.assertEqual(figures_of(self.out)["kernel parity bf16"]["state"], "ok")

    def test_a_run_that_is_cut_off_keeps_what_it_had(self):
        self.a_gpu()
        self.play(self.bundle, "nibble-engine", "exec sleep 300")
        process = self.script()
        for _ in range(300):
            if self.out.exists() and "engine" in figures_of(self.out):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        of = figures_of(self.out)
        self.assertEqual(of["machine"]["state"], "ok")
        self.assertEqual(of["machine"]["figures"]["name"], "played")
        self.assertEqual(of["engine"]["state"], "cut off")


if __name__ == "__main__":
    SCRATCH.mkdir(parents=True, exist_ok=True)
    unittest.main(verbosity=1)
