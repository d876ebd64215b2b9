"""A configuration moved close together: the same in all that is asked of it, and small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from samplicator.config.address import parse_source
from samplicator.config.compact import load_compact
from samplicator.config.toml.load import load_toml
from samplicator.errors import ConfigError

RULES, FEWER = 10_000, 1_000
RECEIVERS = 64
GROWTH_MIB = 20
"""Seen: 10; 55 without being moved together."""

MEASURE = """
import resource, sys
from samplicator.service import service
from samplicator.config.compact import load_compact
from samplicator.config.toml.load import load_toml
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
before = resident()
loaded = load_compact(lambda: load_toml(sys.argv[1]))
print(resident() - before, len(loaded.config.rule))
"""


def many(path: Path, rules: int = FEWER) -> str:
    names = [f"c{i}" for i in range(RECEIVERS)]
    lines = ["[[listener]]", 'name = "in"', 'listen = ["127.0.0.1:2055"]']
    for i, name in enumerate(names):
        lines += ["[[receiver]]", f'name = "{name}"', f'to = "127.0.0.1:{10_000 + i}"']
    to = ", ".join(f'"{name}"' for name in names)
    for i in range(rules):
        lines += ["[[rule]]", f'from = ["198.18.{i // 250}.{i % 250}"]', f"to = [{to}]"]
    path.write_text("\n".join(lines))
    return str(path)


def test_it_is_the_same_configuration(tmp_path: Path) -> None:
    text = many(tmp_path / "many.toml")
    with open(text, "a") as file:
        file.write('\n[[receiver]]\nname = "spare"\nto = "127.0.0.1:9"\n')
    plain, compact = load_toml(text), load_compact(lambda: load_toml(text))
    assert compact.config == plain.config
    assert compact.sources == plain.sources
    assert compact.warnings == plain.warnings
    assert [warning.line for warning in compact.warnings] != [0]
    assert (compact.files, compact.text_hash, compact.origin) == (plain.files, plain.text_hash, plain.origin)
    for where in (("rule", FEWER - 1), ("receiver", 64, "to")):
        assert compact.locate(where) == plain.locate(where)
        assert compact.locate(where)[1] > 0


def test_what_was_shared_still_is(tmp_path: Path) -> None:
    loaded = load_compact(lambda: load_toml(many(tmp_path / "many.toml")))
    assert len({id(rule.to) for rule in loaded.config.rule}) == 1
    assert len({id(rule.model_fields_set) for rule in loaded.config.rule}) == 1
    assert all(loaded.sources[i][0].text is loaded.config.rule[i].from_[0] for i in range(FEWER))


def test_nothing_of_the_reading_is_remembered(tmp_path: Path) -> None:
    load_compact(lambda: load_toml(many(tmp_path / "many.toml")))
    assert parse_source.cache_info().currsize == 0


def test_errors_come_through(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_compact(lambda: load_toml(str(tmp_path / "missing.toml")))


def test_ten_thousand_rules_are_small(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, many(tmp_path / "many.toml", RULES)], capture_output=True, text=True, check=True
    )
    growth, rules = map(int, done.stdout.split())
    assert rules == RULES
    assert growth < GROWTH_MIB << 20
