"""`samplicate -d`: lines on standard error about datagrams and their copies, in the words of the original samplicate.

Purpose: a tap's client on a thread of its own. Invariants: the datapath never waits for it: what is over RATE_LIMIT is
not shown, and how much that was is said. Called by service.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from samplicator.config.address import address_text, endpoint_text
from samplicator.supervisor.taps import RATE_LIMIT, Ask, Event, TooMany

if TYPE_CHECKING:
    from samplicator.plan.spec import PlanSpec
    from samplicator.supervisor.supervisor import Supervisor

IDLE_MS: Final = 50
"""After so long without news, all copies of a datagram are known."""
FOLLOW_SECONDS: Final = 1.0


class DebugLines:
    """See above. Made before the first plan runs, so that nothing is missed. Raises OSError."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._view = supervisor.view
        self._tap = supervisor.taps.open(Ask(rate=RATE_LIMIT), early=True)
        self._ended = False
        self._unshown = 0
        self._open: dict[int, list[str]] = {}  # lines of datagrams that may get more, by number
        self._batch: dict[int, int] = {}  # by worker
        self._places: dict[str, str] = {}
        self._places_of: PlanSpec | None = None
        self._thread = threading.Thread(target=self._run, name="debug", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Writes what has come so far."""
        self._ended = True
        self._thread.join(2.0)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._tap.fileno(), select.POLLIN)
        due = time.monotonic()
        try:
            while True:
                ending = self._ended
                if not poll.poll(IDLE_MS):
                    self._write(self._open)
                events = self._tap.read()
                for event in events:
                    self._take(event)
                if ending and not events:
                    break
                if time.monotonic() >= due:
                    due = time.monotonic() + FOLLOW_SECONDS
                    self._follow()
            self._write(self._open)
        finally:
            self._tap.close()

    def _follow(self) -> None:
        with contextlib.suppress(OSError, TooMany):
            self._tap.follow()
        _, unshown = self._tap.counts()
        if unshown != self._unshown:
            _say(f"{unshown - self._unshown} datagrams and copies were left out here: too many a second\n")
            self._unshown = unshown

    def _take(self, event: Event) -> None:
        worker = event.datagram & 0xFF
        if event.event == "in":
            if event.batch != self._batch.get(worker):  # all copies of those before are known
                self._write({number: () for number in self._open if number & 0xFF == worker})
                self._batch[worker] = event.batch
            self._open[event.datagram] = self._lines(event)
        lines = self._open.get(event.datagram)
        if lines is None or event.event not in ("sent", "failed"):
            return
        if self._places_of is not self._view.spec:
            self._places_of = self._view.spec
            receivers = self._places_of.receivers if self._places_of is not None else ()
            self._places = {receiver.name: receiver.place for receiver in receivers}
        place = self._places.get(event.receiver, event.receiver)
        lines.append(f"  sent to {place}" if event.event == "sent" else f"  not sent to {place}: {event.reason}")

    def _lines(self, event: Event) -> list[str]:
        """The datagram, and the rules that do not match it."""
        lines = [f"received {event.length} bytes from {endpoint_text(address_text(event.address), event.port)}"]
        spec = self._view.spec
        matched: set[int] = set()
        with contextlib.suppress(RuntimeError, KeyError):
            matched = set(self._view.route(event.address, listener=event.listener).rule_indexes)
        for index, rule in enumerate(spec.rules if spec is not None else ()):
            if index not in matched:
                lines += [f"Not matching {source.text or 'everything'}" for source in rule.sources]
        return lines

    def _write(self, numbers: Iterable[int]) -> None:
        """What is known of these datagrams, for good."""
        text = "".join("\n".join(self._open.pop(number)) + "\n" for number in list(numbers))
        if text:
            _say(text)


def _say(text: str) -> None:
    """Waits for who reads it, which only this thread does; not by sys.stderr, whose lock the interpreter needs at its
    end.
    """
    data = text.encode()
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]
