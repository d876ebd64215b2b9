"""Relays behind ECMP, with real BIRD daemons and the files of deploy/anycast: a relay leaves in order, and returns; a
relay is killed; its BIRD is killed; its cable is cut. And the files themselves.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.anycast import ANYCAST, Arrived, Field, Relay, Traffic, ask
from support.linters import run, said, tool
from support.process import wait_for

UNITS = sorted(ANYCAST.rglob("*.service"))

SLACK_SECONDS = 1.0
"""What a relay had not read yet is lost with it; and a change of the route is seen a little after it happened."""


@pytest.fixture
def field() -> Iterator[Field]:
    made = Field()
    try:
        yield made
    finally:
        made.close()


def by_relay(field: Field) -> dict[int, set[str]]:
    return {relay.number: relay.exporters() for relay in field.relays if relay.samplicator.alive}


@pytest.mark.netns
@pytest.mark.slow
def test_relays_behind_ecmp(field: Field) -> None:
    first, second, third = field.relays
    wait_for(lambda: field.behind_control.exists(), "the collector to start")
    field.wait_route(1, 2, 3)
    traffic = Traffic(field)
    arrived = Arrived(field, traffic)
    traffic.start()
    try:
        everybody = set(traffic.addresses)
        wait_for(lambda: set().union(*by_relay(field).values()) == everybody, "every exporter to be seen")
        begin = by_relay(field)
        assert all(begin.values()), f"a relay without exporters: {begin}"
        assert sum(map(len, begin.values())) == len(everybody), "an exporter at two relays"

        leaves_in_order(field, second)
        now = by_relay(field)
        assert set(now) == {1, 3}
        moved = {number: now[number] - begin[number] for number in now}
        assert moved[1] | moved[3] == begin[2], "only the exporters of the relay that left have moved"
        assert moved[1] & moved[3] == set()

        second.start_samplicator()
        second.start_announce()
        field.wait_route(1, 2, 3)
        assert not lost_by(traffic, arrived), "an orderly leave and a return lose nothing"
        assert second.exporters() == set(), "its return moves nobody while datagrams arrive"

        at_first = first.exporters()
        killed = kill_samplicator(field, first, traffic)
        traffic.rounds(2)
        assert second.exporters() <= at_first, "a kill moves only the exporters of the relay that is dead"

        third.bird.send_signal(signal.SIGKILL)
        field.wait_route(2)
        at_third = len(third.exporters())
        third.start_bird()
        field.wait_route(2, 3)
        assert len(third.exporters()) == at_third

        cut = cut_cable(field, third)
        traffic.rounds(3)  # a loss shows by the number of a later datagram
    finally:
        traffic.stop()
    arrived.settle()
    lost = arrived.lost()
    assert arrived.repeated() == 0
    within, after = ([one for one in lost if during(one[2], *gap)] for gap in (killed, cut))
    assert len(within) + len(after) == len(lost), (killed, cut, [one[2] for one in lost])
    assert within, "the relay was killed without a loss: the test shows nothing"
    assert after, "the cable was cut without a loss: the test shows nothing"
    # gaps before the last datagrams are losses when the exporters have been silent for two seconds
    with contextlib.suppress(AssertionError):
        wait_for(lambda: lost_by_ledger(field) >= len(lost), f"{len(lost)} lost in the ledger", 15, 0.2)
    assert lost_by_ledger(field) == len(lost)
    print(
        f"sent {traffic.sent}, lost {len(lost)}, by the ledger {lost_by_ledger(field)}: "
        f"samplicator killed {len(within)} in {killed[1] - killed[0]:.3f} s, {first.no_ports()} of them at no port; "
        f"cable cut {len(after)} in {cut[1] - cut[0]:.3f} s"
    )


def lost_by_ledger(field: Field) -> int:
    """What the relay behind the relays says was lost before it, by the sequence numbers."""
    return int(ask(field.behind_control, "ledger")["before"]["netflow9"]["lost"])


def during(moment: float, begun: float, ended: float) -> bool:
    return begun - SLACK_SECONDS <= moment <= ended + SLACK_SECONDS


def lost_by(traffic: Traffic, arrived: Arrived) -> list[tuple[int, int, float]]:
    """What was sent so far and does not arrive, while the exporters go on."""
    until = [len(times) for times in traffic.times]

    def missing() -> list[tuple[int, int, float]]:
        arrived.take()
        return [one for one in arrived.lost() if one[1] < until[one[0]]]

    try:
        wait_for(lambda: not missing(), "what was sent to arrive", 5)
    except AssertionError:
        return missing()
    return []


def leaves_in_order(field: Field, relay: Relay) -> None:
    """As systemd does it: announce.py ends first, then samplicator."""
    relay.announce.send_signal(signal.SIGTERM)
    field.wait_route(*(other.number for other in field.relays if other is not relay))
    assert relay.announce.wait(30) == 0
    assert "no datagram arrived for 1 s; this relay can stop" in relay.announce.stderr()
    assert relay.samplicator.end() == 0


def kill_samplicator(field: Field, relay: Relay, traffic: Traffic) -> tuple[float, float]:
    """When it was killed, and when the router had no route to it any more: not before every exporter has sent once."""
    relay.announce.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    os.kill(relay.samplicator.pid, signal.SIGKILL)
    traffic.rounds(1)
    relay.announce.send_signal(signal.SIGCONT)
    return begun, field.wait_route(*(other.number for other in field.relays if other is not relay))


def cut_cable(field: Field, relay: Relay) -> tuple[float, float]:
    begun = time.monotonic()
    relay.namespace.ip("link", "set", "e0", "down")
    return begun, field.wait_route(2)


@pytest.mark.parametrize("name", ["relay", "router"])
def test_bird_reads_the_file(name: str) -> None:
    done = run("bird", "-p", "-c", ANYCAST / name / "bird.conf")
    assert done.returncode == 0, said(done)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_unit_is_verified_in_silence(unit: Path, tmp_path: Path) -> None:
    """The units that it names stand in for those of the packages."""
    text = (
        unit.read_text()
        .replace("/usr/bin/python3 ", f"{tool('true')} ")
        .replace("/usr/sbin/birdc ", f"{tool('true')} ")
    )
    (tmp_path / unit.name).write_text(text.replace("Documentation=man:samplicator(8)\n", ""))
    for other in ("samplicator.service", "bird.service"):
        (tmp_path / other).write_text(f"[Service]\nExecStart={tool('true')}\n")
    done = run("systemd-analyze", "verify", tmp_path / unit.name)
    assert (done.returncode, said(done)) == (0, "")


def test_the_route_goes_before_samplicator() -> None:
    """systemd stops in the reverse of After=; Requires= makes it stop this unit at all. Whether it does:
    test_anycast_service.py."""
    text = (ANYCAST / "relay" / "samplicator-anycast.service").read_text()
    assert re.search(r"^Requires=samplicator\.service$", text, re.M)
    assert re.search(r"^After=.*\bsamplicator\.service\b", text, re.M)
    assert re.search(r"^WantedBy=samplicator\.service$", text, re.M)
