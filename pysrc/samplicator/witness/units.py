"""From missing units to missing datagrams, for exporters whose sequence numbers count flows or records.

The sizes of an exporter's datagrams are learned from those that came: NetFlow v5 writes its flows into the header, and
two IPFIX messages that follow each other differ by the records of the first, which go with its length. A gap of one
size is one datagram. Pure. Called by cuts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

M32: Final = 0xFFFFFFFF
HALF: Final = 1 << 31
SEQUENCE: Final = {"netflow5": 16, "netflow7": 16, "netflow8": 16, "netflow9": 12, "ipfix": 8}
MOST_LENGTHS: Final = 512
MOST_SIZES: Final = 100
SAMPLE: Final = 2000
"""Datagrams that are looked at between two cuts when nothing is missing."""


def sequence_of(kind: str, header: bytes) -> int:
    """The sequence number in a header; sFlow has it behind the agent's address."""
    at = SEQUENCE.get(kind) or len(header) - 12
    return int.from_bytes(header[at : at + 4], "big")


def ahead(sequence: int, of: int) -> bool:
    """Whether a number comes after another one (RFC 1982)."""
    return 0 < (sequence - of) & M32 < HALF


class Sizes:
    """Of one observation domain."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._last = b""
        self._steps: dict[int, Counter[int]] = {}  # IPFIX, v9: length or 0 -> how much the number grew
        self._known: Counter[int] = Counter()

    def learn(self, headers: Sequence[bytes]) -> None:
        """Headers in the order in which they came."""
        if self._kind in ("netflow5", "netflow7", "netflow8"):
            for header in headers:
                self._known[header[2] << 8 | header[3]] += 1
            return
        before = self._last
        for header in headers:
            if before:
                step = (sequence_of(self._kind, header) - sequence_of(self._kind, before)) & M32
                length = before[2] << 8 | before[3]
                if step < HALF and (length in self._steps or len(self._steps) < MOST_LENGTHS):
                    self._steps.setdefault(length, Counter())[step] += 1
            before = header
        self._known = Counter()
        for steps in self._steps.values():
            (step, _), *_ = steps.most_common(1)
            self._known[step] += sum(steps.values())

    def at(self, header: bytes) -> None:
        """Where to go on: the last header in order."""
        self._last = header

    def gaps(self, headers: Sequence[bytes]) -> list[int]:
        """Units missing between headers, and in front of the first of them."""
        found = []
        before = self._last
        for header in headers:
            if before:
                step = (sequence_of(self._kind, header) - sequence_of(self._kind, before)) & M32
                gap = step - self._units(before)
                if 0 < gap < HALF:
                    found.append(gap)
                elif step >= HALF:  # late: it closes a gap
                    found.append(-self._units(header))
                    continue
            before = header
        return found

    def _units(self, header: bytes) -> int:
        count = header[2] << 8 | header[3]
        if self._kind in ("netflow5", "netflow7", "netflow8"):
            return count
        steps = self._steps.get(count)
        return steps.most_common(1)[0][0] if steps else round(self.mean)

    @property
    def mean(self) -> float:
        """Units of a datagram that has some."""
        many = sum(count for size, count in self._known.items() if size)
        return sum(size * count for size, count in self._known.items()) / many if many else 1.0

    def datagrams(self, units: int, gaps: Sequence[int], others: int = 0) -> tuple[int, int]:
        """Datagrams that had so many units, and by how many that may be wrong. gaps: units missing on the wire, one by
        one; others: datagrams that are missing there and were not lost before the relay.
        """
        if units <= 0:
            return (0, 0) if not units else (-max(1, round(-units / self.mean)), 1)
        sizes = {size for size in self._known if size} or {1}
        if len(sizes) == 1:
            size = sizes.pop()
            return max(1, round(units / size)), int(units % size != 0)
        found = [self._one(gap, sizes) for gap in gaps if gap > 0]
        if sum(gaps) != units:
            count = sum(count for count, _ in found) - others
            if -(-units // max(sizes)) <= count <= max(1, units // min(sizes)):
                return count, sum(slack for _, slack in found)
            found = [self._one(units, sizes)]
        return sum(count for count, _ in found), sum(slack for _, slack in found)

    def _one(self, gap: int, sizes: set[int]) -> tuple[int, int]:
        """Datagrams of one gap: as few as there can be, if they are few; otherwise by the mean."""
        low, high = -(-gap // max(sizes)), max(1, gap // min(sizes))
        if low >= high:
            return low, 0
        fewest = _fewest(gap, sizes)
        if fewest:
            return fewest, 0 if fewest == 1 else high - fewest
        count = min(max(low, round(gap / self.mean)), high)
        return count, max(high - count, count - low)


def _fewest(gap: int, sizes: set[int]) -> int:
    """Of how few sizes, each as often as needed, the gap is the sum, if of three at most; 0 = of more, or none."""
    if gap in sizes:
        return 1
    if any(gap - one in sizes for one in sizes):
        return 2
    few = len(sizes) <= MOST_SIZES
    return 3 if few and any(gap - one - two in sizes for one in sizes for two in sizes) else 0
