"""Exporters of flow telemetry as they are shown: one row for each observation domain of each exporter session.

Pure: readings in, plain values out. Called by http; the command line draws the same shapes.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict, cast

from samplicator.readings import Activity, AliasReading, Domain, FlowTemplate
from samplicator.views import sampling
from samplicator.views.flow import unit


class Exporter(sampling.Sampling):
    """An observation domain of an exporter session."""

    place: Annotated[str, "WORKER.NUMBER, the value for `after`."]
    exporter: str
    port: int
    protocol: str
    domain: Annotated[int, "Domain in the header; for sFlow the number of the sub-agent."]
    agent: Annotated[str | None, "sFlow: the agent's address in the header."]
    listener: str
    matched: Annotated[bool, "true when a rule matches the exporter."]
    first_seen_unix: float
    last_seen_unix: float
    silent_seconds: float
    datagrams_per_second: Annotated[float, "Mean rate since the domain was first seen."]
    mean_bytes: float
    unit: Annotated[str, "Unit of `units` and `lost`: records, flows, packets, all records or datagrams."]
    numbered: Annotated[bool, "true when the exporter sends sequence numbers."]
    datagrams: int
    bytes: int
    units: int
    lost: Annotated[int, "Lost before samplicator, by the sequence numbers."]
    lost_last: Annotated[int, "Part of `lost`: gaps before the last datagrams of an exporter that is silent."]
    late: int
    repeated: int
    restarts: int
    unknown: Annotated[int, "Datagrams with data whose template is not known."]
    malformed: int
    templates_added: int
    templates_seen: int
    withdrawn: int
    templates: int
    options_templates: int
    options_data: int
    next_sequence: int
    uptime_seconds: Annotated[float | None, "From the last header."]
    clock_skew_seconds: Annotated[
        float | None, "Clock of the exporter minus clock of this host when that datagram arrived."
    ]


class Alias(TypedDict):
    """Which exporter has a number that replaces its observation domain in copies."""

    unique: Annotated[int, "Domain in copies."]
    exporter: str
    port: int
    protocol: str
    domain: Annotated[int, "Domain in the exporter's datagrams."]
    held_by: Annotated[
        str,
        "exporter = all sessions of the exporter; session = this one only; another one has the same domain.",
    ]
    silent_seconds: float


class ExporterPage(TypedDict):
    """A page of observation domains."""

    exporters: list[Exporter]
    after: Annotated[str | None, "Start of the next page; null on the last page."]


class DomainPage(TypedDict):
    """A page of assigned numbers."""

    domains: list[Alias]
    unlisted: Annotated[int, "Numbers that were assigned but not stored, because the table was full."]
    after: Annotated[str | None, "Start of the next page; null on the last page."]


def exporter(session: Domain, listeners: Mapping[int, str], templates: Sequence[FlowTemplate] = ()) -> Exporter:
    """listeners: names by slot. templates: those of options, with their data, for the samplers."""
    counters = dict(session.counters)
    counters.pop("pending", None)
    lived = session.last_seen_unix - session.first_seen_unix
    datagrams = counters["datagrams"]
    row = {
        "place": f"{session.worker}.{session.number}",
        "exporter": session.address,
        "port": session.port,
        "protocol": session.protocol,
        "domain": session.domain,
        **agent(session),
        "listener": listeners.get(session.listener, ""),
        "matched": not session.unmatched,
        "first_seen_unix": session.first_seen_unix,
        "last_seen_unix": session.last_seen_unix,
        "silent_seconds": max(0.0, time.time() - session.last_seen_unix),
        "datagrams_per_second": (datagrams - 1) / lived if lived > 0 and datagrams > 1 else 0.0,
        "mean_bytes": counters["bytes"] / datagrams if datagrams else 0.0,
        "unit": unit(session),
        "numbered": session.style != "none",
        **counters,  # FLOW_DOMAIN_FIELDS
        "lost": session.lost,
        "lost_last": session.lost - session.counters["lost"],
        "templates": session.templates,
        "options_templates": session.options_templates,
        "options_data": session.options_data,
        "next_sequence": session.next_sequence,
        **sampling.of(session, templates),
        **_clock(session),
    }
    return cast(Exporter, row)


def domain(row: AliasReading) -> Alias:
    """Who stands behind a number in copies."""
    return {
        "unique": row.alias,
        "exporter": row.address,
        "port": row.port,
        "protocol": row.protocol,
        "domain": row.domain,
        "held_by": "exporter" if row.shared else "session",
        "silent_seconds": row.silent_seconds,
    }


def agent(session: Domain | Activity) -> dict[str, Any]:
    """`agent` of a row, and `domain` where it is sFlow: the agent's address as it says itself, and the number of the
    sub-agent (sFlow v5, sample_datagram_v5).
    """
    p = session.header
    if session.protocol != "sflow5" or len(p) < 28:
        return {"agent": None}
    end = 12 if p[7] == 1 else 24
    return {"agent": str(ipaddress.ip_address(p[8:end])), "domain": int.from_bytes(p[end : end + 4], "big")}


def _clock(session: Domain) -> dict[str, float | None]:
    """What the last header says of the exporter's clock; skew: its clock minus ours when that datagram came."""
    p, protocol = session.header, session.protocol
    up = said = None
    if protocol == "ipfix" and len(p) >= 8:
        said = int.from_bytes(p[4:8], "big")
    elif protocol == "sflow5" and len(p) >= 28:
        up = int.from_bytes(p[20:24] if p[7] == 1 else p[32:36], "big") / 1e3
    elif protocol.startswith("netflow") and len(p) >= 12:
        up = int.from_bytes(p[4:8], "big") / 1e3
        said = int.from_bytes(p[8:12], "big")
    return {"uptime_seconds": up, "clock_skew_seconds": None if said is None else said - session.last_seen_unix}
