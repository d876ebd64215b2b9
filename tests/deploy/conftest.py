"""Fixtures of the deployment tests: laboratories, and the package that machines install, made once per run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.labs import lab, make_lab, swept  # noqa: F401
from support.machine import root_of
from support.package import build


@pytest.fixture(scope="session")
def package() -> Path:
    """The Debian package of this tree. The root file system, which is needed as well, is fetched meanwhile."""
    with ThreadPoolExecutor() as pool:
        root = pool.submit(root_of, "bookworm")
        made = build()
        root.exception()  # whoever boots it says what is wrong
    return made
