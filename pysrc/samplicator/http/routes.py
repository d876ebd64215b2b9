"""Every path of the HTTP interface: who answers, what the answers are, and which parameters there are.

The application serves this table and openapi describes it. Called by app and by deploy/openapi/generate.py.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, Final

import orjson
from aiohttp import web

from samplicator import __version__
from samplicator.http import changing, query, reading
from samplicator.http.openapi import BAD_QUERY, FAILED, TOO_LATE, Answer, Error, Handler, Query, Route, document
from samplicator.views.export import Export
from samplicator.views.exporters import DomainPage, ExporterPage
from samplicator.views.flow import Totals
from samplicator.views.history import HistoryPage
from samplicator.views.ledger import Ledger
from samplicator.views.listeners import Listener
from samplicator.views.receivers import Pool, Receiver
from samplicator.views.status import Configuration, Reloaded, Status
from samplicator.views.templates import TemplatePage


async def _openapi(request: web.Request) -> web.Response:
    return web.Response(body=await asyncio.to_thread(described), content_type="application/json")


def _shown(path: str, handler: Handler, text: str, shape: Any, *parameters: Query) -> Route:
    """A JSON answer."""
    answers = {200: Answer("As it is now.", shape), 500: FAILED, 503: TOO_LATE}
    return Route(path, handler, text, answers | ({400: BAD_QUERY} if parameters else {}), parameters)


def _verdict(path: str, handler: Handler, text: str) -> Route:
    return Route(path, handler, text, {200: Answer("Yes."), 500: FAILED, 503: Answer("No; the text says why.")})


_PAGING: Final = (query.PLACE, query.LIMIT)
_EXPOSITION: Final = Answer(
    "By the Accept header one of the two.", None, ("text/plain", "application/openmetrics-text")
)

ROUTES: Final[tuple[Route, ...]] = (
    Route("/", reading.index, "Every path, a line each.", {200: Answer("Paths."), 500: FAILED, 503: TOO_LATE}),
    Route(
        "/metrics",
        reading.metrics,
        "Metrics for Prometheus, as text or OpenMetrics.",
        {200: _EXPOSITION, 500: FAILED, 503: TOO_LATE},
        (query.SERIES,),
    ),
    *(_verdict(path, reading.health, "Whether the workers' hearts beat.") for path in ("/healthz", "/-/healthy")),
    *(_verdict(path, reading.ready, "Whether every listener is bound and read.") for path in ("/readyz", "/-/ready")),
    _shown("/api/v1/status", reading.status, "What the daemon does.", Status),
    _shown("/api/v1/receivers", reading.receivers, "Receivers, in configured order.", list[Receiver]),
    _shown("/api/v1/listeners", reading.listeners, "Listeners, in configured order.", list[Listener]),
    _shown("/api/v1/pools", reading.pools, "Pools, in configured order.", list[Pool]),
    _shown("/api/v1/config", reading.config, "The configuration that runs.", Configuration),
    _shown("/api/v1/flow", reading.flow_totals, "Flow telemetry of all exporters together.", Totals),
    _shown(
        "/api/v1/exporters",
        reading.exporter_page,
        "Observation domains of exporters of flow telemetry, in pages of a mebibyte.",
        ExporterPage,
        *_PAGING,
        query.EXPORTER,
    ),
    _shown(
        "/api/v1/templates",
        reading.template_page,
        "Observation domains with their templates, in pages of a mebibyte.",
        TemplatePage,
        *_PAGING,
        query.EXPORTER,
    ),
    _shown(
        "/api/v1/domains",
        reading.domain_page,
        "Which exporter stands behind a number in copies, in pages.",
        DomainPage,
        *_PAGING,
    ),
    _shown(
        "/api/v1/ledger",
        reading.ledger,
        "One balance from the exporters to the receivers: where datagrams were lost.",
        Ledger,
        query.LIMIT,
    ),
    _shown("/api/v1/export", reading.export, "The counters in the words of a router.", Export),
    _shown(
        "/api/v1/history",
        reading.history_page,
        "Rates of the last 15 minutes, in pages of a mebibyte: of all together, of listeners, of receivers, or of the "
        "200 exporters that sent the most.",
        HistoryPage,
        query.KIND,
        query.NAME,
        query.LAST,
        query.NUMBER,
        query.LIMIT,
    ),
    Route(
        "/api/v1/openapi.json",
        _openapi,
        "This document.",
        {200: Answer("OpenAPI 3.1.", dict[str, Any]), 500: FAILED, 503: TOO_LATE},
    ),
    Route(
        "/-/reload",
        changing.reload,
        "Has the daemon read its configuration again, and waits for the outcome.",
        {
            200: Answer("The configuration runs.", Reloaded),
            401: Answer("The token is missing or is another one.", Error),
            403: Answer("The daemon has no token: reload over TCP is off.", Error),
            422: Answer("The configuration was refused; the one before it runs on.", Reloaded),
            500: FAILED,
            503: TOO_LATE,
        },
        methods=("POST", "PUT"),
        guarded=True,
    ),
)


@cache
def described() -> bytes:
    """The OpenAPI document, as JSON for people too."""
    return orjson.dumps(document(ROUTES, __version__), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
