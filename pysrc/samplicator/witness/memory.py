"""What datagrams take of a socket's buffer, and which of some did not fit.

The kernel accounts for more than the bytes of a datagram (skb->truesize): a size class that grows with the packet, and
that depends on the device. It is learned from how a queue grew. Pure. Called by drops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Final

CLASSES: Final = (512, 576, 640, 704, 768, 832, 896, 960, 1280, 2304, 4352)
"""Usual sizes in bytes, where packets were made on a host of this kernel (net/core/skbuff.c, kmalloc_reserve())."""
MOST_LENGTHS: Final = 6
MOST_ARRIVALS: Final = 16
MOST_BATCHES: Final = 512
LEAST_TIMES: Final = 2
"""How often a queue must have grown alike to be believed: a packet may be seen just before it is in the queue."""


class Memory:
    """Of one witness."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], Counter[int]] = {}

    def learn(self, lengths: Sequence[int], grown: int) -> None:
        """Packets of these lengths came, none was dropped, and the queue grew by so much."""
        batch = tuple(sorted(lengths))
        if len(batch) > MOST_ARRIVALS or grown <= sum(batch):
            return
        if batch in self._seen or len(self._seen) < MOST_BATCHES:
            self._seen.setdefault(batch, Counter())[grown] += 1

    def dropped(self, lengths: Sequence[int], before: int, after: int, limit: int, count: int) -> list[int] | None:
        """Which `count` of the packets did not fit into a queue that nobody read: their places; None = it is not clear.
        before, after, limit: bytes in the queue, and its buffer. Since Linux 6.16 a datagram is dropped if it does not
        fit; before, if the buffer was full already (net/ipv4/udp.c, __udp_enqueue_schedule_skb()).
        """
        known = sorted(set(lengths))
        if len(known) > MOST_LENGTHS or len(lengths) > 4 * MOST_ARRIVALS:
            return None
        facts = [
            (batch, grown)
            for batch, seen in self._seen.items()
            if set(batch) <= set(known)
            for grown, times in seen.most_common(1)
            if times >= LEAST_TIMES
        ]
        facts = sorted(facts, key=lambda fact: len(fact[0]))[:MOST_ARRIVALS]
        classes = sorted({*CLASSES, *(grown for batch, grown in facts if len(batch) == 1)})
        found: set[tuple[int, ...]] = set()
        for chosen in combinations_with_replacement(classes, len(known)):
            sizes = dict(zip(known, chosen, strict=True))
            if all(sum(sizes[length] for length in batch) == grown for batch, grown in facts):
                for fits in (True, False):
                    out = _played([sizes[length] for length in lengths], before, after, limit, fits=fits)
                    if out is not None and len(out) == count:
                        found.add(out)
        return list(found.pop()) if len(found) == 1 else None


def _played(sizes: Sequence[int], before: int, after: int, limit: int, *, fits: bool) -> tuple[int, ...] | None:
    """What would have been dropped; None = the queue would be another one. fits: see Memory.dropped."""
    queued, out = before, []
    for place, size in enumerate(sizes):
        if queued + (size if fits else 0) > limit:
            out.append(place)
        else:
            queued += size
    return tuple(out) if queued == after else None
