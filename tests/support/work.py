"""What something costs, by the calls it makes: the same on every machine, unlike its seconds.

Used by tests that bound work. Counts calls of Python and of C functions in the calling thread only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


def calls_of(work: Callable[[], object]) -> int:
    found = 0

    def called(frame: object, event: str, what: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(before)
    return found
