"""What every observation domain has counted, in short: for those who look at all of them often.

`exporters` says everything about a domain and costs as much; this is what a table needs that is drawn anew every few
seconds, of ten thousand exporters. Pure: readings in, plain values out. Called by http; `samplicator top` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypedDict

from samplicator.config.address import address_text
from samplicator.readings import Activity
from samplicator.views.exporters import agent
from samplicator.views.flow import unit

SETTLE_SECONDS: Final = 2.0
"""Silence after which gaps that may close are counted as lost (as in Domain.lost)."""


class Active(TypedDict):
    """An observation domain of an exporter session, in short. The fields are those of `exporters`."""

    place: Annotated[str, "WORKER.NUMBER, the value for `after`."]
    exporter: str
    port: int
    protocol: str
    domain: Annotated[int, "Domain in the header; for sFlow the number of the sub-agent."]
    agent: Annotated[str | None, "sFlow: the agent's address in the header."]
    listener: str
    matched: Annotated[bool, "true when a rule matches the exporter."]
    known_seconds: Annotated[float, "Since the domain was first seen."]
    silent_seconds: float
    datagrams: int
    bytes: int
    unit: Annotated[str, "Unit of `lost`: records, flows, packets, all records or datagrams."]
    lost: Annotated[int, "Lost before samplicator, by the sequence numbers."]
    restarts: int
    unknown: Annotated[int, "Datagrams with data whose template is not known."]
    malformed: int
    templates: int
    options_templates: int
    options_data: int
    templates_added: int


class ActivityPage(TypedDict):
    """A page of observation domains, in short."""

    activity: list[Active]
    after: Annotated[str | None, "Start of the next page; null on the last page."]


def active(now: Activity, worker: int, listeners: Mapping[int, str], now_ns: int) -> dict[str, Any]:
    """An Active. listeners: names by slot. now_ns: CLOCK_MONOTONIC."""
    silent = max(0, now_ns - now.seen_ns) / 1e9
    row = {
        "place": f"{worker}.{now.number}",
        "exporter": address_text(now.address),
        "port": now.port,
        "protocol": now.protocol,
        "domain": now.domain,
        "agent": None,
        "listener": listeners.get(now.listener, ""),
        "matched": not now.unmatched,
        "known_seconds": round(max(0, now_ns - now.first_ns) / 1e9, 3),
        "silent_seconds": round(silent, 1),
        "datagrams": now.datagrams,
        "bytes": now.bytes,
        "unit": unit(now),
        "lost": now.lost + (now.pending if silent >= SETTLE_SECONDS else 0),
        "restarts": now.restarts,
        "unknown": now.unknown,
        "malformed": now.malformed,
        "templates": now.templates,
        "options_templates": now.options_templates,
        "options_data": now.options_data,
        "templates_added": now.templates_added,
    }
    return row if now.protocol != "sflow5" else row | agent(now)
