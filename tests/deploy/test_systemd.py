"""The unit as systemd itself reads it: verified in silence, hardened no less than before; sysctls that exist."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from samplicator.cli.parser import make_parser
from support.linters import DEPLOY, ROOT, run, said, tool

UNIT = DEPLOY / "systemd" / "samplicator.service"
TEMPLATE = UNIT.with_name("samplicator@.service")
SOCKET = DEPLOY / "systemd" / "examples" / "samplicator.socket"
WITNESS = SOCKET.with_name("samplicator-witness.service")
SAMPLE = DEPLOY / "samplicator.toml"
DROP_INS = sorted((DEPLOY / "systemd" / "drop-ins").glob("*.conf"))
KEEP_SOCKETS = UNIT.parent / "drop-ins" / "keep-sockets.conf"
SYSCTL = DEPLOY / "systemd" / "60-samplicator.conf"
# systemd's exposure score times ten, of 0 (best) to 100. Measured: 16; with a drop-in up to 20.
WORST_SCORE = 16
WORST_SCORE_WITH_DROP_IN = 20


def systemd_release() -> int:
    return int(run("systemctl", "--version").stdout.split()[1])


@pytest.fixture(params=[UNIT, TEMPLATE], ids=["unit", "template"])
def installed(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A unit in a folder of its own, its program replaced by one that is there, its man pages where man looks."""
    shipped: Path = request.param
    unit = tmp_path / "units" / shipped.name.replace("@", "@edge")
    unit.parent.mkdir()
    text, replaced = re.subn(r"^(Exec\w+)=\S+", rf"\1={tool('true')}", shipped.read_text(), flags=re.MULTILINE)
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
    if drop_in == KEEP_SOCKETS and systemd_release() < 254:
        pytest.skip("FileDescriptorStorePreserve= came with systemd 254; this one is older")
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


def test_template_is_the_unit() -> None:
    """Line by line, but for the names of the instance. Two with one user could share a port without a word."""
    text = UNIT.read_text().partition("[Unit]")[2]
    for old, new in (
        ("=samplicator, sends", "=samplicator %i, sends"),
        ("/etc/samplicator/samplicator.toml", "/etc/samplicator/%i.toml"),
        ("StateDirectory=samplicator", "StateDirectory=samplicator-%i"),
        ("RuntimeDirectory=samplicator", "RuntimeDirectory=samplicator-%i"),
        ("User=samplicator\n", "User=samplicator-%i\n"),
    ):
        assert old in text
        text = text.replace(old, new)
    assert TEMPLATE.read_text().partition("[Unit]")[2] == text


def command_lines(unit: Path) -> list[list[str]]:
    """What it runs, and what it shows as a comment: arguments of samplicator."""
    return [text.split()[1:] for text in re.findall(r"^#?ExecStart=(.*)$", unit.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("installed", [UNIT], indirect=True)
def test_witness_example(installed: Path) -> None:
    """Understood without and with its comments; hardened as the relay is; the page that Prometheus asks for."""
    example = installed.with_name(WITNESS.name)
    text = re.sub(r"^(#?ExecStart)=\S+", rf"\1={tool('true')}", WITNESS.read_text(), flags=re.MULTILINE)
    for each in (text, re.sub(r"^#(?=\w+=)", "", re.sub(r"(?m)^ExecStart=.*\n", "", text), flags=re.MULTILINE)):
        example.write_text(each)
        assert verify(example) == ""
        security(example, WORST_SCORE_WITH_DROP_IN)
    scrape = (DEPLOY / "prometheus" / "scrape" / "witness.yaml").read_text()
    lines = command_lines(WITNESS)
    assert len(lines) == 2
    for line in lines:
        options = make_parser().parse_args(line)
        assert (options.command, f'"{options.http}"' in scrape) == ("witness", True)


@pytest.mark.parametrize("installed", [UNIT], indirect=True)
def test_socket_example_is_understood(installed: Path) -> None:
    """Socket activation: systemd reads the example, and it fits the sample configuration."""
    example = installed.with_name(SOCKET.name)
    shutil.copy(SOCKET, example)
    assert verify(example) == ""
    sockets = re.findall(r"^ListenDatagram=(.*)$", SOCKET.read_text(), re.MULTILINE)
    listen = re.findall(r"^listen = (\[.*\])$", SAMPLE.read_text(), re.MULTILINE)
    assert [sorted(set(sockets))] == [sorted(json.loads(each)) for each in listen]


def test_sockets_and_state_outlive_the_process() -> None:
    assert int(unit_values("FileDescriptorStoreMax")[0]) >= 1024
    assert unit_values("StateDirectory") == ["samplicator"]
    assert unit_values("Restart") == ["always"]
    assert 1 <= int(unit_values("WatchdogSec")[0]) <= 30
    assert re.findall(r"^(\w+)=yes$", KEEP_SOCKETS.read_text(), re.MULTILINE) == ["FileDescriptorStorePreserve"]


def test_type_is_one_that_every_systemd_knows() -> None:
    """systemd before 253 reads notify-reload as simple, in silence."""
    assert unit_values("Type") == ["notify"]


def test_reload_waits_for_the_verdict() -> None:
    """A signal would not: `systemctl reload` must fail when the new configuration is refused."""
    program, configuration = unit_values("ExecStart")[0].split(" run -c ")
    assert unit_values("ExecReload") == [f"{program} reload -c {configuration}"]


def test_what_drop_ins_permit() -> None:
    assert {path.stem: re.findall(r"=((?:CAP|AF)_\w+)", path.read_text()) for path in DROP_INS} == {
        "copier": ["CAP_BPF"] * 2 + ["AF_PACKET"],
        "keep-sockets": [],
        "low-ports": ["CAP_NET_BIND_SERVICE"] * 2,
        "net-admin": ["CAP_NET_ADMIN"] * 2 + ["AF_PACKET"],
        "packet": ["AF_PACKET"],
        "web-config": [],
        "xdp": ["CAP_PERFMON"] * 2,
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
