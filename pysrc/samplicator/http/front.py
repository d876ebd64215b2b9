"""The server of the HTTP interface: serves an application on listening sockets (endpoints). Invariant: a client that
sends slowly, much or nothing costs a bounded number of bytes and seconds. Called by service.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from samplicator.http.endpoints import BACKLOG
from samplicator.http.events import Events
from samplicator.http.security import Security
from samplicator.http.tapping import Tapping
from samplicator.logs import RateGate

if TYPE_CHECKING:
    from samplicator.views.service import ServiceState

log = logging.getLogger(__name__)

MAX_LINE: Final = 4096  # bytes of the request line
MAX_FIELD: Final = 8190  # bytes of a header
MAX_CONNECTIONS: Final = 256
CROWDED: Final = 2
"""So many times MAX_CONNECTIONS, all of them busy, and further ones by TCP are closed at once."""
GREETINGS: Final = 64
"""Connections that have not ended the handshake of TLS; above, the oldest is closed."""
HANDSHAKE_SECONDS: Final = 10.0
ACCEPT_AGAIN_SECONDS: Final = 0.2
"""After a failure, as when no descriptor is left."""
IDLE_SECONDS: Final = 30.0  # a connection without a request under way is closed after this


@dataclass(slots=True)
class Shared:
    """What the handlers share."""

    state: ServiceState
    registry: Any
    scrapes: asyncio.Semaphore
    events: Events
    tapping: Tapping
    security: Security
    listings: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    touch: Callable[[object, int], None] = lambda protocol, change: None


def _is_ours(record: logging.LogRecord) -> bool:
    """False for log records about input that is not a request: the client has its answer, and could fill the log."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


log.addFilter(_is_ours)

SHARED: Final = web.AppKey("shared", Shared)


def is_control(request: web.Request) -> bool:
    """Whether the request came over the local socket."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    return sock is not None and sock.family == socket.AF_UNIX


async def _readable(sock: socket.socket) -> None:
    """Waits until there is a connection to accept; another process may be quicker."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def _close(sock: socket.socket, task: asyncio.Task[None]) -> None:
    sock.close()


class Front:
    """Serves an application on listening sockets, with a limit on connections and on the time one may be silent.

    aiohttp's own time limits begin with a connection's first request; a client that opens connections and sends
    nothing, or one header per minute, would stay without limit. Here each connection is closed IDLE_SECONDS after its
    last request ended.
    """

    def __init__(self, app: web.Application, *, idle: float = IDLE_SECONDS, connections: int = MAX_CONNECTIONS) -> None:
        self._idle = idle
        self._limit = connections
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=log,
            handle_signals=False,
            keepalive_timeout=idle,
            lingering_time=2.0,
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            shutdown_timeout=3.0,
        )
        self._app = app
        self._gate = RateGate()
        self._accepting: dict[socket.socket, asyncio.Task[None]] = {}
        self._greetings: dict[asyncio.Task[None], socket.socket] = {}  # connections without TLS yet, the oldest first
        self._sweeper: asyncio.Task[None] | None = None
        self._open: dict[asyncio.Protocol, tuple[int, float]] = {}  # requests under way, time of the last change
        self._fresh: set[asyncio.Protocol] = set()  # connections that had no request yet
        self._unborn: set[asyncio.Protocol] = set()  # of these the handshake of TLS has not ended

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Serves on these sockets, which this now owns."""
        if any(sock.family != socket.AF_UNIX for sock in sockets):
            self._app[SHARED].security.start()
        self._app[SHARED].touch = self._touch
        await self._runner.setup()
        for sock in sockets:
            sock.setblocking(False)
            sock.listen(BACKLOG)
            task = self._accepting[sock] = asyncio.create_task(self._accept(sock))
            task.add_done_callback(partial(_close, sock))
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Closes the sockets, ends what is under way within seconds."""
        self._app[SHARED].events.end()
        self._app[SHARED].tapping.end()
        if self._sweeper is not None:
            self._sweeper.cancel()
        tasks = [*self._accepting.values(), *self._greetings]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._runner.cleanup()
        self._app[SHARED].security.close()
        self._accepting.clear()
        self._open.clear()
        self._fresh.clear()

    def leave(self, sockets: Sequence[socket.socket]) -> None:
        """Accepts no more connections from these sockets, which it closes, and closes connections that wait for their
        next request: it goes to whoever answers now. Streams end too.
        """
        self._app[SHARED].events.end()
        self._app[SHARED].tapping.end()
        for sock in sockets:
            self._accepting.pop(sock).cancel()
        for protocol, (busy, _) in list(self._open.items()):
            transport = getattr(protocol, "transport", None)
            if not busy and protocol not in self._fresh and transport is not None:
                transport.close()

    async def finish(self, seconds: float) -> None:
        """Waits until no request is under way, and none is about to come."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._sweep_once()
            if not self._greetings and not self._fresh and not any(busy for busy, _ in self._open.values()):
                return
            await asyncio.sleep(0.02)

    async def _accept(self, sock: socket.socket) -> None:
        """Takes connections. By TCP each one gets the TLS of the configuration that runs now. Nothing is taken that
        `leave` could cancel before it is in `_greetings`: loop.sock_accept loses a connection that way.
        """
        loop, by_tcp = asyncio.get_running_loop(), sock.family != socket.AF_UNIX
        most = self._limit * CROWDED
        while True:
            try:
                connection, _ = sock.accept()
                connection.setblocking(False)
            except BlockingIOError:
                await _readable(sock)
                continue
            except OSError as error:
                if self._gate.add(("accept",), 1, time.monotonic()):
                    log.warning("a connection could not be accepted: %s; samplicator tries again", error)
                await asyncio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            if by_tcp and len(self._open) >= most:
                connection.close()
                await asyncio.sleep(0)
                continue
            task = loop.create_task(self._greet(connection, by_tcp))
            self._greetings[task] = connection
            task.add_done_callback(self._greeted)
            if len(self._greetings) > GREETINGS:
                next(iter(self._greetings)).cancel()
            await asyncio.sleep(0)

    async def _greet(self, connection: socket.socket, by_tcp: bool) -> None:
        context = await self._app[SHARED].security.context() if by_tcp else None
        protocol = self._connection()
        self._unborn.add(protocol)
        born = False
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if context is not None else None,
                ssl_shutdown_timeout=HANDSHAKE_SECONDS if context is not None else None,
            )
            born = True
        finally:
            self._unborn.discard(protocol)
            if not born:
                self._open.pop(protocol, None)
                self._fresh.discard(protocol)

    def _greeted(self, task: asyncio.Task[None]) -> None:
        """What fails in a handshake is the client's matter, and would fill the log."""
        connection = self._greetings.pop(task)
        if task.cancelled() or task.exception() is not None:
            connection.close()

    def _connection(self) -> asyncio.Protocol:
        make = self._runner.server
        assert make is not None
        protocol: asyncio.Protocol = make()
        self._open[protocol] = (0, time.monotonic())
        self._fresh.add(protocol)
        if len(self._open) > self._limit:
            asyncio.get_running_loop().call_soon(self._sweep_once)
        return protocol

    def _touch(self, protocol: object, change: int) -> None:
        if protocol in self._open:
            busy, _ = self._open[protocol]
            self._open[protocol] = (busy + change, time.monotonic())
            self._fresh.discard(protocol)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._idle / 2))
            self._sweep_once()

    def _sweep_once(self) -> None:
        """Forgets closed connections, closes silent ones, and the longest silent ones above the limit."""
        now = time.monotonic()
        silent: list[tuple[float, asyncio.Protocol]] = []
        for protocol, (busy, since) in list(self._open.items()):
            transport = getattr(protocol, "transport", None)
            if protocol in self._unborn:
                continue
            if transport is None or transport.is_closing():
                if now - since > 1.0 or transport is not None:
                    del self._open[protocol]
            elif not busy:
                silent.append((since, protocol))
        silent.sort(key=lambda entry: entry[0])
        surplus = max(0, len(self._open) - self._limit)
        for index, (since, protocol) in enumerate(silent):
            if index < surplus or now - since > self._idle:
                transport = getattr(protocol, "transport", None)
                if transport is not None:
                    transport.abort()
                self._open.pop(protocol, None)
        self._fresh &= self._open.keys()
