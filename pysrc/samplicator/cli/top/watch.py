"""What `top` knows: answers of the API, and rates between two looks at them.

Purpose: `Watch.look` asks the daemon and returns a Snapshot. Invariants: the counters are the API's, a rate is their
growth between two looks of ours (views.growth), a curve is the API's history; a table of many exporters or sessions is
asked for so rarely that it costs a small part of one CPU; what has an unexpected form is reported as such. Called by
command and fetcher. It must never change anything in the daemon.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from samplicator.cli.api import Api
from samplicator.cli.top.notes import notes
from samplicator.errors import Unreachable
from samplicator.views.growth import growth
from samplicator.views.latency import quantile

Row = dict[str, Any]
Rates = Mapping[str, float | None]

LISTENER_RATES: Final = ("datagrams", "bytes", "matched", "rejected", "truncated", "kernel_drops")
RECEIVER_RATES: Final = ("offered", "sent", "bytes", "skipped", "failed")
EXPORTER_RATES: Final = ("datagrams", "bytes", "lost", "unknown", "templates_added")
SESSION_RATES: Final = ("messages", "octets")
TOTALS: Final = (*LISTENER_RATES, "offered", "sent", "sent_bytes", "skipped", "failed")
"""The measures have the names that they have in the API's history. The first of each never falls while it counts."""
OWN_SHARE: Final = 30
"""Asking for all exporters or sessions takes one part in so many of this process's time at most,"""
SHARE: Final = 8
"""and the daemon, which has other things to do, works or waits on it for one part in so many;"""
LONGEST_SECONDS: Final = 60.0
"""but it happens at least this often."""
MOST_ROWS: Final = 100_000
TREND_SECONDS: Final = 5.0
TREND_STEPS: Final = 24
TREND_OF: Final = {"listeners": "datagrams", "receivers": "sent", "exporters": "datagrams"}


@dataclass(frozen=True, slots=True)
class Paged:
    """A table that comes in pages. name: in the path and in the answer. begin: of the first page. rates: of which
    counters. key: what a row is. age: the field with the seconds since a row's counters began, "" = it has none.
    """

    name: str
    begin: str
    rates: Sequence[str]
    key: Callable[[Row], Hashable]
    age: str = ""


PAGED: Final = {
    "exporters": Paged(
        "activity",
        "0.0",
        EXPORTER_RATES,
        lambda row: (row["place"], row["exporter"], row["port"], row["domain"]),
        "known_seconds",
    ),
    "sessions": Paged(
        "sessions",
        "0",
        SESSION_RATES,
        lambda row: (row["side"], row["gateway"], row["name"], row["exporter"], row["peer"]),
    ),
}
"""By the table of a page."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a table that comes in pages, as they were last seen. due: when to look again. period: how old the
    rows may become. looks: since the rates began anew; number: all of them. cut: there are more rows than these.
    """

    rows: list[Row] = field(default_factory=list)
    due: float = 0.0
    period: float = 0.0
    looks: int = 0
    number: int = 0
    cut: bool = False


class Meter:
    """Rates of many rows of counters."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.unknown: Rates = dict.fromkeys(names)
        self._before: Mapping[Any, Sequence[int]] = {}
        self._ages: Mapping[Any, float] = {}
        self._found: dict[Any, Rates] = {}
        self._when: float | None = None

    def take(
        self, when: float, counts: Mapping[Any, Sequence[int]], ages: Mapping[Any, float], least: float = 0.0
    ) -> dict[Any, Rates]:
        """Rates by key, since the last call. when: of these counts, in seconds on a monotonic clock. ages: seconds
        since a row's counters began, by the daemon's clock, where that is known: it tells exactly how much time lies
        between two counts, and that a row that is younger than the last call has counted since then. least: a call
        that comes sooner has the rates of the one before.
        """
        seconds = max(1e-3, when - self._when) if self._when is not None else 0.0
        if 0.0 < seconds < least:
            return {key: self._found.get(key, self.unknown) for key in counts}
        found: dict[Any, Rates] = {}
        for key, now in counts.items():
            before = self._before.get(key)
            age = ages.get(key, float("inf"))
            if before is None and seconds and age < seconds:
                before = (0,) * len(now)
            if before is None or not seconds:
                found[key] = self.unknown
            else:
                passed = age - self._ages[key] if key in self._ages else seconds
                if not 0.0 < passed < 2 * seconds:  # it is another one now
                    passed = seconds
                grown = growth(before, now)
                found[key] = {name: count / passed for name, count in zip(self.names, grown, strict=True)}
        self._before, self._ages, self._found, self._when = counts, ages, found, when
        return found

    def forget(self) -> None:
        """The next call is the first one."""
        self._before, self._ages, self._found, self._when = {}, {}, {}, None


@dataclass(slots=True)
class Snapshot:
    """What was seen at one look. seconds: that rates are made of, None = this is the first look. notes: what needs
    attention, in sentences. rates: of all together. latency: mean, and what 99 % are below, in seconds. rows: by table;
    each has `rates`, and `trend` where there is a history of it. tables: those that come in pages.
    """

    unix: float
    seconds: float | None
    status: Mapping[str, Any]
    notes: Sequence[str]
    rates: Rates
    latency: tuple[float, float] | None
    rows: dict[str, list[Row]]
    trends: Mapping[str, Sequence[float | None]]
    tables: Mapping[str, Table]


class Watch:
    """See above. patient: false = every look asks for all that it shows, whatever that costs."""

    def __init__(self, api: Api, *, patient: bool = True) -> None:
        self._api = api
        self._patient = patient
        self._meters = {
            "listeners": Meter(LISTENER_RATES),
            "receivers": Meter(RECEIVER_RATES),
            **{kind: Meter(paged.rates) for kind, paged in PAGED.items()},
        }
        self._latency: tuple[list[int], float] | None = None
        self._latency_shown: tuple[float, float] | None = None
        self._when: float | None = None
        self._seconds: float | None = None
        self._tables: dict[str, Table] = {}
        self._trends: dict[str, dict[str, list[float | None]]] = {}
        self._trends_due: dict[str, float] = {}

    @property
    def name(self) -> str:
        """Of the daemon."""
        return self._api.name

    def look(self, tables: Collection[str], trends: Iterable[str] = (), least: float = 0.0) -> Snapshot:
        """Asks now. tables: that are shown; those that come in pages are asked for only then. trends: kinds of history
        that are shown. least: seconds that a rate is made of. Raises Unreachable, and then the rates begin anew.
        """
        try:
            return self._look(tables, trends, least)
        except Unreachable:
            self._forget()
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            self._forget()
            raise Unreachable(
                f"{self._api.name}: an answer has an unexpected form ({type(error).__name__}: {error}); "
                "is this a samplicator of the same version?"
            ) from error

    def templates(self, place: str) -> list[Row]:
        """The templates of the observation domain at a place. Raises Unreachable."""
        worker, number = place.split(".")
        after: str | None = f"{int(worker)}.{int(number) - 1}"
        found: list[Row] = []
        try:
            for _ in range(100):
                answer = self._api.get(f"/api/v1/templates?after={after}&limit=1")
                rows = [row for row in answer["domains"] if row["place"] == place]
                for row in rows:
                    found += row["templates"]
                after = answer["after"]
                if not rows or not after or after.count(".") < 2:
                    break
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unreachable(f"{self._api.name}: the templates have an unexpected form") from error
        return found

    def _forget(self) -> None:
        for meter in self._meters.values():
            meter.forget()
        self._latency = self._when = None
        self._tables = {kind: replace(table, due=0.0, looks=0) for kind, table in self._tables.items()}
        self._trends_due.clear()

    def _look(self, tables: Collection[str], trends: Iterable[str], least: float) -> Snapshot:
        when, unix = time.monotonic(), time.time()
        status = self._api.get("/api/v1/status")
        if self._when is None or when - self._when >= least:
            self._seconds = when - self._when if self._when is not None else None
            self._latency_shown = self._take_latency(status["latency"])
            self._when = when
        gateways = self._api.get("/api/v1/gateways")
        rows = {
            "listeners": self._take("listeners", _listener, least),
            "receivers": self._take("receivers", _receiver, least),
        }
        for kind in PAGED.keys() & tables:
            self._take_paged(kind, time.monotonic())
            rows[kind] = self._tables[kind].rows
        self._take_trends({"totals", *trends}, time.monotonic())
        for kind in trends:
            known = self._trends.get(kind, {})
            for row in rows.get(kind, ()):
                row["trend"] = known.get(row["exporter" if kind == "exporters" else "name"])
        return Snapshot(
            unix,
            self._seconds,
            status,
            notes(status, rows["listeners"], rows["receivers"], gateways),
            _totals(rows["listeners"], rows["receivers"]),
            self._latency_shown,
            rows,
            self._trends.get("totals", {}),
            dict(self._tables),
        )

    def _take(self, kind: str, counts: Callable[[Row], Sequence[int]], least: float) -> list[Row]:
        before = time.monotonic()
        rows: list[Row] = self._api.get(f"/api/v1/{kind}")
        when = (before + time.monotonic()) / 2
        rates = self._meters[kind].take(when, {row["name"]: counts(row) for row in rows}, {}, least)
        for row in rows:
            row["rates"] = rates[row["name"]]
        return rows

    def _take_paged(self, kind: str, now: float) -> None:
        """Asks for all rows of a table, if it is time."""
        paged, table, begin = PAGED[kind], self._tables.get(kind, Table()), time.thread_time()
        if self._patient and now < table.due:
            return
        rows: list[Row] = []
        after: str | int | None = paged.begin
        for _ in range(2 * MOST_ROWS // 1000):
            page = self._api.get(f"/api/v1/{paged.name}?after={after}")
            rows += page[paged.name]
            after = page["after"]
            if not after or len(rows) >= MOST_ROWS or not page[paged.name]:
                break
        end = time.monotonic()
        keys = [paged.key(row) for row in rows]
        counts = {key: [row[name] for name in paged.rates] for key, row in zip(keys, rows, strict=True)}
        ages = {key: row[paged.age] for key, row in zip(keys, rows, strict=True)} if paged.age else {}
        rates = self._meters[kind].take((now + end) / 2, counts, ages)
        for key, row in zip(keys, rows, strict=True):
            row["rates"] = rates[key]
        cost = time.monotonic() - now
        period = min(LONGEST_SECONDS, max(SHARE * cost, OWN_SHARE * (time.thread_time() - begin)))
        # the second look comes soon, because there are no rates before it
        due = now + (max(1.0, 2 * cost) if not table.looks else period)
        self._tables[kind] = Table(rows, due, period, table.looks + 1, table.number + 1, bool(after))

    def _take_latency(self, value: Mapping[str, Any]) -> tuple[float, float] | None:
        """Of what was forwarded since the last look."""
        now = [value["datagrams"], *value["counts"]]
        before, self._latency = self._latency, (now, value["sum_seconds"])
        if before is None or len(before[0]) != len(now):
            return None
        count, *grown = growth(before[0], now)
        total = value["sum_seconds"] - (before[1] if now[0] >= before[0][0] else 0.0)
        share = quantile(0.99, value["bounds_seconds"], grown)
        return (max(0.0, total) / count, share) if count and share is not None else None

    def _take_trends(self, kinds: Iterable[str], now: float) -> None:
        """Asks for the history that is older than one of its steps."""
        for kind in kinds:
            if now < self._trends_due.get(kind, 0.0):
                continue
            self._trends_due[kind] = now + TREND_SECONDS
            known: dict[str, list[float | None]] = {}
            after: str | None = "0"
            for _ in range(100):
                last = int((TREND_STEPS + 2) * TREND_SECONDS)
                page = self._api.get(f"/api/v1/history?kind={kind}&seconds={last}&after={after}")
                for series in page["series"]:
                    rates = series["rates"]
                    if kind == "totals":
                        lost = zip(rates["kernel_drops"], rates["failed"], strict=True)
                        known |= {
                            "received": rates["datagrams"],
                            "sent": rates["sent"],
                            "lost": [None if a is None or b is None else a + b for a, b in lost],
                        }
                    else:
                        known[series["name"]] = rates[TREND_OF[kind]]
                after = page["after"]
                if not after:
                    break
            self._trends[kind] = known


def _listener(row: Row) -> tuple[int, ...]:
    c = row["counters"]
    rejected = c["unmatched"] + c["denied"]
    return c["datagrams"], c["bytes"], c["matched"], rejected, c["truncated"], row["kernel_drops"]


def _receiver(row: Row) -> tuple[int, ...]:
    c = row["counters"]
    return c["offered"], c["sent"], c["sent_bytes"], c["skipped"], row["failed"]


def _totals(listeners: Sequence[Row], receivers: Sequence[Row]) -> Rates:
    """Sums of the rates that are known; None before the first one is."""

    def total(rows: Sequence[Row], name: str) -> float | None:
        known = [row["rates"][name] for row in rows if row["rates"][name] is not None]
        return sum(known) if known else None

    return {name: total(listeners, name) for name in LISTENER_RATES} | {
        ("sent_bytes" if name == "bytes" else name): total(receivers, name) for name in RECEIVER_RATES
    }
