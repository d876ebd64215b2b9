"""Looks at the daemon again and again, in a thread, so that keys are answered while a daemon is slow or gone.

Called by command, with what the screen shows. Invariant: the thread has the connection for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from samplicator.cli.top.pages import PAGES
from samplicator.cli.top.watch import Row, Snapshot, Watch
from samplicator.errors import Unreachable


class Fetcher(threading.Thread):
    """Looks every `delay` seconds, in a thread of its own. wake: called after each look. What it found is in
    `snapshot`; `begun` is the Unix time at which the look that is under way began, 0 = none is. `trouble` says why the
    last look failed, `since` is the Unix time of the first failure in a row. `crash` is an error of our own.
    """

    def __init__(self, watch: Watch, wake: Callable[[], None], first: Snapshot, page: str, delay: float) -> None:
        super().__init__(name="top", daemon=True)
        self.snapshot = first
        self.count = 1
        self.trouble = ""
        self.since = 0.0
        self.begun = 0.0
        self.crash: BaseException | None = None
        self.delay = delay
        self.detail: tuple[str, list[Row]] | None = None
        self._watch = watch
        self._wake = wake
        self._page = page
        self._detail_of = ""
        self._held = False
        self._changed = threading.Event()
        self._ending = False

    def want(self, page: str, detail: str, delay: float, held: bool) -> None:
        """What to look at from now on: the page, the place whose templates are shown ("" = none); held: nothing."""
        wanted = (page, detail, delay, held)
        if wanted != (self._page, self._detail_of, self.delay, self._held):
            self._page, self._detail_of, self.delay, self._held = wanted
            self._changed.set()

    def end(self) -> None:
        """Does not wait: a request may be under way."""
        self._ending = True
        self._changed.set()

    def run(self) -> None:
        try:
            pause = 0.2  # the first look after the one that opened: so that there are rates soon
            while not self._ending:
                self._changed.wait(pause)
                self._changed.clear()
                if self._ending:
                    return
                begin = time.monotonic()
                if not self._held:
                    self.begun = time.time()
                    self._once()
                    self.begun = 0.0
                    self._wake()
                pause = max(0.05, self.delay - (time.monotonic() - begin))
        except BaseException as error:
            self.crash = error
            self._wake()

    def _once(self) -> None:
        page, place = self._page, self._detail_of
        shown = PAGES[page]
        try:
            self.snapshot = self._watch.look({shown.table}, [shown.table] if shown.trend else [], self.delay / 2)
            if place:
                self.detail = (place, self._watch.templates(place))
            self.count += 1
            self.trouble = ""
        except Unreachable as error:
            self.since = self.since if self.trouble else time.time()
            self.trouble = str(error)
