"""Counters: the position of each field in the tuples of the compiled counters, by its name.

A row of counters is a tuple in the order of the datapath's enum (fastpath, counters.pxd); no other module uses
positions. Called by datapath, health and supervisor.
"""

from __future__ import annotations

from typing import Final

from samplicator import _fastpath

TX_FIELDS: Final = _fastpath.TX_FIELDS
RX_FIELDS: Final = _fastpath.RX_FIELDS
WORKER_FIELDS: Final = _fastpath.WORKER_FIELDS
FEATURES: Final = {
    "segment": _fastpath.GAVE_UP_SEGMENT,
    "transparent": _fastpath.GAVE_UP_TRANSPARENT,
    "packet": _fastpath.GAVE_UP_PACKET,
    "copier": _fastpath.GAVE_UP_COPIER,
}
"""What the kernel can refuse, and the bit of Tx.gave_up that says so."""
NOTHING_SENT: Final = (0,) * len(TX_FIELDS)
NOTHING_RECEIVED: Final = (0,) * len(RX_FIELDS)
DATAGRAMS: Final = RX_FIELDS.index("datagrams")
OFFERED: Final = TX_FIELDS.index("offered")
SENT: Final = TX_FIELDS.index("sent")
SENT_BYTES: Final = TX_FIELDS.index("sent_bytes")
CALLS: Final = TX_FIELDS.index("calls")
REFUSED: Final = TX_FIELDS.index("failed_refused")
NO_ROUTE: Final = TX_FIELDS.index("failed_no_route")
NO_NEIGHBOR: Final = TX_FIELDS.index("failed_no_neighbor")
WAKEUPS: Final = WORKER_FIELDS.index("wakeups")
HEARTBEAT: Final = WORKER_FIELDS.index("heartbeat_ns")
NO_LATENCY: Final = (0,) * (len(_fastpath.LATENCY_BOUNDS_NS) + 1)
"""Counts of the latency histogram, one for each bound and +Inf."""
