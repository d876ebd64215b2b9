"""The doors of one listener, as a gateway writes into them.

Purpose: datagrams of sessions in, to the worker that has the exporter. Invariants: datagrams of a session stay in order
and with one worker as long as the number of workers stays; when a door is full its sessions are paused, so exporters
wait and nothing is lost; what waits is bounded by QUEUE_BYTES and one read of each session. Called by place and hub, in
the thread of the loop.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from samplicator.gateways.door import Datagram, Door
from samplicator.gateways.tally import InTally
from samplicator.gateways.transport import Address, Session
from samplicator.plan.sessions import DoorSpec

QUEUE_BYTES: Final = 256 << 10
BURST: Final = 512
"""Datagrams that are handed to a door at once."""


class DoorWriter:
    """One door. ended: called when the worker's end is closed; then `left` is what was not taken."""

    def __init__(self, loop: asyncio.AbstractEventLoop, door: Door, ended: Callable[[DoorWriter], None]) -> None:
        self.left: deque[Datagram] = deque()
        self._loop = loop
        self._door = door
        self._ended = ended
        self._bytes = 0
        self._asked = False
        self._waiting: dict[Session, None] = {}
        self.waits = 0
        loop.add_reader(door.fileno(), self._read)

    @property
    def queue_bytes(self) -> int:
        return self._bytes

    def add(self, datagram: Datagram) -> None:
        """One that another door had no room for."""
        self.left.append(datagram)
        self._bytes += len(datagram.payload)
        if not self._asked:
            self._asked = True
            self._loop.call_soon(self._flush)

    def put(self, session: Session, datagrams: Sequence[Datagram]) -> None:
        self.left.extend(datagrams)
        self._bytes += sum(len(one.payload) for one in datagrams)
        if not self._asked:
            self._asked = True
            self._loop.call_soon(self._flush)
        if self._bytes > QUEUE_BYTES and session not in self._waiting:
            self._waiting[session] = None
            self.waits += 1
            session.pause()

    def _flush(self) -> None:
        while self.left:
            burst = [self.left[n] for n in range(min(BURST, len(self.left)))]
            try:
                took = self._door.write(burst)
            except OSError:
                return self._end()
            for _ in range(took):
                self._bytes -= len(self.left.popleft().payload)
            if took < len(burst):
                self._loop.add_writer(self._door.fileno(), self._flush)
                return None
        self._loop.remove_writer(self._door.fileno())
        self._asked = False
        waiting, self._waiting = self._waiting, {}
        for session in waiting:
            session.resume()
        return None

    def drain(self) -> list[Datagram]:
        """What the door does not take now, and does not get any more."""
        if self.left and self._door.fileno() >= 0:
            self._flush()
        rest = list(self.left)
        self.left.clear()
        self._bytes = 0
        return rest

    def _read(self) -> None:
        try:
            self._door.read()
        except (EOFError, OSError):
            self._end()

    def _end(self) -> None:
        if self._door.fileno() >= 0:
            self.close()
            self._ended(self)

    def close(self) -> None:
        """Sessions that were made to wait go on, into another door."""
        if self._door.fileno() >= 0:
            self._loop.remove_reader(self._door.fileno())
            self._loop.remove_writer(self._door.fileno())
            self._door.close()
        self._asked = True
        waiting, self._waiting = self._waiting, {}
        for session in waiting:
            session.resume()


class Inlet:
    """One listener as one plan has it. doors: by worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, spec: DoorSpec, tally: InTally) -> None:
        self.name = name
        self.spec = spec
        self.tally = tally
        self.doors: dict[int, DoorWriter] = {}
        self._loop = loop
        self._order: list[DoorWriter] = []

    def add(self, worker: int, door: Door, ended: Callable[[Inlet], None]) -> None:
        """A door for one more worker, or a new one in the place of one that ended. ended: no door is left."""
        old = self.doors.pop(worker, None)
        if old is not None:
            old.close()

        def gone(writer: DoorWriter) -> None:
            self.doors = {number: one for number, one in self.doors.items() if one is not writer}
            self._sort()
            self.tally.lost += len(writer.left)
            if not self.doors:
                ended(self)

        self.doors[worker] = DoorWriter(self._loop, door, gone)
        self._sort()

    def _sort(self) -> None:
        self._order = [self.doors[worker] for worker in sorted(self.doors)]

    def writer_for(self, peer: Address) -> DoorWriter | None:
        """The door of the worker that has this exporter; None = all have ended."""
        if not self._order:
            return None
        return self._order[zlib.crc32(peer.address + peer.port.to_bytes(2, "big")) % len(self._order)]

    def go_on_from(self, other: Inlet) -> None:
        """This one's doors get what comes from now on, and before that what the other's had no room for."""
        for writer in list(other.doors.values()):
            for datagram in writer.drain():
                found = self.writer_for(Address(datagram.address, datagram.port))
                if found is not None:
                    found.add(datagram)

    @property
    def waiting(self) -> int:
        """Datagrams that no door has taken yet."""
        return sum(len(writer.left) for writer in list(self.doors.values()))

    def admits(self, peer: Address) -> bool:
        """Whether `allow` has the address."""
        return not self.spec.allow or any(source.selects(peer.address) for source in self.spec.allow)

    def close(self) -> None:
        for writer in self.doors.values():
            self.tally.lost += len(writer.left)
            writer.close()
        self.doors = {}
        self._order = []


def datagrams_of(peer: Address, payloads: Sequence[bytes]) -> list[Datagram]:
    """That came now, as the exporter."""
    now = time.time_ns()
    return [Datagram(peer.address, peer.port, payload, now) for payload in payloads]
