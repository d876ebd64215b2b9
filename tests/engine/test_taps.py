"""Taps of a worker: what they show is what happened, and shown + not shown is what was asked for, whatever is in the
way. No tap makes the worker wait.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter

import pytest
from samplicator import _fastpath
from support.worker import ANY, Relay, Told, in_namespace, packed, wait_until

HOME = "127.0.0.1"
DENY = (4, bytes(10) + b"\xff\xff" + packed("127.0.0.66"), b"\xff" * 16)
NET9 = (4, bytes(10) + b"\xff\xff" + packed("127.0.0.8"), b"\xff" * 15 + b"\xf8")


def kinds(tap_told: list[Told]) -> Counter[tuple[str, str]]:
    return Counter((told.event, told.reason) for told in tap_told)


@pytest.mark.parametrize("way", ["udp", "raw"])
def test_what_comes_and_what_becomes_of_it(way: str) -> None:
    with Relay(max_datagram=1000) as relay:
        listener, sink = relay.listen(), relay.sink()
        make = relay.udp if way == "udp" else relay.raw
        full, thin = make(HOME, sink.port), make(HOME, sink.port, freq=2)
        relay.go(rules=[([DENY], None, [], True), ([NET9], None, [0, 1], False)])
        exporter, denied, other = (relay.exporter(f"127.0.0.{last}") for last in (9, 66, 77))
        with relay.tap() as every, relay.tap(drops=True) as drops, relay.tap(receiver=thin.counters.id) as one:
            for size in (5, 0, 900, 1001, 17):
                exporter.sendto(bytes([size % 256]) * size, (HOME, listener.port))
            denied.sendto(b"denied", (HOME, listener.port))
            other.sendto(b"other", (HOME, listener.port))
            sink.expect(6)
            wait_until(lambda: len(every.read()) == 17, "all that happened")
            wait_until(lambda: len(one.read()) == 4, "the copies of one receiver")
            wait_until(lambda: len(drops.read()) == 3, "the drops")
            refused = {("dropped", "acl"): 1, ("dropped", "no_route_rule"): 1, ("dropped", "truncated"): 1}
            assert kinds(drops.told) == refused
            assert kinds(every.told) == {("in", ""): 6, ("sent", ""): 6, ("skipped", "freq"): 2, **refused}
            assert kinds(one.told) == {("sent", ""): 2, ("skipped", "freq"): 2}
            came = {told.number: told for told in every.told if told.event == "in"}
            assert sorted(told.payload for told in came.values()) == sorted(
                [b"\5" * 5, b"", bytes([900 % 256]) * 900, b"\x11" * 17, b"denied", b"other"]
            )
            for told in every.told:
                if told.reason != "truncated":
                    assert told.payload == came[told.number].payload
                    assert told.length == len(told.payload)
            (cut,) = (told for told in drops.told if told.reason == "truncated")
            assert (cut.length, cut.payload, cut.exporter) == (1001, b"", packed("127.0.0.9"))
            engine = _fastpath.ENGINE_UDP if way == "udp" else _fastpath.ENGINE_RAW
            assert {told.engine for told in every.told if told.event == "sent"} == {engine}
            assert {told.receiver for told in every.told if told.event == "sent"} == {
                full.counters.id,
                thin.counters.id,
            }
            assert [tap.counts() for tap in (every, drops, one)] == [(17, 0), (3, 0), (4, 0)]


def test_copies_that_fail_are_named_with_their_reason() -> None:
    """Some of a batch only: those too long for the network."""

    def run() -> None:
        with Relay() as relay:
            listener, sink = relay.listen(), relay.sink()
            way = relay.udp(HOME, sink.port)
            way.socks[0].setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never fragments
            relay.go()
            exporter = relay.exporter()
            with relay.tap() as every, relay.tap(drops=True) as drops:
                sizes = [10, 1600, 20, 1700, 0, 30]
                for size in sizes:
                    exporter.sendto(bytes(size), (HOME, listener.port))
                wait_until(lambda: len(drops.read()) == 2, "the drops")
                wait_until(lambda: len(every.read()) == 12, "all of them")
                assert kinds(drops.told) == {("failed", "message_too_long"): 2}
                assert sorted(told.length for told in drops.told) == [1600, 1700]
                assert sorted(told.length for told in every.told if told.event == "sent") == [0, 10, 20, 30]
                assert way.values()["failed_message_too_long"] == 2

    in_namespace(run, "link set lo up mtu 1500")


@pytest.mark.parametrize("reason", ["loop", "no_neighbor", "refused"])
def test_copies_that_are_never_tried_are_shown_too(reason: str) -> None:
    with Relay() as relay:
        listener, sink = relay.listen(), relay.sink()
        way = relay.udp(HOME, sink.port)
        if reason == "loop":
            way.tx.looped = True
        elif reason == "refused":
            way.tx.refusing = True
        else:
            way.tx.unresolved = True
        relay.go()
        exporter = relay.exporter()
        with relay.tap() as every, relay.tap(drops=True, receiver=way.counters.id) as drops:
            for n in range(30):
                exporter.sendto(bytes([n]), (HOME, listener.port))
            wait_until(lambda: len(every.read()) == 60, "all of them")
            failed = way.values()[f"failed_{reason}"]
            assert failed >= 28
            wait_until(lambda: len(drops.read()) == failed, "the drops")
            assert kinds(drops.told) == {("failed", reason): failed}
            assert kinds(every.told)["failed", reason] == failed
            assert kinds(every.told)["sent", ""] == 30 - failed


@pytest.mark.parametrize("queue", [1 << 20, 4096])
@pytest.mark.parametrize("rate", [1e6, 300.0])
def test_shown_and_unshown_are_all_there_were(queue: int, rate: float) -> None:
    """However slowly the reader reads."""
    with Relay(2) as relay:
        listener, sink = relay.listen(), relay.sink()
        ways = [relay.udp(HOME, sink.port, freq=3), relay.udp(HOME, sink.port)]
        relay.go(rules=[([DENY], None, [], True), ([ANY], None, [0, 1], False)])
        exporters = [relay.exporter(), relay.exporter("127.0.0.66")]
        asked = {"queue": queue, "rate": rate}
        with relay.tap(receiver=ways[0].counters.id, **asked) as one, relay.tap(drops=True, **asked) as drops:
            begun = time.monotonic()
            for n in range(4000):
                exporters[n % 5 == 0].sendto(n.to_bytes(4, "big") * 10, (HOME, listener.port))
            wait_until(lambda: listener.values()["datagrams"] == 4000, "all of them")
            took = time.monotonic() - begun
            denied, offered = listener.values()["denied"], ways[0].values()["offered"]
            wait_until(lambda: sum(one.counts()) == offered, f"{offered} copies, {one.counts()}")
            wait_until(lambda: sum(drops.counts()) == denied, f"{denied} drops, {drops.counts()}")
            assert len(one.read()) == one.counts()[0]
            assert len(drops.read()) == drops.counts()[0]
            assert one.counts()[0] <= rate * (took + 1.0) + 1


@pytest.mark.parametrize("rate", [1.0, 50.0, 1000.0])
def test_a_datagram_that_is_chosen_is_shown_with_all_its_copies(rate: float) -> None:
    """However many its receivers are; and in the long run no more than the rate, copies and all."""
    with Relay() as relay:
        listener, sink = relay.listen(), relay.sink()
        ways = [relay.udp(HOME, sink.port) for _ in range(30)]
        relay.go()
        exporter = relay.exporter()
        with relay.tap(rate=rate) as tap:
            begun = time.monotonic()
            for n in range(600):
                exporter.sendto(n.to_bytes(4, "big"), (HOME, listener.port))
                if n % 60 == 59:
                    time.sleep(0.05)
            wait_until(lambda: listener.values()["datagrams"] == 600, "all of them")
            came = [told.number for told in tap.read() if told.event == "in"]
            wait_until(lambda: len(tap.read()) >= 31 * len(came), "their copies")
            took = time.monotonic() - begun
            came = [told.number for told in tap.told if told.event == "in"]
            copies = Counter(told.number for told in tap.told if told.event == "sent")
            assert came
            assert copies == dict.fromkeys(came, len(ways))
            assert len(tap.told) <= rate * (took + 0.2) + 31
            assert len(came) + tap.counts()[1] == 600


def test_losses_over_the_rate_are_counted_as_losses() -> None:
    """Not all that was sent: of a batch that is lost in part, with the rate used up."""

    def run() -> None:
        with Relay() as relay:
            listener, sink = relay.listen(), relay.sink()
            way = relay.udp(HOME, sink.port)
            way.socks[0].setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never fragments
            relay.go()
            exporter, one = relay.exporter(), way.counters.id
            with (
                relay.tap(drops=True, rate=1) as all_drops,
                relay.tap(drops=True, rate=1, receiver=one) as drops,
            ):
                for n in range(400):
                    exporter.sendto(bytes(1700 if n % 4 == 0 else 40), (HOME, listener.port))
                for tap in (drops, all_drops):
                    wait_until(lambda tap=tap: sum(tap.counts()) == 100, f"100 losses, {tap.counts()}")
                assert way.values()["failed_message_too_long"] == 100

    in_namespace(run, "link set lo up mtu 1500")


def test_a_reader_that_is_gone_disturbs_nothing() -> None:
    with Relay() as relay:
        listener, sink = relay.listen(), relay.sink()
        relay.udp(HOME, sink.port)
        relay.go()
        exporter = relay.exporter()
        with relay.tap() as tap:
            tap.sock.shutdown(socket.SHUT_RDWR)
            for n in range(50):
                exporter.sendto(bytes([n]), (HOME, listener.port))
            sink.expect(50)
            wait_until(lambda: tap.counts() == (0, 100), "what was not shown")


def test_exporters_and_listeners_that_are_asked_for() -> None:
    with Relay() as relay:
        first, second, sink = relay.listen(), relay.listen(), relay.sink()
        relay.udp(HOME, sink.port)
        relay.go()
        exporters = [relay.exporter(f"127.0.{third}.{last}") for third, last in ((0, 1), (0, 2), (1, 1), (130, 1))]
        asked = {
            "one": {"exporter": packed("127.0.0.2"), "prefix": 32},
            "net": {"exporter": packed("127.0.1.9"), "prefix": 23},
            "half": {"exporter": packed("127.0.128.0"), "prefix": 17},
            "slot": {"listener": 1},
            "six": {"exporter": bytes(16), "prefix": 1},
        }
        found = {}
        for name, given in asked.items():
            with relay.tap(**given) as tap:
                for n, exporter in enumerate(exporters):
                    for listener in (first, second):
                        exporter.sendto(bytes([n]), (HOME, listener.port))
                sink.expect(8)
                del sink.arrivals[:]
                want = {"one": 2, "net": 6, "half": 2, "slot": 4, "six": 0}[name]
                wait_until(lambda tap=tap, want=want: len(tap.read()) == 2 * want, name)
                found[name] = sorted((told.payload[0], told.listener) for told in tap.told if told.event == "in")
        assert found["one"] == [(1, 0), (1, 1)]
        assert found["net"] == [(n, slot) for n in (0, 1, 2) for slot in (0, 1)]
        assert found["half"] == [(3, 0), (3, 1)]
        assert found["six"] == []
        assert found["slot"] == [(n, 1) for n in range(4)]


def test_taps_come_and_go_under_traffic() -> None:
    with Relay() as relay:
        listener, sink = relay.listen(), relay.sink()
        way = relay.udp(HOME, sink.port)
        relay.go()
        exporter = relay.exporter()
        ended = threading.Event()

        def send() -> None:
            while not ended.is_set():
                exporter.sendto(bytes(100), (HOME, listener.port))
                time.sleep(0.0002)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            for n in range(100):
                with relay.tap(drops=n % 3 == 0) as tap, relay.tap(), relay.tap(), relay.tap():
                    with pytest.raises(RuntimeError, match="4 taps are open"):
                        relay.workers[0].tap_open(0, rate=1)
                    if n % 3:
                        wait_until(lambda tap=tap: tap.read(), "something")
        finally:
            ended.set()
            sender.join()
        wait_until(lambda: way.values()["offered"] == listener.values()["datagrams"] > 0, "all copies")


def test_what_a_tap_refuses() -> None:
    worker = _fastpath.Worker()
    for wrong in (
        {"rate": 0},
        {"rate": 1e7},
        {"exporter": b"abc"},
        {"exporter": bytes(4), "prefix": 33},
        {"prefix": 1},
    ):
        with pytest.raises(ValueError, match=r"rate|exporter"):
            worker.tap_open(0, **{"rate": 1, **wrong})
    with pytest.raises(ValueError, match="tap 9"):
        worker.tap_read(9)
