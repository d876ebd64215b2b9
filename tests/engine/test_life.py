"""A worker's life: plans adopted under traffic, sockets handed over and drained, stop with a drain, many exporters."""

from __future__ import annotations

import gc
import os
import socket
import struct
import sys
import threading
import time

import pytest
from samplicator import _fastpath
from support.freeze import held
from support.worker import Relay, Sink, in_namespace, packed, wait_until

HOME = "127.0.0.1"


class Traffic:
    """Exporters that send numbered datagrams, in a thread, until told to stop: no faster than the test reads the sink,
    so that nothing is lost for want of buffers.
    """

    def __init__(self, relay: Relay, port: int, sink: Sink, exporters: int = 4) -> None:
        self.socks = [relay.exporter() for _ in range(exporters)]
        self.port = port
        self.sent = 0
        self.sink = sink
        self.running = True
        self.thread = threading.Thread(target=self.send)

    def send(self) -> None:
        while self.running:
            for _ in range(32):
                who = self.sent % len(self.socks)
                payload = struct.pack(">BI", who, self.sent) + bytes(self.sent % 3)
                self.socks[who].sendto(payload, (HOME, self.port))
                self.sent += 1
            while self.running and self.sent - len(self.sink.arrivals) > 1000:
                time.sleep(0.001)

    def __enter__(self) -> Traffic:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.thread.join()


def numbers(payloads: list[bytes]) -> list[tuple[int, int]]:
    return [struct.unpack_from(">BI", payload) for payload in payloads]


def check_complete(payloads: list[bytes], sent: int, exporters: int = 4) -> None:
    """Nothing lost, nothing twice, order of each exporter kept."""
    got = numbers(payloads)
    assert sorted(n for _, n in got) == list(range(sent))
    for who in range(exporters):
        own = [n for exporter, n in got if exporter == who]
        assert own == sorted(own)


def test_200_plans_under_traffic_lose_nothing() -> None:
    """Each adds or removes a receiver; the one that stays gets every datagram once, in order."""
    with Relay() as relay:
        listener, sink, other = relay.listen(), relay.sink(), relay.sink()
        stays = relay.udp(HOME, sink.port, freq=1)
        comes_and_goes = relay.udp(HOME, other.port)
        relay.go(ways=[stays])
        with Traffic(relay, listener.port, sink) as traffic:
            for n in range(200):
                ways = [stays, comes_and_goes] if n % 2 else [stays]
                relay.publish(relay.plan(ways=ways), wait=n % 10 == 0)  # most are overtaken by the next
                sink.read()
                other.read()
            relay.publish(relay.plan(ways=[stays, comes_and_goes]))  # this one is not overtaken
            wait_until(lambda: (sink.read(), other.read())[1], "a copy for the other")
            relay.publish(relay.plan(ways=[stays]))
        wait_until(lambda: relay.received() == traffic.sent, "all datagrams")
        relay.stop(2000)
        sink.expect(traffic.sent)
        other.expect(comes_and_goes.values()["sent"])
        check_complete(sink.payloads, traffic.sent)
        assert stays.values()["sent"] == traffic.sent
        assert 0 < len(other.arrivals) < traffic.sent


def test_sampling_goes_on_over_plans() -> None:
    """The countdown is the receiver's: 1-in-3 stays 1-in-3 across a reload."""
    with Relay() as relay:
        listener, sink = relay.listen(), relay.sink()
        relay.udp(HOME, sink.port, freq=3)
        relay.go()
        exporter = relay.exporter()
        for n in range(30):
            exporter.sendto(bytes([n]), (HOME, listener.port))
            wait_until(lambda n=n: relay.received() == n + 1, "a datagram")
            relay.publish(relay.plan())
        sink.expect(10)
        assert sink.payloads == [bytes([n]) for n in range(0, 30, 3)]


def test_sockets_move_between_workers() -> None:
    """Two phases: the loser adopts a plan without the socket, then the gainer gets it. Nothing is lost or repeated."""
    with Relay(workers=2) as relay:
        listener, sink = relay.listen(), relay.sink()
        ways = [relay.udp(HOME, sink.port) for _ in range(2)]  # one for each worker
        relay.publish(relay.plan(ways=ways[:1]), 0)
        relay.publish(relay.plan([], ways[1:]), 1)
        relay.start()
        owner = 0
        with Traffic(relay, listener.port, sink) as traffic:
            for _ in range(50):
                before = listener.values()["datagrams"]
                relay.publish(relay.plan([], [ways[owner]]), owner)
                owner = 1 - owner
                relay.publish(relay.plan([listener], [ways[owner]]), owner)
                wait_until(
                    lambda before=before: sink.read() and listener.values()["datagrams"] > before + 32, "traffic moved"
                )
        wait_until(lambda: relay.received() == traffic.sent, "all datagrams")
        sink.expect(traffic.sent)
        check_complete(sink.payloads, traffic.sent)
        shares = [way.values()["sent"] for way in ways]
        assert sum(shares) == traffic.sent
        assert min(shares) > 0


def test_workers_share_a_port() -> None:
    """SO_REUSEPORT: the kernel keeps an exporter session on one socket, so its order holds."""
    with Relay(workers=2) as relay:
        first = relay.listen(index=0)
        second = relay.listen(index=0, share=first)
        sink = relay.sink()
        ways = [relay.udp(HOME, sink.port) for _ in range(2)]
        for n, listener in enumerate((first, second)):
            relay.publish(relay.plan([listener], [ways[n]]), n)
        relay.start()
        with Traffic(relay, first.port, sink, exporters=32) as traffic:
            wait_until(lambda: sink.read() > 3000, "traffic")
        wait_until(lambda: relay.received() == traffic.sent, "all datagrams")
        sink.expect(traffic.sent)
        check_complete(sink.payloads, traffic.sent, 32)
        assert min(way.values()["sent"] for way in ways) > 0


def test_removed_socket_is_drained_under_the_old_plan() -> None:
    """What waits in a socket when the plan that drops it arrives is still forwarded, by the rules it came under."""
    with Relay(batch=1) as relay:
        leaves, stays, sink = relay.listen(), relay.listen(), relay.sink()
        way = relay.udp(HOME, sink.port)
        relay.go()
        exporter = relay.exporter()
        with held(relay.native_id()):
            for n in range(100):  # they wait in the kernel while the worker is held
                exporter.sendto(n.to_bytes(2, "big"), (HOME, leaves.port))
            relay.publish(relay.plan([stays], [way], rules=[]), wait=False)
            assert relay.workers[0].generation == 1
        wait_until(lambda: relay.workers[0].generation == 2, "the new plan")
        sink.expect(100)
        assert sink.payloads == [n.to_bytes(2, "big") for n in range(100)]
        exporter.sendto(b"late", (HOME, leaves.port))
        exporter.sendto(b"x", (HOME, stays.port))
        wait_until(lambda: stays.values()["unmatched"] == 1, "the socket that stays")
        assert leaves.values()["datagrams"] == 100, "a socket that left the plan is not read"


def test_added_socket_is_read_from_its_first_datagram() -> None:
    with Relay() as relay:
        first, sink = relay.listen(), relay.sink()
        relay.udp(HOME, sink.port)
        relay.go()
        second = relay.listen()
        exporter = relay.exporter()
        exporter.sendto(b"early", (HOME, second.port))
        relay.publish(relay.plan())
        sink.expect(1)
        assert first.values()["datagrams"] == 0


@pytest.mark.parametrize("count", [0, 1, 500])
def test_stop_reads_everything(count: int) -> None:
    """All that waited in the sockets when stop() was called is forwarded before run() returns."""
    with Relay() as relay:
        listeners, sink = [relay.listen() for _ in range(3)], relay.sink()
        relay.udp(HOME, sink.port)
        exporter = relay.exporter()
        for n in range(count):
            exporter.sendto(n.to_bytes(2, "big"), (HOME, listeners[n % 3].port))
        relay.publish(relay.plan())
        relay.workers[0].stop(5000)
        started = time.monotonic()
        relay.workers[0].run()
        assert time.monotonic() - started < 4, "it ends when the sockets are empty, not at the deadline"
        sink.expect(count)
        assert relay.ways[0].values()["sent"] == count


def test_stop_at_once() -> None:
    with Relay() as relay:
        listener = relay.listen()
        exporter = relay.exporter()
        exporter.sendto(b"x", (HOME, listener.port))
        relay.publish(relay.plan())
        relay.workers[0].stop(0)
        relay.workers[0].run()
        assert listener.values()["datagrams"] == 0


def test_stop_ends_under_endless_traffic() -> None:
    """The drain has a deadline."""
    with Relay() as relay:
        listener, sink = relay.listen(), relay.sink()
        relay.udp(HOME, sink.port)
        relay.go()
        exporter = relay.exporter()
        running = True

        def flood() -> None:
            while running:
                exporter.sendto(b"x", (HOME, listener.port))

        thread = threading.Thread(target=flood)
        thread.start()
        time.sleep(0.05)
        started = time.monotonic()
        relay.stop(200)
        took = time.monotonic() - started
        running = False
        thread.join()
        assert took < 2


def test_stop_without_a_plan() -> None:
    worker = _fastpath.Worker(batch=1, sessions=8)
    worker.stop(1000)
    worker.run()
    assert worker.generation == -1


def test_one_run_at_a_time() -> None:
    with Relay() as relay:
        relay.go()
        wait_until(lambda: relay.workers[0].generation == 1, "the plan")
        with pytest.raises(RuntimeError):
            relay.workers[0].run()


def test_heartbeat_and_cpu_without_traffic() -> None:
    with Relay() as relay:
        relay.go()
        wait_until(lambda: relay.worker()["heartbeat_ns"] > 0, "the first beat")
        first = relay.worker()["heartbeat_ns"]
        assert abs(first - time.monotonic_ns()) < 5_000_000_000
        wait_until(lambda: relay.worker()["heartbeat_ns"] > first, "the next beat", 3)
        assert relay.worker()["cpu_ns"] > 0


def test_old_plans_are_let_go() -> None:
    """Their sockets may be closed once the generation has moved on, and their memory does not pile up."""
    with Relay() as relay:
        way = relay.udp(HOME, 9)
        relay.listen()
        relay.go()
        holders = sys.getrefcount(way.tx)
        for _ in range(20):
            relay.publish(relay.plan())
        assert relay.workers[0].generation == 21
        gc.collect()
        now = sys.getrefcount(way.tx)
        assert now == holders, "only the running plan holds it"


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


# ---- forged exporters


@pytest.mark.netns
def test_100_000_forged_exporters_keep_memory_bounded() -> None:
    def run() -> None:
        with Relay(batch=256, sessions=4096) as relay:
            listener, sink = relay.listen("198.18.0.1"), relay.sink("198.18.0.2")
            way = relay.udp("198.18.0.2", sink.port, freq=1000)
            relay.go()
            forger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            udp = struct.pack(">HHHH", 4000, listener.port, 8, 0)
            head = struct.pack(">BBHHHBBH", 0x45, 0, 28, 1, 0, 64, 17, 0)
            count = 100_000
            before = 0
            for n in range(count):
                if n == count // 5:
                    before = resident()
                source = struct.pack(">I", 0x0B000000 + n * 97)
                forger.sendto(head + source + packed("198.18.0.1") + udp, ("198.18.0.1", 0))
                if n % 2000 == 0:
                    wait_until(lambda n=n: n - relay.received() < 4000, "the relay to keep up")
            wait_until(lambda: relay.received() == count, "all of them")
            grown = resident() - before
            forger.close()
            relay.stop()
            numbers = relay.worker()
            assert numbers["sessions"] <= 4096
            assert numbers["session_misses"] == count
            assert numbers["session_evictions"] == count - numbers["sessions"]
            assert way.values()["sent"] == count // 1000
            if "asan" not in _fastpath.__file__:  # its quarantine keeps what was freed
                assert grown < 4 << 20

    in_namespace(run, "addr add 198.18.0.1/32 dev lo", "addr add 198.18.0.2/32 dev lo")


def test_right_route_after_eviction() -> None:
    """More sessions than the cache holds, two routes: every copy goes where its exporter's rule says."""
    with Relay(sessions=8) as relay:
        listener, low, high = relay.listen(), relay.sink(), relay.sink()
        for sink in (low, high):
            relay.udp(HOME, sink.port)
        mask = b"\xff" * 12 + bytes([255, 255, 255, 128])
        mapped = bytes(10) + b"\xff\xff"
        rules = [
            ([(4, mapped + packed("127.0.0.0"), mask)], None, [0], False),
            ([(4, mapped + packed("127.0.0.128"), mask)], None, [1], False),
        ]
        relay.go(rules=rules)
        exporters = [relay.exporter(f"127.0.0.{n}") for n in (*range(1, 40), *range(128, 168))]
        for _ in range(5):
            for exporter in exporters:
                exporter.sendto(b"x", (HOME, listener.port))
        low.expect(5 * 39)
        high.expect(5 * 40)
        relay.stop()
        assert relay.worker()["session_evictions"] > 0
