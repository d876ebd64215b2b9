"""Flow telemetry of all exporters together: totals by protocol, and who sends without a rule.

Pure: readings in, plain values out. Called by http and by the other views; the command line draws the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, TypedDict, cast

from samplicator.readings import Activity, Domain, FlowReading, Unmatched

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
SHOWN: Final = 20
"""Exporters that no rule matches which are named; all are counted."""


class Stranger(TypedDict):
    """An exporter that no rule matches."""

    exporter: str
    listener: str
    datagrams: Annotated[int, "Loss of this exporter, as far as it is stored."]


class WithoutRule(TypedDict):
    """Exporters all of whose datagrams match no rule."""

    count: int
    exporters: Annotated[list[Stranger], "The exporters with the most datagrams."]


class Protocol(TypedDict):
    """Counters of one protocol."""

    datagrams: int
    malformed: Annotated[int, "Datagrams that break the rules of the protocol; they are forwarded."]
    unit: Annotated[str, "Unit of `lost`: flows, packets, records or datagrams."]
    lost: Annotated[int, "Lost before samplicator, by the exporters' sequence numbers."]
    restarts: Annotated[int, "Restarts of sequence numbers; a restart is not a loss."]


class Totals(TypedDict):
    """The flow stage, all exporters and workers together."""

    protocols: dict[str, Protocol]
    memory_bytes: Annotated[int, "Memory reserved for flow state, used or not."]
    domains: Annotated[int, "Observation domains known."]
    exporters: Annotated[int, "Exporter sessions (address and port) known."]
    templates: int
    options_templates: int
    options_data: Annotated[int, "Options data records stored."]
    blocks: Annotated[int, "Memory blocks in use for templates and options data."]
    states: Annotated[int, "Pairs of receiver and observation domain whose sequence numbers are rewritten."]
    unmatched_domains: Annotated[int, "Observation domains known whose exporter no rule matches."]
    refused_domains: int
    evicted_domains: int
    forgotten_domains: int
    refused_items: int
    evicted_items: int
    expired_items: int
    refused_states: int
    renumbered: Annotated[int, "Copies sent with a rewritten sequence number."]
    kept_unknown: Annotated[int, "IPFIX copies whose records could not be counted."]
    replayed_datagrams: Annotated[int, "Datagrams with replayed templates and options data."]
    replayed_records: int
    unmatched: WithoutRule


def unit(session: Domain | Activity) -> str:
    """What the sequence numbers of a domain count, as learnt from it, or else as its protocol says."""
    return session.style if session.style not in ("", "none") else UNITS[session.protocol]


def without_rule(exporters: Sequence[Unmatched]) -> WithoutRule:
    """How many there are, and the busiest of them."""
    return {
        "count": len(exporters),
        "exporters": [
            {"exporter": item.address, "listener": item.listener, "datagrams": item.datagrams}
            for item in exporters[:SHOWN]
        ],
    }


def protocols(flow: FlowReading) -> Mapping[str, Protocol]:
    """Sums of all exporters by protocol."""
    return {
        name: {
            "datagrams": count,
            "malformed": flow.malformed.get(name, 0),
            "unit": UNITS[name],
            "lost": flow.lost.get(name, 0),
            "restarts": flow.restarts.get(name, 0),
        }
        for name, count in flow.datagrams.items()
    }


def totals(flow: FlowReading, strangers: Sequence[Unmatched] = ()) -> Totals:
    """strangers: exporters that no rule matches."""
    facts = {
        "protocols": protocols(flow),
        "memory_bytes": flow.memory_bytes,
        **flow.counters,  # FLOW_COUNTER_FIELDS, of which `unmatched` has another name here
        "unmatched_domains": flow.counters.get("unmatched", 0),
        "unmatched": without_rule(strangers),
    }
    return cast(Totals, facts)
