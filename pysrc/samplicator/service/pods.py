"""Pods: a new plan when the pods of a Kubernetes Service have changed.

Called by service. Invariants: the first change is acted on at once, the next ones at most once per second, and
following takes at most one part in REST of the time, whatever a Deployment does that starts and fails in turns. It must
never wait for the API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

from samplicator.cluster.services import Services

SETTLE_SECONDS: Final = 0.05
"""One change of a Deployment arrives as several events."""
LEAST_SECONDS: Final = 1.0
AGAIN_SECONDS: Final = 30.0
"""A plan that could not be made, for want of descriptors for example, is tried again."""
REST: Final = 4


class PodWatch:
    """services: all that are followed."""

    def __init__(self, follow: Callable[[str], Awaitable[None]]) -> None:
        """follow: makes a new plan if it would be another one."""
        self.services = Services(self.news)
        self._follow = follow
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._early = False

    def news(self) -> None:
        """Any thread: pods have changed, or may have."""
        loop = self._loop
        if loop is None:
            self._early = True
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._news.set)

    async def run(self) -> None:
        """Until it is canceled."""
        self._loop = asyncio.get_running_loop()
        if self._early:
            self._news.set()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), AGAIN_SECONDS)
            if not self._news.is_set() and not self.services.readings():
                continue
            await asyncio.sleep(SETTLE_SECONDS)
            self._news.clear()
            begun = time.monotonic()
            await self._follow("the pods of a Service have changed")
            await asyncio.sleep(max(LEAST_SECONDS, REST * (time.monotonic() - begun)))
