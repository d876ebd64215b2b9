"""The daemon's TCP interface while it is attacked and its certificate changes, and datagrams flow: every datagram is
accounted for and arrives, every refusal is bounded, and the log has one line of each kind.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from samplicator.http.endpoints import BACKLOG
from support.hosts import free_port
from support.pki import make_pair
from support.process import Process, command, wait_for

TOKEN = "made-up-token"
HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(7)).decode()
WEB = f"tls_server_config:\n  cert_file: c.pem\n  key_file: k.pem\nbasic_auth_users:\n  prom: {HASH}\n"


class Daemon:
    """On loopback, with one receiver that counts what it gets."""

    def __init__(self, place: Path) -> None:
        self.place, self.http = place, free_port()
        self.port = free_port(socket.AF_INET)
        make_pair(place)
        (place / "web.yml").write_text(WEB)
        (place / "token").write_text(TOKEN + "\n")
        self.sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.sink.bind(("127.0.0.1", 0))
        (place / "a.toml").write_text(f"""
[service]
http = "127.0.0.1:{self.http}"
control = "{place}/control.sock"
web_config = "{place}/web.yml"
reload_token_file = "{place}/token"
[[listener]]
name = "in"
listen = ["127.0.0.1:{self.port}"]
[[receiver]]
name = "out"
to = "127.0.0.1:{self.sink.getsockname()[1]}"
spoof = false
[[rule]]
to = ["out"]
""")
        argv = [command("samplicator"), "run", "-c", str(place / "a.toml")]
        self.process = Process(argv, namespace=None, directory=place, label="daemon")

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, *, trust: bool = True
    ) -> tuple[int, Any]:
        """Over TLS."""
        context = ssl.create_default_context(cafile=str(self.place / "c.pem")) if trust else unverified()
        connection = http.client.HTTPSConnection("127.0.0.1", self.http, timeout=20, context=context)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if answer.headers.get_content_subtype() == "json" else text
        finally:
            connection.close()

    def control(self, path: str) -> Any:
        """By the local socket, which needs nothing."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(self.place / "control.sock"))
            sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            text = b""
            while piece := sock.recv(65536):
                text += piece
        return json.loads(text.partition(b"\r\n\r\n")[2])

    def up(self) -> bool:
        assert self.process.alive, self.process.tail()
        with contextlib.suppress(OSError, ValueError):
            return bool(self.control("/api/v1/status")["ready"])
        return False

    def lines(self, words: str) -> list[str]:
        return [line for line in self.process.tail(10_000).splitlines() if words in line]


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"prom:{password}".encode()).decode()}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    try:
        wait_for(daemon.up, "the daemon", 30)
        yield daemon
    finally:
        daemon.process.end()
        daemon.sink.close()


class Traffic(threading.Thread):
    """NetFlow v5 at some thousand datagrams per second, and the count of what arrives."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self._to, self._sink = daemon.port, daemon.sink
        self._done = threading.Event()
        self.sent = self.arrived = 0

    def run(self) -> None:
        self._sink.setblocking(False)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", self._to))
            while not self._done.is_set():
                for _ in range(20):
                    sock.send(struct.pack("!HHIIIIBBH", 5, 1, 1, 1, 0, self.sent, 0, 0, 0) + bytes(48))
                    self.sent += 1
                self._take()
                time.sleep(0.01)

    def _take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._sink.recv(2048):
                self.arrived += 1

    def end(self) -> None:
        self._done.set()
        self.join()
        wait_for(lambda: self._take() or self.arrived == self.sent, f"{self.sent} datagrams, not {self.arrived}", 20)


def test_attacks_do_not_touch_the_datapath(daemon: Daemon) -> None:
    traffic = Traffic(daemon)
    traffic.start()
    opened: list[socket.socket] = []
    try:
        # 1,000 connections that say nothing, and half as many that begin a request and never end it
        for number in range(1000):
            sock = socket.create_connection(("127.0.0.1", daemon.http), timeout=20)
            opened.append(sock)
            if number % 2:
                with contextlib.suppress(OSError):
                    sock.sendall(b"GET / HT")
            if number % (BACKLOG // 2) == 0:
                time.sleep(0.03)  # a full queue would make the kernel try again after a second
        assert daemon.ask("GET", "/healthz", basic("secret"))[0] == 200
        # wrong credentials, wrong names, without credentials, far too long
        statuses = [daemon.ask("GET", "/healthz", basic(f"guess {n}"))[0] for n in range(14)]
        assert statuses.count(401) >= 10
        assert statuses[-1] == 429
        assert daemon.ask("GET", "/healthz", basic("secret"))[0] == 200
        for n in range(20):
            status, said = daemon.ask("GET", "/api/v1/status", {"Host": f"evil{n}.example", **basic("secret")})
            assert (status, "service.http_hosts" in said["error"]) == (421, True)
        assert daemon.ask("POST", "/-/reload")[0] == 401
        assert daemon.ask("POST", "/-/takeover")[0] in (401, 403)
        with contextlib.suppress(OSError):
            status, _ = daemon.ask("POST", "/-/reload", {"Content-Length": str(10 << 20)})
            assert status == 401
        big = ssl.create_default_context(cafile=str(daemon.place / "c.pem"))
        raw = socket.create_connection(("127.0.0.1", daemon.http), timeout=20)
        with contextlib.suppress(OSError), big.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
            tls.sendall(b"POST /-/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10485760\r\n\r\n")
            for _ in range(160):
                tls.sendall(bytes(65536))
        # a client of the stream that reads nothing
        slow = socket.create_connection(("127.0.0.1", daemon.http), timeout=20)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tls = big.wrap_socket(slow, server_hostname="127.0.0.1")
        login = basic("secret")["Authorization"]
        tls.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: {login}\r\n\r\n".encode())
        time.sleep(1.5)
        tls.close()
        assert daemon.up()
    finally:
        for sock in opened:
            sock.close()
        traffic.end()
    listener = daemon.control("/api/v1/listeners")[0]
    counters = listener["counters"]
    assert (counters["datagrams"], counters["matched"], listener["kernel_drops"]) == (traffic.sent, traffic.sent, 0)
    receiver = daemon.control("/api/v1/receivers")[0]
    assert (receiver["counters"]["sent"], receiver["failed"]) == (traffic.sent, 0)
    for words in (
        "with wrong credentials: 1,",
        "too many wrong credentials: 1,",
        "host name that is not known here: 1,",
    ):
        assert len(daemon.lines(words)) == 1, words
    assert daemon.lines("Traceback") == []
    assert daemon.control("/api/v1/status")["config"]["reloads"] == 0


def test_files_that_change_are_used_without_a_restart(daemon: Daemon, tmp_path: Path) -> None:
    traffic = Traffic(daemon)
    traffic.start()
    assert daemon.ask("GET", "/healthz", basic("secret"))[0] == 200
    first = (tmp_path / "c.pem").read_text()
    new = tmp_path / "new"
    new.mkdir()
    make_pair(new)
    # the certificate comes first, and for a moment the key is that of the old one
    shutil.move(new / "c.pem", tmp_path / "c.pem")
    time.sleep(0.2)
    shutil.move(new / "k.pem", tmp_path / "k.pem")

    def served() -> str:
        return ssl.get_server_certificate(("127.0.0.1", daemon.http), timeout=20)

    wait_for(lambda: served().strip() == (tmp_path / "c.pem").read_text().strip(), "the new certificate", 30, 0.2)
    assert first != (tmp_path / "c.pem").read_text()
    assert daemon.ask("GET", "/healthz", basic("secret"))[0] == 200
    # a key that does not fit is refused, told, and the old one goes on
    failures = daemon.control("/api/v1/status")["config"]["reload_failures"]
    make_pair(new)
    shutil.copy(new / "k.pem", tmp_path / "k.pem")
    wait_for(lambda: daemon.control("/api/v1/status")["config"]["reload_failures"] > failures, "the refusal", 30, 0.2)
    assert daemon.lines("is not the key of")
    assert daemon.ask("GET", "/healthz", basic("secret"))[0] == 200
    # the pair is whole again; other users, other tokens
    shutil.copy(new / "c.pem", tmp_path / "c.pem")
    other = bcrypt.hashpw(b"other", bcrypt.gensalt(4)).decode()
    (tmp_path / "web.yml").write_text(WEB.replace(HASH, other))
    (tmp_path / "token").write_text("another\n")
    wait_for(lambda: daemon.ask("GET", "/healthz", basic("other"), trust=False)[0] == 200, "the new user", 60, 0.2)
    assert daemon.ask("GET", "/healthz", basic("secret"))[0] in (401, 429)
    for token, status in ((TOKEN, 401), ("another", 200)):
        assert daemon.ask("POST", "/-/reload", {"Authorization": f"Bearer {token}"})[0] == status
    status, said = daemon.ask("GET", "/api/v1/config", basic("other"))
    assert (status, other in json.dumps(said), "another" in json.dumps(said)) == (200, False, False)
    traffic.end()
    counters = daemon.control("/api/v1/listeners")[0]["counters"]
    assert counters["datagrams"] == counters["matched"] == traffic.sent
