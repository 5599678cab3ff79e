"""The results file of ./dev gpu: Markdown for people, and every figure as JSON below."""

import json


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
