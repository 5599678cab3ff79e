#!/usr/bin/env python3
"""A real Prometheus scrapes a run with the rules of deploy/monitoring.

Checks: promtool finds no fault in what is exposed; the targets are up; every recording rule, alert and
dashboard expression evaluates and, outside expect_empty.yaml, returns data at some moment of the run; a
job's series are gone after it has ended and lingered. Exits 77 with a sentence where something needed is
missing.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import client
import foreign_client
import stack as stack_module

MONITORING = client.ROOT / "deploy" / "monitoring"
sys.path.insert(0, str(client.ROOT / "tests" / "monitoring"))


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Prometheus:
    """Debian's prometheus with our configuration, other targets and a scrape every second."""

    def __init__(self, root, targets):
        import yaml
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"].update(scrape_interval="1s", scrape_timeout="1s", evaluation_interval="1s")
        config["rule_files"] = [str(MONITORING / "rules" / "nibble.rules.yml")]
        config.pop("alerting", None)
        for scrape in config["scrape_configs"]:
            scrape["static_configs"] = [{"targets": targets.get(scrape["job_name"], [])}]
            for key in ("scrape_interval", "scrape_timeout", "file_sd_configs"):
                scrape.pop(key, None)
        path = root / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        self.address = f"127.0.0.1:{free_port()}"
        with open(root / "prometheus.log", "ab") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={root / 'tsdb'}",
                 f"--web.listen-address={self.address}", "--query.lookback-delta=10s"],
                stdout=log, stderr=log)
        stack_module.wait_for("prometheus", self.ready, process=self.process)

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=2):
                return True
        except OSError:
            return False

    def get(self, path, **parameters):
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression):
        return self.get("query", query=expression)["result"]

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


def check_exposition(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        text = reply.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert done.returncode == 0, f"promtool on http://{address}/metrics:\n{done.stderr.decode()}"
    return text.decode()


def expressions():
    """{where: expression} of all dashboards, variables filled in for scrapes every second."""
    import check_monitoring
    import promql
    found = {}
    for where, expression in check_monitoring.dashboard_expressions():
        found[where] = promql.substitute(expression, {"$__rate_interval": "6s", "$__interval": "6s"})
    return found


def run(stack, worker_http):
    import check_monitoring
    targets = {"nibble": [stack.http], "nibble-worker": [worker_http]}
    prometheus = Prometheus(stack.root, targets)
    try:
        # Prometheus takes some seconds to find its targets.
        stack_module.wait_for("the server's target", lambda: "1" in up(prometheus), timeout=30)
        api = stack.api()
        model = api.add_model(stack_module.base_directory())
        dataset = api.add_dataset(stack_module.rows(128))
        spec = stack_module.small_spec(api.pb, model, dataset, steps=60)
        waiting = expressions()
        total = len(waiting)
        seen_rules = set()
        jobs = [stack_module.submit(api, spec), stack_module.submit(api, spec)]
        # No worker yet: the queue has something to show.
        oldest = "nibble-overview/Oldest waiting job/A"
        stack_module.wait_for("a waiting job in Prometheus", lambda: prometheus.query(waiting[oldest]))
        stack.start_worker(flags=["--http", worker_http])
        finished, ended = False, None
        foreign_client.expect_error(lambda: api.get("jobs/none"), "NOT_FOUND", "JOB_NOT_FOUND")
        while not finished or time.monotonic() < ended + 3:
            for where in list(waiting):
                if prometheus.query(waiting[where]):
                    del waiting[where]
            for rule in recording_rules(prometheus):
                if prometheus.query(rule):
                    seen_rules.add(rule)
            if not finished and all(api.state(api.get(job.name)) in client.TERMINAL for job in jobs):
                finished, ended = True, time.monotonic()
            time.sleep(0.5)
        for job in jobs:
            assert api.state(api.get(job.name)) == "SUCCEEDED", api.get(job.name)
        check_exposition(stack.http)
        check_exposition(worker_http)
        assert up(prometheus) == ["1", "1"], f"targets are down: {prometheus.query('up')}"
        check_rules(prometheus)

        allowed = check_monitoring.expected_empty()
        silent = [where for where in waiting if not check_monitoring.matches(where, allowed)]
        silent += [rule for rule in recording_rules(prometheus)
                   if rule not in seen_rules and not check_monitoring.matches(rule, allowed)]
        assert not silent, "never returned data during the run:\n  " + "\n  ".join(
            f"{where}: {waiting.get(where, '')}" for where in silent)

        def gone():
            return not prometheus.query('{job_id=~".+", __name__=~"nibble_job_.+"}')

        stack_module.wait_for("the series of ended jobs to go", gone, timeout=60)
        history = prometheus.query('count_over_time(nibble_job_loss[10m])')
        assert history, "no history of a job's loss either"
        print(f"prometheus: {total - len(waiting)} of {total} dashboard expressions and "
              f"{len(seen_rules)} recording rules returned data, {len(allowed)} patterns may be empty; "
              "series gone after the jobs")
    finally:
        prometheus.stop()


def recording_rules(prometheus):
    return [rule["name"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]
            if rule["type"] == "recording"]


def up(prometheus):
    return [series["value"][1] for series in prometheus.query("up")]


def check_rules(prometheus):
    for group in prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}"
            if rule["type"] == "alerting":
                assert rule["state"] != "firing", f"{rule['name']} fires in a healthy run"


def missing():
    if client.missing():
        return client.missing()
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        import yaml  # noqa: F401
    except ImportError:
        return "Python has no module yaml (python3-yaml)"
    return None


def main():
    if missing():
        print(f"skipped: {missing()}")
        return 77
    binaries = stack_module.bin_dir()
    if binaries is None:
        return 77
    with stack_module.Stack(binaries) as stack:
        worker_http = f"127.0.0.1:{free_port()}"
        stack.start_server()
        run(stack, worker_http)
    return 0


if __name__ == "__main__":
    sys.exit(main())
