"""The HTTP interface: metrics, health, status and reload, on a TCP address and on the local control socket.

Purpose: `make_app` builds the application; http.front has its sockets and the server.
Invariants: reading is free for whoever reaches a socket, changing needs the control socket (its file mode is the
gate) or the bearer token; nothing slow runs on the loop; a client that sends slowly, much or nothing costs a bounded
number of bytes and seconds. Called by service. The only importer of aiohttp and orjson. It must never touch the
datapath's objects: it reads ServiceState.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from samplicator.config.address import endpoint_text
from samplicator.http import listing
from samplicator.http.front import SHARED, Shared
from samplicator.views import flow, prometheus

if TYPE_CHECKING:
    from samplicator.readings import Readings, Unmatched
    from samplicator.views.service import ServiceState

log = logging.getLogger(__name__)

MAX_BODY: Final = 64 << 10  # bytes of a request's body; nothing here needs one
ANSWER_SECONDS: Final = 15.0
RELOAD_SECONDS: Final = 120.0  # a reload may wait for name servers

HEADERS: Final = {"Server": "samplicator", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""What every answer carries."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(state: ServiceState) -> web.Application:
    """The application over a state; serve it with Front (or aiohttp's test client)."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_guard])
    app[SHARED] = Shared(state, prometheus.make_registry(state), asyncio.Semaphore(2))
    get = app.router.add_get
    get("/", _index)
    get("/metrics", _metrics)
    for path in ("/healthz", "/-/healthy"):
        get(path, _health)
    for path in ("/readyz", "/-/ready"):
        get(path, _ready)
    get("/api/v1/status", _status)
    get("/api/v1/receivers", _receivers)
    get("/api/v1/listeners", _listeners)
    get("/api/v1/pools", _pools)
    get("/api/v1/config", _config)
    get("/api/v1/flow", _flow)
    get("/api/v1/exporters", _exporters)
    get("/api/v1/templates", _templates)
    get("/api/v1/domains", _domains)
    app.router.add_post("/-/reload", _reload)
    app.router.add_put("/-/reload", _reload)
    return app


# ---------------------------------------------------------------------------------------------------- every request


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Time limit, error texts as JSON, and the headers that every answer carries."""
    shared = request.app[SHARED]
    limit = RELOAD_SECONDS if request.path == "/-/reload" else ANSWER_SECONDS
    shared.touch(request.protocol, +1)
    response: web.StreamResponse
    try:
        async with asyncio.timeout(limit):
            response = await handler(request)
    except web.HTTPException as error:
        response = _json({"error": error.reason}, status=error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except TimeoutError:
        response = _json({"error": f"no answer within {limit:g} s"}, status=503)
    except Exception:
        log.exception("request %s %s failed", request.method, request.path)
        response = _json({"error": "internal error, see the log"}, status=500)
    finally:
        shared.touch(request.protocol, -1)
    if not response.prepared:
        response.headers.update(HEADERS)
    return response


def _json(value: object, status: int = 200) -> web.Response:
    body = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=body, status=status, content_type="application/json")


def is_control(request: web.Request) -> bool:
    """Whether the request came over the local socket."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    return sock is not None and sock.family == socket.AF_UNIX


# ---------------------------------------------------------------------------------------------------- reading


async def _index(request: web.Request) -> web.Response:
    pages = sorted({resource.canonical for resource in request.app.router.resources()} - {"/"})
    version = request.app[SHARED].state.version
    return web.Response(text=f"samplicator {version}\n" + "".join(f"{page}\n" for page in pages))


async def _metrics(request: web.Request) -> web.Response:
    shared = request.app[SHARED]
    async with shared.scrapes:
        body, headers = await asyncio.to_thread(
            prometheus.render,
            shared.registry,
            accept=request.headers.get("Accept", ""),
            accept_encoding=request.headers.get("Accept-Encoding", ""),
            names=tuple(request.query.getall("name[]", [])),
        )
    return web.Response(body=body, headers=headers)


async def _health(request: web.Request) -> web.Response:
    return _verdict(*request.app[SHARED].state.healthy())


async def _ready(request: web.Request) -> web.Response:
    return _verdict(*request.app[SHARED].state.ready())


def _verdict(good: bool, why: str) -> web.Response:
    return web.Response(text=f"{why or ('ok' if good else 'not ok')}\n", status=200 if good else 503)


async def _status(request: web.Request) -> web.Response:
    state = request.app[SHARED].state
    readings = await asyncio.to_thread(state.view.readings)
    return _json(status_of(state, readings, await asyncio.to_thread(state.view.unmatched)))


async def _receivers(request: web.Request) -> web.Response:
    readings = await asyncio.to_thread(request.app[SHARED].state.view.readings)
    return _json(receivers_of(readings))


async def _listeners(request: web.Request) -> web.Response:
    readings = await asyncio.to_thread(request.app[SHARED].state.view.readings)
    return _json(listeners_of(readings))


async def _pools(request: web.Request) -> web.Response:
    readings = await asyncio.to_thread(request.app[SHARED].state.view.readings)
    return _json(pools_of(readings))


async def _config(request: web.Request) -> web.Response:
    loaded = request.app[SHARED].state.loaded
    return _json(
        {
            "origin": loaded.origin,
            "files": list(loaded.files),
            "sha256": loaded.text_hash,
            "warnings": [str(warning) for warning in loaded.warnings],
            "config": loaded.config.model_dump(mode="json", by_alias=True),
        }
    )


async def _flow(request: web.Request) -> web.Response:
    view = request.app[SHARED].state.view
    readings = await asyncio.to_thread(view.readings)
    return _json(flow.totals(readings.flow, await asyncio.to_thread(view.unmatched)))


async def _exporters(request: web.Request) -> web.StreamResponse:
    """A page of observation domains; `after` of the next page is in the answer, null at the end."""
    return await listing.answer(request, "exporters", listing.exporters_piece, HEADERS)


async def _templates(request: web.Request) -> web.StreamResponse:
    """A page of observation domains with their templates."""
    return await listing.answer(request, "domains", listing.templates_piece, HEADERS)


async def _domains(request: web.Request) -> web.Response:
    """A page of who has which number instead of its domain."""
    view = request.app[SHARED].state.view
    (_, number, _), wanted = listing.begin(request)
    rows, after = await asyncio.to_thread(view.aliases, number, wanted.limit)
    answer = {"domains": [flow.alias(row) for row in rows], "unlisted": view.aliases_unlisted()}
    return _json({**answer, "after": listing.place_text((0, after, -1)) if after else None})


def status_of(state: ServiceState, readings: Readings, unmatched: Sequence[Unmatched] = ()) -> dict[str, Any]:
    """What `/api/v1/status` answers. Counts are totals since the start of what is configured now."""
    ready, ready_why = state.ready()
    healthy, healthy_why = state.healthy()
    reloader = state.reloader
    received = [item.counters for item in readings.listeners]
    sent = [item.counters for item in readings.receivers]
    return {
        "version": state.version,
        "pid": os.getpid(),
        "started_unix": state.started_unix,
        "uptime_seconds": time.monotonic() - state.started,
        "ready": ready,
        "ready_why": ready_why,
        "healthy": healthy,
        "healthy_why": healthy_why,
        "startup": state.startup,
        "config": {
            "origin": state.loaded.origin,
            "files": list(state.loaded.files),
            "sha256": state.loaded.text_hash,
            "generation": readings.generation,
            "reloads": reloader.reloads_total,
            "reload_failures": reloader.failures_total,
            "last_reload_successful": bool(reloader.last_successful),
            "last_reload_success_unix": reloader.last_success_timestamp,
            "warnings": [str(warning) for warning in state.loaded.warnings],
        },
        "received": {
            "datagrams": sum(c["datagrams"] for c in received),
            "bytes": sum(c["bytes"] for c in received),
            "matched": sum(c["matched"] for c in received),
            "truncated": sum(c["truncated"] for c in received),
            "denied": sum(c["denied"] for c in received),
            "unmatched": sum(c["unmatched"] for c in received),
            "kernel_drops": sum(item.kernel_drops for item in readings.listeners),
        },
        "unmatched": flow.unmatched(unmatched),
        "sent": {
            "offered": sum(c["offered"] for c in sent),
            "sent": sum(c["sent"] for c in sent),
            "bytes": sum(c["sent_bytes"] for c in sent),
            "sampled_out": sum(c["sampled_out"] for c in sent),
            "errors": sum(_errors(c) for c in sent),
        },
        "listeners": len(readings.listeners),
        "receivers": len(readings.receivers),
        "pools": len(readings.pools),
        "workers": [asdict(worker) for worker in readings.workers],
    }


def receivers_of(readings: Readings) -> list[dict[str, Any]]:
    """What `/api/v1/receivers` answers, in the order of the configuration."""
    return [{**asdict(item), "errors": _errors(item.counters)} for item in readings.receivers]


def listeners_of(readings: Readings) -> list[dict[str, Any]]:
    """What `/api/v1/listeners` answers, in the order of the configuration."""
    return [
        {**asdict(item), "sockets": [endpoint_text(address, port) for address, port in item.sockets]}
        for item in readings.listeners
    ]


def pools_of(readings: Readings) -> list[dict[str, Any]]:
    """What `/api/v1/pools` answers, in the order of the configuration."""
    return [asdict(pool) for pool in readings.pools]


def _errors(counters: Any) -> int:
    return sum(count for field, count in counters.items() if field.startswith("dropped_"))


# ---------------------------------------------------------------------------------------------------- changing


async def _reload(request: web.Request) -> web.Response:
    state = request.app[SHARED].state
    if not is_control(request):
        if not state.reload_token:
            return _json(
                {
                    "error": "reload over TCP is off: use the control socket (`samplicator reload`) or set "
                    "service.reload_token_file"
                },
                status=403,
            )
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given, wanted = token.strip().encode(errors="replace"), state.reload_token.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, wanted):
            refused = _json({"error": "a bearer token is needed"}, status=401)
            refused.headers["WWW-Authenticate"] = 'Bearer realm="samplicator"'
            return refused
    # shielded: a client that goes away must not stop a reload half-way
    result = await asyncio.shield(state.reloader.reload("api"))
    return _json(asdict(result), status=200 if result.ok else 422)
