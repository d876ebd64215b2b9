"""What the Grafana dashboard shows: rows of panels, each with its PromQL and a sentence for the person who looks at it.

Read by generate.py only. A query must return a series on a quiet, healthy instance too (no `> 0` filters): an empty
panel looks like a broken one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SELECT = 'job=~"$job",instance=~"$instance"'
LISTENER = f'{SELECT},listener=~"$listener"'
RECEIVER = f'{SELECT},receiver=~"$receiver"'


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    red_above: float | None = None
    """Value from which a stat turns red; None = always plain."""
    red_below: float | None = None
    mappings: tuple[tuple[str, str, str], ...] = ()
    """(value, text, color) for a stat that shows a state."""


def rate(metric: str, select: str, by: str = "") -> str:
    inner = f"rate({metric}{{{select}}}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def quantile(metric: str, share: float) -> str:
    return f"histogram_quantile({share}, {rate(metric + '_bucket', SELECT, 'le')})"


def stat(title: str, unit: str, expr: str, description: str, **more: Any) -> Panel:
    return Panel(title, unit, (Query(expr, ""),), description, kind="stat", width=4, height=4, **more)


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "At a glance",
        (
            stat(
                "Received",
                "pps",
                rate("samplicator_receive_datagrams_total", LISTENER),
                "Datagrams read from all listeners.",
            ),
            stat(
                "Copies sent",
                "pps",
                rate("samplicator_send_datagrams_total", RECEIVER),
                "Copies that the kernel accepted, for all receivers together.",
            ),
            stat(
                "Lost before samplicator",
                "pps",
                rate("samplicator_receive_kernel_drops_total", LISTENER),
                "Dropped by the kernel because a receive buffer was full. Above 0, all receivers lose datagrams.",
                red_above=0.001,
            ),
            stat(
                "Copies failed",
                "pps",
                rate("samplicator_send_failed_datagrams_total", RECEIVER),
                "Copies that the kernel or the network did not take, for all receivers and reasons.",
                red_above=0.001,
            ),
            stat(
                "Receivers up",
                "percentunit",
                f"avg(samplicator_receiver_up{{{RECEIVER}}})",
                "Share of the receivers that are up.",
                red_below=1.0,
            ),
            stat(
                "Last reload",
                "none",
                f"min(samplicator_config_last_reload_successful{{{SELECT}}})",
                "refused: an instance runs an older configuration than its file. Its log shows the reason.",
                mappings=(("0", "refused", "red"), ("1", "good", "green")),
            ),
        ),
    ),
    (
        "Receive",
        (
            Panel(
                "Datagrams received",
                "pps",
                (Query(rate("samplicator_receive_datagrams_total", LISTENER, "listener"), "{{listener}}"),),
                "Datagrams read from the sockets of each listener.",
            ),
            Panel(
                "Bytes received",
                "Bps",
                (Query(rate("samplicator_receive_bytes_total", LISTENER, "listener"), "{{listener}}"),),
                "UDP payload bytes.",
            ),
            Panel(
                "Lost in the kernel",
                "pps",
                (Query(rate("samplicator_receive_kernel_drops_total", LISTENER, "listener"), "{{listener}}"),),
                "The receive buffer was full. Raise net.core.rmem_max and receive_buffer, or add workers.",
            ),
            Panel(
                "Received but not forwarded",
                "pps",
                (
                    Query(
                        rate("samplicator_receive_rejected_datagrams_total", LISTENER, "listener, reason"),
                        "{{listener}} {{reason}}",
                    ),
                    Query(
                        rate("samplicator_receive_truncated_datagrams_total", LISTENER, "listener"),
                        "{{listener}} truncated",
                    ),
                ),
                "acl: a rule drops it. no_route_rule: no rule matches. truncated: longer than max_datagram.",
            ),
            Panel(
                "Waiting in receive buffers",
                "bytes",
                (
                    Query(
                        f"sum by (listener) (samplicator_receive_queue_bytes{{{LISTENER}}})",
                        "{{listener}} waiting",
                    ),
                    Query(
                        f"sum by (listener) (samplicator_receive_buffer_bytes{{{LISTENER}}})",
                        "{{listener}} size",
                    ),
                ),
                "Bytes in the sockets' queues, and the size of the queues, as the kernel counts them.",
            ),
            Panel(
                "Datagrams per receive call",
                "none",
                (
                    Query(
                        rate("samplicator_receive_batch_datagrams_sum", LISTENER, "listener")
                        + " / "
                        + rate("samplicator_receive_batch_datagrams_count", LISTENER, "listener"),
                        "{{listener}}",
                    ),
                ),
                "A small value: the worker keeps up. The value of `batch`: the worker is too slow.",
            ),
        ),
    ),
    (
        "Send",
        (
            Panel(
                "Copies sent",
                "pps",
                (Query(rate("samplicator_send_datagrams_total", RECEIVER, "receiver"), "{{receiver}}"),),
                "Copies that the kernel accepted.",
            ),
            Panel(
                "Copies failed, by reason",
                "pps",
                (
                    Query(
                        rate("samplicator_send_failed_datagrams_total", RECEIVER, "receiver, reason"),
                        "{{receiver}} {{reason}}",
                    ),
                ),
                "refused: no program listens. no_neighbor, no_route: network. no_buffer_space: interface full.",
            ),
            Panel(
                "Copies skipped on purpose",
                "pps",
                (
                    Query(
                        rate("samplicator_send_skipped_datagrams_total", RECEIVER, "receiver, reason"),
                        "{{receiver}} {{reason}}",
                    ),
                ),
                "skipped: copies left out by the receiver's freq.",
            ),
            Panel(
                "Bytes sent",
                "Bps",
                (Query(rate("samplicator_send_bytes_total", RECEIVER, "receiver"), "{{receiver}}"),),
                "UDP payload bytes.",
            ),
            Panel(
                "Receiver up",
                "none",
                (Query(f"min by (receiver) (samplicator_receiver_up{{{RECEIVER}}})", "{{receiver}}"),),
                "1: the receiver is up. 0: the receiver is refusing, unreachable or looping.",
            ),
            Panel(
                "Offered = sent + skipped + failed",
                "pps",
                (
                    Query(
                        rate("samplicator_send_offered_datagrams_total", RECEIVER, "receiver"),
                        "{{receiver}} offered",
                    ),
                    Query(
                        rate("samplicator_send_datagrams_total", RECEIVER, "receiver")
                        + " + "
                        + rate("samplicator_send_skipped_datagrams_total", RECEIVER, "receiver")
                        + " + "
                        + rate("samplicator_send_failed_datagrams_total", RECEIVER, "receiver"),
                        "{{receiver}} accounted for",
                    ),
                ),
                "Every offered copy is accounted for: the two lines of a receiver are always equal.",
            ),
        ),
    ),
    (
        "Flow telemetry",
        (
            Panel(
                "Datagrams by protocol",
                "pps",
                (Query(rate("samplicator_flow_datagrams_total", SELECT, "protocol"), "{{protocol}}"),),
                "Protocol by the header of the datagram, for listeners with flow.",
            ),
            Panel(
                "Lost before samplicator",
                "ops",
                (
                    Query(
                        rate("samplicator_flow_sequence_lost_datagrams_total", SELECT, "protocol"),
                        "{{protocol}} datagrams",
                    ),
                    Query(
                        rate("samplicator_flow_sequence_lost_records_total", SELECT, "protocol"), "{{protocol}} records"
                    ),
                ),
                "Gaps in the exporters' sequence numbers: lost in the network or in this host's kernel. Per exporter: "
                "samplicator ledger.",
            ),
            Panel(
                "Templates known",
                "none",
                (Query(f"sum by (kind) (samplicator_flow_templates{{{SELECT}}})", "{{kind}}"),),
                "Data templates and options templates of NetFlow v9 and IPFIX exporters.",
            ),
        ),
    ),
    (
        "Workers",
        (
            Panel(
                "Busy",
                "percentunit",
                (
                    Query(
                        rate("samplicator_worker_busy_seconds_total", SELECT, "instance, worker"),
                        "{{instance}} worker {{worker}}",
                    ),
                ),
                "Share of the time that a worker does not wait for datagrams. Near 100 %: add a worker.",
            ),
            Panel(
                "Time in samplicator",
                "s",
                (
                    Query(quantile("samplicator_forward_latency_seconds", 0.5), "median"),
                    Query(quantile("samplicator_forward_latency_seconds", 0.99), "99 %"),
                    Query(quantile("samplicator_forward_latency_seconds", 0.999), "99.9 %"),
                ),
                "Time from the kernel's arrival timestamp until the kernel has taken the last copy.",
            ),
            Panel(
                "CPU",
                "percentunit",
                (
                    Query(
                        rate("samplicator_worker_cpu_seconds_total", SELECT, "instance, worker"),
                        "{{instance}} worker {{worker}}",
                    ),
                    Query(rate("process_cpu_seconds_total", SELECT, "instance"), "{{instance}} whole process"),
                ),
                "CPU seconds per second.",
            ),
            Panel(
                "Heartbeat age",
                "s",
                (
                    Query(
                        f"time() - samplicator_worker_heartbeat_timestamp_seconds{{{SELECT}}}",
                        "{{instance}} worker {{worker}}",
                    ),
                ),
                "Time since the last turn of the worker. A growing value means that the worker is stuck.",
            ),
            Panel(
                "Wake-ups and stalls",
                "ops",
                (
                    Query(
                        rate("samplicator_worker_wakeups_total", SELECT, "instance, worker"),
                        "{{instance}} worker {{worker}} wake-ups",
                    ),
                    Query(
                        rate("samplicator_worker_stalls_total", SELECT, "instance, worker"),
                        "{{instance}} worker {{worker}} stalls",
                    ),
                ),
                "Stall: a send that was repeated because the kernel's buffer was full.",
            ),
            Panel(
                "Lag of the control loop",
                "s",
                (Query(quantile("samplicator_control_loop_lag_seconds", 0.99), "99 %"),),
                "How late the timers of the control plane (metrics, API, reload) run. This does not delay datagrams.",
            ),
        ),
    ),
    (
        "Process and configuration",
        (
            Panel(
                "Reloads in the last hour",
                "none",
                (
                    Query(f"increase(samplicator_config_reloads_total{{{SELECT}}}[1h])", "{{instance}} reloads"),
                    Query(
                        f"increase(samplicator_config_reload_failures_total{{{SELECT}}}[1h])",
                        "{{instance}} refused",
                    ),
                ),
                "Reloads, and reloads that were refused.",
            ),
            Panel(
                "Different configurations in the fleet",
                "none",
                (Query(f'count(count_values("hash", samplicator_config_hash{{{SELECT}}}))', "configurations"),),
                "More than 1: the selected instances do not all run the same configuration.",
            ),
            Panel(
                "Memory",
                "bytes",
                (Query(f"process_resident_memory_bytes{{{SELECT}}}", "{{instance}}"),),
                "Resident memory. The datapath allocates nothing after a worker starts.",
            ),
            Panel(
                "Log messages",
                "ops",
                (Query(rate("samplicator_log_messages_total", SELECT, "instance, level"), "{{instance}} {{level}}"),),
                "Log messages by level.",
            ),
        ),
    ),
)
