"""Fleet: all relays side by side (the nodes of a DaemonSet), and the balance of the witnesses at the collectors."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from parts import SELECT, lines, number, rate, rows_of, variable
from parts import made as dashboard

BUSY = rate("samplicator_worker_busy_seconds_total", SELECT, "instance, worker")
WITNESS = 'receiver=~"$witness"'
STAGES = (
    ("samplicator_witness_lost_before_datagrams_total", "lost before the relay"),
    ("samplicator_witness_lost_at_socket_datagrams_total", "lost at its socket"),
    ("samplicator_witness_failed_datagrams_total", "failed there"),
    ("samplicator_witness_lost_on_way_datagrams_total", "lost on the way"),
    ("samplicator_witness_dropped_by_collector_datagrams_total", "dropped by the collector's socket"),
)
ARRIVED = "samplicator_witness_wire_datagrams_total"
"""From the exporter to the collector, as `samplicator witness` counts."""

GLANCE = (
    number("Relays", "none", f"count(samplicator_build_info{{{SELECT}}})", "Relays that answer their scrape."),
    number(
        "Relays that do not answer",
        "none",
        'count(up{job=~"$job",instance=~"$instance"} == 0) or vector(0)',
        "Targets of the chosen jobs whose scrape fails.",
        red_above=1,
    ),
    number(
        "Different configurations",
        "none",
        f'count(count_values("hash", samplicator_config_hash{{{SELECT}}}))',
        "More than 1: the relays do not all run the same configuration.",
        red_above=2,
    ),
    number(
        "Different versions",
        "none",
        f"count(count by (version, revision) (samplicator_build_info{{{SELECT}}}))",
        "More than 1: an upgrade has not reached all relays.",
        red_above=2,
    ),
    number(
        "Reloads refused",
        "none",
        f"count(samplicator_config_last_reload_successful{{{SELECT}}} == 0) or vector(0)",
        "Relays that run an older configuration than their file.",
        red_above=1,
    ),
    number(
        "Largest skew between workers",
        "none",
        f"max(max by (instance) ({BUSY}) / avg by (instance) ({BUSY}))",
        "The busiest worker of a relay against the mean of its workers. 1: even.",
        red_above=3,
    ),
)

RELAYS = (
    rows_of(
        "Relays",
        (
            (f"min by (instance) (samplicator_config_last_reload_successful{{{SELECT}}})", "last reload", "none"),
            (f"max by (instance) (samplicator_config_hash{{{SELECT}}})", "configuration", "string"),
            (f"time() - max by (instance) (process_start_time_seconds{{{SELECT}}})", "runs for", "s"),
            (rate("samplicator_receive_datagrams_total", SELECT, "instance"), "received", "pps"),
            (rate("samplicator_send_datagrams_total", SELECT, "instance"), "sent", "pps"),
            (rate("samplicator_receive_kernel_drops_total", SELECT, "instance"), "kernel drops", "pps"),
            (rate("samplicator_send_failed_datagrams_total", SELECT, "instance"), "failed", "pps"),
            (f"avg by (instance) (samplicator_receiver_up{{{SELECT}}})", "receivers up", "percentunit"),
        ),
        "One row per relay, now. Relays with the same configuration have the same hash.",
        labels=(("instance", "instance"),),
        mappings=(("0", "refused", "red"), ("1", "good", "green")),
        link=("instance", "Overview of this relay", "/d/samplicator-overview?var-instance=${__value.raw}"),
    ),
    lines(
        "Received",
        "pps",
        [(rate("samplicator_receive_datagrams_total", SELECT, "instance"), "{{instance}}")],
        "Datagrams read, by relay. A relay far below the others: its exporters have gone, or its address.",
    ),
    lines(
        "Lost at the sockets",
        "pps",
        [(rate("samplicator_receive_kernel_drops_total", SELECT, "instance"), "{{instance}}")],
        "Dropped by the kernel of each relay because a receive buffer was full.",
    ),
    lines(
        "Copies failed",
        "pps",
        [(rate("samplicator_send_failed_datagrams_total", SELECT, "instance"), "{{instance}}")],
        "Copies that the kernel or the network did not take, by relay.",
    ),
)

DRIFT = (
    rows_of(
        "Configurations",
        ((f'count_values("hash", samplicator_config_hash{{{SELECT}}})', "relays", "none"),),
        "How many relays run each configuration. samplicator_config_hash of a relay says which one is its own.",
        labels=(("hash", "configuration"),),
        width=8,
    ),
    rows_of(
        "Versions",
        ((f"count by (version, revision, python) (samplicator_build_info{{{SELECT}}})", "relays", "none"),),
        "How many relays run each version.",
        labels=(("version", "version"), ("revision", "revision"), ("python", "Python")),
        width=8,
    ),
    lines(
        "Reloads in the last hour",
        "none",
        [
            (f"increase(samplicator_config_reloads_total{{{SELECT}}}[1h])", "{{instance}} reloads"),
            (f"increase(samplicator_config_reload_failures_total{{{SELECT}}}[1h])", "{{instance}} refused"),
        ],
        "Reloads, and reloads that were refused.",
    ),
)

WORKERS = (
    lines(
        "Skew between workers",
        "none",
        [(f"max by (instance) ({BUSY}) / avg by (instance) ({BUSY})", "{{instance}}")],
        "The busiest worker against the mean. One exporter session cannot use two workers.",
    ),
    lines(
        "Busiest worker",
        "percentunit",
        [(f"max by (instance) ({BUSY})", "{{instance}}")],
        "Share of the time that the busiest worker of each relay does not wait. Near 100 %: add workers.",
    ),
    lines(
        "Sessions per worker",
        "none",
        [(f"sum by (instance, worker) (samplicator_worker_sessions{{{SELECT}}})", "{{instance}} worker {{worker}}")],
        "Exporter sessions in the cache of each worker.",
    ),
    lines(
        "Heartbeat age",
        "s",
        [
            (
                f"max by (instance) (time() - samplicator_worker_heartbeat_timestamp_seconds{{{SELECT}}})",
                "{{instance}}",
            )
        ],
        "Seconds since the last turn of the oldest worker, at least 1 per second. Clocks of the hosts must agree.",
    ),
    lines(
        "CPU",
        "percentunit",
        [(rate("process_cpu_seconds_total", SELECT, "instance"), "{{instance}}")],
        "CPU seconds per second of the whole process.",
    ),
    lines(
        "Memory",
        "bytes",
        [(f"process_resident_memory_bytes{{{SELECT}}}", "{{instance}}")],
        "Resident memory of the process.",
    ),
)

TRUTH = (
    lines(
        "Taken by the collectors",
        "pps",
        [
            (f"sum by (receiver) (rate({ARRIVED}{{{WITNESS}}}[$__rate_interval]))", "{{receiver}} arrived"),
            (
                f"sum by (receiver) (rate({ARRIVED}{{{WITNESS}}}[$__rate_interval]))"
                f" - sum by (receiver) (rate({STAGES[-1][0]}{{{WITNESS}}}[$__rate_interval]))",
                "{{receiver}} taken",
            ),
        ],
        "What arrived at the collectors' hosts, and what the collectors' sockets took of it.",
        width=12,
    ),
    lines(
        "Where datagrams are lost",
        "pps",
        [(f"sum(rate({metric}{{{WITNESS}}}[$__rate_interval]))", stage) for metric, stage in STAGES],
        "Between the exporters and the collectors' programs, by stage.",
        width=12,
    ),
    rows_of(
        "Balance by exporter",
        (
            *(
                (f"sum by (exporter) (increase({metric}{{{WITNESS}}}[$__range]))", stage, "none")
                for metric, stage in STAGES
            ),
            (f"sum by (exporter) (increase({ARRIVED}{{{WITNESS}}}[$__range]))", "arrived at the collector", "none"),
        ),
        "Datagrams of each exporter in the time shown, by stage from the exporter to the collector.",
        labels=(("exporter", "exporter"),),
        link=("exporter", "This exporter", "/d/samplicator-exporter?var-exporter=${__value.raw}"),
    ),
)


def made() -> Dashboard:
    witness = variable(
        "witness", "label_values(samplicator_witness_wire_datagrams_total, receiver)", label="Witness at"
    )
    return dashboard(
        "fleet",
        "All relays side by side, and the balance of the witnesses.",
        [witness],
        [
            ("At a glance", GLANCE),
            ("Relays", RELAYS),
            ("Drift", DRIFT),
            ("Workers", WORKERS),
            ("Witness balance (samplicator witness, at the collectors)", TRUTH),
        ],
    )
