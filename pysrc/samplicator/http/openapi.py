"""The OpenAPI 3.1 document of the HTTP interface, made of the routes and the typed shapes of views.

`Route` is one row of the table in routes, which the application serves and this module describes, so that the
description is always right. Called by routes, and by deploy/openapi/generate.py, which keeps a copy in the repository;
a guard test says when that one is stale.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from aiohttp import web

from samplicator.http.schema import Schema, Schemas

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
JSON: Final = "application/json"
TEXT: Final = "text/plain"
EVENTS: Final = "text/event-stream"
LINES: Final = "application/x-ndjson"
BEARER: Final = "bearerToken"
PASSWORD: Final = "password"
MEDIA: Final[Mapping[str, Schema]] = {
    media: {"type": "string"}
    for media in (TEXT, "application/openmetrics-text", "text/html", "text/css", "text/javascript", "image/svg+xml")
}


class Error(TypedDict):
    """An error text."""

    error: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. text: what it means. shape: of the JSON; None = one of `media`. stream: server-sent events, the data
    of each being JSON of this shape.
    """

    text: str
    shape: Any = None
    media: tuple[str, ...] = (TEXT,)
    stream: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """A parameter behind the question mark. schema: of its value. required: the request fails without it."""

    name: str
    text: str
    schema: Mapping[str, Any]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A path, who answers, and what the answers are. guarded: over TCP only with a bearer token, whatever the method.
    local: not over TCP.
    """

    path: str
    handler: Handler
    text: str
    answers: Mapping[int, Answer]
    query: tuple[Query, ...] = ()
    methods: tuple[str, ...] = ("GET", "HEAD")
    guarded: bool = False
    local: bool = False


BAD_QUERY: Final = Answer("A parameter has an invalid value. The text says which values are valid.", Error)
FAILED: Final = Answer("The daemon has a defect. Its log has the details.", Error)
REFUSED: Final = {
    401: Answer("Over TCP: the credentials are missing or wrong.", Error),
    403: Answer("Over TCP: the request is not allowed. The text says what is missing.", Error),
    421: Answer("Over TCP: the header Host has a name that is not known here. See service.http_hosts.", Error),
    429: Answer("Over TCP: too many wrong credentials. The header Retry-After says how long to wait.", Error),
}
"""What any request may get."""
TOO_LATE: Final = Answer("The daemon could not answer in time.", Error)


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The whole of it, ready for JSON."""
    schemas = Schemas()
    paths: dict[str, Any] = {}
    for route in routes:
        path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)
        paths[path] = {method.lower(): _operation(route, path, method, schemas) for method in route.methods}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "samplicator",
            "version": version,
            "description": "The HTTP interface of the samplicator daemon, on service.http and on the control socket. "
            "Over TCP, reading needs a user if the file service.web_config has users; changes need a bearer token. "
            "The control socket needs neither. Later versions may add fields to answers.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {PASSWORD: []}, {BEARER: []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "securitySchemes": {
                BEARER: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token in service.reload_token_file. The control socket needs no token.",
                },
                PASSWORD: {
                    "type": "http",
                    "scheme": "basic",
                    "description": "A user of the file service.web_config. The control socket needs no user.",
                },
            },
        },
    }


def _operation(route: Route, path: str, method: str, schemas: Schemas) -> dict[str, Any]:
    words = (
        path.removeprefix("/api/v1/")
        .translate({ord("{"): None, ord("}"): None})
        .replace(".", "/")
        .replace("-", "/")
        .split("/")
    )
    described: dict[str, Any] = {
        "operationId": "_".join(
            [method.lower(), *(word for word in words if word)] + ["index"] * (path in ("/", "/ui/"))
        ),
        "summary": route.text,
        "responses": {
            str(status): _response(answer, method == "HEAD", schemas)
            for status, answer in sorted({**REFUSED, **route.answers}.items())
        },
    }
    if route.query:
        described["parameters"] = [
            {
                "name": each.name,
                "in": "query",
                "required": each.required,
                "description": each.text,
                "schema": dict(each.schema),
            }
            for each in route.query
        ]
    if inside := re.findall(r"\{(\w+)\}", path):
        described.setdefault("parameters", []).extend(
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in inside
        )
    if route.guarded:
        described["security"] = [{BEARER: []}]
    return described


def _response(answer: Answer, without_body: bool, schemas: Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.text}
    if answer.stream and not without_body:
        data = {"type": "string", "contentMediaType": JSON, "contentSchema": schemas.of(answer.shape)}
        described["content"] = {answer.stream: {"schema": data}}
    elif not without_body:
        described["content"] = (
            {JSON: {"schema": schemas.of(answer.shape)}}
            if answer.shape is not None
            else {media: {"schema": dict(MEDIA[media])} for media in answer.media}
        )
    return described
