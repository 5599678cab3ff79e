#!/usr/bin/env python3
"""The kernel checks on an emulated processor, for bodies that no processor at hand can run.

    run.py BUILD_DIR BOCHS [--bodies amx,avx512_bf16,...] [--cpu sapphire_rapids] [--parallel 2]
           [--hours 6] [--out DIR] [--words "WORDS IN A CASE'S NAME"]

BOCHS is a Bochs built with AVX-512 and AMX. What ran here was its sources of November 2026, after release 3.0, with mended
XSAVE of tiles, which this program does not use:

    ./configure --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --enable-amx --enable-pci \\
      --enable-all-optimizations --with-nogui --disable-docbook --disable-plugins && make

Each body's cases go to --parallel emulators; what they print lies in --out (BUILD_DIR/bare-checks), a file
each. It is an error when a case
fails, when an emulator stops before the end, or when the cases of a body are not as many as the program lists. Prints
a line for each body.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

CONFIG = """\
cpu: model={cpu}, count=1, ips=200000000, reset_on_triple_fault=0
memory: guest=2048, host=2048
romimage: file={bios}
vgaromimage: file={vga}
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={image}, status=inserted
boot: cdrom
display_library: nogui
port_e9_hack: enabled=1
clock: sync=none
log: {log}
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
"""
GRUB = "set timeout=0\nmenuentry check {{\n  multiboot /bare\n  module /check check {words}\n}}\n"
CLOSING = re.compile(r"^(\d+) passed, (\d+) failed, (\d+) missing$", re.M)


def find(name, folders):
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    sys.exit(f"run.py: no {name} in {', '.join(str(folder) for folder in folders)}; Debian has it in the packages "
             "bochsbios and vgabios, Bochs' sources in bios/")


class Emulator:
    """Runs the program under Bochs; one instance serves several threads."""

    def __init__(self, options):
        self.options = options
        bochs = shutil.which(options.bochs)
        if bochs is None:
            sys.exit(f"run.py: {options.bochs} is no program")
        self.bochs = pathlib.Path(bochs).resolve()
        folders = [self.bochs.parent / "bios", pathlib.Path("/usr/share/bochs"), pathlib.Path("/usr/share/vgabios")]
        self.roms = {"bios": find("BIOS-bochs-latest", folders), "vga": find("vgabios-stdvga.bin", folders)}
        self.files = {"bare": options.build / "bin/nibble-bare", "check": options.build / "bin/nibble-kernel-check-static"}

    def run(self, words, out):
        """What the program prints, also into the file `out`; the emulator's own lines included."""
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "disk/boot/grub").mkdir(parents=True)
            for name, file in self.files.items():
                shutil.copy(file, folder / "disk" / name)
            (folder / "disk/boot/grub/grub.cfg").write_text(GRUB.format(words=" ".join(words)))
            subprocess.run(["grub-mkrescue", "-o", folder / "image.iso", folder / "disk"], check=True,
                           capture_output=True)
            (folder / "config").write_text(CONFIG.format(cpu=self.options.cpu, image=folder / "image.iso",
                                                         log=folder / "log", **self.roms))
            with open(out, "w", encoding="utf-8") as printed:
                try:
                    subprocess.run([self.bochs, "-q", "-f", folder / "config"], stdin=subprocess.DEVNULL, stdout=printed,
                                   stderr=subprocess.STDOUT, check=False, timeout=self.options.hours * 3600)
                except subprocess.TimeoutExpired:
                    printed.write(f"\nnot done after {self.options.hours} hours\n")
        return out.read_text(encoding="utf-8", errors="replace")


def listed(options):
    """How many cases a body has."""
    lines = subprocess.run([options.build / "bin/nibble-kernel-check-static", "--list", *options.words],
                           capture_output=True, text=True, check=True).stdout
    return len(lines.splitlines())


def check_body(body, emulator, pool, options):
    """Prints the line of a body; whether all is well."""
    def part(index):
        words = ["--body", body, "--threads", "1", "--part", f"{index}/{options.parallel}", *options.words]
        return emulator.run(words, options.out / f"{body}-{index}.txt")

    passed = failed = missing = 0
    stopped = []
    for index, text in enumerate(pool.map(part, range(options.parallel))):
        closing = CLOSING.search(text)
        if closing is None or "ended with" not in text:
            stopped.append(f"{body}-{index}.txt ends with: {text.strip().splitlines()[-1] if text.strip() else 'nothing'}")
            continue
        passed, failed, missing = (a + int(b) for a, b in zip((passed, failed, missing), closing.groups()))
    wanted = listed(options)
    well = not stopped and failed == 0 and passed > 0 and passed + failed + missing == wanted
    print(f"{body}: {passed} passed, {failed} failed, {missing} of other tables, of {wanted} cases"
          + "".join(f"; {line}" for line in stopped), flush=True)
    return well


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("build", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("bochs")
    parser.add_argument("--bodies", default="amx,avx512_bf16,avx512_vnni,avx512")
    parser.add_argument("--cpu", default="sapphire_rapids")
    parser.add_argument("--parallel", type=int, default=os.cpu_count())
    parser.add_argument("--hours", type=float, default=6)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--words", type=str.split, default=[])
    options = parser.parse_args()
    options.out = options.out or options.build / "bare-checks"
    options.out.mkdir(parents=True, exist_ok=True)
    emulator = Emulator(options)
    with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
        results = [check_body(body, emulator, pool, options) for body in options.bodies.split(",")]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
