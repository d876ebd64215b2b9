"""Unspoofed copies of exporters that use one domain and one template number: lanes (a port for each session) and
aliases (a domain for each exporter). A judge that decodes by port and domain, or by domain alone, must get every flow
right and see no wrong sequence number, whenever and however a session changes its port or its alias.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from samplicator._fastpath import ALIAS_BYTES, ALIAS_COUNT, Aliases, Flow, Plan
from support import flows as model
from support.apart import Exporter, Judge, expected
from support.flows import IPFIX, V9
from support.worker import ANY, Arrival, Listener, Relay, Sink, Way, wait_until

KINDS = pytest.mark.parametrize("kind", [V9, IPFIX], ids=["netflow9", "ipfix"])
CREDIT = 128


class Stand:
    """One worker with a flow stage, one listener, receivers with a judge each."""

    def __init__(self, relay: Relay, *, flow: bool = True) -> None:
        self.relay = relay
        self.listener: Listener = relay.listen("0.0.0.0")
        self.listener.handle.set_flow(flow)
        self.memory = bytearray(ALIAS_BYTES)
        self.aliases = Aliases(self.memory)
        self.ways: list[Way] = []
        self.sinks: list[Sink] = []
        self.judges: list[Judge] = []
        self.taken: list[int] = []
        self.exporters: list[Exporter] = []
        self.others = 0

    def receiver(self, *, by_port: bool = True, **options: Any) -> Way:
        sink = self.relay.sink()
        self.ways.append(self.relay.udp("127.0.0.1", sink.port, **options))
        self.sinks.append(sink)
        self.judges.append(Judge(by_port=by_port))
        self.taken.append(0)
        return self.ways[-1]

    def plan(self, ways: Sequence[Way] | None = None) -> Plan:
        self.relay.generation += 1
        txs = [way.tx for way in (self.ways if ways is None else ways)]
        rules = [([ANY], None, range(len(txs)), False)]
        return Plan(self.relay.generation, [self.listener.handle], txs, rules, aliases=self.aliases)

    def start(self) -> None:
        self.relay.publish(self.plan())
        self.relay.start()

    def socket(self, address: str) -> socket.socket:
        sock = self.relay.exporter(address)
        sock.connect(("127.0.0.1", self.listener.port))
        return sock

    def flock(self, count: int, kind: int, first: int = 0, **more: int) -> list[Exporter]:
        made = [
            Exporter(self.socket(f"127.2.{n // 250}.{n % 250 + 1}"), kind, n, **more)
            for n in range(first, first + count)
        ]
        self.exporters += made
        return made

    def settle(self) -> None:
        """Until all copies are there and judged."""
        sent = sum(exporter.datagrams for exporter in self.exporters) + self.others
        wait_until(lambda: self.relay.received() == sent, "all datagrams to be received")
        for n, (sink, way) in enumerate(zip(self.sinks, self.ways, strict=True)):
            wait_until(partial(self._arrived, sink, way, sent), "copies to arrive")
            for arrival in sink.arrivals[self.taken[n] :]:
                if arrival.payload:
                    self.judges[n].take(arrival.source, arrival.payload)
            self.taken[n] = len(sink.arrivals)

    def _arrived(self, sink: Sink, way: Way, sent: int) -> bool:
        values = way.values()
        done = values["offered"] == values["sent"] + values["skipped"] + way.dropped()
        return done and values["offered"] >= sent and sink.read() == values["sent"]

    def rounds(self, exporters: Sequence[Exporter], count: int) -> None:
        for _ in range(count):
            for exporter in exporters:
                exporter.send()
        self.settle()

    def sockets(self) -> int:
        wait_until(lambda: self.relay.worker()["wakeups"] >= 0, "a beat")
        return self.relay.worker()["session_sockets"]

    def check(self, judge: int = 0) -> None:
        one = self.judges[judge]
        assert one.flows == expected(self.exporters)
        assert (one.sequence_errors, one.unknown) == (0, 0)


def parsed(arrival: Arrival) -> model.Message:
    message = model.parse(arrival.payload)
    assert message is not None
    return message


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Relay(flow=Flow(4 << 20)) as relay:  # type: ignore[arg-type]
        yield Stand(relay)


@KINDS
def test_lanes_from_the_first_datagram(stand: Stand, kind: int) -> None:
    stand.receiver(per_session=True)
    stand.receiver(per_session=True)
    stand.start()
    stand.rounds(stand.flock(30, kind), 20)
    for n in (0, 1):
        stand.check(n)
        assert stand.judges[n].domains == {0}
        assert len(stand.judges[n].sources) == 30
        assert stand.ways[n].values()["shared_port"] == 0
    assert stand.relay.worker()["session_sockets"] == 60


@KINDS
def test_lanes_over_ipv6(stand: Stand, kind: int) -> None:
    """Exporters of IPv4, a collector of IPv6."""
    sink = stand.relay.sink("::1")
    stand.ways.append(stand.relay.udp("::1", sink.port, per_session=True))
    stand.sinks.append(sink)
    stand.judges.append(Judge())
    stand.taken.append(0)
    stand.start()
    stand.rounds(stand.flock(10, kind), 15)
    stand.check()
    assert len(stand.judges[0].sources) == 10
    assert {source[0] for source in stand.judges[0].sources} == {"::1"}


@KINDS
def test_a_lane_that_is_earned(stand: Stand, kind: int) -> None:
    """Without credit a session leaves by the shared port, under an alias, until it has sent eight datagrams; its
    templates, which it sent once, come again by the new port.
    """
    stand.receiver(per_session=True)
    stand.start()
    forged = stand.flock(250, kind)
    late = stand.flock(60, kind, first=600, every=1_000_000)
    stand.rounds([*forged, *late], 1)
    assert CREDIT <= stand.relay.worker()["session_sockets"] < CREDIT + 40
    for _ in range(30):
        stand.rounds(late, 1)
    stand.check()
    ours = stand.ways[0].socks[0].getsockname()
    assert len({arrival.source for arrival in stand.sinks[0].arrivals} - {ours}) <= CREDIT + 60 + 40
    shared = [parsed(arrival) for arrival in stand.sinks[0].arrivals if arrival.source == ours]
    assert 0 not in {message.domain for message in shared}
    assert sum(one.identity == 256 for message in shared for one in message.sets) > 20  # data of `late`
    last = stand.sinks[0].arrivals[-60:]
    assert {parsed(arrival).domain for arrival in last} == {0}
    assert len({arrival.source for arrival in last}) == 60
    assert ours not in {arrival.source for arrival in last}


def test_forged_sources_do_not_cost_a_socket_each(stand: Stand) -> None:
    stand.receiver(per_session=True)
    stand.start()
    start = time.monotonic()
    for n in range(3000):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((f"127.3.{n // 250}.{n % 250 + 1}", 0))
            sock.sendto(
                model.v9(0, 0, model.a_set(0, model.template(256, [(1, 4)]))), ("127.0.0.1", stand.listener.port)
            )
    stand.others = 3000
    stand.settle()
    assert stand.relay.worker()["session_sockets"] <= CREDIT + 8 * (time.monotonic() - start + 2)
    assert stand.judges[0].sequence_errors == 0
    assert stand.ways[0].values()["shared_port"] >= 2000


@KINDS
def test_lanes_go_with_their_receiver(stand: Stand, kind: int) -> None:
    """A plan without the receiver closes them; one that names it anew opens them, with the ports of before."""
    way = stand.receiver(per_session=True)
    other = stand.receiver(alias=True, by_port=False)
    stand.start()
    exporters = stand.flock(10, kind, every=1_000_000)
    stand.rounds(exporters, 5)
    stand.relay.publish(stand.plan([other]))
    stand.relay.workers[0].wake()
    wait_until(lambda: stand.relay.worker()["session_sockets"] == 0, "the sockets to be closed")
    before, stand.judges[0] = stand.judges[0], Judge()  # the collector has forgotten everything, too
    stand.judges[0].flows = before.flows
    way.tx.replay()
    stand.relay.publish(stand.plan())
    wait_until(lambda: not way.tx.replaying, "the replay")
    stand.rounds(exporters, 5)
    for n in (0, 1):
        stand.check(n)
    assert stand.relay.worker()["session_sockets"] == 10
    assert stand.judges[0].sources == before.sources
    assert len(before.sources) == 10


@KINDS
def test_a_lane_whose_port_a_listener_is_to_have(stand: Stand, kind: int) -> None:
    """It is given back and not taken again; the session goes on from another port, templates first."""
    stand.receiver(per_session=True)
    stand.start()
    exporters = stand.flock(10, kind, every=1_000_000)
    stand.rounds(exporters, 5)
    ports = sorted(port for _, port in stand.judges[0].sources)
    ours = stand.ways[0].socks[0].getsockname()[1]
    assert len(ports) == 10
    taken = ports[:4]
    for n, port in enumerate(taken):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, pytest.raises(OSError, match="in use"):
            other.bind(("0.0.0.0", port))
        stand.relay.workers[0].withhold(*taken[: n + 1])
        wait_until(lambda: stand.relay.workers[0].let_go, "the port to be given back")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("0.0.0.0", port))
        stand.rounds(exporters, 5)  # the port is free, and stays so
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("0.0.0.0", port))
    stand.check()
    last = {arrival.source[1] for arrival in stand.sinks[0].arrivals[-50:]}  # the last five rounds, in whatever batches
    assert len(last - {ours}) == 10
    assert not last & set(taken)


def test_lanes_leave_reserved_ports_alone(stand: Stand) -> None:
    """net.ipv4.ip_local_port_range and net.ipv4.ip_local_reserved_ports, as the control plane reads them."""
    worker = stand.relay.workers[0]
    worker.source_ports(40000, 40199, range(40020, 40200))
    stand.receiver(per_session=True)
    stand.start()
    exporters = stand.flock(30, V9)
    stand.rounds(exporters, 5)
    stand.check()
    ours = stand.ways[0].socks[0].getsockname()[1]
    ports = {port for _, port in stand.judges[0].sources} - {ours}
    assert ports & set(range(40000, 40020))
    assert not ports & set(range(40020, 40200))  # when the hash finds none, the kernel chooses, by its own sysctl
    with pytest.raises(ValueError, match="range"):
        worker.source_ports(2, 1)
    with pytest.raises(ValueError, match="port"):
        worker.source_ports(1, 2, [65536])


@KINDS
@pytest.mark.parametrize("freq", [1, 3])
def test_aliases(stand: Stand, kind: int, freq: int) -> None:
    stand.receiver(alias=True, by_port=False, freq=freq)
    stand.start()
    exporters = stand.flock(40, kind)
    stand.rounds(exporters, 24)
    assert stand.judges[0].sequence_errors == stand.judges[0].unknown == 0
    assert len(stand.judges[0].domains) == 40
    assert 0 not in stand.judges[0].domains
    assert not stand.judges[0].flows - expected(exporters)
    if freq == 1:
        stand.check()


@KINDS
@pytest.mark.parametrize("freq", [1, 2])
def test_an_alias_that_was_taken_over(stand: Stand, kind: int, freq: int) -> None:
    """Another worker saw another session of the exporter take the alias: the first gets one of its own, templates
    first.
    """
    stand.receiver(alias=True, by_port=False, freq=freq)
    stand.start()
    (exporter,) = stand.flock(1, kind, every=1_000_000)
    stand.rounds([exporter], 10)
    before = set(stand.judges[0].domains)
    ((place, *_),) = stand.aliases.list(0, 10)[0]
    claim = 64 + 4 * ALIAS_COUNT + 64 * place
    struct.pack_into("=II", stand.memory, claim, int(time.monotonic()), 0x10000 | 9)
    time.sleep(1.1)  # an alias is asked for once a second
    stand.rounds([exporter], 20)
    after = stand.judges[0].domains - before
    assert len(after) == 1
    assert (stand.judges[0].sequence_errors, stand.judges[0].unknown) == (0, 0)
    if freq == 1:
        stand.check()


@KINDS
def test_two_sessions_of_one_address(stand: Stand, kind: int) -> None:
    stand.receiver(alias=True, by_port=False)
    stand.receiver(per_session=True)
    stand.start()
    for n in range(5):
        stand.exporters.append(Exporter(stand.socket("127.2.9.9"), kind, n))
    stand.rounds(stand.exporters, 20)
    stand.check(0)
    stand.check(1)
    assert len(stand.judges[0].domains) == len(stand.judges[1].sources) == 5


def test_datagrams_the_flow_stage_does_not_see(stand: Stand) -> None:
    """syslog, or flow = "off": a port for each session all the same, no byte changed."""
    stand.receiver(per_session=True)
    stand.listener.handle.set_flow(False)
    stand.start()
    socks = [stand.socket(f"127.2.1.{n}") for n in range(1, 11)]
    for k in range(20):
        for n, sock in enumerate(socks):
            sock.send(b"<34>message %d of %d" % (k, n))
    wait_until(lambda: stand.sinks[0].read() == 200, "copies")
    by_source: dict[Any, list[bytes]] = {}
    for arrival in stand.sinks[0].arrivals:
        by_source.setdefault(arrival.source, []).append(arrival.payload)
    wanted = [[b"<34>message %d of %d" % (k, n) for k in range(20)] for n in range(10)]
    assert sorted(by_source.values()) == sorted(wanted)


def test_bytes_of_others_are_untouched(stand: Stand) -> None:
    """v5, sFlow and whatever is no flow telemetry pass an alias as they came, and so do copies for a plain receiver."""
    stand.receiver(alias=True, by_port=False)
    stand.receiver()
    stand.start()
    sock = stand.socket("127.2.1.1")
    one = model.v9(5, 7, model.a_set(0, model.template(256, [(1, 4)])))
    sent = [model.v5(0, 3, 9), model.sflow(1, bytes(4)), b"", b"\0\x09", b"text", one, one[:18], one[:-3]]
    for payload in sent:
        sock.send(payload)
    for sink in stand.sinks:
        wait_until(partial(lambda s: s.read() == len(sent), sink), "copies")
    assert stand.sinks[1].payloads == sent
    (alias,) = {model.parse(p).domain for p in stand.sinks[0].payloads[5:6]}  # type: ignore[union-attr]
    named = [p[:16] + alias.to_bytes(4, "big") + p[20:] if p[:2] == b"\0\x09" and len(p) >= 20 else p for p in sent]
    assert stand.sinks[0].payloads == named  # a malformed one, too: who knows what a collector makes of it


def test_refused_copies_are_counted(stand: Stand) -> None:
    """Reports of the network reach the receiver's counters, whichever socket they come to."""
    way = stand.receiver(per_session=True)
    stand.sinks[0].sock.close()
    stand.start()
    exporters = stand.flock(5, V9)
    for _ in range(20):
        for exporter in exporters:
            exporter.send()
            time.sleep(0.001)
    wait_until(lambda: stand.relay.received() == 100, "datagrams")
    wait_until(lambda: way.values()["offered"] == way.values()["sent"] + way.dropped(), "copies to be counted")
    assert way.values()["failed_refused"] > 50
    stand.sinks.clear()
    stand.relay.sinks.clear()
