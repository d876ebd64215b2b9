"""Whether a peer is alive, told from heartbeats and from how often data is sent again.

Purpose: the two triggers of a switch to the backup, per association: the first HEARTBEAT without an answer, and the
DATA that was sent most often without being acknowledged. Invariants: pure, with the time given; only a HEARTBEAT ACK is
proof of life: delayed SACKs and the peer's own packets come over a path that is dead in one direction, too; memory is
bounded by what the congestion window lets out. Called by userland (packets that it sees) and kernel. Must never decide
what follows.
"""

from __future__ import annotations

from typing import Final

from samplicator.gateways.sctp.packet import (
    HEARTBEAT,
    HEARTBEAT_ACK,
    Packet,
    Sack,
    data_tsn,
    is_later,
    sack,
)

MOST_OUTSTANDING: Final = 1 << 14
"""DATA chunks that are followed; a congestion window of 24 MB."""


class Liveness:
    """silent_since: when the first heartbeat left that is not answered, 0.0 = all are."""

    def __init__(self) -> None:
        self.silent_since = 0.0
        self.answers = 0
        self._times: dict[int, int] = {}  # TSN -> how often it was sent; in the order of the TSNs, if `_sorted`
        self._sorted = True
        self._highest: int | None = None

    @property
    def transmissions(self) -> int:
        """Of the DATA chunk that was sent most often and is not acknowledged; 0: all is."""
        return max(self._times.values(), default=0)

    def leaves(self, packet: Packet, now: float) -> None:
        for chunk in packet.chunks:
            if chunk.kind == HEARTBEAT:
                self.asked(now)
            elif (tsn := data_tsn(packet, chunk)) is not None and (
                tsn in self._times or len(self._times) < MOST_OUTSTANDING
            ):
                self._sent(tsn)

    def arrives(self, packet: Packet) -> None:
        for chunk in packet.chunks:
            if chunk.kind == HEARTBEAT_ACK:
                self.answered()
            elif (found := sack(packet, chunk)) is not None:
                self._acknowledged(found)

    def asked(self, now: float) -> None:
        self.silent_since = self.silent_since or now

    def answered(self) -> None:
        self.silent_since = 0.0
        self.answers += 1

    def _sent(self, tsn: int) -> None:
        if self._highest is None or is_later(tsn, self._highest):
            self._highest = tsn
        elif tsn not in self._times:  # the peer took its acknowledgment back
            self._sorted = False
        self._times[tsn] = self._times.get(tsn, 0) + 1

    def _acknowledged(self, found: Sack) -> None:
        if not self._sorted:
            self._times = dict(sorted(self._times.items(), key=lambda one: (one[0] - found.cumulative) & 0xFFFFFFFF))
            self._times = {tsn: times for tsn, times in self._times.items() if is_later(tsn, found.cumulative)}
            self._sorted = True
        while self._times:
            tsn = next(iter(self._times))
            if is_later(tsn, found.cumulative):
                break
            del self._times[tsn]
        for first, last in found.ranges:
            if last - first < len(self._times):
                gone = [(found.cumulative + offset) & 0xFFFFFFFF for offset in range(first, last + 1)]
            else:
                gone = [tsn for tsn in self._times if first <= (tsn - found.cumulative) & 0xFFFFFFFF <= last]
            for tsn in gone:
                self._times.pop(tsn, None)
