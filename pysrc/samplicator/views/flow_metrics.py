"""The rows of the catalogue that the flow stage fills.

Pure data, as the catalogue is, which has these rows in its table. `origin` is explained there.
"""

from __future__ import annotations

from typing import Final

from samplicator.views.metric import Metric

PROTOCOLS: Final = ("netflow1", "netflow5", "netflow7", "netflow8", "netflow9", "ipfix", "sflow5", "other")
"""What a datagram is, by its header; the same words as the compiled FLOW_KIND_NAMES (a guard test compares)."""

_P = ("protocol",)
_E = ("exporter",)


def _by_protocol(*protocols: str) -> tuple[tuple[str, str], ...]:
    return tuple((protocol, protocol) for protocol in protocols)


_KNOWN = PROTOCOLS[:-1]

FLOW_METRICS: Final[tuple[Metric, ...]] = (
    Metric(
        "flow_datagrams_total",
        "counter",
        _P,
        'Matched datagrams of listeners with flow = "auto", by the protocol in their header.',
        "protocols.datagrams",
        split=_by_protocol(*PROTOCOLS),
    ),
    Metric(
        "flow_malformed_datagrams_total",
        "counter",
        _P,
        "Datagrams that break the rules of their protocol; they are forwarded unchanged and not parsed further.",
        "protocols.malformed",
        split=_by_protocol(*_KNOWN),
    ),
    Metric(
        "flow_sequence_lost_datagrams_total",
        "counter",
        _P,
        "Datagrams lost before samplicator by the exporters' sequence numbers, for protocols that number datagrams.",
        "protocols.lost",
        split=_by_protocol("netflow9", "sflow5"),
    ),
    Metric(
        "flow_sequence_lost_records_total",
        "counter",
        _P,
        "Flow records lost before samplicator by the exporters' sequence numbers, for protocols that number records.",
        "protocols.lost",
        split=_by_protocol("netflow5", "netflow7", "netflow8", "ipfix"),
    ),
    Metric(
        "flow_sequence_restarts_total",
        "counter",
        _P,
        "Times that an exporter's sequence numbers restarted; a restart is not a loss.",
        "protocols.restarts",
        split=_by_protocol(*_KNOWN[1:]),
    ),
    Metric("flow_domains", "gauge", (), "Observation domains known, of all exporter sessions.", "flow.domains"),
    Metric(
        "flow_unmatched_domains",
        "gauge",
        (),
        "Observation domains known whose exporter no rule matches.",
        "flow.unmatched",
    ),
    Metric("flow_exporters", "gauge", (), "Exporter sessions (address and port) known.", "flow.exporters"),
    Metric(
        "flow_templates",
        "gauge",
        ("kind",),
        "Templates known: data templates and options templates.",
        "flow",
        split=(("data", "templates"), ("options", "options_templates")),
    ),
    Metric("flow_options_data", "gauge", (), "Options data records stored.", "flow.options_data"),
    Metric("flow_record_blocks", "gauge", (), "Memory blocks in use for templates and options data.", "flow.blocks"),
    Metric("flow_memory_bytes", "gauge", (), "Memory reserved for flow state, used or not.", "protocols.memory_bytes"),
    Metric(
        "flow_renumbered_domains",
        "gauge",
        (),
        "Pairs of receiver and observation domain whose sequence numbers are rewritten.",
        "flow.states",
    ),
    Metric(
        "flow_refused_total",
        "counter",
        ("what",),
        "Domains, records and renumberings refused because flow memory is full; datagrams are forwarded unchanged.",
        "flow",
        split=(("domain", "refused_domains"), ("record", "refused_items"), ("renumbering", "refused_states")),
    ),
    Metric(
        "flow_evicted_total",
        "counter",
        ("what",),
        "Domains and records removed to make room for others.",
        "flow",
        split=(("domain", "evicted_domains"), ("record", "evicted_items")),
    ),
    Metric(
        "flow_expired_total",
        "counter",
        ("what",),
        "Domains removed after 24 hours of silence; templates and options data removed after template_life_minutes.",
        "flow",
        split=(("domain", "forgotten_domains"), ("record", "expired_items")),
    ),
    Metric(
        "flow_renumbered_datagrams_total",
        "counter",
        (),
        "Copies sent with a rewritten sequence number, to receivers that sample or got replayed templates.",
        "flow.renumbered",
    ),
    Metric(
        "flow_uncounted_datagrams_total",
        "counter",
        (),
        "IPFIX copies to renumbered receivers whose records could not be counted because the template is unknown.",
        "flow.kept_unknown",
    ),
    Metric(
        "flow_replayed_datagrams_total",
        "counter",
        (),
        "Datagrams with replayed templates and options data, for receivers that are new, came back or need a refresh.",
        "flow.replayed_datagrams",
    ),
    Metric(
        "flow_replayed_records_total",
        "counter",
        (),
        "Templates and options data records in replayed datagrams.",
        "flow.replayed_records",
    ),
    # ---- by exporter
    Metric(
        "exporter_datagrams_total",
        "counter",
        _E,
        "Datagrams of the 200 exporters that send the most, each since it is one of them; counted every 5 seconds.",
        "tally.datagrams",
    ),
    Metric("exporter_bytes_total", "counter", _E, "UDP payload bytes of these exporters.", "tally.bytes"),
    Metric(
        "exporter_lost_total",
        "counter",
        (*_E, "unit"),
        "Units lost before samplicator by the sequence numbers of these exporters; unit: what the exporter numbers.",
        "tally.lost",
    ),
)
