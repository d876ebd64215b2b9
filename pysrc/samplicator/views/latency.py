"""How long datagrams are in samplicator, as it is shown: from the kernel's receive time stamp to the end of the send.

Pure: readings in, plain values out. Called by status; the command line draws the same shape, and asks `quantile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypedDict

if TYPE_CHECKING:
    from samplicator.readings import Readings


class Latency(TypedDict):
    """Times that datagrams spent in samplicator, of all listeners together, since the start."""

    datagrams: int
    sum_seconds: float
    bounds_seconds: Annotated[list[float], "Upper bound of each count but the last, which has none."]
    counts: Annotated[list[int], "Datagrams, by their time: above the bound before, not above this one."]


def latency(readings: Readings) -> Latency:
    """Of a moment."""
    return {
        "datagrams": sum(readings.latency_counts),
        "sum_seconds": readings.latency_sum_ns / 1e9,
        "bounds_seconds": [bound / 1e9 for bound in readings.latency_bounds_ns],
        "counts": list(readings.latency_counts),
    }


def quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """The lowest bound that this share of what was counted does not exceed; infinity above all bounds, None when
    nothing was counted. share: 0..1.
    """
    wanted = share * sum(counts)
    if not wanted:
        return None
    passed = 0
    for bound, count in zip(bounds, counts, strict=False):
        passed += count
        if passed >= wanted:
            return bound
    return float("inf")
