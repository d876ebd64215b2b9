"""Copies over real sockets: bytes, source, TTL, TOS, families, sampling, truncation, listeners."""

from __future__ import annotations

import itertools
import random
import socket

import pytest
from support.worker import ANY, Relay, in_namespace, packed, wait_until

SIZES = (0, 1, 2, 1471, 1472, 1473, 8972, 9000, 65507)
PAYLOADS = [random.Random(size).randbytes(size) for size in SIZES]
MTU_1500 = (
    "link set lo mtu 1500",
    "addr add 198.18.0.1/32 dev lo",
    "addr add 198.18.0.2/32 dev lo",
    "addr add 2001:db8::1/128 dev lo nodad",
    "addr add 2001:db8::2/128 dev lo nodad",
)
PAIRS = {4: ("198.18.0.1", "198.18.0.2"), 6: ("2001:db8::1", "2001:db8::2")}
netns = pytest.mark.netns


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_sizes_by_udp(address: str) -> None:
    with Relay() as relay:
        listener, sink = relay.listen(address), relay.sink(address)
        way = relay.udp(address, sink.port, mtu=65535)
        relay.go()
        exporter = relay.exporter(address)
        for payload in PAYLOADS:
            exporter.sendto(payload, (address, listener.port))
        sink.expect(len(SIZES))
        assert sink.payloads == PAYLOADS
        assert {arrival.source for arrival in sink.arrivals} == {way.socks[0].getsockname()[:2]}
        assert listener.values()["bytes"] == sum(SIZES) == way.values()["sent_bytes"]


@netns
@pytest.mark.parametrize(("family", "engine"), list(itertools.product((4, 6), ("udp", "raw"))))
def test_sizes_over_mtu_1500(family: int, engine: str) -> None:
    """Fragments are cut and put together again; the kernel checks every checksum on the way."""

    def run() -> None:
        here, there = PAIRS[family]
        with Relay() as relay:
            listener, sink = relay.listen(there), relay.sink(there)
            way = relay.udp(there, sink.port) if engine == "udp" else relay.raw(there, sink.port, ttl=33, mtu=1500)
            relay.go()
            exporter = relay.exporter(here)
            for payload in PAYLOADS:
                exporter.sendto(payload, (there, listener.port))
            sink.expect(len(SIZES))
            assert sink.payloads == PAYLOADS
            if engine == "raw":
                assert {arrival.source for arrival in sink.arrivals} == {exporter.getsockname()[:2]}
                assert {arrival.ttl for arrival in sink.arrivals} == {33}
            assert way.values()["sent"] == len(SIZES)
            assert way.values()["sent_bytes"] == sum(SIZES)

    in_namespace(run, *MTU_1500)


@netns
@pytest.mark.parametrize("family", [4, 6])
def test_fixed_source(family: int) -> None:
    """An own address, and the exporter's port or a fixed one."""

    def run() -> None:
        here, there = PAIRS[family]
        with Relay() as relay:
            listener, sink = relay.listen(there), relay.sink(there)
            relay.raw(there, sink.port, source=(packed(there), 7777))
            relay.raw(there, sink.port, source=(packed(there), 0))
            relay.go()
            exporter = relay.exporter(here)
            exporter.sendto(b"x", (there, listener.port))
            sink.expect(2)
            ports = [arrival.source[1] for arrival in sink.arrivals]
            assert {arrival.source[0] for arrival in sink.arrivals} == {there}
            assert sorted(ports) == sorted([7777, exporter.getsockname()[1]])

    in_namespace(run, *MTU_1500)


@netns
def test_zero_checksum_arrives() -> None:
    def run() -> None:
        here, there = PAIRS[4]
        with Relay() as relay:
            listener, sink = relay.listen(there), relay.sink(there)
            relay.raw(there, sink.port, checksum=False, mtu=1500)
            relay.go()
            exporter = relay.exporter(here)
            for payload in PAYLOADS:
                exporter.sendto(payload, (there, listener.port))
            sink.expect(len(SIZES))
            assert sink.payloads == PAYLOADS

    in_namespace(run, *MTU_1500)


@netns
@pytest.mark.parametrize(("family", "engine"), list(itertools.product((4, 6), ("udp", "raw"))))
def test_ttl_and_tos_kept_or_set(family: int, engine: str) -> None:
    def run() -> None:
        here, there = PAIRS[family]
        with Relay() as relay:
            listener = relay.listen(there)
            make = relay.udp if engine == "udp" else relay.raw
            kept, fixed = relay.sink(there), relay.sink(there)
            make(there, kept.port, ttl=0, tos=-1)
            make(there, fixed.port, ttl=99, tos=0x20)
            relay.go()
            expected = []
            for ttl, tos in [(64, 0), (1, 0), (255, 0xB8), (17, 4), (64, 0x28)]:
                exporter = relay.exporter(here)
                if family == 4:
                    exporter.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                    exporter.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
                else:
                    exporter.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
                    exporter.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
                exporter.sendto(b"same size", (there, listener.port))
                expected.append((ttl, tos))
            kept.expect(5)
            fixed.expect(5)
            assert sorted((a.ttl, a.tos) for a in kept.arrivals) == sorted(expected)
            assert {(a.ttl, a.tos) for a in fixed.arrivals} == {(99, 0x20)}

    in_namespace(run, *MTU_1500)


def test_freq() -> None:
    """1-in-3 beside 1-in-1: the first of every three, whatever the batches were."""
    with Relay() as relay:
        listener, every, third = relay.listen(), relay.sink(), relay.sink()
        relay.udp("127.0.0.1", every.port)
        way = relay.udp("127.0.0.1", third.port, freq=3)
        relay.go()
        exporter = relay.exporter()
        sent = [n.to_bytes(2, "big") for n in range(200)]
        for payload in sent:
            exporter.sendto(payload, ("127.0.0.1", listener.port))
        every.expect(200)
        third.expect(67)
        assert every.payloads == sent
        assert third.payloads == sent[::3]
        assert (way.values()["offered"], way.values()["skipped"], way.values()["sent"]) == (200, 133, 67)


def test_truncated_are_counted_and_dropped() -> None:
    with Relay(max_datagram=100) as relay:
        listener, sink = relay.listen(), relay.sink()
        relay.udp("127.0.0.1", sink.port)
        relay.go()
        exporter = relay.exporter()
        sizes = [99, 101, 100, 5000, 0, 65507, 1]
        for size in sizes:
            exporter.sendto(bytes(size), ("127.0.0.1", listener.port))
        sink.expect(4)
        assert [len(payload) for payload in sink.payloads] == [99, 100, 0, 1]
        wait_until(lambda: relay.received() == len(sizes), "all datagrams")
        values = listener.values()
        assert (values["truncated"], values["truncated_bytes"], values["matched"]) == (3, 101 + 5000 + 65507, 4)
        assert values["bytes"] == sum(sizes)


@netns
def test_ipv4_mapped_exporter_is_an_ipv4_exporter() -> None:
    """A dual-stack listener: rules see IPv4, raw copies carry the IPv4 source, TTL and TOS come over."""

    def run() -> None:
        here, there = PAIRS[4]
        with Relay() as relay:
            listener = relay.listen("::", dual=True)
            four, six = relay.sink(there), relay.sink(PAIRS[6][1])
            relay.raw(there, four.port, ttl=0, tos=-1)
            relay.raw(PAIRS[6][1], six.port)
            mapped = bytes(10) + b"\xff\xff"
            rules = [
                ([(4, mapped + packed(here), b"\xff" * 16)], None, [0], False),
                ([(6, packed("2001:db8::"), b"\xff" * 4 + bytes(12))], None, [1], False),
            ]
            relay.go(rules=rules)
            exporter4, exporter6 = relay.exporter(here), relay.exporter(PAIRS[6][0])
            exporter4.setsockopt(0, 2, 44)  # IP_TTL
            with relay.tap() as tap:
                exporter4.sendto(b"four", (there, listener.port))
                exporter6.sendto(b"six", (PAIRS[6][1], listener.port))
                four.expect(1)
                six.expect(1)
                wait_until(lambda: len(tap.read()) == 4, "both, and both copies")
                exporters = {told.exporter for told in tap.told}
            assert exporters == {packed(here), packed(PAIRS[6][0])}
            assert (four.payloads, six.payloads) == ([b"four"], [b"six"])
            assert four.arrivals[0].source == exporter4.getsockname()
            assert four.arrivals[0].ttl == 44
            assert six.arrivals[0].source == exporter6.getsockname()[:2]

    in_namespace(run, *MTU_1500)


@netns
@pytest.mark.parametrize("family", [4, 6])
def test_exporters_of_the_other_family_leave_unspoofed(family: int) -> None:
    def run() -> None:
        here, there = PAIRS[family]
        other = PAIRS[10 - family]
        with Relay() as relay:
            same_listener, other_listener, sink = relay.listen(there), relay.listen(other[1]), relay.sink(there)
            fallback = relay.udp(there, sink.port)
            spoofing = relay.raw(there, sink.port, fallback.counters, fallback=fallback.tx)
            relay.go(ways=[spoofing])
            one, two = relay.exporter(here), relay.exporter(other[0])
            one.sendto(b"same", (there, same_listener.port))
            two.sendto(b"other", (other[1], other_listener.port))
            sink.expect(2)
            by_payload = {arrival.payload: arrival.source for arrival in sink.arrivals}
            assert by_payload == {
                b"same": one.getsockname()[:2],
                b"other": fallback.socks[0].getsockname()[:2],
            }
            assert (spoofing.values()["offered"], spoofing.values()["sent"]) == (2, 2)

    in_namespace(run, *MTU_1500)


def test_rules_by_listener_denied_and_unmatched() -> None:
    with Relay() as relay:
        one, two, three = relay.listen(), relay.listen(), relay.listen()
        a, b = relay.sink(), relay.sink()
        for sink in (a, b):
            relay.udp("127.0.0.1", sink.port)
        rules = [([ANY], [0], [0], False), ([ANY], [1], [], True), ([ANY], [0, 1], [1, 0], False)]
        relay.go(rules=rules)
        exporter = relay.exporter()
        for listener in (one, two, three):
            exporter.sendto(bytes([listener.handle.listener]), ("127.0.0.1", listener.port))
        a.expect(1)
        b.expect(1)
        wait_until(lambda: relay.received() == 3, "three datagrams")
        assert a.payloads == b.payloads == [b"\0"]
        rows = [
            [listener.values()[name] for name in ("matched", "denied", "unmatched")] for listener in (one, two, three)
        ]
        assert rows == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_order_and_runs() -> None:
    """Exporters interleaved, sizes mixed: each exporter's copies arrive in its order, whole, once."""
    with Relay(batch=256) as relay:
        listener, sink = relay.listen(), relay.sink()
        relay.udp("127.0.0.1", sink.port, mtu=65535)
        exporters = [relay.exporter(f"127.0.0.{n + 1}") for n in range(5)]
        generator = random.Random(9)
        sent: dict[int, list[bytes]] = {n: [] for n in range(5)}
        for n in range(1500):
            who = generator.randrange(5) if generator.random() < 0.3 else n // 100 % 5
            payload = bytes([who]) + n.to_bytes(2, "big") + bytes(generator.choice((97, 97, 97, 97, 40, 1400)))
            exporters[who].sendto(payload, ("127.0.0.1", listener.port))
            sent[who].append(payload)
        relay.go()
        sink.expect(1500)
        for who, payloads in sent.items():
            assert [payload for payload in sink.payloads if payload[0] == who] == payloads
        assert relay.ways[0].values()["calls"] < 1500


def test_histograms_hold_every_datagram() -> None:
    with Relay(batch=8) as relay:
        listener, sink = relay.listen(), relay.sink()
        relay.udp("127.0.0.1", sink.port)
        exporter = relay.exporter()
        for _ in range(100):
            exporter.sendto(b"x", ("127.0.0.1", listener.port))
        relay.go()
        sink.expect(100)
        relay.stop()
        counts, total = relay.workers[0].latency()
        assert sum(counts) == 100
        assert total > 0
        batches = listener.counters.batches()
        assert batches[:4] == (0, 0, 1, 12)  # 12 of 8, one of 4
        assert sum(batches) == 13
