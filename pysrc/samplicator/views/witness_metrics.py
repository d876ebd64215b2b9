"""The metrics of `samplicator witness`, which a collector's host exports: the balance of each exporter.

Pure data, as the catalogue is; not of the daemon, so not in its table. The words are those of the witness's JSON. Read
by the witness, by METRICS.md, and by the guard tests that hold the dashboards and alerts against it.
"""

from __future__ import annotations

from typing import Final

from samplicator.views.metric import Metric

_B = ("receiver", "exporter")

WITNESS_METRICS: Final[tuple[Metric, ...]] = (
    *(
        Metric(f"witness_{stage}_datagrams_total", "counter", _B, text, f"balance.{stage}")
        for stage, text in (
            ("lost_before", "Datagrams lost before the relay, by the exporters' sequence numbers."),
            ("lost_at_socket", "Datagrams dropped by the kernel in front of the relay's sockets."),
            ("failed", "Copies that the relay could not send."),
            ("lost_on_way", "Copies that the relay sent and that did not arrive at the collector's host."),
            ("dropped_by_collector", "Datagrams dropped by the kernel in front of the collector's sockets."),
            ("wire", "Datagrams that arrived at the collector's host."),
        )
    ),
    Metric(
        "witness_unattributed_datagrams_total",
        "counter",
        ("receiver", "stage"),
        "Datagrams lost that are known as a sum only, by stage.",
        "balance.sums",
    ),
    Metric(
        "witness_unseen_packets_total", "counter", (), "Packets that the witness had no room for.", "balance.unseen"
    ),
)
"""From the exporter to the collector; then what cannot be said by exporter."""
