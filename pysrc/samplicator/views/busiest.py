"""The exporters that sent the most lately, and what each sent since it was last asked for.

Purpose: with ten thousand exporters, a history of each would be of no use and cost much; these are the ones to keep one
of. Invariants: one `take` looks at SCAN places of observation domains at most, so that a table of any size costs a
bounded time; the memory is a few numbers for each place of the table, and for each exporter that is followed. Called by
history, from one thread at a time. It must never take a lock that a worker takes.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from samplicator.config.address import address_text
from samplicator.readings import Activity
from samplicator.views.flow import unit

SCAN: Final = 10_000
"""Places of observation domains that are looked at in one go."""
CHUNK: Final = 500
EPOCH_NS: Final = 300_000_000_000
EPOCHS: Final = 3
"""What counts for the order is what was sent in the last EPOCHS epochs, the one that runs being the last of them."""
CROWD: Final = 20_000
"""Exporters that one pass over the table counts; when there are more, those with the least are forgotten."""
BONUS: Final = 16
"""Who is followed stays so until another sent a sixteenth more: equals do not take turns."""

Place = tuple[int, int]
"""Worker, and number of a domain."""
Counts = tuple[int, int, int]
"""Datagrams, bytes, and units lost before us."""


class Sessions(Protocol):
    """What is asked of the view of what runs."""

    def flow_extent(self) -> Mapping[int, int]:
        """Largest number of an observation domain, by worker."""

    def flow_activity(self, worker: int, numbers: Iterable[int]) -> list[Activity]:
        """What the domains with these numbers have counted; without those that are empty."""


class Tally(NamedTuple):
    """What an exporter has sent since it is followed. unit: of lost, "mixed" if its domains have several."""

    exporter: str
    unit: str
    datagrams: int
    bytes: int
    lost: int


@dataclass(slots=True)
class Followed:
    """An exporter that is followed. units: what `lost` counts, of all its domains. taken: sum of all that was taken."""

    places: dict[Place, Counts] = field(default_factory=dict)
    units: set[str] = field(default_factory=set)
    grown: list[int] = field(default_factory=lambda: [0, 0, 0])
    taken: Counts = (0, 0, 0)

    def meet(self, place: Place, now: Activity, since_ns: int) -> None:
        """Counts of one of its domains. A domain that is met for the first time counts from now on, but from nothing
        when it is younger than the last meeting with all of them (since_ns).
        """
        counts = (now.datagrams, now.bytes, now.lost)
        before = self.places.get(place)
        if before is None:
            before = (0, 0, 0) if now.first_ns > since_ns else counts
        self.places[place] = counts
        self.units.add(unit(now))
        for index, (new, old) in enumerate(zip(counts, before, strict=True)):
            self.grown[index] += new - old if new >= old else new

    def take(self) -> Counts:
        """What has come since the last call."""
        datagrams, octets, lost = self.grown
        self.grown = [0, 0, 0]
        before = self.taken
        self.taken = (before[0] + datagrams, before[1] + octets, before[2] + lost)
        return datagrams, octets, lost


class _Marks:
    """By number of a domain, of one worker: its datagrams when it was last seen, and at the beginning of epochs."""

    def __init__(self) -> None:
        self.seen = array("Q")
        self.before: deque[array[int]] = deque(maxlen=EPOCHS)

    def lately(self, number: int, datagrams: int) -> int:
        """Notes the count; how many of them came lately."""
        if number >= len(self.seen):
            self.seen.frombytes(bytes(8 * (number + 1024 - len(self.seen))))
        if datagrams < self.seen[number]:  # another domain has the place
            for mark in self.before:
                if number < len(mark):
                    mark[number] = 0
        self.seen[number] = datagrams
        oldest = self.before[0] if self.before else ()
        return datagrams - (min(oldest[number], datagrams) if number < len(oldest) else 0)

    def turn(self) -> None:
        """A new epoch begins."""
        self.before.append(self.seen[:])


class Busiest:
    """See above. most: exporters that are followed."""

    def __init__(self, sessions: Sessions, most: int, scan: int = SCAN) -> None:
        self._sessions = sessions
        self._most = most
        self._scan = scan
        self._marks: dict[int, _Marks] = {}
        self._followed: dict[bytes, Followed] = {}
        self._sums: dict[bytes, int] = {}  # of the pass that is under way
        self._next: Place = (0, 1)
        self._met: set[Place] = set()
        self._met_ns = 0  # when the last look began
        self._epoch_ns = 0

    @property
    def names(self) -> Mapping[str, frozenset[str]]:
        """The exporters that are followed, and the units of their losses."""
        return {address_text(address): frozenset(each.units) for address, each in self._followed.items()}

    @property
    def tallies(self) -> list[Tally]:
        """Of each exporter that is followed and was met: sums that never fall while it is followed."""
        return [
            Tally(address_text(address), next(iter(each.units)) if len(each.units) == 1 else "mixed", *each.taken)
            for address, each in self._followed.items()
            if each.units
        ]

    def take(self, now_ns: int) -> dict[str, Counts]:
        """By exporter that is followed, what came of it since the last call. now_ns: CLOCK_MONOTONIC."""
        if not self._epoch_ns or now_ns - self._epoch_ns >= EPOCH_NS:
            for marks in self._marks.values():
                marks.turn()
            self._epoch_ns = now_ns
        extent = self._sessions.flow_extent()
        looked, ended = self._slice(extent)
        for worker, numbers in looked:
            self._look(worker, numbers, self._count)
        self._meet_others(looked)
        self._met_ns = now_ns
        if ended:
            self._choose()
        return {address_text(address): each.take() for address, each in self._followed.items()}

    def _slice(self, extent: Mapping[int, int]) -> tuple[list[tuple[int, range]], bool]:
        """The places to look at now, and whether the pass ends with them."""
        worker, number = self._next
        room = self._scan
        looked = []
        for index in sorted(extent):
            if index < worker:
                continue
            begin = number if index == worker else 1
            end = min(extent[index], begin + room - 1)
            if end >= begin:
                looked.append((index, range(begin, end + 1)))
                room -= end - begin + 1
            if end < extent[index]:
                self._next = (index, end + 1)
                return looked, False
        self._next = (0, 1)
        return looked, True

    def _look(self, worker: int, numbers: Sequence[int], use: Callable[[int, Activity], None]) -> None:
        for begin in range(0, len(numbers), CHUNK):
            for now in self._sessions.flow_activity(worker, numbers[begin : begin + CHUNK]):
                use(worker, now)

    def _count(self, worker: int, now: Activity) -> None:
        marks = self._marks.get(worker) or self._marks.setdefault(worker, _Marks())
        lately = marks.lately(now.number, now.datagrams)
        self._sums[now.address] = self._sums.get(now.address, 0) + lately
        if len(self._sums) > CROWD:
            self._sums = dict(heapq.nlargest(CROWD // 2, self._sums.items(), key=lambda item: item[1]))
        self._meet(worker, now)

    def _meet(self, worker: int, now: Activity) -> None:
        followed = self._followed.get(now.address)
        if followed is not None:
            self._met.add((worker, now.number))
            followed.meet((worker, now.number), now, self._met_ns)

    def _meet_others(self, looked: Sequence[tuple[int, range]]) -> None:
        """Places of those who are followed, beyond what was looked at; and those that are theirs no more go."""
        ranges = dict(looked)
        beyond: dict[int, list[int]] = {}
        for followed in self._followed.values():
            for worker, number in followed.places:
                if number not in ranges.get(worker, ()):
                    beyond.setdefault(worker, []).append(number)
        for worker, numbers in beyond.items():
            self._look(worker, numbers, self._meet)
        for followed in self._followed.values():
            for place in followed.places.keys() - self._met:
                del followed.places[place]
        self._met.clear()

    def _choose(self) -> None:
        """The pass is complete: chooses the exporters to follow, without those that were always silent."""
        sums, self._sums = self._sums, {}
        rank = (
            (count + (count // BONUS + 1 if address in self._followed else 0), address)
            for address, count in sums.items()
            if count
        )
        best = heapq.nlargest(self._most, rank)
        self._followed = {address: self._followed.get(address) or Followed() for _, address in best}
