"""The HTTP interface for tests of who may ask: an application with a client, credentials, a configuration with a
web-config file.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.test_utils import TestClient, TestServer
from samplicator.config.model.loaded import Loaded
from samplicator.config.model.service import Service
from samplicator.config.model.whole import Config
from samplicator.config.web.model import WebConfig
from samplicator.http import app
from samplicator.views.service import ServiceState

Client = TestClient[Any, Any]


def loaded(config: WebConfig | None = None, *, hosts: list[str] | None = None, http: str = "127.0.0.1:9420") -> Loaded:
    return Loaded(Config(service=Service(http=http, http_hosts=hosts or [])), (), web=config)


def with_client(state: ServiceState, body: Callable[[Client], Awaitable[None]]) -> None:
    async def go() -> None:
        async with TestClient(TestServer(app.make_app(state))) as client:
            await body(client)

    asyncio.run(go())


def basic(user: str, password: str | bytes) -> dict[str, str]:
    said = f"{user}:".encode() + (password.encode() if isinstance(password, str) else password)
    return {"Authorization": "Basic " + base64.b64encode(said).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
