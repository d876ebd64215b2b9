"""Pools and standbys on loopback: every record is decoded once and by one member, whoever comes and goes, and no
collector counts a sequence error or an unknown template.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flow_model as model
import pytest
from engine_relay import ANY, Relay, Way, wait_until
from flow_model import IPFIX, V9
from samplicator import _fastpath
from samplicator._fastpath import Flow, Plan

FIELDS = [(8, 4), (12, 4), (2, 4)]
ROWS = 5
HASH, TURNS = _fastpath.POOL_EXPORTER_HASH, _fastpath.POOL_ROUND_ROBIN


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


POOL = [(5, HASH, [(0, 1), (1, 1), (2, 1), (3, 1)])]


def test_each_exporter_has_one_member_and_all_know_its_templates() -> None:
    with new_relay() as relay:
        s = stand(relay)
        s.start(POOL, [4])
        s.teach()
        first = s.data()
        assert len(first) == 40
        assert set(first.values()) == {0, 1, 2, 3}
        for _ in range(5):
            assert s.data() == first
        s.check()
        for collector in s.collectors:
            assert {key[2] for key in collector.templates} == set(range(40))
        share = relay.workers[0].pool(5)
        assert sum(share.values()) == 40
        assert [share[way.counters.id] for way in s.ways] == [list(first.values()).count(n) for n in range(4)]
        assert relay.workers[0].pool(6) == {}


def test_untouched_where_nothing_was_injected() -> None:
    with new_relay() as relay:
        s = stand(relay, 8)
        s.start(POOL, [4])
        sent = []

        def one(exporter: Exporter) -> bytes:
            sent.append(exporter.message(exporter.templates(), exporter.data(), records=ROWS))
            return sent[-1]

        s.round(one)
        data = s.who(s.round(one))
        for payload in sent:
            assert s.sinks[data[domain_of(payload)]].payloads.count(payload) == 1


@pytest.mark.parametrize("dead", range(4))
def test_a_member_fails_and_returns(dead: int) -> None:
    with new_relay() as relay:
        s = stand(relay)
        s.start(POOL, [4])
        s.teach()
        before = s.data()
        for _ in range(2):
            s.down(dead, True)
            during = s.data()
            for number, member in during.items():
                assert member != dead
                assert (member != before[number]) == (before[number] == dead)
            assert s.data() == during
            s.down(dead, False)
            assert s.data() == before
            assert s.data() == before
        s.check()


def test_templates_learnt_while_a_member_was_away() -> None:
    """It is told when an exporter moves back to it: before the data."""
    with new_relay() as relay:
        s = stand(relay)
        s.start(POOL, [4])
        s.teach()
        before = s.data()
        s.down(1, True)
        s.data()
        for exporter in s.exporters:
            exporter.identity = 300
        s.teach()
        s.data()
        s.down(1, False)
        assert s.data() == before
        s.check()


def test_new_templates_in_the_middle_reach_all_members() -> None:
    with new_relay() as relay:
        s = stand(relay)
        s.start(POOL, [4])
        s.teach()
        s.data()
        for identity in (257, 258):
            for exporter in s.exporters:
                exporter.identity = identity
            s.round(lambda e: e.message(e.templates(), e.data(), records=ROWS))
            s.data()
        fresh = s.teach()  # nothing new: told to nobody but who has the exporter
        assert sum(len(payloads) for payloads in fresh) == 40
        s.check()
        for collector in s.collectors:
            assert len(collector.templates) == 120


def test_members_join_and_leave_by_new_plans() -> None:
    with new_relay() as relay:
        s = stand(relay)
        three = [(5, HASH, [(0, 1), (1, 1), (2, 1)])]
        s.start(three, [4])
        s.teach()
        before = s.data()
        relay.publish(s.plan(POOL, [4]))
        joined = s.data()
        moved = {number for number in joined if joined[number] != before[number]}
        assert 3 <= len(moved) <= 20
        assert {joined[number] for number in moved} == {3}
        relay.publish(s.plan([(5, HASH, [(1, 1), (2, 1), (3, 1)])], [4]))
        left = s.data()
        assert {number for number in left if left[number] != joined[number]} == {n for n in joined if joined[n] == 0}
        assert s.data() == left
        s.check()


def test_a_receiver_named_besides_the_pool_gets_one_copy_of_all() -> None:
    with new_relay() as relay:
        s = stand(relay)
        s.start(POOL, [2, 4])
        s.teach()
        s.data()
        s.down(0, True)
        s.data()
        s.down(0, False)
        s.data()
        assert s.collectors[2].records == sum(e.rows for e in s.exporters)
        assert [way.values()["offered"] for way in s.ways][2] == s.sent
        others = [s.collectors[n] for n in (0, 1, 3)]
        assert 0 < sum(c.records for c in others) < s.collectors[2].records
        assert [c.sequence_errors + c.unknown_sets for c in s.collectors] == [0] * 4
        assert all(sink.payloads.count(p) == 1 for sink in [s.sinks[2]] for p in set(sink.payloads))


def test_replay_to_a_member_that_came_back() -> None:
    """A collector that was restarted knows nothing: it gets everybody's templates, its own exporters go on."""
    with new_relay() as relay:
        s = stand(relay)
        s.start(POOL, [4])
        s.teach()
        before = s.data()
        s.collectors[1] = model.Collector()
        s.ways[1].tx.replay()
        relay.workers[0].wake()
        wait_until(lambda: not s.ways[1].tx.replaying, "the replay")
        s.settle()
        assert {key[2] for key in s.collectors[1].templates} == set(range(40))
        assert s.data() == before
        s.down(0, True)
        s.data()
        s.down(0, False)
        s.data()
        assert [c.sequence_errors + c.unknown_sets for c in s.collectors] == [0] * 4


def test_round_robin_shares_the_datagrams() -> None:
    with new_relay() as relay:
        s = stand(relay, 6)
        s.start([(5, TURNS, POOL[0][2])], [4])
        s.teach()
        for _ in range(20):
            s.data()
        s.check()
        records = [collector.records for collector in s.collectors]
        assert max(records) - min(records) <= 2 * ROWS
        for exporter in s.exporters:
            exporter.identity = 400
        for _ in range(3):  # in one batch with data before and behind it
            for exporter in s.exporters:
                s.send(exporter, exporter.message(exporter.data(), records=ROWS) if exporter.rows > 105 else
                       exporter.message(exporter.templates(), exporter.data(), records=ROWS))  # fmt: skip
            s.settle()
        s.check()


def test_plain_datagrams_are_shared_by_exporter() -> None:
    """What is no flow data has no domain: the address decides; ports do not."""
    with new_relay() as relay:
        s = stand(relay, 0)
        s.start(POOL, [4])
        for n in range(32):
            for port in range(3):
                sock = relay.exporter(f"127.2.0.{n + 1}")
                sock.sendto(b"<13>message %d of %d" % (port, n), ("127.0.0.1", s.listener.port))
                s.sent += 1
        fresh = s.settle_plain()
        homes = [{payload.split(b" of ")[1] for payload in payloads} for payloads in fresh]
        assert sum(map(len, homes)) == 32
        assert all(homes)


def test_both_families_go_to_the_same_member() -> None:
    """An exporter of the other family than a spoofed member's leaves by the member's fallback."""
    with new_relay() as relay:
        s = stand(relay, 0, 2)
        six = relay.listen("::1", index=1)
        own = [relay.udp("127.0.0.1", sink.port) for sink in s.sinks]
        raw = [
            relay.raw("127.0.0.1", sink.port, way.counters, fallback=way.tx)
            for sink, way in zip(s.sinks, own, strict=True)
        ]
        relay.generation += 1
        txs = [way.tx for way in raw]
        pools = [(9, HASH, [(0, 1), (1, 1)])]
        listeners = [s.listener.handle, six.handle]
        relay.publish(Plan(relay.generation, listeners, txs, [([ANY], None, [2], False)], pools))
        relay.start()
        sock = relay.exporter("::1")
        for _ in range(10):
            sock.sendto(b"six", ("::1", six.port))
        s.sent = 10
        wait_until(lambda: relay.received() == 10, "ten datagrams")
        wait_until(lambda: sum(sink.read() for sink in s.sinks) == 10, "ten copies")
        assert sorted(len(sink.payloads) for sink in s.sinks) == [0, 10]


# ---- standby


def test_a_standby_gets_nothing_then_templates_then_everything() -> None:
    with new_relay() as relay:
        s = stand(relay, 10, 2)
        s.ways[1].tx.standby(True)
        assert s.ways[1].tx.waiting
        s.start([], [0, 1])
        s.teach()
        s.data()
        assert (s.sinks[1].payloads, s.ways[1].values()["offered"]) == ([], 0)
        s.ways[1].tx.standby(False)
        relay.workers[0].wake()
        wait_until(lambda: not s.ways[1].tx.waiting, "the standby to wake")
        s.settle()
        assert len(s.sinks[1].payloads) == 10
        for _ in range(3):
            s.data()
        assert s.collectors[1].records == 10 * 3 * ROWS
        assert (s.collectors[1].sequence_errors, s.collectors[1].unknown_sets) == (0, 0)
        s.ways[1].tx.standby(True)
        offered = s.ways[1].values()["offered"]
        s.ways[1].tx.replay()
        relay.workers[0].wake()
        s.data()
        wait_until(lambda: not s.ways[1].tx.replaying, "the replay to be dropped")
        assert s.ways[1].values()["offered"] == offered == len(s.sinks[1].payloads)


def test_a_standby_without_a_flow_stage_wakes_at_once() -> None:
    with Relay() as relay:
        s = Stand(relay, 1, 2)
        s.ways[1].tx.standby(True)
        s.start([], [0, 1])
        s.send(s.exporters[0], b"one")
        s.settle_plain()
        s.ways[1].tx.standby(False)
        relay.workers[0].wake()
        wait_until(lambda: not s.ways[1].tx.waiting, "the standby to wake")
        s.send(s.exporters[0], b"two")
        s.settle_plain()
        assert [sink.payloads for sink in s.sinks] == [[b"one", b"two"], [b"two"]]


# ---- rules that change


def test_a_receiver_is_told_of_exporters_that_are_new_to_it() -> None:
    """Its rule is widened: it gets the templates of those it did not have, and only of those."""
    with new_relay() as relay:
        s = stand(relay, 20, 2)
        half = (4, bytes(10) + b"\xff\xff\x7f\x01\0\0", b"\xff" * 15 + b"\xf8")  # 127.1.0.0/29: exporters 0..6
        handles, txs = [s.listener.handle], [way.tx for way in s.ways]
        everything = ([ANY], None, [1], False)
        relay.publish(Plan(1, handles, txs, [([half], None, [0], False), everything]))
        relay.start()
        s.teach()
        for _ in range(3):
            s.data()
        assert s.collectors[0].records == 7 * 3 * ROWS
        relay.generation = 2
        relay.publish(Plan(2, handles, txs, [([ANY], None, [0], False), everything], told=[0]))
        fresh = s.settle()
        assert sorted(domain_of(payload) for payload in fresh[0]) == list(range(7, 20))
        assert fresh[1] == []
        s.data()
        assert s.collectors[0].records == 7 * 3 * ROWS + 20 * ROWS
        assert [c.sequence_errors + c.unknown_sets for c in s.collectors] == [0, 0]
        assert s.ways[0].values()["replays"] == 0
        with pytest.raises(ValueError, match="told"):
            Plan(3, handles, txs, [], told=[2])


# ---- refusing


def test_refusing_counts_what_the_kernel_took_as_refused() -> None:
    with Relay() as relay:
        listener, sink = relay.listen(), relay.sink()
        way = relay.raw("127.0.0.1", sink.port)
        relay.go()
        exporter: socket.socket = relay.exporter()
        for n, refusing in enumerate((False, True, False)):
            way.tx.refusing = refusing
            assert way.tx.refusing is refusing
            for _ in range(10):
                exporter.sendto(b"x", ("127.0.0.1", listener.port))
            sink.expect(10 * (n + 1))  # sent all the same
        wait_until(lambda: way.values()["offered"] == 30, "thirty copies")
        assert (way.values()["sent"], way.values()["dropped_refused"]) == (20, 10)
