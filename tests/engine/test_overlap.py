"""Intakes that rest, and datagrams that come in by a socket and a ring both: forwarded once, and in order."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable

import pytest
from samplicator._fastpath import Overlap, RxCounters, RxSocket
from samplicator.datapath.intakes import ring_socket
from samplicator.host import bpf, ring
from samplicator.plan.spec import RingMatch
from support.worker import Listener, Relay, Sink, in_namespace, packed, wait_until

HOME = {4: "127.0.0.1", 6: "::1"}
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104


def rest(relay: Relay, handle: RxSocket, *, empty: bool = False) -> None:
    handle.rest(empty=empty)
    settle(relay, handle)


def settle(relay: Relay, handle: RxSocket) -> None:
    for worker in relay.workers:
        worker.wake()
    wait_until(lambda: handle.settled, "the worker to do as it is told")


def test_an_intake_at_rest_keeps_what_it_holds() -> None:
    with Relay() as relay:
        one, two, sink = relay.listen(), relay.listen(), relay.sink()
        relay.udp(HOME[4], sink.port)
        one.handle.rest()  # before a plan names it
        relay.go()
        exporter = relay.exporter()
        for number in range(20):
            exporter.sendto(b"%d" % number, (HOME[4], one.port))
        exporter.sendto(b"other", (HOME[4], two.port))
        sink.expect(1)
        assert one.handle.settled
        relay.publish(relay.plan([two]))  # leaving is not reading
        relay.publish(relay.plan([one, two]))
        exporter.sendto(b"other", (HOME[4], two.port))
        assert len(sink.expect(2)) == 2
        assert one.values()["datagrams"] == 0
        one.handle.rest(empty=True)
        settle(relay, one.handle)
        sink.expect(22)
        exporter.sendto(b"late", (HOME[4], one.port))
        exporter.sendto(b"other", (HOME[4], two.port))
        sink.expect(23)
        beats = relay.worker()["wakeups"]
        time.sleep(0.05)
        assert relay.worker()["wakeups"] - beats < 20  # what waits there wakes nobody
        one.handle.go_on()
        settle(relay, one.handle)
        sink.expect(24)
        assert sink.payloads[-1] == b"late"
        with pytest.raises(ValueError, match="rests"):
            one.handle.set_overlap(Overlap())


class Both:
    """A socket and a ring for the same port, read by different workers, and an exporter."""

    def __init__(self, family: int, workers: int, *, entries: int = 1 << 12) -> None:
        self.relay = relay = Relay(workers, batch=32)
        self.home = HOME[family]
        self.socket: Listener = relay.listen(self.home)
        self.socket.sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        self.sink: Sink = relay.sink()
        relay.udp(HOME[4], self.sink.port, mtu=65535)
        self.ring = ring.Ring("lo", 4 << 20)
        relay.stack.callback(self.ring.close)
        self.ring.select(1)
        self.counters = RxCounters()
        self.rx = ring_socket(self.ring, self.counters, 0)
        self.overlap = Overlap(entries)
        self.exporter = relay.exporter(self.home)
        self.marks = relay.exporter(self.home)
        self.marks.settimeout(20)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread: one queue of arrivals, in order
        for handle in (self.socket.handle, self.rx):
            handle.rest()
        plans = [self.plan([self.socket.handle]), self.plan([self.rx])]
        for worker in range(2):
            relay.publish(plans[worker] if workers == 2 else self.plan([self.socket.handle, self.rx]), worker % workers)
        relay.start()

    def plan(self, handles: list[RxSocket]) -> object:
        class Named:
            def __init__(self, handle: RxSocket) -> None:
                self.handle = handle

        return self.relay.plan([Named(handle) for handle in handles])  # type: ignore[misc]

    def ring_takes(self, on: bool) -> None:
        port = self.socket.port
        self.ring.accept([RingMatch(((port, port),), (packed(self.home),))]) if on else self.ring.reject()

    def socket_takes(self, on: bool) -> None:
        bpf.set_filter(self.socket.sock, b"" if on else bpf.TAKE_NOTHING)

    def send(self, *payloads: bytes, segment: int = 0) -> None:
        if segment:
            control = [(SOL_UDP, UDP_SEGMENT, segment.to_bytes(2, "little"))]
            self.exporter.sendmsg([b"".join(payloads)], control, 0, (self.home, self.socket.port))
        for payload in () if segment else payloads:
            self.exporter.sendto(payload, (self.home, self.socket.port))

    def wait_arrived(self) -> None:
        """Until all that was sent has come in: a queue of the CPU may hold it for a while."""
        self.exporter.sendto(b"", self.marks.getsockname()[:2])
        self.marks.recv(1)

    def read(self, first: RxSocket, then: RxSocket) -> None:
        """As Changeover does."""
        self.wait_arrived()
        first.set_overlap(self.overlap, notes=True)
        then.set_overlap(self.overlap)
        self.overlap.limit(until_ns=time.time_ns())
        rest(self.relay, first, empty=True)
        then.go_on()
        settle(self.relay, then)
        wait_until(lambda: not then.overlapping, "the overlap to end")
        first.set_overlap(None)
        then.set_overlap(None)
        first.go_on()
        settle(self.relay, first)


def alike(family: int, workers: int, older: str) -> None:
    """Many datagrams have the same bytes, and some of those came in one way only."""
    both = Both(family, workers)
    with both.relay:
        opens: Callable[[bool], None]
        closes: Callable[[bool], None]
        if older == "ring":
            both.socket_takes(False)
            both.ring_takes(True)
            opens, closes = both.socket_takes, both.ring_takes
        else:
            opens, closes = both.ring_takes, both.socket_takes
        sent: list[bytes] = []

        def send() -> None:
            start = len(sent)
            singles = [b"same", b"one %d" % start, b"same", b"", b"same", bytes(1400), b"two %d" % start]
            run = [b"seg"] * 5 + [b"%d" % (start % 100)]
            both.send(*singles)
            both.send(*run, segment=3)
            sent.extend((*singles, *run))

        for change in (None, opens, closes):
            if change is not None:
                change(change == opens)
            for _ in range(20):
                send()
            both.wait_arrived()
        ways = both.rx, both.socket.handle
        both.read(*(ways if older == "ring" else ways[::-1]))
        both.sink.expect(len(sent))
        assert both.overlap.read() == (520, 0, 260)
        for _ in range(3):
            send()
        both.sink.expect(len(sent))
        assert Counter(both.sink.payloads) == Counter(sent)
        # those that are alike may be held for a moment, to see whether they come back (route/echo)
        assert [p for p in both.sink.payloads if sent.count(p) == 1] == [p for p in sent if sent.count(p) == 1]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network namespace and packet sockets")
@pytest.mark.parametrize("older", ["ring", "socket"])
@pytest.mark.parametrize(("family", "workers"), [(4, 1), (4, 2), (6, 2)])
def test_what_comes_both_ways_is_forwarded_once_and_in_order(family: int, workers: int, older: str) -> None:
    in_namespace(lambda: alike(family, workers, older))


def crowded() -> None:
    both = Both(4, 2, entries=64)
    with both.relay:
        both.ring_takes(True)
        sent = [b"%d" % number for number in range(500)]
        both.send(*sent)
        both.read(both.socket.handle, both.rx)
        noted, unnoted, left = both.overlap.read()
        assert noted + unnoted == 500
        assert 0 < noted < 100
        assert left == noted
        both.sink.expect(1000 - left)
        assert set(both.sink.payloads) == set(sent)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network namespace and packet sockets")
def test_more_than_an_overlap_can_hold_is_repeated_and_never_lost() -> None:
    in_namespace(crowded)


def backlog() -> None:
    both = Both(4, 1)
    with both.relay:
        both.ring_takes(True)
        both.send(*[b"old"] * 50)
        both.wait_arrived()
        both.overlap.limit(since_ns=time.time_ns())
        both.send(*[b"new"] * 50)
        both.read(both.socket.handle, both.rx)
        assert both.overlap.read() == (50, 0, 50)
        both.sink.expect(150)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a network namespace and packet sockets")
def test_what_is_too_old_is_not_noted() -> None:
    in_namespace(backlog)


def test_arguments() -> None:
    with pytest.raises(OverflowError):
        Overlap(-1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        handle = RxSocket(sock.fileno(), RxCounters(), 0)
        assert handle.settled
        assert not handle.overlapping
        handle.rest()
        assert not handle.settled
        handle.set_overlap(Overlap(1), notes=True)
        assert handle.overlapping
        handle.set_overlap(None)
        assert not handle.overlapping
