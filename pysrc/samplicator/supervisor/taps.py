"""Taps: a live, bounded sample of what comes in, what leaves, and what is not forwarded and why.

Purpose: doors from all workers (fastpath, worker/tap.pxi) to one reader, with the names of what runs now. Invariants:
no worker ever waits for a tap: what is over its rate, or finds its door full, is counted as not shown; at most LIMIT
taps are open; a worker's end is closed when the worker has let go of it. Called by http and service. It must never
decide what happens to a datagram.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from samplicator import _fastpath
from samplicator.gateways.door import Door, pair
from samplicator.health.receiver import ids

if TYPE_CHECKING:
    from samplicator.datapath.thread import WorkerThread
    from samplicator.health.running import Running

LIMIT: Final = _fastpath.TAPS
"""Taps open at a time."""
RATE: Final = 1000
RATE_LIMIT: Final = 10_000
DOOR_BYTES: Final = 1 << 20
"""Of a worker's door: a little more than a second of the default rate with the largest usual datagrams."""
OPEN_SECONDS: Final = 2.0
BUSY_SECONDS: Final = 0.05
"""How long a worker may take to do what it was asked for before; usually it is a fraction of a millisecond."""
_HEAD: Final = struct.Struct("=IIBBH")
_ENGINES: Final = {
    _fastpath.ENGINE_UDP: "udp",
    _fastpath.ENGINE_RAW: "raw",
    _fastpath.ENGINE_DOOR: "door",
    _fastpath.ENGINE_TRANSPARENT: "transparent",
    _fastpath.ENGINE_PACKET: "packet",
}
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class TooMany(Exception):
    """LIMIT taps are open, or a worker has not let go of one yet."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a tap shows. exporters: None = all. receiver, listener: by name, "" = all. drops: only what is not
    forwarded. rate: 1..RATE_LIMIT events per second and worker.

    Without receiver and drops, a datagram that is shown is shown with all its copies.
    """

    exporters: Network | None = None
    receiver: str = ""
    listener: str = ""
    drops: bool = False
    rate: float = RATE


class Event(NamedTuple):
    """What happened to a datagram (in, dropped), or to a copy for `receiver` (sent, skipped, failed). datagram: the
    same for a datagram and its copies, within a tap; 0 = a copy that stands for no datagram (templates sent again).
    batch: the same for datagrams that were read together: all that becomes of them comes before the next batch.
    way: engine by which a copy leaves, "" for a datagram. address: of the exporter, 4 or 16 bytes. ttl: 0 = unknown.
    arrival_ns: Unix time, 0 = unknown. length: bytes of the datagram, of which `payload` has all or none.
    """

    event: str
    reason: str
    datagram: int
    batch: int
    address: bytes
    port: int
    listener: str
    receiver: str
    way: str
    arrival_ns: int
    ttl: int
    tos: int
    length: int
    payload: bytes


class _End(NamedTuple):
    """A worker's side of a tap. number: of the tap there. asked: for what, see Tap._ids."""

    thread: WorkerThread
    number: int
    asked: tuple[int, int] | None
    sock: socket.socket
    door: Door


class Tap:
    """One open tap, for one reader. To an event loop it is readable as a socket is. One thread at a time."""

    def __init__(self, taps: Taps, running: Running, ask: Ask) -> None:
        self.ask = ask
        self._taps = taps
        self._running = running
        self._poll = select.epoll()
        self._ends: dict[int, _End] = {}  # by descriptor of the door
        self._gone = [0, 0]  # shown, unshown of ends that are closed
        self._lock = threading.Lock()
        self._names: dict[int, dict[int, str]] = {}  # receivers by the index of a worker
        self._slots: dict[int, str] = {}
        self._generation = -1

    def fileno(self) -> int:
        return self._poll.fileno()

    def follow(self) -> bool:
        """Follows what runs now: workers, names that are asked for; False: no change. Raises OSError, TooMany."""
        workers = list(self._running.workers)
        gone = [fd for fd, end in self._ends.items() if end.thread not in workers or end.asked != self._ids(end.thread)]
        with self._lock:
            for fd in gone:
                self._close(fd)
        return self.meet(workers) or bool(gone)

    def meet(self, workers: Sequence[WorkerThread]) -> bool:
        """Shows what these do, too; False: it does already. Raises OSError, TooMany."""
        with self._lock:
            new = [thread for thread in workers if all(end.thread is not thread for end in self._ends.values())]
            for thread in new:
                self._open(thread)
        return bool(new)

    def is_open(self) -> bool:
        """Whether all workers show their datagrams by now."""
        return all(end.thread.worker.tap_is_open(end.number) for end in list(self._ends.values()))

    def wait(self, seconds: float = OPEN_SECONDS) -> None:
        """Until it is open."""
        until = time.monotonic() + seconds
        while not self.is_open() and time.monotonic() < until:
            time.sleep(0.001)

    def read(self) -> list[Event]:
        """Some of what has come, some 500 events of one worker at most; nothing when there is nothing now."""
        found: list[Event] = []
        self._learn()
        for fd, _ in self._poll.poll(0, 1):
            end = self._ends[fd]
            try:
                datagrams = end.door.read()
            except (EOFError, OSError):  # its worker has ended; follow() tidies up
                self._poll.unregister(fd)
                continue
            receivers = self._names.get(end.thread.index, {})
            for d in datagrams:
                number, length, verdict, engine, _spare = _HEAD.unpack_from(d.payload)
                event, reason = _fastpath.TAP_EVENTS[verdict]
                found.append(
                    Event(
                        event,
                        reason,
                        number << 8 | end.thread.index & 0xFF if number else 0,
                        number // _fastpath.BATCH_MAX << 8 | end.thread.index & 0xFF,
                        d.address,
                        d.port,
                        self._slots.get(d.listener, ""),
                        receivers.get(d.receiver, ""),
                        _ENGINES[engine] if d.receiver else "",
                        d.arrival_ns,
                        d.ttl,
                        d.tos,
                        length,
                        d.payload[_HEAD.size :],
                    )
                )
        return found

    def _learn(self) -> None:
        """The names of what runs."""
        if self._generation != self._running.generation:
            self._generation = self._running.generation
            states = list(self._running.receivers.values())
            self._names = {thread.index: ids(states, thread.index) for thread in list(self._running.workers)}
            self._slots = {state.slot: state.name for state in list(self._running.listeners.values())}

    def counts(self) -> tuple[int, int]:
        """Events shown so far, and those that were asked for and not shown."""
        rows = [self._gone, *(end.thread.worker.tap_read(end.number) for end in list(self._ends.values()))]
        return sum(row[0] for row in rows), sum(row[1] for row in rows)

    def close(self) -> None:
        with self._lock:
            for fd in list(self._ends):
                self._close(fd)
        self._poll.close()
        self._taps.closed(self)

    def _ids(self, thread: WorkerThread) -> tuple[int, int] | None:
        """Receiver and listener that are asked for, as this worker knows them; None: one of them is not there now."""
        receiver, listener = 0, _fastpath.TAP_LISTENERS
        if self.ask.receiver:
            state = self._running.receivers.get(self.ask.receiver)
            if state is None or thread.index not in state.counters:
                return None
            receiver = state.counters[thread.index].id
        if self.ask.listener:
            source = self._running.listeners.get(self.ask.listener)
            if source is None:
                return None
            listener = source.slot
        return receiver, listener

    def _open(self, thread: WorkerThread) -> None:
        asked = self._ids(thread)
        if asked is None:
            return
        ours, theirs = pair(DOOR_BYTES)
        try:
            number = self._taps.asks(thread, ours.fileno(), self.ask, asked)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        door = Door(theirs)
        self._ends[door.fileno()] = _End(thread, number, asked, ours, door)
        self._poll.register(door.fileno(), select.EPOLLIN)

    def _close(self, fd: int) -> None:
        end = self._ends.pop(fd)
        shown, unshown = end.thread.worker.tap_read(end.number)
        self._gone = [self._gone[0] + shown, self._gone[1] + unshown]
        with contextlib.suppress(OSError, ValueError):
            self._poll.unregister(fd)
        end.door.close()
        self._taps.leaves(end)


class Taps:
    """All taps of a supervisor. Any thread may ask; each tap has one reader."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._lock = threading.RLock()
        self._open: list[Tap] = []
        self._early: list[Tap] = []
        self._leaving: list[_End] = []

    def open(self, ask: Ask, *, early: bool = False) -> Tap:
        """early: it meets workers before they read their first datagram. Raises TooMany, OSError; KeyError when there
        is no receiver or listener of the name.
        """
        if ask.receiver and ask.receiver not in self._running.receivers:
            raise KeyError(ask.receiver)
        if ask.listener and ask.listener not in self._running.listeners:
            raise KeyError(ask.listener)
        with self._lock:
            self.tidy()
            if len(self._open) >= LIMIT:
                raise TooMany
            tap = Tap(self, self._running, ask)
            self._open.append(tap)
            self._early += [tap] * early
        try:
            tap.follow()
        except BaseException:
            tap.close()
            raise
        return tap

    def meet(self, workers: Sequence[WorkerThread]) -> None:
        """Workers that run and have no plan with sockets yet. Taps that wait for them are open when this returns."""
        for tap in list(self._early):
            with contextlib.suppress(OSError, TooMany):
                tap.meet(workers)
                tap.wait()

    def asks(self, thread: WorkerThread, descriptor: int, ask: Ask, ids: tuple[int, int]) -> int:
        """Opens one at a worker. Raises TooMany."""
        until = time.monotonic() + BUSY_SECONDS
        with self._lock:
            while True:
                try:
                    return thread.worker.tap_open(
                        descriptor,
                        rate=ask.rate,
                        drops=ask.drops,
                        receiver=ids[0],
                        listener=ids[1],
                        exporter=ask.exporters.network_address.packed if ask.exporters is not None else b"",
                        prefix=ask.exporters.prefixlen if ask.exporters is not None else 0,
                    )
                except (BlockingIOError, RuntimeError):
                    if time.monotonic() > until:
                        raise TooMany from None
                time.sleep(0.0005)

    def closed(self, tap: Tap) -> None:
        """Of a tap that its reader closes."""
        with self._lock:
            self._open.remove(tap)
            self._early = [other for other in self._early if other is not tap]
            self.tidy()

    def leaves(self, end: _End) -> None:
        """The worker may still write into it."""
        with self._lock:
            end.thread.worker.tap_close(end.number)
            self._leaving.append(end)

    def tidy(self) -> None:
        """Closes what no worker uses any more."""
        with self._lock:
            for end in list(self._leaving):
                if not end.thread.worker.tap_is_used(end.number):
                    end.sock.close()
                    self._leaving.remove(end)
