"""The requests of the HTTP interface that read: each one asks views for a value and sends it.

Invariants: nothing slow runs on the loop; an answer is bounded, or comes in pages. Called by the application, by way of
the table in routes. It must never touch the datapath's objects: it reads ServiceState.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from samplicator.http import listing, query, rows
from samplicator.http.front import SHARED, is_control
from samplicator.views import exporters, flow, prometheus, shares
from samplicator.views.export import ExportSum
from samplicator.views.gateways import gateways as gateway_rows
from samplicator.views.gateways import sessions as session_rows
from samplicator.views.kubernetes import services as kubernetes_rows
from samplicator.views.ledger import LedgerSum
from samplicator.views.listeners import listeners as listener_rows
from samplicator.views.receivers import pools as pool_rows
from samplicator.views.receivers import receivers as receiver_rows
from samplicator.views.sctp import page as sctp_page
from samplicator.views.status import configuration
from samplicator.views.status import status as status_of

if TYPE_CHECKING:
    from samplicator.readings import TransportSessionReading

HEADERS = {"Server": "samplicator", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""What every answer carries."""


def as_json(value: object, status: int = 200) -> web.Response:
    """An answer of a value."""
    body = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=body, status=status, content_type="application/json")


async def index(request: web.Request) -> web.Response:
    pages = sorted({resource.canonical for resource in request.app.router.resources()} - {"/"})
    version = request.app[SHARED].state.version
    return web.Response(text=f"samplicator {version}\n" + "".join(f"{page}\n" for page in pages))


async def metrics(request: web.Request) -> web.Response:
    shared = request.app[SHARED]
    async with shared.scrapes:
        body, headers = await asyncio.to_thread(
            prometheus.render,
            shared.registry,
            accept=request.headers.get("Accept", ""),
            accept_encoding=request.headers.get("Accept-Encoding", ""),
            names=tuple(request.query.getall(query.SERIES.name, [])),
        )
    return web.Response(body=body, headers=headers)


async def health(request: web.Request) -> web.Response:
    return _verdict(*request.app[SHARED].state.healthy())


async def ready(request: web.Request) -> web.Response:
    return _verdict(*request.app[SHARED].state.ready())


def _verdict(good: bool, why: str) -> web.Response:
    return web.Response(text=f"{why or ('ok' if good else 'not ok')}\n", status=200 if good else 503)


async def status(request: web.Request) -> web.Response:
    state = request.app[SHARED].state
    readings = await asyncio.to_thread(state.view.readings)
    return as_json(status_of(state, readings, await asyncio.to_thread(state.view.unmatched)))


async def receivers(request: web.Request) -> web.Response:
    return as_json(receiver_rows(await asyncio.to_thread(request.app[SHARED].state.view.readings)))


async def listeners(request: web.Request) -> web.Response:
    return as_json(listener_rows(await asyncio.to_thread(request.app[SHARED].state.view.readings)))


async def pools(request: web.Request) -> web.Response:
    return as_json(pool_rows(await asyncio.to_thread(request.app[SHARED].state.view.readings)))


async def kubernetes(request: web.Request) -> web.Response:
    return as_json(kubernetes_rows(await asyncio.to_thread(request.app[SHARED].state.services)))


async def gateways(request: web.Request) -> web.Response:
    return as_json(gateway_rows(await asyncio.to_thread(request.app[SHARED].state.gateways)))


async def session_page(request: web.Request) -> web.Response:
    first, limit = query.number(request.query), query.limit(request.query)
    return as_json(session_rows(await _sessions(request), first, limit))


async def sctp(request: web.Request) -> web.Response:
    first, limit = query.number(request.query), query.limit(request.query)
    receiver = query.associated(request.query)
    return as_json(sctp_page(await _sessions(request), first, limit, receiver))


async def _sessions(request: web.Request) -> list[TransportSessionReading]:
    """Raises TimeoutError."""
    shared = request.app[SHARED]
    async with shared.listings:
        return list(await asyncio.to_thread(shared.state.sessions))


async def config(request: web.Request) -> web.Response:
    return as_json(configuration(request.app[SHARED].state))


async def flow_totals(request: web.Request) -> web.Response:
    view = request.app[SHARED].state.view
    readings = await asyncio.to_thread(view.readings)
    return as_json(flow.totals(readings.flow, await asyncio.to_thread(view.unmatched)))


async def exporter_page(request: web.Request) -> web.StreamResponse:
    make = partial(rows.exporters_piece, exporter=query.exporter(request.query))
    place, limit = query.place(request.query), query.limit(request.query)
    return await listing.answer(request, b'{"exporters":[', make, place, limit, HEADERS)


async def activity_page(request: web.Request) -> web.StreamResponse:
    (worker, number, _), limit = query.place(request.query), query.limit(request.query)
    return await listing.answer(request, b'{"activity":[', rows.activity_piece, (worker, number), limit, HEADERS)


async def template_page(request: web.Request) -> web.StreamResponse:
    make = partial(rows.templates_piece, exporter=query.exporter(request.query))
    place, limit = query.place(request.query), query.limit(request.query)
    return await listing.answer(request, b'{"domains":[', make, place, limit, HEADERS)


async def domain_page(request: web.Request) -> web.Response:
    view = request.app[SHARED].state.view
    (_, number, _), limit = query.place(request.query), query.limit(request.query)
    found, after = await asyncio.to_thread(view.aliases, number, limit)
    page: exporters.DomainPage = {
        "domains": [exporters.domain(row) for row in found],
        "unlisted": view.aliases_unlisted(),
        "after": listing.place_text((0, after)) if after else None,
    }
    return as_json(page)


async def ledger(request: web.Request) -> web.Response:
    total = LedgerSum(query.limit(request.query))
    view = request.app[SHARED].state.view
    readings = await asyncio.to_thread(view.readings)
    await listing.add_up(request, total.add)
    return as_json(total.result(readings, await asyncio.to_thread(view.unmatched)))


async def share_page(request: web.Request) -> web.StreamResponse:
    name = query.receiver(request.query)
    readings = await asyncio.to_thread(request.app[SHARED].state.view.readings)
    given = shares.given(readings, name)
    if given is None:
        raise web.HTTPBadRequest(reason="receiver must be the name of a receiver; /api/v1/receivers lists them")
    head = {"receiver": given, "listeners": shares.dropped(readings)}
    lead = orjson.dumps(head)[:-1] + b',"shares":['
    make = partial(rows.shares_piece, receiver=name, pools=shares.pools_of(readings, name))
    place, limit = query.place(request.query), query.limit(request.query)
    return await listing.answer(request, lead, make, place, limit, HEADERS)


async def export(request: web.Request) -> web.Response:
    total = ExportSum()
    state = request.app[SHARED].state
    readings = await asyncio.to_thread(state.view.readings)
    await listing.add_up(request, total.add)
    return as_json(total.result(readings, state.loaded.config.receiver))


async def history_page(request: web.Request) -> web.StreamResponse:
    history = request.app[SHARED].state.history
    kind, limit, after = query.kind(request.query), query.limit(request.query), query.number(request.query)
    window = history.window(query.last(request.query))
    lead = orjson.dumps(history.head(kind, window))[:-1] + b',"series":['
    make = partial(rows.history_piece, kind=kind, window=window, name=query.name(request.query))
    return await listing.answer(request, lead, make, (after,), limit, HEADERS)


async def events(request: web.Request) -> web.StreamResponse:
    count = query.count(request.query)
    return await request.app[SHARED].events.serve(request, HEADERS, count, by_tcp=not is_control(request))


async def tap(request: web.Request) -> web.StreamResponse:
    asked, count = query.ask(request.query), query.count(request.query)
    return await request.app[SHARED].tapping.serve(request, HEADERS, asked, count, local=is_control(request))
