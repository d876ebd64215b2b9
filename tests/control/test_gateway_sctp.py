"""SCTP through the same gateway as TCP: the hub, its inlets and its outlets do not know which transport they have.

Exporters and collectors are the gateway itself, over loopback: what a receiver sends comes in by a listener.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest
import uvloop
from samplicator.config.address import parse_source
from samplicator.gateways.door import Datagram, Door
from samplicator.gateways.sctp import choice
from samplicator.gateways.sctp.gateway import Gateway
from samplicator.plan.sessions import Door as Delivery
from samplicator.plan.sessions import DoorSpec, Sctp
from support import flows as model
from support.flows import a_set, template
from support.namespace import alone
from support.peers import LOCALHOST, Stage, read
from support.worker import wait_until

pytestmark = pytest.mark.netns  # raw IP needs root

FIELDS: list[tuple[int, ...]] = [(8, 4), (12, 4)]
TEACH = model.ipfix(0, 1, a_set(2, template(256, FIELDS)))
EXPORTER = b"\xc6\x12\0\1"
PORT = 4740
HOW = Sctp(os.environ.get("SCTP_BACKEND") or choice.AUTO, buffer_limit=65535)


def data(sequence: int, count: int = 1) -> bytes:
    return model.ipfix(sequence, 1, a_set(256, *[(sequence + n).to_bytes(8, "big") for n in range(count)]))


@pytest.fixture(params=["uvloop", "asyncio"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "uvloop": uvloop.new_event_loop,
        "asyncio": asyncio.new_event_loop,
    }
    made = Stage("sctp", loops[request.param], Gateway)
    failed: list[OSError] = []

    def own_network() -> None:
        """A stack that is not the kernel's gets what is for another one of this host, too, and aborts it."""
        try:
            alone()
        except OSError as error:
            failed.append(error)

    assert made.thread.wait(own_network)
    assert failed == []
    yield made
    made.close()


def at(port: int, **settings: object) -> DoorSpec:
    return DoorSpec("sctp", ((LOCALHOST, port, 0),), message_bytes=1452, sctp=HOW, **settings)  # type: ignore[arg-type]


def to(port: int) -> Delivery:
    return Delivery("sctp", LOCALHOST, port, 0, "127.0.0.1", sctp=HOW)


def put(door: Door, *payloads: bytes, port: int = 2055) -> None:
    datagrams = [Datagram(EXPORTER, port, payload) for payload in payloads]
    assert door.write(datagrams) == len(datagrams)


def test_out_and_in_again(stage: Stage) -> None:
    """Each exporter has an association of its own, in which order is kept; templates are sent once."""
    inside = stage.listener("in", at(PORT))
    stage.listening()
    outside = stage.receiver("out", to(PORT))
    for port in (2055, 2056, 2057):
        put(outside, TEACH, data(0), TEACH, *(data(n) for n in range(1, 50)), port=port)
    found = read(inside, 3 * 51)
    by_session: dict[tuple[bytes, int], list[bytes]] = {}
    for one in found:
        by_session.setdefault((one.address, one.port), []).append(one.payload)
    assert list(by_session.values()) == 3 * [[TEACH, *(data(n) for n in range(50))]]
    sessions = stage.hub.sessions()
    assert {(one.side, one.state) for one in sessions} == {("out", "connected"), ("in", "connected")}
    assert len(sessions) == 6


def test_a_long_message_becomes_datagrams(stage: Stage) -> None:
    inside = stage.listener("in", at(PORT))
    stage.listening()
    outside = stage.receiver("out", to(PORT))
    put(outside, TEACH, data(0, 8000))
    found: list[bytes] = []

    def there() -> bool:
        found.extend(one.payload for one in inside.read())
        return sum(len(one) - 20 for one in found[1:]) >= 8 * 8000

    wait_until(there, "8000 records")
    assert found[0] == TEACH
    assert max(map(len, found)) <= 1452
    records = b"".join(one[20:] for one in found[1:])
    assert records == b"".join(n.to_bytes(8, "big") for n in range(8000))
    collector = model.Collector()
    for one in found:
        collector.take(0, one)
    assert (collector.sequence_errors, collector.unknown_sets) == (0, 0)


def test_who_is_not_allowed_gets_no_association(stage: Stage) -> None:
    stage.listener("in", at(PORT, allow=(parse_source("192.0.2.0/24"),)))
    stage.listening()
    outside = stage.receiver("out", to(PORT))
    put(outside, TEACH)
    wait_until(lambda: stage.hub.fault("out").startswith("not connected: "), "the refusal", 30)
    assert [one for one in stage.hub.sessions() if one.side == "in"] == []


def test_a_worker_that_does_not_read_makes_the_exporter_wait(stage: Stage) -> None:
    """Nothing is lost on the way: the small queue of a door, the associations and the queue before them hold it. (Of
    more records than `buffer_limit` the oldest would be dropped.)
    """
    inside = stage.listener("in", at(PORT), queue_bytes=1 << 18)
    stage.listening()
    outside = stage.receiver("out", to(PORT))
    put(outside, TEACH)
    found = read(inside, 1)  # only then the flood: what waits for an association is bounded, the oldest is dropped
    sent, count, each = 0, 20_000, 3
    assert count * each <= HOW.buffer_limit
    while sent < count:
        burst = [Datagram(EXPORTER, 2055, data(each * n, each)) for n in range(sent, min(sent + 200, count))]
        sent += outside.write(burst)
        if len(found) < sent // 2:
            found += inside.read()
    wait_until(lambda: found.extend(inside.read()) or len(found) > count, "all", 200)  # type: ignore[func-returns-value]
    assert [one.payload for one in found] == [TEACH, *(data(each * n, each) for n in range(count))]
