"""Talk: the messages between a process that gives its sockets away and the process that takes them, and the token that
decides which of the two reads them.

Purpose: framing and its limits, for both sides. A connection begins as an HTTP request on the control socket
(http.changing), then carries messages: four bytes of length, big endian, and a JSON object whose `say` names it.
Descriptors travel beside the length (SCM_RIGHTS, unix(7)), at most FDS of them. Invariants: a message has a bounded
length and each wait has an end; descriptors that nobody asked for are closed. Called by giving and taking. It must
never decide who reads.

The token is one byte in a pipe that both processes hold. Who has read the byte reads the sockets, so both sides agree
whatever is lost between them: the kernel gives the byte to one reader only.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

PROTOCOL: Final = 1
UPGRADE: Final = "samplicator-takeover"
"""Name of the protocol in the HTTP request."""
PATH: Final = "/-/takeover"
FDS: Final = 250
"""Per message; the kernel takes 253 (SCM_MAX_FD, include/net/scm.h)."""
LONGEST: Final = 1 << 18
"""Bytes of a message: FDS labels and some more."""
_HEAD: Final = struct.Struct("!I")
_CREDENTIALS: Final = struct.Struct("@3i")


class Ended(Exception):
    """The other process has closed the connection or has ended."""


class Silent(Exception):
    """The other process has sent nothing for too long."""


class Garbled(Exception):
    """What came is no message of this protocol, or not the expected one."""


class Declined(Exception):
    """The other process does not go on; the text says why. again: asking again in a moment can help."""

    def __init__(self, why: str, *, again: bool = False) -> None:
        super().__init__(why)
        self.again = again


class Talk:
    """One connection. send() may be called from several threads, receive() from one."""

    def __init__(self, sock: socket.socket) -> None:
        """The socket belongs to this object from now on."""
        self._sock = sock
        self._lock = threading.Lock()
        self._came = bytearray()  # of the next message
        self._fds: list[int] = []

    def close(self) -> None:
        self._sock.close()
        close_all(self._fds)
        self._fds.clear()

    def upgrade(self) -> None:
        """Answers the HTTP request that this connection began with. Raises Ended, Silent."""
        with self._lock, _as_ended():
            self._sock.settimeout(1.0)
            self._sock.sendall(
                f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n".encode()
            )

    def send(self, say: str, fds: Sequence[int] = (), *, seconds: float = 5.0, **fields: Any) -> None:
        """Raises Ended; Silent when the other side does not read for `seconds`."""
        body = json.dumps({"say": say, **fields}, separators=(",", ":")).encode()
        assert len(body) <= LONGEST
        assert len(fds) <= FDS
        data = memoryview(_HEAD.pack(len(body)) + body)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        deadline = time.monotonic() + seconds
        with self._lock, _as_ended():
            while data:
                self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
                sent = self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
                data, rights = data[sent:], []

    def receive(self, seconds: float, *, fds: int = 0) -> tuple[dict[str, Any], list[int]]:
        """The next message and the descriptors that came with it, which are the caller's; at most `fds`, all others are
        closed. Raises Ended, Silent, Garbled, and Declined for the message "no". After Silent the next call goes on
        with what came of a message.
        """
        deadline = time.monotonic() + seconds
        self._read(_HEAD.size, deadline, fds)
        (length,) = _HEAD.unpack_from(self._came)
        if not 2 <= length <= LONGEST:
            raise Garbled(f"a message of {length} bytes")
        self._read(_HEAD.size + length, deadline, fds)
        body, got = bytes(self._came[_HEAD.size :]), self._fds
        self._came, self._fds = bytearray(), []
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("say"), str):
            close_all(got)
            raise Garbled("a message that is none of this protocol")
        if message["say"] == "no":
            close_all(got)
            raise Declined(str(message.get("why"))[:500], again=message.get("again") is True)
        return message, got

    def expect(self, say: str, seconds: float, *, fds: int = 0) -> tuple[dict[str, Any], list[int]]:
        """receive() of a message that must have this name."""
        message, got = self.receive(seconds, fds=fds)
        if message["say"] != say:
            close_all(got)
            raise Garbled(f"{message['say'][:40]!r} in place of {say!r}")
        return message, got

    def _read(self, count: int, deadline: float, fds: int) -> None:
        """Until so many bytes of a message have come; never more, so that descriptors stay with their message."""
        space = socket.CMSG_SPACE(array.array("i").itemsize * FDS) if fds else 0
        while len(self._came) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Silent
            with _as_ended():
                self._sock.settimeout(left)
                part, rights, _, _ = self._sock.recvmsg(count - len(self._came), space, socket.MSG_CMSG_CLOEXEC)
            for level, kind, raw in rights:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(raw[: len(raw) - len(raw) % numbers.itemsize])
                    self._fds += numbers
            close_all(self._fds[fds:])
            del self._fds[fds:]
            if not part:
                raise Ended
            self._came += part


class _as_ended(contextlib.ContextDecorator):
    """Turns what a socket raises into Ended and Silent."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TimeoutError):
            raise Silent from error
        if isinstance(error, OSError):
            raise Ended(error.strerror) from error


class Token:
    """See the head of this file. fileno(): the end to read, for the other process."""

    def __init__(self, fd: int) -> None:
        """fd: the end to read, which belongs to this object from now on."""
        self._fd = fd
        self.mine = False

    @classmethod
    def new(cls) -> Token:
        """Raises OSError."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.write(writing, b"1")
        os.close(writing)
        return cls(reading)

    def fileno(self) -> int:
        return self._fd

    def take(self) -> bool:
        """Whether this process reads the sockets from now on. False: the other one does."""
        if not self.mine:
            with contextlib.suppress(BlockingIOError):
                self.mine = os.read(self._fd, 1) == b"1"
        return self.mine

    def close(self) -> None:
        os.close(self._fd)


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end (SO_PEERCRED, unix(7)): of a connection that was accepted, who connected; of
    one that was made, who listened first. The process is 0 when it is in a container that this process cannot see.
    """
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def may_take(uid: int) -> bool:
    """Whether a process of this user may take the sockets of this process: the same user, or root."""
    return uid in (os.geteuid(), 0)


def may_give(uid: int) -> bool:
    """Whether this process takes sockets of a process of this user. Root takes them from everybody, as it may read and
    stop all processes anyway.
    """
    return os.geteuid() == 0 or uid in (os.geteuid(), 0)


def network() -> list[int]:
    """Which network namespace this process is in."""
    facts = os.stat("/proc/self/ns/net")
    return [facts.st_dev, facts.st_ino]
