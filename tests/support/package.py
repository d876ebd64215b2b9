"""The Debian package of this tree, and one that is newer and otherwise the same. Used by tests/deploy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from support.network import run_outside
from support.process import tool
from support.tree import ROOT

NAME = "samplicator-relay"
VERSION_LINE = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)


def build() -> Path:
    """`make deb`, which compiles nothing that this tree has compiled already. Fetches packages of Python."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = run_outside([tool("make"), "--no-print-directory", "deb"], cwd=ROOT, env=environ, timeout=900)
    assert done.returncode == 0, f"make deb: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return Path(ROOT, done.stdout.split()[-1])


def newer(package: Path, release: str, directory: Path) -> Path:
    """The package with other code and a higher version: its program says `release`, and nothing else is different."""
    tree, made = directory / f"newer-{release}", directory / f"{NAME}_{release}.deb"
    subprocess.run([tool("dpkg-deb"), "-R", str(package), str(tree)], check=True, capture_output=True, timeout=120)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"^Version: .*$", f"Version: {release}", control.read_text(), flags=re.MULTILINE))
    (code,) = tree.glob("usr/lib/samplicator/lib/python3*/site-packages/samplicator/__init__.py")
    text, replaced = VERSION_LINE.subn(f'__version__ = "{release}"', code.read_text())
    assert replaced == 1
    code.write_text(text)
    argv = [tool("dpkg-deb"), "-Znone", "--root-owner-group", "-b", str(tree), str(made)]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    shutil.rmtree(tree)
    return made
