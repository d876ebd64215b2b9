"""The long lists of the HTTP interface, exporters and templates: in pages, and each page in pieces.

Purpose: an answer costs as much memory as one piece, however much is known and however many ask. Invariants: a page
ends after PAGE_BYTES or PAGE rows, in the middle of a domain if need be, and says where the next one begins; a piece
is made in a thread, two at a time, and not before the one before it is taken; nothing is made for a client that has
left. Called by http.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson
from aiohttp import web

from samplicator.http.front import SHARED, Shared
from samplicator.views import flow

if TYPE_CHECKING:
    from samplicator.readings import FlowSession
    from samplicator.views.service import ServiceState

PAGE: Final = 1000
"""Rows of one answer at most."""
PAGE_BYTES: Final = 1 << 20
"""Bytes of an answer, but for the last row or template in it."""
PIECE_BYTES: Final = 64 << 10
LOOKED: Final = 2000
"""Domains looked at for one piece."""
READ_BYTES: Final = 1 << 20
"""Bytes of options data read for one piece."""
WANT: Final = "want after=WORKER.NUMBER or WORKER.NUMBER.ID, as an answer's `after` says, and limit=COUNT"

Place = tuple[int, int, int]
"""Worker, number of a domain, and an id in it: what comes behind that template, or, -1, behind that domain."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows: of one exporter ("" = all), so many at most."""

    exporter: str
    limit: int


Piece = tuple[list[bytes], Place | None]
"""Rows as JSON, and where to go on, None = the end."""
Make = Callable[["ServiceState", Place, Wanted], Piece]


def exporters_piece(state: ServiceState, place: Place, wanted: Wanted) -> Piece:
    """Observation domains. `wanted.limit` is of this piece."""
    view, rows, size, read = state.view, list[bytes](), 0, 0
    names = view.listener_names()
    for _ in range(LOOKED):
        session, place = _following(state, place)
        if session is None:
            return rows, None
        if wanted.exporter in ("", session.address):
            known = view.flow_options(session.worker, session.number) if session.options_data else []
            read += sum(len(item.raw) for item in known)
            rows.append(orjson.dumps(flow.exporter(session, names, known), option=orjson.OPT_NON_STR_KEYS))
            size += len(rows[-1])
        if size >= PIECE_BYTES or read >= READ_BYTES or len(rows) >= wanted.limit:
            break
    return rows, place


def templates_piece(state: ServiceState, place: Place, wanted: Wanted) -> Piece:
    """Observation domains with their templates. A domain that does not fit goes on in the next piece, as a row of its
    own with the same `place`.
    """
    rows, size = list[bytes](), 0
    for _ in range(LOOKED):
        worker, number, after = place
        session, there = _following(state, (worker, number - 1, -1) if after >= 0 else place)
        if session is None:
            return rows, None
        if there[:2] != (worker, number):
            after = -1
        place = there
        if (session.templates or session.options_templates) and wanted.exporter in ("", session.address):
            row, stopped = _templates_row(state, session, after, PIECE_BYTES - size)
            place = (*place[:2], stopped)
            if row:
                rows.append(row)
                size += len(row)
        if size >= PIECE_BYTES or len(rows) >= wanted.limit:
            break
    return rows, place


def _templates_row(state: ServiceState, session: FlowSession, after: int, room: int) -> tuple[bytes, int]:
    """A domain's row with templates above `after`, and the last id in it if there are more, else -1."""
    who = {
        "place": f"{session.worker}.{session.number}",
        "exporter": session.address,
        "port": session.port,
        "protocol": session.protocol,
        "domain": session.domain,
        "options_data": session.options_data,
    }
    items, size, stopped = list[bytes](), 0, -1
    for item in state.view.flow_templates(session.worker, session.number, after):
        if size >= room and items:
            stopped = after
            break
        items.append(orjson.dumps(flow.template(item, session.protocol)))
        size += len(items[-1])
        after = item.id
    if not items:
        return b"", -1
    return orjson.dumps(who)[:-1] + b',"templates":[' + b",".join(items) + b"]}", stopped


def _following(state: ServiceState, place: Place) -> tuple[FlowSession | None, Place]:
    """The domain behind a place, and its own place."""
    sessions, _ = state.view.flow_sessions(place[0], place[1], 1)
    if not sessions:
        return None, place
    return sessions[0], (sessions[0].worker, sessions[0].number, -1)


# ---------------------------------------------------------------------------------------------------- the answer


def begin(request: web.Request) -> tuple[Place, Wanted]:
    """Where and what, of the query. Raises HTTPBadRequest."""
    try:
        parts = [int(part) for part in request.query.get("after", "0.0").split(".")]
        limit = int(request.query.get("limit", str(PAGE)))
        text = request.query.get("exporter", "")
        exporter = str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        raise web.HTTPBadRequest(reason=WANT) from None
    if limit < 1 or not 1 <= len(parts) <= 3 or min(parts) < 0 or max(parts) > 2**31:
        raise web.HTTPBadRequest(reason=WANT)
    worker, number, after = (*parts, *(0, -1)[len(parts) - 1 :])
    return (worker, number, after), Wanted(exporter, min(limit, PAGE))


def place_text(place: Place | None) -> str | None:
    """The `after` of an answer."""
    if place is None:
        return None
    return f"{place[0]}.{place[1]}" if place[2] < 0 else f"{place[0]}.{place[1]}.{place[2]}"


async def answer(request: web.Request, key: str, make: Make, headers: dict[str, str]) -> web.StreamResponse:
    """The page of a request, rows under `key`. One of one piece goes out whole, a longer one piece by piece. What goes
    wrong after the first piece closes the connection, so that the client sees that the page is not whole.
    """
    place, wanted = begin(request)
    pages = _pieces(request.app[SHARED], key, make, place, wanted)
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
    shared: Shared, key: str, make: Make, place: Place | None, wanted: Wanted
) -> AsyncIterator[tuple[bytes, bool]]:
    """The bytes of a page, and whether they are the last."""
    lead, last, count, size = f'{{"{key}":['.encode(), False, 0, 0
    while not last and place is not None:
        async with shared.listings:
            rows, place = await asyncio.to_thread(
                make, shared.state, place, Wanted(wanted.exporter, wanted.limit - count)
            )
        body = (lead if rows else b"") + b",".join(rows)
        count += len(rows)
        size += len(body)
        last = place is None or count >= wanted.limit or size >= PAGE_BYTES
        if last:
            body += (b"" if count else lead) + b'],"after":' + orjson.dumps(place_text(place)) + b"}\n"
        lead = b"," if count else lead
        if body:
            yield body, last
