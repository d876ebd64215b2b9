"""What waits to be sent: bounded in flow records and bytes, the oldest goes first when there is no room.

Invariants: pure; every message that is put in comes out once, by `take` or as dropped; the newest message with data
stays, even if it alone has more records than the limit, and messages for stream 0 stay; a message counts as one record
at least, whatever it says of itself. Called by exporting. Must never count what is dropped: who called knows why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from samplicator.gateways.budget import Budget

Before = Callable[[], Sequence[bytes]]
MOST_BYTES: Final = 8 << 20
"""Of one exporter."""


class Item(NamedTuple):
    """A message. stream: 0 = templates and options. records: flow records in it. before: of one that replaces
    templates: makes the messages that a collector needs for the data before it; None: it replaces nothing. teaches: it
    has templates. epoch: of data: how many messages before it replaced templates.
    """

    message: bytes
    stream: int
    records: int
    before: Before | None = None
    teaches: bool = False
    epoch: int = 0

    @property
    def weight(self) -> int:
        """Of the limit."""
        return max(self.records, 1) if self.stream else 0


class Backlog:
    """limit: records, 1 or more. budget: bytes, shared with others. records, octets: that wait now. turns: messages for
    stream 0 among them, which keep their place in the order, and control_octets what they take.
    """

    def __init__(self, limit: int, budget: Budget | None = None) -> None:
        self.limit = limit
        self._budget = budget or Budget(MOST_BYTES)
        self._weight = 0
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
        size = len(item.message)
        self.records += sign * item.records
        self.octets += sign * size
        self.turns += sign * (item.stream == 0)
        self.control_octets += sign * size * (item.stream == 0)
        self._weight += sign * item.weight
        self._budget.left -= sign * size

    @property
    def _is_full(self) -> bool:
        return self._weight > self.limit or self.octets > MOST_BYTES or self._budget.left < 0

    def _shrink(self) -> list[Item]:
        dropped: list[Item] = []
        kept: list[Item] = []
        while self._is_full and len(self._items) - self.turns > 1:
            item = self.take()
            (dropped if item.stream else kept).append(item)
        self._items.extendleft(reversed(kept))
        for item in kept:
            self._count(item, 1)
        return dropped

    def clear(self) -> list[Item]:
        """Everything is dropped; returns the data."""
        every = [self.take() for _ in range(len(self._items))]
        return [item for item in every if item.stream]

    @property
    def before(self) -> Before | None:
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
