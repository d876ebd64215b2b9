"""sd_notify over real local sockets, by path and abstract."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from samplicator.host.systemd import Notifier


def listen(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(5)
    return sock


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, socket.socket]:
    if request.param == "path":
        return str(tmp_path / "notify"), listen(str(tmp_path / "notify"))
    name = f"samplicator-test-{os.getpid()}-{time.monotonic_ns()}"
    return f"@{name}", listen(f"\0{name}")


def test_messages(systemd: tuple[str, socket.socket]) -> None:
    address, server = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("3 receivers")
    assert server.recv(1000).decode().split("\n") == ["READY=1", "STATUS=3 receivers", f"MAINPID={os.getpid()}"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    words = server.recv(1000).decode().split("\n")
    assert words[0] == "RELOADING=1"
    assert words[1].startswith("MONOTONIC_USEC=")
    assert 0 <= int(words[1].partition("=")[2]) - before < 5_000_000
    notifier.watchdog()
    assert server.recv(1000) == b"WATCHDOG=1"
    notifier.stopping("bye")
    assert server.recv(1000) == b"STOPPING=1\nSTATUS=bye"


def test_a_line_break_in_a_status_adds_no_field(systemd: tuple[str, socket.socket]) -> None:
    address, server = systemd
    Notifier({"NOTIFY_SOCKET": address}).stopping("one\nREADY=1")
    assert server.recv(1000) == b"STOPPING=1\nSTATUS=one READY=1"


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    assert not Notifier({}).send(READY=1)
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).send(READY=1)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid() + 1)}, 0.0),
        ({}, 0.0),
    ],
)
def test_watchdog_interval(environ: dict[str, str], seconds: float) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/nowhere", **environ}).watchdog_seconds == seconds
