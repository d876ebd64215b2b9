"""Handover: what the service does when another process takes over from it, and when it takes over itself.

Purpose: brings giving and taking, which wait for the other process on threads of their own, together with the control
loop. Invariants: the loop never waits for the other process; while a take-over is under way no plan changes. Called by
service.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from samplicator.config.model.service import Service
from samplicator.host.sources import HandedIn
from samplicator.plan.spec import PlanSpec
from samplicator.service import taking, talk
from samplicator.service.giving import LOOK_SECONDS, Giver
from samplicator.service.pages import Pages
from samplicator.service.talk import Declined, Talk
from samplicator.supervisor.refusal import BuildError
from samplicator.supervisor.reload import Reloader
from samplicator.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)

REST_SECONDS: Final = 8.0
"""How long a take-over waits for a reload to end."""
LEAVE_SECONDS: Final = 2.0
MANAGED: Final = (
    "a service manager (systemd) watches this process and would start it again; use `systemctl restart` instead, which "
    "loses no datagram because systemd keeps the sockets"
)


class Handover:
    """One per service. given: another process has taken over."""

    def __init__(
        self, supervisor: Supervisor, reloader: Reloader, pages: Pages, *, managed: bool, ended: Callable[[], None]
    ) -> None:
        """managed: a service manager watches this process. ended: called on the loop when this process is given."""
        self.given = False
        self._supervisor = supervisor
        self._reloader = reloader
        self._pages = pages
        self._managed = managed
        self._ended = ended
        self._giver = Giver(supervisor, pages.shared, self._at_rest, self._refusal)
        self._giving: set[asyncio.Task[None]] = set()
        self._taker: taking.Taker | None = None

    # ------------------------------------------------------------------ this process takes over

    async def find(self, service: Service) -> bool:
        """Whether there is a process to take over from. Raises OSError."""
        if not service.control:
            why = (
                '--takeover needs service.control, which is ""; write the path that the running process has as its '
                "service.control (own_control cannot be taken over from). If it has none, stop it, then start this one "
                "without --takeover"
            )
            raise BuildError(errno.EINVAL, why, ("service", "control"))
        self._taker = await asyncio.to_thread(taking.find, service.control)
        if self._taker is None:
            log.info("no process answers on %s, so there is nothing to take over", service.control)
        return self._taker is not None

    def follow(self, service: Service, spec: PlanSpec) -> None:
        """Gets what the other process has; to be called just before the first plan, on any thread. Raises OSError."""
        if self._taker is not None:
            self._supervisor.prepare(spec)
            handed = self._taker.ask()
            self._supervisor.follow(HandedIn(handed.sockets, self._taker.commit), handed.state)
            self._pages.open(service, handed.pages)

    async def done(self) -> None:
        """The first plan runs. Returns when the other process answers no HTTP request any more."""
        if self._taker is not None:
            await asyncio.to_thread(self._taker.taken)

    def abandon(self, why: str) -> bool:
        """This process cannot start. Whether it was taking over, so that the sockets belong to another one."""
        if self._taker is not None:
            self._taker.abandon(why, reads=self._supervisor.generation > 0)
        return self._taker is not None

    # ------------------------------------------------------------------ this process is taken over from

    @property
    def taker(self) -> int:
        """The process that has taken over."""
        return self._giver.taker

    def begin(self, connection: socket.socket) -> tuple[int, str]:
        """See ServiceState.hand_over."""
        pid, user = talk.peer(connection)
        if not talk.may_take(user):
            log.warning("process %d of user %d may not take over", pid, user)
            return 403, "only the user of this process, or root, may take over from it"
        task = asyncio.get_running_loop().create_task(self._give(Talk(connection), pid, asyncio.get_running_loop()))
        self._giving.add(task)
        task.add_done_callback(self._giving.discard)
        return 101, ""

    async def _give(self, conversation: Talk, pid: int, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        if await asyncio.to_thread(self._giver.give, conversation, pid, self._leave_pages):
            self.given = True
            self._ended()

    async def settle(self) -> None:
        """This process is to end: waits until it is clear whether another one has the sockets."""
        self._giver.stopping.set()
        await asyncio.gather(*self._giving, return_exceptions=True)

    def _leave_pages(self) -> None:
        async def leave() -> None:
            self._pages.leave()

        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(leave(), self._loop).result(LEAVE_SECONDS)

    def _refusal(self) -> tuple[str, bool]:
        if self._managed:
            return MANAGED, False
        if self._giver.stopping.is_set():
            return "it is stopping", True
        return "", False

    @contextlib.contextmanager
    def _at_rest(self) -> Iterator[None]:
        """No reload within, and nobody writes the state file. On the giver's thread."""
        held, release = threading.Event(), asyncio.Event()

        async def hold() -> None:
            async with self._reloader.at_rest():
                held.set()
                await release.wait()

        holding = asyncio.run_coroutine_threadsafe(hold(), self._loop)
        try:
            deadline = time.monotonic() + REST_SECONDS
            while not held.wait(LOOK_SECONDS):
                if time.monotonic() > deadline or self._giver.stopping.is_set():
                    raise Declined("it is changing its configuration", again=True)
            with self._supervisor.no_saving():
                yield
        finally:
            if held.is_set():
                self._loop.call_soon_threadsafe(release.set)
            else:
                holding.cancel()
