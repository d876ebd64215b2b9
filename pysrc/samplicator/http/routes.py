"""All paths of the HTTP interface: handler, answers and parameters.

The application serves this table and openapi describes it. Called by app and by deploy/openapi/generate.py.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, Final

import orjson
from aiohttp import web

from samplicator import __version__
from samplicator.http import changing, page, query, reading
from samplicator.http.openapi import (
    BAD_QUERY,
    EVENTS,
    FAILED,
    LINES,
    TOO_LATE,
    Answer,
    Error,
    Handler,
    Query,
    Route,
    document,
)
from samplicator.views.activity import ActivityPage
from samplicator.views.export import Export
from samplicator.views.exporters import DomainPage, ExporterPage
from samplicator.views.flow import Totals
from samplicator.views.gateways import GatewayRow, SessionPage
from samplicator.views.history import HistoryPage
from samplicator.views.kubernetes import KubernetesService
from samplicator.views.ledger import Ledger
from samplicator.views.listeners import Listener
from samplicator.views.live import LiveEvent
from samplicator.views.receivers import Pool, Receiver
from samplicator.views.sctp import SctpPage
from samplicator.views.shares import SharePage
from samplicator.views.status import Configuration, Reloaded, Status
from samplicator.views.tap import TapLine
from samplicator.views.templates import TemplatePage


async def _openapi(request: web.Request) -> web.Response:
    return web.Response(body=await asyncio.to_thread(described), content_type="application/json")


def _shown(path: str, handler: Handler, text: str, shape: Any, *parameters: Query) -> Route:
    """A JSON answer."""
    answers = {200: Answer("The current state.", shape), 500: FAILED, 503: TOO_LATE}
    return Route(path, handler, text, answers | ({400: BAD_QUERY} if parameters else {}), parameters)


def _verdict(path: str, handler: Handler, text: str) -> Route:
    return Route(
        path,
        handler,
        text,
        {200: Answer("The check passed."), 500: FAILED, 503: Answer("The check failed. The text says why.")},
    )


_PAGING: Final = (query.PLACE, query.LIMIT)
_EXPOSITION: Final = Answer(
    "The Accept header selects the format.", None, ("text/plain", "application/openmetrics-text")
)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "/", reading.index, "Lists every path, one per line.", {200: Answer("The paths."), 500: FAILED, 503: TOO_LATE}
    ),
    Route(
        "/ui/",
        page.page,
        "Returns the status page, for a browser.",
        {200: Answer("The page.", None, ("text/html",)), 500: FAILED, 503: TOO_LATE},
    ),
    Route(
        "/ui/{file:.+}",
        page.page,
        "Returns a file of the status page.",
        {
            200: Answer("The file.", None, ("text/css", "text/javascript", "image/svg+xml")),
            404: Answer("There is no such file.", Error),
            500: FAILED,
            503: TOO_LATE,
        },
    ),
    Route(
        "/metrics",
        reading.metrics,
        "Returns the metrics as Prometheus text or OpenMetrics.",
        {200: _EXPOSITION, 500: FAILED, 503: TOO_LATE},
        (query.SERIES,),
    ),
    *(
        _verdict(path, reading.health, "Checks that every worker has shown a heartbeat lately.")
        for path in ("/healthz", "/-/healthy")
    ),
    *(
        _verdict(path, reading.ready, "Checks that every listener is bound and read.")
        for path in ("/readyz", "/-/ready")
    ),
    _shown("/api/v1/status", reading.status, "Returns the state of the daemon.", Status),
    _shown(
        "/api/v1/receivers", reading.receivers, "Lists the receivers in the order of the configuration.", list[Receiver]
    ),
    _shown(
        "/api/v1/listeners", reading.listeners, "Lists the listeners in the order of the configuration.", list[Listener]
    ),
    _shown("/api/v1/pools", reading.pools, "Lists the pools in the order of the configuration.", list[Pool]),
    _shown(
        "/api/v1/kubernetes",
        reading.kubernetes,
        "Lists the receivers that are Kubernetes Services, with their pods.",
        list[KubernetesService],
    ),
    _shown(
        "/api/v1/gateways",
        reading.gateways,
        "Lists the listeners and receivers whose transport is not UDP, with what their gateways count.",
        list[GatewayRow],
    ),
    _shown(
        "/api/v1/sessions",
        reading.session_page,
        "Lists the sessions of gateways, in pages: the connections of exporters, and those to collectors.",
        SessionPage,
        query.NUMBER,
        query.LIMIT,
    ),
    _shown(
        "/api/v1/sctp",
        reading.sctp,
        "Lists the SCTP associations, in pages: those of exporters, and those to collectors and their backups, in the "
        "words of a router.",
        SctpPage,
        query.NUMBER,
        query.LIMIT,
        query.ASSOCIATED,
    ),
    _shown("/api/v1/config", reading.config, "Returns the running configuration.", Configuration),
    _shown("/api/v1/flow", reading.flow_totals, "Returns the totals of flow telemetry by protocol.", Totals),
    _shown(
        "/api/v1/exporters",
        reading.exporter_page,
        "Lists the observation domains of the exporters, in pages of at most 1 MiB.",
        ExporterPage,
        *_PAGING,
        query.EXPORTER,
    ),
    _shown(
        "/api/v1/activity",
        reading.activity_page,
        "Lists the observation domains of the exporters with their counters in short, in pages of at most 1 MiB. It "
        "costs much less than /api/v1/exporters.",
        ActivityPage,
        *_PAGING,
    ),
    _shown(
        "/api/v1/templates",
        reading.template_page,
        "Lists the observation domains with their templates, in pages of at most 1 MiB.",
        TemplatePage,
        *_PAGING,
        query.EXPORTER,
    ),
    _shown(
        "/api/v1/domains",
        reading.domain_page,
        "Lists which exporter stands behind each domain number in copies, in pages.",
        DomainPage,
        *_PAGING,
    ),
    _shown(
        "/api/v1/ledger",
        reading.ledger,
        "Returns one balance from the exporters to the receivers, which shows where datagrams were lost.",
        Ledger,
        query.LIMIT,
    ),
    _shown(
        "/api/v1/shares",
        reading.share_page,
        "Lists what each observation domain gave to one receiver, in pages: the relay's side of a balance.",
        SharePage,
        query.RECEIVER,
        *_PAGING,
    ),
    _shown("/api/v1/export", reading.export, "Returns the counters in the words of a router's show commands.", Export),
    _shown(
        "/api/v1/history",
        reading.history_page,
        "Returns rates of the last 15 minutes, in pages of at most 1 MiB: the totals, the listeners, the receivers, or "
        "the 200 exporters that sent the most datagrams.",
        HistoryPage,
        query.KIND,
        query.NAME,
        query.LAST,
        query.NUMBER,
        query.LIMIT,
    ),
    Route(
        "/api/v1/events",
        reading.events,
        "Sends what happens as server-sent events, one per second, each of at most 200 kB: exporters, listeners, "
        "receivers, their rates, drops and states. The data of an event is JSON.",
        {
            200: Answer("A stream of events of the type `live`.", LiveEvent, stream=EVENTS),
            400: BAD_QUERY,
            500: FAILED,
            503: Answer("Too many clients watch already.", Error),
        },
        (query.COUNT,),
    ),
    Route(
        "/api/v1/tap",
        reading.tap,
        "Shows a sample of the datagrams that come in, of the copies that leave, or of what is not forwarded and why, "
        "as lines of JSON. It ends when the client leaves. Payloads are shown, so over TCP it needs a bearer token.",
        {
            200: Answer("A stream of lines.", TapLine, stream=LINES),
            400: BAD_QUERY,
            500: FAILED,
            503: Answer("Too many taps are open.", Error),
        },
        (query.EXPORTERS, query.ONE_RECEIVER, query.ONE_LISTENER, query.DROPS, query.RATE, query.COUNT),
        guarded=True,
    ),
    Route(
        "/api/v1/openapi.json",
        _openapi,
        "Returns this document.",
        {200: Answer("An OpenAPI 3.1 document.", dict[str, Any]), 500: FAILED, 503: TOO_LATE},
    ),
    Route(
        "/-/reload",
        changing.reload,
        "Reloads the configuration and waits for the outcome.",
        {
            200: Answer("The new configuration runs.", Reloaded),
            403: Answer("Changes over TCP are off because service.reload_token_file is not set.", Error),
            422: Answer("The new configuration was refused. The old one keeps running.", Reloaded),
            500: FAILED,
            503: TOO_LATE,
        },
        methods=("POST", "PUT"),
        guarded=True,
    ),
    Route(
        "/-/takeover",
        changing.take_over,
        "Begins a take-over. Only another samplicator asks for this.",
        {
            101: Answer("The connection carries the messages of the take-over from now on."),
            403: Answer("The request did not come over the control socket, or from another user.", Error),
            426: Answer("The header Upgrade is missing.", Error),
            500: FAILED,
            503: Answer("The daemon is starting or stopping.", Error),
        },
        methods=("POST",),
        local=True,
    ),
)


@cache
def described() -> bytes:
    """The OpenAPI document, as JSON for people too."""
    return orjson.dumps(document(ROUTES, __version__), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
