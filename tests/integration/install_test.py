#!/usr/bin/env python3
"""What is installed runs: the units name what is there, their commands start, and both halves find each other.

    install_test.py BUILD_DIR

Exits 77 with a sentence where something needed is missing.
"""

import configparser
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import client

ROOT = pathlib.Path(__file__).resolve().parents[2]


def unit_of(path):
    """The sections of a unit; of keys that are given twice the last counts."""
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str
    unit.read(path)
    return unit


def words_of(unit, folder, server="127.0.0.1:0"):
    """The command of a unit, its directories below `folder` and its ports free ones."""
    command = unit["Service"]["ExecStart"].replace("/var/lib", str(folder))
    command = command.replace("--server 127.0.0.1:7070", f"--server {server}")
    return re.sub(r"127\.0\.0\.1:707\d", "127.0.0.1:0", command).split()


def check_files(prefix):
    units = prefix / "lib" / "systemd" / "system"
    for path in [units / "nibble-server.service", units / "nibble-worker.service",
                 prefix / "share" / "nibble" / "nibble-worker-gpu.conf"]:
        text = path.read_text()
        for named in re.findall(r"(?:ExecStart=|file:)(/\S+)", text):
            assert pathlib.Path(named).exists(), f"{path.name} names {named}, which is not installed"
        assert str(prefix) in text, text
    for path in ["lib/sysusers.d/nibble.conf", "share/doc/nibble/README.md", "share/doc/nibble/operations.md",
                 "share/nibble/monitoring/prometheus.yml", "share/nibble/monitoring/rules/nibble.rules.yml"]:
        assert (prefix / path).is_file(), path
    for path, words in [("bash-completion/completions/nibble", "complete "), ("zsh/site-functions/_nibble", "#compdef nibble"),
                        ("fish/vendor_completions.d/nibble.fish", "complete -c nibble ")]:
        assert words in (prefix / "share" / path).read_text(), path
    manual = prefix / "share" / "doc" / "nibble"
    for page in manual.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            assert ":" in target or (page.parent / target).exists(), f"{page.relative_to(manual)}: no {target}"
    monitoring = prefix / "share" / "nibble" / "monitoring"
    assert not list(monitoring.glob("*.py"))
    named = re.findall(r"`([a-z_*/.-]+\.(?:py|json|ya?ml|ini)|grafana/[a-z]+)`", (monitoring / "README.md").read_text())
    assert len(named) > 5, named
    missing = [name for name in named if not list(monitoring.glob(name))]
    assert not missing, f"the monitoring README names {missing}, which are not installed"
    if shutil.which("systemd-analyze"):
        verdict = subprocess.run(["systemd-analyze", "verify", "--man=no", *units.glob("*.service")],
                                 capture_output=True, text=True, check=False)
        wrong = [line for line in verdict.stderr.splitlines() if line.startswith(str(units)) or "nibble" in line]
        assert not wrong, "\n".join(wrong)


def packages_below(names):
    """These Debian packages and all they depend on, as this machine has them."""
    known, ahead = set(), list(names)
    while ahead:
        name = ahead.pop()
        if name in known:
            continue
        known.add(name)
        depends = subprocess.run(["dpkg-query", "-W", "-f", "${Depends}", name], capture_output=True, text=True,
                                 check=False).stdout
        ahead += re.findall(r"(?:^|, )([a-z0-9.+-]+)", depends)
    return known


def check_image(prefix):
    """The container's second half installs the libraries of what its first half built."""
    if not all(shutil.which(tool) for tool in ("readelf", "ldd", "dpkg-query")):
        print("not checked: the image's packages, without readelf, ldd and dpkg-query")
        return
    lines = (ROOT / "deploy" / "container" / "Containerfile").read_text().rpartition("FROM ")[2]
    image, here = re.match(r"\S+/debian:(\d+)-slim\n", lines)[1], platform.freedesktop_os_release()
    if (here["ID"], here.get("VERSION_ID")) != ("debian", image):
        print(f"not checked: the packages of the image, which is Debian {image}; this is {here['PRETTY_NAME']}")
        return
    there = packages_below(re.findall(r"\blib[a-z0-9.+-]+", lines.partition("rm -rf")[0]))
    for binary in (prefix / "bin").iterdir():
        needed = re.findall(r"NEEDED.*\[(.*)\]", subprocess.check_output(["readelf", "-d", binary], text=True))
        found = dict(re.findall(r"(\S+) => (/\S+)", subprocess.check_output(["ldd", binary], text=True)))
        for library in needed:
            owner = subprocess.run(["dpkg-query", "-S", pathlib.Path(found.get(library, "/")).resolve()],
                                   capture_output=True, text=True, check=False).stdout.partition(":")[0]
            if re.match("lib[atu]b?san", owner):  # a sanitizer's build
                continue
            assert not owner or owner in there, f"{binary.name} needs {library} of {owner}: not in the Containerfile"


def wait_for(what, condition, processes):
    end = time.monotonic() + 30 * client.PATIENCE
    while not (answer := condition()):
        for process in processes:
            assert process.poll() is None, f"{process.args[0]} ended with {process.returncode} before {what}"
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.05)
    return answer


def check_commands(prefix, folder):
    units = prefix / "lib" / "systemd" / "system"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NIBBLE_")}
    # As systemd does for Type=notify.
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(folder / "notify"))
    told.settimeout(60 * client.PATIENCE)
    environment["NOTIFY_SOCKET"] = str(folder / "notify")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    server = subprocess.Popen(words_of(unit_of(units / "nibble-server.service"), folder), **quiet)
    running = [server]
    try:
        info = folder / "nibble" / "run" / "server.json"
        wait_for("run/server.json", info.exists, running)
        assert told.recv(100) == b"READY=1"
        address = json.loads(info.read_text())["listen"]
        running.append(subprocess.Popen(
            words_of(unit_of(units / "nibble-worker.service"), folder, address), **quiet))
        assert told.recv(100) == b"READY=1"

        def workers():
            out = subprocess.run([prefix / "bin" / "nibble", "--server", address, "-o", "json", "worker", "ls"],
                                 capture_output=True, text=True, env=environment, check=True).stdout
            return "cpu0" in out

        wait_for("worker", workers, running)
        # As the units stop them: the worker drains, the server goes after it.
        for process in reversed(running):
            process.send_signal(signal.SIGTERM)
            assert told.recv(100) == b"STOPPING=1"
            assert process.wait(60 * client.PATIENCE) == 0, process.args
    finally:
        for process in running:
            process.kill()


def main():
    build = pathlib.Path(sys.argv[1])
    if not shutil.which("cmake"):
        print("skipped: cmake is not here")
        return 77
    with tempfile.TemporaryDirectory(prefix="nibble-install-") as scratch:
        prefix = pathlib.Path(scratch) / "opt"
        subprocess.run(["cmake", "--install", build, "--prefix", prefix], check=True, stdout=subprocess.DEVNULL)
        check_files(prefix)
        check_image(prefix)
        check_commands(prefix, pathlib.Path(scratch))
    print("installed, started, found each other, stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
