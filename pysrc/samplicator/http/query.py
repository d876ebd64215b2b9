"""The parameters of the HTTP interface: the check of each value, and its description.

Each function takes a request's query and returns a value, or raises HTTPBadRequest with a sentence that says which
values are valid; the Query beside it describes the same in the OpenAPI document. Called by reading and routes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from aiohttp import web

from samplicator.http.openapi import Query
from samplicator.views.history import KINDS, SECONDS, Kind

PAGE: Final = 1000
"""Rows of one answer at most."""

LIMIT: Final = Query(
    "limit", f"Maximum number of rows. Values above {PAGE} mean {PAGE}.", {"type": "integer", "minimum": 1}
)
PLACE_PATTERN: Final = r"^[0-9]{1,9}(\.[0-9]{1,9}){0,2}$"
PLACE: Final = Query(
    "after",
    "Where the page begins: the value of `after` in the previous page.",
    {"type": "string", "pattern": PLACE_PATTERN},
)
NUMBER: Final = Query("after", PLACE.text, {"type": "string", "pattern": "^[0-9]{1,18}$"})
EXPORTER: Final = Query(
    "exporter", "Show only this exporter.", {"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}
)
KIND: Final = Query("kind", "What to show. The default is totals.", {"type": "string", "enum": list(KINDS)})
NAME: Final = Query(
    "name", "Show only the listener, receiver or exporter with this name.", {"type": "string", "minLength": 1}
)
RECEIVER: Final = Query("receiver", "Name of the receiver.", {"type": "string", "minLength": 1}, required=True)
LAST: Final = Query(
    "seconds", "How many seconds to go back.", {"type": "integer", "minimum": 1, "maximum": SECONDS, "default": SECONDS}
)
COUNT: Final = Query(
    "count", "The stream ends after this number of events.", {"type": "integer", "minimum": 1, "maximum": 1_000_000}
)
SERIES: Final = Query(
    "name[]", "Show only the series with these full names.", {"type": "array", "items": {"type": "string"}}
)

Values = Mapping[str, str]


def limit(values: Values) -> int:
    """Rows at most, 1..PAGE."""
    return min(_whole(values, LIMIT.name, PAGE, "limit must be a number of rows, 1 or more"), PAGE)


def place(values: Values) -> tuple[int, int, int]:
    """Worker, number of a domain, and an id in it or -1."""
    text = values.get(PLACE.name, "0.0")
    if not re.fullmatch(PLACE_PATTERN.strip("^$"), text, re.ASCII):
        raise web.HTTPBadRequest(reason="after must be the `after` of an answer: WORKER.NUMBER or WORKER.NUMBER.ID")
    parts = [int(part) for part in text.split(".")]
    worker, number, identity = (*parts, *(0, -1)[len(parts) - 1 :])
    return worker, number, identity


def number(values: Values) -> int:
    """Of the last row of the page before; 0 = from the first on."""
    text = values.get(NUMBER.name, "0")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise web.HTTPBadRequest(reason="after must be the `after` of an answer: a number")
    return int(text)


def exporter(values: Values) -> str:
    """An address as rows have it; "" = all."""
    text = values.get(EXPORTER.name)
    if text is None:
        return ""
    try:
        if "%" not in text:
            return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    raise web.HTTPBadRequest(reason="exporter must be an IPv4 or IPv6 address")


def kind(values: Values) -> Kind:
    """What history to show."""
    text = values.get(KIND.name, "totals")
    for each in KINDS:
        if each == text:
            return each
    raise web.HTTPBadRequest(reason=f"kind must be one of {', '.join(KINDS)}")


def name(values: Values) -> str:
    """Of what to show the history; "" = of all."""
    text = values.get(NAME.name)
    if text == "":
        raise web.HTTPBadRequest(reason="name must not be empty; remove name to show all")
    return text or ""


def receiver(values: Values) -> str:
    """Name of a receiver."""
    text = values.get(RECEIVER.name)
    if not text:
        raise web.HTTPBadRequest(reason="receiver must be the name of a receiver; /api/v1/receivers lists them")
    return text


def last(values: Values) -> int:
    """Seconds."""
    why = f"seconds must be a number, 1 to {SECONDS}"
    found = _whole(values, LAST.name, SECONDS, why)
    if found > SECONDS:
        raise web.HTTPBadRequest(reason=why)
    return found


def count(values: Values) -> int:
    """Events; 0 = without end."""
    why = "count must be a number of events, 1 to 1000000; remove count for a stream without end"
    found = _whole(values, COUNT.name, 0, why)
    if found > 1_000_000:
        raise web.HTTPBadRequest(reason=why)
    return found


def _whole(values: Values, key: str, default: int, why: str) -> int:
    """A decimal number of at least 1."""
    text = values.get(key)
    if text is None:
        return default
    if re.fullmatch(r"[0-9]{1,40}", text) and int(text):
        return int(text)
    raise web.HTTPBadRequest(reason=why)
