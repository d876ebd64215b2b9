"""SCTP without a network and without time: libusrsctp between two `Userland`s of this process, over wires of memory.

Used by tests/unit. `Time` is the event loop, whose clock moves only when nothing is left to do now; `Wires` carries
packets, and cuts, loses and keeps them. libusrsctp asks the real clock, too: it sends nothing again that it sent less
than a retransmission time ago. Tests of what is sent again set `Time.real`, which makes the two clocks run together.
"""

from __future__ import annotations

import heapq
import itertools
import random
import socket
import time
from collections.abc import Callable
from typing import Any

from samplicator.gateways.sctp.carrier import Arrival
from samplicator.gateways.sctp.packet import Packet, parse
from samplicator.gateways.sctp.peers import Place
from samplicator.gateways.sctp.userland import Userland
from samplicator.gateways.transport import Address, Session

_start = itertools.count(1)
_descriptors = itertools.count(100_000)


class Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Time:
    """As much of asyncio's loop as transports use."""

    def __init__(self) -> None:
        self.now = 1000.0 * next(_start)
        self.real = False
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self.readers: dict[int, Callable[[], None]] = {}

    def clock(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[..., None], *words: Any) -> Timer:
        timer = Timer(lambda: call(*words))
        heapq.heappush(self._heap, (self.now + seconds, next(self._order), timer))
        return timer

    def call_soon(self, call: Callable[..., None], *words: Any) -> Timer:
        return self.call_later(0.0, call, *words)

    def add_reader(self, descriptor: int, call: Callable[..., None], *words: Any) -> None:
        self.readers[descriptor] = lambda: call(*words)

    def remove_reader(self, descriptor: int) -> None:
        self.readers.pop(descriptor, None)

    def run(self, seconds: float) -> None:
        self.until(lambda: False, seconds, must=False)

    def until(self, condition: Callable[[], bool], seconds: float = 60.0, *, must: bool = True) -> float:
        """Until the condition holds; returns how long it took."""
        begun, end = self.now, self.now + seconds
        while not condition():
            if not self._heap or self._heap[0][0] > end:
                assert not must, f"not within {seconds} s"
                self.now = end
                break
            when, _, timer = heapq.heappop(self._heap)
            if self.real and when > self.now:
                time.sleep(when - self.now)
            self.now = max(self.now, when)
            if timer.call is not None:
                timer.call()
        return self.now - begun


class MemoryCarrier:
    overhead_bytes = 20

    def __init__(self, wires: Wires, addresses: tuple[str, ...]) -> None:
        self.unsent = 0
        self.queue: list[Arrival] = []
        self.wires = wires
        self.addresses = [socket.inet_aton(one) for one in addresses]
        self._descriptor = next(_descriptors)

    def fileno(self) -> int:
        return self._descriptor

    def send(self, packet: bytes, to: Place, ours: bytes) -> None:
        self.wires.carry(packet, ours or self.addresses[0], to.address)

    def receive(self) -> list[Arrival]:
        found, self.queue = self.queue, []
        return found

    def close(self) -> None:
        if self in self.wires.carriers:
            self.wires.carriers.remove(self)


class Wires:
    """dead: addresses that nothing reaches or leaves. loses: whether a packet is lost. seen: all packets, with the
    address that they went to. via: from which address a packet leaves in the place of the one it has. edits:
    what becomes of a packet.
    """

    def __init__(self, time: Time, latency: float = 0.0005) -> None:
        self.time = time
        self.latency = latency
        self.carriers: list[MemoryCarrier] = []
        self.dead: set[str] = set()
        self.loses: Callable[[Packet], bool] = lambda packet: False
        self.via: dict[str, str] = {}
        self.edits: Callable[[bytes], bytes] = lambda data: data
        self.seen: list[tuple[str, Packet]] = []
        self.keeps = False
        self.random = random.Random(7)

    def attach(self, *addresses: str) -> MemoryCarrier:
        carrier = MemoryCarrier(self, addresses)
        self.carriers.append(carrier)
        return carrier

    def carry(self, data: bytes, source: bytes, to: bytes) -> None:
        data = self.edits(data)
        packet = parse(data)
        assert packet is not None
        here, there = socket.inet_ntoa(source), socket.inet_ntoa(to)
        here = self.via.get(here, here)
        if self.keeps:
            self.seen.append((there, packet))
        if {here, there} & self.dead or self.loses(packet):
            return
        self.time.call_later(self.latency, self.deliver, data, here, there)

    def deliver(self, data: bytes, here: str, there: str) -> None:
        address = socket.inet_aton(there)
        for carrier in self.carriers:
            if address in carrier.addresses:
                carrier.queue.append((data, Place(socket.inet_aton(here)), address))
                call = self.time.readers.get(carrier.fileno())
                if call is not None:
                    call()


class Log:
    """Events that are kept. allows: peers that may come in."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.closed_: list[tuple[Session, str]] = []
        self.messages: list[tuple[Session, int, bytes]] = []
        self.failed: list[bytes] = []
        self.allows: Callable[[Address], str] = lambda peer: ""
        self.asked: list[Address] = []

    def admits(self, peer: Address) -> str:
        self.asked.append(peer)
        return self.allows(peer)

    def opened(self, session: Session) -> None:
        self.sessions.append(session)

    def message(self, session: Session, stream: int, message: bytes) -> None:
        self.messages.append((session, stream, message))

    def writable(self, session: Session) -> None: ...

    def given_up(self, session: Session, message: bytes) -> None:
        self.failed.append(message)

    def refused(self, peer: Address, why: str) -> None: ...

    def closed(self, session: Session, why: str) -> None:
        self.closed_.append((session, why))

    def payloads(self, stream: int | None = None) -> list[bytes]:
        return [message for _, sid, message in self.messages if stream in (None, sid)]


def place(text: str, port: int) -> Address:
    return Address(socket.inet_aton(text), port)


def host(wires: Wires, *addresses: str, **options: Any) -> Userland:
    """One more host at the wires."""
    carrier = wires.attach(*addresses)
    loop: Any = wires.time
    return Userland(loop, lambda family: carrier, clock=wires.time.clock, **options)
