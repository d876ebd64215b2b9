"""Drops: which exporters' datagrams the collector's sockets dropped.

The kernel counts drops per socket, not per exporter. So the counters are read every few milliseconds, between packets,
and as often as possible while a socket is nearly full. What came between two readings is known one by one, and mostly
either all of it was dropped or nothing. Where only a part was, the queue's memory before and after tells which part: a
datagram is dropped if it does not fit. Invariants: a datagram is entered once. Called by watch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from samplicator.witness.memory import Memory
from samplicator.witness.sockets import Queues
from samplicator.witness.split import Split
from samplicator.witness.streams import Stream, Streams

TRIES: Final = 20
"""Readings until packets that came during each reading are taken as they are."""
IDLE_SECONDS: Final = 0.25
"""How often the counters are read while nothing comes."""
ALERT_SECONDS: Final = 1.0
"""How long they are read as often as possible, after a socket became half full or dropped something."""
KEPT: Final = 256
"""Arrivals of the reading before that a drop may belong to: they were on their way from the wire to the socket."""


class Drops:
    """split: dropped (first) and taken (second), by exporter; taken only of readings with drops. ordered: datagrams
    that were told apart by their order alone. alert_until: read as often as possible until then (CLOCK_MONOTONIC).
    """

    def __init__(self, queues: Queues, streams: Streams, name: Callable[[Stream], str]) -> None:
        self.split = Split()
        self.ordered = 0
        self.seen = False  # whether there was a socket at all
        self.alert_until = 0.0
        self._queues = queues
        self._streams = streams
        self._name = name
        self._memory = Memory()
        self._before: list[Stream] = []
        self._dropped = self._tries = self._queued = 0
        self._full = self._near = False
        self._sampled = 0.0

    def step(self, read: Callable[[], int]) -> None:
        """One reading. read: enters the packets that wait into the streams, and returns how many they were."""
        arrivals, lengths = self._streams.arrivals, self._streams.lengths
        many = len(arrivals)
        now = time.monotonic()
        if not many and not self._dropped and now - self._sampled < IDLE_SECONDS:
            return
        self._sampled = now
        dropped = self._queues.sample()
        self.seen = self.seen or bool(self._queues.known)
        near = self._is_full(2)
        if dropped or (near and not self._near):
            self.alert_until = now + ALERT_SECONDS
        self._near = near
        queued = sum(queue.queued_bytes for queue in self._queues.known.values())
        if not dropped and not self._dropped:
            if many and now < self.alert_until and len(self._queues.known) == 1:
                self._memory.learn(lengths[:many], queued - self._queued)
            self._before = arrivals[max(0, many - KEPT) : many] or self._before
            del arrivals[:many]
            del lengths[:many]
            self._full = False
            self._queued = queued
            return
        self._dropped += dropped
        self._tries += 1
        if read() and self._tries < TRIES:
            return
        self._decide(queued if len(arrivals) == many else -1)
        self._queued = queued
        self._before = arrivals[-KEPT:]
        self._clear()

    def finish(self) -> None:
        """Nothing more comes."""
        if self._dropped:
            self._decide(-1)
        self._clear()

    def _clear(self) -> None:
        self._dropped = self._tries = 0
        self._streams.arrivals.clear()
        self._streams.lengths.clear()

    def _decide(self, queued: int) -> None:
        """queued: bytes in the queues after all that came, -1 = not known."""
        dropped, came = self._dropped, list(self._streams.arrivals)
        if dropped > len(came):
            came = self._before[len(came) - dropped :] + came
        names = [self._name(stream) for stream in came]
        full = self._is_full()
        if 0 < dropped < len(names) and len(set(names)) > 1:
            part = self._by_memory(queued)
            if part is None and full != self._full:
                part = list(range(len(names)))[-dropped:] if full else list(range(dropped))
                self.ordered += dropped
            if part is not None:
                names = [names[place] for place in part]
        self.split.add(dropped, Counter(names), patience=1)
        self._full = full

    def _by_memory(self, queued: int) -> list[int] | None:
        """Which of the arrivals the only socket dropped, as far as its memory tells."""
        if queued < 0 or len(self._queues.known) != 1:
            return None
        queue = next(iter(self._queues.known.values()))
        lengths = self._streams.lengths
        return self._memory.dropped(lengths, self._queued, queued, queue.buffer_bytes, self._dropped)

    def _is_full(self, part: int = 16) -> bool:
        """Whether less than a part of a socket's buffer, 1/`part` or what a large datagram needs, is free."""
        return any(
            queue.buffer_bytes - queue.queued_bytes < max(4096, queue.buffer_bytes // part)
            for queue in self._queues.known.values()
            if queue.queued_bytes
        )
