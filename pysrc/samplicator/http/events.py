"""Server-sent events: one sampler, any number of clients up to a limit, each of which gets every second what happens.

Purpose: `/api/v1/events`. Invariants: while nobody looks there is no sampler and no work; an event is made once for all
clients and has EVENT_BYTES at most; a client that reads too slowly misses events, and is dropped when it takes nothing
for SLOW_SECONDS; so a client costs one event of memory and its socket buffer. Called by reading and front.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import web

from samplicator.logs import RateGate
from samplicator.views.live import SHARE, STEP_SECONDS, Live

if TYPE_CHECKING:
    from samplicator.views.service import ServiceState

log = logging.getLogger(__name__)

EVENT_BYTES: Final = 190_000
STREAMS: Final = 16
"""Clients by TCP, and as many again by the control socket."""
SLOW_SECONDS: Final = 5.0
SEND_BUFFER: Final = 256 << 10
"""Bytes asked for, of a client's socket: otherwise the kernel keeps megabytes for one that does not read."""
RETRY_MS: Final = 2000
"""After this time a browser connects again."""
HEADERS: Final = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


class Events:
    """See above. dropped: slow clients."""

    def __init__(self, state: ServiceState, *, step: float = STEP_SECONDS, streams: int = STREAMS) -> None:
        self._state = state
        self._step = step
        self._streams = streams
        self._clients: dict[object, bool] = {}  # whether it came by TCP
        self._sampler: asyncio.Task[None] | None = None
        self._last = b""
        self._number = 0
        self._news = asyncio.Event()
        self._ended = False
        self._gate = RateGate()
        self.dropped = 0

    @property
    def clients(self) -> int:
        """How many look now."""
        return len(self._clients)

    @property
    def works(self) -> bool:
        """Whether there is a sampler."""
        return self._sampler is not None

    def end(self) -> None:
        """Ends all streams, those by TCP and others; no further one begins."""
        self._ended = True
        self._news.set()

    async def serve(
        self, request: web.Request, headers: dict[str, str], count: int, *, by_tcp: bool
    ) -> web.StreamResponse:
        """The stream of one client, until it leaves or has `count` events (0 = no end)."""
        if self._ended or sum(tcp == by_tcp for tcp in self._clients.values()) >= self._streams:
            self._state.http_refused["streams"] += 1
            why = f"{self._streams} clients watch already; close one, or try again later"
            return web.json_response({"error": why}, status=503, headers={"Retry-After": "10"})
        client = object()
        self._clients[client] = by_tcp
        try:
            response = web.StreamResponse(headers={**headers, **HEADERS})
            transport = request.transport
            sock = transport.get_extra_info("socket") if transport is not None else None
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            await response.prepare(request)
            if request.method != "HEAD":
                await self._send(request, response, count)
            return response
        finally:
            del self._clients[client]

    async def _send(self, request: web.Request, response: web.StreamResponse, count: int) -> None:
        if self._sampler is None:
            self._last = b""
            self._sampler = asyncio.create_task(self._sample())
        config = self._state.loaded.web  # when it changes, who watches must log in again
        seen = self._number if not self._last else self._number - 1
        sent, lead = 0, b"retry: %d\n" % RETRY_MS
        try:
            while not self._ended and (sent < count or not count) and config == self._state.loaded.web:
                if self._number == seen:
                    await self._news.wait()
                    continue
                seen = self._number
                async with asyncio.timeout(SLOW_SECONDS):
                    await response.write(lead + self._last)
                sent, lead = sent + 1, b""
            async with asyncio.timeout(SLOW_SECONDS):
                await response.write_eof()
        except ConnectionError:  # the client has left
            pass
        except TimeoutError:
            self.dropped += 1
            held = self._gate.add(("slow",), 1, time.monotonic())
            if held:
                log.info(
                    "clients of /api/v1/events that took nothing for %g s and were dropped: %d", SLOW_SECONDS, held
                )
            if request.transport is not None:
                request.transport.abort()

    async def _sample(self) -> None:
        """Runs while there are clients. What fails is tried again a second later."""
        live, due = Live(self._state), time.monotonic()
        try:
            while self._clients and not self._ended:
                spent = 0.0
                try:
                    spent, body = await asyncio.to_thread(event, live)
                    self._number += 1
                    self._last = b"id: %d\nevent: live\ndata: %b\n\n" % (self._number, body)
                    self._news.set()
                    self._news = asyncio.Event()
                except Exception:
                    if self._gate.add(("sample",), 1, time.monotonic()):
                        log.exception("an event could not be made; samplicator tries again")
                due = max(due + self._step, time.monotonic() + spent / SHARE - spent)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        finally:
            self._sampler, self._last = None, b""


def event(live: Live) -> tuple[float, bytes]:
    """The next event as JSON, and the seconds of CPU that it took. One that is too long has fewer rows."""
    begun = time.thread_time()
    live.sample()
    share = 1.0
    body = orjson.dumps(live.event())
    while len(body) > EVENT_BYTES and share > 1 / 1000:
        share *= 0.7 * EVENT_BYTES / len(body)
        body = orjson.dumps(live.event(share))
    return time.thread_time() - begun, body
