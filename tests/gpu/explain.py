"""The sections of ./dev gpu that run only when something was wrong: so that one run says enough to mend it."""

import shutil

from cases import first_report
from runner import Failure, Skip
import shapes
import training


def what_broke(run, figures):
    """What ended with a fault of the device, once more under compute-sanitizer: kernel, thread and address."""
    if not run.suspects:
        raise Skip("nothing ended with a fault of the device")
    if not shutil.which("compute-sanitizer"):
        raise Skip("compute-sanitizer is not installed here; of: " + "; ".join(run.suspects))
    for name, words in list(run.suspects.items())[:6]:
        before = words[:2] if words[0] == "env" else []
        try:
            text = run.command([*before, "compute-sanitizer", "--tool", "memcheck", "--print-limit", "2",
                                *words[len(before):]], 45, check=False)
        except Failure as why:
            text = why.text
        except Skip:
            break
        figures[name] = first_report(text)
    raise Failure("; ".join(figures))


def what_makes_the_difference(run, figures):
    """Training that was not right, with one thing at a time otherwise, beside the CPU's losses; each twice."""
    if not (run.facts.get("training differs") or run.facts.get("rerun differs")):
        raise Skip("training was right, or did not run")
    wanted = run.facts.get("losses_cpu")
    for name, before, more, behind in shapes.VARIANTS:
        if run.left() < 5:
            break
        try:
            runs = [training.train(run, f"variant-{name}-{turn}".replace(" ", "-"), run.device + behind,
                                   shapes.PARITY_STEPS[run.emulated], more=more, before=before) for turn in (1, 2)]
        except Failure as why:
            figures[name] = {"failed": str(why)}
            continue
        losses = [row[1] for row in runs[0][0]]
        figures[name] = {"losses": losses, "twice the same": runs[0][1] == runs[1][1]}
        if wanted and len(wanted) == len(losses):
            figures[name]["distance"] = max(abs(a / b - 1) for a, b in zip(losses, wanted))
    raise Failure("training is not right; see what changes it")
