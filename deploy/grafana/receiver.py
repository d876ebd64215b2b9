"""Receiver: the state of each receiver, what it was offered, and why copies failed."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard
from parts import BY_RECEIVER, RECEIVER, SELECT, lines, number, rate, rows_of, states
from parts import made as dashboard

STATE = " + ".join(
    f'{place} * max by (instance, receiver) (samplicator_receiver_state{{{RECEIVER},state="{state}"}})'
    for place, state in enumerate(("up", "refusing", "unreachable", "looping"))
)
"""One number for the state; the word comes back by WORDS."""
WORDS = (("0", "up", "green"), ("1", "refusing", "red"), ("2", "unreachable", "orange"), ("3", "looping", "purple"))
FAIL_OVERS = "samplicator_receiver_sctp_fail_overs_total"
FAILED = "samplicator_send_failed_datagrams_total"
PLACE = "receiver, address, port, source, engine"
POOL = f'{SELECT},receiver=~"$receiver"'

GLANCE = (
    number(
        "Receivers up",
        "percentunit",
        f"avg(samplicator_receiver_up{{{RECEIVER}}})",
        "Share of the chosen receivers that are up.",
        red_below=1.0,
    ),
    number(
        "Offered", "pps", rate("samplicator_send_offered_datagrams_total", RECEIVER), "Copies that rules made for them."
    ),
    number("Sent", "pps", rate("samplicator_send_datagrams_total", RECEIVER), "Copies that the kernel accepted."),
    number(
        "Skipped",
        "pps",
        rate("samplicator_send_skipped_datagrams_total", RECEIVER),
        "Copies left out on purpose: freq.",
    ),
    number(
        "Failed",
        "pps",
        rate(FAILED, RECEIVER),
        "Copies that the kernel or the network did not take.",
        red_above=0.001,
    ),
    number(
        "Take-overs by a standby",
        "none",
        f"sum(increase(samplicator_receiver_takeovers_total{{{RECEIVER}}}[$__range]))",
        "How often a standby took over the copies of its primary, in the time shown.",
    ),
)

NOW = (
    rows_of(
        "Receivers",
        (
            (STATE, "state", "none"),
            (rate("samplicator_send_datagrams_total", RECEIVER, "instance, receiver"), "sent", "pps"),
            (rate(FAILED, RECEIVER, "instance, receiver"), "failed", "pps"),
            (f"max by (instance, receiver) (samplicator_receiver_waiting{{{RECEIVER}}})", "waiting standby", "none"),
            (f"min by (instance, receiver) (samplicator_receiver_mtu_bytes{{{RECEIVER}}})", "MTU", "bytes"),
        ),
        "State, rates and path MTU of each receiver now.",
        labels=(("instance", "instance"), ("receiver", "receiver")),
        mappings=WORDS,
        width=14,
    ),
    rows_of(
        "Ways",
        (
            (
                f"count by ({PLACE}) (samplicator_receiver_info{{{RECEIVER}}})",
                "relays",
                "none",
            ),
        ),
        "Where copies go, from which source address (own: of the relay, spoof: of the exporter), by which engine.",
        labels=(
            ("receiver", "receiver"),
            ("address", "address"),
            ("port", "port"),
            ("source", "source"),
            ("engine", "engine"),
        ),
        width=10,
    ),
    states("State", [(STATE, "{{instance}} {{receiver}}")], "The state of each receiver over time.", mappings=WORDS),
)

COPIES = (
    lines(
        "Copies sent",
        "pps",
        [(rate("samplicator_send_datagrams_total", RECEIVER, "receiver"), "{{receiver}}")],
        "Copies that the kernel accepted.",
    ),
    lines(
        "Copies failed, by reason",
        "pps",
        [(rate(FAILED, RECEIVER, "receiver, reason"), "{{receiver}} {{reason}}")],
        "refused: no program listens. no_neighbor, no_route: network. no_buffer_space: interface full.",
    ),
    lines(
        "Share that failed",
        "percentunit",
        [
            (
                f"{rate(FAILED, RECEIVER, 'receiver')} / "
                f"({rate('samplicator_send_offered_datagrams_total', RECEIVER, 'receiver')} > 0 or "
                f"sum by (receiver) (samplicator_receiver_up{{{RECEIVER}}}) * 0 + 1)",
                "{{receiver}}",
            )
        ],
        "Copies failed per copy offered.",
    ),
    lines(
        "Bytes sent",
        "Bps",
        [(rate("samplicator_send_bytes_total", RECEIVER, "receiver"), "{{receiver}}")],
        "UDP payload bytes.",
    ),
    lines(
        "Copies skipped on purpose",
        "pps",
        [
            (
                rate("samplicator_send_skipped_datagrams_total", RECEIVER, "receiver, reason"),
                "{{receiver}} {{reason}}",
            )
        ],
        "freq: the receiver takes 1 of N.",
    ),
    lines(
        "Copies per send call",
        "none",
        [
            (
                rate("samplicator_send_datagrams_total", RECEIVER, "receiver")
                + " / "
                + rate("samplicator_send_calls_total", RECEIVER, "receiver"),
                "{{receiver}}",
            )
        ],
        "Larger values cost less CPU per copy.",
    ),
)

POOLS = (
    lines(
        "Template replays",
        "ops",
        [(rate("samplicator_receiver_template_replays_total", RECEIVER, "receiver"), "{{receiver}}")],
        "Replays of all templates: after the receiver came back, for a new receiver, or for a refresh.",
    ),
    lines(
        "Features that the kernel refuses",
        "none",
        [
            (
                f"max by (receiver, feature) (samplicator_receiver_features_given_up{{{RECEIVER}}})",
                "{{receiver}} {{feature}}",
            )
        ],
        "1: copies are sent in a slower way; samplicator tries the feature again later.",
    ),
    lines(
        "Pool members",
        "none",
        [
            (f"sum by (pool, receiver) (samplicator_pool_exporters{{{POOL}}})", "{{pool}} {{receiver}} domains"),
            (f"min by (pool, receiver) (samplicator_pool_member_up{{{POOL}}})", "{{pool}} {{receiver}} up"),
        ],
        "Observation domains that each member of a pool gets now, and whether the pool sends to it.",
    ),
)

SESSIONS = (
    lines(
        "Sessions, by state",
        "none",
        [
            (
                f"sum by (receiver, gateway, state) (samplicator_receiver_sessions{{{RECEIVER}}})",
                "{{receiver}} {{state}}",
            )
        ],
        "Connections by TCP and TLS and associations by SCTP, one per exporter. Of SCTP the state of the primary.",
    ),
    lines(
        "Messages sent",
        "pps",
        [(rate("samplicator_receiver_messages_total", RECEIVER, "receiver, gateway"), "{{receiver}} {{gateway}}")],
        "IPFIX and NetFlow v9 messages in sessions.",
    ),
    lines(
        "Copies that a gateway dropped",
        "pps",
        [
            (
                rate("samplicator_receiver_session_dropped_datagrams_total", RECEIVER, "receiver, reason"),
                "{{receiver}} {{reason}}",
            )
        ],
        "not_ipfix: the transport does not carry it. sctp_resources: the collector is too slow.",
    ),
    lines(
        "Flow records dropped by SCTP",
        "none",
        [
            (
                rate("samplicator_receiver_sctp_dropped_flows_total", RECEIVER, "receiver, reason"),
                "{{receiver}} {{reason}}",
            )
        ],
        "Flow records per second that neither the collector nor its backup got.",
    ),
    lines(
        "Fail-overs",
        "none",
        [
            (
                f"sum by (receiver) (increase({FAIL_OVERS}{{{RECEIVER}}}[$__rate_interval]))",
                "{{receiver}}",
            )
        ],
        "Switches from an SCTP collector to its backup.",
    ),
)


def made() -> Dashboard:
    return dashboard(
        "receiver",
        "The state of each receiver, what it was offered, and why copies failed.",
        [BY_RECEIVER],
        [
            ("At a glance", GLANCE),
            ("Now", NOW),
            ("Copies", COPIES),
            ("Templates, features, pools", POOLS),
            ("TCP, TLS, SCTP", SESSIONS),
        ],
    )
