"""Overview: where each datagram and each copy went, of one relay or of all that are chosen."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from parts import BY_LISTENER, BY_RECEIVER, LISTENER, RECEIVER, SELECT, lines, number, quantile, rate
from parts import made as dashboard

GLANCE = (
    number(
        "Received",
        "pps",
        rate("samplicator_receive_datagrams_total", LISTENER),
        "Datagrams read from all listeners.",
    ),
    number(
        "Copies sent",
        "pps",
        rate("samplicator_send_datagrams_total", RECEIVER),
        "Copies that the kernel accepted, for all receivers together.",
    ),
    number(
        "Lost at the sockets",
        "pps",
        rate("samplicator_receive_kernel_drops_total", LISTENER),
        "Dropped by the kernel because a receive buffer was full. Above 0, all receivers lose datagrams.",
        red_above=0.001,
    ),
    number(
        "Copies failed",
        "pps",
        rate("samplicator_send_failed_datagrams_total", RECEIVER),
        "Copies that the kernel or the network did not take, for all receivers and reasons.",
        red_above=0.001,
    ),
    number(
        "Receivers up",
        "percentunit",
        f"avg(samplicator_receiver_up{{{RECEIVER}}})",
        "Share of the receivers that are up.",
        red_below=1.0,
    ),
    number(
        "Last reload",
        "none",
        f"min(samplicator_config_last_reload_successful{{{SELECT}}})",
        "refused: a relay runs an older configuration than its file. Its log shows the reason.",
        mappings=(("0", "refused", "red"), ("1", "good", "green")),
    ),
)

RECEIVE = (
    lines(
        "Datagrams received",
        "pps",
        [(rate("samplicator_receive_datagrams_total", LISTENER, "listener"), "{{listener}}")],
        "Datagrams read from the sockets of each listener.",
    ),
    lines(
        "Bytes received",
        "Bps",
        [(rate("samplicator_receive_bytes_total", LISTENER, "listener"), "{{listener}}")],
        "UDP payload bytes.",
    ),
    lines(
        "Lost in the kernel",
        "pps",
        [(rate("samplicator_receive_kernel_drops_total", LISTENER, "listener"), "{{listener}}")],
        "The receive buffer was full. Raise net.core.rmem_max and receive_buffer, or add workers.",
    ),
    lines(
        "Received but not forwarded",
        "pps",
        [
            (
                rate("samplicator_receive_rejected_datagrams_total", LISTENER, "listener, reason"),
                "{{listener}} {{reason}}",
            ),
            (rate("samplicator_receive_truncated_datagrams_total", LISTENER, "listener"), "{{listener}} truncated"),
        ],
        "acl: a rule drops it. no_route_rule: no rule matches. truncated: longer than max_datagram.",
    ),
    lines(
        "Waiting in receive buffers",
        "bytes",
        [
            (f"sum by (listener) (samplicator_receive_queue_bytes{{{LISTENER}}})", "{{listener}} waiting"),
            (f"sum by (listener) (samplicator_receive_buffer_bytes{{{LISTENER}}})", "{{listener}} size"),
        ],
        "Bytes in the sockets' queues, and the size of the queues, as the kernel counts them.",
    ),
    lines(
        "Datagrams per receive call",
        "none",
        [
            (
                rate("samplicator_receive_batch_datagrams_sum", LISTENER, "listener")
                + " / "
                + rate("samplicator_receive_batch_datagrams_count", LISTENER, "listener"),
                "{{listener}}",
            )
        ],
        "A small value: the worker keeps up. The value of `batch`: the worker is too slow.",
    ),
)

SEND = (
    lines(
        "Copies sent",
        "pps",
        [(rate("samplicator_send_datagrams_total", RECEIVER, "receiver"), "{{receiver}}")],
        "Copies that the kernel accepted.",
    ),
    lines(
        "Copies failed, by reason",
        "pps",
        [(rate("samplicator_send_failed_datagrams_total", RECEIVER, "receiver, reason"), "{{receiver}} {{reason}}")],
        "refused: no program listens. no_neighbor, no_route: network. no_buffer_space: interface full.",
    ),
    lines(
        "Offered = sent + skipped + failed",
        "pps",
        [
            (rate("samplicator_send_offered_datagrams_total", RECEIVER, "receiver"), "{{receiver}} offered"),
            (
                rate("samplicator_send_datagrams_total", RECEIVER, "receiver")
                + " + "
                + rate("samplicator_send_skipped_datagrams_total", RECEIVER, "receiver")
                + " + "
                + rate("samplicator_send_failed_datagrams_total", RECEIVER, "receiver"),
                "{{receiver}} accounted for",
            ),
        ],
        "Every offered copy is accounted for: the two lines of a receiver are always equal.",
    ),
)

INSIDE = (
    lines(
        "Workers busy",
        "percentunit",
        [(rate("samplicator_worker_busy_seconds_total", SELECT, "instance, worker"), "{{instance}} worker {{worker}}")],
        "Share of the time that a worker does not wait for datagrams. Near 100 %: add a worker.",
    ),
    lines(
        "Time in samplicator",
        "s",
        [
            (quantile("samplicator_forward_latency_seconds", 0.5), "median"),
            (quantile("samplicator_forward_latency_seconds", 0.99), "99 %"),
            (quantile("samplicator_forward_latency_seconds", 0.999), "99.9 %"),
        ],
        "Time from the kernel's arrival timestamp until the kernel has taken the last copy.",
    ),
    lines(
        "CPU",
        "percentunit",
        [
            (
                rate("samplicator_worker_cpu_seconds_total", SELECT, "instance, worker"),
                "{{instance}} worker {{worker}}",
            ),
            (rate("process_cpu_seconds_total", SELECT, "instance"), "{{instance}} whole process"),
        ],
        "CPU seconds per second.",
    ),
    lines(
        "Memory",
        "bytes",
        [(f"process_resident_memory_bytes{{{SELECT}}}", "{{instance}}")],
        "Resident memory. The datapath allocates nothing after a worker starts.",
    ),
    lines(
        "Delay of the control plane",
        "s",
        [(quantile("samplicator_control_loop_lag_seconds", 0.99, "instance, le"), "{{instance}} 99 %")],
        "How late the timers of the control plane (metrics, API, reload) run. This does not delay datagrams.",
    ),
    lines(
        "Log messages",
        "ops",
        [(rate("samplicator_log_messages_total", SELECT, "instance, level"), "{{instance}} {{level}}")],
        "Log messages by level.",
    ),
)


def made() -> Dashboard:
    return dashboard(
        "overview",
        "Where each datagram and each copy went.",
        [BY_LISTENER, BY_RECEIVER],
        [("At a glance", GLANCE), ("Receive", RECEIVE), ("Send", SEND), ("Inside", INSIDE)],
    )
