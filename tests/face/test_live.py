"""What happens now: the passes over all exporters, the events, and the stream of them: exact, bounded, and no work
while nobody looks.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer
from samplicator.config.address import address_text
from samplicator.http import app, endpoints, events, front
from samplicator.readings import Activity, Route
from samplicator.views import crowd
from samplicator.views.crowd import Crowd
from samplicator.views.live import EXPORTERS, Live, most
from samplicator.views.service import ServiceState
from support.state import FakeView, make_readings, make_state
from support.work import calls_of

SECOND = 1_000_000_000
Client = TestClient[Any, Any]


class Table:
    """A table of observation domains, of one worker or several."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[int, Activity]] = {0: {}}
        self.top: dict[int, int] = {}
        self.generation = 1
        self.names = {4: "in", 5: "other"}
        self.asked = 0
        self.looked = 0

    def flow_extent(self) -> dict[int, int]:
        """As in the datapath: the largest number that a domain ever had."""
        for worker, rows in self.rows.items():
            self.top[worker] = max(self.top.get(worker, 0), *rows, 0)
        return dict(self.top)

    def flow_activity(self, worker: int, numbers: Iterable[int]) -> list[Activity]:
        asked = list(numbers)
        self.looked += len(asked)
        return [self.rows[worker][number] for number in asked if number in self.rows[worker]]

    def listener_names(self) -> dict[int, str]:
        return self.names

    def route(self, address: bytes, port: int = 0, listener: str = "") -> Route:
        self.asked += 1
        return Route((), (), ("odd",) if address[-1] % 2 else ("even", "all"), False, ())

    def put(self, number: int, who: int, datagrams: int, lost: int = 0, *, first: int, now: int, **more: Any) -> None:
        """The totals of a domain."""
        worker = more.pop("worker", 0)
        row = Activity(
            number, who.to_bytes(4, "big"), "netflow9", "", first, datagrams, 100 * datagrams, lost, 0, now, listener=4
        )
        self.rows[worker][number] = row._replace(**more)


def grown(done: crowd.Pass) -> dict[tuple[str, int], tuple[int, int, int]]:
    return {(each.address, each.key[1]): each.last for each in done.senders}


# ---------------------------------------------------------------------------------------------------- passes


def test_a_pass_counts_what_has_come_since_the_pass_before() -> None:
    table, now = Table(), 100 * SECOND
    table.put(1, 1, 1000, first=SECOND, now=now)
    table.put(2, 1, 50, first=SECOND, now=now)
    people = Crowd(table)
    first = people.step(now)
    assert (first.seconds, first.exporters, grown(first)) == (0.0, 1, {("0.0.0.1", 4): (0, 0, 0)})
    table.put(1, 1, 1010, 3, first=SECOND, now=now + SECOND)
    table.put(2, 1, 55, first=SECOND, now=now + SECOND)
    table.put(3, 2, 7, 1, first=now + 1, now=now + SECOND)  # younger than the pass before: all of it is new
    table.put(4, 3, 70, 1, first=now - 1, now=now + SECOND)  # older, only its place is new
    second = people.step(now + 2 * SECOND)
    assert second.seconds == 2.0
    assert grown(second) == {("0.0.0.1", 4): (15, 1500, 3), ("0.0.0.2", 4): (7, 700, 1), ("0.0.0.3", 4): (0, 0, 0)}
    assert [(each.datagrams, each.domains) for each in second.senders] == [(1065, 2), (7, 1), (70, 1)]
    third = people.step(now + 3 * SECOND)
    assert set(grown(third).values()) == {(0, 0, 0)}


def test_a_place_that_goes_to_another_exporter_starts_anew() -> None:
    table, now = Table(), 100 * SECOND
    table.put(1, 1, 1000, first=SECOND, now=now)
    people = Crowd(table)
    people.step(now)
    table.put(1, 2, 2000, first=now + 5, now=now + SECOND)
    done = people.step(now + SECOND)
    assert grown(done) == {("0.0.0.2", 4): (2000, 200000, 0)}
    del table.rows[0][1]
    table.put(2, 9, 0, first=now + 7, now=0)  # carried here, nothing came yet
    done = people.step(now + 2 * SECOND)
    assert (done.exporters, done.senders, done.routes) == (0, [], [])


def test_passes_add_up_whatever_happens() -> None:
    """Random traffic, domains that come and go, two workers, slices of every size: what a pass tells is the difference
    of two tables.
    """
    for seed in range(30):
        dice, table, now = random.Random(seed), Table(), 100 * SECOND
        table.rows[1] = {}
        people = Crowd(table, scan=dice.choice((3, 7, 1000)))
        before, last, told = dict[tuple[int, int], Activity](), people.last, 0
        for _ in range(120):
            now += SECOND
            if people._next == (0, 1):  # traffic comes between passes, so that a pass sees a table at rest
                for _ in range(dice.randrange(12)):
                    worker, number, more = dice.randrange(2), dice.randrange(1, 12), dice.randrange(1, 9)
                    row = table.rows[worker].get(number)
                    if row is None or dice.random() < 0.1:
                        table.put(number, dice.randrange(1, 6), more, first=now, now=now, worker=worker)
                    elif dice.random() < 0.1:
                        del table.rows[worker][number]
                    else:
                        table.rows[worker][number] = row._replace(datagrams=row.datagrams + more, seen_ns=now)
            done = people.step(now)
            if done is last:
                continue
            rows = {(worker, number): row for worker, each in table.rows.items() for number, row in each.items()}
            expected = dict[str, list[int]]()
            for place, row in rows.items():
                was = before.get(place)
                known = was.datagrams if was is not None and was.first_ns == row.first_ns else 0
                sums = expected.setdefault(address_text(row.address), [0, 0, 0])
                sums[0] += row.datagrams
                sums[1] += row.datagrams - known if last.routes or done.seconds else 0
                sums[2] += 1
            assert {each.address: [each.datagrams, each.last[0], each.domains] for each in done.senders} == expected
            told += sum(each.last[0] for each in done.senders)
            before, last = rows, done
        assert told > 0


def test_a_large_table_is_looked_at_in_slices() -> None:
    table, now = Table(), 100 * SECOND
    for number in range(1, 251):
        table.put(number, number, 10, first=SECOND, now=now)
    people = Crowd(table, scan=100)
    looks = []
    for step in range(6):
        before, table.looked = people.last, 0
        done = people.step(now + step * SECOND)
        looks.append((table.looked, done is before))
    assert looks == [(100, True), (100, True), (50, False)] * 2
    assert (people.last.exporters, people.last.seconds) == (250, 3.0)


def test_routes_are_asked_for_once_per_plan_and_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "ROUTES", 40)
    table, now = Table(), 100 * SECOND
    for number in range(1, 101):
        table.put(number, number, 10, first=SECOND, now=now)
    table.put(101, 200, 10, first=SECOND, now=now, listener=9)  # a listener that is gone
    people = Crowd(table)
    asked = []
    for step in range(5):
        table.asked = 0
        done = people.step(now + step)
        asked.append(table.asked)
    assert asked == [40, 40, 20, 0, 0]
    found = {each.group: each.exporters for each in done.routes}
    assert found == {(4, ("even", "all"), (), False): 50, (4, ("odd",), (), False): 50, None: 1}
    table.generation, table.asked = 2, 0
    people.step(now + SECOND)
    assert table.asked == 40


def test_a_crowd_that_is_too_large_is_one_sum() -> None:
    table, now = Table(), 100 * SECOND
    people = Crowd(table, most=10)
    people.step(now)
    for number in range(1, 31):
        table.put(number, number, 5, first=now + 1, now=now)
    done = people.step(now + SECOND)
    assert len(done.senders) == 10
    assert sum(each.grown[0] for each in done.routes) == 150


# ---------------------------------------------------------------------------------------------------- events


def test_an_event_tells_rates_and_states() -> None:
    state = make_state()
    live = Live(state)
    live.sample()
    first = live.event()
    assert set(first["totals"].values()) == {None}
    assert first["receivers"][0]["rates"]["sent"] is None
    view: Any = state.view
    before = view.value
    time.sleep(0.05)
    receivers = list(before.receivers)
    receivers[0] = replace(
        receivers[0], counters={**receivers[0].counters, "sent": receivers[0].counters["sent"] + 500}
    )
    view.value = replace(before, receivers=tuple(receivers), generation=8)
    live.sample()
    second = live.event()
    sent = second["receivers"][0]["rates"]["sent"]
    assert sent == pytest.approx(500 / second["seconds"], rel=0.05)
    assert second["totals"]["sent"] == sent
    assert second["receivers"][1]["rates"]["sent"] == 0
    assert (second["number"], second["config"]["generation"]) == (2, 8)
    six = second["receivers"][1]
    assert (six["state"], six["standby_for"], six["place"]) == ("unreachable", "nfdump", "[2001:db8::10]:9995")
    assert second["pools"][0]["members"][1] == {"receiver": "six", "up": False, "exporters": 100}
    assert second["listeners"][0]["counts"]["datagrams"] == before.listeners[0].counters["datagrams"]
    assert {row["exporter"] for row in second["exporters"]} == {f"192.0.2.{n}" for n in range(1, 6)}
    routes = [(row["listener"], row["receivers"], row["pools"], row["exporters"]) for row in second["routes"]]
    assert routes == [("netflow", ["nfdump"], [], 3), ("netflow", [], ["both"], 2)]
    assert second["exporters"][0]["listener"] == "netflow"


def a_large_state(receivers: int, exporters: int, name: str = "receiver number") -> ServiceState:
    readings = make_readings()
    many = tuple(
        replace(readings.receivers[place % 2], name=f"{name} {place}", state_why="x" * 1000)
        for place in range(receivers)
    )
    listeners = tuple(replace(readings.listeners[0], name=f"{name} {place}") for place in range(receivers))
    table = Table()
    for number in range(1, exporters + 1):
        table.put(number, number, 10 + number % 7, first=SECOND, now=time.monotonic_ns())

    class View(FakeView):
        generation = 1
        flow_extent, flow_activity, listener_names, route = (
            table.flow_extent,
            table.flow_activity,
            table.listener_names,
            table.route,
        )

    return make_state(view=View(replace(readings, receivers=many, listeners=listeners)))


@pytest.mark.parametrize(("receivers", "name"), [(2, "receiver"), (64, "receiver"), (1000, "r" * 290)])
def test_an_event_is_bounded(receivers: int, name: str) -> None:
    live = Live(a_large_state(receivers, 10_000, name))
    for _ in range(2):
        _, body = events.event(live)
        assert len(body) <= events.EVENT_BYTES
    event = json.loads(body)
    assert event["exporter_count"] == 10_000
    assert event["left_out"]["exporters"] == 10_000 - len(event["exporters"])
    assert event["left_out"]["receivers"] == receivers - len(event["receivers"])
    if receivers <= 64:
        assert (len(event["exporters"]), len(event["receivers"])) == (EXPORTERS, receivers)


def test_ten_thousand_exporters_cost_little() -> None:
    """Calls of an event, all exporters having sent something: seven for each of them at most, whatever the machine. (By
    CPU time the limit is five percent of one second; the sampler keeps to it by being late, events.SHARE.)
    """
    state = a_large_state(64, 10_000)
    live, spent = Live(state), []
    rows = state.view.flow_activity.__self__.rows[0]  # type: ignore[attr-defined]
    for _ in range(8):
        for number, row in rows.items():
            rows[number] = row._replace(datagrams=row.datagrams + 1, bytes=row.bytes + 100)
        spent.append(calls_of(lambda: events.event(live)))
    assert min(spent[1:]) < 70_000, spent


def test_those_that_matter_most_stay() -> None:
    assert most([5, 1, 9, 7], 2, lambda item: (False, item)) == [9, 7]
    assert most([5, 1, 9, 7], 2, lambda item: (item == 1, item)) == [1, 9]
    assert most([5, 1], 2, lambda item: (False, item)) == [5, 1]


def test_who_loses_is_shown() -> None:
    state = a_large_state(2, 1000)
    live = Live(state)
    live.sample()
    rows = state.view.flow_activity.__self__.rows[0]  # type: ignore[attr-defined]
    for number, row in rows.items():
        rows[number] = row._replace(datagrams=row.datagrams + (1 if number == 900 else 100), lost=int(number == 900))
    live.sample()
    assert [row["exporter"] for row in live.event()["exporters"] if row["rates"]["lost"]] == ["0.0.3.132"]


# ---------------------------------------------------------------------------------------------------- streams


def with_client(state: ServiceState, body: Callable[[Client], Awaitable[None]], **limits: Any) -> None:
    async def go() -> None:
        made = app.make_app(state)
        made[front.SHARED].events = events.Events(state, **limits)
        async with TestClient(TestServer(made)) as client:
            await body(client)

    asyncio.run(go())


def stream(client: Client) -> events.Events:
    return client.app[front.SHARED].events  # type: ignore[union-attr]


def test_one_sampler_serves_all_and_rests_without_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Live] = []
    begin = events.Live
    monkeypatch.setattr(events, "Live", lambda state: made.append(begin(state)) or made[-1])

    async def body(client: Client) -> None:
        assert not stream(client).works
        answers = await asyncio.gather(*(client.get("/api/v1/events?count=3") for _ in range(5)))
        texts = await asyncio.gather(*(answer.text() for answer in answers))
        assert len({text.split("\n", 1)[1] for text in texts}) <= 2  # who came a moment later
        assert len(made) == 1
        for text in texts:
            found = [orjson.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
            numbers = [each["number"] for each in found]
            assert numbers == list(range(numbers[0], numbers[0] + 3))
        async with asyncio.timeout(5):
            while stream(client).works:
                await asyncio.sleep(0.01)
        assert stream(client).clients == 0

    with_client(make_state(), body, step=0.05)


def test_the_number_of_clients_is_bounded() -> None:
    async def body(client: Client) -> None:
        first = [await client.get("/api/v1/events") for _ in range(2)]
        refused = await client.get("/api/v1/events")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "10")
        assert "watch already" in (await refused.json())["error"]
        head = await client.head("/api/v1/events")
        assert head.status == 503
        for each in first:
            each.close()
        async with asyncio.timeout(5):
            while stream(client).clients:
                await asyncio.sleep(0.01)
        head = await client.head("/api/v1/events")
        assert (head.status, head.content_type) == (200, "text/event-stream")

    with_client(make_state(), body, step=0.02, streams=2)


@pytest.mark.parametrize("count", ["0", "x", "-1", "1000001", "1.5"])
def test_counts_are_checked(count: str) -> None:
    async def body(client: Client) -> None:
        answer = await client.get("/api/v1/events", params={"count": count})
        assert answer.status == 400
        assert "remove count" in (await answer.json())["error"]

    with_client(make_state(), body)


def test_a_slow_client_is_dropped_and_the_others_are_not_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SLOW_SECONDS", 0.3)
    state = a_large_state(64, 3000)

    async def body(client: Client) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((client.host, client.port))
        sock.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")  # and reads nothing
        good = await client.get("/api/v1/events")
        seen = 0
        async with asyncio.timeout(60):
            async for line in good.content:
                seen += line.startswith(b"id:")
                if stream(client).dropped:
                    break
        assert stream(client).dropped == 1
        assert seen >= 2
        assert stream(client).clients == 1
        good.close()
        sock.close()

    with_client(state, body, step=0.02)


def test_a_failure_is_told_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    state = make_state()
    view: Any = state.view
    view.error = RuntimeError("boom")

    async def body(client: Client) -> None:
        answer = await client.get("/api/v1/events?count=1")
        await asyncio.sleep(0.3)
        view.error = None
        assert "event: live" in await answer.text()

    with_client(state, body, step=0.02)
    assert [record.message for record in caplog.records if "could not be made" in record.message] == [
        "an event could not be made; samplicator tries again"
    ]


def test_streams_end_with_the_server(tmp_path: Path) -> None:
    async def go() -> None:
        path = str(tmp_path / "c.sock")
        server = front.Front(app.make_app(make_state()))
        await server.start([endpoints.open_control(path)])
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await reader.readline()
        await reader.readuntil(b"event: live")
        begun = time.monotonic()
        await server.stop()
        assert time.monotonic() - begun < 10
        writer.close()

    asyncio.run(go())
