"""What `pip install samplicator` gives outside of a checkout: sdist, wheel, and the program in its own environment.

The fast tests build the wheel from the sdist with the compiled module of this tree. Those with the mark deploy_heavy
compile: `make dist` in two places, and pip with a package index, for every release of Python that is here.
"""

from __future__ import annotations

import email
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Callable
from email.message import Message
from functools import partial
from pathlib import Path

import pytest
from support.network import run_outside
from support.tree import ROOT, files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"samplicator-{PROJECT['version']}"
PACKED_TOO = {"PKG-INFO", "setup.cfg", "pysrc/samplicator.egg-info/SOURCES.txt"}
RELEASES = ("3.11", "3.12", "3.13")


def run(*words: str | Path, cwd: Path, timeout: float = 120, network: bool = False, **env: str) -> str:
    """Standard output of a command. network: in the network that the tests have left."""
    ours = ("PYTHON", "SAMPLICATOR", "VIRTUAL", "MAKE", "MFLAGS")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    argv = [str(word) for word in words]
    start = run_outside if network else partial(subprocess.run, capture_output=True, text=True)
    done = start(argv, cwd=cwd, env={**clean, **env}, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dist")


def copied(target: Path) -> Path:
    """The files of the repository, in another place."""
    for path in files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    return target


@pytest.fixture(scope="module")
def sdist(place: Path) -> Path:
    tree = copied(place / "checkout")
    run(sys.executable, "setup.py", "-q", "sdist", "-d", place, cwd=tree)
    return place / f"{NAME}.tar.gz"


@pytest.fixture(scope="module")
def wheel(sdist: Path, place: Path) -> Path:
    """Built from the sdist; the compiler has nothing to do, since what it would make is newer than its sources."""
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4; Debian 12 has an older one
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(place)
    tree = place / NAME
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    library = tree / "build" / f"lib.{sysconfig.get_platform()}-cpython-{version}" / "samplicator"
    library.mkdir(parents=True)
    module = f"_fastpath{sysconfig.get_config_var('EXT_SUFFIX')}"
    shutil.copytree(ROOT / "build" / "cython", tree / "build" / "cython", copy_function=shutil.copy)
    shutil.copy(ROOT / "pysrc" / "samplicator" / module, library / module)  # last: newer than what it is made of
    words = ("wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index", "-w", place, tree)
    run(sys.executable, "-m", "pip", *words, cwd=place)
    (found,) = place.glob("*.whl")
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))


def test_the_sdist_is_the_repository(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {member.name.removeprefix(f"{NAME}/") for member in archive if member.isfile()}
    assert packed - PACKED_TOO == {str(path) for path in files()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {str(path.relative_to("pysrc")) for path in files() if path.parts[0] == "pysrc"}
    compiled = {name for name in names if name.endswith(".so")}
    programs = {f"samplicator/bpf/{name}.bpf.o" for name in ("copies", "express", "offload")}
    assert {re.sub(r"\..*", "", name) for name in compiled} == {"samplicator/_fastpath"}, "the tests' extension, too?"
    assert {"samplicator/py.typed", "samplicator/_fastpath.pyi"} <= names
    about = {name for name in names if name.startswith(NAME)}
    assert names - about == ours | compiled | programs
    pages = {name.partition(".data/data/")[2] for name in about if ".data/" in name}
    assert pages == {f"share/man/man{path.suffix[1]}/{path.name}" for path in files() if "man" in path.parts[1:2]}


def test_metadata_is_complete(wheel: Path) -> None:
    about = metadata(wheel)
    assert about["Name"] == "samplicator"
    assert about["License-Expression"] == "Apache-2.0"
    assert about["License-File"] == "LICENSE"
    assert about["Author"]
    assert about["Requires-Python"] == ">=3.11"
    assert about["Description-Content-Type"] == "text/markdown"
    urls = {url.partition(", ")[0] for url in about.get_all("Project-URL", [])}
    assert urls >= {"Repository", "Documentation", "Issues"}
    classifiers = set(about.get_all("Classifier", []))
    assert {f"Programming Language :: Python :: {release}" for release in RELEASES} <= classifiers


def test_links_of_the_description_are_absolute(wheel: Path) -> None:
    """As many as README.md has, each to the same file."""
    page = metadata(wheel).get_payload()
    link = re.compile(r"\]\(([^)\s]+)\)")
    targets, relative = link.findall(page), link.findall((ROOT / "README.md").read_text())
    assert len(targets) == len(relative) > 5
    for target, path in zip(targets, relative, strict=True):
        assert target.startswith("https://")
        assert target.endswith(f"/v{PROJECT['version']}/{path}")
        assert (ROOT / path.partition("#")[0]).exists()
    assert not re.findall(r"""(?:src|srcset|href)=["'](?!https://)""", page)


def installed(python: Path, environment: Path, *words: str | Path, network: bool = False, timeout: float = 120) -> Path:
    """An empty environment with what pip installs there. Returns its folder of commands."""
    run(python, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "-q")
    run(*pip, *words, cwd=environment.parent, network=network, timeout=timeout)
    return environment / "bin"


def runs(commands: Path, outside: Path) -> None:
    """The program works, from outside of any checkout, and it is the one of this environment."""
    where = run(commands / "python", "-c", "import samplicator as s; print(s.__file__)", cwd=outside)
    assert Path(where).is_relative_to(commands.parent)
    assert run(commands / "samplicator", "--version", cwd=outside) == f"samplicator {PROJECT['version']}\n"
    assert run(commands / "samplicate", "--version", cwd=outside) == f"samplicate {PROJECT['version']} (samplicator)\n"
    said = run(commands / "samplicator", "demo", "--seconds", "2", "--rate", "500", cwd=outside)
    assert "\nOK: 0 lost" in said, said


def test_the_wheel_runs_outside_of_the_checkout(wheel: Path, place: Path, tmp_path: Path) -> None:
    """Without a network: the packages that it needs are those of this environment."""
    commands = installed(Path(sys.executable), place / "environment", "--no-index", "--no-deps", wheel)
    (packages,) = (place / "environment").glob("lib/python*/site-packages")
    (packages / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    runs(commands, tmp_path)
    assert (place / "environment" / "share" / "man" / "man8" / "samplicator.8").exists()


# ---- with a compiler and a package index


def interpreters() -> list[str]:
    """The releases that are here; python3.11 of Debian 12 always is."""
    return [release for release in RELEASES if interpreter(release)]


def interpreter(release: str) -> Path | None:
    if release == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(pyenv.glob(f"versions/{release}.*/bin/python3")) or [shutil.which(f"python{release}")]
    return Path(found[0]) if found[0] else None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """`make dist` in a copy of the repository: the files of dist/, by name."""
    top = tmp_path_factory.mktemp("made")
    results: dict[str, dict[str, Path]] = {}

    def make(name: str) -> dict[str, Path]:
        if name not in results:
            tree = copied(top / name)
            environment = top / "tools"
            words = [f"V={environment}", f"BIN={environment / 'bin'}", f"STAMPS={environment / 'stamps'}"]
            words.append("SOURCE_DATE_EPOCH=1700000000")
            run("make", "dist", f"PYTHON={sys.executable}", *words, cwd=tree, timeout=1500, network=True)
            results[name] = {path.name: path for path in (tree / "dist").iterdir()}
        return results[name]

    return make


def sums(paths: dict[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


@pytest.mark.deploy_heavy
@pytest.mark.timeout(3600)
def test_two_builds_are_equal(made: Callable[[str], dict[str, Path]]) -> None:
    first, second = made("one"), made("a-folder-with-a-longer-name")
    assert len(first) == 2
    assert sums(first) == sums(second)


@pytest.mark.deploy_heavy
@pytest.mark.timeout(3600)
def test_the_wheel_of_a_release(made: Callable[[str], dict[str, Path]], tmp_path: Path) -> None:
    """Its tag is one of manylinux, it has no path of this machine, and an empty environment can install and run it."""
    (wheel,) = (path for name, path in made("one").items() if name.endswith(".whl"))
    assert re.search(r"-manylinux_2_\d+_x86_64|-manylinux", wheel.name), wheel.name
    assert metadata(wheel)["Name"] == "samplicator"
    with zipfile.ZipFile(wheel) as archive:
        (module,) = (name for name in archive.namelist() if name.endswith(".so"))
        code = archive.read(module)
    assert str(wheel.parents[1]).encode() not in code
    assert b".pyenv" not in code
    begun = time.monotonic()
    commands = installed(Path(sys.executable), tmp_path / "environment", wheel, network=True, timeout=600)
    runs(commands, tmp_path)
    print(f"{wheel.name}: {wheel.stat().st_size} bytes, installed and run in {time.monotonic() - begun:.0f} s")


@pytest.mark.deploy_heavy
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("release", interpreters())
def test_the_sdist_of_a_release(made: Callable[[str], dict[str, Path]], tmp_path: Path, release: str) -> None:
    """pip builds it by itself, with what pyproject.toml names, in an empty environment."""
    (sdist,) = (path for name, path in made("one").items() if name.endswith(".tar.gz"))
    python = interpreter(release)
    assert python is not None
    commands = installed(python, tmp_path / "environment", sdist, network=True, timeout=1500)
    runs(commands, tmp_path)
