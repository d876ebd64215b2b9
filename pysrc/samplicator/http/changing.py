"""The requests of the HTTP interface that change something: a reload, and a take-over.

Invariant: changes need the control socket (protected by its file mode) or, for a reload, the bearer token. Called by
the application, through the table in routes.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
from typing import Final

from aiohttp import web

from samplicator.http.front import SHARED, is_control
from samplicator.http.reading import as_json
from samplicator.views.status import reloaded

TAKEOVER: Final = "samplicator-takeover"
"""Value of the request's header Upgrade."""


async def reload(request: web.Request) -> web.Response:
    state = request.app[SHARED].state
    if not is_control(request):
        if not state.reload_token:
            return as_json(
                {
                    "error": "reload over TCP is off; use the control socket (`samplicator reload`) or set "
                    "service.reload_token_file"
                },
                status=403,
            )
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given, wanted = token.strip().encode(errors="replace"), state.reload_token.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, wanted):
            refused = as_json({"error": "this request needs the bearer token of service.reload_token_file"}, status=401)
            refused.headers["WWW-Authenticate"] = 'Bearer realm="samplicator"'
            return refused
    # shielded: a client that goes away must not stop a reload half-way
    result = await asyncio.shield(state.reloader.reload("api"))
    return as_json(reloaded(result), status=200 if result.ok else 422)


async def take_over(request: web.Request) -> web.Response:
    """Turns the connection into a conversation of two processes (service.talk), which the service leads on its own
    copy of the descriptor; the service writes status 101 itself, so that nothing stands between it and what follows.
    """
    if not is_control(request):
        return as_json({"error": "a take-over needs the control socket"}, status=403)
    transport = request.transport
    if request.headers.get("Upgrade", "").lower() != TAKEOVER or transport is None:
        return as_json({"error": f"this request needs the header Upgrade: {TAKEOVER}"}, status=426)
    conversation = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    status, why = request.app[SHARED].state.hand_over(conversation)
    if status != 101:
        conversation.close()
        return as_json({"error": why}, status=status)
    transport.abort()  # of this copy
    return web.Response(status=101)
