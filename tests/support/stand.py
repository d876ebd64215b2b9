"""A relay on the wire with everything a case asks for, and the oracle beside it.

The worker runs in the caller's own thread, a burst at a time: what is sent while it does not run is there as one queue,
so batches and runs form, nothing depends on timing and the oracle knows the order of arrival. Compared for each
receiver and source: payloads, TTL and TOS in order; then every counter. Used by test_property.py. Must never
work out a copy by itself: that is tests/model.py.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import model
from samplicator import _fastpath
from samplicator._fastpath import RxCounters, Tx
from samplicator.datapath.intakes import ring_socket
from samplicator.gateways.door import Datagram
from samplicator.host.ring import Ring
from samplicator.plan.spec import RingMatch

from support.gateway import DoorListener, DoorSink, door_listener, door_sink, door_way
from support.wire import DEVICE, EXPORTERS, HERE, MTU, THERE, Wire
from support.worker import ANY, Listener, Relay, Sink, Way, packed, raw_socket, wait_until

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
LISTENERS = ("four", "six", "both", "ring", "door")
SESSIONS = 12
"""Exporter sessions a family: addresses times ports."""
RUN_MOST = {4: MTU - 28, 6: MTU - 48}
"""Payload bytes that fit one packet."""
NOISE = random.Random(1).randbytes(1 << 17)
UDP, RAW, TRANSPARENT, PACKET, DOOR = (
    _fastpath.ENGINE_UDP,
    _fastpath.ENGINE_RAW,
    _fastpath.ENGINE_TRANSPARENT,
    _fastpath.ENGINE_PACKET,
    _fastpath.ENGINE_DOOR,
)
NAMES = {UDP: "udp", RAW: "raw", TRANSPARENT: "transparent", PACKET: "packet", DOOR: "door"}
MOST_ALIKE = 5  # copies of one payload that are never held


@dataclass(frozen=True)
class ReceiverCase:
    engine: int
    family: int
    ttl: int = 64
    tos: int = -1
    freq: int = 1
    checksum: bool = True
    fixed: bool = False
    pause_us: int = 0


@dataclass(frozen=True)
class RuleCase:
    sources: tuple[str, ...]
    listeners: tuple[int, ...] | None
    receivers: tuple[int, ...]
    stop: bool


@dataclass(frozen=True)
class Block:
    """Consecutive datagrams of one exporter. last: bytes of the last one. segmented: sent as one (UDP_SEGMENT)."""

    exporter: int
    family: int
    size: int
    count: int
    last: int
    tos: tuple[int, ...] = (0,)
    segmented: bool = False


@dataclass(frozen=True)
class Burst:
    listener: int
    blocks: tuple[Block, ...]
    interleaved: bool = False


@dataclass(frozen=True)
class Case:
    receivers: tuple[ReceiverCase, ...]
    rules: tuple[RuleCase, ...]
    bursts: tuple[Burst, ...]
    batch: int
    sessions: int
    max_datagram: int = 65535
    coalesced: bool = False


class RingListener(Listener):
    """A listener whose datagrams come in by a receive ring, those to `port` at both of the relay's addresses."""

    def __init__(self, port: int, index: int) -> None:
        self.ring = Ring(DEVICE, 4 << 20)
        self.sock = self.ring.sock
        self.ring.accept([RingMatch(((port, port),), (packed(HERE[4]), packed(HERE[6])))])
        self.ring.select(1)
        self.port = port
        self.counters = RxCounters()
        self.handle = ring_socket(self.ring, self.counters, index)


@dataclass
class Exporter:
    sock: socket.socket
    address: str
    port: int
    ttl: int


@dataclass
class Send:
    """One call: one datagram, or a run of them."""

    exporter: Exporter
    payloads: list[bytes]
    tos: int

    def to(self, port: int) -> None:
        six = ":" in self.exporter.address
        level, kind = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if six else (socket.IPPROTO_IP, socket.IP_TOS)
        control: list[Any] = [(level, kind, struct.pack("i", self.tos))]
        if len(self.payloads) > 1:
            control.append((SOL_UDP, UDP_SEGMENT, struct.pack("H", len(self.payloads[0]))))
        self.exporter.sock.sendmsg([b"".join(self.payloads)], control, 0, (HERE[6 if six else 4], port))

    def through(self, door: DoorListener) -> None:
        came = packed(self.exporter.address), self.exporter.port
        door.put(*(Datagram(*came, payload, 0, self.exporter.ttl, self.tos) for payload in self.payloads))


@dataclass
class Stand:
    """A relay on the wire with all that a case asks for, and the oracle beside it."""

    wire: Wire
    case: Case
    relay: Relay
    ways: list[Way] = field(default_factory=list)
    fallbacks: list[Way | None] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)
    exporters: dict[int, list[Exporter]] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    expected: list[list[model.Copy]] = field(default_factory=list)
    received: Counter[str] = field(default_factory=Counter)
    sent: int = 0

    def make(self, *, fallbacks: bool = True) -> None:
        with self.wire.outside():
            for family, addresses in EXPORTERS.items():
                self.exporters[family] = [
                    self._exporter(addresses[n % len(addresses)], (64, 33, 1, 255)[n % 4]) for n in range(SESSIONS)
                ]
            self.sinks = [
                door_sink(self.relay) if receiver.engine == DOOR else self.relay.sink(THERE[receiver.family])
                for receiver in self.case.receivers
            ]
        four, six = self.relay.listen(HERE[4]), self.relay.listen(HERE[6])
        both = self.relay.listen("::", dual=True)
        if self.case.coalesced:
            for listener in (four, six, both):
                listener.sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        self.ports = [four.port, six.port, both.port]
        self._make_ring()
        self.door = door_listener(self.relay)
        self.ports.append(0)
        for receiver, sink in zip(self.case.receivers, self.sinks, strict=True):
            self._make_way(receiver, sink, fallbacks)
            self.expected.append([])
        self.oracle = model.Model(
            {str(n): self._described(n) for n in range(len(self.ways))},
            [self._rule(rule) for rule in self.case.rules],
            self.case.max_datagram,
        )
        self.relay.publish(self.relay.plan(ways=self.ways, rules=[self._plan_rule(r) for r in self.oracle.rules]))

    def _exporter(self, address: str, ttl: int) -> Exporter:
        sock = self.relay.exporter(address)
        if ":" in address:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        return Exporter(sock, address, sock.getsockname()[1], ttl)

    def _make_ring(self) -> None:
        """A socket nobody reads keeps the kernel from answering that the port is closed."""
        silent = self.relay.stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        silent.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        silent.bind(("::", 0))
        self.ring = RingListener(silent.getsockname()[1], LISTENERS.index("ring"))
        self.relay.listeners.append(self.ring)
        self.ports.append(self.ring.port)

    def _make_way(self, case: ReceiverCase, sink: Sink, fallbacks: bool) -> None:
        options: dict[str, Any] = {
            "ttl": case.ttl, "tos": case.tos, "freq": case.freq, "mtu": MTU, "pause_us": case.pause_us
        }  # fmt: skip
        if isinstance(sink, DoorSink):
            self.ways.append(door_way(self.relay, sink, freq=case.freq))
            self.fallbacks.append(None)
            return
        own = self.relay.udp(sink.address, sink.port, **options)
        if case.engine == UDP:
            self.ways.append(own)
            self.fallbacks.append(None)
            return
        sock = raw_socket(sink.address)
        if case.fixed:
            options["source"] = (packed(HERE[case.family]), 7777)
        elif fallbacks:
            options["fallback"] = own.tx
        tx = Tx(
            case.engine,
            sock.fileno(),
            own.counters,
            packed(sink.address),
            sink.port,
            checksum=case.checksum,
            **options,
        )
        if case.engine == PACKET:
            tx.link(self.wire.index, self.wire.link_header(case.family), MTU)
        self.relay.ways.append(Way(tx, own.counters, [sock]))
        self.ways.append(self.relay.ways[-1])
        self.fallbacks.append(own)

    def _described(self, n: int) -> model.Receiver:
        case, sink = self.case.receivers[n], self.sinks[n]
        if case.engine == DOOR:
            return model.Receiver(str(n), None, 0, freq=case.freq, ttl=model.KEEP, tos=model.KEEP)
        return model.Receiver(
            str(n),
            model.address_of(sink.address),
            sink.port,
            spoof=case.engine != UDP,
            checksum=case.checksum,
            freq=case.freq,
            ttl=case.ttl or model.KEEP,
            tos=model.KEEP if case.tos < 0 else case.tos,
            source=(model.address_of(HERE[case.family]), 7777) if case.fixed else None,
        )

    @staticmethod
    def _rule(rule: RuleCase) -> model.Rule:
        return model.Rule(
            tuple(source_of(text) for text in rule.sources),
            tuple(map(str, rule.receivers)),
            None if rule.listeners is None else tuple(LISTENERS[n] for n in rule.listeners),
            rule.stop,
        )

    @staticmethod
    def _plan_rule(rule: model.Rule) -> tuple[Any, ...]:
        return (
            [plan_source(source) for source in rule.sources],
            None if rule.listeners is None else [LISTENERS.index(name) for name in rule.listeners],
            [int(name) for name in rule.receivers],
            rule.stop,
        )

    # -- traffic

    def sends(self, burst: Burst) -> list[Send]:
        parts = [self._sends(block) for block in burst.blocks]
        if not burst.interleaved:
            return [send for part in parts for send in part]
        return [part[n] for n in range(max(map(len, parts))) for part in parts if n < len(part)]

    def _sends(self, block: Block) -> list[Send]:
        exporter = self.exporters[block.family][block.exporter]
        sizes = [block.size] * (block.count - 1) + [block.last]
        payloads = [self._payload(size) for size in sizes]
        fits = 0 < block.last <= block.size <= RUN_MOST[block.family] and sum(sizes) <= 65000
        if block.segmented and self.wire.offload and block.count > 1 and fits:
            return [Send(exporter, payloads, block.tos[0])]
        return [Send(exporter, [payload], block.tos[n % len(block.tos)]) for n, payload in enumerate(payloads)]

    def _payload(self, size: int) -> bytes:
        """Distinct ones from four bytes on."""
        self.sent += 1
        return (struct.pack(">I", self.sent) + NOISE[self.sent : self.sent + size])[:size]

    def play(self, burst: Burst) -> None:
        sends = self.sends(burst)
        name, port = LISTENERS[burst.listener], self.ports[burst.listener]
        for send in sends:
            if name == "door":
                send.through(self.door)
            else:
                send.to(port)
        for send in sends:
            self.expect(name, send)
        self.run_worker(name)
        for n, sink in enumerate(self.sinks):
            wanted = len(self.expected[n])
            what = f"{wanted} copies at {NAMES[self.case.receivers[n].engine]}"
            wait_until(lambda s=sink, w=wanted: s.read() >= w, what, 3)
        self.wire.tap.read()

    def expect(self, name: str, send: Send) -> None:
        """Asks the oracle for the copies."""
        for payload in send.payloads:
            seen = model.Datagram(send.exporter.address, send.exporter.port, payload, name, send.exporter.ttl, send.tos)
            self.received[name] += 1
            self.received["bytes " + name] += len(payload)
            for copy in self.oracle.offer(seen):
                self.expected[int(copy.receiver)].append(copy)

    def run_worker(self, name: str) -> None:
        """Until it has read all that was sent to the listener; a block of the ring may take a few ms to come."""
        deadline = time.monotonic() + 3
        while True:
            self.relay.workers[0].stop(5000)
            self.relay.workers[0].run()
            if self.listener_values(name)["datagrams"] >= self.received[name]:
                return
            assert time.monotonic() < deadline, (name, self.listener_values(name), self.received)
            time.sleep(0.001)

    # -- the outcome

    def listener_values(self, name: str) -> dict[str, int]:
        return self.relay.listeners[LISTENERS.index(name)].values()

    def check(self) -> None:
        time.sleep(0.005)
        for n in range(len(self.ways)):
            self.check_copies(n)
        self.check_counters()

    def check_copies(self, n: int) -> None:
        case, fallback = self.case.receivers[n], self.fallbacks[n]
        own = (fallback or self.ways[n]).socks[0].getsockname()[:2] if case.engine != DOOR else None
        wanted: dict[Any, list[Any]] = {}
        got: dict[Any, list[Any]] = {}
        for copy in self.expected[n]:
            wanted.setdefault(copy.source or own, []).append((copy.payload, copy.ttl, copy.tos))
        self.sinks[n].read()
        for arrival in self.sinks[n].arrivals:
            got.setdefault(arrival.source, []).append((arrival.payload, arrival.ttl, arrival.tos))
        where = f"receiver {n}, {case}"
        assert {s: len(c) for s, c in got.items()} == {s: len(c) for s, c in wanted.items()}, where
        for source, copies in wanted.items():
            # what comes again and again may be held for a while (fastpath/route/echo.pxd): too short to be told apart
            alike = {payload for payload, n in Counter(copy[0] for copy in copies).items() if n > MOST_ALIKE}
            held = [Counter(copy[0] for copy in part if copy[0] in alike) for part in (got[source], copies)]
            assert held[0] == held[1], where
            others = [[copy for copy in part if copy[0] not in alike] for part in (got[source], copies)]
            for k, (a, b) in enumerate(zip(*others, strict=True)):
                assert a == b, f"{where}: copy {k} from {source}: {shown(a)}, not {shown(b)}"

    def check_counters(self) -> None:
        counts, total = self.oracle.counts, Counter[str]()
        for name in LISTENERS:
            values = self.listener_values(name)
            assert values["datagrams"] == self.received[name], (name, values)
            assert values["bytes"] == self.received["bytes " + name], (name, values)
            assert values["errors_other"] == 0, (name, values)
            assert values["datagrams"] == sum(values[f] for f in ("truncated", "unmatched", "denied", "matched"))
            total.update(values)
        assert [total[f] for f in ("datagrams", "truncated", "unmatched", "denied", "matched")] == [
            counts[f] for f in ("received", "truncated", "no_route_rule", "acl", "matched")
        ]
        assert self.ring.ring.count_drops() == 0
        for n, way in enumerate(self.ways):
            values = way.values()
            wanted = [counts[f"{f} {n}"] for f in ("offered", "skipped", "sent")]
            assert [values[f] for f in ("offered", "skipped", "sent")] == wanted, (self.case.receivers[n], values)
            assert values["sent_bytes"] == sum(len(copy.payload) for copy in self.expected[n])
            assert way.dropped() == 0
            assert not self.wire.offload or way.tx.gave_up == 0


def source_of(text: str) -> model.Source:
    if not text:
        return model.Source()
    if text.endswith(":ffff"):  # a mask of an IPv6 address with holes: the oracle's reader has no text for it
        address, _, mask = text.partition("/")
        return model.Source(model.address_of(address), int(model.address_of(mask)))
    return model.source_of(text)


def plan_source(source: model.Source) -> tuple[int, bytes, bytes]:
    if source.address is None:
        return ANY
    if source.address.version == 6:
        return 6, source.address.packed, source.mask.to_bytes(16, "big")
    return 4, packed("::ffff:0.0.0.0")[:12] + source.address.packed, b"\xff" * 12 + source.mask.to_bytes(4, "big")


def shown(copy: tuple[bytes, int, int]) -> str:
    payload, ttl, tos = copy
    number = int.from_bytes(payload[:4], "big") if len(payload) >= 4 else "?"
    return f"#{number} of {len(payload)} bytes, ttl {ttl}, tos {tos}"
