"""All exporters as they send now: one pass after the other over the table of observation domains.

Purpose: what each exporter has sent and lost since the pass before, per listener, and the sums of those that share a
route. Invariants: one `step` looks at SCAN places and asks for ROUTES routes at most, so that a table of any size costs
a bounded time (a larger table needs several steps for a pass); at most CROWD exporters are told apart, of the others
their sums by listener are kept; the memory is one small object for each domain and exporter. Called by live, from one
thread at a time. It must never take a lock that a worker takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from samplicator.config.address import address_text
from samplicator.readings import Activity, Route
from samplicator.views.flow import unit

SCAN: Final = 10_000
"""Places of observation domains that are looked at in one step."""
CHUNK: Final = 500
ROUTES: Final = 1000
"""Routes that are asked for in one step."""
CROWD: Final = 20_000
SENDING_NS: Final = 10_000_000_000
"""Who was heard in this time is sending."""

FADING: Final = 0.8
"""Who sends in bursts keeps a place among those who send the most."""

NOTHING: Final = (0, 0, 0)
Key = tuple[bytes, int]
"""Packed address of an exporter, and slot of the listener that hears it."""
Group = tuple[int, tuple[str, ...], tuple[str, ...], bool] | None
"""Slot of a listener, receivers, pools, denied; None = not asked yet, or its listener is gone."""


class Sessions(Protocol):
    """What is asked of the view of what runs."""

    @property
    def generation(self) -> int: ...

    def flow_extent(self) -> Mapping[int, int]: ...

    def flow_activity(self, worker: int, numbers: Iterable[int]) -> list[Activity]: ...

    def listener_names(self) -> dict[int, str]: ...

    def route(self, address: bytes, port: int = 0, listener: str = "") -> Route: ...


class Sender:
    """An exporter at a listener. domains: how many of its observation domains were met. datagrams, bytes, lost: totals
    of them. last: how much they grew in the last complete pass; grown: the same of pass `turn`. seen_ns: of its last
    datagram, CLOCK_MONOTONIC. lately: datagrams, the last passes weigh most. route: index in Pass.routes.
    """

    __slots__ = (
        "bytes",
        "datagrams",
        "domains",
        "grown",
        "key",
        "kinds",
        "last",
        "lately",
        "lost",
        "route",
        "seen_ns",
        "turn",
    )

    def __init__(self, key: Key) -> None:
        self.key = key
        self.domains = self.datagrams = self.bytes = self.lost = self.seen_ns = self.turn = 0
        self.grown = [0, 0, 0]
        self.last = NOTHING
        self.kinds: tuple[tuple[str, str], ...] = ()
        self.lately = 0.0
        self.route = -1

    @property
    def address(self) -> str:
        """As text; "" = the sum of those beyond CROWD."""
        return address_text(self.key[0]) if self.key[0] else ""


class _Domain:
    """A place of the table when it was last looked at, and whose it is."""

    __slots__ = ("bytes", "datagrams", "first_ns", "lost", "sender", "style")

    def __init__(self, row: Activity, sender: Sender) -> None:
        self.first_ns, self.style, self.sender = row.first_ns, row.style, sender
        self.datagrams, self.bytes, self.lost = row.datagrams, row.bytes, row.lost


@dataclass(slots=True)
class Shared:
    """Those that have one route. grown: of all of them, as in Sender."""

    group: Group
    exporters: int = 0
    sending: int = 0
    grown: list[int] = field(default_factory=lambda: [0, 0, 0])


@dataclass(slots=True)
class Pass:
    """What a pass over the table has found. seconds: since the one before, 0 = there was none. sending: those who were
    heard lately.
    """

    seconds: float = 0.0
    senders: list[Sender] = field(default_factory=list)
    routes: list[Shared] = field(default_factory=list)
    exporters: int = 0
    sending: int = 0


class Crowd:
    """See above. last: the last pass that was completed."""

    def __init__(self, sessions: Sessions, scan: int = SCAN, most: int = CROWD) -> None:
        self.last = Pass()
        self._sessions = sessions
        self._scan = scan
        self._most = most
        self._domains: dict[int, list[_Domain | None]] = {}  # by worker and number
        self._senders: dict[Key, Sender] = {}
        self._next = (0, 1)
        self._turn = 1  # of the pass that is under way
        self._begun_ns = 0  # when it began, and the one before
        self._before_ns = 0
        self._ended_ns = 0
        self._routes: dict[Key, Group] = {}
        self._generation = -1

    def step(self, now_ns: int) -> Pass:
        """Looks at the next places; returns the last pass that is complete. now_ns: CLOCK_MONOTONIC."""
        if self._next == (0, 1):
            self._begun_ns = now_ns
        looked, ended = self._slice(self._sessions.flow_extent())
        for worker, numbers in looked:
            known = self._domains.setdefault(worker, [])
            known.extend([None] * (numbers[-1] + 1 - len(known)))
            for begin in range(0, len(numbers), CHUNK):
                asked = numbers[begin : begin + CHUNK]
                rows = self._sessions.flow_activity(worker, asked)
                if len(rows) < len(asked):
                    self._forget(known, asked, rows)
                self._count(known, rows)
        if ended:
            self._complete(now_ns)
        return self.last

    def _slice(self, extent: Mapping[int, int]) -> tuple[list[tuple[int, range]], bool]:
        """The places to look at now, and whether the pass ends with them."""
        worker, number = self._next
        room, looked = self._scan, list[tuple[int, range]]()
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

    def _count(self, known: list[_Domain | None], rows: Iterable[Activity]) -> None:
        """Most of the time of a step is spent here."""
        turn = self._turn
        for row in rows:
            number, _, _, style, first_ns, datagrams, octets, lost, _, seen_ns = row[:10]  # the last one is seen_ns
            domain = known[number]
            if domain is None or domain.first_ns != first_ns:
                if datagrams:  # else it was carried here, and nothing came yet
                    self._meet(known, row)
                continue
            more = datagrams - domain.datagrams
            if not more:
                continue
            sender = domain.sender
            grown = sender.grown
            if sender.turn != turn:
                sender.turn = turn
                grown[0] = grown[1] = grown[2] = 0
            grown[0] += more
            grown[1] += octets - domain.bytes
            sender.datagrams += more
            sender.bytes += octets - domain.bytes
            if lost != domain.lost:  # what was late is taken back: that is no growth
                sender.lost += lost - domain.lost
                grown[2] += max(0, lost - domain.lost)
                domain.lost = lost
            domain.datagrams, domain.bytes = datagrams, octets
            if seen_ns > sender.seen_ns:
                sender.seen_ns = seen_ns
            if style != domain.style:
                domain.style = style
                _learn(sender, row)

    def _meet(self, known: list[_Domain | None], row: Activity) -> None:
        """A domain that was not there before: younger than the last pass, it counts from its beginning, else from now
        on.
        """
        self._leave(known, row.number)
        key = (row.address, row.listener)
        if key not in self._senders and len(self._senders) >= self._most:
            key = (b"", row.listener)
        sender = self._senders.get(key)
        if sender is None:
            sender = self._senders[key] = Sender(key)
        known[row.number] = _Domain(row, sender)
        counts = (row.datagrams, row.bytes, row.lost)
        sender.domains += 1
        sender.datagrams += row.datagrams
        sender.bytes += row.bytes
        sender.lost += row.lost
        sender.seen_ns = max(sender.seen_ns, row.seen_ns)
        if sender.turn != self._turn:
            sender.turn, sender.grown = self._turn, [0, 0, 0]
        if row.first_ns > self._before_ns > 0:
            sender.grown = [old + new for old, new in zip(sender.grown, counts, strict=True)]
        _learn(sender, row)

    def _forget(self, known: list[_Domain | None], asked: Iterable[int], rows: Iterable[Activity]) -> None:
        """Places that are empty now."""
        there = {row.number for row in rows}
        for number in asked:
            if known[number] is not None and number not in there:
                self._leave(known, number)

    def _leave(self, known: list[_Domain | None], number: int) -> None:
        domain = known[number]
        if domain is not None:
            known[number], sender = None, domain.sender
            sender.domains -= 1
            sender.datagrams -= domain.datagrams
            sender.bytes -= domain.bytes
            sender.lost -= domain.lost
            if not sender.domains:
                self._senders.pop(sender.key, None)

    def _complete(self, now_ns: int) -> None:
        names, generation = self._sessions.listener_names(), self._sessions.generation
        if generation != self._generation or len(self._routes) > 2 * self._most:
            self._routes.clear()
            self._generation = generation
        shared: dict[Group, Shared] = {}
        turn, routes, questions, heard = self._turn, self._routes, ROUTES, now_ns - SENDING_NS
        groups: list[Shared] = []
        for key, sender in self._senders.items():
            group = routes.get(key)
            if group is None and questions > 0:
                questions -= 1
                group = self._ask(key, names)
            place = shared.get(group)
            if place is None:
                place = shared[group] = Shared(group)
            groups.append(place)
            place.exporters += 1
            if sender.seen_ns > heard:
                place.sending += 1
            sender.lately *= FADING
            grown = sender.grown
            sender.last = NOTHING
            if sender.turn == turn and grown[0]:
                sender.last = (grown[0], grown[1], grown[2])
                sender.lately += grown[0]
                place.grown[0] += grown[0]
                place.grown[1] += grown[1]
                place.grown[2] += grown[2]
        ordered = sorted(shared.values(), key=lambda each: (each.group is None, -each.exporters))
        places = {id(each): index for index, each in enumerate(ordered)}
        for sender, place in zip(self._senders.values(), groups, strict=True):
            sender.route = places[id(place)]
        self.last = Pass(
            seconds=(now_ns - self._ended_ns) / 1e9 if self._ended_ns else 0.0,
            senders=[each for key, each in self._senders.items() if key[0]],
            routes=ordered,
            exporters=sum(each.exporters for each in ordered),
            sending=sum(each.sending for each in ordered),
        )
        self._ended_ns, self._before_ns = now_ns, self._begun_ns
        self._turn += 1

    def _ask(self, key: Key, names: Mapping[int, str]) -> Group:
        if key[1] not in names or not key[0]:
            return None
        try:
            route = self._sessions.route(key[0], listener=names[key[1]])
        except (KeyError, RuntimeError):  # the plan changes just now
            return None
        found = self._routes[key] = (key[1], route.receivers, route.pools, route.denied)
        return found


def _learn(sender: Sender, row: Activity) -> None:
    """Its protocols, and what their losses count."""
    kind = (row.protocol, unit(row))
    if kind not in sender.kinds and len(sender.kinds) < 8:
        sender.kinds += (kind,)
