"""SCTP by the kernel, over plain sockets: `Transport` of gateways.transport.

Purpose: the better way wherever the kernel has SCTP, with multihoming on both sides. Invariants: nothing waits; a
message longer than the receive buffer comes in pieces and is put together; the allow list is asked when an association
is up, since the kernel has answered the INIT before anybody can ask. Signs of life: the kernel has a floor of 200 ms
for its own heartbeats, so they are demanded one by one. Called by choice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from samplicator.gateways.sctp import linux
from samplicator.gateways.sctp.kernelsession import KernelSession
from samplicator.gateways.transport import Address, Ear, Events, Options, Session

VERSIONS: Final = (9, 10)
"""NetFlow v9 and IPFIX: SCTP keeps messages whole."""
TICK_SECONDS: Final = 0.01
CLOSE_SECONDS: Final = 5.0
"""How long a session that was closed may take to send what it holds."""
MOST_MESSAGES: Final = 256
MOST_LAST_READS: Final = 64
"""Times MOST_MESSAGES: more than the messages that a send buffer holds, of which an ended association tells each."""
PEER_BYTES: Final = 64 << 10
"""For the addresses of a peer."""


class Wire:
    """A socket with its sessions. events: of those that come in; None: it is an association's own."""

    def __init__(self, kernel: Kernel, sock: socket.socket, events: Events | None) -> None:
        self.sock = sock
        self.events = events
        self.sessions: dict[int, KernelSession] = {}
        self.own: KernelSession | None = None
        self.released = False
        self._kernel = kernel
        self._paused: set[int] = set()
        self._ending: list[tuple[KernelSession, str]] = []  # with the reason
        kernel.loop.add_reader(sock.fileno(), self.drain)

    def later(self, call: Callable[[], None]) -> None:
        self._kernel.loop.call_soon(call)

    def pause(self, session: KernelSession) -> None:
        if not self._paused and self.sock.fileno() >= 0:
            self._kernel.loop.remove_reader(self.sock.fileno())
        self._paused.add(id(session))

    def resume(self, session: KernelSession) -> None:
        self._paused.discard(id(session))
        if not self._paused and self.sock.fileno() >= 0:
            self._kernel.loop.add_reader(self.sock.fileno(), self.drain)

    def statistics(self, number: int) -> tuple[int, int, int]:
        """Packets with control chunks that came, chunks that were sent again, and chunks that wait for a SACK."""
        raw = linux.get_option(self.sock, linux.GET_ASSOC_STATS, struct.pack("=i", number).ljust(256, b"\0"))
        status = linux.get_option(self.sock, linux.STATUS, struct.pack("=i", number).ljust(176, b"\0"))
        return (
            struct.unpack_from("=Q", raw, 0xF8)[0],
            struct.unpack_from("=Q", raw, 0xB0)[0],
            struct.unpack_from("=H", status, 12)[0],
        )

    def abandoned(self, number: int) -> int:
        """Messages with a lifetime that the kernel gave up after it had sent them (struct sctp_prstatus)."""
        request = struct.pack("=iHHQQ", number, 0, linux.PR_TTL, 0, 0)
        raw = linux.get_option(self.sock, linux.PR_ASSOC_STATUS, request)
        sent: int = struct.unpack_from("=Q", raw, 16)[0]
        return sent

    def drain(self) -> bool:
        """Reads some; False: there is no more now."""
        for _ in range(MOST_MESSAGES):
            if self._paused or self.sock.fileno() < 0:
                return False
            try:
                data, control, flags, address = self.sock.recvmsg(linux.LARGEST + 512, 256)
            except BlockingIOError:
                self._end()
                return False
            except OSError:
                continue
            if flags & linux.MSG_NOTIFICATION:
                self._notified(data)
                continue
            info = next((v for level, kind, v in control if (level, kind) == (linux.SOL_SCTP, linux.RCVINFO)), b"")
            if len(info) < linux.RCVINFO_FORM.size:
                continue
            stream, *_, number = linux.RCVINFO_FORM.unpack_from(info)
            session = self.sessions.get(number)
            if session is not None:
                session.part(stream, data, bool(flags & linux.MSG_EOR))
            del address
        return True

    def read_out(self) -> bool:
        """Reads; whether all was read."""
        return not self._paused and self.sock.fileno() >= 0 and not self.drain()

    def _notified(self, data: bytes) -> None:
        if len(data) < 8:
            return
        kind = struct.unpack_from("=H", data)[0]
        if kind == linux.ASSOC_CHANGE and len(data) >= 20:
            state, error, streams, _, number = struct.unpack_from("=HHHHi", data, 8)
            self._changed(state, error, number, streams)
        elif kind == linux.SEND_FAILED_EVENT and len(data) >= 32:
            (flags,), (context, number) = struct.unpack_from("=H", data, 2), struct.unpack_from("=Ii", data, 20)
            if (session := self.sessions.get(number)) is not None:
                up = all(session is not other for other, _ in self._ending)
                session.failed(context, sent=flags == linux.DATA_SENT, up=up)
        elif kind == linux.PARTIAL_DELIVERY_EVENT and len(data) >= 16:
            number = struct.unpack_from("=i", data, 12)[0]
            if (session := self.sessions.get(number)) is not None:
                session.parts_are_lost()

    def _changed(self, state: int, error: int, number: int, streams: int) -> None:
        session = self.sessions.get(number)
        if state in (linux.COMM_UP, linux.RESTART):
            heartbeat_s = self.own.beat.seconds if self.own is not None else 0.0
            if session is not None:
                self.ended(session, "restarted by the peer", keep=True)
            self._begin(number, streams, heartbeat_s)
            return
        session = session or self.own
        if session is None or state not in (linux.COMM_LOST, linux.SHUTDOWN_COMP, linux.CANT_STR_ASSOC):
            return
        if state == linux.SHUTDOWN_COMP:
            self._ending.append((session, session.why))
        elif error:
            self._ending.append((session, session.why or "aborted by the peer"))
        else:
            self._ending.append((session, session.why or "no answer"))

    def finish(self, session: KernelSession, why: str) -> None:
        """It was aborted here."""
        self._ending.append((session, why))
        for _ in range(MOST_LAST_READS):  # others may send on meanwhile
            if not self.drain():
                break
        self._end()

    def _end(self) -> None:
        """What the kernel could not deliver it tells after the end of an association; now that has been read."""
        ending, self._ending = self._ending, []
        for session, why in ending:
            self.ended(session, why)

    def _begin(self, number: int, streams: int, heartbeat_s: float) -> None:
        session = self.own
        if session is None or session.ended:
            peer = self.peer_of(number)
            if peer is None:  # nobody knows who it is
                self._kernel.refused += 1
                self._abort(number)
                return
            events = self.events or (session.events if session is not None else None)
            assert events is not None
            session, own = KernelSession(self, events, peer, round(heartbeat_s * 1000)), session is not None
            if own:
                self.own = session
            elif self.released or events.admits(peer):
                self._kernel.refused += 1
                self._abort(number)
                return
        session.begin(number, streams)

    def _abort(self, number: int) -> None:
        """An association that nobody has."""
        with contextlib.suppress(OSError):
            info = [(linux.SOL_SCTP, linux.SNDINFO, linux.SNDINFO_FORM.pack(0, linux.ABORT, 0, 0, number))]
            self.sock.sendmsg([b""], info, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def peer_of(self, number: int) -> Address | None:
        """Its first address."""
        request = struct.pack("=iI", number, 0).ljust(PEER_BYTES, b"\0")
        try:
            raw = linux.get_option(self.sock, linux.GET_PEER_ADDRS, request)
        except OSError:
            return None
        return linux.from_sockaddr(raw[8:])

    def ended(self, session: KernelSession, why: str, *, keep: bool = False) -> None:
        if session.ended:
            return
        session.ended, session.open = True, False
        session.resume()
        if self.sessions.get(session.number) is session:
            del self.sessions[session.number]
        session.events.closed(session, why)
        if not keep and ((self.own is session) or (self.released and not self.sessions)):
            self.close()

    def release(self) -> None:
        """No new ones come in."""
        self.released = True
        if not self.sessions:
            self.close()
            return
        with contextlib.suppress(OSError):
            self.sock.listen(0)

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            self._kernel.loop.remove_reader(self.sock.fileno())
            self._kernel.wires.discard(self)
            self.sock.close()


class KernelEar:
    """See gateways.transport.Ear."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def close(self) -> None:
        self._wire.release()


class Kernel:
    """See gateways.transport.Transport. opened: makes sockets. refused: associations of peers that may not come in."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        opened: Callable[[int, Options], socket.socket] = linux.opened,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.loop = loop
        self._opened = opened
        self.wires: set[Wire] = set()
        self.refused = 0
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    @property
    def versions(self) -> tuple[int, ...]:
        return VERSIONS

    def listen(self, place: Address, events: Events, options: Options) -> Ear:
        sock = self._opened(socket.AF_INET6 if len(place.address) == 16 else socket.AF_INET, options)
        try:
            # One that is left, and has associations yet, keeps the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(linux.SOL_SCTP, linux.BINDX_ADD, linux.sockaddr(place))
            sock.listen(128)
        except BaseException:
            sock.close()
            raise
        wire = Wire(self, sock, events)
        self.wires.add(wire)
        self._tick_later()
        return KernelEar(wire)

    def connect(self, place: Address, events: Events, options: Options) -> Session:
        sock = self._opened(socket.AF_INET6 if len(place.address) == 16 else socket.AF_INET, options)
        try:
            if options.source is not None:
                sock.setsockopt(linux.SOL_SCTP, linux.BINDX_ADD, linux.sockaddr(options.source))
            with contextlib.suppress(BlockingIOError):
                sock.setsockopt(linux.SOL_SCTP, linux.CONNECTX, linux.sockaddr(place))
        except BaseException:
            sock.close()
            raise
        wire = Wire(self, sock, None)
        wire.own = KernelSession(wire, events, place, options.heartbeat_ms)
        self.wires.add(wire)
        self._tick_later()
        return wire.own

    def check(self, options: Options) -> None:
        if options.tls is not None:
            raise OSError(errno.EPROTONOSUPPORT, "SCTP has no TLS")

    def close(self) -> None:
        for wire in list(self.wires):
            for session in [*wire.sessions.values(), *([wire.own] if wire.own else [])]:
                if session.open:
                    session.say(linux.ABORT)
                wire.ended(session, "closed here")
            wire.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick_later(self) -> None:
        if self._timer is None and self.wires:
            wanted = [wire.own.beat.seconds for wire in self.wires if wire.own and wire.own.beat.seconds]
            self._timer = self.loop.call_later(max(min([TICK_SECONDS, *wanted]), 0.002), self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            self._look(self._clock())
        finally:  # whatever a user of a session does, time goes on
            self._tick_later()

    def _look(self, now: float) -> None:
        for wire in list(self.wires):
            for session in {*wire.sessions.values(), *([wire.own] if wire.own else [])}:
                session.tick(now)
                if session.closing and session.deadline is None:
                    session.deadline = now + CLOSE_SECONDS
                elif session.deadline is not None and now >= session.deadline:
                    session.abort("closed here")
                elif session.waits and session.open:
                    session.waits = False
                    session.events.writable(session)
