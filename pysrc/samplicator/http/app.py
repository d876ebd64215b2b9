"""The HTTP interface: metrics, health, status and reload, on a TCP address and on the local control socket.

Purpose: `make_app` builds the application of the routes; http.front has its sockets and the server. Invariants: every
client that can connect may read; changes need the control socket (protected by its file mode) or the bearer token;
nothing slow runs on the loop; a client that sends slowly, much or nothing costs a bounded number of bytes and seconds.
Called by service. It must never touch the datapath's objects: it reads ServiceState.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web

from samplicator.http.front import SHARED, Shared
from samplicator.http.openapi import Handler
from samplicator.http.reading import HEADERS, as_json
from samplicator.http.routes import ROUTES
from samplicator.views import prometheus

if TYPE_CHECKING:
    from samplicator.views.service import ServiceState

log = logging.getLogger(__name__)

MAX_BODY: Final = 64 << 10  # bytes of a request's body; nothing here needs one
ANSWER_SECONDS: Final = 15.0
RELOAD_SECONDS: Final = 120.0  # a reload may wait for name servers


def make_app(state: ServiceState) -> web.Application:
    """The application over a state; serve it with Front (or aiohttp's test client)."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_guard])
    app[SHARED] = Shared(state, prometheus.Page(state), asyncio.Semaphore(2))
    for route in ROUTES:
        for method in route.methods:
            app.router.add_route(method, route.path, route.handler)
    return app


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
        response = as_json({"error": error.reason}, status=error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except TimeoutError:
        response = as_json({"error": f"the daemon had no answer in {limit:g} s"}, status=503)
    except Exception:
        log.exception("request %s %s failed", request.method, request.path)
        response = as_json({"error": "internal error; the log of the daemon shows the cause"}, status=500)
    finally:
        shared.touch(request.protocol, -1)
    if not response.prepared:
        response.headers.update(HEADERS)
    return response
