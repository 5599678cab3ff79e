"""What ./dev gpu runs its sections with: each within its own time, whatever becomes of it kept at once."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time


# A case or a line that says nothing for so long hangs; after so many ends before the last one it is given up.
QUIET_S = 30
MOST_ENDS = 4


class Skip(Exception):
    """The section cannot run here, and why."""


class Failure(Exception):
    """The section ran and something is wrong; `text` is what the program said."""

    def __init__(self, why, text=""):
        super().__init__(why)
        self.text = text


# What a program says whose device has failed, or refused a kernel.
DEVICE_FAULT = re.compile(r"illegal (memory|instruction|address)|misaligned|unspecified launch|launch failure|Xid|"
                          r"the device failed|hardware stack|invalid (argument|configuration)|too many resources|"
                          r"out of range|device-side assert|cuBLASLt failed")


def kill(process):
    """The process and all it started; one that hangs in the driver is left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        print(f"   process {process.pid} cannot be killed; going on without it", flush=True)


def tail_of(file, most_bytes=4 << 20):
    """The end of what was written to it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - most_bytes))
    return file.read().decode(errors="replace")


def last_lines(text, count=12):
    return "\n".join(text.strip().splitlines()[-count:])


def wait(process, out, limit_s, quiet_s):
    """Until it ends; else, in words, why it is not waited for any longer. quiet_s: so long it may say nothing."""
    began = heard = time.monotonic()
    said = 0
    while True:
        try:
            process.wait(timeout=max(0.01, min(0.5, began + limit_s - time.monotonic())))
            return ""
        except subprocess.TimeoutExpired:
            pass
        now, size = time.monotonic(), os.fstat(out.fileno()).st_size
        if size != said:
            said, heard = size, now
        if now - began >= limit_s:
            return f"did not end within {limit_s:.0f} s"
        if quiet_s is not None and now - heard > quiet_s:
            return f"said nothing for {quiet_s:.0f} s"


def ending(code):
    """An exit status in words."""
    return f"exit {code}" if code is None or code >= 0 else f"ended by {signal.Signals(-code).name}"


class Run:
    """One run: what it works with, and what its sections have found."""

    def __init__(self, options):
        self.options = options
        self.emulated = options.emulated
        self.deadline = self.section_deadline = time.monotonic() + options.minutes * 60
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="nibble-gpu-"))
        self.build = pathlib.Path(options.bin).parent if options.bin else self.scratch / "build"
        self.device = "cuda-emulated" if self.emulated else f"cuda:{options.device}"
        self.table = "cuda-emulated" if self.emulated else "cuda"
        self.engine = self.bench = self.model_parity = None
        self.engine_missing = "no bundle was given; make one with ./dev gpu --bundle"
        self.tools = None  # folder of nibble-kernel-check and nibble-bench-cuda that start here
        self.building = None  # the build from source, while it runs
        self.companions = []  # started, not waited for
        self.clocks = None  # a file that one of them writes
        self.running = set()  # waited for, by this thread or another
        self.sections = []
        self.facts = {}
        self.suspects = {}  # commands that ended with a fault of the device, by a name
        self.done = {}  # of an earlier run's file: sections that need not run again
        self.earlier = {}  # and figures of the others

    def left(self):
        """Seconds that the section under way has."""
        return min(self.deadline, self.section_deadline) - time.monotonic()

    def suspect(self, name, words):
        """Something that ended with a fault of the device, to be looked at again (explain.py)."""
        self.suspects.setdefault(name, [str(word) for word in words])

    def beside(self, words, out=subprocess.DEVNULL):
        """Starts what nobody waits for; it ends with the script at the latest."""
        self.companions.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out,
                                                stderr=subprocess.DEVNULL, start_new_session=True))

    def stop(self):
        """Ends what sections wait for, in whichever thread."""
        self.deadline = 0
        for process in list(self.running):
            kill(process)

    def command(self, words, limit_s=300, check=True, quiet_s=None):
        """Runs it; the output as text. Failure when it ends badly or not at all, Skip when time is up."""
        limit_s = min(limit_s * self.options.patience, self.left())
        if quiet_s is not None:
            quiet_s *= self.options.patience
        if limit_s <= 1:
            raise Skip("no time was left")
        words = [str(word) for word in words]
        with tempfile.TemporaryFile() as out:  # a pipe would stay open as long as any grandchild lives
            try:
                process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                           start_new_session=True)
            except FileNotFoundError:
                raise Skip(f"{words[0]} is not installed here") from None
            except OSError as why:
                raise Failure(f"{words[0]} does not start: {why}") from None
            self.running.add(process)
            try:
                stuck = wait(process, out, limit_s, quiet_s)
            finally:
                self.running.discard(process)
                kill(process)
            text = tail_of(out)
        if stuck:
            raise Failure(f"{' '.join(words)} {stuck}\n{last_lines(text)}", text)
        if check and process.returncode != 0:
            if DEVICE_FAULT.search(text):
                self.suspect(" ".join(pathlib.Path(word).name for word in words)[:120], words)
            raise Failure(f"{last_lines(text)}\n({ending(process.returncode)}: {' '.join(words)})", text)
        return text

    def wants(self, name):
        """Whether that section is to run."""
        return name not in self.done and (not self.options.only or name in self.options.only.split(","))

    def section(self, name, function, limit_s, write, kept_s=0, later_s=0):
        """Runs one section within its time and keeps what became of it. later_s: set aside for those that follow, of
        which this one gets no more than the kept_s that were set aside for itself."""
        if not self.wants(name):
            self.sections += [self.done[name]] if name in self.done else []
            return
        began = time.monotonic()
        free_s = max(kept_s * self.options.patience, self.deadline - began - later_s * self.options.patience)
        # An emulation has no speed, and its machine other things to do.
        self.section_deadline = began + (self.options.minutes * 60 if self.emulated
                                         else min(limit_s * self.options.patience, free_s))
        entry = {"name": name, "state": "cut off", "why": "the script ended in this section", "seconds": 0,
                 "figures": {}}
        self.sections.append(entry)
        write()
        entry.update(state="ok", why="")
        print(f"== {name}", flush=True)
        try:
            if self.left() < 5:
                raise Skip("no time was left")
            function(entry["figures"])
        except Skip as why:
            entry.update(state="skipped", why=str(why))
        except Failure as why:
            entry.update(state="FAILED", why=str(why))
        except Exception as why:  # the script's own fault must not cost the other sections
            entry.update(state="FAILED", why=f"{type(why).__name__}: {why}")
        entry["seconds"] = round(time.monotonic() - began, 1)
        write()
        print(f"   {entry['state']} in {entry['seconds']} s {entry['why'][:300]}", flush=True)
