#!/usr/bin/env python3
"""Runs ctest in a build folder and counts what it ran, case by case.

Each GoogleTest binary leaves its cases as JSON under <build>/test-results; any other ctest entry
counts as one case (exit code 77 is a skip). With --second-try, for shared machines, a failed entry runs
once more, and one that passes then is named as unsteady. A build with a sanitizer runs under its options
(SANITIZERS, tests/suppressions). With --times, what ran is listed with its cases and seconds, and what the build has
and did not run. Closes with a line 'N passed, N failed, N skipped'.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree


SUPPRESSIONS = pathlib.Path(__file__).resolve().parent / "suppressions"
# Each as NAME=VALUE words of the sanitizer's own variable. What it finds ends the process that did it. A failed
# CHECK, or assertion of the standard library, is a finding too: an engine's end would look like any other.
SANITIZERS = {
    "address": {"ASAN_OPTIONS": "exitcode=99:strict_string_checks=1:handle_abort=1",
                "UBSAN_OPTIONS": "print_stacktrace=1"},
    "thread": {"TSAN_OPTIONS": f"exitcode=99:halt_on_error=1:suppressions={SUPPRESSIONS}/thread.txt"},
    "undefined": {"UBSAN_OPTIONS": "print_stacktrace=1"},
}


def set_up_sanitizer(build, reports):
    """The environment for the sanitizer that the build folder was configured with. Its reports go into files
    `reports`.PID, as the process may be a child of a child of a test and its end look like any other."""
    cache = pathlib.Path(build, "CMakeCache.txt").read_text()
    match = re.search(r"^NIBBLE_SANITIZE:\w+=(\w+)", cache, re.M)
    options = SANITIZERS.get(match.group(1), {}) if match else {}
    for name, value in options.items():
        os.environ[name] = f"{value}:log_path={reports}"
    if options:
        os.environ["NIBBLE_PATIENCE"] = "10"  # tests/integration/client.py


def gtest_cases(path):
    """(name, outcome, message) of every case in one GoogleTest JSON report."""
    report = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    for suite in report.get("testsuites", []):
        for case in suite.get("testsuite", []):
            name = f"{suite['name']}.{case['name']}"
            if case.get("failures"):
                yield name, "failed", case["failures"][0].get("failure", "")
            elif case.get("result") == "SKIPPED" or case.get("status") == "NOTRUN":
                message = (case.get("skipped") or [{}])[0].get("message", "")
                yield name, "skipped", message
            else:
                yield name, "passed", ""


def run_ctest(command):
    """Runs it, showing its output; the exit code, and the entries that failed at any try."""
    failed = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            match = re.search(r"Test +#\d+: (\S+) [.]*\*\*\*(?!Skipped)", line)
            if match:
                failed.add(match.group(1))
    return process.returncode, failed


def show_times(build, entries):
    """What ran, longest first, from (name, outcome, seconds, cases); then what ctest knows and did not run."""
    print("What ran, and for how long:")
    for name, outcome, seconds, cases in sorted(entries, key=lambda entry: -entry[2]):
        skipped = sum(case[1] == "skipped" for case in cases)
        print(f"{seconds:8.1f} s  {name:26} {len(cases) - skipped:4} cases"
              f"{f', {skipped} skipped' if skipped else ''}{'' if outcome == 'passed' else ': ' + outcome}")
    listed = subprocess.run(["ctest", "--test-dir", build, "-N"], stdout=subprocess.PIPE, text=True, check=True).stdout
    left_out = sorted(set(re.findall(r"Test +#\d+: (\S+)", listed)) - {entry[0] for entry in entries})
    print(f"Left out: {' '.join(left_out) or 'nothing'}")


def main():
    build, ctest_args = sys.argv[1], sys.argv[2:]
    times = "--times" in ctest_args
    ctest_args = [a for a in ctest_args if a != "--times"]
    if "--second-try" in ctest_args:
        ctest_args = [a for a in ctest_args if a != "--second-try"] + ["--repeat", "until-pass:2"]
    results = pathlib.Path(build, "test-results")
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    junit = (results / "ctest.xml").resolve()
    reports = (results / "sanitizer").resolve()
    set_up_sanitizer(build, reports)
    began = time.monotonic()
    code, failed_once = run_ctest(["ctest", "--test-dir", build, "--output-on-failure", "-j2",
                                   "--output-junit", str(junit), *ctest_args])
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    notes = {"failed": [], "skipped": []}
    entries = []
    for entry in ElementTree.parse(junit).getroot().iter("testcase"):
        name, status = entry.get("name"), entry.get("status")
        report = results / f"{name}.json"
        cases = list(gtest_cases(report)) if report.exists() else []
        outcome = {"run": "passed", "notrun": "skipped", "disabled": "skipped"}.get(status, "failed")
        if outcome == "failed" and not any(case[1] == "failed" for case in cases):
            cases.append((name, "failed", "the program ended badly or timed out"))
        if not cases:
            cases = [(name, outcome, "")]
        entries.append((name, outcome, float(entry.get("time") or 0), cases))
        if name in failed_once and outcome == "passed":
            print(f"unsteady: {name} failed first and passed on its second try")
        for case, result, message in cases:
            counts[result] += 1
            if result in notes:
                notes[result].append((case, message.strip().split("\n")[-1][:160]))
    for kind in ("skipped", "failed"):
        for case, message in notes[kind]:
            print(f"{kind}: {case}{': ' + message if message else ''}")
    found = sorted(reports.parent.glob("sanitizer.*"))
    for report in found:
        print(f"---- {report}\n" + "\n".join(report.read_text(errors="replace").splitlines()[:40]))
    if found:
        counts["failed"] += 1
        print(f"failed: {len(found)} reports of the sanitizer")
    if times:
        show_times(build, entries)
    print(f"Tests took {time.monotonic() - began:.0f} s.")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    bad = counts["failed"] or counts["passed"] == 0 or code not in (0, 8)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
