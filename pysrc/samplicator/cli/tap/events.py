"""The events of the daemon's `/api/v1/tap`, from lines of JSON to plain values that were checked.

Called by command. Pure. Invariant: what a line says is checked or refused (ValueError), so that nothing behind this
file meets a value of another type or an address that is none.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

Address = IPv4Address | IPv6Address
KINDS: Final = frozenset({"in", "sent", "skipped", "failed", "dropped"})
MOST_BYTES: Final = 65535
"""Of a datagram."""


@dataclass(frozen=True, slots=True)
class Place:
    """A listener or a receiver. address: text, of a receiver behind a door no address. port: 0 = not known. source:
    of copies: "exporter", "own" or an address; "" for a listener.
    """

    name: str
    address: str
    port: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Open:
    """The configuration that the next events are about, by name. A listener has a place for each of its addresses."""

    listeners: Mapping[str, Sequence[Place]]
    receivers: Mapping[str, Sequence[Place]]


@dataclass(frozen=True, slots=True)
class Datagram:
    """A datagram, or a copy. kind: one of KINDS. time_ns: of arrival, Unix, 0 = not known. port: the exporter's.
    receiver, reason, way: "" = none. ttl: 0 = not known. length: bytes of the UDP payload, of which `payload` has all
    or, of a truncated datagram, none.
    """

    kind: str
    time_ns: int
    exporter: Address
    port: int
    listener: str
    receiver: str
    reason: str
    way: str
    ttl: int
    tos: int
    length: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """Every second. Totals: shown and not shown since the tap was opened."""

    shown: int
    unshown: int


@dataclass(frozen=True, slots=True)
class End:
    """The daemon ends the stream."""

    reason: str


def parse(line: bytes) -> tuple[Mapping[str, Any], Open | Datagram | Tick | End | None]:
    """The object of a line and what it says; None for an event that this version does not know. Raises ValueError."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("too many brackets") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    kind = _text(value, "event")
    if kind in KINDS:
        return value, _datagram(kind, value)
    match kind:
        case "open":
            return value, Open(_places(value, "listeners"), _places(value, "receivers"))
        case "tick":
            return value, Tick(_number(value, "shown", 1 << 64), _number(value, "unshown", 1 << 64))
        case "end":
            return value, End(_text(value, "reason"))
    return value, None


def _datagram(kind: str, value: Mapping[str, Any]) -> Datagram:
    payload = base64.b64decode(_text(value, "payload"), validate=True)
    length = _number(value, "length", MOST_BYTES)
    if len(payload) > length:
        raise ValueError("payload is longer than length")
    return Datagram(
        kind,
        _number(value, "time_ns", (1 << 63) - 1),
        ip_address(_text(value, "exporter")),
        _number(value, "port", 65535),
        _text(value, "listener"),
        _text(value, "receiver"),
        _text(value, "reason"),
        _text(value, "way"),
        _number(value, "ttl", 255),
        _number(value, "tos", 255),
        length,
        payload,
    )


def _places(value: Mapping[str, Any], key: str) -> Mapping[str, Sequence[Place]]:
    rows = value.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{key} is not a list of objects")
    places: dict[str, list[Place]] = {}
    for row in rows:
        place = Place(_text(row, "name"), _text(row, "address"), _number(row, "port", 65535), _text(row, "source"))
        places.setdefault(place.name, []).append(place)
    return places


def _text(value: Mapping[str, Any], key: str) -> str:
    """ "" for null and for a key that is missing."""
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise ValueError(f"{key} is not a text")
    return found


def _number(value: Mapping[str, Any], key: str, most: int) -> int:
    """0 for null and for a key that is missing."""
    found = value.get(key)
    if found is None:
        return 0
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= most:
        raise ValueError(f"{key} is not a number 0..{most}")
    return found
