"""The transports `tcp` and `tls`: connections, cut into messages by the length in each header (RFC 7011 section 10.4).

Invariants: a session holds at most one message that is not whole, and BUFFER_BYTES that were read with it; what cannot
be a message ends the session, because nothing says where the next one would begin; what is not written yet is bounded
by UNSENT_BYTES and one message; handshakes are bounded in number and time. Called by hub (as transport.Transport). It
must never look into a message behind its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Coroutine
from typing import Any, Final, cast

from samplicator.gateways import tls as secure
from samplicator.gateways.tcp import address_of, bound, family_of, set_keepalive, sockaddr
from samplicator.gateways.transport import Address, Events, Options, Reliability

VERSION: Final = 10
HEADER_BYTES: Final = 16
LEAST_BYTES: Final = 16 << 10
BUFFER_BYTES: Final = 128 << 10
"""Room for a message that is not whole, less than 64 KiB, and as much again; a session begins with LEAST_BYTES."""
UNSENT_BYTES: Final = 256 << 10
BACKLOG: Final = 256
ACCEPTS: Final = 64
"""Connections before others get their turn."""
MAX_HANDSHAKES: Final = 256
HANDSHAKE_SECONDS: Final = 10.0
SETTLE_SECONDS: Final = 0.3
"""By TLS 1.3 a server judges our certificate when for us the handshake is over, so what we write at once could be
lost.
"""
CLOSE_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 1.0
_HEAD: Final = struct.Struct(">HH")
_ABORT: Final = struct.pack("ii", 1, 0)


class StreamSession(asyncio.BufferedProtocol):
    """One connection; see transport.Session."""

    def __init__(self, owner: StreamTransport, peer: Address, events: Events) -> None:
        self.peer = peer
        self.streams = 1
        self.silent_since = 0.0
        self.transmissions = 0
        self.association = None
        self._owner = owner
        self._events = events
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(LEAST_BYTES)
        self._filled = 0
        self._open = False
        self._full = False
        self._held = False
        self._why = ""
        self._ended = False
        self.task: asyncio.Task[None] | None = None

    # -- Session

    @property
    def delivers(self) -> bool:
        return self._transport is not None

    @property
    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def send(self, message: bytes, stream: int = 0, reliability: Reliability = Reliability.FULL) -> bool:
        if not self._open or self._full or self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(message)
        return True

    def pause(self) -> None:
        if not self._held and self._transport is not None and not self._transport.is_closing():
            self._held = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._held and self._transport is not None and not self._transport.is_closing():
            self._held = False
            self._transport.resume_reading()

    def close(self, *, abort: bool = False) -> None:
        if self._transport is None:
            if self.task is not None:
                self.task.cancel()
            return
        if abort:
            self._transport.abort()
            return
        self._transport.close()
        self._owner.loop.call_later(CLOSE_SECONDS, self._transport.abort)

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._transport.set_write_buffer_limits(high=UNSENT_BYTES)

    def begin(self) -> None:
        """The handshake is over, and the peer is who it is to be."""
        if self._ended:
            return
        self._open = True
        self.resume()
        self._events.opened(self)
        self._cut()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._filled > len(self._buffer) // 2:
            self._buffer.extend(bytes(BUFFER_BYTES - len(self._buffer)))
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._open:
            self._cut()
        elif self._filled == BUFFER_BYTES:
            self.pause()

    def _cut(self) -> None:
        """Hands on the messages that are whole."""
        at = 0
        while self._filled - at >= _HEAD.size and not self._ended:
            version, length = _HEAD.unpack_from(self._buffer, at)
            if version != VERSION or length < HEADER_BYTES:
                what = f"version {version}" if version != VERSION else f"length {length}"
                self._filled = 0
                return self._break(f"what came is not an IPFIX message: {what}")
            if self._filled - at < length:
                break
            message = bytes(memoryview(self._buffer)[at : at + length])
            at += length
            self._events.message(self, 0, message)
        if at:
            left = self._filled - at
            self._buffer[:left] = self._buffer[at : self._filled]
            self._filled = max(left, 0)
        return None

    def _break(self, why: str) -> None:
        self._why = self._why or why
        if self._transport is not None:
            self._transport.abort()

    def eof_received(self) -> bool:
        if self._filled and self._open:
            self._why = "the peer ended within a message"
        return False

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._open and not self._ended:
            self._events.writable(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._open:
            self.end(self._why or (secure.reason(exc) if exc is not None else ""))
        elif exc is not None:
            self._why = self._why or secure.reason(exc)

    @property
    def broken(self) -> str:
        """Why it was lost before it was open; "" = it was not."""
        if self._transport is not None and not self._transport.is_closing():
            return ""
        return self._why or "the peer closed the connection"

    def end(self, why: str) -> None:
        """Tells that it is over, once."""
        if not self._ended:
            self._ended = True
            self._open = False
            self._owner.sessions.discard(self)
            self._events.closed(self, why)

    def check_peer(self, names: tuple[str, ...]) -> str:
        """Why the peer's certificate will not do; "" = it will, or there is no TLS."""
        assert self._transport is not None
        certificate = self._transport.get_extra_info("peercert")
        return secure.why_not(certificate, names) if names else ""

    @property
    def judged_later(self) -> bool:
        """Whether the peer judges our certificate after our handshake."""
        assert self._transport is not None
        tls = self._transport.get_extra_info("ssl_object")
        return tls is not None and tls.version() == "TLSv1.3"


class StreamEar:
    """A listening socket; see transport.Ear."""

    def __init__(self, owner: StreamTransport, sock: socket.socket, events: Events, options: Options) -> None:
        self._owner = owner
        self._sock = sock
        self._events = events
        self._options = options
        self._again: asyncio.TimerHandle | None = None
        self._listen()

    def _listen(self) -> None:
        self._again = None
        self._owner.loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, name = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor, no memory
                self._events.refused(Address(b"\0\0\0\0", 0), f"accept: {error.strerror}")
                self._owner.loop.remove_reader(self._sock.fileno())
                self._again = self._owner.loop.call_later(AGAIN_SECONDS, self._listen)
                return
            sock.setblocking(False)
            self._judge(sock, address_of(name))

    def _judge(self, sock: socket.socket, peer: Address) -> None:
        why = self._events.admits(peer)
        if not why and self._owner.handshakes >= MAX_HANDSHAKES:
            why = f"more than {MAX_HANDSHAKES} handshakes at a time"
            self._events.refused(peer, why)
        if not why:
            self._owner.spawn(self._welcome(sock, peer))
            return
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        sock.close()

    async def _welcome(self, sock: socket.socket, peer: Address) -> None:
        owner, tls = self._owner, self._options.tls
        session = StreamSession(owner, peer, self._events)
        owner.handshakes += 1
        try:
            set_keepalive(sock)
            context = owner.contexts.get(tls, server=True) if tls is not None else None
            timeout = HANDSHAKE_SECONDS if context is not None else None
            await owner.loop.connect_accepted_socket(lambda: session, sock, ssl=context, ssl_handshake_timeout=timeout)
            why = session.broken or session.check_peer(tls.names if tls is not None else ())
        except (OSError, EOFError, ssl.SSLError) as error:
            sock.close()
            why = secure.reason(error)
        finally:
            owner.handshakes -= 1
        if why:
            session.close(abort=True)
            self._events.refused(peer, why)
            return
        owner.sessions.add(session)
        session.begin()

    def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
        if self._sock.fileno() >= 0:
            self._owner.loop.remove_reader(self._sock.fileno())
            self._sock.close()


class StreamTransport:
    """See transport.Transport. In the thread of its loop, but for check()."""

    versions = (VERSION,)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.contexts = secure.Contexts()
        self.sessions: set[StreamSession] = set()
        self.handshakes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def check(self, options: Options) -> None:
        if options.tls is not None:
            secure.new_context(options.tls, server=True)

    def listen(self, place: Address, events: Events, options: Options) -> StreamEar:
        sock = bound(place)
        try:
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        return StreamEar(self, sock, events, options)

    def connect(self, place: Address, events: Events, options: Options) -> StreamSession:
        session = StreamSession(self, place, events)
        self.sessions.add(session)
        session.task = self.spawn(self._connect(session, place, options))
        return session

    async def _connect(self, session: StreamSession, place: Address, options: Options) -> None:
        try:
            why = await self._open(session, place, options)
        except asyncio.CancelledError:
            session.end("closed before it was open")
            session.close(abort=True)
            return
        except (TimeoutError, OSError, EOFError, ssl.SSLError) as error:
            why = secure.reason(error)
        session.task = None
        if why:
            session.end(why)
            session.close(abort=True)
        else:
            session.begin()

    async def _open(self, session: StreamSession, place: Address, options: Options) -> str:
        """Connects; returns why it will not do."""
        tls = options.tls
        context = self.contexts.get(tls, server=False) if tls is not None else None
        sock = socket.socket(family_of(place), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            set_keepalive(sock)
            if options.source is not None:
                sock.bind(sockaddr(options.source))
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await self.loop.sock_connect(sock, sockaddr(place))
            name = (tls.names[0] if tls is not None and tls.names else options.name) if context is not None else None
            timeout = HANDSHAKE_SECONDS if context is not None else None
            await self.loop.create_connection(
                lambda: session, sock=sock, ssl=context, server_hostname=name, ssl_handshake_timeout=timeout
            )
        except BaseException:
            sock.close()
            raise
        why = session.broken or session.check_peer(tls.names if tls is not None else ())
        if not why and session.judged_later:
            await asyncio.sleep(SETTLE_SECONDS)
            why = session.broken
        return why

    def close(self) -> None:
        for session in list(self.sessions):
            session.close(abort=True)
        for task in list(self._tasks):
            task.cancel()
