#!/usr/bin/env python3
"""./dev where it cannot install anything: it names the system it found, those that were tested, and every package."""

import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import unittest

DEV = pathlib.Path(__file__).resolve().parents[1] / "dev"


class NoAptGet(unittest.TestCase):
    def test_says_what_to_install_and_how_to_go_on(self):
        with tempfile.TemporaryDirectory(prefix="nibble-dev-") as folder:
            for tool in ("dirname", "nproc", "uname", "grep"):
                os.symlink(shutil.which(tool), pathlib.Path(folder) / tool)
            ran = subprocess.run([shutil.which("bash"), DEV, "setup"], env={"PATH": folder}, capture_output=True,
                                 text=True, timeout=60, check=False)
        self.assertEqual(ran.returncode, 1, ran.stderr)
        self.assertEqual(ran.stdout, "")
        for said in (platform.freedesktop_os_release()["PRETTY_NAME"], "Debian 12", "cmake -S . -B build", "ninja-build",
                     "libgrpc++-dev", "python3-grpcio"):
            self.assertIn(said, ran.stderr)


if __name__ == "__main__":
    unittest.main()
