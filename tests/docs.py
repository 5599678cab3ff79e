#!/usr/bin/env python3
"""Is what the manual names there? Checks every page (*.md) against the repository, without a build.

Links lead to files and headings that exist; paths, metrics, alerts, commands and flags that are named exist; every
reason of base/error.cc has its row in docs/troubleshooting.md, every key that is honoured its in docs/recipes.md. Whether sentences are true only a reader can say.
Dated results may name what is gone, so there only links are checked. Prints one line per finding; exits 1 when there
is any.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = "base|client|cmake|demo|deploy|docs|engine|kernels|proto|server|tests|worker"
# Flags of others' programs that the manual shows.
FOREIGN_FLAGS = {
    "--enable-lora", "--lora-modules", "--max-lora-rank", "--outfile", "--lora", "--system", "--cpus", "--now",
    "--storage.tsdb.path", "--config.file"}
# Names that begin like a metric or an alert and are none.
NO_METRIC = {"nibble_job", "nibble_cuda_kernels"}
NO_ALERT = {"NibbleServer"}
# "nibble is up" is what it says.
NO_COMMAND = {"is"}
# Written when something runs.
MADE = ("demo/.run", "kernels/cuda/decode.o", "kernels/cuda/registers.txt")


def tracked():
    listing = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                             capture_output=True, text=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and "build" not in path.parts[len(ROOT.parts)]]


def anchors(text):
    """What GitHub makes of the headings."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.lower()))
        found.add(plain.strip().replace(" ", "-"))
    return found


def check_links(page, text, findings):
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            findings.append(f"{page.relative_to(ROOT)}: no file {target}")
        elif ROOT / "docs" in page.parents and ROOT / "docs" not in file.parents:
            findings.append(f"{page.relative_to(ROOT)}: {target} is not installed with the manual; name the path")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            findings.append(f"{page.relative_to(ROOT)}: no heading {target}")


def code_of(text):
    """Indented and fenced blocks, and what stands in backticks: where commands and flags are."""
    block = re.compile(r"```.*?```|^    [^\n]*$", re.S | re.M)
    return "\n".join(block.findall(text) + re.findall(r"`([^`]+)`", block.sub("", text)))


def check_names(page, text, known, findings):
    where = str(page.relative_to(ROOT))
    code = code_of(text)
    for path in set(re.findall(rf"(?<![\w/.-])((?:{ROOMS})/[\w.-]+(?:/[\w.-]+)*)", code)):
        path = path.rstrip(".")
        if not (ROOT / path).exists() and not path.startswith(MADE) and not list(ROOT.glob(path + ".*")):
            findings.append(f"{where}: no path {path}")
    for metric in set(re.findall(r"\bnibble_[a-z_]+[a-z]\b", code)) - known["metrics"] - NO_METRIC:
        findings.append(f"{where}: no metric {metric}")
    for alert in set(re.findall(r"\bNibble[A-Z]\w+", text)) - known["alerts"] - NO_ALERT:
        findings.append(f"{where}: no alert {alert}")
    for command in set(re.findall(r"(?:^|[\s(;|])nibble ([a-z]+)\b", code, re.M)) - known["commands"] - NO_COMMAND:
        findings.append(f"{where}: no command nibble {command}")
    for command in set(re.findall(r"\./dev ([a-z]+)", code)) - known["dev"]:
        findings.append(f"{where}: no command ./dev {command}")
    for flag in set(re.findall(r"(?<![\w-])(--[a-z][a-z.-]*[a-z])", code)) - known["flags"] - FOREIGN_FLAGS:
        findings.append(f"{where}: no flag {flag}")


def knowledge(files):
    sources = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files
                        if path.suffix in (".cc", ".h", ".py", ".sh", ".service", ".yaml") or path.name == "dev"
                        if path.name not in ("docs.py",))
    spelling = "\n".join(path.read_text() for path in sorted((ROOT / "client").glob("command_line*.cc")))
    rules = (ROOT / "deploy/monitoring/rules/nibble.rules.yml").read_text()
    table = (ROOT / "server/metrics_table.h").read_text()
    spelled = re.findall(r'(?:Add|one|verb|add_subcommand|AddNamed)\((?:&?\w+, )?"([a-z]+)"', spelling)
    return {
        "alerts": set(re.findall(r"alert: (\w+)", rules)),
        "metrics": set(re.findall(r'\{"(\w+)"', table)),
        "commands": set(spelled) | set(re.findall(r'alias\("(\w+)"\)', spelling)) | {"help"},
        "dev": set(re.findall(r"^cmd_([a-z-]+)\(\)", (ROOT / "dev").read_text(), re.M)),
        # --name, flag("name"), {"name", ...}: however a program spells its flags.
        "flags": set(re.findall(r"--[a-z][a-z-]*[a-z]", sources))
                 | {"--" + name for name in re.findall(r'"([a-z][a-z-]*[a-z])"', sources)},
    }


def check_reasons(findings):
    reasons = set(re.findall(r'\{Reason::k\w+, "(\w+)"', (ROOT / "base/error.cc").read_text()))
    page = (ROOT / "docs/troubleshooting.md").read_text()
    rows = re.findall(r"^\| ([A-Z_, ]+) \|", page[page.index("## Every reason"):], re.M)
    told = [name for row in rows for name in row.split(", ")]
    for name in sorted(reasons - set(told)):
        findings.append(f"docs/troubleshooting.md: no row for {name}")
    for name in sorted(set(told) - reasons):
        findings.append(f"docs/troubleshooting.md: {name} is no reason of base/error.cc")
    for name in sorted({name for name in told if told.count(name) > 1}):
        findings.append(f"docs/troubleshooting.md: {name} has two rows")


def check_recipe_keys(findings):
    """Every key that is honoured, with its other names, stands in docs/recipes.md."""
    table = (ROOT / "client/recipe_keys.cc").read_text()
    page = (ROOT / "docs/recipes.md").read_text()
    for key, others, action in re.findall(r'^    \{"([\w*]+)",\s+"([^"]*)",\s+(k\w+),', table, re.M):
        if action in ("kIgnored", "kRefused") or key in ("plugins", "nibble"):
            continue
        for name in [key, *others.split()]:
            if f"`{name}`" not in page and f"`{name}:" not in page:
                findings.append(f"docs/recipes.md: no word of {name}")


def main():
    files = tracked()
    pages = [path for path in files if path.suffix == ".md"]
    known = knowledge(files)
    findings = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        check_links(page, text, findings)
        if page.name != "CHANGELOG.md" and "docs/results/" not in page.as_posix():
            check_names(page, text, known, findings)
    check_reasons(findings)
    check_recipe_keys(findings)
    for finding in findings:
        print(finding)
    print(f"docs: {len(pages)} pages, {len(findings)} findings")
    return 1 if findings or len(pages) < 10 else 0


if __name__ == "__main__":
    sys.exit(main())
