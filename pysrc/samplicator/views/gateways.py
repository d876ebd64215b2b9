"""Gateways and their sessions, as they are shown: TCP, TLS and SCTP, in and out.

Pure: readings in, plain values out. Called by http.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypedDict

from samplicator.readings import GatewayReading, TransportSessionReading


class GatewayRow(TypedDict):
    """What a gateway does for one listener or receiver."""

    gateway: Annotated[str, "The transport: tcp, tls or sctp."]
    side: Annotated[str, "in = from exporters, out = to a collector."]
    name: Annotated[str, "Name of the listener or receiver."]
    place: Annotated[str, "Where it listens, or where it sends to."]
    why: Annotated[str, "What is wrong; empty if nothing is."]
    sessions: Annotated[dict[str, int], "Number of sessions by state."]
    backups_in_use: Annotated[int, "Sessions whose messages a backup gets (SCTP)."]
    counters: Annotated[dict[str, int], "Events since the listener or receiver was configured, by name."]


class SessionRow(TypedDict):
    """A connection of an exporter, or a connection to a collector for the copies of one exporter."""

    gateway: str
    side: str
    name: str
    exporter: Annotated[str, "Address and port of the exporter."]
    peer: Annotated[str, "Address and port of the other end."]
    state: Annotated[str, "initialising, connected, not connected or re-establishing."]
    why: Annotated[str, "Why it is not connected; empty if it is."]
    backup_in_use: Annotated[bool, "true while a backup gets the messages; `state` is that of the primary (SCTP)."]
    opened: Annotated[int, "Times that it was connected."]
    messages: Annotated[int, "Messages that came, or were sent."]
    octets: Annotated[int, "Bytes of these messages."]
    queue_bytes: Annotated[int, "Bytes of copies that wait for the collector."]
    streams: Annotated[int, "Streams of the session; 1 by TCP."]


class SessionPage(TypedDict):
    """A page of sessions."""

    sessions: list[SessionRow]
    after: Annotated[int | None, "Where the next page begins; null on the last page."]


def gateways(readings: Sequence[GatewayReading]) -> list[GatewayRow]:
    """All of them."""
    return [
        {
            "gateway": item.gateway,
            "side": item.side,
            "name": item.name,
            "place": item.place,
            "why": item.why,
            "sessions": dict(item.sessions),
            "backups_in_use": item.backups_in_use,
            "counters": dict(item.counters),
        }
        for item in readings
    ]


def sessions(readings: Sequence[TransportSessionReading], first: int, limit: int) -> SessionPage:
    """So many from this number on."""
    ordered = sorted(readings, key=lambda item: (item.side, item.gateway, item.name, item.exporter))
    rows: list[SessionRow] = [
        {
            "gateway": item.gateway,
            "side": item.side,
            "name": item.name,
            "exporter": item.exporter,
            "peer": item.peer,
            "state": item.state,
            "why": item.why,
            "backup_in_use": item.backup_in_use,
            "opened": item.opened,
            "messages": item.messages,
            "octets": item.octets,
            "queue_bytes": item.queue_bytes,
            "streams": item.streams,
        }
        for item in ordered[first : first + limit]
    ]
    return {"sessions": rows, "after": first + limit if first + limit < len(ordered) else None}
