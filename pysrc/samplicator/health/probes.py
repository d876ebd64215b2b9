"""Probes: one question to a receiver from this host's address, and the meaning of its answer.

Purpose: a datagram on a connected UDP socket, a TCP connection, a page by HTTP; each is started, then polled several
times per second. Invariants: start() and poll() never wait (a thread reads a page, over an open connection); every
question ends within EXCHANGE_SECONDS; only a status line and headers are read. Called by reach, from one thread at a
time. Times are of the monotonic clock, in seconds.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from samplicator.host import sockets
from samplicator.plan.spec import ProbeSpec

UP: Final = "up"
REFUSING: Final = "refusing"
UNREACHABLE: Final = "unreachable"
LOOPING: Final = "looping"
"""No probe finds this state: copies come back (supervisor/guard.py, fastpath/route/echo.pxd)."""

ANSWER_SECONDS: Final = 0.2  # a refusal of a datagram has come by then
CONNECT_SECONDS: Final = 1.0
EXCHANGE_SECONDS: Final = 2.0  # connection and answer together
_WORDS: Final = {
    errno.ECONNREFUSED: (REFUSING, "the receiver's port is closed"),
    errno.ECONNRESET: (REFUSING, "the connection was reset"),
    errno.EHOSTUNREACH: (UNREACHABLE, "host unreachable"),
    errno.EHOSTDOWN: (UNREACHABLE, "host unreachable"),
    errno.ENETUNREACH: (UNREACHABLE, "network unreachable"),
    errno.ENETDOWN: (UNREACHABLE, "network down"),
    errno.EACCES: (UNREACHABLE, "a firewall on the way refuses the probe (ICMP)"),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """state: UP | REFUSING | UNREACHABLE. why: for people, "" when up. sure: False for silence, because a lost packet
    or a limit on answers can be the cause.
    """

    state: str
    why: str = ""
    sure: bool = True


class Probe(Protocol):
    """What reach needs of a probe. busy: a question is under way."""

    @property
    def busy(self) -> bool: ...

    def start(self, now: float) -> Answer | None:
        """Asks. Can return an answer at once: to this question, or a late one to the previous question."""

    def poll(self, now: float) -> Answer | None:
        """The answer, once; None = none so far."""

    def close(self) -> None: ...


def _open(kind: int, address: bytes, port: int, scope_id: int) -> tuple[socket.socket, int]:
    """A non-blocking socket and the errno of its connect."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        return sock, sock.connect_ex(sockets.endpoint(address, port, scope_id))
    except BaseException:
        sock.close()
        raise


class Datagram:
    """A datagram of `payload`: ICMP errors show on the socket; silence probably means up; a datagram that comes back
    surely does.
    """

    def __init__(self, address: bytes, port: int, scope_id: int, payload: bytes) -> None:
        self._where = address, port, scope_id
        self._payload = payload
        self._sock: socket.socket | None = None
        self._due = 0.0

    @property
    def busy(self) -> bool:
        return self._due > 0

    def start(self, now: float) -> Answer | None:
        answer = self._errors()
        if self._sock is None:
            sock, error = _open(socket.SOCK_DGRAM, *self._where)
            if error:
                sock.close()
                return _answer(error)
            self._sock = sock
            level, option = (
                (socket.IPPROTO_IP, sockets.IP_RECVERR)
                if sock.family == socket.AF_INET
                else (socket.IPPROTO_IPV6, sockets.IPV6_RECVERR)
            )
            sock.setsockopt(level, option, 1)  # with it "host unreachable" is reported, too (ip(7))
        for _ in range(2):
            try:
                self._sock.send(self._payload)
                break
            except OSError as error:
                answer = answer or _answer(error.errno or 0)
        self._due = now + ANSWER_SECONDS
        return answer

    def poll(self, now: float) -> Answer | None:
        answer = self._errors()
        if answer is None and self._answered():
            answer = Answer(UP)
        if answer is None and self._due and now >= self._due:
            answer = Answer(UP, sure=False)
        if answer is not None:
            self._due = 0.0
        return answer

    def _answered(self) -> bool:
        """Whether anything came back from there."""
        try:
            return self._sock is not None and bool(self._sock.recvfrom(1)[1])
        except OSError:
            return False

    def _errors(self) -> Answer | None:
        """What has been reported since the last call."""
        answer: Answer | None = None
        sock = self._sock
        for _ in range(8 if sock is not None else 0):
            assert sock is not None
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            with contextlib.suppress(OSError):
                sock.recv(1, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            if not number:
                break
            answer = answer or _answer(number)
        return answer

    def close(self) -> None:
        self._due = 0.0
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class Connection:
    """A TCP connection: established is up. It is closed at once."""

    limit_seconds = CONNECT_SECONDS

    def __init__(self, spec: ProbeSpec) -> None:
        self.spec = spec
        self._sock: socket.socket | None = None
        self._poll = select.poll()
        self._until = 0.0

    @property
    def busy(self) -> bool:
        return self._sock is not None

    @property
    def words(self) -> str:
        """What is asked, for people."""
        return f"{self.spec.kind}://{self.spec.host}{self.spec.path}"

    def start(self, now: float) -> Answer | None:
        sock, error = _open(socket.SOCK_STREAM, self.spec.address, self.spec.port, self.spec.scope_id)
        if error not in (0, errno.EINPROGRESS):
            sock.close()
            return self._answer(error)
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLOUT)
        self._until = now + CONNECT_SECONDS
        return None

    def poll(self, now: float) -> Answer | None:
        sock = self._sock
        if sock is None:
            return None
        if self._poll.poll(0):
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not error:
                return self._connected(now)
            self.close()
            return self._answer(error)
        if now >= self._until:
            self.close()
            return Answer(REFUSING, f"{self.words}: no answer within {CONNECT_SECONDS:g} s", sure=False)
        return None

    def _connected(self, now: float) -> Answer | None:
        self.close()
        return Answer(UP)

    def _answer(self, error: int) -> Answer | None:
        """Local trouble (no more descriptors) says nothing about the receiver."""
        state, why = _WORDS.get(error, ("", ""))
        why = "connection refused" if error == errno.ECONNREFUSED else why
        return Answer(state, f"{self.words}: {why}") if state else None

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class Page(Connection):
    """A GET: any 2xx is up."""

    def __init__(self, spec: ProbeSpec) -> None:
        super().__init__(spec)
        self._exchange: Exchange | None = None
        self._end = 0.0

    @property
    def busy(self) -> bool:
        return super().busy or self._exchange is not None

    def start(self, now: float) -> Answer | None:
        self._end = now + EXCHANGE_SECONDS
        return super().start(now)

    def poll(self, now: float) -> Answer | None:
        exchange = self._exchange
        if exchange is None:
            return super().poll(now)
        if exchange.done:
            self._exchange = None
            status = exchange.status
            if 200 <= status < 300:
                return Answer(UP)
            return Answer(
                REFUSING, f"{self.words}: {f'the answer is status {status}' if status else 'the answer is not HTTP'}"
            )
        if now >= self._end:
            self.close()
            return Answer(REFUSING, f"{self.words}: no answer within {EXCHANGE_SECONDS:g} s", sure=False)
        return None

    def _connected(self, now: float) -> Answer | None:
        sock, self._sock = self._sock, None
        assert sock is not None
        self._exchange = Exchange(sock, self.spec.host, self.spec.path)
        return None

    def close(self) -> None:
        super().close()
        if self._exchange is not None:
            self._exchange.abort()
            self._exchange = None


class Exchange:
    """One GET over a connection, in a thread of its own, which closes the connection. status: 0 = no HTTP."""

    def __init__(self, sock: socket.socket, host: str, path: str) -> None:
        self.done = False
        self.status = 0
        self._sock = sock
        self._host = host
        self._path = path
        sock.settimeout(EXCHANGE_SECONDS)
        threading.Thread(target=self._run, name="probe", daemon=True).start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._host)
        connection.auto_open = 0
        connection.sock = self._sock
        try:
            connection.request("GET", self._path, headers={"User-Agent": "samplicator", "Connection": "close"})
            with contextlib.closing(connection.getresponse()) as response:
                self.status = response.status
        except (OSError, ValueError, http.client.HTTPException):
            self.status = 0
        finally:
            connection.close()
            self._sock.close()
            self.done = True

    def abort(self) -> None:
        """Ends the thread's wait; the thread still owns the descriptor."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


def _answer(error: int) -> Answer | None:
    """What an errno says about a receiver of datagrams; None = nothing (local trouble)."""
    state, why = _WORDS.get(error, ("", ""))
    return Answer(state, why) if state else None


MAKERS: Final[dict[str, Callable[[ProbeSpec], Connection]]] = {"tcp": Connection, "http": Page}
