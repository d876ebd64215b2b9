"""One table of metrics: held against the C structs, the dashboard, the alert rules and the documents."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from samplicator import _fastpath
from samplicator.health import probes
from samplicator.views.catalogue import (
    BY_NAME,
    CATALOGUE,
    SEND_REASONS,
    STATES,
    series_names,
    used_fields,
)
from samplicator.views.flow_metrics import PROTOCOLS
from samplicator.views.metric import FOREIGN, PREFIX
from samplicator.views.witness_metrics import WITNESS_METRICS
from support.tree import ROOT

GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
RULES_TEST = ROOT / "deploy" / "prometheus" / "rules_test.yaml"
METRICS = ROOT / "deploy" / "prometheus" / "METRICS.md"
COUNTERS = (ROOT / "fastpath" / "base" / "counters.pxd").read_text()

NAME = re.compile(rf"\b{PREFIX}[a-z0-9_]+")
TARGET_LABELS = {"job", "instance"}
# Words of the documents that begin like a metric and are none.
NOT_METRICS = {"samplicator_probe", "samplicator_sanitize", "samplicator_march"}


# ---- the catalogue and the compiled counters


def struct_fields(name: str) -> list[str]:
    """u64 fields of a struct of counters.pxd in order; an array of reasons unfolded, histograms left out."""
    body = re.search(rf"ctypedef struct {name}:\n((?:    .*\n)+)", COUNTERS)
    assert body is not None
    fields: list[str] = []
    for field, size in re.findall(r"^    u64 (\w+)(?:\[(\w+)\])?", body[1], re.MULTILINE):
        if size == "REASON_COUNT":
            fields += [f"{field}_{reason}" for reason in c_reasons()]
        elif not size:
            fields.append(field)
    return [field for field in fields if field != "latency_sum_ns"]


def c_reasons() -> list[str]:
    pairs = re.findall(r"^    REASON_(\w+) = (\d+)", COUNTERS, re.MULTILINE)
    return [name.lower() for name, _ in sorted(pairs, key=lambda pair: int(pair[1])) if name != "COUNT"]


def test_reasons_are_the_same_words_everywhere() -> None:
    assert tuple(c_reasons()) == _fastpath.REASONS == SEND_REASONS


@pytest.mark.parametrize(
    ("struct", "names"),
    [
        ("rx_counters_t", _fastpath.RX_FIELDS),
        ("tx_counters_t", _fastpath.TX_FIELDS),
        ("worker_counters_t", _fastpath.WORKER_FIELDS),
    ],
)
def test_names_follow_the_struct(struct: str, names: tuple[str, ...]) -> None:
    assert tuple(struct_fields(struct)) == names


@pytest.mark.parametrize(
    ("counters", "names"),
    [
        ("rx", _fastpath.RX_FIELDS),
        ("tx", _fastpath.TX_FIELDS),
        ("worker", _fastpath.WORKER_FIELDS),
        ("flow", _fastpath.FLOW_COUNTER_FIELDS),
    ],
)
def test_every_counter_is_exported(counters: str, names: tuple[str, ...]) -> None:
    assert used_fields(counters) == set(names)


def test_protocols_are_the_same_words_everywhere() -> None:
    assert set(PROTOCOLS) == set(_fastpath.FLOW_KIND_NAMES.values())
    units = {name for row in CATALOGUE if row.name.startswith("flow_sequence_lost") for name, _ in row.split}
    assert units == set(PROTOCOLS) - {"netflow1", "other"}


def test_states_are_the_same_words_everywhere() -> None:
    assert STATES == (probes.UP, probes.REFUSING, probes.UNREACHABLE, probes.LOOPING)


def test_catalogue_keeps_to_the_rules() -> None:
    assert len(BY_NAME) == len(CATALOGUE)
    for metric in CATALOGUE:
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert (metric.kind == "info") == metric.name.endswith("_info"), metric.name
        assert metric.help.endswith("."), metric.name


# ---- those who use the names


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every query that ships."""
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"panel {path.stem} {panel['title']}", target["expr"]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                yield f"variable {path.stem} {variable['name']}", variable["query"]["query"]
        for annotation in dashboard["annotations"]["list"]:
            yield f"annotation {path.stem} {annotation['name']}", annotation["expr"]
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield f"rule {rule.get('alert') or rule['record']}", rule["expr"]
    for test in yaml.safe_load(RULES_TEST.read_text())["tests"]:
        for series in test["input_series"]:
            yield f"test {test['name']}", series["series"]


EXPRESSIONS = list(expressions())
RULE_TABLE = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
RECORDED = {rule["record"] for rule in RULE_TABLE if "record" in rule}
SERIES = {*series_names(), *(metric.full_name for metric in WITNESS_METRICS)}


def recorded_in(expr: str) -> set[str]:
    """Names of recording rules in a query; all of them exist. They begin with their labels."""
    found = set(re.findall(rf"[a-z_]+:{PREFIX}\w+(?::\w+)?", expr))
    assert found <= RECORDED
    return found


def names_in(expr: str) -> list[str]:
    """Names of metrics of ours in a query, without those of recording rules."""
    for name in recorded_in(expr):
        expr = expr.replace(name, "recorded")
    return NAME.findall(expr)


@pytest.mark.parametrize(
    ("where", "expr"), EXPRESSIONS, ids=[f"{n}-{where}" for n, (where, _) in enumerate(EXPRESSIONS)]
)
def test_queries_name_metrics_that_exist(where: str, expr: str) -> None:
    ours = names_in(expr)
    assert set(ours) <= SERIES, where
    assert ours or recorded_in(expr) or "up{" in expr or any(prefix in expr for prefix in FOREIGN), (
        f"{where} asks for nothing of ours"
    )


def labels_of(series: str) -> set[str]:
    for metric in (*CATALOGUE, *WITNESS_METRICS):
        if series in metric.series:
            return set(metric.labels) | TARGET_LABELS | ({"le"} if metric.kind == "histogram" else set())
    raise AssertionError(series)


@pytest.mark.parametrize(
    ("where", "expr"), EXPRESSIONS, ids=[f"{n}-{where}" for n, (where, _) in enumerate(EXPRESSIONS)]
)
def test_queries_name_labels_that_exist(where: str, expr: str) -> None:
    for name, selector in re.findall(rf"({PREFIX}\w+)\{{([^}}]*)\}}", expr):
        assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", selector)) <= labels_of(name), where
    known: set[str] = set().union(*(labels_of(name) for name in names_in(expr)), TARGET_LABELS)
    for name in recorded_in(expr):
        known |= set(name.partition(":")[0].split("_"))
    for group in re.findall(r"\bby \(([^)]*)\)", expr):
        assert {label.strip() for label in group.split(",")} <= known, where


def test_dashboards_are_what_their_program_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-B", GRAFANA / "generate.py", tmp_path], check=True)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_text() for path in DASHBOARDS}, "run deploy/grafana/generate.py"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_is_sound(path: Path) -> None:
    """What Grafana would stumble over: ids, overlap, a fixed data source, a fixed rate interval, a dead link."""
    dashboard = json.loads(path.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
            assert "rate(" not in target["expr"] or "[$__rate_interval]" in target["expr"]
        assert panel["type"] == "row" or panel["description"], panel["title"]
    names = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval", "__range"}
    asked = " ".join(expr for where, expr in EXPRESSIONS if path.stem == where.split()[1])
    assert set(re.findall(r"\$(\w+)", asked)) <= names
    uids = {json.loads(each.read_text())["uid"] for each in DASHBOARDS}
    assert {link["url"].removeprefix("/d/") for link in dashboard["links"]} == uids - {dashboard["uid"]}
    assert {each["name"] for each in dashboard["annotations"]["list"]} == {"Reloads", "Restarts", "State changes"}


def test_documented_metrics_exist() -> None:
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("deploy/**/*.[0-9]"), *ROOT.glob("deploy/**/*.md")]):
        names = set(NAME.findall(path.read_text())) - NOT_METRICS
        assert {name for name in names if not any(s.startswith(name) for s in SERIES)} == set(), path


def test_document_of_metrics_is_what_its_program_writes() -> None:
    program = METRICS.with_name("generate.py")
    printed = subprocess.run([sys.executable, "-B", program, "--print"], check=True, capture_output=True, text=True)
    assert printed.stdout == METRICS.read_text(), "run .venv/bin/python deploy/prometheus/generate.py"
