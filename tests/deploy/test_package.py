"""What the Debian package is made from agrees with the rest: versions, the Python packages inside, their licenses."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.linters import DEPLOY, ROOT, run, said
from support.machine import release_of_host
from support.package import build, run_on

DEBIAN = DEPLOY / "debian"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VENDORED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (DEBIAN / "vendored.txt").read_text(), re.MULTILINE))


def test_version_is_that_of_the_project() -> None:
    assert re.match(r"samplicator-relay \((.*)-\d+\)", (DEBIAN / "changelog").read_text())[1] == PROJECT["version"]  # type: ignore[index]
    done = run("dpkg-parsechangelog", "-l", DEBIAN / "changelog", "--show-field", "Date")
    assert (done.returncode, done.stderr) == (0, ""), said(done)


def test_packages_inside_are_what_the_project_asks_for() -> None:
    versions = {canonicalize_name(name): version for name, version in VENDORED.items()}
    for text in PROJECT["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), text


def test_packages_inside_are_whole() -> None:
    """What they in turn need is among them, in a version that suits: as pip sees it, without a network."""
    from importlib.metadata import PackageNotFoundError, requires

    versions = {canonicalize_name(name): version for name, version in VENDORED.items()}
    for name in versions:
        try:
            texts = requires(name) or []
        except PackageNotFoundError:
            raise AssertionError(f"{name} is in vendored.txt, but not needed any more") from None
        for wanted in map(Requirement, texts):
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert canonicalize_name(wanted.name) in versions, f"{name} needs {wanted}"


def test_every_package_inside_has_its_license_said() -> None:
    text = (DEBIAN / "copyright").read_text()
    described = {canonicalize_name(path.removesuffix(".py")) for path in re.findall(r"/site-packages/([\w.]+)", text)}
    described |= {"markdown-it-py"} if "markdown-it" in described else set()
    assert {canonicalize_name(name) for name in VENDORED} <= described
    used = {
        name for line in re.findall(r"^License: (.*)$", text, re.MULTILINE) for name in re.findall(r"[\w.+-]+", line)
    }
    used -= {"and", "or"}
    assert {name for name in used if not re.search(rf"^License: {re.escape(name)}\n ", text, re.MULTILINE)} == set()


SYSTEMCTL = """#!/bin/sh
# list-units without --state names units that are active, and those that have failed (systemctl(1))
case "$*" in
*--state=active,reloading*) echo "samplicator@runs.service loaded active running" ;;
*) printf '%s\\n' "samplicator@runs.service loaded active running" "samplicator@bad.service loaded failed failed" ;;
esac
"""


def test_an_upgrade_restarts_the_instances_that_run(tmp_path: Path) -> None:
    """One that has failed, since its configuration is refused for example, stays as the administrator sees it."""
    for name, text in (("systemctl", SYSTEMCTL), ("deb-systemd-invoke", f'#!/bin/sh\necho "$@" >>{tmp_path}/said\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    block = (DEBIAN / "samplicator-relay.postinst").read_text().partition("#DEBHELPER#")[2]
    script = block.replace("[ -d /run/systemd/system ]", "true")
    assert script != block
    done = run("env", f"PATH={tmp_path}:/usr/bin:/bin", "sh", "-ec", script, "postinst", "configure", "0.1.0-1")
    assert done.returncode == 0, said(done)
    assert (tmp_path / "said").read_text() == "restart samplicator@runs.service\n"


@pytest.mark.deploy_heavy
def test_package_is_the_same_twice_and_lintian_finds_no_error(package: Callable[[str], Path], tmp_path: Path) -> None:
    first = package(release_of_host())
    kept = tmp_path / first.name
    shutil.copy(first, kept)
    assert sha256(build().read_bytes()).digest() == sha256(kept.read_bytes()).digest()
    done = run("lintian", "--allow-root", "--fail-on", "error", kept)
    assert done.returncode == 0, said(done)


INSTALL = r"""
PATH=/usr/local/bin:$PATH
find /etc /usr/local /opt -not -path '*/ssl/*' | sort >/out/before
make install PREFIX=/opt/relay
samplicator check
/opt/relay/bin/samplicate --version
find /etc/systemd /etc/sysctl.d /usr/local -not -type d | sort >/out/installed
cp /etc/systemd/system/samplicator.service /out/
make uninstall PREFIX=/opt/relay
find /etc /usr/local /opt -not -path '*/ssl/*' -not -type d | sort >/out/after
"""


@pytest.mark.deploy_heavy
@pytest.mark.netns
@pytest.mark.timeout(1800)
def test_make_install_and_uninstall_have_the_files_of_the_package(tmp_path: Path) -> None:
    out = run_on("bookworm", tmp_path, INSTALL)
    before, after = ((out / name).read_text().splitlines() for name in ("before", "after"))
    installed = (out / "installed").read_text()
    for name in (
        "/etc/systemd/system/samplicator.service",
        "/etc/systemd/system/samplicator@.service",
        "/etc/sysctl.d/60-samplicator.conf",
        "/usr/local/share/man/man5/samplicator.toml.5",
        "/usr/local/share/bash-completion/completions/samplicate",
        "/usr/local/share/zsh/site-functions/_samplicator",
        "/usr/local/share/fish/vendor_completions.d/samplicator.fish",
        "/usr/local/bin/samplicate",
    ):
        assert name + "\n" in installed
    assert "ExecStart=/opt/relay/bin/samplicator run" in (out / "samplicator.service").read_text()
    left = {path for path in set(after) - set(before) if "sampli" in path or "/opt/relay" in path}
    assert left == {"/etc/samplicator/samplicator.toml"}, "the configuration stays, and nothing else"
