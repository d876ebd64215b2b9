"""The metrics of gateways: sessions by TCP, TLS and SCTP, by listener and by receiver.

Pure data, a part of the catalogue. `inward.FIELD` and `outward.FIELD` are counters of GatewayReading (gateways.tally).
Without such a transport in the configuration the families are empty.
"""

from __future__ import annotations

from typing import Final

from samplicator.views.metric import Metric

SESSION_STATES: Final = ("initialising", "connected", "not connected", "re-establishing")

_I = ("gateway", "listener")
_O = ("gateway", "receiver")

GATEWAY_METRICS: Final[tuple[Metric, ...]] = (
    Metric("listener_sessions", "gauge", _I, "Sessions of exporters that are open.", "inward.sessions"),
    Metric("listener_sessions_opened_total", "counter", _I, "Sessions that exporters have opened.", "inward.opened"),
    Metric(
        "listener_sessions_refused_total",
        "counter",
        (*_I, "reason"),
        "Sessions of exporters that were refused, by reason.",
        "inward",
        split=(("prefix", "refused_prefix"), ("limit", "refused_limit"), ("handshake", "refused_handshake")),
    ),
    Metric(
        "listener_sessions_broken_total",
        "counter",
        _I,
        "Sessions of exporters that ended with an error.",
        "inward.broken",
    ),
    Metric("listener_messages_total", "counter", _I, "Messages of exporters' sessions.", "inward.messages"),
    Metric("listener_message_bytes_total", "counter", _I, "Bytes of these messages.", "inward.octets"),
    Metric(
        "listener_malformed_messages_total",
        "counter",
        _I,
        "Messages that were left out because they are malformed.",
        "inward.malformed",
    ),
    Metric(
        "listener_session_waits_total",
        "counter",
        _I,
        "Times that an exporter's session had to wait for a worker.",
        "inward.waits",
    ),
    Metric(
        "listener_session_lost_datagrams_total",
        "counter",
        _I,
        "Datagrams of sessions that no worker took, because a plan or the process ended.",
        "inward.lost",
    ),
    Metric(
        "receiver_sessions",
        "gauge",
        (*_O, "state"),
        "Sessions to the receiver, one per exporter, by state.",
        "outward.sessions",
        split=tuple((state.replace(" ", "_").replace("-", "_"), state) for state in SESSION_STATES),
    ),
    Metric("receiver_sessions_opened_total", "counter", _O, "Sessions to the receiver that opened.", "outward.opened"),
    Metric(
        "receiver_session_failures_total",
        "counter",
        _O,
        "Attempts to open a session that failed.",
        "outward.failed",
    ),
    Metric("receiver_messages_total", "counter", _O, "Messages sent in sessions.", "outward.messages"),
    Metric("receiver_message_bytes_total", "counter", _O, "Bytes of these messages.", "outward.octets"),
    Metric(
        "receiver_session_dropped_datagrams_total",
        "counter",
        (*_O, "reason"),
        "Copies that a gateway took and did not send: no IPFIX, too many exporters, still waiting at the end, or an "
        "SCTP queue that was full.",
        "outward",
        split=(
            ("not_ipfix", "not_ipfix"),
            ("limit", "limit"),
            ("unsent", "unsent"),
            ("sctp_resources", "no_resources"),
            ("primary_and_backup_failure", "no_collector"),
        ),
    ),
    Metric(
        "receiver_sctp_fail_overs_total",
        "counter",
        _O,
        "Switches from a collector to its backup.",
        "outward.fail_overs",
    ),
    Metric(
        "receiver_sctp_dropped_flows_total",
        "counter",
        (*_O, "reason"),
        "Flow records that an SCTP receiver did not get: its queue was full while a collector was connected, or while "
        "none was, or they were given up.",
        "outward",
        split=(
            ("sctp_resources", "no_resources_flows"),
            ("primary_and_backup_failure", "no_collector_flows"),
            ("given_up", "given_up_flows"),
        ),
    ),
    Metric(
        "receiver_session_waits_total",
        "counter",
        _O,
        "Times that a gateway stopped reading copies because too many were waiting.",
        "outward.waits",
    ),
)
