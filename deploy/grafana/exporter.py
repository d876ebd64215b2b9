"""Exporter: what the exporters send, and what was lost before the relay."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from parts import BY_EXPORTER, EXPORTER, SELECT, bars, lines, number, rate
from parts import made as dashboard

SENT = "samplicator_exporter_datagrams_total"
BYTES = "samplicator_exporter_bytes_total"
LOST = "samplicator_exporter_lost_total"

GLANCE = (
    number(
        "Exporters known",
        "none",
        f"sum(samplicator_flow_exporters{{{SELECT}}})",
        "Exporter sessions (address and port) on listeners with flow.",
    ),
    number(
        "Exporters shown here",
        "none",
        f"count(count by (exporter) ({SENT}{{{EXPORTER}}}))",
        "Each relay counts the 200 exporters that send the most by name. The others are in the sums of the other "
        "dashboards, and in `samplicator exporters`.",
    ),
    number("Their datagrams", "pps", rate(SENT, EXPORTER), "Datagrams of the chosen exporters."),
    number("Their bytes", "Bps", rate(BYTES, EXPORTER), "UDP payload bytes of the same."),
    number(
        "Lost before samplicator",
        "ops",
        rate(LOST, EXPORTER),
        "Units (datagrams, packets or records, as the exporter numbers) that are missing in the sequence numbers.",
        red_above=0.001,
    ),
    number(
        "Match no rule",
        "none",
        f"sum(samplicator_flow_unmatched_domains{{{SELECT}}})",
        "Observation domains known whose exporter no rule matches; `samplicator status` names the exporters.",
        red_above=1,
    ),
)

EACH = (
    lines("Datagrams", "pps", [(rate(SENT, EXPORTER, "exporter"), "{{exporter}}")], "Datagrams received, by exporter."),
    lines(
        "Bytes",
        "Bps",
        [(rate(BYTES, EXPORTER, "exporter"), "{{exporter}}")],
        "UDP payload bytes received, by exporter.",
    ),
    lines(
        "Mean size of a datagram",
        "bytes",
        [
            (
                f"{rate(BYTES, EXPORTER, 'exporter')} / {rate(SENT, EXPORTER, 'exporter')}",
                "{{exporter}}",
            )
        ],
        "Bytes per datagram. Near the MTU: the exporter fills its datagrams. Above 1472: fragments on Ethernet.",
    ),
    bars(
        "The busiest",
        "pps",
        [(f"topk(10, {rate(SENT, EXPORTER, 'exporter')})", "{{exporter}}")],
        "The ten exporters that send the most now.",
    ),
    bars(
        "Losses before samplicator",
        "ops",
        [(f"topk(10, {rate(LOST, EXPORTER, 'exporter, unit')})", "{{exporter}} {{unit}}")],
        "The ten exporters that lose the most, by their sequence numbers: between the exporter and this relay.",
    ),
)

PROTOCOLS = (
    lines(
        "Datagrams by protocol",
        "pps",
        [(rate("samplicator_flow_datagrams_total", SELECT, "protocol"), "{{protocol}}")],
        "Protocol by the header of the datagram, for listeners with flow.",
    ),
    lines(
        "Lost before samplicator, by protocol",
        "ops",
        [
            (rate("samplicator_flow_sequence_lost_datagrams_total", SELECT, "protocol"), "{{protocol}} datagrams"),
            (rate("samplicator_flow_sequence_lost_records_total", SELECT, "protocol"), "{{protocol}} records"),
        ],
        "Gaps in the sequence numbers of all exporters: lost in the network or in this host's kernel.",
    ),
    lines(
        "Restarts and malformed datagrams",
        "ops",
        [
            (rate("samplicator_flow_sequence_restarts_total", SELECT, "protocol"), "{{protocol}} restarts"),
            (rate("samplicator_flow_malformed_datagrams_total", SELECT, "protocol"), "{{protocol}} malformed"),
        ],
        "restarts: sequence numbers that began anew. malformed: datagrams that break the rules of their protocol.",
    ),
)

TEMPLATES = (
    lines(
        "Templates known",
        "none",
        [(f"sum by (kind) (samplicator_flow_templates{{{SELECT}}})", "{{kind}}")],
        "Data templates and options templates of NetFlow v9 and IPFIX exporters.",
    ),
    lines(
        "Observation domains",
        "none",
        [
            (f"sum(samplicator_flow_domains{{{SELECT}}})", "known"),
            (f"sum(samplicator_flow_unmatched_domains{{{SELECT}}})", "of exporters that no rule matches"),
        ],
        "Observation domains of all exporter sessions.",
    ),
    lines(
        "Flow memory that is full",
        "ops",
        [
            (rate("samplicator_flow_refused_total", SELECT, "what"), "{{what}} refused"),
            (rate("samplicator_flow_evicted_total", SELECT, "what"), "{{what}} removed"),
        ],
        "Above 0: raise flow_memory. Datagrams are forwarded unchanged; only what is known of exporters suffers.",
    ),
)


def made() -> Dashboard:
    return dashboard(
        "exporter",
        "What the exporters send, and what was lost before samplicator.",
        [BY_EXPORTER],
        [("At a glance", GLANCE), ("By exporter", EACH), ("By protocol", PROTOCOLS), ("Templates", TEMPLATES)],
    )
