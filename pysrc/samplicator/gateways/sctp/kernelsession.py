"""An association as the kernel has it: `Session` of gateways.transport.

Invariants: `closed` is told exactly once, later than the call that caused it; what the kernel could not deliver is told
before. The kernel tells which messages expired before they were sent (SEND_FAILED), but only how many did afterwards
(SCTP_PR_ASSOC_STATUS): `given_up` is called for as many of the oldest. What it gives up of NONE is not told: it counts
what a peer has behind a gap, too (sctp_retransmit_mark of net/sctp/outqueue.c), so with loss the figure would be wrong.
Called by kernel, which reads the socket and lets time pass.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import struct
from typing import TYPE_CHECKING, Final

from samplicator.gateways.sctp import linux
from samplicator.gateways.sctp.beat import Beat
from samplicator.gateways.transport import Address, Events, Reliability

if TYPE_CHECKING:
    from samplicator.gateways.sctp.kernel import Wire

LIFETIME_MS: Final = 5000
"""After this, what is sent with PARTIAL is given up: the peer is told by FORWARD TSN."""


LOOK_SECONDS: Final = 0.1


class KernelSession:
    """See gateways.transport.Session."""

    def __init__(self, wire: Wire, events: Events, peer: Address, heartbeat_ms: int) -> None:
        self.wire = wire
        self.events = events
        self.number = 0
        self.open = False
        self.ended = False
        self.why = ""
        self.waits = False
        self._refused = False
        self.closing = False
        self.association = None
        self.deadline: float | None = None
        self.beat = Beat(heartbeat_ms / 1000)
        self._peer = peer
        self._streams = 1
        self._context = 0
        self._held: dict[int, bytes] = {}
        self._expiring: dict[int, None] = {}  # of these, what may be given up
        self._abandoned = 0
        self._guessed = 0  # told by their number, and not yet by their context
        self._held_bytes = 0
        self._next_look = 0.0
        self._parts: dict[int, bytearray | None] = {}

    @property
    def peer(self) -> Address:
        return self._peer

    @property
    def streams(self) -> int:
        return self._streams

    @property
    def delivers(self) -> bool:
        return self.open

    @property
    def unsent_bytes(self) -> int:
        """Of the socket, which an association that we asked for has for itself."""
        with contextlib.suppress(OSError, struct.error):
            raw = self.wire.sock.getsockopt(socket.SOL_SOCKET, linux.SO_MEMINFO, 36)
            queued: int = struct.unpack_from("=I", raw, 4 * linux.WMEM_QUEUED)[0]
            return queued
        return 0

    @property
    def silent_since(self) -> float:
        return self.beat.silent_since

    @property
    def transmissions(self) -> int:
        return self.beat.transmissions

    def send(self, message: bytes, stream: int = 0, reliability: Reliability = Reliability.FULL) -> bool:
        if not self.open or self.closing or self.why or stream >= self._streams or len(message) > linux.LARGEST:
            return False
        may_expire = stream > 0 and reliability is Reliability.PARTIAL
        if may_expire and self._refused and self.tell_abandoned():
            self.waits = True
            return False
        flags = 0 if stream else linux.SACK_IMMEDIATELY  # others may wait for it
        info = [(linux.SOL_SCTP, linux.SNDINFO, linux.SNDINFO_FORM.pack(stream, flags, 0, self._context, self.number))]
        if may_expire:
            info.append((linux.SOL_SCTP, linux.PRINFO, linux.PRINFO_FORM.pack(linux.PR_TTL, LIFETIME_MS)))
        elif stream and reliability is Reliability.NONE:
            info.append((linux.SOL_SCTP, linux.PRINFO, linux.PRINFO_FORM.pack(linux.PR_RTX, 0)))
        try:
            self.wire.sock.sendmsg([message], info, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError as error:
            self.waits = self._refused = error.errno in (errno.EAGAIN, errno.ENOBUFS)
            return False
        self._refused = False
        self._held[self._context] = message
        if may_expire:
            self._expiring[self._context] = None
        self._held_bytes += len(message)
        self._context = (self._context + 1) & 0xFFFFFFFF
        return True

    def pause(self) -> None:
        if not self.ended:
            self.wire.pause(self)

    def resume(self) -> None:
        self.wire.resume(self)

    def close(self, *, abort: bool = False) -> None:
        if self.ended or (self.closing and not abort):
            return
        self.resume()
        self.closing = True
        if abort or not self.open:
            self.abort("closed here")
        else:
            self.say(linux.EOF)

    # ---- the wire

    def say(self, flags: int) -> None:
        """EOF or linux.ABORT."""
        with contextlib.suppress(OSError):
            info = [(linux.SOL_SCTP, linux.SNDINFO, linux.SNDINFO_FORM.pack(0, flags, 0, 0, self.number))]
            self.wire.sock.sendmsg([b""], info, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def abort(self, why: str) -> None:
        if self.ended or self.why:
            return
        self.why = why
        if self.open:
            self.say(linux.ABORT)
        self.wire.later(lambda: self.wire.finish(self, why))

    def begin(self, number: int, streams: int) -> None:
        self.number, self._streams, self.open = number, max(streams, 1), True
        self.wire.sessions[number] = self
        with contextlib.suppress(OSError, struct.error):  # after a restart the kernel goes on counting
            self._abandoned = self.wire.abandoned(number)
        self.events.opened(self)

    def part(self, stream: int, data: bytes, last: bool) -> None:
        held = self._parts.setdefault(stream, bytearray())
        if held is not None and len(held) + len(data) > linux.LARGEST:
            self._parts[stream] = held = None
        if held is not None:
            held += data
        if last:
            del self._parts[stream]
            if held is not None and not self.closing:
                self.events.message(self, stream, bytes(held))

    def parts_are_lost(self) -> None:
        self._parts.clear()

    def tell_abandoned(self) -> bool:
        """What the kernel has given up after it had sent it; whether there was any."""
        if not self._expiring:
            return False
        with contextlib.suppress(OSError, struct.error):
            before, self._abandoned = self._abandoned, self.wire.abandoned(self.number)
            news = list(itertools.islice(self._expiring, max(self._abandoned - before, 0)))
            self._guessed += len(news)
            for context in news:
                self.failed(context)
            return bool(news)
        return False

    def failed(self, context: int, *, sent: bool = False, up: bool = True) -> None:
        """sent: it was, at least in part. up: the association is. What expired after it was sent tell_abandoned tells,
        or it has told another in its place.
        """
        may_expire = context in self._expiring
        if sent and up:
            self.tell_abandoned()
        counted = sent and may_expire and (up or self._guessed > 0)
        self._guessed -= counted and self._guessed > 0
        self._expiring.pop(context, None)
        message = self._held.pop(context, None)
        if message is not None:
            self._held_bytes -= len(message)
            if not counted:
                self.events.given_up(self, message)

    def tick(self, now: float) -> None:
        if not self.open:
            return
        if self.beat.due(now):
            with contextlib.suppress(OSError):
                raw = linux.PADDR.pack(
                    self.number, linux.sockaddr(self._peer).ljust(128, b"\0"), 0, 0, 0, 0, linux.HB_DEMAND, 0, 0
                )
                self.wire.sock.setsockopt(linux.SOL_SCTP, linux.PEER_ADDR_PARAMS, raw)
                self.beat.asked(now)
        if self.beat.seconds:
            with contextlib.suppress(OSError, struct.error):
                stats = self.wire.statistics(self.number)
                self.beat.looked_at(now, *stats)
        if self._refused:  # before somebody sends what would be given up in its turn
            self.tell_abandoned()
        if self._held and now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            queued = self.unsent_bytes
            if not self.wire.read_out() or self.ended:  # what failed is told before what has gone is forgotten
                return
            self.tell_abandoned()
            if not queued:
                self._guessed = 0  # the stack has forgotten them
            most = 2 * queued
            for context, message in list(self._held.items()):
                if self._held_bytes <= most:
                    break
                del self._held[context]
                self._expiring.pop(context, None)
                self._held_bytes -= len(message)
