"""Pulse: a piece of work that is done over and over, in a thread of its own, and never stops because it failed.

Called by service for what must happen in time whatever else the process does: the state of the receivers decides on
fail-over, and must not wait behind HTTP requests. Invariants: the work is never done twice at once; a failure is logged
once a minute, and the work goes on. It must never be used for work that may wait for the control loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from samplicator.logs import RateGate

log = logging.getLogger(__name__)


class Pulse:
    """Does `work` every `seconds`, counted from the end of one to the beginning of the next."""

    def __init__(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        self._name = name
        self._seconds = seconds
        self._work = work
        self._stopped = False
        self._wake = threading.Event()
        self._gate = RateGate()
        self._thread = threading.Thread(target=self._run, name=f"pulse-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No more after the one that may run now; does not wait for it."""
        self._stopped = True
        self._wake.set()

    def now(self) -> None:
        """Once more at once, or right after the one that runs."""
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._seconds)
            self._wake.clear()
            if self._stopped:
                return
            try:
                self._work()
            except Exception as error:
                count = self._gate.add((self._name,), 1, time.monotonic())
                if count:
                    expected = None if isinstance(error, OSError) else error
                    log.error(
                        "background task %s failed %d times (%s); samplicator tries again",
                        self._name,
                        count,
                        error,
                        exc_info=expected,
                    )
