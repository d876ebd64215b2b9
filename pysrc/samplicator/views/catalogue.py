"""The catalogue: every metric this program exports, in one table.

Purpose: name, kind, labels, help and origin of each series in one place; metrics renders from it, the guard tests
hold the compiled field tuples, the dashboard, the alert rules and the documents against it. Invariants: pure data,
imports only what a row is; a counter ends in `_total`, a unit is in the name, no label is unbounded (listeners,
receivers and workers are configured, reasons are fixed). Called by metrics, http and the tests. It must never hold a
value.

`origin` says where the number comes from: `rx.FIELD`, `tx.FIELD`, `worker.FIELD` are fields of the compiled counters
(RX_FIELDS, TX_FIELDS, WORKER_FIELDS); `flow.FIELD` of the flow stage (FLOW_COUNTER_FIELDS); `protocols.ATTR` of
FlowReading, by protocol; `listener.ATTR`, `receiver.ATTR`, `member.ATTR`, `reader.ATTR`, `plan.ATTR` are attributes of
the supervisor's readings (ListenerReading, ReceiverReading, MemberReading, WorkerReading, Readings); `reload.ATTR` of
the Reloader; `state.ATTR` of ServiceState; `here` = made while collecting.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from samplicator.views.metric import Metric

PROTOCOLS: Final = ("netflow1", "netflow5", "netflow7", "netflow8", "netflow9", "ipfix", "sflow5", "other")
"""What a datagram is, by its header; the same words as the compiled FLOW_KIND_NAMES (a guard test compares)."""

SEND_REASONS: Final = (
    "no_route",
    "no_neighbor",
    "message_too_long",
    "no_buffer_space",
    "refused",
    "permission",
    "other",
    "loop",
)
"""Why a copy was not sent; the same words, in the same order, as the compiled REASONS (a guard test compares)."""

STATES: Final = ("up", "refusing", "unreachable", "looping")
"""States of a receiver; the same words as those of probes (a guard test compares)."""

_L = ("listener",)
_R = ("receiver",)
_W = ("worker",)
_M = ("pool", "receiver")
_P = ("protocol",)
_NS = 1e-9


def _by_protocol(*protocols: str) -> tuple[tuple[str, str], ...]:
    return tuple((protocol, protocol) for protocol in protocols)


_KNOWN = PROTOCOLS[:-1]

CATALOGUE: Final[tuple[Metric, ...]] = (
    # ---- received
    Metric("receive_datagrams_total", "counter", _L, "Datagrams read from the listener's sockets.", "rx.datagrams"),
    Metric("receive_bytes_total", "counter", _L, "UDP payload bytes of the datagrams read.", "rx.bytes"),
    Metric(
        "receive_matched_datagrams_total",
        "counter",
        _L,
        "Datagrams read that at least one receiver gets (before sampling).",
        "rx.matched",
    ),
    Metric(
        "receive_truncated_datagrams_total",
        "counter",
        _L,
        "Datagrams longer than datapath.max_datagram, dropped: half a datagram is a corrupt one.",
        "rx.truncated",
    ),
    Metric(
        "receive_truncated_bytes_total",
        "counter",
        _L,
        "Bytes read of the datagrams dropped as too long (what fitted into datapath.max_datagram).",
        "rx.truncated_bytes",
    ),
    Metric(
        "receive_rejected_datagrams_total",
        "counter",
        (*_L, "reason"),
        "Datagrams read and sent to nobody: a rule that denies (acl), no rule that matches (no_route_rule).",
        "rx",
        split=(("acl", "denied"), ("no_route_rule", "unmatched")),
    ),
    Metric(
        "receive_errors_total",
        "counter",
        (*_L, "reason"),
        "Receive calls that failed, by errno; other: also packets in a ring that are broken (checksum, lengths).",
        "rx",
        split=(
            ("again", "errors_again"),
            ("intr", "errors_intr"),
            ("nomem", "errors_nomem"),
            ("other", "errors_other"),
        ),
    ),
    Metric(
        "receive_kernel_drops_total",
        "counter",
        _L,
        "Datagrams the kernel dropped, the listener's buffer (SO_MEMINFO) or ring being full; in no other series.",
        "listener.kernel_drops",
    ),
    Metric(
        "receive_batch_datagrams",
        "histogram",
        _L,
        "Datagrams a receive call; its count is the number of calls.",
        "listener.batch_counts",
    ),
    Metric(
        "receive_buffer_bytes",
        "gauge",
        _L,
        "Receive buffers granted, in the kernel's accounting (twice what was asked for), and rings of the listener.",
        "listener.buffer_bytes",
    ),
    Metric(
        "receive_queue_bytes",
        "gauge",
        _L,
        "Kernel memory of the datagrams that wait to be read.",
        "listener.queue_bytes",
    ),
    Metric("listener_up", "gauge", _L, "1 when all sockets of the listener are bound and read.", "listener.up"),
    Metric(
        "listener_info",
        "info",
        (*_L, "address", "port"),
        "A bound socket of the listener.",
        "listener.sockets",
    ),
    # ---- sent
    Metric(
        "send_offered_datagrams_total",
        "counter",
        _R,
        "Copies that rules made for the receiver: skipped + sent + errors.",
        "tx.offered",
    ),
    Metric("send_datagrams_total", "counter", _R, "Copies the kernel accepted.", "tx.sent"),
    Metric("send_bytes_total", "counter", _R, "UDP payload bytes of the copies the kernel accepted.", "tx.sent_bytes"),
    Metric(
        "send_skipped_datagrams_total",
        "counter",
        (*_R, "reason"),
        "Copies left out on purpose: sampled_out by the receiver's freq.",
        "tx",
        split=(("sampled_out", "sampled_out"),),
    ),
    Metric(
        "send_errors_total",
        "counter",
        (*_R, "reason"),
        "Copies that could not be sent, by reason.",
        "tx",
        split=tuple((reason, f"dropped_{reason}") for reason in SEND_REASONS),
    ),
    Metric("send_calls_total", "counter", _R, "Send system calls.", "tx.calls"),
    Metric(
        "send_retries_total",
        "counter",
        _R,
        "Send calls made again after the kernel had no room.",
        "tx.retries",
    ),
    Metric(
        "receiver_template_replays_total",
        "counter",
        _R,
        "Times all templates of the receiver's exporters were replayed to it.",
        "tx.replays",
    ),
    Metric(
        "send_shared_port_datagrams_total",
        "counter",
        _R,
        'Copies to a receiver with source_port = "per-session" whose session had no port of its own.',
        "tx.shared_port",
    ),
    Metric("receiver_up", "gauge", _R, "1 when the receiver can be reached, as far as known.", "receiver.up"),
    Metric(
        "receiver_state",
        "gauge",
        (*_R, "state"),
        "1 for the state it is in: up, refusing (port closed, probe failed), unreachable (no route or neighbor), "
        "looping (its copies come back).",
        "receiver.state",
        split=tuple((state, state) for state in STATES),
    ),
    Metric("receiver_waiting", "gauge", _R, "1 while a standby gets no copies: its primary is up.", "receiver.waiting"),
    Metric(
        "receiver_takeovers_total",
        "counter",
        _R,
        "Times a standby began to get the copies of its primary.",
        "receiver.takeovers",
    ),
    Metric(
        "receiver_info",
        "info",
        (*_R, "address", "port", "source", "engine"),
        "Where copies go, whose source they carry (own, spoof) and the engine that sends them.",
        "receiver",
    ),
    Metric(
        "receiver_features_given_up",
        "gauge",
        (*_R, "feature"),
        "1 while the kernel refuses the feature for this receiver: copies leave in a slower way; it is tried again.",
        "receiver.gave_up",
        split=(("segment", "segment"), ("transparent", "transparent"), ("packet", "packet")),
    ),
    Metric(
        "receiver_mtu_bytes",
        "gauge",
        _R,
        "Bytes of an IP packet to the receiver at most: of the route, the configuration, or as routers on the way say.",
        "receiver.mtu",
    ),
    Metric("pool_member_up", "gauge", _M, "1 while the pool sends to the member, 0 while it is left out.", "member.up"),
    Metric(
        "pool_exporters",
        "gauge",
        _M,
        "Observation domains of exporters that the member has now; 0 with round-robin.",
        "member.exporters",
    ),
    Metric(
        "forward_latency_seconds",
        "histogram",
        (),
        "From the kernel's receive time stamp to the end of the send call that took the last copy.",
        "plan.latency_counts",
        scale=_NS,
    ),
    # ---- flow telemetry
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
    # ---- workers
    Metric("worker_cpu_seconds_total", "counter", _W, "CPU time of the worker's thread.", "worker.cpu_ns", scale=_NS),
    Metric(
        "worker_busy_seconds_total",
        "counter",
        _W,
        "Time the worker spent outside its wait for datagrams.",
        "worker.busy_ns",
        scale=_NS,
    ),
    Metric("worker_wakeups_total", "counter", _W, "Times the worker's wait ended.", "worker.wakeups"),
    Metric("worker_stalls_total", "counter", _W, "Times a send had to wait for the kernel.", "worker.stalls"),
    Metric(
        "worker_heartbeat_timestamp_seconds",
        "gauge",
        _W,
        "Unix time of the worker's last pass.",
        "worker.heartbeat_ns",
        scale=_NS,
    ),
    Metric("worker_sessions", "gauge", _W, "Exporter sessions in the worker's cache.", "worker.sessions"),
    Metric(
        "worker_session_misses_total",
        "counter",
        _W,
        "Datagrams whose exporter was not in the cache: its rules were walked.",
        "worker.session_misses",
    ),
    Metric(
        "worker_session_evictions_total",
        "counter",
        _W,
        "Exporter sessions that made room for another in the cache.",
        "worker.session_evictions",
    ),
    Metric(
        "worker_session_sockets",
        "gauge",
        _W,
        'Sockets open for exporter sessions with a source port of their own (source_port = "per-session").',
        "worker.session_sockets",
    ),
    Metric("worker_generation", "gauge", _W, "Generation of the plan the worker runs.", "reader.generation"),
    # ---- configuration
    Metric("config_generation", "gauge", (), "Generation of the plan published last.", "plan.generation"),
    Metric("config_reloads_total", "counter", (), "Reloads tried.", "reload.reloads_total"),
    Metric(
        "config_reload_failures_total",
        "counter",
        (),
        "Reloads that failed and left the running configuration untouched.",
        "reload.failures_total",
    ),
    Metric(
        "config_last_reload_successful",
        "gauge",
        (),
        "1 when the last reload (or the start) succeeded.",
        "reload.last_successful",
    ),
    Metric(
        "config_last_reload_success_timestamp_seconds",
        "gauge",
        (),
        "Unix time of the last configuration that was taken over.",
        "reload.last_success_timestamp",
    ),
    Metric(
        "config_hash",
        "gauge",
        (),
        "48 bits of the SHA-256 of the running configuration's text; differs where a fleet drifts apart.",
        "reload.config_hash",
    ),
    # ---- the process
    Metric("control_loop_lag_seconds", "histogram", (), "How late the control loop's timer fires.", "state.loop_lag"),
    Metric("log_messages_total", "counter", ("level",), "Log lines written.", "state.log_messages"),
    Metric(
        "build_info",
        "info",
        ("version", "revision", "python", "cython"),
        "What was built.",
        "here",
    ),
    Metric("collector_duration_seconds", "gauge", (), "Time it took to collect these samples.", "here"),
)

BY_NAME: Final = {metric.name: metric for metric in CATALOGUE}


def series_names() -> Iterator[str]:
    """Every series name of ours that a query may use."""
    for metric in CATALOGUE:
        yield from metric.series


def used_fields(counters: str) -> set[str]:
    """The fields of the compiled counters `rx`, `tx`, `worker` or `flow` that are exported."""
    fields = {metric.origin.partition(".")[2] for metric in CATALOGUE if metric.origin.startswith(f"{counters}.")}
    return fields | {field for metric in CATALOGUE if metric.origin == counters for _, field in metric.split}


def markdown() -> str:
    """The catalogue as a Markdown table, for the documents."""
    rows = ["| name | type | labels | help |", "|---|---|---|---|"]
    for metric in CATALOGUE:
        labels = ", ".join(metric.labels) or "–"
        if metric.split:
            labels = f"{', '.join(metric.labels)} = {', '.join(value for value, _ in metric.split)}"
        rows.append(f"| {metric.full_name} | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows) + "\n"
