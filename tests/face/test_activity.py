"""/api/v1/activity: every observation domain once, in short, with the figures of /api/v1/exporters; and the latency of
/api/v1/status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer
from samplicator.http.app import make_app
from samplicator.readings import Activity
from samplicator.views.activity import active
from samplicator.views.growth import growth
from samplicator.views.latency import latency, quantile
from support.state import FakeView, make_readings, make_state

NOW = 10**12


class Crowd(FakeView):
    """Domains on two workers, as many as asked for; every third place is empty, and one domain was carried here."""

    def __init__(self, most: dict[int, int]) -> None:
        super().__init__(make_readings())
        self.most = most

    def flow_extent(self) -> dict[int, int]:
        return self.most

    def flow_activity(self, worker: int, numbers: Iterable[int]) -> list[Activity]:
        return [
            Activity(n, (n << 8 | worker).to_bytes(4, "big"), "netflow9", "", 1, 0 if n == 4 else n, 100, 0)
            for n in numbers
            if n <= self.most[worker] and n % 3
        ]


def all_pages(view: FakeView, limit: int) -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]]:
        rows, after = [], "0.0"
        async with TestClient(TestServer(make_app(make_state(view=view)))) as client:
            while after:
                answer = await client.get("/api/v1/activity", params={"after": after, "limit": str(limit)})
                assert answer.status == 200
                page = orjson.loads(await answer.read())
                assert len(page["activity"]) <= limit
                rows += page["activity"]
                after = page["after"]
        return rows

    return asyncio.run(ask())


@pytest.mark.parametrize("limit", [1, 7, 1000])
@pytest.mark.parametrize("most", [{}, {0: 1}, {0: 33, 2: 20}, {1: 0, 3: 5}])
def test_every_domain_comes_once(most: dict[int, int], limit: int) -> None:
    wanted = [f"{worker}.{n}" for worker in most for n in range(1, most[worker] + 1) if n % 3 and n != 4]
    assert [row["place"] for row in all_pages(Crowd(most), limit)] == wanted


def test_more_domains_than_one_piece_and_one_page() -> None:
    rows = all_pages(Crowd({0: 1500, 1: 301}), 1000)
    assert len({row["place"] for row in rows}) == len(rows) == 1000 - 1 + 201 - 1


def test_figures_are_those_of_exporters() -> None:
    """Gaps that may close are lost once the exporter is silent; an sFlow agent names itself."""
    late = Activity(9, bytes((192, 0, 2, 9)), "netflow9", "packets", NOW - 10**10, 21, 2100, 2, 1, NOW - 10**9, 2055)
    row = active(late, 1, {0: "netflow"}, NOW)
    assert (row["place"], row["exporter"], row["listener"]) == ("1.9", "192.0.2.9", "netflow")
    assert (row["known_seconds"], row["silent_seconds"], row["unit"]) == (10.0, 1.0, "packets")
    assert row["lost"] == 2
    assert active(late, 1, {}, NOW + 2 * 10**9)["lost"] == 3
    header = bytes.fromhex("00000005 00000001 c6336401 00000007 00000001 000003e8 00000001")
    row = active(late._replace(protocol="sflow5", style="", header=header, unmatched=True), 1, {}, NOW)
    assert (row["agent"], row["domain"], row["unit"], row["matched"]) == ("198.51.100.1", 7, "datagrams", False)


def test_a_domain_in_short_is_cheap() -> None:
    """The reason why there is this page: 10,000 of them take well under a second of the control plane."""
    one = Activity(9, bytes((192, 0, 2, 9)), "netflow9", "packets", NOW, 21, 2100, 2, 1, NOW, 2055)
    begin = time.thread_time()
    size = sum(len(orjson.dumps(active(one, 1, {}, NOW))) for _ in range(10_000))
    assert time.thread_time() - begin < 2  # a tenth of a second here
    assert size < 10_000 * 500


def test_growth() -> None:
    assert growth((5, 7), (8, 7)) == [3, 0]
    assert growth((5, 7), (8, 6)) == [3, 0]  # corrected
    assert growth((5, 7), (2, 9)) == [2, 9]  # restarted


def test_latency_and_its_quantiles() -> None:
    value = latency(make_readings())
    assert len(value["counts"]) == len(value["bounds_seconds"]) + 1
    assert value["datagrams"] == sum(value["counts"])
    bounds = [0.1, 0.2, 0.5]
    assert quantile(0.5, bounds, [0, 0, 0, 0]) is None
    assert quantile(0.5, bounds, [5, 5, 0, 0]) == 0.1
    assert quantile(0.99, bounds, [5, 5, 0, 0]) == 0.2
    assert quantile(0.99, bounds, [90, 0, 0, 10]) == float("inf")
