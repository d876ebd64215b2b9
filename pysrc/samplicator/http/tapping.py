"""Streams of taps: `/api/v1/tap`, one line of JSON per event.

Invariants: a client that reads too slowly misses events, which are counted as not shown, and is dropped when it takes
nothing for SLOW_SECONDS; it costs the buffers of its tap and of its socket. Called by reading and front.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import web

from samplicator.http.events import SEND_BUFFER, SLOW_SECONDS
from samplicator.supervisor.taps import LIMIT, OPEN_SECONDS, Ask, Tap, TooMany
from samplicator.views.tap import TapEnd, TapTick, opened, shown

if TYPE_CHECKING:
    from samplicator.views.service import ServiceState

TICK_SECONDS: Final = 1.0
BY_TCP: Final = LIMIT - 1
"""One is left to the control socket."""
HEADERS: Final = {"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"}


class Tapping:
    """The taps of all clients."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state
        self._ended = False
        self._wake: dict[asyncio.Event, bool] = {}  # whether it came by TCP

    def end(self) -> None:
        """Ends all streams; no further one begins."""
        self._ended = True
        for news in self._wake:
            news.set()

    async def serve(
        self, request: web.Request, headers: dict[str, str], ask: Ask, count: int, *, local: bool
    ) -> web.StreamResponse:
        """The stream of one client, until it leaves or has `count` events (0 = no end). local: by the control socket.
        Raises HTTPBadRequest.
        """
        if self._ended:
            return web.json_response({"error": "the daemon is stopping"}, status=503)
        if request.method == "HEAD":
            return web.Response(headers={**headers, **HEADERS})
        by_tcp = not local
        try:
            if by_tcp and sum(self._wake.values()) >= BY_TCP:
                raise TooMany
            tap = self._state.taps.open(ask)
        except KeyError as error:
            what = "receiver" if error.args[0] == ask.receiver else "listener"
            reason = f"{what} must be the name of a {what}; /api/v1/{what}s lists them"
            raise web.HTTPBadRequest(reason=reason) from None
        except TooMany:
            why = f"{LIMIT} taps are open; close one, or try again later"
            return web.json_response({"error": why}, status=503, headers={"Retry-After": "10"})
        except OSError as error:
            why = f"no tap can be opened: {error.strerror or error}"
            return web.json_response({"error": why}, status=503, headers={"Retry-After": "10"})
        news = asyncio.Event()
        self._wake[news] = by_tcp
        try:
            response = web.StreamResponse(headers={**headers, **HEADERS})
            transport = request.transport
            sock = transport.get_extra_info("socket") if transport is not None else None
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            until = time.monotonic() + OPEN_SECONDS
            while not tap.is_open() and time.monotonic() < until:
                await asyncio.sleep(0.001)
            await response.prepare(request)
            await self._send(request, response, tap, news, count)
            return response
        finally:
            del self._wake[news]
            asyncio.get_running_loop().remove_reader(tap.fileno())
            tap.close()

    async def _send(
        self, request: web.Request, response: web.StreamResponse, tap: Tap, news: asyncio.Event, count: int
    ) -> None:
        try:
            reason = await self._events(response, tap, news, count, by_tcp=self._wake[news])
            if reason:
                await _write(response, _line(TapEnd(event="end", reason=reason)))
            async with asyncio.timeout(SLOW_SECONDS):
                await response.write_eof()
        except ConnectionError:  # the client has left
            pass
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()

    async def _events(
        self, response: web.StreamResponse, tap: Tap, news: asyncio.Event, count: int, *, by_tcp: bool
    ) -> str:
        """Returns why the stream ends, "" after `count` events. Raises ConnectionError, TimeoutError."""
        config, tokens = self._state.loaded.web, self._state.tokens
        generation, left, due = -1, count, time.monotonic()
        while not self._ended:
            if by_tcp and (config != self._state.loaded.web or tokens != self._state.tokens):
                return "the credentials have changed"
            begun = time.thread_time()
            if generation != self._state.view.generation:
                generation = self._state.view.generation
                await _write(response, _line(opened(await asyncio.to_thread(self._state.view.readings), tap.ask)))
            events = tap.read()
            lines = [_line(shown(event)) for event in (events[:left] if count else events)]
            left -= len(events)
            ends = bool(count) and left <= 0
            if ends or time.monotonic() >= due:
                due = time.monotonic() + TICK_SECONDS
                with contextlib.suppress(OSError, TooMany):  # the next time, perhaps
                    tap.follow()
                done, over = tap.counts()
                lines.append(_line(TapTick(event="tick", shown=done, unshown=over)))
            if lines:
                await _write(response, b"".join(lines))
            if ends:
                return ""
            if events:
                await asyncio.sleep(min(0.05, time.thread_time() - begun))  # half the loop's time at most
            else:
                await _wait(tap, news, due - time.monotonic())
        return "the daemon ends"


async def _wait(tap: Tap, news: asyncio.Event, seconds: float) -> None:
    """Until there is something to read, or for so long."""
    loop = asyncio.get_running_loop()
    news.clear()
    loop.add_reader(tap.fileno(), partial(_readable, loop, tap.fileno(), news))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, seconds)):
            await news.wait()
    loop.remove_reader(tap.fileno())


def _readable(loop: asyncio.AbstractEventLoop, descriptor: int, news: asyncio.Event) -> None:
    loop.remove_reader(descriptor)
    news.set()


def _line(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(SLOW_SECONDS):
        await response.write(data)
