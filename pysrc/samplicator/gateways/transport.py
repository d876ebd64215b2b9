"""What a transport (TCP, TLS, SCTP) is to the gateway that uses it: sessions, whole messages, and events.

Purpose: the one seam between `hub`, `inlet` and `outlet`, which know doors, exporters, templates and queues, and the
transports, which know sockets. A transport knows nothing of IPFIX, but that a byte stream is cut into messages by the
length in their header. Invariants: everything here happens in one thread, the one of the event loop that the transport
was made for (`Factory`); nothing waits; a session that was handed to `Events` is closed exactly once (`closed`), and no
event of the session comes after that; `message` has whole messages, in order within a stream; a transport holds nothing
that is unbounded: where the peer does not read, `send` refuses, and where we do not read (`pause`), the peer waits.
Called by hub. A transport must never look into a door and never decide what happens to a message that it refused.

How transports differ, so that their users need not ask which one they have:
- streams: TCP and TLS have one, numbered 0. SCTP: `Session.streams` as negotiated; 0 is for templates and options.
- reliability: TCP and TLS deliver everything or end; they take any `Reliability` and are `FULL`.
- liveness: TCP and TLS tell by `closed` alone, so `silent_since` is 0.0 and `transmissions` is 0.
- identity: `peer` is what the exporter is known by for the whole life of the session. Of a multihomed SCTP peer that is
  its first address, whichever it sends from.
- restart: an SCTP association that the peer restarts ends (`closed`) and opens again (`opened`) as a new session: its
  templates and numbers are gone with the old one (RFC 7011 section 10.2).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import NamedTuple, Protocol

from samplicator.config.address import address_text, endpoint_text
from samplicator.plan.sessions import Sctp, Tls
from samplicator.readings import AssociationReading


class Address(NamedTuple):
    """address: 4 or 16 bytes, IPv4 never in its IPv6 form. port: 1..65535. scope_id: of a link-local address, else
    0.
    """

    address: bytes
    port: int
    scope_id: int = 0

    @property
    def text(self) -> str:
        """`ADDRESS:PORT`, for people."""
        return endpoint_text(address_text(self.address), self.port)


class Reliability(enum.Enum):
    """How hard a message is tried to be delivered. PARTIAL: until the transport is told to give it up, or its buffer
    needs the room; NONE: it is sent once.
    """

    FULL = "full"
    PARTIAL = "partial"
    NONE = "none"


class Options(NamedTuple):
    """Of one place to listen at, or one peer to connect to. tls: None = without TLS. name: the peer's host name as the
    operator wrote it, which its certificate must have. source: our own (address, port 0 = any); None = the kernel
    chooses. streams: outgoing ones that are asked for, 1..65535. heartbeat_ms: how often the peer is asked for a sign
    of life, 0 = never; only where the transport has such a thing. sctp: how, None = as by default. mtu: of the way in
    bytes, where the transport does not find it out.
    """

    tls: Tls | None = None
    name: str = ""
    source: Address | None = None
    streams: int = 1
    heartbeat_ms: int = 0
    sctp: Sctp | None = None
    mtu: int = 1500


class Session(Protocol):
    """One TCP connection or one SCTP association (RFC 7011: a Transport Session)."""

    @property
    def peer(self) -> Address:
        """See above: identity."""

    @property
    def streams(self) -> int:
        """Outgoing streams, 1 or more; valid from `opened` on."""

    @property
    def unsent_bytes(self) -> int:
        """What was taken and, as far as is known, has not left or is not acknowledged."""

    @property
    def silent_since(self) -> float:
        """time.monotonic() of the first sign of life that was asked for and did not come; 0.0 = all came, or none is
        asked for.
        """

    @property
    def transmissions(self) -> int:
        """How often the message that was tried most was sent without being acknowledged; 0 = not known."""

    @property
    def delivers(self) -> bool:
        """Whether what is sent gets somewhere now, as far as is known."""

    @property
    def association(self) -> AssociationReading | None:
        """Of a session that is to one of two collectors, or has a queue of its own: what there is to see of it."""

    def send(self, message: bytes, stream: int = 0, reliability: Reliability = Reliability.FULL) -> bool:
        """False: nothing was taken, because what is not sent yet is too much, or the session is not open; `writable`
        tells when to try again. Never raises for what the peer or the network does.
        """

    def pause(self) -> None:
        """No more `message`s; the peer is made to wait. What was read already may still come, bounded by 64 KiB."""

    def resume(self) -> None: ...

    def close(self, *, abort: bool = False) -> None:
        """Ends the session; `closed` follows. abort: at once, without what is unsent; else what was taken is sent for
        a bounded time.
        """


class Events(Protocol):
    """What a transport tells. None of these may raise."""

    def admits(self, peer: Address) -> str:
        """Asked as soon as the peer's address is known, before TLS or anything else that costs: "" = may open a
        session, else why not. Then no other event follows, and the transport closes at once.
        """

    def opened(self, session: Session) -> None:
        """It can send and receive now; of one that was asked for by `connect`, or one that came in."""

    def message(self, session: Session, stream: int, message: bytes) -> None:
        """A whole message, 16..65535 bytes, whatever it holds."""

    def writable(self, session: Session) -> None:
        """`send` takes something again."""

    def given_up(self, session: Session, message: bytes) -> None:
        """A message that was taken and will not be delivered; with PARTIAL or NONE only."""

    def refused(self, peer: Address, why: str) -> None:
        """A peer that came in did not get as far as `opened` (handshake, certificate)."""

    def closed(self, session: Session, why: str) -> None:
        """It ended, or did not come to open (`connect`). why: for people, "" = the peer ended it in good order."""


class Ear(Protocol):
    """A place that is listened at."""

    def close(self) -> None:
        """No new sessions come in; those that are open stay. The address is free again."""


class Transport(Protocol):
    """One per gateway and event loop. versions: of the messages that it carries: a byte stream needs a length in their
    header, so TCP and TLS carry IPFIX (10) only; SCTP carries NetFlow v9 (9), too.
    """

    @property
    def versions(self) -> tuple[int, ...]: ...

    def listen(self, place: Address, events: Events, options: Options) -> Ear:
        """Raises OSError: the address is not one of this host now, it is in use, it is not permitted."""

    def connect(self, place: Address, events: Events, options: Options) -> Session:
        """Begins to open a session; `opened` or `closed` follows, never before this returns. Raises OSError."""

    def check(self, options: Options) -> None:
        """Whether what the options name can be used at all (certificates, a library); may be called in any thread, and
        takes no longer than reading the files. Raises OSError with a text for the operator.
        """

    def close(self) -> None:
        """Ends what is left, at once."""


Factory = Callable[[asyncio.AbstractEventLoop], Transport]
"""Called in the thread of the loop. The gateway's name is the scheme in the configuration: tcp, tls, sctp."""
