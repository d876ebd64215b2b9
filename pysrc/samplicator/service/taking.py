"""Taking: the new process's side of a take-over.

Purpose: asks the process that answers on the control socket for its sockets and its state, and tells it when they are
read here. Invariants: nothing is read before commit() has returned; every failure before that leaves the other process
as it was; if the other process has ended, whatever it had sent is used, because nobody else reads it. Called by
service. It must never read a datagram.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Final

from samplicator import __version__
from samplicator.host.sockets import meminfo
from samplicator.service import talk
from samplicator.service.talk import Declined, Ended, Garbled, Silent, Talk, Token

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 10.0
"""For each message of the other process, which may be slow on a busy machine."""
AGAIN_SECONDS: Final = 30.0
"""How long a process that is starting or stopping is asked again."""
PAUSE_SECONDS: Final = 0.05
WORKING_SECONDS: Final = 0.1
"""How often the other process hears that this one works. See giving.SILENT_SECONDS."""
BYE_SECONDS: Final = 2.0
HEAD_BYTES: Final = 16384
MOST_SOCKETS: Final = 1 << 16
MOST_STATE: Final = 1 << 30


class Refused(OSError):
    """There is another process, and this one cannot take over from it. The text says why."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EBUSY, why)
        self._why = why

    def __str__(self) -> str:
        return self._why


@dataclass(slots=True)
class Handed:
    """What the other process gave. sockets: label and socket of listeners; pages: HTTP sockets by key. state: the bytes
    of a state file, b"" = none came. whole: all of it came; if not, the other process has ended before.
    """

    sockets: list[tuple[str, socket.socket]] = field(default_factory=list)
    pages: dict[str, socket.socket] = field(default_factory=dict)
    state: bytes = b""
    whole: bool = False

    def close(self) -> None:
        for sock in (*(sock for _, sock in self.sockets), *self.pages.values()):
            sock.close()


class Taker:
    """One take-over from one process. pid: of the process, 0 = in a container that this one cannot see."""

    def __init__(self, conversation: Talk, token: Token, pid: int, version: str) -> None:
        self._talk = conversation
        self._token = token
        self.pid = pid
        self.version = version
        self._handed: list[tuple[str, socket.socket]] = []
        self._paused_ns = 0
        self._read_ns = 0
        self._waited_bytes = 0
        self._ended = False  # the other process
        self._working: threading.Thread | None = None
        self._done = threading.Event()

    # ------------------------------------------------------------------ in order

    def ask(self) -> Handed:
        """Has the other process pause, and gets what it gives. Raises Refused; then the other process goes on."""
        handed = Handed()
        try:
            self._ask(handed)
        except Ended:
            log.warning(
                "process %d ended during the take-over; %d of its sockets are used%s",
                self.pid,
                len(handed.sockets),
                "" if handed.state else ", and no counters or templates",
            )
            self._ended = True
        except (Declined, Silent, Garbled) as error:
            handed.close()
            self._give_up(_reason(error))
            raise Refused(f"process {self.pid} does not hand over: {_reason(error)}") from None
        except BaseException as error:
            handed.close()
            self._give_up(str(error) or type(error).__name__)
            raise
        self._handed = handed.sockets
        self._working = threading.Thread(target=self._say_working, name="takeover", daemon=True)
        self._working.start()
        return handed

    def commit(self) -> None:
        """From now on this process reads. Raises Refused: the other process reads again, because this one took too
        long.
        """
        if not self._token.take():
            raise Refused(f"process {self.pid} has resumed, because this process was not ready in time; try again")
        self._read_ns = time.monotonic_ns()
        for _, sock in self._handed:
            with contextlib.suppress(OSError):
                self._waited_bytes = max(self._waited_bytes, meminfo(sock).queue_bytes)
        self._handed = []

    def taken(self) -> None:
        """To be called when the workers read. Returns when the other process answers no HTTP request any more."""
        self._stop_saying()
        paused = (self._read_ns - self._paused_ns) / 1e6 if self._paused_ns else 0.0
        try:
            self._talk.send("taken")
            self._talk.expect("bye", BYE_SECONDS)
        except (Ended, Silent, Garbled, Declined) as error:
            if not self._ended:
                log.warning("process %d does not say that it has noticed the take-over: %s", self.pid, _reason(error))
        finally:
            self.close()
        if self._paused_ns:
            text = "took over from process %d (%s); datagrams waited for %.0f ms, at most %d KiB in a receive buffer"
            log.info(text, self.pid, self.version, paused, self._waited_bytes >> 10)

    def abandon(self, why: str, *, reads: bool) -> None:
        """This process cannot go on. reads: some worker may read the sockets. Then the other process waits until this
        one has ended.
        """
        self._stop_saying()
        if not reads:
            self._give_up(why)

    def close(self) -> None:
        self._talk.close()
        self._token.close()

    # ------------------------------------------------------------------ parts

    def _ask(self, handed: Handed) -> None:
        """Raises what Talk raises."""
        with contextlib.suppress(Ended):  # it may have said why before it hung up: that is still to be read
            self._talk.send("pause")
        while True:
            message, fds = self._talk.receive(ANSWER_SECONDS, fds=talk.FDS)
            match message:
                case {"say": "sockets", "labels": list(labels)} if len(labels) == len(fds):
                    handed.sockets += [(str(label), _socket(fd)) for label, fd in zip(labels, fds, strict=True)]
                    if len(handed.sockets) > MOST_SOCKETS:
                        raise Garbled(f"more than {MOST_SOCKETS} sockets")
                case {"say": "pages", "keys": list(keys)} if len(keys) == len(fds):
                    handed.pages |= {str(key): _socket(fd) for key, fd in zip(keys, fds, strict=True)}
                case {"say": "state", "bytes": int(size)} if len(fds) == 1 and 0 <= size <= MOST_STATE:
                    handed.state = _content(fds[0], size)
                case {"say": "all", "sockets": int(count), "paused_ns": int(paused)} if not fds:
                    if count != len(handed.sockets):
                        raise Garbled(f"{len(handed.sockets)} of {count} sockets")
                    self._paused_ns = paused
                    handed.whole = True
                    return
                case _:
                    talk.close_all(fds)
                    raise Garbled(f"a message {str(message.get('say'))[:40]!r} that does not belong here")

    def _give_up(self, why: str) -> None:
        with contextlib.suppress(Ended, Silent):
            self._talk.send("no", why=why, seconds=0.5)
        self.close()

    def _say_working(self) -> None:
        while not self._done.wait(WORKING_SECONDS):
            try:
                self._talk.send("working", seconds=1.0)
            except (Ended, Silent):
                return

    def _stop_saying(self) -> None:
        self._done.set()
        if self._working is not None:
            self._working.join()


def find(path: str) -> Taker | None:
    """The process that answers on a control socket. None: nobody does, so this is an ordinary start. Raises Refused."""
    deadline = time.monotonic() + AGAIN_SECONDS
    while True:
        try:
            return _find(path)
        except Declined as error:
            if not error.again or time.monotonic() > deadline:
                raise Refused(f"cannot take over from the process at {path}: {error}") from None
            time.sleep(PAUSE_SECONDS)
        except (Silent, Garbled) as error:
            raise Refused(f"cannot take over from the process at {path}: {_reason(error)}") from None
        except Ended:  # just now: then nobody answers at the next try
            if time.monotonic() > deadline:
                raise Refused(f"the process at {path} closes every connection") from None
            time.sleep(PAUSE_SECONDS)


def _find(path: str) -> Taker | None:
    """Raises Declined, Refused, and what Talk raises."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(ANSWER_SECONDS)
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        _, user = talk.peer(sock)
        if not talk.may_give(user):
            raise Refused(f"cannot take over from the process at {path}: it belongs to user {user}, not to this user")
        _upgrade(sock)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise Silent from error
        if isinstance(error, OSError) and not isinstance(error, Refused):
            if isinstance(error, PermissionError):
                raise Refused(f"cannot take over from the process at {path}: {error.strerror}") from error
            raise Ended from error
        raise
    conversation = Talk(sock)
    try:
        with contextlib.suppress(Ended):  # as for "pause"
            conversation.send(
                "hello", protocol=talk.PROTOCOL, version=__version__, pid=os.getpid(), network=talk.network()
            )
        welcome, fds = conversation.expect("welcome", ANSWER_SECONDS, fds=1)
    except BaseException:
        conversation.close()
        raise
    pid = welcome.get("pid")
    if len(fds) != 1 or not isinstance(pid, int):
        talk.close_all(fds)
        conversation.close()
        raise Garbled("a welcome without a token")
    return Taker(conversation, Token(fds[0]), pid, str(welcome.get("version"))[:40])


def _upgrade(sock: socket.socket) -> None:
    """Turns an HTTP connection into one of messages. Raises Declined, Garbled, OSError."""
    sock.sendall(
        f"POST {talk.PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {talk.UPGRADE}\r\n"
        "Content-Length: 0\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:  # byte by byte: what follows is a message
        part = sock.recv(1)
        if not part:
            raise ConnectionResetError
        head += part
        if len(head) > HEAD_BYTES:
            raise Garbled("no HTTP answer")
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    status = words[1] if len(words) > 1 else b""
    if status == b"101":
        return
    if status in (b"404", b"405"):
        raise Declined("it is a version that cannot be taken over from; stop it, then start this one")
    try:
        body = json.loads(_rest(sock))
        raise Declined(str(body["error"])[:500], again=status == b"503")
    except (ValueError, KeyError, TypeError):
        raise Declined(f"it answers with HTTP status {status.decode(errors='replace')}") from None


def _rest(sock: socket.socket) -> bytes:
    """What an HTTP answer says, after its head: a JSON object."""
    body = b""
    while not body.endswith(b"}") and len(body) < HEAD_BYTES:
        part = sock.recv(HEAD_BYTES)
        if not part:
            break
        body += part
    return body


def _socket(fd: int) -> socket.socket:
    return socket.socket(fileno=fd)


def _content(fd: int, size: int) -> bytes:
    """What is in a file that the other process has made for this one."""
    with open(fd, "rb"):
        if os.fstat(fd).st_size != size:
            raise Garbled("a state of another length")
        content = os.pread(fd, size, 0)  # and not by mmap(2), where SIGBUS comes if the other process cuts it off
        if len(content) != size:
            raise Garbled("a state of another length")
        return content


def _reason(error: BaseException) -> str:
    if isinstance(error, Ended):
        return "it has ended"
    if isinstance(error, Silent):
        return str(error) or f"it does not answer within {ANSWER_SECONDS:g} s"
    if isinstance(error, Garbled):
        return f"it sent {error}"
    return str(error)
