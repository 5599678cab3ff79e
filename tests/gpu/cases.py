"""The sections of ./dev gpu that run nibble-kernel-check: every kernel beside the reference, and compute-sanitizer.

A case that faults, stops or hangs costs itself alone: the next process goes on behind it.
"""

import concurrent.futures
import os
import re
import shutil

from kernels import has_wgmma, tool
from runner import MOST_ENDS, QUIET_S, Failure, Skip, last_lines
import shapes

# While one waits for memory of the device the other multiplies.
PARTS = max(1, min(2, (os.cpu_count() or 1) // 2))


class Wrong(Failure):
    """Cases are wrong; `counts` is what there is of the others."""

    def __init__(self, why, counts):
        super().__init__(why)
        self.counts = counts


def run_cases(run, words, filters, part):
    """nibble-kernel-check; where a case ends or stops it, it goes on behind that one. What it found, for merge."""
    found = {"passed": 0, "failed": 0, "worst": [], "bad": [], "ended": []}
    skip = 0
    while True:
        ended = ""
        try:
            text = run.command([*words, "--part", part, "--skip", skip, *filters], 240, check=False, quiet_s=QUIET_S)
        except Failure as why:
            text, ended = why.text, str(why).split("\n", maxsplit=1)[0]
        cases = re.findall(r"^\S+ .*threads=\d+ '(.*)' :(.*)$", text, re.M)
        found["passed"] += sum(" ok " in outcome for _, outcome in cases)
        found["worst"] += [(float(share), name) for name, outcome in cases
                           for share in re.findall(r" ([0-9.]+) of tolerance", outcome)]
        found["bad"] += [f"{name}:{outcome}" for name, outcome in cases if "FAILED" in outcome]
        if re.search(r"^\d+ passed, \d+ failed", text, re.M):
            break
        if not cases:
            raise Failure("nibble-kernel-check did not begin:\n" + (ended or text[-800:]))
        name, outcome = cases[-1]
        found["ended"].append(f"{name}: {ended or last_lines(outcome or text, 3)}")
        if "FAILED" not in outcome:
            found["bad"].append(f"{name}: nothing came back; {found['ended'][-1]}")
        run.suspect(name, [*words, name])
        skip += len(cases)
        if len(found["ended"]) >= MOST_ENDS or run.left() < 5:
            found["ended"].append(f"what is behind the first {skip} cases of part {part} was not run")
            break
    found["failed"] = len(found["bad"])
    return found


def checked(run, words, filters=()):
    """nibble-kernel-check's cases, some processes beside each other; the counts. Failure when a case is wrong."""
    parts = 1 if run.emulated else PARTS
    with concurrent.futures.ThreadPoolExecutor(parts) as pool:
        futures = [pool.submit(run_cases, run, words, filters, f"{i}/{parts}") for i in range(parts)]
    found, failures = [], []
    for future in futures:
        try:
            found.append(future.result())
        except (Failure, Skip) as why:
            failures.append(str(why))
    every = {key: sum((part[key] for part in found), []) for key in ("worst", "bad", "ended")}
    counts = {key: sum(part[key] for part in found) for key in ("passed", "failed")}
    worst = sorted(every["worst"], reverse=True)
    counts["worst_share_of_tolerance"] = worst[0][0] if worst else 0
    counts["nearest to it"] = [f"{name} {share}" for share, name in worst[:3]]
    counts.update({key: every[key] for key in ("bad", "ended") if every[key]})
    if failures or every["bad"] or every["ended"]:
        raise Wrong("\n".join(failures + every["bad"][:12] + every["ended"]), counts)
    if not counts["passed"]:
        raise Failure("no case ran")
    return counts


def parity(fp16=False, table=None, before=(), filters=()):
    """Every kernel beside the reference."""
    def section(run, figures):
        words = [*before, tool(run, "nibble-kernel-check"), f"--table={table or run.table}"]
        if (table or run.table) == "cuda":
            words += ["--device", run.options.device]
        words += ["--fp16"] if fp16 else []
        try:
            figures.update(checked(run, words, [shapes.EMULATED_CASES] if run.emulated else filters))
        except Wrong as wrong:
            figures.update(wrong.counts)
            raise
    return section


def wgmma_parity(run, figures):
    """Hopper's attention beside the reference."""
    if not has_wgmma(run):
        raise Skip("only compute capability 9.0 has it")
    wrong = []
    for name, fp16 in (("bf16", False), ("fp16", True)):
        words = [*shapes.WGMMA, tool(run, "nibble-kernel-check"), f"--table={run.table}"]
        words += [] if run.emulated else ["--device", run.options.device]
        try:
            figures[name] = checked(run, words + (["--fp16"] if fp16 else []), [shapes.WGMMA_CASES[run.emulated]])
        except Wrong as why:
            figures[name] = why.counts
            wrong.append(f"{name}: {why}")
            # Then it is not timed, either: what hangs here would hang there, for as long as it may.
            run.facts["wgmma ends"] = run.facts.get("wgmma ends") or "ended" in why.counts
    if wrong:
        raise Failure("\n".join(wrong))


def sanitizer(run, figures):
    """compute-sanitizer on small cases."""
    if run.emulated:
        for case in shapes.SANITIZED_CASES:
            if not run.command([tool(run, "nibble-kernel-check"), "--list", case], 60).strip():
                raise Failure(f"no case is called '{case}'")
        raise Skip("there is nothing for compute-sanitizer to look at in an emulation")
    if not shutil.which("compute-sanitizer"):
        raise Skip("compute-sanitizer is not installed here")
    runs = [(kind, shapes.OWN_PRODUCTS, case) for kind in ("memcheck", "racecheck") for case in shapes.SANITIZED_CASES]
    if has_wgmma(run):
        runs.append(("memcheck", [*shapes.OWN_PRODUCTS, *shapes.WGMMA[1:]], shapes.SANITIZED_CASES[0]))
    runs.append(("synccheck", shapes.OWN_PRODUCTS, shapes.SANITIZED_CASES[0]))
    wrong = []
    for kind, before, case in runs:
        name = " ".join([kind, *before[1:], case])
        try:
            text = run.command([*before, "compute-sanitizer", "--tool", kind, "--error-exitcode", "9",
                                tool(run, "nibble-kernel-check"), "--table=cuda", "--device", run.options.device,
                                case], 60, check=False)
        except Failure as why:
            wrong.append(str(why))
            continue
        except Skip:
            figures["not run"] = f"{name} and what is behind it: no time was left"
            break
        if "Device not supported" in text or "Unable to" in text:
            raise Skip("compute-sanitizer does not work on this machine: " + last_lines(text, 4))
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", text)
        figures[name] = int(summary[-1]) if summary else "no summary"
        if summary != ["0"] or not re.search(r"[1-9]\d* passed, 0 failed", text):
            wrong.append(f"{name}:\n{first_report(text)}")
    if wrong:
        raise Failure("\n".join(wrong))


def first_report(text, lines=30):
    """What compute-sanitizer says first, or the end where it says nothing."""
    said = [line for line in text.splitlines() if line.startswith("=========")]
    return "\n".join(said[:lines]) or last_lines(text, lines)
