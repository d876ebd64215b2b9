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
from samplicator.supervisor.taps import RATE as DEFAULT_RATE
from samplicator.supervisor.taps import RATE_LIMIT, Ask, Network
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
EXPORTERS: Final = Query(
    "exporter",
    "Show only this exporter, or those of this network (ADDRESS/PREFIX).",
    {"type": "string", "minLength": 1},
)
ONE_RECEIVER: Final = Query("receiver", "Show only copies for this receiver.", {"type": "string", "minLength": 1})
ASSOCIATED: Final = Query("receiver", "Show only associations to this receiver.", {"type": "string", "minLength": 1})
ONE_LISTENER: Final = Query("listener", "Show only datagrams of this listener.", {"type": "string", "minLength": 1})
DROPS: Final = Query("drops", "true: show only what is not forwarded.", {"type": "string", "enum": ["true", "false"]})
RATE: Final = Query(
    "rate",
    "Events that each worker shows per second at most.",
    {"type": "integer", "minimum": 1, "maximum": RATE_LIMIT, "default": DEFAULT_RATE},
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


def associated(values: Values) -> str:
    """Name of the receiver whose associations to show; "" = all."""
    text = values.get(ASSOCIATED.name)
    if text == "":
        raise web.HTTPBadRequest(reason="receiver must not be empty; remove receiver to show all")
    return text or ""


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


def ask(values: Values) -> Ask:
    """What a tap is to show."""
    why = f"rate must be a number of events, 1 to {RATE_LIMIT}"
    rate = _whole(values, RATE.name, DEFAULT_RATE, why)
    if rate > RATE_LIMIT:
        raise web.HTTPBadRequest(reason=why)
    if values.get(DROPS.name, "false") not in ("true", "false"):
        raise web.HTTPBadRequest(reason="drops must be true or false")
    for key in (EXPORTERS.name, ONE_RECEIVER.name, ONE_LISTENER.name):
        if values.get(key) == "":
            raise web.HTTPBadRequest(reason=f"{key} must not be empty; remove {key} to show all")
    return Ask(
        exporters=_network(values.get(EXPORTERS.name)),
        receiver=values.get(ONE_RECEIVER.name, ""),
        listener=values.get(ONE_LISTENER.name, ""),
        drops=values.get(DROPS.name) == "true",
        rate=rate,
    )


def _network(text: str | None) -> Network | None:
    if text is None:
        return None
    try:
        if "%" in text:
            raise ValueError
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise web.HTTPBadRequest(reason="exporter must be an IPv4 or IPv6 address, or ADDRESS/PREFIX") from None
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is not None and network.prefixlen >= 96:
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _whole(values: Values, key: str, default: int, why: str) -> int:
    """A decimal number of at least 1."""
    text = values.get(key)
    if text is None:
        return default
    if re.fullmatch(r"[0-9]{1,40}", text) and int(text):
        return int(text)
    raise web.HTTPBadRequest(reason=why)
