"""Peers of gateways in tests: exporters that connect, collectors that are connected to, and a worker's ends of doors.

Used by tests/control. Everything is a plain blocking socket with an end to its patience; nothing is taken from the
product but the doors.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Any

from samplicator.gateways.door import Datagram, Door, pair
from samplicator.gateways.hub import Hub
from samplicator.gateways.loop import LoopThread
from samplicator.gateways.stream import StreamTransport
from samplicator.gateways.transport import Factory
from samplicator.plan.sessions import Door as Delivery
from samplicator.plan.sessions import DoorSpec

from support.worker import wait_until

SECONDS = 10.0
LOCALHOST = b"\x7f\0\0\1"


def tcp_port() -> int:
    """One that nobody listens at now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Stage:
    """A hub in its thread, and the workers' ends of its doors. replayed: receivers that were to be replayed to."""

    def __init__(
        self, name: str, new_loop: Callable[[], asyncio.AbstractEventLoop], factory: Factory = StreamTransport
    ) -> None:
        self.replayed: list[str] = []
        self.thread = LoopThread(new_loop)
        self.hub = Hub(name, factory, self.thread, self.replayed.append)
        self.ends: list[Door] = []

    def _pair(self, queue_bytes: int) -> tuple[Door, Door]:
        ours, theirs = pair(queue_bytes)
        self.ends.append(Door(ours))
        return self.ends[-1], Door(theirs)

    def listener(self, name: str, spec: DoorSpec, worker: int = 0, queue_bytes: int = 4 << 20) -> Door:
        """The worker's end of a new door of a listener."""
        ours, theirs = self._pair(queue_bytes)
        self.hub.brings(name, worker, theirs, spec)
        return ours

    def receiver(self, name: str, delivery: Delivery, worker: int = 0, queue_bytes: int = 4 << 20) -> Door:
        """The worker's end of a new door of a receiver."""
        ours, theirs = self._pair(queue_bytes)
        self.hub.takes(name, worker, theirs, delivery)
        return ours

    def listening(self, name: str = "in") -> None:
        """Waits until the listener can be connected to."""
        wait_until(lambda: any(r.name == name and not r.why for r in self.hub.readings()), f"{name} to listen")

    def counters(self, name: str) -> dict[str, int]:
        """Of a listener or a receiver."""
        return dict(next(reading.counters for reading in self.hub.readings() if reading.name == name))

    def close(self) -> None:
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.close()
        self.hub.close(5.0)
        self.thread.close()


def read(door: Door, count: int) -> list[Datagram]:
    """So many datagrams, and no more, that come out of a door."""
    found: list[Datagram] = []

    def there() -> bool:
        found.extend(door.read())
        return len(found) >= count

    wait_until(there, f"{count} datagrams")
    assert len(found) == count
    return found


class Collector:
    """Listens, and keeps the messages of each connection, in order. context: TLS."""

    def __init__(self, port: int = 0, context: ssl.SSLContext | None = None) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("127.0.0.1", port))
        self.sock.listen()
        self.port = int(self.sock.getsockname()[1])
        self.connections: list[Connection] = []
        self.refused: list[str] = []
        self._context = context
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.sock.accept()
                if self._context is not None:
                    sock.settimeout(SECONDS)
                    sock = self._context.wrap_socket(sock, server_side=True)
            except ssl.SSLError as error:
                self.refused.append(str(error))
                continue
            except OSError:
                return
            self.connections.append(Connection(sock))

    def messages(self) -> list[bytes]:
        """Of all connections, one after the other."""
        return [message for connection in self.connections for message in connection.messages]

    def close(self) -> None:
        """It stops listening and ends its connections."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for connection in self.connections:
            connection.close()


class Connection:
    """What came by one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[bytes] = []
        self.held = threading.Event()
        self.held.set()
        self.over = False
        self._sock = sock
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self._sock.settimeout(None)
        data = b""
        with contextlib.suppress(OSError):
            while fresh := self._sock.recv(65536):
                data += fresh
                while len(data) >= 4 and len(data) >= (length := struct.unpack_from(">H", data, 2)[0]):
                    self.messages.append(data[:length])
                    data = data[length:]
                self.held.wait()
        self.over = True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def connect(port: int, context: ssl.SSLContext | None = None, **options: Any) -> socket.socket:
    """An exporter's connection."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=SECONDS, **options)
    return context.wrap_socket(sock, server_hostname="relay.example.net") if context is not None else sock


def ended(sock: socket.socket) -> bool:
    """Whether the other end has closed or reset the connection."""
    try:
        return sock.recv(1) == b""
    except OSError:
        return True


def turned_away(port: int, context: ssl.SSLContext | None = None, **options: Any) -> bool:
    """Whether who connects now is refused, perhaps before connect() returns."""
    try:
        return ended(connect(port, context, **options))
    except (ConnectionResetError, ssl.SSLError):
        return True
