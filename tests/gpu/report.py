"""The results file of ./dev gpu: Markdown for people, and every figure as JSON below."""

import json
import math

import advice
import shapes


def short(value):
    """A figure in a table's cell."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return "; ".join(f"{key} {short(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(short(item) for item in value[:10]) + (" …" if len(value) > 10 else "")
    return str(value).replace("|", "/").replace("\n", " ")


def steps(sections):
    """advice.py's; its own fault must not cost the results."""
    try:
        return [short(line) for line in advice.next_steps(sections)]
    except Exception as why:
        return [f"the script's advice failed: {type(why).__name__}: {why}"]


def text(sections, emulated, date, seconds):
    """The whole file."""
    title = "EMULATED dry run: no figure here is a GPU's" if emulated else "GPU results"
    lines = [f"# {title}, {date}", "",
             f"Made by `./dev gpu{' --emulated' if emulated else ''}` in {seconds:.0f} s. "
             "Shares are of limits measured in the same run.", "",
             "| section | state | seconds | |", "|---|---|---:|---|"]
    for entry in sections:
        lines.append(f"| {entry['name']} | {entry['state']} | {entry['seconds']} | "
                     f"{short(entry['why'])[:300]} |")
    lines += ["", "## What to do next", "", *(f"- {line}" for line in steps(sections))]
    for entry in sections:
        if not entry["figures"]:
            continue
        lines += ["", f"## {entry['name']}", "", "| | |", "|---|---|"]
        for key, value in entry["figures"].items():
            if key == "lines":
                continue
            lines.append(f"| {key} | {short(value)} |")
        if "lines" in entry["figures"]:
            lines += ["", "```", *entry["figures"]["lines"], "```"]
    lines += ["", "## Every figure", "", "```json", json.dumps(sections, indent=1), "```", ""]
    return "\n".join(lines)


def brief(sections, most=10_000):
    """For the screen: what went wrong, then the figures, as far as they go."""
    wrong = [f"{entry['name']}: {entry['state']}: {entry['why'][:1200]}" for entry in sections
             if entry["state"] not in ("ok", "skipped")]
    lines = [f"{entry['name']}, {key}: {short(value)}"[:400] for entry in reversed(sections)
             for key, value in entry["figures"].items() if key not in ("lines", "json")]
    following = [f"next: {line}" for line in steps(sections)]
    return "\n".join(wrong + following + lines)[:most]


def goals(sections, figures):
    """Each goal that has a figure: wanted, measured, met. What was not measured is not listed."""
    of = {entry["name"]: entry["figures"] for entry in sections}

    def note(name, measured, wanted, at_least=True):
        if isinstance(measured, (int, float)) and math.isfinite(measured):
            met = measured >= wanted if at_least else measured <= wanted
            figures[name] = {"wanted": ("at least " if at_least else "at most ") + short(wanted),
                             "measured": measured, "met": "yes" if met else "NO"}

    for name, row in of.get("model parity", {}).items():
        note(f"logits, {name}", row["logits_distance"], 0.02, False)
        note(f"gradients, {name}", row["gradients_distance"], 0.02, False)
    note("ten-step loss beside the CPU", of.get("training parity", {}).get("loss_distance"), 0.01, False)
    speed = of.get("kernel speed", {})
    note("decoding, of copy bandwidth", speed.get("decode, least share of copying"), shapes.DECODE_GOAL)
    note("memory-bound kernels, of copy bandwidth",
         speed.get("memory-bound kernels, least share of copying"), shapes.MEMORY_GOAL)
    for name, entry in speed.get("attention as a share of cuDNN's rate", {}).items():
        note(f"{name}, of cuDNN's rate", entry.get("share"), 0.70)
    steps = of.get("training speed and memory", {})
    for name, row in steps.items():
        # An earlier run's file has lists for tuples.
        if not isinstance(row, dict) or not isinstance(row.get("goal"), (tuple, list)):
            continue
        unit, wanted = row["goal"]
        if unit == "tokens/s":
            note(f"{name}, tokens/s", row["tokens_per_second"], wanted)
        else:
            note(f"{name}, GiB", row["allocated_bytes"] / 2**30, wanted, False)
    nf4, bf16, wanted = shapes.NF4_AND_BF16
    if all("tokens_per_second" in steps.get(name, {}) for name in (nf4, bf16)):
        note("NF4, of our own bf16 LoRA's speed",
             steps[nf4]["tokens_per_second"] / steps[bf16]["tokens_per_second"], wanted)
