"""What waits to be sent: bounded in flow records, the oldest goes first when there is no room.

Invariants: pure; every message that is put in comes out once, by `take` or as dropped; the newest message stays, even
if it alone has more records than the limit. Called by exporting. Must never count: who called knows why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple


class Item(NamedTuple):
    """A message. stream: 0 = templates and options. records: flow records in it. before: of one that replaces
    templates: what a collector has to know for the data before it, as messages; None: it replaces nothing. teaches: it
    has templates.
    """

    message: bytes
    stream: int
    records: int
    before: Sequence[bytes] | None = None
    teaches: bool = False

    @property
    def control_octets(self) -> int:
        """What it takes, of a message for stream 0."""
        return 0 if self.stream else len(self.message) + sum(map(len, self.before or ()))


class Backlog:
    """limit: records, 1 or more. records, octets: that wait now. turns: messages for stream 0 among them, which keep
    their place in the order, and control_octets what they take.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.records = 0
        self.octets = 0
        self.turns = 0
        self.control_octets = 0
        self._items: deque[Item] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> list[Item]:
        """Behind all others. Returns what is dropped for it, the oldest first."""
        self._items.append(item)
        self._count(item, 1)
        return self._shrink()

    def put_back(self, items: Sequence[Item]) -> list[Item]:
        """Before all others, in their order: they were taken and not delivered. Returns what is dropped."""
        self._items.extendleft(reversed(items))
        for item in items:
            self._count(item, 1)
        return self._shrink()

    def _count(self, item: Item, sign: int) -> None:
        self.records += sign * item.records
        self.octets += sign * len(item.message)
        self.turns += sign * (item.stream == 0)
        self.control_octets += sign * item.control_octets

    def _shrink(self) -> list[Item]:
        """Messages for stream 0 stay."""
        dropped: list[Item] = []
        kept: list[Item] = []
        while self.records > self.limit and len(self._items) > 1:
            item = self.take()
            (dropped if item.stream else kept).append(item)
        self._items.extendleft(reversed(kept))
        for item in kept:
            self._count(item, 1)
        return dropped

    def clear(self) -> list[Item]:
        """Everything is dropped; returns the data."""
        dropped = [item for item in self._items if item.stream]
        self._items.clear()
        self.records = self.octets = self.turns = self.control_octets = 0
        return dropped

    @property
    def before(self) -> Sequence[bytes] | None:
        """What a collector must know for the first message; None: nothing that waits replaces a template."""
        if not self.turns:
            return None
        return next((item.before for item in self._items if item.before is not None), None)

    def first(self) -> Item | None:
        """What is to be sent next."""
        return self._items[0] if self._items else None

    def take(self) -> Item:
        """`first`, and it is gone. Raises IndexError when there is none."""
        item = self._items.popleft()
        self._count(item, -1)
        return item
