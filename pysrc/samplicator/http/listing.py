"""The long lists of the HTTP interface: in pages, and each page in pieces.

Purpose: an answer needs as much memory as one piece, for any number of domains and clients. Invariants: a page ends
after PAGE_BYTES or the requested number of rows, possibly inside a domain, and names the start of the next page; a
piece is made in a thread, at most two at a time, and only after the previous piece was sent; no piece is made for a
client that has left. Called by reading; the rows are made by rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import web

from samplicator.http.front import SHARED, Shared

if TYPE_CHECKING:
    from samplicator.readings import Domain
    from samplicator.views.service import ServiceState

PAGE_BYTES: Final = 1 << 20
"""Bytes of an answer, but for the last row or template in it."""
CHUNK: Final = 500
"""Domains that are added up in one go."""

Place = tuple[int, ...]
"""Where to go on; numbers below 0 are not told."""
Piece = tuple[list[bytes], Place | None]
"""Rows as JSON, and where to go on, None = the end."""
Make = Callable[["ServiceState", Place, int], Piece]
"""Rows behind a place, so many at most."""


def place_text(place: Place | None) -> str | None:
    """The `after` of an answer."""
    return None if place is None else ".".join(str(part) for part in place if part >= 0)


async def answer(
    request: web.Request, lead: bytes, make: Make, place: Place, limit: int, headers: Mapping[str, str]
) -> web.StreamResponse:
    """The page of a request: `lead`, which is JSON up to the bracket that opens the list, and the rows. One of one
    piece goes out whole, a longer one piece by piece. What goes wrong after the first piece closes the connection, so
    that the client sees that the page is not whole.
    """
    pages = _pieces(request.app[SHARED], lead, make, place, limit)
    body, last = await anext(pages)
    if last or request.method == "HEAD":
        return web.Response(body=body, content_type="application/json")
    response = web.StreamResponse(headers={**headers, "Content-Type": "application/json"})
    try:
        await response.prepare(request)
        await response.write(body)
        async for body, _ in pages:
            await response.write(body)
        await response.write_eof()
    except ConnectionError:  # the client has left
        pass
    except BaseException:
        if request.transport is not None:
            request.transport.abort()
        raise
    return response


async def _pieces(
    shared: Shared, lead: bytes, make: Make, place: Place | None, limit: int
) -> AsyncIterator[tuple[bytes, bool]]:
    """The bytes of a page, and whether they are the last."""
    last, count, size = False, 0, 0
    while not last and place is not None:
        async with shared.listings:
            rows, place = await asyncio.to_thread(make, shared.state, place, limit - count)
        body = (lead if rows else b"") + b",".join(rows)
        count += len(rows)
        size += len(body)
        last = place is None or count >= limit or size >= PAGE_BYTES
        if last:
            body += (b"" if count else lead) + b'],"after":' + orjson.dumps(place_text(place)) + b"}\n"
        lead = b"," if count else lead
        if body:
            yield body, last


async def add_up(request: web.Request, add: Callable[[Domain], None]) -> None:
    """Gives all observation domains to `add`, a chunk at a time as pieces are made; not to the end when the client has
    left.
    """
    shared = request.app[SHARED]
    place: tuple[int, int] | None = (0, 0)
    while place is not None and request.transport is not None:
        async with shared.listings:
            place = await asyncio.to_thread(_add_some, shared.state, place, add)


def _add_some(state: ServiceState, place: tuple[int, int], add: Callable[[Domain], None]) -> tuple[int, int] | None:
    sessions, after = state.view.domains(*place, CHUNK)
    for session in sessions:
        add(session)
    return after
