"""One direction of imports, a fixed address for every third-party package, one address for every name; and the picture
of it in ARCHITECTURE.md. The rules are in support/house.py; those inside fastpath in test_needs.py.
"""

from __future__ import annotations

import pytest
from support.house import MARKS, PAGE, faults, modules, page_with, picture

KNOWN = modules()


def test_the_house_is_as_it_is_described() -> None:
    assert faults(KNOWN) == []


@pytest.mark.parametrize(
    ("module", "source", "why"),
    [
        (
            "plan.spec",
            "from samplicator.host import sockets\n",
            "plan.spec imports host.sockets, which is not below it",
        ),
        ("host.links", "import samplicator.views.flow\n", "host.links imports views.flow, which is not below it"),
        ("config.diff", "import socket\n", "config.diff imports socket: config does no I/O"),
        ("plan.rules", "import asyncio\n", "plan.rules imports asyncio: plan does no I/O"),
        ("health.reach", "from samplicator import _fastpath\n", "health.reach imports _fastpath"),
        ("views.flow", "from samplicator._fastpath import Plan\n", "views.flow imports _fastpath"),
        ("cli.flow", "import orjson\n", "cli.flow imports orjson, which does not live in cli"),
        ("demo.demo", "import requests\n", "demo.demo imports requests, which does not live in demo"),
        ("helpers", '"""x"""\n', "helpers stands outside the rooms"),
        ("cellar.wine", '"""x"""\n', "cellar.wine is on no floor: give its room a floor in FLOORS"),
        ("plan.__init__", '"""x"""\nclass Plan: ...\n', "plan.__init__ is not just a docstring"),
        (
            "plan.__init__",
            '"""x"""\nfrom samplicator.plan.spec import PlanSpec\n',
            "plan.__init__ is not just a docstring",
        ),
        ("errors", '__all__ = ["Problem"]\n', "errors has an __all__: nothing is re-exported"),
        (
            "views.flow",
            "from samplicator.supervisor.view import Readings\n",
            "views.flow takes Readings from samplicator.supervisor.view, which borrows it",
        ),
    ],
)
def test_a_planted_fault_of_each_kind_is_found(module: str, source: str, why: str) -> None:
    assert why in faults({**KNOWN, module: source})


def test_what_is_for_types_only_counts_for_nothing() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from samplicator.supervisor.build import Build\n"
    assert faults({**KNOWN, "host.links": source}) == []


def test_the_picture_in_architecture_is_this_house() -> None:
    """`cd tests && python -m support.house` writes it anew."""
    text = PAGE.read_text()
    assert MARKS[0] in text
    assert MARKS[1] in text
    assert page_with(text, picture(KNOWN)) == text
