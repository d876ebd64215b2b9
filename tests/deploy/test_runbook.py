"""deploy/README.md: each alert leads to a section that names it; links, commands and metrics exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from samplicator.cli.parser import make_parser
from support.linters import DEPLOY, ROOT

README = DEPLOY / "README.md"
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]
PAGES = sorted(DEPLOY.rglob("README.md"))
TOP = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]


def sections(page: Path) -> dict[str, str]:
    """Text of each section by its anchor, as the repository's site makes it: lower case, dashes, no punctuation."""
    found: dict[str, str] = {}
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    for heading, body in re.findall(r"(?m)^#+ (.+)$((?:\n(?!#+ ).*)*)", text):
        anchor = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        assert anchor not in found, f"two headings {heading!r}"
        found[anchor] = body
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alert_leads_to_its_section(rule: dict[str, dict[str, str]]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == f"{REPOSITORY}/blob/main/deploy/README.md"
    assert rule["alert"] in sections(README)[anchor]


@pytest.mark.parametrize("page", [*TOP, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Links and pictures."""
    text = page.read_text()
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text) + re.findall(r' src(?:set)?="([^"]+)"', text)
    for target in targets:
        path, _, anchor = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), target
        if anchor:
            assert anchor in sections(other), target


def test_commands_are_real() -> None:
    """What the page says to run is a command of samplicator(8)."""
    known = set(re.findall(r"^\.Ss (\w+)$", (DEPLOY / "man" / "samplicator.8").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?:`|^    # )samplicator ([a-z]+)", README.read_text(), re.MULTILINE))
    assert len(used) > 5
    assert used <= known


@pytest.mark.parametrize("page", [ROOT / "README.md", README], ids=["README.md", "deploy/README.md"])
def test_command_lines_are_understood(page: Path) -> None:
    """Those that stand for themselves, with the options that they have."""
    lines = re.findall(r"^    (?:# |sudo )?samplicator ((?:[a-z]+)(?: .*)?)$", page.read_text(), re.MULTILINE)
    assert lines
    for line in lines:
        make_parser().parse_args(shlex.split(line, comments=True))


def test_metrics_are_real() -> None:
    known = set(re.findall(r"samplicator_\w+", (DEPLOY / "prometheus" / "METRICS.md").read_text()))
    for page in PAGES:
        assert set(re.findall(r"samplicator_\w+", page.read_text())) <= known, page
