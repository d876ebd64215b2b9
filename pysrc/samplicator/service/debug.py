"""`samplicate -d`: lines on standard error about datagrams and their copies, in the words of the original samplicate.

Purpose: a tap's client on a thread of its own. Invariants: the datapath never waits for it: what is over RATE_LIMIT is
not shown, and how much that was is said. Called by service.
"""

from __future__ import annotations

import contextlib
import select
import sys
import threading
from typing import TYPE_CHECKING, Final

from samplicator.config.address import address_text, endpoint_text
from samplicator.supervisor.taps import RATE_LIMIT, Ask, Event

if TYPE_CHECKING:
    from samplicator.supervisor.supervisor import Supervisor

IDLE_MS: Final = 50
"""After so long without news, all copies of a datagram are known."""


class DebugLines:
    """See above. The tap is open when this is made. Raises OSError."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._view = supervisor.view
        self._tap = supervisor.taps.open(Ask(rate=RATE_LIMIT))
        self._tap.wait()
        self._ended = False
        self._unshown = 0
        self._open: dict[int, list[str]] = {}  # lines of datagrams that may get more, by number
        self._batch = 0
        self._thread = threading.Thread(target=self._run, name="debug", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Writes what has come so far."""
        self._ended = True
        self._thread.join(2.0)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._tap.fileno(), select.POLLIN)
        while True:
            ending = self._ended
            if not poll.poll(IDLE_MS) and not ending:
                self._write()
                self._tap.follow()
                continue
            events = self._tap.read()
            for event in events:
                self._take(event)
            if ending and not events:
                break
        self._write()
        self._tap.close()

    def _take(self, event: Event) -> None:
        if event.event == "in":
            if event.batch != self._batch:  # all copies of those before are known
                self._write()
                self._batch = event.batch
            self._open[event.datagram] = self._lines(event)
        lines = self._open.get(event.datagram)
        if lines is None or event.event not in ("sent", "failed"):
            return
        spec = self._view.spec
        places = {receiver.name: receiver.place for receiver in spec.receivers} if spec is not None else {}
        place = places.get(event.receiver, event.receiver)
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

    def _write(self) -> None:
        text = "".join("\n".join(lines) + "\n" for lines in self._open.values())
        self._open.clear()
        _, unshown = self._tap.counts()
        if unshown != self._unshown:
            text += f"{unshown - self._unshown} lines about datagrams and copies were left out: too many a second\n"
            self._unshown = unshown
        if text:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(text)
