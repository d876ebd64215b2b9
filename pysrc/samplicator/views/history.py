"""History: rates of the last 15 minutes, in steps of about five seconds.

Purpose: `sample` reads the counters and keeps what each has grown by since the sample before: of all together, of every
listener and receiver, and of the exporters that sent the most (busiest). Invariants: the memory is fixed by the number
of listeners and receivers (SLOTS numbers of four bytes for each measure) and by EXPORTERS, whatever the uptime; time is
monotonic; the history of removed names is dropped, the others keep theirs; a counter that restarts, in a receiver that
was removed and added, never gives a negative rate. `sample` is called by service, from one thread at a time; `page` by
http, from any. It must never take a lock that a worker takes.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypedDict, get_args

from samplicator.logs import RateGate
from samplicator.readings import ListenerReading, Readings, ReceiverReading, wall_ns
from samplicator.views.busiest import Busiest, Tally
from samplicator.views.growth import growth
from samplicator.views.receivers import failed

if TYPE_CHECKING:
    from samplicator.supervisor.view import View

log = logging.getLogger(__name__)

STEP_SECONDS: Final = 5.0
"""How often `sample` is called, about; a sample knows its true length."""
SECONDS: Final = 900
"""How far back one can look."""
EXPORTERS: Final = 200
SAMPLES: Final = int(SECONDS / STEP_SECONDS)
SLOTS: Final = SAMPLES + 4
"""Some to spare, so that an answer that is under way is not overwritten."""

Kind = Literal["totals", "listeners", "receivers", "exporters"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

MEASURES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "listeners": ("datagrams", "bytes", "matched", "rejected", "truncated", "kernel_drops"),
    "receivers": ("offered", "sent", "bytes", "skipped", "failed"),
    "exporters": ("datagrams", "bytes", "lost"),
    "totals": (
        *("datagrams", "bytes", "matched", "rejected", "truncated", "kernel_drops"),
        *("offered", "sent", "sent_bytes", "skipped", "failed"),
    ),
}
"""What is kept of each. The first one never falls while its counters live."""


class Series(TypedDict):
    """The rates of one series."""

    name: Annotated[str, "Name of the listener or receiver, address of the exporter, or `totals`."]
    units: Annotated[list[str], "Exporters: unit of `lost`."]
    rates: Annotated[
        dict[str, list[float | None]],
        "Per second, by measure, as long as `times_unix`; null before the first sample. Totals: datagrams, bytes, "
        "matched, rejected, truncated, kernel_drops, offered, sent, sent_bytes, skipped, failed; listeners: the first "
        "six of them; receivers: offered, sent, bytes, skipped, failed; exporters: datagrams, bytes, lost.",
    ]


class HistoryHead(TypedDict):
    """Data common to all series of a page."""

    kind: Kind
    step_seconds: Annotated[float, "Approximate length of a step."]
    times_unix: Annotated[list[float], "End of each step, oldest first."]
    seconds: Annotated[list[float], "Exact length of each step."]


class HistoryPage(HistoryHead):
    """A page of rates of the last 15 minutes."""

    series: list[Series]
    after: Annotated[str | None, "Start of the next page; null on the last page."]


@dataclass(frozen=True, slots=True)
class Window:
    """Steps by their number, the last one left out."""

    first: int
    end: int


class Track:
    """The rates of one thing. number: rises with every track; born: its first step. Rates are of 24 bits, which is more
    than a curve can show.
    """

    __slots__ = ("born", "last", "name", "number", "rates")

    def __init__(self, number: int, name: str, width: int, born: int) -> None:
        self.number = number
        self.name = name
        self.born = born
        self.last: Sequence[int] = ()
        self.rates = array("f", bytes(4 * width * SLOTS))

    def put(self, step: int, grown: Sequence[int], seconds: float) -> None:
        for place, count in enumerate(grown):
            self.rates[place * SLOTS + step % SLOTS] = count / seconds


class History:
    """See above."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._busiest = Busiest(view, EXPORTERS)
        self._lock = threading.Lock()  # of all that is below; no worker takes it
        self._gate = RateGate()
        self._numbers = 0
        self._tracks: dict[Kind, dict[str, Track]] = {kind: {} for kind in KINDS}
        self._units: Mapping[str, frozenset[str]] = {}
        self.tallies: Sequence[Tally] = ()
        """Of the exporters that send the most, as of the last sample; replaced as a whole."""
        self._ends = array("Q", bytes(8 * SLOTS))  # of steps: CLOCK_MONOTONIC in ns
        self._lengths = array("Q", bytes(8 * SLOTS))
        self._steps = 0
        self._last_ns = 0

    # ------------------------------------------------------------------ writing

    def sample(self) -> Readings:
        """One more step; returns the readings it was made from, even if the step fails: others live on them."""
        readings = self._view.readings()
        now_ns = time.monotonic_ns()
        try:
            exporters = self._busiest.take(now_ns)
            units = self._busiest.names
            self.tallies = self._busiest.tallies
            with self._lock:
                self._take(readings, exporters, now_ns)
                self._units = units
        except Exception:
            if self._gate.add(("history",), 1, now_ns / 1e9):
                log.exception("a step of the history failed; samplicator tries again at the next step")
        return readings

    def _take(self, readings: Readings, exporters: Mapping[str, Sequence[int]], now_ns: int) -> None:
        """The first time it is a beginning and no step."""
        listeners = {item.name: listener_counts(item) for item in readings.listeners}
        receivers = {item.name: receiver_counts(item) for item in readings.receivers}
        length = max(now_ns - self._last_ns, 1)
        received = self._grow("listeners", listeners, length / 1e9)
        sent = self._grow("receivers", receivers, length / 1e9)
        self._keep("exporters", exporters, length / 1e9)
        self._keep("totals", {"totals": (*received, *sent)}, length / 1e9)
        if self._last_ns:
            self._ends[self._steps % SLOTS] = now_ns
            self._lengths[self._steps % SLOTS] = length
            self._steps += 1
        self._last_ns = now_ns

    def _grow(self, kind: Kind, counters: Mapping[str, Sequence[int]], seconds: float) -> list[int]:
        """Keeps what counters have grown by; returns the sum over all of them."""
        known = self._tracks[kind]
        grown = {name: growth(known[name].last if name in known else now, now) for name, now in counters.items()}
        self._keep(kind, grown, seconds)
        for name, now in counters.items():
            known[name].last = now
        return [sum(column) for column in zip(*grown.values(), strict=True)] or [0] * len(MEASURES[kind])

    def _keep(self, kind: Kind, grown: Mapping[str, Sequence[int]], seconds: float) -> None:
        known = self._tracks[kind]
        for name in known.keys() - grown.keys():
            del known[name]
        for name, counts in grown.items():
            track = known.get(name)
            if track is None:  # what it has grown by is known from the next step on, or at the start from the first
                self._numbers += 1
                born = self._steps + (self._last_ns > 0)
                track = known[name] = Track(self._numbers, name, len(MEASURES[kind]), born)
            if self._last_ns:
                track.put(self._steps, counts, seconds)

    # ------------------------------------------------------------------ reading

    def window(self, seconds: float = SECONDS) -> Window:
        """The steps of the last so many seconds."""
        with self._lock:
            oldest = time.monotonic_ns() - int(seconds * 1e9)
            first = max(0, self._steps - SAMPLES)
            while first < self._steps and self._ends[first % SLOTS] < oldest:
                first += 1
            return Window(first, self._steps)

    def head(self, kind: Kind, window: Window) -> HistoryHead:
        """What holds for all series."""
        with self._lock:
            slots = [step % SLOTS for step in range(window.first, window.end)]
            return {
                "kind": kind,
                "step_seconds": STEP_SECONDS,
                "times_unix": [round(wall_ns(self._ends[slot]) / 1e9, 3) for slot in slots],
                "seconds": [round(self._lengths[slot] / 1e9, 3) for slot in slots],
            }

    def series(self, kind: Kind, window: Window, after: int = 0, name: str = "") -> Iterator[tuple[int, Series]]:
        """(number, series) of all, or of one by name, those with numbers above `after`. One is made at a time."""
        with self._lock:
            tracks = [
                track for track in self._tracks[kind].values() if track.number > after and name in ("", track.name)
            ]
        for track in sorted(tracks, key=lambda track: track.number):
            with self._lock:
                made = self._series(kind, track, window)
            yield track.number, made

    def _series(self, kind: Kind, track: Track, window: Window) -> Series:
        missing: list[float | None] = [None] * (min(max(track.born, window.first), window.end) - window.first)
        slots = [step % SLOTS for step in range(window.first + len(missing), window.end)]
        rates = {
            measure: [*missing, *(round(track.rates[place * SLOTS + slot], 1) for slot in slots)]
            for place, measure in enumerate(MEASURES[kind])
        }
        return {"name": track.name, "units": sorted(self._units.get(track.name, ())), "rates": rates}


def listener_counts(item: ListenerReading) -> tuple[int, ...]:
    """What MEASURES names of a listener."""
    return (
        *(item.counters[name] for name in ("datagrams", "bytes", "matched")),
        item.counters["unmatched"] + item.counters["denied"],
        item.counters["truncated"],
        item.kernel_drops,
    )


def receiver_counts(item: ReceiverReading) -> tuple[int, ...]:
    """What MEASURES names of a receiver."""
    return (
        *(item.counters[name] for name in ("offered", "sent", "sent_bytes", "skipped")),
        failed(item.counters),
    )
