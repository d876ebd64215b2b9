"""sd_notify over real local sockets, by path and abstract."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from samplicator.config.model.service import Service
from samplicator.host import systemd as systemd_module
from samplicator.host.systemd import Notifier, take_sockets
from samplicator.service.keeping import Kept, state_path
from samplicator.supervisor.supervisor import Supervisor


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


def passed(names: str, **more: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": names, **more}


@pytest.fixture
def first_fd(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Two sockets with numbers that follow each other, as systemd passes them."""
    pair = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    base = fcntl.fcntl(pair[0], fcntl.F_DUPFD, 500)
    os.dup2(pair[1].fileno(), base + 1, inheritable=True)
    monkeypatch.setattr(systemd_module, "FIRST_FD", base)
    yield base
    for sock in pair:
        sock.close()
    for number in (base, base + 1):
        with contextlib.suppress(OSError):
            os.close(number)


def test_sockets_are_taken_once(first_fd: int) -> None:
    environ = passed("udp4-0.0.0.0-2055#0:syslog")
    taken = take_sockets(environ)
    assert [(name, sock.fileno(), sock.get_inheritable()) for name, sock in taken] == [
        ("udp4-0.0.0.0-2055#0", first_fd, False),
        ("syslog", first_fd + 1, False),
    ]
    assert environ == {}
    assert take_sockets(environ) == []
    for _, sock in taken:
        sock.close()


@pytest.mark.parametrize(
    "wrong", [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": "x"}, {"LISTEN_FDS": "99999999"}]
)
def test_sockets_for_others_are_not_taken(first_fd: int, wrong: dict[str, str]) -> None:
    assert take_sockets(passed("a:b", **wrong)) == []
    assert fcntl.fcntl(first_fd, fcntl.F_GETFD) == 0


def test_names_may_be_missing(first_fd: int) -> None:
    taken = take_sockets(passed("one"))
    assert [name for name, _ in taken] == ["one", "unknown"]
    for _, sock in taken:
        sock.close()


def test_a_socket_is_stored_and_removed(systemd: tuple[str, socket.socket]) -> None:
    address, server = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        assert notifier.store("udp4-127.0.0.1-1#0", sock)
        message, descriptors, _, _ = socket.recv_fds(server, 1000, 2)
        assert message == b"FDSTORE=1\nFDNAME=udp4-127.0.0.1-1#0\nFDPOLL=0"
        with socket.socket(fileno=descriptors[0]) as stored:
            assert stored.getsockname() == sock.getsockname()
    assert notifier.unstore("udp4-127.0.0.1-1#0")
    assert server.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=udp4-127.0.0.1-1#0"


def test_a_start_is_told_of_when_the_queue_is_full(systemd: tuple[str, socket.socket]) -> None:
    """Thousands of sockets were stored just before, and the manager is busy."""
    address, server = systemd
    notifier = Notifier({"NOTIFY_SOCKET": address})
    while notifier.send(WATCHDOG=1):
        pass
    messages: list[bytes] = []

    def read() -> None:
        while not messages or not messages[-1].startswith(b"READY=1"):
            messages.append(server.recv(1000))

    reader = threading.Timer(0.2, read)
    reader.start()
    notifier.ready("well")
    reader.join(10)
    assert messages[-1].startswith(b"READY=1\nSTATUS=well")


class Runs:
    """What Kept asks a supervisor for."""

    def __init__(self, *sockets: tuple[str, socket.socket]) -> None:
        self._sockets = list(sockets)

    def sockets(self) -> list[tuple[str, socket.socket]]:
        return self._sockets


def test_a_socket_that_was_closed_meanwhile_is_not_stored(systemd: tuple[str, socket.socket]) -> None:
    """A reload may close one while all are stored."""
    address, server = systemd
    kept = Kept(Notifier({"NOTIFY_SOCKET": address}), [])
    closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    closed.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        kept.store(cast(Supervisor, Runs(("a#0", closed), ("b#0", sock))))
    assert b"FDNAME=b#0" in server.recv(1000)


def test_a_manager_that_does_not_read_is_not_waited_for_each_time(
    systemd: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = systemd
    monkeypatch.setattr(systemd_module, "PATIENCE_SECONDS", 0.2)
    notifier = Notifier({"NOTIFY_SOCKET": address})
    while notifier.send(WATCHDOG=1):
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        begun = time.monotonic()
        Kept(notifier, []).store(cast(Supervisor, Runs(*((f"a#{number}", sock) for number in range(100)))))
    assert time.monotonic() - begun < 10  # 100 times as long is 20 s


def bound(*labels: str) -> list[tuple[str, socket.socket]]:
    pairs = [(label, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for label in labels]
    for _, sock in pairs:
        sock.bind(("127.0.0.1", 0))
    return pairs


class Ends(Runs):
    """A supervisor whose service ends while another thread stores its sockets."""

    def __init__(self, *sockets: tuple[str, socket.socket]) -> None:
        super().__init__(*sockets)
        self.asked, self.answer = threading.Event(), threading.Event()
        self.kept: set[str] = set()

    def sockets(self) -> list[tuple[str, socket.socket]]:
        self.asked.set()
        assert self.answer.wait(20)
        return super().sockets()

    def leave(self, kept: set[str]) -> None:
        self.kept = kept
        for _, sock in super().sockets():
            sock.close()


def test_what_is_held_does_not_change_at_the_end(systemd: tuple[str, socket.socket]) -> None:
    """A reload has just ended, so sockets are stored on another thread, or are about to be."""
    address, server = systemd
    pair = bound("a#0", "a#1")
    runs = Ends(*pair)
    kept = Kept(Notifier({"NOTIFY_SOCKET": address, "FDSTORE": "9"}), pair[:1])
    storing = threading.Thread(target=kept.store, args=(runs,))
    leaving = threading.Thread(target=kept.leave, args=(runs, 1.0))
    storing.start()
    assert runs.asked.wait(20)
    leaving.start()
    leaving.join(0.1)
    assert leaving.is_alive()  # it waits
    runs.answer.set()
    storing.join(20)
    leaving.join(20)
    kept.store(cast(Supervisor, runs))  # one that comes late finds closed sockets only
    server.settimeout(0.2)
    messages = []
    with contextlib.suppress(TimeoutError):
        while True:
            message, descriptors, _, _ = socket.recv_fds(server, 1000, 2)
            messages.append(message)
            for number in descriptors:
                os.close(number)
    assert not [message for message in messages if b"FDSTOREREMOVE" in message]
    assert runs.kept == {"a#0"} | ({"a#1"} if messages else set())


class Stops(Runs):
    """Says how its datapath ended."""

    said: tuple[str, object] = ("", None)

    def leave(self, kept: set[str]) -> None:
        self.said = "leave", kept

    def drain_and_stop(self, timeout: float, *, refuse: bool) -> None:
        self.said = "drain", refuse


@pytest.mark.parametrize(
    ("passed", "limit", "said"),
    [
        (0, "", ("drain", False)),
        (1, "", ("drain", False)),  # whether systemd has taken the second one is not known
        (2, "", ("leave", {"a#0", "a#1"})),
        (0, "9", ("leave", {"a#0", "a#1"})),
        (1, "1", ("leave", {"a#0"})),
    ],
)
def test_what_systemd_may_have_refused_is_read_out(
    systemd: tuple[str, socket.socket], passed: int, limit: str, said: tuple[str, object]
) -> None:
    """Before version 254 it does not say how many sockets it takes."""
    address, _ = systemd
    pair = bound("a#0", "a#1")
    environ = {"NOTIFY_SOCKET": address} | ({"FDSTORE": limit} if limit else {})
    kept, runs = Kept(Notifier(environ), pair[:passed]), Stops(*pair)
    kept.store(cast(Supervisor, runs))
    kept.leave(cast(Supervisor, runs), 1.0)
    assert runs.said == said
    for _, sock in pair:
        sock.close()


@pytest.mark.parametrize(
    ("environ", "limit"),
    [({}, 0), ({"FDSTORE": "7"}, 0), ({"NOTIFY_SOCKET": "x"}, -1)]
    + [({"NOTIFY_SOCKET": "x", "FDSTORE": text}, limit) for text, limit in (("7", 7), ("0", 0), ("x", -1))],
)
def test_how_many_sockets_the_store_takes(environ: dict[str, str], limit: int) -> None:
    assert Notifier(environ).store_limit == limit


def test_where_the_state_file_is() -> None:
    assert state_path(Service(), {}) == ""
    assert state_path(Service(), {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == "/var/lib/a/samplicator.state"
    assert state_path(Service(state_file="/x/y"), {"STATE_DIRECTORY": "/var/lib/a"}) == "/x/y"
    assert state_path(Service(state_file=""), {"STATE_DIRECTORY": "/var/lib/a"}) == ""
