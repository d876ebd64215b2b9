"""Alert rules under promtool: valid, and each tested rule fires when it should and not before."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from support.linters import DEPLOY, run, said

PROMETHEUS = DEPLOY / "prometheus"
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]


def test_rules_are_valid() -> None:
    done = run("promtool", "check", "rules", "--lint-fatal", PROMETHEUS / "rules.yaml")
    assert done.returncode == 0, said(done)


def test_rules_fire_when_they_should() -> None:
    done = run("promtool", "test", "rules", PROMETHEUS / "rules_test.yaml")
    assert done.returncode == 0, said(done)


def test_rule_tests_would_notice(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text((PROMETHEUS / "rules.yaml").read_text().replace("> 0.01", "> 0.5"))
    (tmp_path / "rules_test.yaml").write_text((PROMETHEUS / "rules_test.yaml").read_text())
    assert run("promtool", "test", "rules", tmp_path / "rules_test.yaml").returncode != 0


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_every_alert_is_tested_both_ways(rule: dict[str, str]) -> None:
    """There is a moment when it fires, and one when it does not."""
    tests = [
        bool(test["exp_alerts"])
        for each in yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text())["tests"]
        for test in each.get("alert_rule_test", [])
        if test["alertname"] == rule["alert"]
    ]
    assert set(tests) == {True, False}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.get("alert") or rule["record"]))
def test_recorded_names_say_what_they_are(rule: dict[str, str]) -> None:
    """LABELS:METRIC:OPERATION (Prometheus, "Recording rules"); the labels are those that the sum is by."""
    if "record" in rule:
        labels, metric, operation = rule["record"].split(":")
        by = re.findall(r"by \(([^)]*)\)", rule["expr"])
        assert not by or {label for text in by for label in text.split(", ")} - {"le"} <= set(labels.split("_"))
        assert metric.startswith("samplicator_")
        assert operation


def test_scrape_examples_are_valid(tmp_path: Path) -> None:
    """With the files that they name, in a folder of their own, as on a Prometheus host."""
    examples = sorted((PROMETHEUS / "scrape").glob("*.yaml"))
    assert examples
    for each in examples:
        text = each.read_text()
        for name, path in (("rules.yaml", PROMETHEUS / "rules.yaml"), ("relays.yaml", PROMETHEUS / "relays.yaml")):
            (tmp_path / name).write_text(path.read_text())
        for named in re.findall(r"/etc/prometheus/(\S+)", text):
            (tmp_path / named).touch()
        # Debian's Prometheus is built without the discovery of Kubernetes; its relabeling is checked all the same
        text = re.sub(r"kubernetes_sd_configs:\n(?: {6}.*\n)+", "static_configs: []\n", text)
        (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/", f"{tmp_path}/"))
        done = run("promtool", "check", "config", tmp_path / "prometheus.yml")
        assert done.returncode == 0, f"{each}: {said(done)}"


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_every_alert_says_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert re.fullmatch(r"[1-9]\d*[smh]", str(rule["for"]))
