"""The HTTP interface: metrics, health, status and reload, on a TCP address and on the local control socket.

Purpose: `make_app` builds the application of the routes; http.front has its sockets and the server. Invariants: who may
ask by TCP is decided by http.security, before anything else; the control socket is protected by its file mode;
nothing slow runs on the loop; a client that sends slowly, much or nothing costs a bounded number of bytes and seconds.
Called by service. It must never touch the datapath's objects: it reads ServiceState.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web

from samplicator.http.events import Events
from samplicator.http.front import SHARED, Shared, is_control
from samplicator.http.openapi import Handler
from samplicator.http.reading import HEADERS, as_json
from samplicator.http.routes import ROUTES
from samplicator.http.security import SAFE, Security
from samplicator.http.tapping import Tapping
from samplicator.views import prometheus

if TYPE_CHECKING:
    from samplicator.views.service import ServiceState

log = logging.getLogger(__name__)

MAX_BODY: Final = 64 << 10  # bytes of a request's body; nothing here needs one
ANSWER_SECONDS: Final = 15.0
LIMITS: Final[dict[str, float | None]] = {"/-/reload": 120.0, "/api/v1/events": None, "/api/v1/tap": None}
"""A reload may wait for name servers; a stream has limits of its own."""


_LOCAL: Final = frozenset(route.path for route in ROUTES if route.local)
_GUARDED: Final = frozenset(route.path for route in ROUTES if route.guarded and "GET" in route.methods)


def make_app(state: ServiceState) -> web.Application:
    """The application over a state; serve it with Front (or aiohttp's test client)."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_guard])
    app[SHARED] = Shared(
        state, prometheus.Page(state), asyncio.Semaphore(2), Events(state), Tapping(state), Security(state)
    )
    for route in ROUTES:
        for method in route.methods:
            app.router.add_route(method, route.path, route.handler)
    app.on_response_prepare.append(_finish)
    return app


async def _refusal(request: web.Request) -> web.Response | None:
    """Everything that may come by TCP and changes something is guarded, whoever writes the next one; a tap, too."""
    if is_control(request):
        return None
    changes = request.method not in SAFE and request.match_info.http_exception is None
    guarded = (changes and request.path not in _LOCAL) or request.path in _GUARDED
    return await request.app[SHARED].security.refusal(request, guarded=guarded)


async def _finish(request: web.Request, response: web.StreamResponse) -> None:
    """The headers of the web-config file."""
    if not is_control(request):
        for name, value in request.app[SHARED].security.headers.items():
            response.headers.popall(name, None)
            if value:
                response.headers[name] = value


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Time limit, error texts as JSON, and the headers that every answer carries."""
    shared = request.app[SHARED]
    limit = LIMITS.get(request.path, ANSWER_SECONDS)
    shared.touch(request.protocol, +1)
    response: web.StreamResponse
    try:
        async with asyncio.timeout(limit):
            response = await _refusal(request) or await handler(request)
    except web.HTTPException as error:
        response = as_json({"error": error.reason}, status=error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except TimeoutError as error:
        response = as_json({"error": str(error) or f"the daemon had no answer in {limit or 0:g} s"}, status=503)
    except Exception:
        log.exception("request %s %s failed", request.method, request.path)
        response = as_json({"error": "internal error; the log of the daemon shows the cause"}, status=500)
    finally:
        shared.touch(request.protocol, -1)
    if not response.prepared:
        for name, text in HEADERS.items():
            response.headers.setdefault(name, text)
    return response
