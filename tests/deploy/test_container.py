"""The container image's parts: the Dockerfile under hadolint, the launcher run with and without the capability."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.linters import DEPLOY, ROOT, run, said

DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
NOBODY = "65532"
NET_RAW_ONLY = "0000000000002000"
NOTHING = "0000000000000000"


def test_hadolint() -> None:
    done = run("hadolint", DOCKERFILE)
    assert (done.returncode, said(done)) == (0, "")


def test_hadolint_would_notice(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd /tmp && apt-get install gcc\n")
    assert run("hadolint", bad).returncode == 1


def test_what_is_copied_is_not_ignored() -> None:
    """The ignore file is a list of what comes in; everything the build stage names must be on it, and exist."""
    wanted = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "fastpath", "pysrc"]
    wanted += re.findall(r"deploy/\S+", DOCKERFILE.read_text().split("\n\n", 1)[1])
    ignore = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for name in wanted:
        assert f"!{name}" in ignore, name
        assert (ROOT / name).exists(), name


def instructions() -> dict[str, list[str]]:
    """The Dockerfile's instructions by their first word, continued lines joined."""
    found: dict[str, list[str]] = {}
    for line in DOCKERFILE.read_text().replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word.isupper():
            found.setdefault(word, []).append(rest)
    return found


def test_what_a_runtime_reads() -> None:
    """Bases that can be replaced, a user by number (runAsNonRoot needs one), and commands without a shell."""
    found = instructions()
    assert found["FROM"] == ["${BUILD_IMAGE} AS build", "${RUN_IMAGE}"]
    assert {"BUILD_IMAGE", "RUN_IMAGE"} <= {argument.partition("=")[0] for argument in found["ARG"]}
    assert found["USER"] == ["65532:65532"]
    assert found["STOPSIGNAL"] == ["SIGTERM"]
    assert json.loads(found["ENTRYPOINT"][0]) == ["/opt/venv/bin/launcher"]
    assert json.loads(found["CMD"][0])[0] == "run"
    health = json.loads(found["HEALTHCHECK"][0].partition("CMD ")[2])
    assert health == ["/opt/venv/bin/samplicator", "ready"]


def test_labels_are_those_of_the_program() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = instructions()
    assert f"VERSION={project['version']}" in found["ARG"]
    (label,) = found["LABEL"]
    for name in ("title", "description", "licenses", "version", "revision", "source"):
        assert f"org.opencontainers.image.{name}=" in label
    assert f'licenses="{project["license"]}"' in label
    sources = [url for name, url in project.get("urls", {}).items() if name.lower() in ("source", "repository")]
    if sources:
        assert f"SOURCE={sources[0]}" in found["ARG"]


@pytest.fixture
def launcher() -> Iterator[Path]:
    """The launcher, built to become `grep CapEff`: it shows what the daemon would be allowed to do. It lies where file
    capabilities count: Debian 13 mounts /tmp with nosuid, which makes them void (mount(8)).
    """
    places = [Path(tempfile.gettempdir()), Path("/var/tmp"), ROOT / "build"]
    place = next((p for p in places if p.is_dir() and not os.statvfs(p).f_flag & os.ST_NOSUID), None)
    assert place is not None, f"file capabilities are void (nosuid) in all of {', '.join(map(str, places))}"
    with tempfile.TemporaryDirectory(prefix="launcher-", dir=place) as folder:
        Path(folder).chmod(0o755)
        program = Path(folder) / "launcher"
        flags = ["-O2", "-Wall", "-Wextra", "-Werror", '-DPROGRAM="/bin/grep"']
        done = run("gcc", *flags, "-o", program, DEPLOY / "docker" / "launcher.c")
        assert done.returncode == 0, said(done)
        yield program


def start(launcher: Path, bounding: str) -> str:
    """CapEff of what the launcher became, started as a plain user in the way a container runtime does."""
    user = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--inh-caps=-all", f"--bounding-set={bounding}"]
    done = run("setpriv", *user, launcher, "CapEff", "/proc/self/status")
    assert done.returncode == 0, said(done)
    return done.stdout.split()[-1]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: file capabilities")


@needs_root
def test_launcher_hands_net_raw_on(launcher: Path) -> None:
    assert run("setcap", "cap_net_raw+p", launcher).returncode == 0
    assert start(launcher, "-all,+net_raw") == NET_RAW_ONLY


@needs_root
def test_launcher_starts_without_net_raw(launcher: Path) -> None:
    """drop: ALL and nothing added. A file capability with the effective bit would not even start here."""
    assert run("setcap", "cap_net_raw+p", launcher).returncode == 0
    assert start(launcher, "-all") == NOTHING


@needs_root
def test_launcher_hands_on_what_mark_and_container_have(launcher: Path) -> None:
    """NET_BIND_SERVICE is bit 10, NET_ADMIN 12, NET_RAW 13. What the daemon cannot use is never handed on."""
    assert run("setcap", "cap_net_raw,cap_net_bind_service,cap_sys_admin+p", launcher).returncode == 0
    assert start(launcher, "-all,+net_raw,+net_bind_service,+net_admin,+sys_admin") == "0000000000002400"
    assert start(launcher, "-all,+net_raw") == NET_RAW_ONLY


@needs_root
def test_unmarked_launcher_hands_nothing_on(launcher: Path) -> None:
    assert start(launcher, "-all,+net_raw") == NOTHING


def test_launcher_says_what_it_could_not_start(tmp_path: Path) -> None:
    program = tmp_path / "launcher"
    source = DEPLOY / "docker" / "launcher.c"
    assert run("gcc", '-DPROGRAM="/nonexistent/samplicator"', "-o", program, source).returncode == 0
    done = run(program, "run")
    assert done.returncode == 127
    assert done.stderr == "launcher: /nonexistent/samplicator: No such file or directory\n"
