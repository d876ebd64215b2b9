"""Sources: where the sockets of listeners come from: opened here, or handed in by who had them before.

A process that follows another one (systemd's file descriptor store, a socket unit, a take-over) gets sockets that are
bound already and may hold datagrams; it must not open others in their place. Which listener a socket serves is decided
by what the socket is bound to and by nothing else, so names of listeners, their order and the number of workers may
differ. Invariants: a socket is handed out once; one that serves no listener is known before the first socket is opened
(strays). Called by supervisor.build. It must never read a datagram.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from samplicator.host import listening
from samplicator.host.bound import Bound, bound_by, bound_of, worker_of
from samplicator.host.sockets import cookie, network_of
from samplicator.plan.spec import SocketSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Whose socket it is: for which configured socket, and which one of those that workers share it is, 0.."""

    socket: SocketSpec
    worker: int


@dataclass(frozen=True, slots=True)
class Had:
    """A socket that was open before, and the label that it came with."""

    sock: socket.socket
    bound: Bound
    label: str


class Source(Protocol):
    """Hands out the sockets of places."""

    def expect(self, wanted: Iterable[SocketSpec]) -> Sequence[Had]:
        """To be called first, with all configured sockets: returns the sockets that serve none of them and takes them
        out. They are the caller's to close.
        """

    def waiting(self) -> Sequence[socket.socket]:
        """What was handed in and is not handed out yet."""

    def has(self, spec: SocketSpec) -> bool:
        """Whether another socket that was handed in serves this one."""

    def listener(self, place: Place, **options: Any) -> tuple[socket.socket, Had | None]:
        """The socket of a place, and what is known of it if it was open before. options: see open_listener. Raises
        OSError.
        """

    def commit(self) -> None:
        """To be called when all but the sockets of listeners is open, and before any of those is changed. Raises
        OSError: somebody else reads what was handed in, so this process must not.
        """


class Opened:
    """Opens each of them."""

    def expect(self, wanted: Iterable[SocketSpec]) -> Sequence[Had]:
        return ()

    def waiting(self) -> Sequence[socket.socket]:
        return ()

    def has(self, spec: SocketSpec) -> bool:
        return False

    def listener(self, place: Place, **options: Any) -> tuple[socket.socket, Had | None]:
        return listening.open_listener(place.socket, **options), None

    def commit(self) -> None: ...


class HandedIn:
    """Sockets that were open before, each used once; what is not among them is opened."""

    def __init__(self, given: Iterable[tuple[str, socket.socket]], commit: Callable[[], None] = lambda: None) -> None:
        """given: label and socket. A label of ours tells the order of sockets that workers share; any other text will
        do. What cannot be a listener's socket is closed, with a line in the log; one that comes twice is used once.
        commit: see commit(); called once.
        """
        self._commit: Callable[[], None] | None = commit
        self._given: dict[Bound, list[Had]] = {}
        cookies: set[int] = set()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            here = network_of(own)
        ordered = sorted(enumerate(given), key=lambda each: (worker_of(each[1][0]), each[0]))
        for _, (label, sock) in ordered:
            try:
                found, number = bound_of(sock), cookie(sock)
                if network_of(sock) != here:
                    raise ValueError("it belongs to another network namespace, so it does not receive here")
                if number in cookies:
                    raise ValueError("it was handed in twice")
                cookies.add(number)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                log.warning("socket %r, which was handed in, is closed: %s", label, why)
                sock.close()
            else:
                self._given.setdefault(found, []).append(Had(sock, found, label))

    def __len__(self) -> int:
        return sum(map(len, self._given.values()))

    def expect(self, wanted: Iterable[SocketSpec]) -> Sequence[Had]:
        known = {bound for spec in wanted if (bound := _bound(spec)) is not None}
        return [had for bound in self._given.keys() - known for had in self._given.pop(bound)]

    def waiting(self) -> Sequence[socket.socket]:
        return [had.sock for group in self._given.values() for had in group]

    def has(self, spec: SocketSpec) -> bool:
        return bool(self._given.get(_bound(spec) or _NOWHERE))

    def listener(self, place: Place, **options: Any) -> tuple[socket.socket, Had | None]:
        group = self._given.get(_bound(place.socket) or _NOWHERE)
        if not group:
            return listening.open_listener(place.socket, **options), None
        had = group.pop(0)
        try:
            listening.adopt_listener(had.sock, place.socket, **options)
        except BaseException:
            had.sock.close()
            raise
        return had.sock, had

    def commit(self) -> None:
        if self._commit is not None:
            self._commit()
            self._commit = None

    def close(self) -> None:
        """What was not handed out."""
        for sock in self.waiting():
            sock.close()
        self._given.clear()


_NOWHERE = Bound(0, b"", 0, "", False)


def _bound(spec: SocketSpec) -> Bound | None:
    """None: its interface does not exist now."""
    try:
        return bound_by(spec)
    except OSError:
        return None
