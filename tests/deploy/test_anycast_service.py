"""The unit of deploy/anycast under systemd, on a booted Debian 12: the route goes before samplicator does, and after a
crash. BIRD is played by a script that writes down what it is told, and when.
"""

from __future__ import annotations

import pytest
from support.anycast import ANYCAST
from support.appliance import UNIT, Appliance
from support.process import wait_for

pytestmark = [
    pytest.mark.netns,
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.deploy_heavy,
    pytest.mark.parametrize("appliance", ["bookworm"], indirect=True, scope="module"),
]

SERVICE = "samplicator-anycast.service"
TOLD = "/run/told"
BIRDC = f"""\
#!/bin/sh
# birdc [enable|disable] PATTERN
echo "$(cut -d' ' -f1 /proc/uptime) $1" >>{TOLD}
"""


@pytest.fixture
def relay(appliance: Appliance) -> Appliance:
    """The relay, announced."""
    machine = appliance.machine
    if not machine.path("/usr/sbin/birdc").exists():
        machine.write("/usr/sbin/birdc", BIRDC)
        machine.run("chmod", "755", "/usr/sbin/birdc")
        machine.write("/etc/systemd/system/bird.service", "[Service]\nExecStart=/bin/sleep infinity\n")
        machine.write("/usr/local/lib/samplicator/announce.py", (ANYCAST / "relay" / "announce.py").read_text())
        unit = (ANYCAST / "relay" / SERVICE).read_text()
        # its sandbox keeps the script from writing; nothing else is changed
        machine.write(f"/etc/systemd/system/{SERVICE}", unit.replace("[Service]", "[Service]\nReadWritePaths=/run", 1))
        machine.systemctl("daemon-reload")
        machine.systemctl("enable", SERVICE)
    appliance.running()
    wait_for(lambda: says(appliance, "enable"), "the route to be announced", 60, 0.2)
    return appliance


def told(relay: Appliance) -> list[tuple[float, str]]:
    """What BIRD was told: when, and enable or disable."""
    path = relay.machine.path(TOLD)
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(when), what) for when, what in (line.split() for line in lines)]


def says(relay: Appliance, what: str, count: int = 0) -> bool:
    """Whether `what` is the last thing that BIRD was told, after the first `count` lines."""
    lines = told(relay)[count:]
    return bool(lines) and lines[-1][1] == what


def test_the_route_is_announced_when_samplicator_is_ready(relay: Appliance) -> None:
    assert "route announced: samplicator is ready" in relay.machine.journal(SERVICE)


def test_a_crash_withdraws_the_route_at_once(relay: Appliance) -> None:
    """Before systemd does anything: it restarts this unit, too, when it starts samplicator again."""
    process, before = relay.machine.pid(UNIT), len(told(relay))
    relay.machine.run("kill", "-KILL", str(process))
    wait_for(lambda: "disable" in [what for _, what in told(relay)[before:]], "the route to go", 30, 0.1)
    wait_for(lambda: says(relay, "enable", before), "the route to come back", 60, 0.2)
    assert "route withdrawn: samplicator is not ready" in relay.machine.journal(SERVICE)


@pytest.mark.parametrize("verb", ["restart", "stop"])
def test_the_route_goes_first(relay: Appliance, verb: str) -> None:
    before = len(told(relay))
    relay.machine.systemctl(verb, UNIT)
    journal = relay.machine.run("journalctl", "-o", "short-monotonic", "--no-pager").stdout.splitlines()
    withdrawn = next(when for when, what in told(relay)[before:] if what == "disable")
    quiet = moment(journal, "no datagram arrived for 2 s; this relay can stop")
    ended = moment(journal, "SIGTERM: samplicator forwards what is queued")
    assert withdrawn + 2.0 <= quiet + 0.1
    assert quiet <= ended
    if verb == "restart":
        wait_for(lambda: says(relay, "enable", before), "the route to come back", 60, 0.2)
    else:
        assert says(relay, "disable", before)
        assert relay.machine.shows(SERVICE, "ActiveState") == "inactive"


def moment(journal: list[str], text: str) -> float:
    """Seconds since the start of the host of the last line with this text."""
    line = next(line for line in reversed(journal) if text in line)
    return float(line.split("]")[0].strip("[ "))
