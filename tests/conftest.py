"""Fixtures and switches for every test of the repository.

Invariants: no test skips because a tool is missing when it runs as root: `make test` installs the tools, so a
missing one is a failure that names the package. Without root the tests marked `netns` are skipped, nothing else.
Called by pytest only. Must never start a process or make a namespace itself: that is tests/support/lab.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below tests/system needs namespaces; only a user that is not root is excused."""
    for item in items:
        if (TESTS / "system") in item.path.parents:
            item.add_marker(pytest.mark.netns)
        if os.geteuid() != 0 and item.get_closest_marker("netns"):
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Top of the working tree."""
    return ROOT


@pytest.fixture(scope="session")
def scripts() -> Path:
    """The folder where this interpreter's commands are (samplicate, samplicator)."""
    return Path(sys.executable).parent
