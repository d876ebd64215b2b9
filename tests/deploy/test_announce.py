"""announce.py by itself: what it tells BIRD when samplicator is ready, is not, dies, and when BIRD does not listen.

samplicator is played by a server on a local socket, BIRD by a script that writes down its argument.
"""

from __future__ import annotations

import http.server
import itertools
import json
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.anycast import ANYCAST
from support.process import wait_for

SCRIPT = ANYCAST / "relay" / "announce.py"


class Daemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A control socket. ready: what /readyz says. datagrams: received so far. connections: closed when it dies."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.ready, self.datagrams = True, 0
        self.connections: list[socket.socket] = []
        path.unlink(missing_ok=True)
        super().__init__(str(path), Page)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def die(self) -> None:
        """As the kernel ends a process: nobody listens any more, and every connection is closed."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            connection.shutdown(socket.SHUT_RDWR)


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Daemon

    def setup(self) -> None:
        self.server.connections.append(self.request)
        self.client_address = ("", 0)
        super().setup()

    def do_GET(self) -> None:
        if self.path == "/readyz":
            status, body = (200, b"ok\n") if self.server.ready else (503, b"listener 'in' is down\n")
        else:
            status, body = 200, json.dumps([{"counters": {"datagrams": self.server.datagrams}}]).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Stage:
    """A daemon, a BIRD, and announce.py between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told_path = folder / "told"
        self.daemon = Daemon(folder / "control.sock")
        self.bird = folder / "birdc"
        self.mend_bird()
        self.log = (folder / "log").open("wb")
        self.script: subprocess.Popen[bytes] | None = None

    def mend_bird(self) -> None:
        self.bird.write_text(f"#!/bin/sh\necho $1 >>{self.told_path}\n")
        self.bird.chmod(0o755)

    def break_bird(self) -> None:
        self.bird.write_text("#!/bin/sh\necho 'Unable to connect to server control socket' >&2; exit 1\n")

    def announce(self, *words: str) -> None:
        argv = [sys.executable, str(SCRIPT), "--control", str(self.folder / "control.sock")]
        argv += ["--announce", f"{self.bird} enable", "--withdraw", f"{self.bird} disable"]
        argv += ["--interval", "0.05", "--quiet", "0.5", *words]
        self.script = subprocess.Popen(argv, stderr=self.log)

    def told(self) -> list[str]:
        """What BIRD was told, without the repetitions that come every few seconds."""
        words = self.told_path.read_text().split() if self.told_path.exists() else []
        return [word for word, _ in itertools.groupby(words)]

    def says(self, *words: str) -> None:
        wait_for(lambda: self.told() == [*words], f"BIRD to be told {words}, not {self.told()}", 20)

    def said(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        if self.script is not None:
            self.script.kill()
            self.script.wait(5)
        self.log.close()
        self.daemon.shutdown()  # the thread would go on asking for a descriptor that is another's by then
        self.daemon.server_close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def test_the_route_follows_readiness(stage: Stage) -> None:
    stage.daemon.ready = False
    stage.announce()
    stage.says("disable")
    stage.daemon.ready = True
    stage.says("disable", "enable")
    stage.daemon.ready = False
    stage.says("disable", "enable", "disable")
    assert "route withdrawn: samplicator is not ready (listener 'in' is down)" in stage.said()


def test_a_death_is_seen_at_once(stage: Stage) -> None:
    """Long before the next question would be asked."""
    stage.announce("--interval", "60", "--rise", "1")
    stage.says("enable")
    stage.daemon.die()
    stage.says("enable", "disable")


def test_hold_outlasts_a_restart(stage: Stage) -> None:
    stage.announce("--hold", "60")
    stage.says("enable")
    stage.daemon.die()
    before = stage.daemon
    stage.daemon = Daemon(stage.folder / "control.sock")
    wait_for(lambda: stage.daemon.connections, "a connection to the next process", 20)
    assert before.connections
    assert stage.told() == ["enable"]


def test_bird_that_does_not_listen_is_told_again(stage: Stage) -> None:
    stage.break_bird()
    stage.announce()
    wait_for(lambda: "cannot announce the route: Unable to connect" in stage.said(), "a line in the log", 20)
    stage.mend_bird()
    stage.says("enable")
    assert stage.said().count("cannot announce") == 1, "the log would be full of it"


def test_the_end_waits_for_the_last_datagram(stage: Stage) -> None:
    stage.announce()
    stage.says("enable")
    stopped = threading.Event()

    def arrive() -> None:
        while not stopped.wait(0.05):
            stage.daemon.datagrams += 1

    traffic = threading.Thread(target=arrive)
    traffic.start()
    try:
        assert stage.script is not None
        stage.script.send_signal(signal.SIGTERM)
        stage.says("enable", "disable")
        with pytest.raises(subprocess.TimeoutExpired):
            stage.script.wait(1.5)
    finally:
        stopped.set()
        traffic.join()
    assert stage.script.wait(20) == 0
    assert "no datagram arrived for 0.5 s; this relay can stop" in stage.said()


def test_the_end_does_not_wait_for_ever(stage: Stage) -> None:
    stage.announce("--longest", "1", "--quiet", "30")
    stage.says("enable")
    assert stage.script is not None
    stage.script.send_signal(signal.SIGTERM)
    assert stage.script.wait(20) == 0
    assert "datagrams still arrive 1 s after the route was withdrawn" in stage.said()
