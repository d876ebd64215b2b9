"""The catalogue: every metric this program exports, in one table.

Purpose: name, kind, labels, help and origin of each series in one place; metrics renders from it, the guard tests
hold the compiled field tuples, the dashboard, the alert rules and the documents against it. Invariants: pure data,
imports only what a row is and the rows of the flow stage (flow_metrics); a counter ends in `_total`, a unit is in the
name, no label is unbounded (listeners, receivers and workers are configured, reasons are fixed, exporters are the 200
that history follows). Called by metrics, http and the tests. It must never hold a value.

`origin` says where the number comes from: `rx.FIELD`, `tx.FIELD`, `worker.FIELD` are fields of the compiled counters
(RX_FIELDS, TX_FIELDS, WORKER_FIELDS); `flow.FIELD` of the flow stage (FLOW_COUNTER_FIELDS); `protocols.ATTR` of
FlowReading, by protocol; `listener.ATTR`, `receiver.ATTR`, `member.ATTR`, `reader.ATTR`, `plan.ATTR` are attributes of
the supervisor's readings (ListenerReading, ReceiverReading, MemberReading, WorkerReading, Readings); `tally.ATTR` of
Tally, by exporter; `inward.FIELD`, `outward.FIELD` of gateways (gateway_metrics); `reload.ATTR` of the Reloader;
`state.ATTR` of ServiceState; `here` = made while collecting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from samplicator.views.flow_metrics import FLOW_METRICS
from samplicator.views.gateway_metrics import GATEWAY_METRICS
from samplicator.views.metric import Metric

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
_NS = 1e-9

CATALOGUE: Final[tuple[Metric, ...]] = (
    # ---- received
    Metric("receive_datagrams_total", "counter", _L, "Datagrams that came to the listener.", "rx.datagrams"),
    Metric("receive_bytes_total", "counter", _L, "UDP payload bytes of the datagrams read.", "rx.bytes"),
    Metric(
        "receive_matched_datagrams_total",
        "counter",
        _L,
        "Datagrams that a rule sends to at least one receiver, before sampling.",
        "rx.matched",
    ),
    Metric(
        "receive_offloaded_datagrams_total", "counter", _L, "Copied by the kernel where they came in.", "rx.offloaded"
    ),
    Metric("receive_unseen_datagrams_total", "counter", _L, "Offloaded, and seen by no worker.", "rx.unseen"),
    Metric(
        "receive_truncated_datagrams_total",
        "counter",
        _L,
        "Datagrams dropped because they are longer than datapath.max_datagram.",
        "rx.truncated",
    ),
    Metric(
        "receive_truncated_bytes_total",
        "counter",
        _L,
        "Bytes read of datagrams dropped as too long, at most datapath.max_datagram per datagram.",
        "rx.truncated_bytes",
    ),
    Metric(
        "receive_rejected_datagrams_total",
        "counter",
        (*_L, "reason"),
        "Datagrams that no receiver gets: a rule drops them (acl), or no rule matches (no_route_rule).",
        "rx",
        split=(("acl", "denied"), ("no_route_rule", "unmatched")),
    ),
    Metric(
        "receive_errors_total",
        "counter",
        (*_L, "reason"),
        "Receive calls that failed, by errno; reason other includes packets in a ring with a wrong checksum or length.",
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
        "Datagrams dropped by the kernel because the listener's buffer or ring was full; no other series counts them.",
        "listener.kernel_drops",
    ),
    Metric(
        "receive_batch_datagrams",
        "histogram",
        _L,
        "Datagrams per receive call; `_count` is the number of calls.",
        "listener.batch_counts",
    ),
    Metric(
        "receive_buffer_bytes",
        "gauge",
        _L,
        "Size of the listener's receive buffers and rings; the kernel doubles the configured buffer size.",
        "listener.buffer_bytes",
    ),
    Metric(
        "receive_queue_bytes",
        "gauge",
        _L,
        "Kernel memory used by datagrams that wait to be read.",
        "listener.queue_bytes",
    ),
    Metric("listener_up", "gauge", _L, "1 when all sockets of the listener are open, 0 otherwise.", "listener.up"),
    Metric(
        "listener_info",
        "info",
        (*_L, "address", "port"),
        "Always 1; the labels name an open socket of the listener.",
        "listener.sockets",
    ),
    # ---- sent
    Metric(
        "send_offered_datagrams_total",
        "counter",
        _R,
        "Copies that rules made for the receiver; offered = skipped + sent + failed.",
        "tx.offered",
    ),
    Metric("send_datagrams_total", "counter", _R, "Copies that the kernel accepted.", "tx.sent"),
    Metric(
        "send_bytes_total", "counter", _R, "UDP payload bytes of the copies that the kernel accepted.", "tx.sent_bytes"
    ),
    Metric(
        "send_skipped_datagrams_total",
        "counter",
        (*_R, "reason"),
        "Copies left out on purpose, by reason; freq: the receiver takes 1 of N.",
        "tx",
        split=(("freq", "skipped"),),
    ),
    Metric(
        "send_failed_datagrams_total",
        "counter",
        (*_R, "reason"),
        "Copies that the kernel or the network did not take, by reason.",
        "tx",
        split=tuple((reason, f"failed_{reason}") for reason in SEND_REASONS),
    ),
    Metric("send_calls_total", "counter", _R, "System calls that send copies.", "tx.calls"),
    Metric(
        "send_retries_total",
        "counter",
        _R,
        "Send calls that were repeated because the kernel had no buffer space.",
        "tx.retries",
    ),
    Metric(
        "receiver_template_replays_total",
        "counter",
        _R,
        "Replays of all templates of the receiver's exporters to this receiver.",
        "tx.replays",
    ),
    Metric(
        "send_shared_port_datagrams_total",
        "counter",
        _R,
        'Copies to a receiver with source_port = "per-session" whose session had no port of its own.',
        "tx.shared_port",
    ),
    Metric("receiver_up", "gauge", _R, "1 when the state of the receiver is up, 0 otherwise.", "receiver.up"),
    Metric(
        "receiver_state",
        "gauge",
        (*_R, "state"),
        "1 for the current state of the receiver: up, refusing (port closed or probe failed), unreachable (no route or "
        "neighbor), looping (copies come back to this host).",
        "receiver.state",
        split=tuple((state, state) for state in STATES),
    ),
    Metric(
        "receiver_waiting",
        "gauge",
        _R,
        "1 while a standby gets no copies because its primary is up.",
        "receiver.waiting",
    ),
    Metric(
        "receiver_takeovers_total",
        "counter",
        _R,
        "Times that the standby took over the copies of its primary.",
        "receiver.takeovers",
    ),
    Metric(
        "receiver_info",
        "info",
        (*_R, "address", "port", "source", "engine"),
        "Always 1; the labels name address, port, source (own or spoof) and engine of the receiver.",
        "receiver",
    ),
    Metric(
        "receiver_features_given_up",
        "gauge",
        (*_R, "feature"),
        "1 while the kernel refuses the feature, so copies are sent in a slower way; samplicator tries again later.",
        "receiver.gave_up",
        split=(("segment", "segment"), ("transparent", "transparent"), ("packet", "packet"), ("copier", "copier")),
    ),
    Metric(
        "receiver_mtu_bytes",
        "gauge",
        _R,
        "Largest IP packet to the receiver, from the route, the configuration, or routers on the way.",
        "receiver.mtu",
    ),
    Metric("pool_member_up", "gauge", _M, "1 while the pool sends to the member, 0 otherwise.", "member.up"),
    Metric(
        "pool_exporters",
        "gauge",
        _M,
        "Exporters' observation domains that the member gets now; 0 with balance round-robin.",
        "member.exporters",
    ),
    Metric(
        "kubernetes_pods",
        "gauge",
        _R,
        "Ready pods of a receiver that is a Kubernetes Service.",
        "kubernetes.ready",
    ),
    Metric(
        "kubernetes_pods_waiting",
        "gauge",
        _R,
        "Pods of such a receiver that are not ready.",
        "kubernetes.waiting",
    ),
    Metric(
        "kubernetes_followed",
        "gauge",
        _R,
        "1 while the API server reports changes of the pods; 0 while the last known pods stay in use.",
        "kubernetes.followed",
    ),
    Metric(
        "forward_latency_seconds",
        "histogram",
        (),
        "Time from the kernel's receive timestamp to the end of the send call that took the last copy.",
        "plan.latency_counts",
        scale=_NS,
    ),
    # ---- flow telemetry
    *FLOW_METRICS,
    # ---- workers
    Metric("worker_cpu_seconds_total", "counter", _W, "CPU time of the worker's thread.", "worker.cpu_ns", scale=_NS),
    Metric(
        "worker_busy_seconds_total",
        "counter",
        _W,
        "Time that the worker did not wait for datagrams.",
        "worker.busy_ns",
        scale=_NS,
    ),
    Metric(
        "worker_wakeups_total",
        "counter",
        _W,
        "Times that the worker woke up from its wait for datagrams.",
        "worker.wakeups",
    ),
    Metric(
        "worker_stalls_total",
        "counter",
        _W,
        "Times that a send had to wait for buffer space in the kernel.",
        "worker.stalls",
    ),
    Metric(
        "worker_heartbeat_timestamp_seconds",
        "gauge",
        _W,
        "Unix time of the worker's last turn.",
        "worker.heartbeat_ns",
        scale=_NS,
    ),
    Metric("worker_sessions", "gauge", _W, "Exporter sessions in the worker's cache.", "worker.sessions"),
    Metric(
        "worker_session_misses_total",
        "counter",
        _W,
        "Datagrams whose session was not in the worker's cache, so the rules were evaluated.",
        "worker.session_misses",
    ),
    Metric(
        "worker_session_evictions_total",
        "counter",
        _W,
        "Exporter sessions removed from the worker's cache to make room for others.",
        "worker.session_evictions",
    ),
    Metric(
        "worker_session_sockets",
        "gauge",
        _W,
        'Sockets open for exporter sessions that have their own source port (source_port = "per-session").',
        "worker.session_sockets",
    ),
    Metric("worker_generation", "gauge", _W, "Generation of the plan that the worker runs.", "reader.generation"),
    # ---- configuration
    Metric("config_generation", "gauge", (), "Generation of the newest plan.", "plan.generation"),
    Metric("config_reloads_total", "counter", (), "Reloads, successful or not.", "reload.reloads_total"),
    Metric(
        "config_reload_failures_total",
        "counter",
        (),
        "Reloads that failed; the running configuration stays.",
        "reload.failures_total",
    ),
    Metric(
        "config_last_reload_successful",
        "gauge",
        (),
        "1 when the last reload or the start succeeded, 0 otherwise.",
        "reload.last_successful",
    ),
    Metric(
        "config_last_reload_success_timestamp_seconds",
        "gauge",
        (),
        "Unix time of the last successful reload or start.",
        "reload.last_success_timestamp",
    ),
    Metric(
        "config_hash",
        "gauge",
        (),
        "First 48 bits of the SHA-256 of the running configuration's text; equal where the texts are equal.",
        "reload.config_hash",
    ),
    # ---- transports other than UDP
    *GATEWAY_METRICS,
    # ---- the process
    Metric("control_loop_lag_seconds", "histogram", (), "How late the control loop's timer runs.", "state.loop_lag"),
    Metric("log_messages_total", "counter", ("level",), "Log lines, by level.", "state.log_messages"),
    Metric(
        "http_refused_requests_total",
        "counter",
        ("reason",),
        "HTTP requests that were refused: unknown host name, client certificate, no or wrong credentials, too many "
        "wrong ones, too many streams.",
        "state.http_refused",
    ),
    Metric(
        "build_info",
        "info",
        ("version", "revision", "python", "cython"),
        "Always 1; the labels name the versions of samplicator, Python and Cython.",
        "here",
    ),
    Metric("collector_duration_seconds", "gauge", (), "Time to collect these samples.", "here"),
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


def markdown(metrics: Iterable[Metric] = CATALOGUE) -> str:
    """Metrics as a Markdown table, for the documents."""
    rows = ["| name | type | labels | help |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(metric.labels) or "–"
        if metric.split:
            labels = f"{', '.join(metric.labels)} = {', '.join(value for value, _ in metric.split)}"
        rows.append(f"| {metric.full_name} | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows) + "\n"
