"""What a reload would change, and the JSON Schema of the file."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from samplicator.config.convert import to_toml
from samplicator.config.diff import diff
from samplicator.config.legacy.command_line import parse_command_line
from samplicator.config.model.whole import Config, json_schema

# --- diff ------------------------------------------------------------------------------------------


def config(**tables: Any) -> Config:
    return Config.model_validate(tables)


def receiver(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "to": "192.0.2.1:9", **keys}


DIFFS: list[dict[str, Any]] = [
    {"description": "nothing", "in": ({}, {}), "expected": "nothing changed"},
    {
        "description": "receivers",
        "in": (
            {"receiver": [receiver("a"), receiver("b"), receiver("c")]},
            {"receiver": [receiver("c"), receiver("b", ttl=9), receiver("d")]},
        ),
        "expected": "receivers +d -a ~b",
    },
    {
        "description": "rules and live settings",
        "in": ({}, {"rule": [{"to": []}], "datapath": {"workers": 2}}),
        "expected": "rules changed; datapath.workers: 1 -> 2",
    },
    {
        "description": "settings that need a restart",
        "in": ({}, {"service": {"http": "", "log_level": "debug"}}),
        "expected": "service.log_level: info -> debug; service.http: 127.0.0.1:9420 ->  (needs a restart)",
    },
]


@pytest.mark.parametrize("case", DIFFS, ids=[case["description"] for case in DIFFS])
def test_diff(case: dict[str, Any]) -> None:
    old, new = (config(**tables) for tables in case["in"])
    change = diff(old, new)
    assert change.text() == case["expected"]
    assert bool(change) == (old != new)


def test_diff_keeps() -> None:
    change = diff(config(receiver=[receiver("a"), receiver("b")]), config(receiver=[receiver("b"), receiver("a")]))
    assert change.receivers.kept == ("b", "a")
    assert not change


# --- schema ----------------------------------------------------------------------------------------


def test_schema_is_json_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for argv in (["192.0.2.1"], ["-Sn", "-b", "65536", "192.0.2.1/9/3,5"]):
        loaded = parse_command_line(argv).loaded
        assert loaded is not None
        validator.validate(tomllib.loads(to_toml(loaded)))
    assert list(validator.iter_errors({"rule": [{"too": []}], "datapath": {"workers": 0}}))
