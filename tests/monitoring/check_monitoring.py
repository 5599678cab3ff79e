#!/usr/bin/env python3
"""Checks deploy/monitoring without a server and without Grafana.

The dashboards are what make_dashboards.py makes; every panel has title, description and unit; every query
carries the job and instance variables, uses counters only over a range, names only metrics that
server/metrics_table.h lists or a rule records, and parses; the table lists what code exports; rules pass promtool's check and their tests.
Where promtool is missing the last two are skipped, and said so.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import metric_table
import promql

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "rules" / "nibble.rules.yml"
RULE_TESTS = MONITORING / "rules" / "nibble.rules.test.yml"


def load_yaml(path):
    import yaml
    return yaml.safe_load(path.read_text())


def dashboards():
    return [json.loads(path.read_text())
            for path in sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))]


def panels(board):
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def dashboard_expressions():
    """(where, expression) of every query of every dashboard."""
    for board in dashboards():
        for panel in panels(board):
            for target in panel["targets"]:
                yield f"{board['uid']}/{panel['title']}/{target['refId']}", target["expr"]
        for item in board["annotations"]["list"]:
            yield f"{board['uid']}/annotation {item['name']}", item["expr"]


def rules():
    for group in load_yaml(RULES)["groups"]:
        yield from group["rules"]


def expected_empty():
    """[(pattern, why)] of expressions that may return no data."""
    return [(entry["where"], entry["why"]) for entry in load_yaml(MONITORING / "expect_empty.yaml")]


def matches(where, patterns):
    return any(re.fullmatch(pattern, where) for pattern, _ in patterns)


class Check:
    def __init__(self):
        self.findings = []
        self.skipped = []

    def expect(self, condition, text):
        if not condition:
            self.findings.append(text)


def check_boards(check):
    stale = subprocess.run([sys.executable, str(MONITORING / "make_dashboards.py"), "--check"],
                           capture_output=True, text=True, check=False)
    check.expect(stale.returncode == 0, (stale.stdout + stale.stderr).strip())
    uids = [board["uid"] for board in dashboards()]
    check.expect(len(uids) == 4 and len(set(uids)) == 4, f"four dashboards with own uids, not {uids}")
    for board in dashboards():
        uid = board["uid"]
        variables = {item["name"]: item for item in board["templating"]["list"]}
        for name in ("datasource", "job", "instance"):
            check.expect(name in variables, f"{uid} has no variable {name}")
        for item in variables.values():
            check.expect(item["type"] == "datasource" or item["refresh"] == 2,
                         f"{uid}: variable {item['name']} is not reloaded when the time changes")
        check.expect(board["editable"] is False, f"{uid} is editable")
        ids = [panel["id"] for panel in board["panels"]]
        check.expect(len(ids) == len(set(ids)), f"{uid}: panel ids repeat")
        for panel in panels(board):
            where = f"{uid}/{panel['title']}"
            unit = panel["fieldConfig"]["defaults"].get("unit")
            for name, value in (("title", panel["title"]), ("description", panel["description"]),
                                ("unit", unit), ("queries", panel["targets"])):
                check.expect(value, f"{where}: no {name}")
            spot = panel["gridPos"]
            check.expect(spot["x"] + spot["w"] <= 24, f"{where} is wider than the page")


def check_expressions(check):
    known, counters = metric_table.names(), metric_table.counters()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    foreign = re.compile(r"DCGM_FI_[A-Z_]+|up")
    checked = [(where, expression, True) for where, expression in dashboard_expressions()]
    checked += [(rule.get("record") or rule["alert"], rule["expr"], False) for rule in rules()]
    for where, expression, on_board in checked:
        for name in promql.metrics_of(promql.substitute(expression)):
            check.expect(name in known or name in recorded or foreign.fullmatch(name),
                         f"{where}: no metric is called {name}")
        check.expect(not promql.bare_counters(expression, counters),
                     f"{where}: counter outside a range: {promql.bare_counters(expression, counters)}")
        if on_board:
            check.expect("[" not in expression or re.search(
                r"\[(\$__rate_interval|1d|5m|1m)\]", expression), f"{where}: a fixed range")
            own = [name for name in promql.metrics_of(promql.substitute(expression))
                   if not foreign.fullmatch(name)]
            check.expect(not own or promql.job_and_instance(expression, own),
                         f"{where}: a query without the job and instance variables")


def check_table(check):
    """The table lists what code exports, no more and no less."""
    code = "".join(path.read_text() for room in ("server", "worker") for path in (ROOT / room).glob("meter*"))
    code += "".join(path.read_text() for path in (ROOT / "worker").glob("metrics.cc"))
    exported = set(metric_table.NAME.findall(code))
    listed = set(metric_table.base_names())
    for name in sorted(listed - exported):
        check.expect(False, f"server/metrics_table.h lists {name}, which nobody exports")
    for name in sorted(exported - listed):
        check.expect(False, f"{name} is exported, but not in server/metrics_table.h")


def check_alerts(check):
    runbook = (ROOT / "docs" / "alerts.md")
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").strip().lower()).replace(" ", "-")
                for line in runbook.read_text().splitlines() if line.startswith("#")} \
        if runbook.exists() else set()
    uids = {board["uid"] for board in dashboards()}
    tests = load_yaml(RULE_TESTS)["tests"]
    fired, quiet = set(), set()
    for test in tests:
        for case in test.get("alert_rule_test", []):
            (fired if case.get("exp_alerts") else quiet).add(case["alertname"])
    for rule in rules():
        if "alert" not in rule:
            continue
        name, notes = rule["alert"], rule.get("annotations", {})
        for key in ("summary", "description", "runbook_url", "dashboard"):
            check.expect(notes.get(key), f"{name} has no {key}")
        check.expect(rule.get("labels", {}).get("severity") in ("critical", "warning", "info"),
                     f"{name} has no severity")
        check.expect(notes.get("dashboard", "").split("/")[-1] in uids, f"{name}: unknown dashboard")
        if headings:
            anchor = notes.get("runbook_url", "").partition("#")[2]
            check.expect(anchor in headings, f"{name}: docs/alerts.md has no heading #{anchor}")
        check.expect(name in fired, f"{name}: no test in which it fires")
        check.expect(name in quiet, f"{name}: no test in which it stays quiet")


def check_with_promtool(check):
    if shutil.which("promtool") is None:
        check.skipped.append("promtool is not installed: expressions and rules were not parsed")
        return

    def promtool(*arguments):
        done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True,
                              check=False)
        check.expect(done.returncode == 0,
                     f"promtool {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}")

    promtool("check", "rules", RULES)
    promtool("test", "rules", RULE_TESTS)
    promtool("check", "config", "--syntax-only", MONITORING / "prometheus.yml")
    with tempfile.TemporaryDirectory() as directory:
        lines = ["groups:", "- name: dashboards", "  rules:"]
        for number, (where, expression) in enumerate(dashboard_expressions()):
            lines.append(f"  - record: dashboard:expression_{number}  # {where}")
            lines.append(f"    expr: {json.dumps(promql.substitute(expression))}")
        path = pathlib.Path(directory, "dashboards.rules.yml")
        path.write_text("\n".join(lines) + "\n")
        promtool("check", "rules", path)


def main():
    try:
        import yaml  # noqa: F401
    except ImportError:
        print("skipped: Python has no module yaml (python3-yaml)")
        return 77
    check = Check()
    check_boards(check)
    check_expressions(check)
    check_table(check)
    check_alerts(check)
    check_with_promtool(check)
    for finding in check.findings:
        print(finding)
    for sentence in check.skipped:
        print(f"skipped: {sentence}")
    print(f"monitoring: {len(list(dashboard_expressions()))} expressions, {len(list(rules()))} rules, "
          f"{len(check.findings)} findings")
    return 1 if check.findings else 0


if __name__ == "__main__":
    sys.exit(main())
