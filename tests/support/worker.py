"""A relay of real sockets for tests/engine: workers in threads, listeners, ways out, exporters and sinks, no daemon.

Invariants: every socket is closed and every worker has ended when the `with` block ends; the conservation laws are
checked then, whatever the test did. Used by tests/engine only. Traffic stays on loopback, or in a network namespace
that lives as long as the thread that made it. Must never import the control plane.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from samplicator import _fastpath
from samplicator._fastpath import DoorEnd, Plan, RxCounters, RxSocket, Tx, TxCounters, Worker

T = TypeVar("T")
ANY = (0, bytes(16), bytes(16))
IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTTL, IP_RECVTOS = 10, 11, 12, 13
IPV6_MTU_DISCOVER, IPV6_RECVERR, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS = 23, 25, 51, 66
SO_TIMESTAMPNS, SO_SNDBUFFORCE, SO_RCVBUFFORCE = 35, 32, 33
CLONE_NEWNET = 0x40000000
Endpoint = tuple[str, int]


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def packed(address: str) -> bytes:
    return socket.inet_pton(family_of(address), address)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.002)


def receive_buffer(sock: socket.socket, size: int = 32 << 20) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


@dataclass(frozen=True)
class Arrival:
    """One copy at a sink."""

    payload: bytes
    source: Endpoint
    ttl: int
    tos: int


class Sink:
    """A receiver that keeps what arrives, in order."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
        receive_buffer(self.sock)
        if ":" in address:
            self.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
            self.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
        else:
            self.sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            self.sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        self.sock.bind((address, 0))
        self.sock.setblocking(False)
        self.address, self.port = self.sock.getsockname()[:2]
        self.arrivals: list[Arrival] = []

    def read(self) -> int:
        """Takes what waits now, 512 at most; returns how much has arrived in all."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(512):
                payload, ancillary, _, source = self.sock.recvmsg(65536, 256)
                ttl = tos = -1
                for _, kind, data in ancillary:
                    if kind in (socket.IP_TTL, socket.IPV6_HOPLIMIT):
                        ttl = data[0]
                    elif kind in (socket.IP_TOS, socket.IPV6_TCLASS):
                        tos = data[0]
                self.arrivals.append(Arrival(payload, source[:2], ttl, tos))
        return len(self.arrivals)

    def expect(self, count: int, seconds: float = 10.0) -> list[Arrival]:
        """Waits for `count` copies, then a little longer for one too many."""
        wait_until(lambda: self.read() >= count, f"{count} copies, {len(self.arrivals)} so far", seconds)
        time.sleep(0.01)
        assert self.read() == count
        return self.arrivals

    @property
    def payloads(self) -> list[bytes]:
        return [arrival.payload for arrival in self.arrivals]


class Listener:
    """A bound socket with its counters. Its RxSocket handle may be named by the plans of any worker, one at a time."""

    def __init__(self, address: str, index: int, *, dual: bool = False, share: Listener | None = None) -> None:
        self.sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
        receive_buffer(self.sock)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if ":" in address:
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
            self.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
            self.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
        if dual or ":" not in address:
            self.sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            self.sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        self.sock.bind((address, share.port if share else 0))
        self.sock.setblocking(False)
        self.port: int = self.sock.getsockname()[1]
        self.counters = RxCounters()
        self.handle = RxSocket(self.sock.fileno(), self.counters, index)

    def values(self) -> dict[str, int]:
        return dict(zip(_fastpath.RX_FIELDS, self.counters.read(), strict=True))


class Way:
    """A receiver: its Tx, socket and counters."""

    def __init__(self, tx: Tx, counters: TxCounters, socks: list[socket.socket]) -> None:
        self.tx, self.counters, self.socks = tx, counters, socks

    def values(self) -> dict[str, int]:
        return dict(zip(_fastpath.TX_FIELDS, self.counters.read(), strict=True))

    def dropped(self) -> int:
        return sum(value for name, value in self.values().items() if name.startswith("failed_"))


def udp_socket(
    address: str, port: int, *, ttl: int = 64, tos: int = -1, source: Endpoint | None = None
) -> socket.socket:
    """What ENGINE_UDP asks of its caller: non-blocking, connected, reports on, fragmentation by the kernel."""
    sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
    level = socket.IPPROTO_IPV6 if ":" in address else socket.IPPROTO_IP
    six = ":" in address
    sock.setsockopt(level, IPV6_RECVERR if six else IP_RECVERR, 1)
    sock.setsockopt(level, IPV6_MTU_DISCOVER if six else IP_MTU_DISCOVER, 0)
    if ttl:
        sock.setsockopt(level, socket.IPV6_UNICAST_HOPS if six else socket.IP_TTL, ttl)
    if tos >= 0:
        sock.setsockopt(level, socket.IPV6_TCLASS if six else socket.IP_TOS, tos)
    sock.setblocking(False)
    if source:
        sock.bind(source)
    sock.connect((address, port))
    return sock


def raw_socket(address: str) -> socket.socket:
    sock = socket.socket(family_of(address), socket.SOCK_RAW, socket.IPPROTO_RAW)
    sock.setblocking(False)
    sock.connect((address, 0))
    return sock


class Told(NamedTuple):
    """What a tap says of a datagram or a copy."""

    event: str
    reason: str
    number: int
    length: int
    engine: int
    exporter: bytes
    port: int
    listener: int
    receiver: int
    payload: bytes


class WorkerTap:
    """The reader's end of a tap. told: what has come so far."""

    def __init__(self, worker: Worker, number: int, sock: socket.socket) -> None:
        self.worker = worker
        self.number = number
        self.sock = sock
        self._end = DoorEnd(sock.fileno())
        self.told: list[Told] = []

    def read(self) -> list[Told]:
        """All so far."""
        while datagrams := self._end.read():
            for address, port, payload, _, _, _, listener, receiver in datagrams:
                number, length, verdict, engine, _ = struct.unpack_from("=IIBBH", payload)
                event, reason = _fastpath.TAP_EVENTS[verdict]
                self.told.append(
                    Told(event, reason, number, length, engine, address, port, listener, receiver, payload[12:])
                )
        return self.told

    def counts(self) -> tuple[int, int]:
        return self.worker.tap_read(self.number)


class Relay:
    """Workers, their plans and what they name. Listener indexes are given in order of creation."""

    def __init__(self, workers: int = 1, **options: int) -> None:
        self.workers = [Worker(**{"batch": 64, "sessions": 1024, **options}) for _ in range(workers)]
        self.threads: list[threading.Thread] = []
        self.listeners: list[Listener] = []
        self.ways: list[Way] = []
        self.sinks: list[Sink] = []
        self.generation = 0
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self.stop(2000)
        for owner in (*self.listeners, *self.sinks):
            owner.sock.close()
        for way in self.ways:
            for sock in way.socks:
                sock.close()
        self.stack.close()
        if kind is None:
            self.check_laws()

    # -- parts

    def listen(self, address: str = "127.0.0.1", **options: Any) -> Listener:
        index = options.pop("index", len(self.listeners))
        self.listeners.append(Listener(address, index, **options))
        return self.listeners[-1]

    def sink(self, address: str = "127.0.0.1") -> Sink:
        self.sinks.append(Sink(address))
        return self.sinks[-1]

    def exporter(self, address: str = "127.0.0.1", *, bind: bool = True) -> socket.socket:
        sock = self.stack.enter_context(socket.socket(family_of(address), socket.SOCK_DGRAM))
        level = socket.IPPROTO_IPV6 if ":" in address else socket.IPPROTO_IP
        sock.setsockopt(level, IPV6_MTU_DISCOVER if ":" in address else IP_MTU_DISCOVER, 0)
        if bind:
            sock.bind((address, 0))
        return sock

    def udp(self, address: str, port: int, counters: TxCounters | None = None, **options: Any) -> Way:
        ttl, tos = options.get("ttl", 64), options.get("tos", -1)
        sock = udp_socket(address, port, ttl=ttl, tos=tos)
        counters = counters or TxCounters()
        tx = Tx(_fastpath.ENGINE_UDP, sock.fileno(), counters, packed(address), port, **options)
        self.ways.append(Way(tx, counters, [sock]))
        return self.ways[-1]

    def raw(self, address: str, port: int, counters: TxCounters | None = None, **options: Any) -> Way:
        sock = raw_socket(address)
        counters = counters or TxCounters()
        tx = Tx(_fastpath.ENGINE_RAW, sock.fileno(), counters, packed(address), port, **options)
        self.ways.append(Way(tx, counters, [sock]))
        return self.ways[-1]

    # -- life

    def plan(
        self, listeners: Iterable[Listener] | None = None, ways: Sequence[Way] | None = None, rules: Any = None
    ) -> Plan:
        """Without rules: everything to every way."""
        self.generation += 1
        ways = self.ways if ways is None else ways
        if rules is None:
            rules = [([ANY], None, range(len(ways)), False)]
        handles = [listener.handle for listener in (self.listeners if listeners is None else listeners)]
        return Plan(self.generation, handles, [way.tx for way in ways], rules)

    def publish(self, plan: Plan, worker: int = 0, *, wait: bool = True) -> None:
        self.workers[worker].publish(plan)
        if wait and self.threads:
            wait_until(lambda: self.workers[worker].generation == plan.generation, f"plan {plan.generation}")

    def start(self) -> None:
        """Runs every worker in a thread of its own; each has a plan by now."""
        for worker in self.workers:
            self.threads.append(threading.Thread(target=worker.run))
            self.threads[-1].start()

    def native_id(self, worker: int = 0) -> int:
        """Of its thread."""
        found = self.threads[worker].native_id
        assert found is not None
        return found

    @contextlib.contextmanager
    def tap(self, worker: int = 0, *, queue: int = 1 << 20, **asked: Any) -> Iterator[WorkerTap]:
        """A tap of a worker that runs; it is closed at the end, and the worker has let go of it then."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        handle = self.workers[worker]
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, queue)
            number = handle.tap_open(ours.fileno(), **{"rate": 1e6, **asked})
            tap = WorkerTap(handle, number, theirs)
            wait_until(lambda: handle.tap_is_open(tap.number), "the tap")
            try:
                yield tap
            finally:
                handle.tap_close(tap.number)
                wait_until(lambda: not handle.tap_is_used(tap.number), "the tap to be closed")

    def go(self, **options: Any) -> None:
        """One worker, one plan, everything to every way."""
        self.publish(self.plan(**options))
        self.start()

    def stop(self, drain_ms: int = 0) -> None:
        for worker in self.workers:
            worker.stop(drain_ms)
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "a worker did not stop"
        self.threads = []

    # -- numbers

    def received(self) -> int:
        return sum(listener.values()["datagrams"] for listener in self.listeners)

    def worker(self, index: int = 0) -> dict[str, int]:
        return dict(zip(_fastpath.WORKER_FIELDS, self.workers[index].read(), strict=True))

    def check_laws(self) -> None:
        for listener in self.listeners:
            v = listener.values()
            assert v["datagrams"] == v["truncated"] + v["unmatched"] + v["denied"] + v["matched"], v
        for way in self.ways:
            v = way.values()
            assert v["offered"] == v["skipped"] + v["sent"] + way.dropped(), v


# ---- a network of one's own


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), check=True, text=True, capture_output=True)


def wait_usable(address: str) -> None:
    """A fresh IPv6 address takes the kernel a moment, in which datagrams to it are lost (Ip6OutNoRoutes)."""
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:

        def echo() -> bool:
            with contextlib.suppress(OSError):
                sock.sendto(b"usable", sock.getsockname())
                return sock.recv(16) == b"usable"
            return False

        sock.bind((address, 0))
        sock.settimeout(0.02)
        wait_until(echo, f"{address} to be usable")


def in_namespace(function: Callable[[], T], *setup: str) -> T:
    """Calls the function in a thread that has a network namespace of its own, loopback up; it vanishes with the last
    socket in it. setup: lines for `ip -batch`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    result: list[T] = []
    failure: list[BaseException] = []

    def inside() -> None:
        try:
            if libc.unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            ip("link set lo up", *setup)
            for line in setup:
                if line.startswith("addr add") and line.endswith("nodad"):
                    wait_usable(line.split()[2].partition("/")[0])
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def is_root() -> bool:
    return os.geteuid() == 0
