"""Receivers that are dead in several ways, over real sockets: counted by reason, the law exact, a live one not
affected.
"""

from __future__ import annotations

import errno
import os
import socket
import time

import pytest
from support.hosts import free_port
from support.worker import Relay, in_namespace, wait_until

VETH = (
    "link add a0 type veth peer name a1",
    "link set a0 up",
    "link set a1 up",
    "addr add 198.18.5.1/24 dev a0",
    "addr add 198.18.0.1/32 dev lo",
)


def pump(relay: Relay, count: int, address: str, port: int, *, size: int = 60) -> list[bytes]:
    """Sends numbered datagrams, never more than the relay has buffers for."""
    exporter = relay.exporter(address)
    before = relay.received()
    sent = [n.to_bytes(4, "big") + bytes(size + n % 2) for n in range(count)]
    for n, payload in enumerate(sent, 1):
        exporter.sendto(payload, (address, port))
        if n % 500 == 0:
            wait_until(lambda n=n: relay.received() - before > n - 1000, "the relay to keep up")
    wait_until(lambda: relay.received() - before == count, "all datagrams")
    return sent


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_refused_port_is_counted_and_hurts_nobody(address: str) -> None:
    """ICMP port unreachable comes back about copies that were accepted: they move from sent to refused."""
    with Relay() as relay:
        listener, sink = relay.listen(address), relay.sink(address)
        dead = relay.udp(address, free_port(socket.AF_INET6 if ":" in address else socket.AF_INET))
        relay.udp(address, sink.port)
        relay.go()
        sent = pump(relay, 2000, address, listener.port)
        sink.expect(2000)
        assert sink.payloads == sent
        relay.stop(1000)
        values = dead.values()
        assert values["offered"] == 2000
        assert values["failed_refused"] > 0
        assert dead.dropped() == values["failed_refused"]
        assert values["sent"] + values["failed_refused"] == 2000
        assert 0 <= values["sent_bytes"] <= values["sent"] * 65


def test_one_by_one_every_refused_copy_but_the_last_is_known() -> None:
    """A copy in its own batch: its report is there before the next one leaves."""
    with Relay() as relay:
        listener = relay.listen()
        dead = relay.udp("127.0.0.1", free_port())
        relay.go()
        exporter = relay.exporter()
        for n in range(50):
            # not the same again and again: that may be held for a while
            exporter.sendto(b"%d" % n, ("127.0.0.1", listener.port))
            wait_until(lambda n=n: dead.values()["offered"] == n + 1, "the copy")
            time.sleep(0.001)
        relay.stop(100)
        values = dead.values()
        assert values["failed_refused"] >= 48
        assert values["sent"] == 50 - values["failed_refused"]


def test_receiver_that_comes_back_gets_everything_from_then_on() -> None:
    with Relay() as relay:
        listener = relay.listen()
        port = free_port()
        way = relay.udp("127.0.0.1", port)
        relay.go()
        pump(relay, 100, "127.0.0.1", listener.port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", port))
            sock.settimeout(5)
            sent = pump(relay, 100, "127.0.0.1", listener.port)
            assert [sock.recv(2048) for _ in sent] == sent
        assert way.values()["offered"] == 200


def test_collector_that_never_reads_hurts_nobody() -> None:
    """Its kernel drops what its buffer does not hold; to us those copies were sent."""
    with Relay() as relay:
        listener, sink = relay.listen(), relay.sink()
        deaf = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.bind(("127.0.0.1", 0))
        way = relay.udp("127.0.0.1", deaf.getsockname()[1])
        relay.udp("127.0.0.1", sink.port)
        relay.go()
        sent = pump(relay, 2000, "127.0.0.1", listener.port)
        sink.expect(2000)
        deaf.close()
        assert sink.payloads == sent
        assert way.values()["offered"] == 2000


@pytest.mark.netns
@pytest.mark.parametrize("engine", ["udp", "raw"])
def test_unresolved_neighbor_is_bounded_in_time_and_hurts_nobody(engine: str) -> None:
    """Packets that wait for a neighbor stay charged to the socket: the send queue fills, and the worker moves on."""

    def run() -> None:
        with Relay() as relay:
            listener, sink = relay.listen("198.18.0.1"), relay.sink("198.18.0.1")
            make = relay.udp if engine == "udp" else relay.raw
            dead = [make(f"198.18.5.{host}", 9, mtu=1500) for host in (66, 67, 68)]
            for way in dead:
                way.socks[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            relay.udp("198.18.0.1", sink.port)
            relay.go()
            started = time.monotonic()
            sent = pump(relay, 3000, "198.18.0.1", listener.port, size=1000)
            took = time.monotonic() - started
            sink.expect(3000)
            assert sink.payloads == sent
            assert took < 3, "dead receivers set the pace"
            relay.stop(1000)
            for way in dead:
                assert way.values()["offered"] == 3000
                assert way.values()["failed_no_buffer_space"] > 2000

    in_namespace(run, *VETH)


@pytest.mark.netns
def test_unresolved_neighbor_is_reported() -> None:
    """After the kernel has given the neighbor up, host unreachable comes back for what waited."""

    def run() -> None:
        with open("/proc/sys/net/ipv4/neigh/a0/retrans_time_ms", "w") as file:
            file.write("20")
        with Relay() as relay:
            listener = relay.listen("198.18.0.1")
            dead = relay.udp("198.18.5.77", 9)
            relay.go()
            exporter = relay.exporter("198.18.0.1")
            deadline = time.monotonic() + 8
            while dead.values()["failed_no_neighbor"] == 0 and time.monotonic() < deadline:
                exporter.sendto(b"x", ("198.18.0.1", listener.port))
                time.sleep(0.02)
            relay.stop(100)
            assert dead.values()["failed_no_neighbor"] > 0

    in_namespace(run, *VETH)


@pytest.mark.netns
def test_no_route_and_not_permitted() -> None:
    """Errors of the call itself, each with its reason; the route comes back and so do the copies."""

    def run() -> None:
        with Relay() as relay:
            listener, sink = relay.listen("198.18.0.1"), relay.sink("198.18.0.1")
            unreachable = relay.raw("198.18.5.2", 9, mtu=1500)
            prohibited = relay.raw("198.18.6.1", 9, mtu=1500)
            relay.udp("198.18.0.1", sink.port)
            for line in ("route add unreachable 198.18.5.2/32", "route add prohibit 198.18.6.1/32"):
                assert os.system(f"ip {line}") == 0
            relay.go()
            pump(relay, 100, "198.18.0.1", listener.port)
            sink.expect(100)
            relay.stop(1000)
            assert unreachable.values()["failed_no_route"] == 100
            assert prohibited.values()["failed_permission"] == 100

    in_namespace(
        run, *VETH, "route add 198.18.6.0/24 dev a0"
    )  # a route for the connect; those that fail come afterwards


@pytest.mark.netns
def test_raw_over_the_device_mtu_is_counted() -> None:
    """A path MTU that is out of date: the kernel refuses, the copy is counted, the smaller ones pass."""

    def run() -> None:
        with Relay() as relay:
            listener, sink = relay.listen("198.18.0.1"), relay.sink("198.18.0.1")
            way = relay.raw("198.18.0.1", sink.port, mtu=9000)
            relay.go()
            exporter = relay.exporter("198.18.0.1")
            for size in (100, 5000, 200):
                exporter.sendto(bytes(size), ("198.18.0.1", listener.port))
            sink.expect(2)
            wait_until(lambda: way.values()["offered"] == 3, "three copies")
            relay.stop(1000)
            assert [len(payload) for payload in sink.payloads] == [100, 200]
            assert way.values()["failed_message_too_long"] == 1
            way.tx.mtu = 1500

    in_namespace(run, "link set lo mtu 1500", "addr add 198.18.0.1/32 dev lo")


@pytest.mark.netns
def test_socket_that_was_never_connected() -> None:
    """The control plane publishes a receiver that has no route yet; its copies are no_route, not a mystery."""

    def run() -> None:
        with Relay() as relay:
            listener, sink = relay.listen("198.18.0.1"), relay.sink("198.18.0.1")
            counters = relay.udp("198.18.0.1", sink.port).counters
            loose = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            loose.setblocking(False)
            os.dup2(loose.fileno(), relay.ways[0].socks[0].fileno())
            loose.close()
            relay.go()
            pump(relay, 10, "198.18.0.1", listener.port)
            relay.stop(1000)
            assert counters is relay.ways[0].counters
            assert relay.ways[0].values()["failed_no_route"] == 10
            assert errno.errorcode[errno.EDESTADDRREQ] == "EDESTADDRREQ"

    in_namespace(run, "addr add 198.18.0.1/32 dev lo")
