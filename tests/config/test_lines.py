"""Every value of a TOML text has its line."""

from __future__ import annotations

import tomllib

from hypothesis import example, given
from samplicator.config.toml.lines import Lines
from support.texts import FUZZ, toml_texts

# --- lines -----------------------------------------------------------------------------------------


def paths_of(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, item in value.items():
            found |= paths_of(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found |= paths_of(item, (*path, index))
    return found


@FUZZ
@given(toml_texts())
@example(
    'a.b = 1\n[a.c]\n"x\\u0041" = """\n]\n"""\n[[l]]\n[l.m]\ny = \'\'\'\n\'\'\'\n[[l]]\nz = {p.q = 1, r = [1.5, [2]]}\n'
)
@example("d = 1979-05-27 07:32:00.5\nl = [ # ]\n 1, # ,\n\n 2\n]\n'k' . \"m\" = 0x1F")
def test_every_value_has_its_line(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert Lines(text).paths() == paths_of(data)


def test_lines_of_entries() -> None:
    text = '# c\n[[rule]]\nto = [\n  "a", # x\n\n  "b", "c",\n]\nfrom = """\n"""\nstop = true\n'
    lines = Lines(text)
    wanted = {
        ("rule", 0): 2,
        ("rule", 0, "to"): 3,
        ("rule", 0, "to", 0): 4,
        ("rule", 0, "to", 2): 6,
        ("rule", 0, "stop"): 10,
    }
    assert {path: lines.of(path) for path in wanted} == wanted
    assert lines.of(("rule", 0, "nothing")) == 2
    assert lines.of(("nothing",)) == 0
