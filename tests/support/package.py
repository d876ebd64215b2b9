"""The Debian package of this tree, and one that is newer and otherwise the same. Used by tests/deploy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from support.machine import layered, root_of
from support.network import run_outside
from support.process import tool
from support.tree import ROOT, files

NAME = "samplicator-relay"
SHARED = ("/etc/ssl/certs", "/etc/xdg/pip", "/etc/pip.conf", "/etc/apt/apt.conf.d/99artifact-registry")
PASSED = ("pip_", "http_proxy", "https_proxy", "no_proxy", "ssl_cert_file")
"""How this host reaches package archives: a Debian on it has to do the same."""
VERSION_LINE = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)


def index_reachable() -> bool:
    """Whether packages of Python can be fetched, as `make deb` needs: not in a container with a network of its own."""
    words = (
        "--disable-pip-version-check",
        "download",
        "-q",
        "--no-deps",
        "--no-cache-dir",
        "--retries",
        "0",
        "--timeout",
        "10",
    )
    with tempfile.TemporaryDirectory() as folder:
        done = run_outside([sys.executable, "-m", "pip", *words, "-d", folder, "six"], timeout=60)
    return done.returncode == 0


def build() -> Path:
    """`make deb`, which compiles nothing that this tree has compiled already. Fetches packages of Python."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = run_outside([tool("make"), "--no-print-directory", "deb"], cwd=ROOT, env=environ, timeout=900)
    assert done.returncode == 0, f"make deb: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return Path(ROOT, done.stdout.split()[-1])


def build_on(release: str, directory: Path) -> Path:
    """The package that a copy of this tree makes on a fresh Debian, as root: `make deb` installs what it needs."""
    out = run_on(release, directory, "make deb; cp dist/*.deb /out/")
    (made,) = out.glob("*.deb")
    return made


def run_on(release: str, directory: Path, script: str) -> Path:
    """Runs a script as root in a copy of this tree on a fresh Debian with a network; returns what is /out there."""
    machine = f"{release}-{directory.name}".replace("_", "-").rstrip("-")[:60]  # the folder names the machine
    layer, out = directory / machine, directory / f"out-{release}"
    layer.mkdir()
    out.mkdir()
    source = directory / f"source-{release}.tar"
    listed = "\0".join(map(str, files()))
    argv = [tool("tar"), "-c", "-f", str(source), "--null", "-T", "-"]
    subprocess.run(argv, input=listed, text=True, cwd=ROOT, check=True, timeout=120)
    shared = [path for path in SHARED if Path(path).exists()]
    environ = [f"--setenv={name}={value}" for name, value in os.environ.items() if name.lower().startswith(PASSED)]
    argv = [
        *layered(root_of(release, ("make", "ca-certificates")), layer), "--pipe", "--resolv-conf=copy-host", *environ,
        *(f"--bind-ro={path}" for path in shared), f"--bind={out}:/out", f"--bind-ro={source}:/source.tar",
        "sh", "-ec", f"mkdir /src; cd /src; tar -xf /source.tar; {script}",
    ]  # fmt: skip
    done = run_outside(argv, timeout=1800)
    assert done.returncode == 0, f"{script} on {release}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return out


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
