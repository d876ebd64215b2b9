"""The flow stage's knowledge as plain values for JSON: exporters, templates with their fields by name, totals.

Pure: readings in, dicts out. Called by http. Units of `units` and `lost` by protocol: see UNITS.
"""

from __future__ import annotations

import functools
import ipaddress
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final

from samplicator.readings import AliasReading, FlowField, FlowReading, FlowSession, FlowTemplate, Unmatched
from samplicator.views import sampling

UNITS: Final = {
    "netflow1": "flows",
    "netflow5": "flows",
    "netflow7": "flows",
    "netflow8": "flows",
    "netflow9": "packets",
    "ipfix": "records",
    "sflow5": "datagrams",
    "other": "datagrams",
}
"""What the sequence numbers of a protocol count."""
_VARIABLE: Final = 65535
SHOWN: Final = 20
"""Exporters that no rule matches which are named; all are counted."""
_V9_SCOPES: Final = {1: "system", 2: "interface", 3: "lineCard", 4: "cache", 5: "template"}


@functools.cache
def element_names() -> Mapping[int, str]:
    """IANA's names of IPFIX information elements."""
    text = resources.files("samplicator").joinpath("elements.txt").read_text(encoding="ascii")
    pairs = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return {int(number): name for number, name in pairs}


def field_name(field: FlowField, protocol: str) -> str:
    """IANA's name of a field; `eENTERPRISE/NUMBER` for what is not IANA's, `NUMBER` for what it does not know."""
    if field.enterprise == 29305:  # RFC 5103: the same of the other direction
        name = element_names().get(field.element, str(field.element))
        return f"reverse{name[:1].upper()}{name[1:]}"
    if field.enterprise:
        return f"e{field.enterprise}/{field.element}"
    if field.scope and protocol == "netflow9":
        return _V9_SCOPES.get(field.element, str(field.element))
    return element_names().get(field.element, str(field.element))


def unmatched(exporters: Sequence[Unmatched]) -> dict[str, Any]:
    """Exporters all of whose datagrams match no rule: how many, and the busiest of them."""
    shown = [
        {"exporter": item.address, "listener": item.listener, "datagrams": item.datagrams} for item in exporters[:SHOWN]
    ]
    return {"count": len(exporters), "exporters": shown}


def totals(flow: FlowReading, without_rule: Sequence[Unmatched] = ()) -> dict[str, Any]:
    """Of all exporters and workers, by protocol."""
    protocols = {
        name: {
            "datagrams": count,
            "malformed": flow.malformed.get(name, 0),
            "unit": UNITS[name],
            "lost": flow.lost.get(name, 0),
            "restarts": flow.restarts.get(name, 0),
        }
        for name, count in flow.datagrams.items()
    }
    facts = {"protocols": protocols, "memory_bytes": flow.memory_bytes, **flow.counters}
    return {**facts, "unmatched_domains": flow.counters.get("unmatched", 0), "unmatched": unmatched(without_rule)}


def exporter(
    session: FlowSession, listeners: Mapping[int, str], templates: Sequence[FlowTemplate] = ()
) -> dict[str, Any]:
    """One observation domain of one exporter session. templates: those of options, with their data, for the samplers.
    domain: of sFlow the sub-agent, whose agent is `agent`; else the number in the header.
    """
    counters = dict(session.counters)
    counters.pop("pending", None)
    lived = session.last_seen_unix - session.first_seen_unix
    datagrams = counters["datagrams"]
    return {
        "place": f"{session.worker}.{session.number}",
        "exporter": session.address,
        "port": session.port,
        "protocol": session.protocol,
        "domain": session.domain,
        **_agent(session),
        "listener": listeners.get(session.listener, ""),
        "matched": not session.unmatched,
        "first_seen_unix": session.first_seen_unix,
        "last_seen_unix": session.last_seen_unix,
        "silent_seconds": max(0.0, time.time() - session.last_seen_unix),
        "datagrams_per_second": (datagrams - 1) / lived if lived > 0 and datagrams > 1 else 0.0,
        "mean_bytes": counters["bytes"] / datagrams if datagrams else 0.0,
        "unit": session.style if session.style not in ("", "none") else UNITS[session.protocol],
        "numbered": session.style != "none",
        **counters,
        "lost": session.lost,
        "lost_last": session.lost - session.counters["lost"],  # in gaps before the last datagrams of a silent exporter
        "templates": session.templates,
        "options_templates": session.options_templates,
        "options_data": session.options_data,
        "next_sequence": session.next_sequence,
        **sampling.of(session, templates),
        **_clock(session),
    }


def alias(row: AliasReading) -> dict[str, Any]:
    """Who stands behind a domain in copies. unique: the number there; held_by: exporter = its sessions in turn,
    session = this one alone, because another of the same exporter uses the domain too.
    """
    return {
        "unique": row.alias,
        "exporter": row.address,
        "port": row.port,
        "protocol": row.protocol,
        "domain": row.domain,
        "held_by": "exporter" if row.shared else "session",
        "silent_seconds": row.silent_seconds,
    }


def _agent(session: FlowSession) -> dict[str, Any]:
    """sFlow: the agent's address as it says itself, and the number of the sub-agent (sFlow v5, sample_datagram_v5)."""
    p = session.header
    if session.protocol != "sflow5" or len(p) < 28:
        return {"agent": None}
    end = 12 if p[7] == 1 else 24
    return {"agent": str(ipaddress.ip_address(p[8:end])), "domain": int.from_bytes(p[end : end + 4], "big")}


def _clock(session: FlowSession) -> dict[str, float | None]:
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


def template(item: FlowTemplate, protocol: str) -> dict[str, Any]:
    """A template or options template; fields in order."""
    return {
        "id": item.id,
        "kind": item.kind,
        "first_seen_unix": item.first_seen_unix,
        "last_seen_unix": item.last_seen_unix,
        "record_bytes": item.record_bytes or None,
        "fields": [
            {
                "name": field_name(field, protocol),
                "element": field.element,
                "enterprise": field.enterprise,
                "bytes": None if field.length == _VARIABLE else field.length,
                "scope": field.scope,
            }
            for field in item.fields
        ],
    }
