"""What a tap shows, as lines for a stream. Pure: events and readings in, plain values out. Called by http."""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated, Final, Literal, TypedDict

from samplicator.config.address import address_text
from samplicator.readings import Readings
from samplicator.supervisor.taps import Ask, Event

VERSION: Final = 1


class TapListener(TypedDict):
    """Where datagrams come in; once for each address of a listener."""

    name: str
    address: Annotated[str, "Empty for one behind a gateway."]
    port: int


class TapReceiver(TypedDict):
    """Where copies go."""

    name: str
    address: str
    port: int
    source: Annotated[str, "Source address of its copies: exporter or own."]


class TapOpen(TypedDict):
    """The first line; again whenever the configuration has changed."""

    event: Literal["open"]
    version: int
    rate: Annotated[float, "Events that each worker shows per second at most."]
    workers: int
    listeners: list[TapListener]
    receivers: list[TapReceiver]


class TapEvent(TypedDict):
    """What happened to a datagram (in, dropped) or to a copy of it for a receiver (sent, skipped, failed)."""

    event: Literal["in", "sent", "skipped", "failed", "dropped"]
    datagram: Annotated[int, "The same for a datagram and its copies; 0 for a copy that the daemon made of its own."]
    time_ns: Annotated[int, "Arrival, Unix time in ns; 0 = not known."]
    exporter: str
    port: int
    listener: str
    receiver: str | None
    reason: str | None
    way: Annotated[str | None, "Engine by which a copy leaves: udp, raw, transparent, packet or door."]
    ttl: Annotated[int, "As received; 0 = not known."]
    tos: int
    length: Annotated[int, "Bytes of the UDP payload."]
    payload: Annotated[str, "Base64; empty for a datagram that was truncated."]


class TapTick(TypedDict):
    """Every second."""

    event: Literal["tick"]
    shown: Annotated[int, "Events shown since the tap was opened."]
    unshown: Annotated[int, "Events over the rate, or too many for the client; a datagram not chosen counts once."]


class TapEnd(TypedDict):
    """The last line of a stream that the daemon ends."""

    event: Literal["end"]
    reason: str


TapLine = TapOpen | TapEvent | TapTick | TapEnd


def opened(readings: Readings, ask: Ask) -> TapOpen:
    """The line that names what runs."""
    return {
        "event": "open",
        "version": VERSION,
        "rate": ask.rate,
        "workers": len(readings.workers),
        "listeners": [
            {"name": item.name, "address": address, "port": port}
            for item in readings.listeners
            for address, port in item.sockets or (("", 0),)
        ],
        "receivers": [
            {
                "name": item.name,
                "address": item.address,
                "port": item.port,
                "source": "exporter" if item.source == "spoof" else "own",
            }
            for item in readings.receivers
        ],
    }


def shown(event: Event) -> TapEvent:
    """The line of an event."""
    name: Literal["in", "sent", "skipped", "failed", "dropped"] = event.event  # type: ignore[assignment]
    return {
        "event": name,
        "datagram": event.datagram,
        "time_ns": event.arrival_ns,
        "exporter": address_text(event.address),
        "port": event.port,
        "listener": event.listener,
        "receiver": event.receiver or None,
        "reason": event.reason or None,
        "way": event.way or None,
        "ttl": event.ttl,
        "tos": event.tos,
        "length": event.length,
        "payload": b64encode(event.payload).decode(),
    }
