"""Giving: the old process's side of a take-over.

Purpose: pauses what runs, sends the sockets and the state, and waits until the new process reads or has failed. Whoever
has the token (talk.Token) reads, so there are never two readers and never none for longer than PAUSED_SECONDS.
Invariants: until the token is gone, every failure ends with what ran before running on; after that, this process reads
again only when the other one has ended, which the kernel tells by closing the connection. Called by service, on a
thread of its own. It must never close a socket.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from samplicator import __version__
from samplicator.service import talk
from samplicator.service.talk import Declined, Ended, Garbled, Silent, Talk, Token

log = logging.getLogger(__name__)

HELLO_SECONDS: Final = 5.0
PREPARING_SECONDS: Final = 120.0
"""How long the new process may take to prepare, which costs nothing but that no other process can take over."""
SILENT_SECONDS: Final = 1.0
"""How long the new process may be silent during the pause. The kernel holds what arrives meanwhile."""
PAUSED_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 0.05
"""How often it is looked whether this process is to stop."""


class Runs(Protocol):
    """What a take-over needs of what runs. See Supervisor."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def sockets(self) -> Sequence[tuple[str, socket.socket]]: ...

    def final_state(self) -> bytes: ...

    def given(self) -> None: ...


class Giver:
    """One per process; gives to one process at a time. stopping: set by service when this process is to end."""

    def __init__(
        self,
        runs: Runs,
        pages: Callable[[], Mapping[str, socket.socket]],
        at_rest: Callable[[], AbstractContextManager[None]],
        refusal: Callable[[], tuple[str, bool]],
    ) -> None:
        """pages: the listening sockets of the HTTP interface by key. at_rest: what must not happen during a take-over
        (reloads, writing the state file) does not happen within. refusal: why this process cannot be taken over now and
        whether asking again can help; "" = it can be.
        """
        self._runs = runs
        self._pages = pages
        self._at_rest = at_rest
        self._refusal = refusal
        self._busy = threading.Lock()
        self.stopping = threading.Event()
        self.taker = 0
        """Process that has taken over or is about to; 0 in a container that this process cannot see."""

    def give(self, conversation: Talk, pid: int, begun: Callable[[], None]) -> bool:
        """The whole of it; takes as long as it takes. pid: of the other process, as this one sees it. True: the other
        process reads the sockets, and waits for begun() to return before it answers on the HTTP sockets. Never raises
        for what the other side does.
        """
        try:
            with contextlib.suppress(Ended, Silent):
                conversation.upgrade()
            if not self._busy.acquire(blocking=False):
                _decline(conversation, f"process {self.taker} is taking over from it at this moment")
                return False
            try:
                self.taker = pid
                given = self._give(conversation)
                if given:
                    begun()
                    with contextlib.suppress(Ended, Silent):
                        conversation.send("bye", seconds=1.0)
                return given
            finally:
                self._busy.release()
        finally:
            conversation.close()

    def _give(self, conversation: Talk) -> bool:
        token: Token | None = None
        try:
            self._meet(conversation)
            token = Token.new()
            conversation.send("welcome", [token.fileno()], protocol=talk.PROTOCOL, version=__version__, pid=os.getpid())
            self._expect(conversation, "pause", PREPARING_SECONDS)
            with self._at_rest():
                given = self._hand_over(conversation, token)
                if given:
                    self._runs.given()
                return given
        except (Ended, Silent, Garbled, Declined, OSError, RuntimeError) as error:
            log.warning("take-over by process %d failed: %s; this process goes on", self.taker, _reason(error))
            _decline(conversation, _reason(error), again=isinstance(error, Declined) and error.again)
            return False
        finally:
            if token is not None:
                token.close()

    def _meet(self, conversation: Talk) -> None:
        """Raises Declined when the two do not fit, and what Talk raises."""
        hello = self._expect(conversation, "hello", HELLO_SECONDS)
        pid = hello.get("pid")
        self.taker = self.taker or (pid if isinstance(pid, int) else 0)
        if hello.get("protocol") != talk.PROTOCOL:
            raise Declined(
                f"this process is version {__version__} and knows take-over protocol {talk.PROTOCOL}, the new one "
                f"protocol {hello.get('protocol')}; stop this process and start the new one"
            )
        if hello.get("network") != talk.network():
            raise Declined(
                "the two processes are in different network namespaces, so they cannot share sockets; in Kubernetes "
                "both need hostNetwork: true"
            )
        why, again = self._refusal()
        if why:
            raise Declined(why, again=again)

    def _expect(self, conversation: Talk, say: str, seconds: float) -> dict[str, Any]:
        """A message before the pause. Raises Declined when this process is to end, and what Talk raises."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return conversation.expect(say, LOOK_SECONDS)[0]
            except Silent:
                if self.stopping.is_set():
                    raise Declined("it is stopping", again=True) from None
                if time.monotonic() > deadline:
                    raise

    # ------------------------------------------------------------------ the pause

    def _hand_over(self, conversation: Talk, token: Token) -> bool:
        """From the pause to the end. True: given."""
        begun_ns = time.monotonic_ns()
        deadline = time.monotonic() + PAUSED_SECONDS
        try:
            self._runs.pause()
            self._send_all(conversation, begun_ns)
            self._wait(conversation, token, deadline)
        except (Silent, Garbled, OSError, RuntimeError) as error:
            if token.take():
                self._resume(begun_ns)
                raise
            log.warning("process %d has taken over, but does not say so: %s", self.taker, _reason(error))
            return self._wait_for_end(conversation, begun_ns)
        except BaseException:  # it has ended or given up, so it does not read
            token.take()
            self._resume(begun_ns)
            raise
        milliseconds = (time.monotonic_ns() - begun_ns) / 1e6
        log.info("process %d has taken over; nobody read the sockets for %.0f ms", self.taker, milliseconds)
        return True

    def _resume(self, begun_ns: int) -> None:
        try:
            self._runs.resume()
        except RuntimeError as error:
            log.error("the workers do not go on: %s", error)
            return
        log.info("the workers go on after a pause of %.0f ms", (time.monotonic_ns() - begun_ns) / 1e6)

    def _send_all(self, conversation: Talk, begun_ns: int) -> None:
        """Raises what Talk raises, OSError."""
        sockets = self._runs.sockets()
        for part in _parts(sockets, talk.FDS):
            conversation.send(
                "sockets",
                [sock.fileno() for _, sock in part],
                labels=[label for label, _ in part],
                seconds=SILENT_SECONDS,
            )
        pages = self._pages()
        conversation.send("pages", [s.fileno() for s in pages.values()], keys=list(pages), seconds=SILENT_SECONDS)
        state = self._runs.final_state()
        memory = os.memfd_create("samplicator-state", os.MFD_CLOEXEC)
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(state)
            conversation.send("state", [memory], bytes=len(state), seconds=SILENT_SECONDS)
        finally:
            os.close(memory)
        conversation.send("all", sockets=len(sockets), paused_ns=begun_ns, seconds=SILENT_SECONDS)

    def _wait(self, conversation: Talk, token: Token, deadline: float) -> None:
        """Until the other process has taken over. Raises what Talk raises."""
        heard = time.monotonic()
        while True:
            if self.stopping.is_set() and token.take():
                raise Declined("it is stopping", again=True)
            try:
                message, _ = conversation.receive(LOOK_SECONDS)
            except Silent:
                now = time.monotonic()
                if now - heard > SILENT_SECONDS or now > deadline:
                    limit = SILENT_SECONDS if now <= deadline else PAUSED_SECONDS
                    raise Silent(f"it has not taken over within {limit:g} s") from None
                continue
            heard = time.monotonic()
            if message["say"] == "taken":
                return
            if message["say"] != "working":
                raise Garbled(f"{message['say'][:40]!r} in place of 'taken'")
            if heard > deadline:
                raise Silent(f"it has not taken over within {PAUSED_SECONDS:g} s")

    def _wait_for_end(self, conversation: Talk, begun_ns: int) -> bool:
        """The other process has the token. Until it has ended, or this process is to end."""
        while not self.stopping.is_set():
            try:
                message, _ = conversation.receive(LOOK_SECONDS)
            except Silent:
                continue
            except Garbled:  # as every next time: only its end says anything now
                self.stopping.wait(LOOK_SECONDS)
                continue
            except (Ended, Declined):
                self._resume(begun_ns)
                raise
            if message["say"] == "taken":
                return True
        return True


def _decline(conversation: Talk, why: str, *, again: bool = False) -> None:
    with contextlib.suppress(Ended, Silent):
        conversation.send("no", why=why, again=again, seconds=0.5)


def _reason(error: BaseException) -> str:
    if isinstance(error, Ended):
        return "it has ended or closed the connection"
    if isinstance(error, Silent):
        return str(error) or "it was silent for too long"
    if isinstance(error, Garbled):
        return f"it sent {error}"
    return str(error)


def _parts(sockets: Sequence[tuple[str, socket.socket]], size: int) -> Iterator[Sequence[tuple[str, socket.socket]]]:
    for first in range(0, len(sockets), size):
        yield sockets[first : first + size]
