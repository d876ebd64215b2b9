"""One exporter's session to a collector: its queue, its templates, and its next attempt.

Purpose: copies of the exporter in, whole messages to the session out. Invariants: a session begins with all templates
that the collector had, and data come after them; what waits is sent in order, the oldest first; what the transport took
and could not deliver is lost, as on any network; attempts come after longer and longer pauses, up to LONGEST_SECONDS,
and the first one at once. Called by outlet and by the transport, in the thread of the loop.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from samplicator.gateways.apart import CONTROL, Apart
from samplicator.gateways.budget import Budget
from samplicator.gateways.forms import form_of
from samplicator.gateways.ipfix import Template
from samplicator.gateways.split import ends_of
from samplicator.gateways.tally import OutTally
from samplicator.gateways.told import Told
from samplicator.gateways.transport import Address, Options, Session, Transport
from samplicator.readings import AssociationReading

FIRST_SECONDS: Final = 0.25
LONGEST_SECONDS: Final = 30.0
SETTLED_SECONDS: Final = 5.0
"""A session that lasted so long was a good one: the pauses begin with the shortest again."""

INITIALISING: Final = "initialising"
CONNECTED: Final = "connected"
NOT_CONNECTED: Final = "not connected"
RE_ESTABLISHING: Final = "re-establishing"


class Seen(NamedTuple):
    """What there is to see of a session, of two collectors the first."""

    state: str
    why: str


class Line:
    """See above; the Events of its session. exporter: whose copies these are. queue_bytes: what waits here. moved: told
    how many bytes the queue grew, or shrank. again: told when a session is a new one in the place of another.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Transport,
        exporter: Address,
        place: Address,
        options: Options,
        tally: OutTally,
        budget: Budget,
        moved: Callable[[int], None],
        again: Callable[[], None],
    ) -> None:
        self.exporter = exporter
        self.state = INITIALISING
        self.why = ""
        self.queue_bytes = 0
        self.opened_count = 0
        self.messages = 0
        self.octets = 0
        self.used_at = loop.time()
        self._loop = loop
        self._transport = transport
        self._place = place
        self._options = options
        self.tally = tally
        self._moved = moved
        self._was_again = again
        self._told = Told(budget)
        self._queue: deque[bytes] = deque()
        self._first: deque[tuple[int, bytes]] = deque()  # streams and messages that go before the queue: templates,
        # and what was made of `_current`
        self._apart: Apart | None = None  # of a session with several streams
        self._current = b""
        self._session: Session | None = None
        self._pause = FIRST_SECONDS
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ending = False
        self._connect()

    @property
    def streams(self) -> int:
        return self._session.streams if self._session is not None and self.state == CONNECTED else 1

    @property
    def delivers(self) -> bool:
        """Whether copies get somewhere now, as far as is known."""
        return self.state == CONNECTED and self._session is not None and self._session.delivers

    @property
    def seen(self) -> Seen:
        association = self.association
        if association is None:
            return Seen(self.state, self.why)
        primary = association.collectors[0]
        return Seen(primary.state, primary.why if primary.state != CONNECTED else "")

    @property
    def association(self) -> AssociationReading | None:
        return self._session.association if self._session is not None else None

    @property
    def waiting(self) -> int:
        """Copies that wait."""
        return len(self._queue)

    @property
    def waits(self) -> bool:
        """Whether anything is not sent, or not acknowledged."""
        return bool(self._queue) or (self._session is not None and self._session.unsent_bytes > 0)

    @property
    def ended(self) -> bool:
        """Nothing is left of it."""
        return self._ending and self._session is None

    # -- copies

    def take(self, payload: bytes) -> None:
        self.used_at = self._loop.time()
        self._queue.append(payload)
        self._grow(len(payload))
        if self.state == CONNECTED:
            self._send()

    def _grow(self, count: int) -> None:
        self.queue_bytes += count
        self._moved(count)

    def _send(self) -> None:
        """Until the session takes no more."""
        assert self._session is not None
        while self._first or self._queue:
            if not self._first and not self._prepare():
                continue  # nothing in it must be sent
            stream, message = self._first[0]
            if not self._session.send(message, stream):
                return
            self._first.popleft()
            if not self._first:
                self._current = b""
            self.tally.messages += 1
            self.tally.octets += len(message)
            self.messages += 1
            self.octets += len(message)
        if self._ending:
            self._session.close()

    def _prepare(self) -> bool:
        """Takes the next copy; False: there is nothing in it that must be sent."""
        payload = self._current = self._queue.popleft()
        self._grow(-len(payload))
        unchanged, withdrawn = self._told.unchanged, self._told.withdrawn
        try:
            self._first.extend(self._on_streams(self._told.take(payload)))
        except ValueError:
            self.tally.not_ipfix += 1
        self.tally.templates_left_out += self._told.unchanged - unchanged
        self.tally.withdrawn += self._told.withdrawn - withdrawn
        if not self._first:
            self._current = b""
        return bool(self._first)

    def templates(self) -> list[bytes]:
        """What another collector must know before it gets what this session sends (a backup): for stream 0."""
        return self._on_stream_0(self._told.begin())

    def _on_stream_0(self, messages: list[bytes]) -> list[bytes]:
        return [self._apart.control(message) for message in messages] if self._apart is not None else messages

    def teaches(self) -> bool:
        """Whether the copy that is being sent has templates."""
        return self._told.taught

    def replaced(self) -> Callable[[], list[bytes]] | None:
        """Makes what templates() was before the copy that is being sent, if that replaces one; once for each copy."""
        before, self._told.before = self._told.before, None
        if before is None:
            return None
        return lambda: self._on_stream_0(before())

    def records(self, message: bytes) -> int:
        """Flow records of a message that was sent, as far as templates are known; of v9 what its header says."""
        form = form_of(message)
        if form.per_message:
            return int.from_bytes(message[2:4], "big")
        domain = form.place(message)[1]
        data = [found for found in form.sets_of(message) if found.identity not in form.template_sets]

        def known(number: int) -> Template | None:
            return self._told.template(form, domain, number)

        return sum(len(ends_of(form, message, found, known)[0]) for found in data)

    def again(self) -> None:
        """A collector of the session has all templates, and no options data."""
        self._was_again()

    def _on_streams(self, messages: list[bytes]) -> list[tuple[int, bytes]]:
        """Where each of them goes."""
        if self._apart is None:
            return [(CONTROL, message) for message in messages]
        return [each for message in messages for each in self._apart.take(message)]

    # -- Events

    def admits(self, peer: Address) -> str:
        return "nobody is to come in here"

    def refused(self, peer: Address, why: str) -> None:
        """Nobody comes in."""

    def opened(self, session: Session) -> None:
        self.state, self.why = CONNECTED, ""
        self.opened_count += 1
        self.tally.opened += session.association is None  # else the association counts
        self._since = self._loop.time()
        self._apart = Apart(session.streams, self._told.template) if session.streams > 1 else None
        self._first = deque(self._on_streams(self._told.begin()))
        if self.opened_count > 1:
            self._was_again()
        self._send()

    def message(self, session: Session, stream: int, message: bytes) -> None:
        """Collectors say nothing (RFC 7011 section 10.4.2); what they say is left out."""

    def writable(self, session: Session) -> None:
        if self.state == CONNECTED:
            self._send()

    def given_up(self, session: Session, message: bytes) -> None:
        """Everything is to be delivered."""

    def closed(self, session: Session, why: str) -> None:
        was_open = self.state == CONNECTED
        self._session = None
        self._first.clear()
        if self._current:
            self._queue.appendleft(self._current)
            self._grow(len(self._current))
            self._current = b""
        if self._ending:
            self._drop()
            return
        self.tally.failed += not was_open
        self.why = why or "the collector closed the connection"
        self.state = RE_ESTABLISHING if self.opened_count else NOT_CONNECTED
        if was_open and self._loop.time() - self._since >= SETTLED_SECONDS:
            self._pause = FIRST_SECONDS
        self._timer = self._loop.call_later(self._pause * random.uniform(0.75, 1.25), self._connect)
        self._pause = min(2 * self._pause, LONGEST_SECONDS)

    # -- life

    def _connect(self) -> None:
        self._timer = None
        try:
            self._session = self._transport.connect(self._place, self, self._options)
        except OSError as error:
            self.why = error.strerror or str(error)
            self.tally.failed += 1
            self._timer = self._loop.call_later(self._pause, self._connect)
            self._pause = min(2 * self._pause, LONGEST_SECONDS)

    def end(self, *, abort: bool = False) -> None:
        """No more copies come. What waits is sent if it is connected now; abort: not even then."""
        self._ending = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._session is None:
            self._drop()
        elif abort or self.state != CONNECTED:
            self._session.close(abort=True)
        elif not self._queue and not self._first:
            self._session.close()

    def _drop(self) -> None:
        self._told.close()
        self.tally.unsent += len(self._queue)
        self._queue.clear()
        self._grow(-self.queue_bytes)
