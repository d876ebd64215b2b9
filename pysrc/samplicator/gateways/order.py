"""One count of messages that several streams share, though streams keep no order among each other.

Purpose: NetFlow v9 counts the messages of an exporting process (RFC 3954 section 5.1), on whatever stream they go;
IPFIX counts each stream by itself (RFC 7011 section 3.1). Pure; at most WINDOW numbers are kept. Called by heard.
"""

from __future__ import annotations

from typing import Final

WINDOW: Final = 64
"""A message that so many later ones have overtaken is lost."""
U32: Final = 0xFFFFFFFF
HALF: Final = 1 << 31


def ahead(a: int, b: int) -> int:
    """By how much a is ahead of b, negative: behind; of numbers of 32 bits."""
    return ((a - b + HALF) & U32) - HALF


class Shared:
    """One domain. The first message is the one that it is made with."""

    __slots__ = ("_first", "_missing", "_top")

    def __init__(self, first: int) -> None:
        self._first = first
        self._top = (first - 1) & U32
        self._missing: dict[int, None] = {}  # the oldest first

    def fits(self, own: int) -> bool:
        """Whether the first number of another stream goes on with this count: it is near, and was not there yet."""
        if abs(ahead(own, (self._top + 1) & U32)) > WINDOW:
            return False
        was_there = ahead(own, self._first) >= 0 and ahead(self._top, own) >= 0 and own not in self._missing
        return not was_there

    def forget(self) -> None:
        """What is missing was told already."""
        self._missing.clear()

    def take(self, own: int) -> int:
        """A message with this number came. How many are known to be lost now that were not before."""
        step = ahead(own, self._top)
        lost = 0
        if step > 0:
            lost = max(step - 1 - WINDOW, 0)
            for number in range(step - 1 - lost, 0, -1):
                self._missing[(own - number) & U32] = None
            self._top = own
        else:
            self._missing.pop(own, None)
        while self._missing and ahead(self._top, next(iter(self._missing))) > WINDOW:
            del self._missing[next(iter(self._missing))]
            lost += 1
        return lost
