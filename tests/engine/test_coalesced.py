"""Datagrams that the kernel hands over coalesced (UDP_GRO): taken apart again, whole, in order, each counted."""

from __future__ import annotations

import random
import socket

import pytest
from support.worker import Listener, Relay, wait_until

HOME = "127.0.0.1"
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104


def coalescing(relay: Relay) -> Listener:
    listener = relay.listen()
    listener.sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    return listener


def send_run(sock: socket.socket, port: int, payloads: list[bytes]) -> None:
    """All of one size, the last may be shorter: one segmented send, which loopback hands on unsplit."""
    segment = len(payloads[0]).to_bytes(2, "little")
    sock.sendmsg([b"".join(payloads)], [(SOL_UDP, UDP_SEGMENT, segment)], 0, (HOME, port))


def run_of(count: int, size: int, last: int, start: int = 0) -> list[bytes]:
    generator = random.Random(count * 65536 + size)
    sizes = [size] * (count - 1) + [last]
    return [(start + n).to_bytes(4, "big") + generator.randbytes(length - 4) for n, length in enumerate(sizes)]


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize(("count", "size", "last"), [(2, 100, 100), (2, 100, 4), (46, 1400, 1400), (64, 1000, 17)])
def test_taken_apart(batch: int, count: int, size: int, last: int) -> None:
    """More datagrams than a batch holds, too: the rest follows before anything else is read."""
    with Relay(batch=batch) as relay:
        listener, other, sink = coalescing(relay), relay.listen(), relay.sink()
        relay.udp(HOME, sink.port, mtu=65535)
        exporter = relay.exporter()
        sent = []
        for n in range(3):
            payloads = run_of(count, size, last, n * count)
            send_run(exporter, listener.port, payloads)
            sent += payloads
        exporter.sendto(b"else", (HOME, other.port))
        relay.go()
        sink.expect(len(sent) + 1)
        assert [payload for payload in sink.payloads if payload != b"else"] == sent
        assert listener.values()["datagrams"] == len(sent)
        assert listener.values()["bytes"] == sum(map(len, sent))


def test_mixed_with_single_ones_and_empty_ones() -> None:
    with Relay(batch=16) as relay:
        listener, sink = coalescing(relay), relay.sink()
        relay.udp(HOME, sink.port, mtu=65535)
        exporter = relay.exporter()
        sent = []
        for n in range(20):
            payloads = run_of(5, 200, 90, n * 10)
            send_run(exporter, listener.port, payloads)
            for single in (b"", (n * 10 + 9).to_bytes(4, "big")):
                exporter.sendto(single, (HOME, listener.port))
                payloads.append(single)
            sent += payloads
        relay.go()
        sink.expect(len(sent))
        assert list(filter(None, sink.payloads)) == list(filter(None, sent))  # empty ones are alike: they may be held
        assert sorted(sink.payloads) == sorted(sent)


def test_too_long_ones_are_counted_one_by_one() -> None:
    with Relay(batch=8, max_datagram=150) as relay:
        listener, sink = coalescing(relay), relay.sink()
        relay.udp(HOME, sink.port, mtu=65535)
        relay.go()
        exporter = relay.exporter()
        send_run(exporter, listener.port, run_of(20, 200, 150))
        send_run(exporter, listener.port, run_of(3, 150, 10))
        sink.expect(4)
        wait_until(lambda: relay.received() == 23, "all of them")
        assert [len(payload) for payload in sink.payloads] == [150, 150, 150, 10]
        assert (listener.values()["truncated"], listener.values()["matched"]) == (19, 4)


def test_stop_takes_the_last_run_apart() -> None:
    with Relay(batch=1) as relay:
        listener, sink = coalescing(relay), relay.sink()
        relay.udp(HOME, sink.port)
        send_run(relay.exporter(), listener.port, run_of(60, 100, 100))
        relay.publish(relay.plan())
        relay.workers[0].stop(5000)
        relay.workers[0].run()
        sink.expect(60)
