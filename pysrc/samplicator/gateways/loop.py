"""The thread of the gateways: one event loop for all of them, beside the one of the service.

Purpose: sessions with thousands of peers must not delay the status pages, and a slow page must not delay them. The
thread starts with the first gateway that a configuration names. Called by the service, which says what kind of loop it
is, and by hub. It must never be waited for by a thread that holds a lock, but in close().
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Final

NewLoop = Callable[[], asyncio.AbstractEventLoop]
CLOSE_SECONDS: Final = 10.0


class LoopThread:
    """See above."""

    def __init__(self, new_loop: NewLoop) -> None:
        self.loop = new_loop()
        self._thread = threading.Thread(target=self._run, name="gateways", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def call(self, work: Callable[[], object]) -> None:
        """Has it done in the loop, in the order of the calls. Raises RuntimeError when the thread has ended."""
        self.loop.call_soon_threadsafe(work)

    def wait(self, work: Callable[[], object], seconds: float = CLOSE_SECONDS) -> bool:
        """The same, and waits until it is done; False: it took longer."""
        done = threading.Event()

        def do() -> None:
            try:
                work()
            finally:
                done.set()

        self.call(do)
        return done.wait(seconds)

    def close(self) -> None:
        """Ends the loop and what runs in it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CLOSE_SECONDS)
