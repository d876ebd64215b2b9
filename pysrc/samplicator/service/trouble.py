"""Trouble: logs what the kernel refused or dropped, once per minute for each receiver or listener and reason, never per
datagram.

Compares two successive readings. The totals are in the metrics; these lines are for readers of the log. Called by
service.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from samplicator.logs import RateGate
from samplicator.readings import Readings, Unmatched

log = logging.getLogger(__name__)

SEND: Final = {
    "failed_no_route": "there is no route to the receiver",
    "failed_no_neighbor": "the receiver's host or the next hop does not answer",
    "failed_message_too_long": "the copy is too long for a packet",
    "failed_no_buffer_space": "the send queue stayed full",
    "failed_refused": "the receiver's port is closed",
    "failed_permission": "the kernel does not permit it (firewall?)",
    "failed_other": "other errors",
    "failed_loop": "the copies would come back in a loop",
}
RECEIVE: Final = {
    "truncated": "longer than max_datagram",
    "errors_nomem": "receive calls failed, no memory",
    "errors_other": "broken packets in a ring, or receive calls failed",
}


UNMATCHED_SECONDS: Final = 3600.0
"""How often exporters that are known to match no rule are named again."""
UNMATCHED_NAMED: Final = 5


class Trouble:
    """Remembers the last readings. report() is not thread-safe: one caller."""

    def __init__(self, interval_seconds: float = 60.0) -> None:
        self._gate = RateGate(interval_seconds)
        self._last: dict[tuple[str, str], Mapping[str, int]] = {}
        self._named: dict[str, tuple[float, frozenset[str]]] = {}  # listener -> when, and who matched no rule then

    def report(self, readings: Readings, now: float | None = None, unmatched: Sequence[Unmatched] = ()) -> None:
        """Logs what went wrong since the last call. unmatched: exporters that no rule matches."""
        moment = time.monotonic() if now is None else now
        for listener in readings.listeners:
            self._say_unmatched(
                listener.name,
                listener.counters.get("unmatched", 0),
                [u.address for u in unmatched if u.listener == listener.name],
                moment,
            )
        seen: dict[tuple[str, str], Mapping[str, int]] = {}
        for listener in readings.listeners:
            key = ("listener", listener.name)
            seen[key] = {**listener.counters, "kernel_drops": listener.kernel_drops}
            for field, why in RECEIVE.items():
                self._say(key, seen[key], field, f"listener {listener.name!r}: {{}} datagrams dropped: {why}", moment)
            full = f"listener {listener.name!r}: the kernel dropped {{}} datagrams: the receive buffer or ring was full"
            self._say(key, seen[key], "kernel_drops", full, moment)
        for receiver in readings.receivers:
            key = ("receiver", receiver.name)
            seen[key] = receiver.counters
            place = receiver.place
            for field, why in SEND.items():
                text = f"receiver {receiver.name!r} at {place}: {{}} copies failed: {why}"
                self._say(key, seen[key], field, text, moment)
        for key in self._last.keys() - seen.keys():
            self._gate.forget(f"{key[0]} {key[1]}")
        self._last = seen

    def _say_unmatched(self, listener: str, total: int, exporters: Sequence[str], now: float) -> None:
        """Logs datagrams that match no rule and their exporters: once per minute while new exporters appear, otherwise
        once per hour."""
        count = total - self._last.get(("listener", listener), {}).get("unmatched", 0)
        named_at, named = self._named.get(listener, (0.0, frozenset()))
        fresh = listener not in self._named or bool(set(exporters) - named) or now - named_at >= UNMATCHED_SECONDS
        count = self._gate.add((f"listener {listener}", "unmatched"), count, now) if fresh else 0
        if not count:
            return
        self._named[listener] = (now, frozenset(exporters))
        more = len(exporters) - UNMATCHED_NAMED
        names = ", ".join(exporters[:UNMATCHED_NAMED]) + (f" and {more} more" if more > 0 else "")
        log.warning(
            "listener %r: %d datagrams%s match no rule and are not forwarded; name the senders in `from` of a rule, or "
            "(to drop them on purpose) in `from` of a rule with to = [] and stop = true",
            listener,
            count,
            f" of {names}" if names else "",
            extra={"fields": {"listener": listener, "reason": "unmatched", "count": count}},
        )

    def _say(self, key: tuple[str, str], counters: Mapping[str, int], field: str, text: str, now: float) -> None:
        grown = counters[field] - self._last.get(key, {}).get(field, 0)
        count = self._gate.add((f"{key[0]} {key[1]}", field), grown, now)
        if count:
            log.warning(text.format(count), extra={"fields": {key[0]: key[1], "reason": field, "count": count}})
