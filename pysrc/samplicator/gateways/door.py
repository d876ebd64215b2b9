"""Doors: the bounded way between a worker and a gateway, a transport in the control plane that is not UDP.

Purpose: for a worker a door is an intake of a listener, or a way to a receiver; for a gateway it is batches of
datagrams. Each pair of worker and receiver (or listener) has a door of its own, which the supervisor opens when a plan
needs it and hands to the gateway (`Gateway`). Invariants: no function waits; when the queue of a door is full because
its gateway does not read, the worker counts copies as no_buffer_space and continues; when the supervisor has closed its
end, what is queued can still be read, then read() raises EOFError. Called by gateways (Door), and by the datapath room
(pair). It must never decide what happens to a datagram that does not fit: the gateway counts it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from samplicator._fastpath import DoorEnd
from samplicator.plan.sessions import Door as Delivery
from samplicator.plan.sessions import DoorSpec

LEAST_BYTES: Final = 1 << 18
"""Of a queue: a few messages of the largest size."""
SO_SNDBUFFORCE: Final = 32


class Datagram(NamedTuple):
    """What goes through a door. address: of the exporter, 4 or 16 bytes, and its port. arrival_ns: when it came, Unix
    time in ns, 0 = unknown. ttl: as received, 0 = unknown. Out of a worker: listener: slot of the listener by which it
    came; receiver: TxCounters.id of the way. Into a worker the two mean nothing: a door belongs to one listener.
    """

    address: bytes
    port: int
    payload: bytes
    arrival_ns: int = 0
    ttl: int = 0
    tos: int = 0
    listener: int = 0
    receiver: int = 0


class Door:
    """The gateway's end. Never waits; for an event loop it is readable and writable as a socket is (`add_reader`). One
    thread at a time, but for fileno().
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._end = DoorEnd(sock.fileno())

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def malformed(self) -> int:
        """Records that could not be read, so far."""
        return self._end.malformed

    def read(self) -> list[Datagram]:
        """Some of what is there, some 500 datagrams at most where they come fast; none: there is nothing now. Raises
        EOFError when the worker's end is closed and all was read, OSError for anything else.
        """
        return list(map(Datagram._make, self._end.read()))

    def write(self, datagrams: Sequence[Datagram]) -> int:
        """How many of them were taken, from the first on; fewer than given: the queue is full, wait until it is
        writable. Raises BrokenPipeError when the worker's end is closed, OSError, and ValueError for a field out of
        range (those before it may have been taken).
        """
        return self._end.write(datagrams)

    def close(self) -> None:
        self._sock.close()


class Gateway(Protocol):
    """What the supervisor hands doors to, on a thread of its own: a gateway in an event loop goes there by
    `call_soon_threadsafe`. A door is the gateway's to close. A plan that does not come to run closes its end at once.
    """

    def takes(self, receiver: str, worker: int, door: Door, delivery: Delivery) -> None:
        """The copies of a receiver by one worker come out of this door. Raises OSError when the gateway cannot do what
        the delivery says; then the door is not its.
        """

    def brings(self, listener: str, worker: int, door: Door, spec: DoorSpec) -> None:
        """What is written into this door comes in by the listener, at one worker. Datagrams of one exporter keep their
        order only within a door. Raises OSError as takes().
        """

    def runs(self, listener: str, spec: DoorSpec) -> None:
        """The plan that this door was brought for is about to be published, and nothing can fail any more: what comes
        in from now on goes into its doors. Returns when it is so; then the workers read older doors to their end.
        """

    def fault(self, receiver: str) -> str:
        """Why nothing gets through to a receiver now, for people; "" = it does, or it is not known."""

    def down(self, listener: str) -> str:
        """Why nothing, or not everything, can come in by a listener now, for people; "" = it can."""


def pair(queue_bytes: int) -> tuple[socket.socket, socket.socket]:
    """The worker's end and the gateway's. queue_bytes: of each direction, as far as the kernel grants it (without
    CAP_NET_ADMIN: net.core.wmem_max). Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in (ours, theirs):
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, max(queue_bytes, LEAST_BYTES))
            continue
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(queue_bytes, LEAST_BYTES))
    return ours, theirs
