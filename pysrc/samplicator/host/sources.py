"""Sources: where the sockets of listeners come from: opened here, or handed in by who had them before.

A process that takes over from another one gets sockets that are bound already and may hold datagrams; it must not open
others beside them. Called by supervisor.build. Invariants: a socket is handed out once; one that does not fit its place
is never used for it. Who hands sockets in calls close_rest() when the first plan runs.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from samplicator.host import listening
from samplicator.plan.spec import SocketSpec


@dataclass(frozen=True, slots=True)
class Place:
    """Whose socket it is: of which listener, for which configured socket, and for which worker."""

    listener: str
    socket: SocketSpec
    worker: int

    @property
    def lasting(self) -> Place:
        """The same place in another process, where listeners and interfaces may have other numbers."""
        return replace(self, socket=replace(self.socket, listener=0, index=0, joins=()))


class Source(Protocol):
    """Hands out the socket of a place. options: see listening.open_listener. Raises OSError."""

    def listener(self, place: Place, **options: Any) -> socket.socket: ...


class Opened:
    """Opens each of them."""

    def listener(self, place: Place, **options: Any) -> socket.socket:
        return listening.open_listener(place.socket, **options)


class HandedIn:
    """Sockets that were open before, each used once; what is not among them is opened. A socket bound elsewhere than
    its place says is closed and replaced by a new one.
    """

    def __init__(self, given: Mapping[Place, socket.socket]) -> None:
        self._given = {place.lasting: sock for place, sock in given.items()}

    def listener(self, place: Place, **options: Any) -> socket.socket:
        sock = self._given.pop(place.lasting, None)
        if sock is not None:
            try:
                listening.adopt_listener(sock, place.socket, **options)
                return sock
            except (OSError, ValueError):
                sock.close()
        return listening.open_listener(place.socket, **options)

    def close_rest(self) -> None:
        """Sockets that no listener uses; what they hold is lost, and their ports are closed."""
        while self._given:
            self._given.popitem()[1].close()
