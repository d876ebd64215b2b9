"""SCTP associations, as they are shown: of exporters, and to collectors and their backups.

Pure: readings in, plain values out. The words are those of `show ip flow export sctp verbose` (Cisco IOS). Called by
http.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, TypedDict

from samplicator.readings import AssociationReading, CollectorReading, TransportSessionReading

GATEWAY = "sctp"


class SctpCollector(TypedDict):
    """A collector that an exporter's messages go to, or its backup."""

    role: Annotated[str, "primary or backup."]
    place: Annotated[str, "Address and port."]
    state: Annotated[str, "initialising, connected, not connected, re-establishing, or fail-over: a backup in use."]
    why: Annotated[str, "Its last error; empty if there is none."]
    flows: Annotated[int, "Flow records exported to it."]
    messages: Annotated[int, "SCTP messages that they were exported in."]
    given_up: Annotated[int, "Flow records that were sent and not delivered (reliability partial or none)."]


class SctpExport(TypedDict):
    """What goes out for one exporter to one receiver."""

    receiver: Annotated[str, "Name of the receiver."]
    exporter: Annotated[str, "Address and port of the exporter."]
    reliability: Annotated[str, "full, partial or none; empty if this host cannot do SCTP now."]
    buffer_limit: Annotated[int, "Flow records that may wait."]
    waiting: Annotated[int, "Flow records that wait."]
    streams: Annotated[int, "Streams that are asked for."]
    mode: Annotated[str, "redundant or fail-over; empty if there is no backup."]
    fail_over_ms: Annotated[int, "Milliseconds without an answer after which the backup is used."]
    restore_s: Annotated[int, "Seconds with answers after which the primary is used again."]
    fail_overs: Annotated[int, "Switches to the backup."]
    dropped_resources: Annotated[int, "Messages dropped due to lack of SCTP resources: the queue was full."]
    dropped_failure: Annotated[int, "Messages dropped due to primary and backup failure."]
    collectors: Annotated[list[SctpCollector], "The primary, and the backup if there is one."]


class SctpExporter(TypedDict):
    """An association that an exporter has opened."""

    listener: Annotated[str, "Name of the listener."]
    exporter: Annotated[str, "Address and port of the exporter."]
    state: str
    streams: Annotated[int, "Streams of the association."]
    messages: Annotated[int, "Messages that came."]
    octets: Annotated[int, "Bytes of these messages."]


class SctpPage(TypedDict):
    """A page of associations."""

    exporters: list[SctpExporter]
    exports: list[SctpExport]
    after: Annotated[int | None, "Where the next page begins; null on the last page."]


def page(readings: Sequence[TransportSessionReading], first: int, limit: int, receiver: str = "") -> SctpPage:
    """So many from this number on; those of exporters come first. receiver: only those to it, "" = all."""
    mine = [item for item in readings if item.gateway == GATEWAY]
    if receiver:
        mine = [item for item in mine if item.side == "out" and item.name == receiver]
    ordered = sorted(mine, key=lambda item: (item.side, item.name, item.exporter))
    chosen = ordered[first : first + limit]
    return {
        "exporters": [
            {
                "listener": item.name,
                "exporter": item.exporter,
                "state": item.state,
                "streams": item.streams,
                "messages": item.messages,
                "octets": item.octets,
            }
            for item in chosen
            if item.side == "in"
        ],
        "exports": list(_exports(chosen)),
        "after": first + limit if first + limit < len(ordered) else None,
    }


def _exports(readings: Sequence[TransportSessionReading]) -> Iterator[SctpExport]:
    for item in readings:
        if item.side == "out":
            yield _export(item, item.association or _not_begun(item))


def _not_begun(item: TransportSessionReading) -> AssociationReading:
    """Of a session that this host cannot even begin to open; why says it."""
    primary = CollectorReading("primary", item.peer, item.state, item.why, 0, 0, 0)
    return AssociationReading("", "", 0, 0, 0, 0, 0, 0, 0, (primary,))


def _export(item: TransportSessionReading, association: AssociationReading) -> SctpExport:
    return {
        "receiver": item.name,
        "exporter": item.exporter,
        "reliability": association.reliability,
        "buffer_limit": association.buffer_limit,
        "waiting": association.waiting_flows,
        "streams": item.streams,
        "mode": association.mode,
        "fail_over_ms": association.fail_over_ms,
        "restore_s": association.restore_s,
        "fail_overs": association.fail_overs,
        "dropped_resources": association.dropped_resources,
        "dropped_failure": association.dropped_failure,
        "collectors": [
            {
                "role": one.role,
                "place": one.place,
                "state": one.state,
                "why": one.why,
                "flows": one.flows,
                "messages": one.messages,
                "given_up": one.given_up,
            }
            for one in association.collectors
        ],
    }
