"""The unit as systemd itself reads it: verified in silence, hardened no less than before; sysctls that exist."""

from __future__ import annotations

import configparser
import os
import re
import shutil
from pathlib import Path

import pytest
from support.linters import DEPLOY, ROOT, run, said, tool

UNIT = DEPLOY / "systemd" / "samplicator.service"
DROP_INS = sorted((DEPLOY / "systemd" / "drop-ins").glob("*.conf"))
SYSCTL = DEPLOY / "systemd" / "60-samplicator.conf"
# systemd's exposure score times ten, of 0 (best) to 100. Measured: 17; with the drop-in a little more.
WORST_SCORE = 20
WORST_SCORE_WITH_DROP_IN = 25


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit in a folder of its own, its program replaced by one that is there, its man pages where man looks."""
    unit = tmp_path / "units" / UNIT.name
    unit.parent.mkdir()
    text, replaced = re.subn(r"^(Exec\w+)=\S+", rf"\1={tool('true')}", UNIT.read_text(), flags=re.MULTILINE)
    assert replaced == 2
    unit.write_text(text)
    for page in (DEPLOY / "man").glob("*.[0-9]"):
        folder = tmp_path / "man" / f"man{page.suffix[1:]}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, folder)
    return unit


def verify(unit: Path) -> str:
    done = run("systemd-analyze", "verify", unit, env=os.environ | {"MANPATH": str(unit.parents[1] / "man")})
    assert done.returncode == 0, said(done)
    return said(done)


def test_verify_is_silent(installed: Path) -> None:
    """Unknown keys only warn, with status 0: so nothing at all may be said."""
    assert verify(installed) == ""


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.stem)
def test_verify_is_silent_with_the_drop_in(installed: Path, drop_in: Path) -> None:
    folder = installed.with_name(installed.name + ".d")
    folder.mkdir()
    shutil.copy(drop_in, folder)
    assert verify(installed) == ""


def test_verify_would_notice(installed: Path) -> None:
    """The check has teeth: a misspelt key is said."""
    installed.write_text(installed.read_text().replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "NoNewPrivilege" in verify(installed)


def security(unit: Path, threshold: int) -> None:
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", unit)
    assert done.returncode == 0, said(done)


def test_hardening_score(installed: Path) -> None:
    security(installed, WORST_SCORE)


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.stem)
def test_hardening_score_with_the_drop_in(installed: Path, drop_in: Path) -> None:
    merged = installed.with_name("merged.service")
    extra = drop_in.read_text().split("[Service]")[1]
    merged.write_text(installed.read_text().replace("[Install]", extra + "\n[Install]"))
    security(merged, WORST_SCORE_WITH_DROP_IN)


def unit_values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_type_is_one_that_every_systemd_knows() -> None:
    """systemd before 253 reads notify-reload as simple, in silence."""
    assert unit_values("Type") == ["notify"]


def test_reload_waits_for_the_verdict() -> None:
    """A signal would not: `systemctl reload` must fail when the new configuration is refused."""
    program, configuration = unit_values("ExecStart")[0].split(" run -c ")
    assert unit_values("ExecReload") == [f"{program} reload -c {configuration}"]


def test_ports_below_1024_have_a_drop_in() -> None:
    assert {path.stem: re.findall(r"=(CAP_\w+)", path.read_text()) for path in DROP_INS} == {
        "low-ports": ["CAP_NET_BIND_SERVICE"] * 2,
        "net-admin": ["CAP_NET_ADMIN"] * 2,
    }


def test_one_capability() -> None:
    assert unit_values("AmbientCapabilities") == ["CAP_NET_RAW"]
    assert unit_values("CapabilityBoundingSet") == ["CAP_NET_RAW"]


def test_stop_waits_longer_than_the_default_drain() -> None:
    from samplicator.config.model.service import Service

    assert float(unit_values("TimeoutStopSec")[0]) > Service().drain_timeout


def test_sysctls_exist_and_fit_the_defaults() -> None:
    from samplicator.config.model.datapath import Datapath

    lines = [line for line in SYSCTL.read_text().splitlines() if line.strip() and not line.startswith("#")]
    parser = configparser.ConfigParser()
    parser.read_string("[sysctl]\n" + "\n".join(lines))
    values = {key: int(value) for key, value in parser["sysctl"].items()}
    # A container with a network of its own does not see every setting of the host; dev_weight is one of those.
    unseen = set() if Path("/proc/sys/net/core/dev_weight").exists() else {"net.core.netdev_max_backlog"}
    for key in values:
        assert key in unseen or (Path("/proc/sys") / key.replace(".", "/")).exists(), key
    assert values["net.core.rmem_max"] >= Datapath().receive_buffer
    assert values["net.core.wmem_max"] >= Datapath().send_buffer


def test_paths_of_the_unit_are_those_that_make_install_uses() -> None:
    makefile = (ROOT / "Makefile").read_text()
    program = unit_values("ExecStart")[0].split()[0]
    prefix = re.search(r"^PREFIX \?= (\S+)", makefile, re.MULTILINE)
    assert prefix is not None
    assert program == f"{prefix[1]}/bin/samplicator"
