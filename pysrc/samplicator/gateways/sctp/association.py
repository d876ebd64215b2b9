"""An association as libusrsctp has it, and the socket that it lives on.

Purpose: `Session` of gateways.transport. An association that we asked for has a socket of its own; those that came in
share the one of their port. Invariants: `closed` is told exactly once, later than the call that caused it; what
libusrsctp says of an association that has ended is ignored. Called by userland, which moves packets and time. Must
never read a socket by itself.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from samplicator.gateways.sctp import library as lib
from samplicator.gateways.sctp.peers import Peer, Place
from samplicator.gateways.transport import Address, Events, Reliability

LARGEST: Final = 65535
CLOSE_SECONDS: Final = 5.0
"""How long a session that was closed may take to send what it holds."""
SEND_BYTES: Final = 256 << 10
RECEIVE_BYTES: Final = 4 << 20
STREAMS_IN: Final = 2048
LIFETIME_MS: Final = 5000
"""After this, what is sent with PARTIAL is given up: the peer is told by FORWARD TSN."""
EVENTS = (lib.ASSOC_CHANGE, lib.SHUTDOWN_EVENT, lib.PARTIAL_DELIVERY_EVENT, lib.SEND_FAILED_EVENT)
RTO_MS: Final = (500, 250, 1000)
"""At first, least, most. The least is longer than a SACK may be delayed (RFC 9260: 200 ms), or each lone message would
be sent again.
"""


def settings(library: lib.Library, sock: int, *, streams: int, mtu: int, heartbeat_ms: int) -> None:
    """Options of a new socket. mtu: of a packet without IP and SCTP headers. heartbeat_ms: we ask for signs of life
    ourselves; 0: the library does. Raises OSError.
    """
    for kind in EVENTS:
        library.set_option(sock, lib.EVENT, struct.pack("=IHBx", 0, kind, 1))
    library.set_option(sock, lib.RECVRCVINFO, struct.pack("=i", 1))
    library.set_option(sock, lib.NODELAY, struct.pack("=i", 1))
    library.set_option(sock, lib.INITMSG, struct.pack("=HHHH", streams, STREAMS_IN, 4, RTO_MS[2]))
    library.set_option(sock, lib.RTOINFO, struct.pack("=IIII", 0, RTO_MS[0], RTO_MS[2], RTO_MS[1]))
    library.set_option(sock, 7, struct.pack("=i", SEND_BYTES), 1)  # SO_SNDBUF
    library.set_option(sock, 8, struct.pack("=i", RECEIVE_BYTES), 1)  # SO_RCVBUF
    if heartbeat_ms:
        library.set_option(sock, lib.ASSOCINFO, struct.pack("=IIIIHH", 0, 0, 0, 0, 1000, 0))
        library.peer_parameters(sock, lib.PMTUD_DISABLE | lib.HB_DISABLE, mtu=mtu, retries=1000)
    else:
        library.peer_parameters(sock, lib.PMTUD_DISABLE | lib.HB_ENABLE, mtu=mtu, heartbeat_ms=10_000, retries=5)


@dataclass(slots=True, eq=False)
class Socket:
    """A socket of the library. sessions: by association. shared: those that come in are on it."""

    library: lib.Library
    number: int
    shared: bool
    sessions: dict[int, Association] = field(default_factory=dict)
    paused: set[int] = field(default_factory=set)
    used: bool = True

    def close(self) -> None:
        self.sessions.clear()
        self.library.close(self.number)


class Association:
    """See gateways.transport.Session. gone: is told when it is to end. why: if it was us who ended
    it. wait: is told when it waits for room. beacon: the one that asks for signs of life for it."""

    def __init__(
        self,
        sock: Socket,
        peer: Peer,
        events: Events,
        gone: Callable[[Association], None],
        wait: Callable[[Association], None],
    ) -> None:
        self.sock = sock
        self.other = peer
        self.events = events
        self.number = 0
        self.open = False
        self.ended = False
        self.aborted = False
        self.why = ""
        self.beacon = self
        self.closing = False
        self.association = None
        self.deadline: float | None = None
        self.heartbeat_s = 0.0
        self.next_heartbeat = 0.0
        self.oversized = 0
        self._streams = 1
        self._gone = gone
        self._wait = wait
        self._parts: dict[int, bytearray | None] = {}  # by stream; None: too long, left out to its end
        self._held: dict[int, bytes] = {}  # what the library may still hold, by context; the oldest first
        self._held_bytes = 0
        self._context = 0

    # ---- Session

    @property
    def peer(self) -> Address:
        return Address(self.other.first.address, self.other.port, self.other.first.scope_id)

    @property
    def place(self) -> tuple[Place, int]:
        """Where it goes to."""
        return self.other.first, self.other.port

    @property
    def streams(self) -> int:
        return self._streams

    @property
    def delivers(self) -> bool:
        return self.open

    @property
    def unsent_bytes(self) -> int:
        held = self.sock.library.unsent_bytes(self.sock.number, self.number) if self.open else None
        return held if held is not None else self._held_bytes

    @property
    def silent_since(self) -> float:
        liveness = self.beacon.other.liveness
        return liveness.silent_since if liveness else 0.0

    @property
    def transmissions(self) -> int:
        return self.other.liveness.transmissions if self.other.liveness else 0

    def send(self, message: bytes, stream: int = 0, reliability: Reliability = Reliability.FULL) -> bool:
        if not self.open or self.closing or self.why or stream >= self._streams or len(message) > LARGEST:
            return False
        policy, value = lib.PR_NONE, 0
        if stream and reliability is Reliability.PARTIAL:
            policy, value = lib.PR_TTL, LIFETIME_MS
        elif stream and reliability is Reliability.NONE:
            policy, value = lib.PR_RTX, 0
        try:
            taken = self.sock.library.send(
                self.sock.number,
                self.number,
                message,
                stream,
                0 if stream else lib.SACK_IMMEDIATELY,  # others may wait for it
                policy,
                value,
                self._context,
            )
        except OSError:  # it has just ended: that follows
            return False
        if not taken:
            self._wait(self)
        else:
            self._held[self._context] = message
            self._held_bytes += len(message)
            self._context = (self._context + 1) & 0xFFFFFFFF
        return taken

    def pause(self) -> None:
        if not self.ended:
            self.sock.paused.add(id(self))

    def resume(self) -> None:
        self.sock.paused.discard(id(self))

    def close(self, *, abort: bool = False) -> None:
        if self.ended or (self.closing and not abort):
            return
        self.resume()
        self.closing = True
        if abort or not self.open:
            self.abort("closed here")
            return
        try:
            self.sock.library.send(self.sock.number, self.number, b"", 0, lib.EOF)
        except OSError:
            self.abort("closed here")

    # ---- userland

    def abort(self, why: str) -> None:
        """At once; `closed` follows, after what the library could not deliver was told."""
        if self.ended or self.why:
            return
        self.why = why
        if self.open:
            with contextlib.suppress(OSError):
                self.sock.library.send(self.sock.number, self.number, b"", 0, lib.ABORT)
        self._gone(self)

    def begin(self, number: int, streams: int) -> None:
        self.number, self.open = number, True
        self._streams = max(streams, 1)
        self.sock.sessions[number] = self
        self.events.opened(self)

    def end(self) -> None:
        self.ended, self.open = True, False
        self.resume()
        if self.sock.sessions.get(self.number) is self:
            del self.sock.sessions[self.number]

    def part(self, stream: int, data: bytes, last: bool) -> None:
        """A piece of a message: all of it, nearly always."""
        if last and stream not in self._parts:
            self._whole(stream, data)
            return
        held = self._parts.setdefault(stream, bytearray())
        if held is not None and len(held) + len(data) > LARGEST:
            self._parts[stream] = held = None
            self.oversized += 1
        if held is not None:
            held += data
        if last:
            del self._parts[stream]
            if held is not None:
                self._whole(stream, bytes(held))

    def _whole(self, stream: int, message: bytes) -> None:
        if len(message) > LARGEST:
            self.oversized += 1
        elif not self.closing:
            self.events.message(self, stream, message)

    def parts_are_lost(self) -> None:
        """The library gave up a message that it had begun to hand out."""
        self._parts.clear()

    def failed(self, context: int) -> None:
        """A piece of a message will not be delivered, and so the message will not."""
        message = self._held.pop(context, None)
        if message is not None:
            self._held_bytes -= len(message)
            self.events.given_up(self, message)

    def forget_delivered(self) -> None:
        """What is older than twice what the library still holds was acknowledged."""
        if not self._held:
            return
        most = 2 * self.unsent_bytes
        for context, message in list(self._held.items()):
            if self._held_bytes <= most:
                break
            del self._held[context]
            self._held_bytes -= len(message)
