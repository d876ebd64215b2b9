"""A place that is listened at, and the sessions that came in there.

Purpose: events of a transport in, datagrams into the doors of the listener that has the place. Invariants: a place
outlives a reload in which its listener stays, and so do its sessions; of two plans that both have it, the one that runs
gets what comes, so a plan that fails changes nothing; a session that comes to another worker teaches it its templates
first, and teaches them again every REPEAT_SECONDS, because receivers that get UDP may have lost them (RFC 7011 section
8.4) and the workers forget what is not repeated; a place that cannot be listened at is tried again every second. Called
by hub and by the transport, in the thread of the loop.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from samplicator.gateways.budget import Budget
from samplicator.gateways.heard import Heard, Numbers
from samplicator.gateways.inlet import DoorWriter, Inlet, datagrams_of
from samplicator.gateways.transport import Address, Ear, Options, Session, Transport
from samplicator.logs import RateGate
from samplicator.readings import TransportSessionReading

log = logging.getLogger(__name__)

REPEAT_SECONDS: Final = 600.0
AGAIN_SECONDS: Final = 1.0
MAX_SESSIONS: Final = 4096
"""At one place: descriptors and memory are bounded."""


@dataclass(slots=True, eq=False)
class Inbound:
    """A session that is open. writer: the door that knows its templates."""

    session: Session
    heard: Heard
    writer: DoorWriter | None = None
    messages: int = 0
    octets: int = 0
    repeat: asyncio.TimerHandle | None = None


class Place:
    """See above; the Events of its sessions. owners: listeners that have it, the one that runs first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: Transport, gateway: str, address: Address) -> None:
        self.address = address
        self.owners: list[Inlet] = []
        self.why = ""
        self._loop = loop
        self._transport = transport
        self._gateway = gateway
        self._sessions: dict[Session, Inbound] = {}
        self._ear: Ear | None = None
        self._options = Options()
        self._again: asyncio.TimerHandle | None = None
        self._gate = RateGate()
        self._budget = Budget()
        self._numbers = Numbers()

    # -- owners

    def give(self, inlet: Inlet) -> None:
        """It is this one's too, at once if nobody else has it."""
        self.owners.append(inlet)
        if len(self.owners) == 1:
            self._follow()

    def runs(self, inlet: Inlet) -> None:
        """From now on what comes is this one's. Sessions that this one does not admit end."""
        if self.owners[0] is not inlet:
            inlet.go_on_from(self.owners[0])
            self.owners.remove(inlet)
            self.owners.insert(0, inlet)
            self._follow()

    def take_back(self, inlet: Inlet) -> bool:
        """It is not this one's any more; False: nobody has it, so it is closed."""
        had = self.owners[0] is inlet
        self.owners.remove(inlet)
        if self.owners and had:
            self._follow()
        elif not self.owners:
            self.close()
        return bool(self.owners)

    def _follow(self) -> None:
        inlet = self.owners[0]
        for session in [one for one in self._sessions if not inlet.admits(one.peer)]:
            session.close(abort=True)
        how = inlet.spec.sctp
        options = Options(tls=inlet.spec.tls, sctp=how, streams=how.streams if how is not None else 1)
        if self._ear is not None and options == self._options:
            return
        self._options = options
        if self._ear is not None:
            self._ear.close()
            self._ear = None
        self._listen()

    def _listen(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        try:
            self._ear = self._transport.listen(self.address, self, self._options)
        except OSError as error:
            why = f"{self._gateway}://{self.address.text}: {error.strerror or error}"
            if why != self.why:
                log.warning("listener %r: %s; samplicator tries again", self.owners[0].name, why)
            self.why = why
            self._again = self._loop.call_later(AGAIN_SECONDS, self._listen)
            return
        if self.why:
            log.info("listener %r: listens at %s://%s", self.owners[0].name, self._gateway, self.address.text)
        self.why = ""

    def close(self) -> None:
        """Nobody is listened to any more."""
        if self._again is not None:
            self._again.cancel()
        if self._ear is not None:
            self._ear.close()
            self._ear = None
        for session in list(self._sessions):
            session.close()

    # -- Events

    def admits(self, peer: Address) -> str:
        inlet = self.owners[0] if self.owners else None
        if inlet is None:
            return "nobody listens any more"
        if not inlet.admits(peer):
            inlet.tally.refused_prefix += 1
            return self._say(peer, "its address is not in `allow`")
        if len(self._sessions) >= MAX_SESSIONS:
            inlet.tally.refused_limit += 1
            return self._say(peer, f"there are {MAX_SESSIONS} sessions at this place already")
        return ""

    def _say(self, peer: Address, why: str) -> str:
        name = self.owners[0].name if self.owners else ""
        if self._gate.add((name, why[:20]), 1, self._loop.time()):
            log.warning("listener %r: exporter %s is refused: %s", name, peer.text, why)
        return why

    def opened(self, session: Session) -> None:
        if not self.owners:
            session.close(abort=True)
            return
        inlet = self.owners[0]
        inlet.tally.opened += 1
        self._sessions[session] = Inbound(
            session, Heard(inlet.spec.message_bytes, self._budget, session.peer.address, self._numbers)
        )
        self._repeat_later(session)

    def refused(self, peer: Address, why: str) -> None:
        if self.owners:
            self.owners[0].tally.refused_handshake += 1
        self._say(peer, why)

    def message(self, session: Session, stream: int, message: bytes) -> None:
        inbound = self._sessions.get(session)
        if inbound is None or not self.owners:
            return
        inlet, heard = self.owners[0], inbound.heard
        malformed, withdrawn, split = heard.malformed, heard.withdrawn, heard.split_up
        inbound.messages += 1
        inbound.octets += len(message)
        inlet.tally.messages += 1
        inlet.tally.octets += len(message)
        before = self._teach(inbound, inlet)
        try:
            payloads = heard.take(message, stream)
        except OverflowError as error:
            inlet.tally.broken += 1
            self._say(session.peer, str(error))
            session.close(abort=True)
            return
        inlet.tally.malformed += heard.malformed - malformed
        inlet.tally.withdrawn += heard.withdrawn - withdrawn
        inlet.tally.split += heard.split_up - split
        if payloads or before:
            self._write(inbound, inlet, [*before, *payloads])

    def _teach(self, inbound: Inbound, inlet: Inlet) -> list[bytes]:
        """What a door must get before the next message, if it is not the one that knows the session."""
        writer = inlet.writer_for(inbound.session.peer)
        if writer is inbound.writer or writer is None:
            return []
        known, inbound.writer = inbound.writer is not None, writer
        return list(inbound.heard.templates()) if known else []

    def _write(self, inbound: Inbound, inlet: Inlet, payloads: list[bytes]) -> None:
        writer = inlet.writer_for(inbound.session.peer)
        if writer is None:
            inlet.tally.lost += len(payloads)
            return
        inlet.tally.datagrams += len(payloads)
        before = writer.waits
        writer.put(inbound.session, datagrams_of(inbound.session.peer, payloads))
        inlet.tally.waits += writer.waits - before

    def _repeat_later(self, session: Session) -> None:
        self._sessions[session].repeat = self._loop.call_later(REPEAT_SECONDS, self._repeat, session)

    def _repeat(self, session: Session) -> None:
        inbound = self._sessions[session]
        if self.owners:
            self._teach(inbound, self.owners[0])  # the same
            if payloads := list(inbound.heard.templates()):
                self._write(inbound, self.owners[0], payloads)
        self._repeat_later(session)

    def writable(self, session: Session) -> None:
        """Nothing is sent to exporters."""

    def given_up(self, session: Session, message: bytes) -> None:
        """Nothing is sent to exporters."""

    def closed(self, session: Session, why: str) -> None:
        inbound = self._sessions.pop(session, None)
        if inbound is None:
            return
        if inbound.repeat is not None:
            inbound.repeat.cancel()
        inbound.heard.close()
        if why and self.owners:
            self.owners[0].tally.broken += 1
            if self._gate.add((self.owners[0].name, "closed"), 1, self._loop.time()):
                log.warning("listener %r: the session of %s ended: %s", self.owners[0].name, session.peer.text, why)

    # -- what is shown

    def readings(self) -> list[TransportSessionReading]:
        if not self.owners:
            return []
        return [
            TransportSessionReading(
                gateway=self._gateway,
                side="in",
                name=self.owners[0].name,
                exporter=session.peer.text,
                peer=session.peer.text,
                state="connected",
                why="",
                opened=1,
                messages=inbound.messages,
                octets=inbound.octets,
                queue_bytes=0,
                streams=session.streams,
            )
            for session, inbound in list(self._sessions.items())
        ]

    @property
    def sessions(self) -> int:
        return len(self._sessions)
