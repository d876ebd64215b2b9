"""Receivers that do not get copies all the time: standbys, those whose rules change, those that refuse; on loopback."""

from __future__ import annotations

import gc
import socket

import pytest
from samplicator._fastpath import Plan
from support.freeze import held
from support.pools import ROWS, Stand, domain_of, new_relay, stand
from support.worker import ANY, Relay, wait_until

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
        relay.publish(Plan(2, handles, txs, [([ANY], None, [0], False), everything], replay_to=[0]))
        fresh = s.settle()
        assert sorted(domain_of(payload) for payload in fresh[0]) == list(range(7, 20))
        assert fresh[1] == []
        s.data()
        assert s.collectors[0].records == 7 * 3 * ROWS + 20 * ROWS
        assert [c.sequence_errors + c.unknown_sets for c in s.collectors] == [0, 0]
        assert s.ways[0].values()["replays"] == 0
        with pytest.raises(ValueError, match="does not exist"):
            Plan(3, handles, txs, [], replay_to=[2])


def test_a_plan_that_is_overtaken_does_not_take_the_one_before_it_along() -> None:
    """Two plans are published while the worker is held: the first never runs, the second asks the routes of the running
    one, which must be there until then (ASan would tell).
    """
    with new_relay() as relay:
        s = stand(relay, 20, 2)
        handles, txs = [s.listener.handle], [way.tx for way in s.ways]
        relay.publish(Plan(1, handles, txs, [([ANY], None, [1], False)]))
        relay.start()
        s.teach()
        with held(relay.native_id()):
            for generation in (2, 3):
                relay.workers[0].publish(Plan(generation, handles, txs, [([ANY], None, [0, 1], False)], replay_to=[0]))
            gc.collect()
            assert relay.workers[0].generation == 1
        for _ in range(1000):  # as often as the supervisor asks, while the replay goes on
            if relay.workers[0].generation == 3:
                break
        wait_until(lambda: relay.workers[0].generation == 3, "plan 3")
        fresh = s.settle()
        assert sorted(domain_of(payload) for payload in fresh[0]) == list(range(20))
        s.data()
        assert s.collectors[0].records == 20 * ROWS
        assert [c.sequence_errors + c.unknown_sets for c in s.collectors] == [0, 0]


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
        assert (way.values()["sent"], way.values()["failed_refused"]) == (20, 10)
