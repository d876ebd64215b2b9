"""Pulse: repeats a task in its own thread, and continues after a failure.

Called by service for tasks that must run on time, independent of the rest of the process: the states of the receivers
decide on fail-over and must not wait for HTTP requests. Invariants: a task never runs twice at the same time; a failure
is logged once per minute and the task continues. It must never be used for a task that can wait for the control loop.
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
        """Starts no further run; does not wait for the current one."""
        self._stopped = True
        self._wake.set()

    def now(self) -> None:
        """Runs the task now, or right after the current run."""
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
