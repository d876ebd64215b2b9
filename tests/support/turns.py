"""Who may use the machine when: tests share it, but for those that need it to themselves (the mark `alone`).

Those measure time or the share of a CPU, or send so much that another test beside them would be lost datagrams. With
one process that runs tests nobody waits. Called by tests/conftest.py around every test, its fixtures included; outside
of pytest-timeout, so that waiting is not time of the test.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GATE, MACHINE = Path(__file__), Path(__file__).with_name("__init__.py")
"""Files that are locked, and that need not be made or removed: those of the tree. flock(2) needs no right to write."""


@contextmanager
def turn(alone: bool) -> Iterator[None]:
    """Holds the machine, or a share of it, during the block.

    Who wants it alone keeps the gate shut: nobody comes in while it waits for those inside to leave. The kernel frees
    the locks of a process that dies.
    """
    with opened(GATE) as gate, opened(MACHINE) as machine:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
