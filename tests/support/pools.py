"""A worker with a flow stage on loopback, exporters of templates and data, a collector behind each receiver. Used by
tests/engine. Must never judge by itself what a collector would say: that is flows.Collector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from samplicator._fastpath import Flow, Plan

from support import flows as model
from support.flows import IPFIX, V9
from support.worker import ANY, Relay, Way, wait_until

FIELDS = [(8, 4), (12, 4), (2, 4)]
ROWS = 5


class Exporter:
    """A v9 or IPFIX exporter whose observation domain is its number: templates first, then only when asked for."""

    def __init__(self, relay: Relay, number: int, kind: int) -> None:
        self.sock = relay.exporter(f"127.1.{number // 250}.{number % 250 + 1}")
        self.number, self.kind, self.sequence, self.identity, self.rows = number, kind, 0, 256, 0

    def message(self, *sets: bytes, records: int) -> bytes:
        if self.kind == V9:
            payload = model.v9(self.sequence, self.number, *sets, count=max(1, records))
            self.sequence += 1
        else:
            payload = model.ipfix(self.sequence, self.number, *sets)
            self.sequence += records
        return payload

    def templates(self) -> bytes:
        return model.a_set(0 if self.kind == V9 else 2, model.template(self.identity, FIELDS))

    def data(self) -> bytes:
        self.rows += ROWS
        return model.a_set(self.identity, *[bytes([self.number % 256]) * 12 for _ in range(ROWS)], pad=4)


class Stand:
    """One worker with a flow stage, four receivers, exporters, and a collector behind each receiver."""

    def __init__(self, relay: Relay, exporters: int, receivers: int = 4) -> None:
        self.relay = relay
        self.listener = relay.listen("0.0.0.0")
        self.listener.handle.set_flow(True)
        self.sinks = [relay.sink() for _ in range(receivers)]
        self.ways: list[Way] = [relay.udp("127.0.0.1", sink.port) for sink in self.sinks]
        self.exporters = [Exporter(relay, n, V9 if n % 2 else IPFIX) for n in range(exporters)]
        self.collectors = [model.Collector() for _ in self.sinks]
        self.taken = [0] * receivers
        self.served: list[dict[int, int]] = []
        self.sent = 0

    def plan(self, pools: Any, ways: Sequence[int], members: Sequence[Way] | None = None) -> Plan:
        self.relay.generation += 1
        txs = [way.tx for way in (self.ways if members is None else members)]
        return Plan(self.relay.generation, [self.listener.handle], txs, [([ANY], None, ways, False)], pools)

    def start(self, pools: Any, ways: Sequence[int]) -> None:
        self.relay.publish(self.plan(pools, ways))
        self.relay.start()

    def send(self, exporter: Exporter, payload: bytes) -> None:
        exporter.sock.sendto(payload, ("127.0.0.1", self.listener.port))
        self.sent += 1

    def round(self, build: Callable[[Exporter], bytes]) -> list[list[bytes]]:
        """One datagram of each exporter; returns what each receiver got of this round, and feeds the collectors."""
        for exporter in self.exporters:
            self.send(exporter, build(exporter))
        return self.settle()

    def settle(self) -> list[list[bytes]]:
        """What each receiver got since the last call; the collectors have it then."""
        fresh = self.settle_plain()
        for collector, payloads in zip(self.collectors, fresh, strict=True):
            for payload in payloads:
                collector.take(0, payload)
        return fresh

    def settle_plain(self) -> list[list[bytes]]:
        wait_until(lambda: self.relay.received() == self.sent, "all datagrams to be received")
        expected = [way.values()["sent"] for way in self.ways]
        while True:  # the counters of the last batch may lag behind its receive counters
            for sink, count in zip(self.sinks, expected, strict=True):
                wait_until(partial(lambda s, n: s.read() >= n, sink, count), "copies to arrive")
            now = [way.values()["sent"] for way in self.ways]
            if now == expected and sum(way.values()["offered"] for way in self.ways) == sum(
                way.values()["sent"] + way.dropped() for way in self.ways
            ):
                break
            expected = now
        fresh = []
        for n, sink in enumerate(self.sinks):
            fresh.append(sink.payloads[self.taken[n] :])
            self.taken[n] += len(fresh[-1])
        return fresh

    def who(self, fresh: list[list[bytes]]) -> dict[int, int]:
        """By which receiver each exporter's data were taken."""
        return {
            domain_of(payload): n
            for n, payloads in enumerate(fresh)
            for payload in payloads
            if any(one.identity >= 256 for one in parsed(payload).sets)
        }

    def teach(self) -> list[list[bytes]]:
        return self.round(lambda e: e.message(e.templates(), records=0))

    def data(self) -> dict[int, int]:
        return self.who(self.round(lambda e: e.message(e.data(), records=ROWS)))

    def down(self, member: int, value: bool) -> None:
        self.ways[member].tx.down = value

    def check(self) -> None:
        """Every record once, and nothing that a collector would complain of."""
        assert [c.sequence_errors for c in self.collectors] == [0] * len(self.collectors)
        assert [c.unknown_sets for c in self.collectors] == [0] * len(self.collectors)
        assert sum(c.records for c in self.collectors) == sum(e.rows for e in self.exporters)


def parsed(payload: bytes) -> model.Message:
    message = model.parse(payload)
    assert message is not None
    return message


def domain_of(payload: bytes) -> int:
    return parsed(payload).domain


def stand(relay: Relay, exporters: int = 40, receivers: int = 4) -> Stand:
    return Stand(relay, exporters, receivers)


def new_relay() -> Relay:
    return Relay(flow=Flow(1 << 22))  # type: ignore[arg-type]
