"""The requests of the HTTP interface that change something: a reload, and a take-over.

Invariant: a request that comes here over TCP had a bearer token (http.security); a take-over needs the control socket.
Called by the application, through the table in routes.
"""

from __future__ import annotations

import asyncio
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
    # shielded: a client that goes away must not stop a reload half-way
    result = await asyncio.shield(request.app[SHARED].state.reloader.reload("api"))
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
