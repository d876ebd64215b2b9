"""One of the two collectors of an export: its association, its stream 0, and what it has not acknowledged.

Invariants: what is handed to the transport is remembered until it is acknowledged or comes back; data waits until new
templates are acknowledged, because streams keep no order among each other, and templates that are replaced wait until
the data before them is. Made by exporting; called by it and by the transport, in the thread of the loop.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from samplicator.gateways.sctp.backlog import Item
from samplicator.gateways.sctp.backup import TRANSMISSIONS, Which
from samplicator.gateways.sctp.export import Collector, Counters, Export
from samplicator.gateways.transport import Address, Reliability, Session

log = logging.getLogger(__name__)


class Owner(Protocol):
    """What a side tells the exporter that it is of."""

    export: Export

    def pump(self) -> None:
        """There is room."""

    def side_opened(self, side: Side) -> None: ...

    def side_closed(self, side: Side) -> None: ...

    def failed(self) -> None:
        """An association did not come to open."""

    def gave_up(self, records: int) -> None:
        """Flow records will not be delivered."""


@dataclass(slots=True)
class Side:
    """Events of one collector's session. sent: what its transport may still hold, the oldest first. stalled: messages
    were given up, or are about to be: the next one is sent with full reliability, and others only when it has arrived,
    or a collector that does not read would have the newest given up one after the other. probed: it was sent. settling:
    templates were sent, and data waits until the collector has acknowledged them: streams keep no order.
    """

    exporter: Owner
    which: Which
    collector: Collector
    session: Session | None = None
    open: bool = False
    counters: Counters = field(default_factory=Counters)
    control: deque[Item] = field(default_factory=deque)
    sent: deque[Item] = field(default_factory=deque)
    sent_bytes: int = 0
    returned: list[Item] = field(default_factory=list)
    stalled: bool = False
    probed: bool = False
    settling: bool = False
    last_error: str = ""
    granted: int = 0

    def admits(self, peer: Address) -> str:
        return "this address is only connected to"

    def refused(self, peer: Address, why: str) -> None:
        """Nobody comes in here."""

    def message(self, session: Session, stream: int, message: bytes) -> None:
        """Collectors have nothing to say (RFC 7011 section 10.2)."""

    def opened(self, session: Session) -> None:
        self.session, self.open, self.last_error = session, True, ""
        wanted, granted = self.exporter.export.streams, session.streams
        if granted < wanted and granted != self.granted:
            log.warning(
                "the collector %s accepts %d of %d streams; messages of several streams share one, in which an IPFIX "
                "collector then sees wrong sequence numbers; write streams = %d, or have it accept more",
                self.collector.place.text,
                granted,
                wanted,
                max(granted, 2),
            )
        self.granted = granted
        self.exporter.side_opened(self)

    def writable(self, session: Session) -> None:
        self.exporter.pump()

    def closed(self, session: Session, why: str) -> None:
        if session is not self.session:
            return
        if not self.open:
            self.exporter.failed()
        self.session, self.open = None, False
        self.last_error = why or "closed by the peer"
        self.exporter.side_closed(self)

    def given_up(self, session: Session, message: bytes) -> None:
        item = next((one for one in self.sent if one.message is message), None)
        if item is None:
            return
        self.sent.remove(item)
        self.sent_bytes -= len(item.message)
        if self.exporter.export.reliability is Reliability.FULL:
            self.returned.append(item)
        else:
            self.counters.given_up += item.records
            self.exporter.gave_up(item.records)
            self.stalled = self.exporter.export.reliability is Reliability.PARTIAL

    def send(self, item: Item) -> bool:
        if self.session is None or not self.open:
            return False
        streams = self.session.streams
        stream = item.stream if item.stream < streams else 1 + (item.stream - 1) % (streams - 1) if streams > 1 else 0
        reliability = self.exporter.export.reliability if item.stream else Reliability.FULL
        if reliability is Reliability.PARTIAL and self.session.transmissions >= TRANSMISSIONS:
            self.stalled = True
        if self.settling and not item.teaches:
            if self.session.unsent_bytes:
                return False
            self.settling = False
        if item.before is not None and self.session.unsent_bytes:
            return False  # data of the old template has to be there
        if item.stream and self.stalled:
            if self.session.unsent_bytes:
                return False
            if self.probed:
                self.stalled = self.probed = False
            else:
                reliability = Reliability.FULL
        if not self.session.send(item.message, stream, reliability):
            return False
        self.probed = self.stalled and item.stream > 0
        self.settling = self.settling or item.teaches
        self.sent.append(item)
        self.sent_bytes += len(item.message)
        self.counters.flows += item.records
        self.counters.messages += 1
        return True

    def forget_delivered(self) -> None:
        """What is older than twice what the transport still holds was acknowledged."""
        held = self.session.unsent_bytes if self.session is not None else 0
        while self.sent and self.sent_bytes - len(self.sent[0].message) >= 2 * held:
            self.sent_bytes -= len(self.sent.popleft().message)
