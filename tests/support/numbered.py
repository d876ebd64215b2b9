"""A collector and exporters on loopback that number their datagrams, a plan between them, and what they all came to.

Used by tests/control: the compiled datapath under the supervisor, no daemon.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

from samplicator.host import abilities, sockets
from samplicator.plan.planner import compile
from samplicator.plan.spec import PlanSpec
from samplicator.supervisor.supervisor import Supervisor

from support.hosts import Load

CAPABILITIES = abilities.capabilities()


class Collector:
    """A receiver that remembers the numbers it got."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with contextlib.suppress(PermissionError):
            self.sock.setsockopt(socket.SOL_SOCKET, sockets.SO_RCVBUFFORCE, 1 << 25)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.settimeout(0.3)
        self.port = self.sock.getsockname()[1]

    def take(self) -> list[int]:
        numbers = []
        with contextlib.suppress(TimeoutError):
            while True:
                numbers.append(int.from_bytes(self.sock.recv(2000)[:8], "big"))
        return numbers


class Exporters:
    """Sessions that number their datagrams: session in the upper half, sequence in the lower."""

    def __init__(self, count: int, port: int) -> None:
        self.socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        for index, sock in enumerate(self.socks):
            sock.bind((f"127.0.1.{index + 1}", 0))
        self.port = port
        self.sent = 0

    def send(self, rounds: int) -> None:
        for _ in range(rounds):
            for session, sock in enumerate(self.socks):
                sequence = self.sent // len(self.socks)
                sock.sendto((session << 32 | sequence).to_bytes(8, "big") + bytes(92), ("127.0.0.1", self.port))
                self.sent += 1


def in_order(numbers: list[int]) -> bool:
    last: dict[int, int] = {}
    for number in numbers:
        if number & 0xFFFFFFFF <= last.get(number >> 32, -1):
            return False
        last[number >> 32] = number & 0xFFFFFFFF
    return True


def text(port: int, to: int, *, workers: int = 1, receiver: str = "", more: str = "", listener: str = "") -> str:
    return f"""
[datapath]
workers = {workers}
receive_buffer = "4MiB"
[[listener]]
name = "in"
listen = ["127.0.0.1:{port}"]
{listener}
[[receiver]]
name = "one"
to = "127.0.0.1:{to}"
{receiver}
[[rule]]
to = ["one"]
{more}
"""


def spec(load: Load, *args: int, **kwargs: object) -> PlanSpec:
    return compile(load(text(*args, **kwargs)), {}, CAPABILITIES)  # type: ignore[arg-type]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def rest(supervisor: Supervisor, count: int, seconds: float = 20.0) -> None:
    """Waits until the workers have received `count` datagrams and are done with them: the law holds for every receiver,
    and nothing moves between two looks.
    """
    end = time.monotonic() + seconds
    before: list[dict[str, int]] = []
    while True:
        now = [receiver.counters for receiver in supervisor.view.readings().receivers]
        lawful = all(
            c["offered"]
            == c["skipped"] + c["sent"] + sum(value for key, value in c.items() if key.startswith("failed_"))
            for c in now
        )
        if supervisor.view.received() >= count and lawful and now == before:
            return
        assert time.monotonic() < end, (supervisor.view.received(), count, now)
        before = now
        time.sleep(0.005)


def until(supervisor: Supervisor, count: int, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while supervisor.view.received() < count and time.monotonic() < end:
        time.sleep(0.005)
