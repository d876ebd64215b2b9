"""Who is told templates after a reload: every receiver that may get exporters it did not get before."""

from __future__ import annotations

import pytest
from samplicator.host import abilities
from samplicator.plan.planner import compile
from samplicator.plan.rules import routes, widened
from samplicator.plan.spec import PlanSpec
from support.hosts import Load

CAPABILITIES = abilities.capabilities()
PARTS = "".join(
    f'[[listener]]\nname = "{name}"\nlisten = ["127.0.0.1:{port}"]\n' for port, name in ((1, "in"), (2, "more"))
)
PARTS += "".join(f'[[receiver]]\nname = "{name}"\nto = "127.0.0.1:{port}"\n' for port, name in enumerate("abcd", 9001))
POOL = '[[pool]]\nname = "p"\nmembers = ["c", "d"]\n'
TEN = 'from = ["10.0.0.0/8"]\n'


def plan(load: Load, *rules: str, more: str = "") -> PlanSpec:
    return compile(load(PARTS + more + "".join(f"[[rule]]\n{rule}\n" for rule in rules)), {}, CAPABILITIES)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (['to = ["a"]'], ['to = ["a"]'], ""),
        (['to = ["a"]'], ['to = ["a", "b"]'], "b"),
        (['to = ["a", "b"]'], ['to = ["a"]'], ""),
        (['to = ["a", "b"]'], ['to = ["b", "a"]'], ""),
        ([TEN + 'to = ["a"]'], ['to = ["a"]'], "a"),
        ([TEN + 'to = ["a"]'], [TEN + 'to = ["a"]', 'to = ["b"]'], "b"),
        (['listener = ["in"]\nto = ["a"]'], ['to = ["a"]'], "a"),
        ([TEN + 'to = ["a"]', 'to = ["b"]'], ['to = ["b"]', TEN + 'to = ["a"]'], ""),
        ([TEN + 'to = ["a"]\nstop = true', 'to = ["b"]'], ['to = ["b"]'], "abcd"),
        (['to = ["a"]'], ['to = ["a", "p"]'], "cd"),
        (['to = ["p"]'], ['to = ["c"]'], ""),
    ],
)
def test_widened(load: Load, old: list[str], new: list[str], told: str) -> None:
    assert widened(routes(plan(load, *old, more=POOL)), plan(load, *new, more=POOL)) == set(told)
