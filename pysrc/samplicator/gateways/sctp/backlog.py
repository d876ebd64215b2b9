"""What waits to be sent: bounded in flow records, the oldest goes first when there is no room.

Invariants: pure; every message that is put in comes out once, by `take` or as dropped; the newest message stays, even
if it alone has more records than the limit. Called by exporting. Must never count: who called knows why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class Item(NamedTuple):
    """A message. stream: 0 = templates and options. records: flow records in it."""

    message: bytes
    stream: int
    records: int


class Backlog:
    """limit: records, 1 or more. records, octets: that wait now."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.records = 0
        self.octets = 0
        self._items: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> list[Item]:
        """Behind all others. Returns what is dropped for it, the oldest first."""
        self._items.append(item)
        self.records += item.records
        self.octets += len(item.message)
        return self._shrink()

    def put_back(self, items: Sequence[Item]) -> list[Item]:
        """Before all others, in their order: they were taken and not delivered. Returns what is dropped."""
        self._items.extendleft(reversed(items))
        self.records += sum(item.records for item in items)
        self.octets += sum(len(item.message) for item in items)
        return self._shrink()

    def _shrink(self) -> list[Item]:
        dropped = []
        while self.records > self.limit and len(self._items) > 1:
            dropped.append(self.take())
        return dropped

    def first(self) -> Item | None:
        """What is to be sent next."""
        return self._items[0] if self._items else None

    def take(self) -> Item:
        """`first`, and it is gone. Raises IndexError when there is none."""
        item = self._items.popleft()
        self.records -= item.records
        self.octets -= len(item.message)
        return item
