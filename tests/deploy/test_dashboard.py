"""A real Prometheus scrapes two relays under load: every query of every dashboard returns series, every rule evaluates.

There is no Grafana here, so its variables are put in as Grafana would. Everything listens on free ports of loopback,
and is ended by its process id.
"""

from __future__ import annotations

import math
import re
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.linters import DEPLOY, run, said
from support.watched import (
    DASHBOARDS,
    Fleet,
    ask,
    eventually,
    filled_in,
    fleet,
    get,
    prometheus,
    queries,
    query,
    scraping,
)

pytestmark = pytest.mark.xdist_group("dashboard")  # one Prometheus for all

QUERIES = queries()


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("relays")) as made:
        yield made


@pytest.fixture(scope="module")
def api(relays: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prometheus that scrapes them once a second."""
    with prometheus(tmp_path_factory.mktemp("prometheus"), scraping(relays.targets, relays.witness)) as made:
        yield made


def value(api: str, expr: str) -> float:
    rows = query(api, expr)
    return float(rows[0]["value"][1]) if rows else math.nan


def test_scrape_is_lint_free(relays: Fleet) -> None:
    done = run("promtool", "check", "metrics", input=get(f"http://{relays.targets[0]}/metrics").decode())
    assert (done.returncode, said(done)) == (0, "")


@pytest.mark.parametrize(
    ("dashboard", "title", "expr"),
    QUERIES,
    ids=[f"{dashboard}-{n}-{title}" for n, (dashboard, title, _) in enumerate(QUERIES)],
)
def test_panel_has_data(api: str, relays: Fleet, dashboard: str, title: str, expr: str) -> None:
    if "samplicator_witness_" in expr and not relays.witness:
        pytest.skip("a witness needs root, and a samplicator that has it")
    assert eventually(lambda: query(api, expr)), f"{dashboard}, {title}: {expr} returned nothing"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_variables_have_values(api: str, relays: Fleet, name: str) -> None:
    for variable in DASHBOARDS[name]["templating"]["list"]:
        if variable["type"] != "query" or (variable["name"] == "witness" and not relays.witness):
            continue
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert match is not None
        selector = {"match[]": filled_in(match[1], DASHBOARDS[name])}
        assert eventually(lambda: ask(api, f"label/{match[2]}/values", **selector)), variable["name"]  # noqa: B023


def test_traffic_shows(api: str) -> None:
    """Not only series: the exporters' datagrams are in them, and both laws hold in what was stored."""
    assert eventually(lambda: value(api, "sum(rate(samplicator_receive_datagrams_total[10s]))") > 100)
    assert eventually(lambda: value(api, "sum(rate(samplicator_send_datagrams_total[10s]))") > 200)
    assert eventually(lambda: value(api, "sum(rate(samplicator_exporter_datagrams_total[10s]))") > 100)
    assert eventually(lambda: value(api, "count(count by (exporter) (samplicator_exporter_datagrams_total))") == 8)
    assert eventually(lambda: value(api, 'count(count_values("hash", samplicator_config_hash))') == 2)


def test_alerts_evaluate_and_only_the_true_ones_are_on(api: str) -> None:
    """One receiver is down and the two configurations differ, by intention; nothing else may fire."""

    def on() -> set[str]:
        rules = [rule for group in ask(api, "rules")["groups"] for rule in group["rules"]]
        assert rules
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}, rules
        return {rule["name"] for rule in rules if rule.get("state", "inactive") != "inactive"}

    expected = {"SamplicatorReceiverDown", "SamplicatorConfigDrift"}
    assert eventually(lambda: expected <= on())
    assert on() - expected <= {"SamplicatorReceiverErrors"}  # until the standby had taken over
    assert all(rule["health"] == "ok" for group in ask(api, "rules")["groups"] for rule in group["rules"])


def happened(api: str, name: str) -> list[dict[str, Any]]:
    """What Grafana marks in the last minutes, of one annotation."""
    dashboard = DASHBOARDS["overview"]
    expr = next(each["expr"] for each in dashboard["annotations"]["list"] if each["name"] == name)
    now = time.time()
    answer = ask(api, "query_range", query=filled_in(expr, dashboard), start=str(now - 300), end=str(now), step="5")
    result: list[dict[str, Any]] = answer["result"]
    return result


def test_a_reload_and_a_change_of_state_are_marked(api: str, relays: Fleet) -> None:
    relay = relays.relays[0]
    text = relay.config.read_text()
    for name in ("config_reloads_total", "receiver_state"):
        assert eventually(lambda name=name: query(api, f'samplicator_{name}{{instance="{relay.http}"}}'))
    relay.reload(text.replace("freq = 4", "freq = 8"))
    marked = eventually(lambda: happened(api, "Reloads"))
    assert {each["metric"]["instance"] for each in marked} == {relay.http}
    relay.reload(text.replace('to = "127.0.0.2:', 'to = "127.0.0.9:'))  # where nobody listens
    marked = eventually(
        lambda: [each for each in happened(api, "State changes") if each["metric"]["receiver"] == "nfdump"]
    )
    assert {each["metric"]["state"] for each in marked} == {"refusing"}
    assert not happened(api, "Restarts")


@pytest.mark.deploy_heavy
def test_a_restart_is_marked(api: str, relays: Fleet) -> None:
    relay = relays.relays[-1]
    assert eventually(lambda: query(api, f'process_start_time_seconds{{instance="{relay.http}"}}'))
    relays.restart(relay)
    marked = eventually(lambda: happened(api, "Restarts"))
    assert {each["metric"]["instance"] for each in marked} == {relay.http}


@pytest.mark.deploy_heavy
def test_pictures(api: str, relays: Fleet, tmp_path: Path) -> None:
    """All dashboards are drawn from their JSON by headless Chromium, with data in every panel."""
    eventually(lambda: value(api, "sum(rate(samplicator_exporter_datagrams_total[10s]))") > 0)
    done = run(sys.executable, DEPLOY / "grafana" / "draw.py", api, tmp_path, "--minutes", "0.5", timeout=200)
    assert done.returncode == 0, said(done)
    empty = [line for line in done.stdout.splitlines() if relays.witness or "samplicator_witness_" not in line]
    assert not empty
    for name, dashboard in DASHBOARDS.items():
        header = (tmp_path / f"{name}.png").read_bytes()[:24]
        width, height = struct.unpack(">II", header[16:])
        assert (header[:8], width) == (b"\x89PNG\r\n\x1a\n", 1448)
        assert height > max(panel["gridPos"]["y"] for panel in dashboard["panels"]) * 38
