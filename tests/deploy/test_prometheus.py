"""Alert rules under promtool: valid, and each tested rule fires when it should and not before."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.linters import DEPLOY, run, said

PROMETHEUS = DEPLOY / "prometheus"


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


def test_scrape_example_is_valid() -> None:
    done = run("promtool", "check", "config", PROMETHEUS / "scrape.yaml")
    assert done.returncode == 0, said(done)


@pytest.mark.parametrize(
    "rule",
    [rule for group in yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())["groups"] for rule in group["rules"]],
    ids=lambda rule: str(rule["alert"]),
)
def test_every_alert_says_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["labels"]["severity"] in ("critical", "warning")
