"""Fixtures: `lab` (MTU 1500, two collectors) and `make_lab` for anything else.

Invariant: whatever a test does, its laboratory is unmade, and the relay's counters are held against both
conservation laws first. Imported by the conftest files of the folders whose tests need a laboratory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.lab import Lab, sweep


@pytest.fixture(scope="session", autouse=True)
def swept() -> None:
    sweep()


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Makes laboratories; all of them are closed, also when one of them complains."""
    labs: list[Lab] = []

    def make(**options: Any) -> Lab:
        labs.append(Lab(**options))
        return labs[-1]

    yield make
    complaints: list[BaseException] = []
    for lab in labs:
        try:
            lab.close()
        except BaseException as error:
            complaints.append(error)
    if complaints:
        raise complaints[0]


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab()
