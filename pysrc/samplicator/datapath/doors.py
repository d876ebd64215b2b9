"""Doors: the workers' ends, of receivers and listeners whose transport is a gateway.

Invariants: each pair of worker and receiver, or worker and listener, has a door of its own; if a gateway stops reading
or ends, only its receiver loses copies, and the receiver shows the fault; a door whose other end was closed is opened
again. Called by supervisor. It must never publish, never wait for a gateway, and never decide what runs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import select
import socket
import struct
import termios
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from samplicator import _fastpath
from samplicator._fastpath import RxCounters, RxSocket, Tx, TxCounters
from samplicator.datapath.counters import SENT
from samplicator.datapath.ways import Way, no_way
from samplicator.gateways.door import Door, Gateway, pair
from samplicator.host import sockets
from samplicator.plan.sessions import Door as Delivery
from samplicator.plan.sessions import DoorSpec
from samplicator.plan.spec import ListenerSpec, ReceiverSpec

if TYPE_CHECKING:
    from samplicator.host.links import Link

Gateways = Mapping[str, Gateway]
"""By the name that specs know them by."""
STALLED_SECONDS: Final = 1.0
"""A door that is more than a quarter full and does not change for this time has no reader."""
PASS_SECONDS: Final = 1.0
GONE: Final = "the gateway has ended"
STALLED: Final = "the gateway does not read its copies"


def named(gateways: Gateways, name: str) -> Gateway:
    """Raises OSError when there is none of this name."""
    if name not in gateways:
        raise OSError(errno.ENOENT, f"there is no gateway {name!r}")
    return gateways[name]


def begin(gateways: Gateways, listeners: Iterable[ListenerSpec], before: Iterable[DoorIntake]) -> None:
    """Just before a plan is published: its doors are the ones that gateways write into from now on. before: all doors
    of the plan that runs; those that leave are read out by it, for PASS_SECONDS at most.
    """
    wanted = {(listener.name, spec) for listener in listeners for spec in listener.doors}
    for name, spec in wanted:
        gateways[spec.gateway].runs(name, spec)
    deadline = time.monotonic() + PASS_SECONDS
    for intake in before:
        while (intake.listener, intake.spec) not in wanted and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if unread_bytes(intake.sock, termios.FIONREAD):
                    time.sleep(0.001)
                    continue
            break


def identity(spec: ReceiverSpec) -> bytes:
    """What pools know a receiver behind a door by, from process to process: 16 bytes."""
    name = spec.delivery.gateway if isinstance(spec.delivery, Delivery) else ""
    return hashlib.blake2s(f"{name}\0{spec.name}".encode(), digest_size=16).digest()


def unread_bytes(sock: socket.socket, request: int) -> int:
    """TIOCOUTQ: what the other end has not read yet; FIONREAD: what waits here (unix(7)). Raises OSError, of one that
    is closed, too.
    """
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, "closed")
    found: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), request, bytes(4)))[0]
    return found


class DoorPath:
    """What all workers' ways to one receiver behind a door share; as ways.Path. fault: why nothing gets through, ""
    when it does.
    """

    __slots__ = ("_gateways", "_quiet", "fault", "link", "link_words", "mtu", "mtu_why", "spec")

    def __init__(self, spec: ReceiverSpec, gateways: Gateways) -> None:
        self.spec = spec
        self.fault = ""
        self.link: Link | None = None
        self.link_words = ""
        self.mtu = 0
        self.mtu_why = ""
        self._gateways = gateways
        self._quiet: dict[int, tuple[float, int, int]] = {}  # way -> since when, copies sent and bytes unread then

    @property
    def routed(self) -> bool:
        return not self.fault

    def open_way(self, counters: TxCounters, send_buffer: int, worker: int) -> Way:
        """A way for one more worker; the gateway has the other end then. Raises OSError."""
        spec = self.spec
        if spec.missing:
            return no_way(spec, counters, identity(spec), 1)
        assert isinstance(spec.delivery, Delivery)
        gateway = named(self._gateways, spec.delivery.gateway)
        ours, theirs = pair(send_buffer)
        try:
            tx = Tx(
                _fastpath.ENGINE_DOOR,
                ours.fileno(),
                counters,
                identity(spec),
                1,
                freq=spec.freq,
                by_exporter=spec.by_exporter,
                refresh=spec.refresh,
                alias=spec.unique,
            )
            gateway.takes(spec.name, worker, Door(theirs), spec.delivery)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return Way(tx, None, [ours])

    def look(self, now: float, ways: Sequence[Way], counters: Mapping[int, TxCounters]) -> None:
        """Several times per second: whether the gateway runs and reads. Ways are in the order of the workers."""
        faults = [self._fault(now, way, counters[index]) for index, way in enumerate(list(ways)) if way.sockets]
        if self.spec.missing:
            self.fault = ""
        else:
            self.fault = (
                next((why for why in faults if why == GONE), "") or self._told() or next(filter(None, faults), "")
            )
        self._quiet = {id(way): self._quiet[id(way)] for way in ways if id(way) in self._quiet}

    def _fault(self, now: float, way: Way, counters: TxCounters) -> str:
        looked = select.poll()
        looked.register(way.sockets[0], select.POLLOUT)
        events = looked.poll(0)
        if events and events[0][1] & (select.POLLHUP | select.POLLERR):
            return GONE
        if events:
            self._quiet.pop(id(way), None)
            return ""
        state = counters.read()[SENT], unread_bytes(way.sockets[0], termios.TIOCOUTQ)
        since, *before = self._quiet.get(id(way), (now, *state))
        if tuple(before) != state:
            since = now
        self._quiet[id(way)] = since, *state
        return STALLED if now - since >= STALLED_SECONDS else ""

    def _told(self) -> str:
        """What the gateway itself says."""
        delivery = self.spec.delivery
        assert isinstance(delivery, Delivery)
        return self._gateways[delivery.gateway].fault(self.spec.name) if delivery.gateway in self._gateways else ""

    def refresh(self, ways: Sequence[Way]) -> bool:
        """False when the other end was closed and the doors must be opened again."""
        return self.fault != GONE

    def close(self) -> None:
        """Nothing is held but what the ways hold."""


class DoorIntake:
    """One door of a listener, its counters, and the worker that reads it; as intakes.Intake."""

    __slots__ = ("_gateway", "buffer_bytes", "counters", "drops", "listener", "owner", "rx", "sock", "spec")

    def __init__(self, spec: DoorSpec, listener: str, slot: int, worker: int, queue: int, gateways: Gateways) -> None:
        """listener, worker: as the gateway sees them. slot: of the listener. queue: bytes. Raises OSError."""
        gateway = named(gateways, spec.gateway)
        self.spec = spec
        self.drops = 0
        self.owner: int | None = None
        self._gateway = gateway
        self.listener = listener
        self.counters = RxCounters()
        self.sock, theirs = pair(queue)
        try:
            self.rx = RxSocket(self.sock.fileno(), self.counters, slot, door=True)
            self.buffer_bytes = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            gateway.brings(listener, worker, Door(theirs), spec)
        except BaseException:
            self.sock.close()
            theirs.close()
            raise

    def memory(self) -> sockets.MemInfo:
        """The queue as if it were a socket's buffer; it drops nothing: a gateway finds it full, and knows."""
        return sockets.MemInfo(
            queue_bytes=unread_bytes(self.sock, termios.FIONREAD), buffer_bytes=self.buffer_bytes, drops=0
        )

    def down_why(self) -> str:
        """Why nothing, or not everything, comes in by it."""
        return GONE if self.rx.shut else self._gateway.down(self.listener)

    def refuse_all(self) -> None:
        """Nothing more can be written into it; what is in it can be read."""
        self.sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self.sock.close()
