"""The gateways of this process, each made when a configuration first names its transport.

Purpose: what Supervisor(gateways=...) asks for doors' other ends. Invariants: without such a transport in the
configuration nothing of it is imported and no thread is started; a gateway that was made stays until the process ends.
Called by service, and by the supervisor on its thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from samplicator.config.transport import SCHEMES
from samplicator.gateways.door import Gateway
from samplicator.readings import GatewayReading, TransportSessionReading

if TYPE_CHECKING:
    from samplicator.gateways.hub import Hub
    from samplicator.gateways.loop import LoopThread
    from samplicator.gateways.transport import Factory


class Gateways(Mapping[str, Gateway]):
    """By scheme. new_loop: of their thread. replay: see Hub; set before the first plan."""

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.replay: Callable[[str], None] = lambda receiver: None
        self._new_loop = new_loop
        self._lock = threading.Lock()
        self._hubs: dict[str, Hub] = {}
        self._thread: LoopThread | None = None

    def __getitem__(self, name: str) -> Gateway:
        with self._lock:
            if name not in self._hubs:
                self._hubs[name] = self._make(name)
            return self._hubs[name]

    def __contains__(self, name: object) -> bool:
        return name in SCHEMES

    def __iter__(self) -> Iterator[str]:
        return iter(SCHEMES)

    def __len__(self) -> int:
        return len(SCHEMES)

    def _make(self, name: str) -> Hub:
        from samplicator.gateways.hub import Hub  # asyncio, ssl: not for those who have UDP only
        from samplicator.gateways.loop import LoopThread

        factory = _factory(name)
        self._thread = self._thread or LoopThread(self._new_loop)
        return Hub(name, factory, self._thread, lambda receiver: self.replay(receiver))

    def readings(self) -> list[GatewayReading]:
        """Of all that were made."""
        return [reading for hub in list(self._hubs.values()) for reading in hub.readings()]

    def sessions(self) -> list[TransportSessionReading]:
        """Of all that were made."""
        return [session for hub in list(self._hubs.values()) for session in hub.sessions()]

    def deafen(self) -> None:
        """Before the workers stop: nothing more comes in."""
        for hub in self._hubs.values():
            hub.deafen()

    def close(self, seconds: float) -> None:
        """After the workers have stopped: sends what is left, for at most so long."""
        for hub in self._hubs.values():
            hub.close(seconds)
        if self._thread is not None:
            self._thread.close()


def _factory(name: str) -> Factory:
    """The transport of a scheme. Raises KeyError."""
    if name in ("tcp", "tls"):
        from samplicator.gateways.stream import StreamTransport

        return StreamTransport
    if name == "sctp":
        from samplicator.gateways.sctp.gateway import Gateway

        return Gateway
    raise KeyError(name)
