"""Fixtures and switches for every test of the repository.

Invariants: no test skips because a tool is missing when it runs as root: `make test` installs the tools, so a
missing one is a failure that names the package. Without root the tests marked `netns` are skipped, nothing else.
As root no test sees the machine's network: every process that runs tests has one of its own. Called by pytest only.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from support.network import enter_own
from support.turns import turn

# Who starts this in the background, or by nohup, has signals ignored, and so would all programs under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
MANAGED = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "STATE_DIRECTORY",
)
"""What a service manager, or a container of one, tells the tests is not meant for the processes that they start."""


def pytest_configure(config: pytest.Config) -> None:
    """Two processes that run tests side by side (pytest-xdist; it runs none itself) share no port."""
    for name in MANAGED:
        os.environ.pop(name, None)
    distributes = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if os.geteuid() == 0 and not distributes:
        enter_own()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Two processes take turns where a test wants the machine to itself."""
    with turn(item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below tests/system needs namespaces; only a user that is not root is excused.

    Two processes that take test after test from one list are done at the same time if the long ones come first: those
    of tests/system. Those that want the machine to themselves come last, and to one process.
    """
    for item in items:
        if (TESTS / "system") in item.path.parents:
            item.add_marker(pytest.mark.netns)
        if os.geteuid() != 0 and item.get_closest_marker("netns"):
            item.add_marker(pytest.mark.skip(reason="needs root: network namespaces"))
        if item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.xdist_group("alone"))
    items.sort(
        key=lambda item: (item.get_closest_marker("alone") is not None, (TESTS / "system") not in item.path.parents)
    )


@pytest.fixture(scope="session")
def repository() -> Path:
    """Top of the working tree."""
    return ROOT


@pytest.fixture(scope="session")
def scripts() -> Path:
    """The folder where this interpreter's commands are (samplicate, samplicator)."""
    return Path(sys.executable).parent
