"""A real Prometheus scrapes the real daemon: every query of the dashboard returns series, every alert rule evaluates.

There is no Grafana here, so its variables are put in as Grafana would. Everything listens on free ports of loopback,
and is ended by its process id.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from support.linters import DEPLOY, run, said, tool

pytestmark = pytest.mark.xdist_group("dashboard")  # one Prometheus for all

T = TypeVar("T")
PATIENCE_SECONDS = 60
"""For what a query asks for: rates need some scrapes, and those come once a second."""
DASHBOARD = json.loads((DEPLOY / "grafana" / "samplicator.json").read_text())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body


def wait_for(url: str, process: subprocess.Popen[str], log: Path, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            get(url)
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(f"{url} did not answer:\n{log.read_text()}")


@contextlib.contextmanager
def started(log: Path, *command: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ours, ended by its id at the end of the block."""
    with log.open("w") as out:
        first, *rest = [str(word) for word in command]
        process = subprocess.Popen(
            [tool(first), *rest],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=log.parent,
            env=os.environ | environment,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


PROMETHEUS_YAML = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: samplicator
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


@pytest.fixture(scope="module")
def metrics_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo, running, with its metrics."""
    folder = tmp_path_factory.mktemp("demo")
    port = free_port()
    command = ("samplicator", "demo", "--forever", "--rate", "500", "--http", f"127.0.0.1:{port}")
    with started(folder / "demo.log", *command) as demo:
        wait_for(f"http://127.0.0.1:{port}/readyz", demo, folder / "demo.log")
        yield f"http://127.0.0.1:{port}/metrics"


@pytest.fixture(scope="module")
def api(metrics_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prometheus that scrapes the demo once a second."""
    folder = tmp_path_factory.mktemp("prometheus")
    target = urllib.parse.urlsplit(metrics_url)
    rules = DEPLOY / "prometheus" / "rules.yaml"
    (folder / "prometheus.yml").write_text(PROMETHEUS_YAML.format(rules=rules, port=target.port))
    listen = f"127.0.0.1:{free_port()}"
    command = (
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={listen}",
        "--log.level=warn",
    )
    with started(folder / "prometheus.log", *command, GOMAXPROCS="1") as prometheus:
        wait_for(f"http://{listen}/-/ready", prometheus, folder / "prometheus.log")
        yield f"http://{listen}/api/v1"


def query(api: str, expr: str) -> list[dict[str, Any]]:
    try:
        answer = json.loads(get(f"{api}/query?{urllib.parse.urlencode({'query': expr})}"))
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{expr}: {error.read().decode()}") from None
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def eventually(probe: Callable[[], T]) -> T:
    """The first true answer, or the last of all."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not (answer := probe()) and time.monotonic() < until:
        time.sleep(0.2)
    return answer


def value(api: str, expr: str) -> float:
    rows = query(api, expr)
    return float(rows[0]["value"][1]) if rows else math.nan


def filled_in(expr: str) -> str:
    """What Grafana asks when everything is chosen."""
    expr = expr.replace("$__rate_interval", "10s")
    return re.sub(r"\$(job|instance|listener|receiver)\b", ".+", expr)


TARGETS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def test_scrape_is_lint_free(metrics_url: str) -> None:
    done = run("promtool", "check", "metrics", input=get(metrics_url).decode())
    assert (done.returncode, said(done)) == (0, "")


@pytest.mark.parametrize(("title", "expr"), TARGETS, ids=[f"{n}-{title}" for n, (title, _) in enumerate(TARGETS)])
def test_panel_has_data(api: str, title: str, expr: str) -> None:
    assert eventually(lambda: query(api, filled_in(expr))), f"{title}: {filled_in(expr)} returned nothing"


def test_variables_have_values(api: str) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] != "query":
            continue
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
        assert match is not None
        asked = urllib.parse.urlencode({"match[]": filled_in(match[1])})
        assert json.loads(get(f"{api}/label/{match[2]}/values?{asked}"))["data"], variable["name"]


def test_traffic_shows(api: str) -> None:
    """Not only series: the demo's datagrams are in them, and both laws hold in what was stored."""
    assert eventually(lambda: value(api, "sum(rate(samplicator_receive_datagrams_total[10s]))") > 50)
    assert eventually(lambda: value(api, "sum(rate(samplicator_send_datagrams_total[10s]))") > 100)
    assert value(api, "sum(samplicator_send_failed_datagrams_total)") == 0


def test_alerts_evaluate_and_are_quiet(api: str) -> None:
    groups = json.loads(get(f"{api}/rules"))["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules
    for rule in rules:
        assert rule["health"] == "ok", rule
        assert rule["state"] == "inactive", rule
