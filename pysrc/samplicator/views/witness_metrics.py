"""The metrics of `samplicator witness`, which a collector's host exports: the balance of each exporter.

Pure data, as the catalogue is; not of the daemon, so not in its table. The words are those of the witness's JSON. Read
by the witness, by METRICS.md, and by the guard tests that hold the dashboards and alerts against it.
"""

from __future__ import annotations

from typing import Final

from samplicator.views.metric import Metric

_B = ("receiver", "exporter")

WITNESS_METRICS: Final[tuple[Metric, ...]] = tuple(
    Metric(f"witness_{stage}_total", "counter", _B, text, f"balance.{stage}")
    for stage, text in (
        ("lost_before", "Datagrams lost before the relay, by the exporter's sequence numbers."),
        ("lost_at_socket", "Datagrams that the relay's kernel dropped because the receive buffer was full."),
        ("failed", "Copies that failed at the relay."),
        ("lost_on_way", "Copies that the relay sent and that did not arrive at the collector's host."),
        ("dropped_by_collector", "Datagrams that the kernel dropped because the collector's buffer was full."),
        ("taken", "Datagrams that the collector's socket took."),
    )
)
"""From the exporter to the collector."""
