"""The history of the last 15 minutes: its rates, what a reload and a restarted counter do to it, its bounds, and whom
it takes for the busiest exporters.
"""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from samplicator.config.address import address_text
from samplicator.http import app, listing, rows
from samplicator.readings import Activity, Readings
from samplicator.views import history
from samplicator.views.busiest import EPOCH_NS, EPOCHS, Busiest
from samplicator.views.history import MEASURES, History, Kind, Series
from support.state import make_readings, make_state

STEP = 5 * 10**9
BASE = make_readings(zero=True)


class Clock:
    """CLOCK_MONOTONIC, in our hands."""

    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self) -> int:
        return self.now


class Relay:
    """A view of counters that the test sets, and of a table of observation domains."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {"one": 0}
        self.received: dict[str, int] = {"in": 0}
        self.failed = 0
        self.table: dict[int, dict[int, Activity]] = {0: {}}
        self.looked = 0

    def readings(self) -> Readings:
        receiver, listener = BASE.receivers[0], BASE.listeners[0]
        return replace(
            BASE,
            receivers=tuple(
                replace(
                    receiver,
                    name=name,
                    counters={**receiver.counters, "offered": count, "sent": count - self.failed,
                              "sent_bytes": 100 * count, "failed_refused": self.failed},
                )
                for name, count in self.sent.items()
            ),
            listeners=tuple(
                replace(listener, name=name, counters={**listener.counters, "datagrams": count, "matched": count})
                for name, count in self.received.items()
            ),
        )  # fmt: skip

    def flow_extent(self) -> dict[int, int]:
        return {worker: max(places, default=0) for worker, places in self.table.items()}

    def flow_activity(self, worker: int, numbers: Iterable[int]) -> list[Activity]:
        wanted = list(numbers)
        self.looked += len(wanted)
        places = self.table.get(worker, {})
        return [places[number] for number in wanted if number in places]

    def export(self, number: int, who: int, datagrams: int, worker: int = 0, first_ns: int = 1) -> None:
        """So many more datagrams of an exporter, in a place of the table."""
        before = self.table.setdefault(worker, {}).get(number)
        address = who.to_bytes(4, "big")
        count = datagrams + (before.datagrams if before is not None and before.address == address else 0)
        self.table[worker][number] = Activity(
            number, address, "netflow9", "", first_ns, count, 100 * count, count // 10
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic_ns", clock)
    yield clock
    monkeypatch.undo()


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.fixture
def kept(clock: Clock, relay: Relay) -> History:
    kept = History(relay)  # type: ignore[arg-type]
    kept.sample()
    return kept


def step(clock: Clock, kept: History, nanoseconds: int = STEP) -> None:
    clock.now += nanoseconds
    kept.sample()


def shown(kept: History, kind: Kind, seconds: float = history.SECONDS) -> dict[str, Series]:
    return {series["name"]: series for _, series in kept.series(kind, kept.window(seconds))}


# ---------------------------------------------------------------------------------------------------- rates


def test_rates_are_per_second_of_the_true_length(clock: Clock, relay: Relay, kept: History) -> None:
    for grown, length in ((500, STEP), (0, STEP), (700, 7 * 10**9)):
        relay.sent["one"] += grown
        relay.received["in"] += 2 * grown
        step(clock, kept, length)
    assert kept.head("receivers", kept.window())["seconds"] == [5.0, 5.0, 7.0]
    rates = shown(kept, "receivers")["one"]["rates"]
    assert rates["sent"] == rates["offered"] == [100.0, 0.0, 100.0]
    assert rates["bytes"] == [10_000.0, 0.0, 10_000.0]
    assert shown(kept, "listeners")["in"]["rates"]["matched"] == [200.0, 0.0, 200.0]
    totals = shown(kept, "totals")["totals"]["rates"]
    assert (totals["datagrams"], totals["sent"]) == ([200.0, 0.0, 200.0], [100.0, 0.0, 100.0])
    assert {kind: {tuple(series["rates"]) for series in shown(kept, kind).values()} for kind in history.KINDS} == {
        kind: {names} if kind != "exporters" else set() for kind, names in MEASURES.items()
    }


def test_a_counter_that_begins_anew_or_is_corrected_gives_no_negative_rate(
    clock: Clock, relay: Relay, kept: History
) -> None:
    relay.sent["one"] = 5000
    step(clock, kept)
    relay.sent["one"] = 50  # made anew by a reload
    step(clock, kept)
    relay.failed = 10  # copies that were sent turn out to have failed
    step(clock, kept)
    rates = shown(kept, "receivers")["one"]["rates"]
    assert rates["offered"] == [1000.0, 10.0, 0.0]
    assert rates["sent"] == [1000.0, 10.0, 0.0]
    assert rates["failed"] == [0.0, 0.0, 2.0]
    assert all(value is not None and value >= 0 for value in shown(kept, "totals")["totals"]["rates"]["sent"])


def test_a_reload_keeps_the_history_of_those_that_stay(clock: Clock, relay: Relay, kept: History) -> None:
    relay.sent["goes"] = 0
    step(clock, kept)
    relay.sent = {"one": 500, "goes": 500}
    step(clock, kept)
    relay.sent = {"new": 10**9, "one": 1000}  # with counters from somewhere else: no growth
    step(clock, kept)
    relay.sent = {"new": 10**9 + 5, "one": 1000}
    step(clock, kept)
    found = {name: series["rates"]["sent"] for name, series in shown(kept, "receivers").items()}
    assert found == {"one": [0.0, 100.0, 100.0, 0.0], "new": [None, None, None, 1.0]}
    assert shown(kept, "totals")["totals"]["rates"]["sent"] == [0.0, 200.0, 100.0, 1.0]
    relay.sent["goes"] = 7  # it is another one
    step(clock, kept)
    assert shown(kept, "receivers")["goes"]["rates"]["sent"] == [None] * 5


def test_it_ends_after_15_minutes(clock: Clock, relay: Relay, kept: History) -> None:
    for n in range(history.SLOTS * 3):
        relay.sent["one"] += 5 * n
        step(clock, kept)
    rates = shown(kept, "receivers")["one"]["rates"]["sent"]
    assert rates == [float(n) for n in range(history.SLOTS * 3 - history.SAMPLES, history.SLOTS * 3)]
    head = kept.head("receivers", kept.window())
    assert len(head["times_unix"]) == history.SAMPLES
    assert head["times_unix"] == sorted(head["times_unix"])
    assert len(shown(kept, "receivers", 60)["one"]["rates"]["sent"]) == 13
    clock.now += 20 * STEP  # nobody samples: what is too old is not shown
    assert len(shown(kept, "receivers", 60)["one"]["rates"]["sent"]) == 0


def test_a_page_under_way_stays_whole(clock: Clock, relay: Relay, kept: History) -> None:
    """A window shows the same while new steps come, as long as one answer may take."""
    for n in range(history.SLOTS):
        relay.sent["one"] += n
        step(clock, kept)
    window = kept.window()
    before = list(kept.series("receivers", window))
    for _ in range(3):
        relay.sent["one"] += 10**6
        step(clock, kept)
    assert list(kept.series("receivers", window)) == before


def test_a_step_that_fails_keeps_the_readings_coming(
    clock: Clock, relay: Relay, kept: History, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relay, "flow_activity", lambda worker, numbers: 1 // 0)
    relay.export(1, 1, 1)
    for _ in range(3):
        clock.now += STEP
        assert kept.sample().receivers[0].name == "one"
    assert len([record for record in caplog.records if "history failed" in record.message]) == 1
    monkeypatch.undo()
    monkeypatch.setattr(time, "monotonic_ns", clock)
    relay.sent["one"] = 2000
    step(clock, kept)
    assert shown(kept, "receivers")["one"]["rates"]["sent"] == [100.0]


# ---------------------------------------------------------------------------------------------------- exporters


def test_the_200_that_sent_the_most(clock: Clock, relay: Relay, kept: History) -> None:
    for n in range(1, 301):
        relay.export(n, n, n)
    step(clock, kept)
    step(clock, kept)
    assert set(shown(kept, "exporters")) == {address_text(n.to_bytes(4, "big")) for n in range(101, 301)}
    for n in range(1, 301):
        relay.export(n, n, 5 * n)
    relay.export(301, 300, 50, worker=1, first_ns=clock.now + 1)  # the same exporter, another session
    relay.export(7, 7, 10**6)
    step(clock, kept)
    found = shown(kept, "exporters")
    assert found["0.0.1.44"]["rates"]["datagrams"][-1] == 310.0
    assert found["0.0.1.44"]["units"] == ["packets"]
    step(clock, kept)
    found = shown(kept, "exporters")
    assert len(found) == 200
    assert "0.0.0.7" in found
    assert "0.0.0.101" not in found


def test_equals_do_not_take_turns(clock: Clock, relay: Relay) -> None:
    busiest = Busiest(relay, 10)
    followed = []
    for turn in range(20):
        for n in range(1, 101):
            relay.export(n, n, 1000 + (n * 7 + turn * 13) % 11)
        clock.now += STEP
        busiest.take(clock.now)
        followed.append(set(busiest.names))
    assert followed[1:] == [followed[1]] * 19


def test_whoever_is_silent_for_long_goes(clock: Clock, relay: Relay) -> None:
    busiest = Busiest(relay, 10)
    relay.export(1, 1, 10**6)
    busiest.take(clock.now)
    for _ in range(EPOCHS + 1):
        relay.export(2, 2, 1)
        clock.now += EPOCH_NS
        busiest.take(clock.now)
    assert set(busiest.names) == {"0.0.0.2"}


def test_a_table_that_is_larger_than_one_look(clock: Clock, relay: Relay) -> None:
    """Each look is bounded; those who are followed are counted in each, wherever they are; none is missed."""
    busiest = Busiest(relay, 5, scan=100)
    for worker in (0, 1):
        for n in range(1, 501):
            relay.export(n, 1000 * worker + n, n, worker)
    for _ in range(10):
        relay.looked = 0
        busiest.take(clock.now)
        assert relay.looked <= 100 + 10
        clock.now += STEP
    expected = {address_text(n.to_bytes(4, "big")) for n in (500, 1500, 499, 1499)}
    assert expected < set(busiest.names)
    for _ in range(11):  # a pass, until all their places are known
        busiest.take(clock.now)
    for _ in range(3):
        for worker in (0, 1):
            relay.export(500, 1000 * worker + 500, 50, worker)
        clock.now += STEP
        grown = busiest.take(clock.now)
        assert [grown[name][:2] for name in ("0.0.1.244", "0.0.5.220")] == [(50, 5000)] * 2


def test_a_place_that_another_exporter_takes(clock: Clock, relay: Relay) -> None:
    busiest = Busiest(relay, 5)
    relay.export(1, 1, 1000)
    relay.export(2, 2, 500)
    for _ in range(2):
        clock.now += STEP
        busiest.take(clock.now)
    relay.table[0].pop(1)
    relay.export(1, 2, 30, first_ns=clock.now + 1)  # a new domain of the second one
    clock.now += STEP
    assert busiest.take(clock.now) == {"0.0.0.2": (30, 3000, 3)}, "the first one is forgotten"
    clock.now += STEP
    assert busiest.take(clock.now) == {"0.0.0.2": (0, 0, 0)}


# ---------------------------------------------------------------------------------------------------- bounds


def test_memory_is_bounded(clock: Clock, relay: Relay) -> None:
    """500 receivers, 10,000 exporters: about 3.5 MiB, from the first samples on, for ever."""
    relay.sent = {f"receiver {n}": 0 for n in range(500)}
    readings = relay.readings()
    relay.readings = lambda: readings  # type: ignore[method-assign]
    tracemalloc.start()
    try:
        for n in range(1, 10_001):
            relay.export(n, n, n)
        before = tracemalloc.get_traced_memory()[0]
        kept = History(relay)  # type: ignore[arg-type]
        held = []
        for _ in range(12):
            kept.sample()
            clock.now += EPOCH_NS // 2
            relay.export(1, 1, 10)
            held.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert held[-1] < 6 << 20, held
    assert held[-1] < held[3] + (256 << 10), held


def test_answers_come_in_pages(clock: Clock, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PAGE_BYTES", 3 * rows.PIECE_BYTES)
    relay.sent = {f"receiver {n}": 0 for n in range(500)}
    state = make_state()
    state.history = History(relay)  # type: ignore[arg-type]
    for n in range(30):
        relay.sent = {name: count + 12345 * n for name, count in relay.sent.items()}
        state.history.sample()
        clock.now += STEP

    async def go() -> None:
        async with TestClient(TestServer(app.make_app(state))) as client:

            async def get(query: str) -> Any:
                answer = await client.get(f"/api/v1/history?{query}")
                text = await answer.read()
                assert (answer.status, len(text) < listing.PAGE_BYTES + 2 * rows.PIECE_BYTES) == (200, True)
                return json.loads(text)

            names, pages, after = [], 0, "0"
            while after:
                page = await get(f"kind=receivers&after={after}")
                assert {len(series["rates"]["sent"]) for series in page["series"]} == {len(page["times_unix"])}
                names += [series["name"] for series in page["series"]]
                after, pages = page["after"], pages + 1
            assert names == [f"receiver {n}" for n in range(500)]
            assert pages > 2
            one = await get("kind=receivers&name=receiver%2077&seconds=60")
            assert [series["name"] for series in one["series"]] == ["receiver 77"]
            assert len(one["times_unix"]) < 15
            assert (await get(""))["series"][0]["name"] == "totals"
            assert (await get("kind=exporters"))["series"] == []
            assert (await get("kind=receivers&name=nobody"))["after"] is None

    asyncio.run(go())
