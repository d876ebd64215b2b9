"""The package on a booted Debian, under load: installed, restarted, killed, upgraded, reconfigured, hung, purged.

One machine for all of it, in the order of the file; each step also works alone. Every datagram that the exporters send
meanwhile must arrive at both receivers, once and in order.
"""

from __future__ import annotations

import contextlib

import pytest
from samplicator.config.model.datapath import Datapath
from support.appliance import DROP_INS, UNIT, Appliance
from support.package import NAME, newer
from support.process import wait_for
from support.stream import WORKERS, configuration, metrics, page, wait_ready

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.netns,
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.parametrize(
        "appliance", ["bookworm", pytest.param("trixie", marks=pytest.mark.deploy_heavy)], indirect=True, scope="module"
    ),
]


@pytest.fixture
def running(appliance: Appliance) -> Appliance:
    """The relay, with the configuration of stream.py."""
    return appliance.running()


def test_installed(appliance: Appliance) -> None:
    """It is there, and not started: the sample configuration is nobody's network."""
    machine = appliance.machine
    assert machine.systemctl("is-enabled", UNIT, check=False).strip() == "disabled"
    assert machine.shows(UNIT, "ActiveState") == "inactive"
    assert "samplicator check && systemctl enable --now samplicator" in appliance.said
    assert "ok" in machine.run("samplicator", "check").stdout
    assert machine.run("samplicate", "--version").stdout.startswith("samplicate ")
    for unit in (UNIT, "samplicator@.service"):
        file = f"/lib/systemd/system/{unit}"
        done = machine.run("systemd-analyze", "verify", "--man=no", file)
        assert done.stdout + done.stderr == ""
        machine.run("systemd-analyze", "security", "--threshold=16", "--offline=true", file)


def test_restart_loses_nothing(running: Appliance) -> None:
    outcome = running.during(lambda: running.machine.systemctl("restart", UNIT))
    assert outcome.whole, f"{outcome}\n{running.machine.journal(UNIT)[-3000:]}"


def test_kill_loses_at_most_what_was_in_hand(running: Appliance) -> None:
    """What the process had read and not yet sent is gone: at most one batch per worker, and mostly nothing."""
    pid = running.machine.pid(UNIT)

    def kill() -> None:
        running.machine.run("kill", "-KILL", str(pid))
        wait_for(lambda: running.restarted(pid), "systemd to restart the relay", 30, 0.1)

    outcome = running.during(kill)
    in_hand = WORKERS * Datapath().batch
    assert max(outcome.lost) <= in_hand, f"{outcome}\n{running.machine.journal(UNIT)[-3000:]}"
    assert not any((*outcome.repeated, *outcome.reordered, *outcome.other)), outcome
    assert min(outcome.received) + in_hand >= outcome.sent > 0, outcome


def test_upgrade_loses_nothing(running: Appliance) -> None:
    fresh = newer(running.package, "9.8.7", running.lab.directory)
    pid = running.machine.pid(UNIT)
    outcome = running.during(lambda: running.install(fresh))
    assert outcome.whole, f"{outcome}\n{running.machine.journal(UNIT)[-3000:]}"
    assert running.restarted(pid)
    assert '"version":"9.8.7"' in page(running.lab, "/api/v1/status")[1].replace(" ", "")


@pytest.mark.parametrize("by", ["reload", "restart"])
def test_change_of_listeners_loses_nothing(running: Appliance, by: str) -> None:
    def change() -> None:
        running.configure(configuration(ports=(2055, 2056)))
        running.machine.systemctl(by, UNIT)

    try:
        outcome = running.during(change)
        assert outcome.whole, f"{outcome}\n{running.machine.journal(UNIT)[-3000:]}"
        assert metrics(running.lab).names("listener", "receive_datagrams_total") == {"port 2055", "port 2056"}
        kept = int(running.machine.shows(UNIT, "NFileDescriptorStore"))
    finally:
        running.configure(configuration())
        running.machine.systemctl("reload", UNIT)
    assert int(running.machine.shows(UNIT, "NFileDescriptorStore")) == kept // 2, "sockets of the listener that is gone"


def test_process_that_hangs_is_restarted(running: Appliance) -> None:
    pid = running.machine.pid(UNIT)
    running.drop_in("impatient", "[Service]\nWatchdogSec=2\n")
    running.machine.systemctl("restart", UNIT)
    hung = running.machine.pid(UNIT)
    assert hung != pid
    running.machine.run("kill", "-STOP", str(hung))
    wait_for(lambda: running.restarted(hung), "the watchdog to act", 30, 0.1)
    assert "Watchdog timeout" in running.machine.journal(UNIT)
    wait_ready(running.lab)


def test_purge_leaves_nothing(running: Appliance) -> None:
    machine = running.machine
    machine.systemctl("start", "samplicator@edge.service", check=False)
    machine.run("rm", "-r", DROP_INS)  # the administrator's
    machine.run("dpkg", "--remove", NAME)
    assert machine.shows(UNIT, "LoadState") in ("not-found", "masked")
    machine.run("dpkg", "--purge", NAME)
    machine.systemctl("daemon-reload")
    left = machine.files() - running.files
    assert {path for path in left if "samplic" in path} == set()
    assert "samplic" not in machine.run("getent", "passwd").stdout

    # systemd lets go of a unit without a file when it has the time, or is told to look again
    def units() -> list[str]:
        machine.systemctl("daemon-reload")
        return [line for line in machine.systemctl("list-units", "--all").splitlines() if "samplic" in line]

    with contextlib.suppress(AssertionError):
        wait_for(lambda: not units(), "systemd to forget the units", 60, 1)
    assert units() == []
    assert {
        path for path in left if not path.startswith(("/var/log/", "/run/", "/var/lib/systemd/", "/var/cache/"))
    } == set()
