"""The rows of the catalogue that the flow stage fills.

Pure data, as the catalogue is, which has these rows in its table. `origin` is explained there.
"""

from __future__ import annotations

from typing import Final

from samplicator.views.metric import Metric

PROTOCOLS: Final = ("netflow1", "netflow5", "netflow7", "netflow8", "netflow9", "ipfix", "sflow5", "other")
"""What a datagram is, by its header; the same words as the compiled FLOW_KIND_NAMES (a guard test compares)."""

_P = ("protocol",)


def _by_protocol(*protocols: str) -> tuple[tuple[str, str], ...]:
    return tuple((protocol, protocol) for protocol in protocols)


_KNOWN = PROTOCOLS[:-1]

FLOW_METRICS: Final[tuple[Metric, ...]] = (
    Metric(
        "flow_datagrams_total",
        "counter",
        _P,
        "Matched datagrams of listeners with flow, by what their header says.",
        "protocols.datagrams",
        split=_by_protocol(*PROTOCOLS),
    ),
    Metric(
        "flow_malformed_datagrams_total",
        "counter",
        _P,
        "Of them, those that break their protocol's rules: forwarded untouched, nothing learnt.",
        "protocols.malformed",
        split=_by_protocol(*_KNOWN),
    ),
    Metric(
        "flow_sequence_lost_datagrams_total",
        "counter",
        _P,
        "Datagrams missing before us by their sequence numbers, for protocols that number datagrams.",
        "protocols.lost",
        split=_by_protocol("netflow9", "sflow5"),
    ),
    Metric(
        "flow_sequence_lost_records_total",
        "counter",
        _P,
        "Flow records missing before us by their sequence numbers, for protocols that number records.",
        "protocols.lost",
        split=_by_protocol("netflow5", "netflow7", "netflow8", "ipfix"),
    ),
    Metric(
        "flow_sequence_restarts_total",
        "counter",
        _P,
        "Times an exporter's sequence began anew: no loss.",
        "protocols.restarts",
        split=_by_protocol(*_KNOWN[1:]),
    ),
    Metric("flow_domains", "gauge", (), "Observation domains of exporter sessions that are known.", "flow.domains"),
    Metric(
        "flow_unmatched_domains",
        "gauge",
        (),
        "Of these, the domains of exporters that no rule matches.",
        "flow.unmatched",
    ),
    Metric("flow_exporters", "gauge", (), "Exporter sessions (address and port) that are known.", "flow.exporters"),
    Metric(
        "flow_templates",
        "gauge",
        ("kind",),
        "Templates known, of data and of options.",
        "flow",
        split=(("data", "templates"), ("options", "options_templates")),
    ),
    Metric("flow_options_data", "gauge", (), "Rows of options data that are kept.", "flow.options_data"),
    Metric("flow_record_blocks", "gauge", (), "Blocks of template and options memory in use.", "flow.blocks"),
    Metric("flow_memory_bytes", "gauge", (), "Memory reserved for flow data, used or not.", "protocols.memory_bytes"),
    Metric("flow_renumbered_domains", "gauge", (), "Pairs of receiver and domain that are renumbered.", "flow.states"),
    Metric(
        "flow_refused_total",
        "counter",
        ("what",),
        "For want of memory: domains and records not learnt, copies not renumbered; datagrams passed as they were.",
        "flow",
        split=(("domain", "refused_domains"), ("record", "refused_items"), ("renumbering", "refused_states")),
    ),
    Metric(
        "flow_evicted_total",
        "counter",
        ("what",),
        "Domains and records that made room for others.",
        "flow",
        split=(("domain", "evicted_domains"), ("record", "evicted_items")),
    ),
    Metric(
        "flow_expired_total",
        "counter",
        ("what",),
        "Domains not seen for a day, templates and options data not repeated for two hours.",
        "flow",
        split=(("domain", "forgotten_domains"), ("record", "expired_items")),
    ),
    Metric(
        "flow_renumbered_datagrams_total",
        "counter",
        (),
        "Copies sent with another sequence number, to receivers that sample or got templates in between.",
        "flow.renumbered",
    ),
    Metric(
        "flow_uncounted_datagrams_total",
        "counter",
        (),
        "IPFIX copies to such receivers whose records could not be counted, their template being unknown.",
        "flow.kept_unknown",
    ),
    Metric(
        "flow_replayed_datagrams_total",
        "counter",
        (),
        "Datagrams of templates and options data made here, for receivers that are new, came back or are due.",
        "flow.replayed_datagrams",
    ),
    Metric("flow_replayed_records_total", "counter", (), "Records in them.", "flow.replayed_records"),
)
