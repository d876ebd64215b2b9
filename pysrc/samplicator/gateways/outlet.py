"""One receiver, as a gateway reads its doors: copies of each exporter go to a session of its own.

Purpose: a collector knows an exporter by its session (RFC 7011 section 2), so exporters must not share one. Invariants:
when more than QUEUE_BYTES wait, the doors are not read; then the workers find them full and count each copy as
no_buffer_space, and nothing is dropped here; sessions are bounded by MAX_LINES, and one that has had no copy for
IDLE_SECONDS is closed. Called by hub, in the thread of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from samplicator.config.address import endpoint_text
from samplicator.gateways.budget import Budget
from samplicator.gateways.door import Datagram, Door
from samplicator.gateways.line import Line
from samplicator.gateways.tally import OutTally
from samplicator.gateways.transport import Address, Options, Transport
from samplicator.plan.sessions import Door as Delivery
from samplicator.readings import TransportSessionReading

QUEUE_BYTES: Final = 8 << 20
MAX_LINES: Final = 1024
IDLE_SECONDS: Final = 1800.0
TIDY_SECONDS: Final = 5.0
END_SECONDS: Final = 3.0
"""How long what waits may take to be sent when the receiver is gone."""


class Outlet:
    """See above. ended: told when nothing is left. again: told when a collector came back."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Transport,
        name: str,
        delivery: Delivery,
        tally: OutTally,
        ended: Callable[[Outlet], None],
        again: Callable[[], None],
    ) -> None:
        self.name = name
        self.delivery = delivery
        self.tally = tally
        self.fault = ""
        self._loop = loop
        self._transport = transport
        self._place = Address(delivery.address, delivery.port, delivery.scope_id)
        self._options = Options(tls=delivery.tls, name=delivery.host, sctp=delivery.sctp)
        self._ended = ended
        self._again = again
        self._doors: dict[int, list[Door]] = {}  # by worker; the first is read, those behind it came later
        self._budget = Budget()
        self._lines: dict[tuple[bytes, int], Line] = {}
        self._waiting = 0
        self._stopped = False
        self.ending = False
        self._timer = loop.call_later(TIDY_SECONDS, self._tidy)

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.delivery.gateway}://{endpoint_text(self.delivery.host, self.delivery.port)}"

    # -- doors

    def add(self, worker: int, door: Door) -> None:
        """A door of a worker. If that has one already, the old one is read to its end before."""
        doors = self._doors.setdefault(worker, [])
        doors.append(door)
        if len(doors) == 1 and not self._stopped:
            self._watch(worker)

    def _watch(self, worker: int) -> None:
        door = self._doors[worker][0]
        self._loop.add_reader(door.fileno(), self._read, worker, door)

    def _read(self, worker: int, door: Door) -> None:
        try:
            datagrams = door.read()
        except (EOFError, OSError):
            self._leave(worker, door)
            return
        for one in datagrams:
            self._take(one)
        if self._waiting > QUEUE_BYTES and not self._stopped:
            self._stopped = True
            self.tally.waits += 1
            for doors in self._doors.values():
                self._loop.remove_reader(doors[0].fileno())

    def _moved(self, count: int) -> None:
        self._waiting += count
        if self._stopped and self._waiting <= QUEUE_BYTES // 2:
            self._stopped = False
            for worker in self._doors:
                self._watch(worker)

    def _leave(self, worker: int, door: Door) -> None:
        self._loop.remove_reader(door.fileno())
        door.close()
        del self._doors[worker][0]
        if self._doors[worker]:
            self._watch(worker)
            return
        del self._doors[worker]
        if not self._doors:
            self.end()

    def _take(self, datagram: Datagram) -> None:
        if int.from_bytes(datagram.payload[:2], "big") not in self._transport.versions:
            self.tally.not_ipfix += 1
            return
        key = datagram.address, datagram.port
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= MAX_LINES:
                self.tally.limit += 1
                return
            line = self._lines[key] = Line(
                self._loop,
                self._transport,
                Address(datagram.address, datagram.port),
                self._place,
                self._options,
                self.tally,
                self._budget,
                self._moved,
                self._again,
            )
        line.take(datagram.payload)

    # -- in time

    def look(self) -> None:
        """Several times per second: whether the collector is there."""
        why = ""
        if not any(line.delivers for line in self._lines.values()):
            why = next((why for why in (line.seen.why for line in self._lines.values()) if why), "")
        self.fault = f"not connected: {why}" if why else ""

    def _tidy(self) -> None:
        idle = self._loop.time() - IDLE_SECONDS
        for key, line in list(self._lines.items()):
            if line.ended:
                del self._lines[key]
            elif line.used_at < idle and not line.waits:
                line.end()
        self._timer = self._loop.call_later(TIDY_SECONDS, self._tidy)

    def end(self, *, abort: bool = False) -> None:
        """The receiver is gone: what waits is sent for a bounded time. abort: not even that."""
        if self.ending and not abort:
            return
        self.ending = True
        for door in (door for doors in self._doors.values() for door in doors):
            self._loop.remove_reader(door.fileno())
            door.close()
        self._doors = {}
        for line in list(self._lines.values()):
            line.end(abort=abort)
        self._wait_for_end(self._loop.time() + (0.0 if abort else END_SECONDS))

    def _wait_for_end(self, latest: float) -> None:
        self._timer.cancel()
        if all(line.ended for line in self._lines.values()):
            self._ended(self)
        elif self._loop.time() < latest:
            self._timer = self._loop.call_later(0.05, self._wait_for_end, latest)
        else:
            for line in self._lines.values():
                line.end(abort=True)
            self._ended(self)

    # -- what is shown

    def readings(self) -> list[TransportSessionReading]:
        lines = list(self._lines.values())
        return [
            TransportSessionReading(
                gateway=self.delivery.gateway,
                side="out",
                name=self.name,
                exporter=line.exporter.text,
                peer=self._place.text,
                state=seen.state,
                why=seen.why,
                opened=line.opened_count,
                messages=line.messages,
                octets=line.octets,
                queue_bytes=line.queue_bytes,
                streams=line.streams,
                association=line.association,
            )
            for line, seen in ((line, line.seen) for line in lines)
        ]
