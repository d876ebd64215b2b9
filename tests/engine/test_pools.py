"""Pools on loopback: every record is decoded once and by one member, whoever comes and goes, and no collector counts a
sequence error or an unknown template.
"""

from __future__ import annotations

import time

import pytest
from samplicator import _fastpath
from samplicator._fastpath import Plan
from support import flows as model
from support.pools import ROWS, Exporter, domain_of, new_relay, stand
from support.worker import ANY, wait_until

HASH, TURNS = _fastpath.POOL_EXPORTER_HASH, _fastpath.POOL_ROUND_ROBIN
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


@pytest.mark.parametrize("balance", [HASH, TURNS])
@pytest.mark.parametrize("kind", [0, 1])
def test_one_new_template_is_told_alone(balance: int, kind: int) -> None:
    """A domain of 600 templates, then 20 small datagrams with a new one each: the others get 20 each, and decode it."""
    with new_relay() as relay:
        s = stand(relay, 2)
        s.exporters = s.exporters[kind : kind + 1]
        exporter = s.exporters[0]
        s.start([(5, balance, POOL[0][2])], [4])
        first = [model.template(1000 + n, [(8, 4)] * 5) for n in range(600)]
        for n in range(0, 600, 50):
            s.send(exporter, exporter.message(model.a_set(0 if kind else 2, *first[n : n + 50]), records=0))
            s.settle()
        before = sum(way.values()["offered"] for way in s.ways)
        for identity in range(300, 320):
            exporter.identity = identity
            s.send(exporter, exporter.message(exporter.templates(), records=0))
        s.settle()
        assert sum(way.values()["offered"] for way in s.ways) - before == 20 * 4
        for _ in range(8):
            s.data()
        s.check()
        for collector in s.collectors:
            assert len(collector.templates) == 620


def test_what_news_may_send_is_bounded_and_made_good() -> None:
    """A domain that is defined anew without end: members that do not get its data are sent so many bytes a second, and
    in the end they know all of it.
    """
    with new_relay() as relay:
        s = stand(relay, 2)
        s.exporters = s.exporters[1:]
        exporter = s.exporters[0]
        s.start(POOL, [4])
        s.teach()
        (home,) = s.data().values()
        begun = time.monotonic()
        for n in range(3000):
            records = [model.template(1000 + k, [(8, 4), (12, 4 + n % 2), (n % 9 + 1, 4)]) for k in range(60)]
            s.send(exporter, exporter.message(model.a_set(0, *records), records=0))
            if n % 64 == 63:
                s.settle()
        s.settle()
        seconds = time.monotonic() - begun + 2
        for n, way in enumerate(s.ways):
            if n != home:
                assert way.values()["sent_bytes"] <= (seconds + 1) * 262_144
        wait_until(lambda: time.monotonic() - begun > seconds, "credit", 10)
        s.data()
        want = s.collectors[home].templates
        for collector in s.collectors:
            assert {key: one.raw for key, one in collector.templates.items()} == {
                key: one.raw for key, one in want.items()
            }
        assert [c.sequence_errors for c in s.collectors] == [0] * 4


def test_replays_to_one_that_comes_and_goes_are_bounded() -> None:
    """Asked for a hundred times within a second: one now, one a second later."""
    with new_relay() as relay:
        s = stand(relay)
        s.start(POOL, [4])
        s.teach()
        s.data()
        begun = time.monotonic()
        for _ in range(100):
            s.ways[1].tx.replay()
            relay.workers[0].wake()
            time.sleep(0.002)
        wait_until(lambda: not s.ways[1].tx.replaying, "the replay", 10)
        s.settle()
        assert s.ways[1].values()["replays"] <= 2 + int(time.monotonic() - begun)
