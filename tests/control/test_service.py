"""The service as a process on loopback: start, reload by signal and by file, stop, exit statuses, systemd."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from samplicator.cli.control import request
from samplicator.http import endpoints
from samplicator.service.pages import Pages
from samplicator.supervisor.refusal import BuildError
from support.hosts import Load, free_port

PLACE = "@control@"
RUN = """
import sys
from samplicator.config.toml.load import load_toml
from samplicator.service.service import Options, run_service
sys.exit(run_service(lambda: load_toml(sys.argv[1]), options=Options(**eval(sys.argv[2]))))
"""


def wait(what: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class Daemon:
    """The service with a configuration of one listener and one receiver."""

    def __init__(
        self, place: Path, options: dict[str, object] | None = None, text: str = "", service: str = ""
    ) -> None:
        self.place, self.port, self.file = place, free_port(), place / "a.toml"
        self.control = str(place / "control")
        service = service.replace(PLACE, self.control)
        self.service = f'http = ""\ncontrol = ""\n{service}' if "http" not in service else service
        self.collector = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.collector.bind(("127.0.0.1", 0))
        self.collector.settimeout(10)
        self.write(text)
        self.log = place / "log"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(place / "notify"))
        self.notify.settimeout(15)
        env = {**os.environ, "NOTIFY_SOCKET": str(place / "notify"), "WATCHDOG_USEC": "600000"}
        env.pop("JOURNAL_STREAM", None)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, str(self.file), repr(options or {})], stderr=log, stdout=log, env=env
            )

    def write(self, more: str = "") -> None:
        new = self.place / "new"
        new.write_text(
            f'[service]\n{self.service}\n[[listener]]\nname = "in"\nlisten = ["127.0.0.1:{self.port}"]\n'
            f'[[receiver]]\nname = "one"\nto = "127.0.0.1:{self.collector.getsockname()[1]}"\n'
            f'[[rule]]\nto = ["one"]\n{more}\n'
        )
        os.replace(new, self.file)

    def said(self, text: str, count: int = 1) -> bool:
        found = self.log.read_text().count(text) >= count
        assert found or self.process.poll() is None, self.log.read_text()
        return found

    def told(self) -> str:
        return self.notify.recv(4000).decode()

    def until_told(self, word: str) -> list[str]:
        """What systemd heard up to the first message with this word."""
        heard = [self.told()]
        while word not in heard[-1]:
            heard.append(self.told())
        return heard

    def echo(self, payload: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
            exporter.sendto(payload, ("127.0.0.1", self.port))
        return self.collector.recv(4000)

    def ask(self, page: str, method: str = "GET") -> tuple[int, bytes]:
        return request(self.control, method, page, timeout=30.0)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(15)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    started: list[Daemon] = []

    def make(*args: object, **kwargs: object) -> Daemon:
        started.append(Daemon(tmp_path, *args, **kwargs))  # type: ignore[arg-type]
        return started[-1]

    yield make
    for daemon in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.end()
        daemon.process.kill()
        daemon.collector.close()
        daemon.notify.close()


def test_life_as_systemd_sees_it(start: Callable[..., Daemon]) -> None:
    daemon = start()
    ready = daemon.until_told("READY=1")[-1]
    assert "STATUS=plan 1: 1 listeners, 1 receivers, 1 workers" in ready
    assert daemon.echo(b"hello") == b"hello"
    assert daemon.said("receiver one: 127.0.0.1:")
    assert daemon.said("from this host's address")
    assert daemon.said("worker 0 on any CPU")
    assert daemon.said("receive buffer ")
    daemon.until_told("WATCHDOG=1")
    daemon.process.send_signal(signal.SIGHUP)
    heard = daemon.until_told("READY=1")
    assert [word for word in heard if word.startswith("RELOADING=1\nMONOTONIC_USEC=")]
    assert "plan 2" in heard[-1]
    daemon.process.send_signal(signal.SIGTERM)
    assert "STOPPING=1" in daemon.until_told("STOPPING=1")[-1]
    assert daemon.process.wait(15) == 0


def test_a_stopped_worker_starves_the_watchdog(start: Callable[..., Daemon]) -> None:
    """SIGSTOP stops everything, so only the absence of heartbeats shows here: none while it sleeps, then again."""
    daemon = start()
    daemon.until_told("WATCHDOG=1")
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    daemon.notify.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            daemon.notify.recv(1000)
    time.sleep(0.5)
    with pytest.raises(BlockingIOError):
        daemon.notify.recv(1000)
    daemon.notify.settimeout(15)
    daemon.process.send_signal(signal.SIGCONT)
    daemon.until_told("WATCHDOG=1")


def test_reload_by_changed_file_and_by_signal(start: Callable[..., Daemon]) -> None:
    daemon = start()
    daemon.until_told("READY=1")
    daemon.write('[[receiver]]\nname = "two"\nto = "127.0.0.1:9"\n')
    wait(lambda: daemon.said("receivers +two"))
    daemon.file.write_text("[[receiver]\n")
    wait(lambda: daemon.said("failed, the running plan stays"))
    assert re.search(r"a\.toml:1: ", daemon.log.read_text())
    assert daemon.echo(b"still") == b"still"
    daemon.write()
    wait(lambda: daemon.said("receivers -two"))
    daemon.process.send_signal(signal.SIGHUP)
    wait(lambda: daemon.said("reload (SIGHUP)"))
    assert daemon.echo(b"after") == b"after"
    time.sleep(0.4)
    assert daemon.log.read_text().count("info    reload (") == 3, daemon.log.read_text()


def test_signals_in_a_row_cost_few_reloads(start: Callable[..., Daemon]) -> None:
    daemon = start()
    daemon.until_told("READY=1")
    for _ in range(200):
        daemon.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert daemon.echo(b"x") == b"x"
    assert 1 <= daemon.log.read_text().count("reload (SIGHUP)") <= 200
    assert daemon.end() == 0


def test_log_level_and_format_follow_the_file(start: Callable[..., Daemon]) -> None:
    daemon = start()
    daemon.until_told("READY=1")
    daemon.service = 'http = ""\ncontrol = ""\nlog_format = "json"'
    daemon.write()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.until_told("READY=1")
    daemon.process.send_signal(signal.SIGHUP)
    wait(lambda: daemon.said('"message": "reload (SIGHUP)'))


@pytest.mark.parametrize(("legacy", "status"), [(False, 2), (True, 1)])
def test_configuration_errors(start: Callable[..., Daemon], legacy: bool, status: int) -> None:
    daemon = start({"legacy": legacy}, text='[[receiver]]\nname = "x"\n')
    assert daemon.process.wait(15) == status
    assert "error: " in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()


def test_what_only_the_start_finds_out(start: Callable[..., Daemon]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        listener = f'[[listener]]\nname = "two"\nlisten = ["127.0.0.1:{other.getsockname()[1]}"]\n'
        daemon = start({"legacy": True}, text=listener)
        assert daemon.process.wait(15) == 1
    assert "listener[1]: listener 'two' cannot listen at" in daemon.log.read_text()
    assert "another program uses port" in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()


def test_what_this_host_lacks_is_waited_for(start: Callable[..., Daemon]) -> None:
    """A port that another program has, a name that does not resolve: the rest works, and the port is taken when it is
    free."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        text = (
            f'[[listener]]\nname = "two"\nlisten = ["127.0.0.1:{port}"]\n'
            '[[receiver]]\nname = "dead"\nto = "nowhere.invalid:9"\n[[rule]]\nto = ["dead"]\n'
            '[[listener]]\nname = "vlan"\nlisten = ["0.0.0.0:9"]\ninterface = "nosuch9"\n'
        )
        daemon = start(text=text, service=f'http = ""\ncontrol = "{PLACE}"')
        daemon.until_told("READY=1")
        assert daemon.echo(b"hello") == b"hello"
        assert daemon.said("listener 'two' is down: another program uses port")
        assert daemon.said("listener 'vlan' is down: there is no interface nosuch9")
        assert daemon.said("UNREACHABLE now (the host name does not resolve)")
        status, page = daemon.ask("/readyz")
        assert status == 503
        assert b"listener 'vlan' is down: there is no interface" in page
        assert b"receiver 'dead' is unreachable: the host name does not resolve" in page
        listeners = {item["name"]: item for item in json.loads(daemon.ask("/api/v1/listeners")[1])}
        assert (listeners["vlan"]["state"], listeners["vlan"]["up"]) == ("down", False)
        assert listeners["vlan"]["state_why"] == "there is no interface nosuch9"
        receivers = {item["name"]: item for item in json.loads(daemon.ask("/api/v1/receivers")[1])}
        dead = receivers["dead"]
        assert (dead["state"], dead["state_why"]) == ("unreachable", "the host name does not resolve")
        assert dead["counters"]["offered"] == dead["counters"]["failed_no_route"] == 1
        metrics = daemon.ask("/metrics")[1].decode()
        assert 'samplicator_listener_up{listener="vlan"} 0' in metrics
        assert 'samplicator_receiver_up{receiver="dead"} 0' in metrics
        # a reload of the same file is accepted: it takes nothing away
        status, answer = daemon.ask("/-/reload", "POST")
        assert status == 200, answer
        assert any("nowhere.invalid" in warning for warning in json.loads(answer)["warnings"])
    wait(lambda: daemon.said("listener 'two' is up"))
    daemon.port = port
    assert daemon.echo(b"late") == b"late"


def test_an_http_address_that_is_taken(start: Callable[..., Daemon]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        daemon = start(service=f'http = "127.0.0.1:{other.getsockname()[1]}"\ncontrol = ""')
        assert daemon.process.wait(20) == 1
    assert "http" in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()


def test_a_default_socket_that_cannot_be_made_only_degrades(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may not write to /run still gets his datagrams; one who named the path himself is told."""

    def refused(where: str) -> socket.socket:
        raise PermissionError(13, f"cannot make {where}")

    monkeypatch.setattr(endpoints, "open_control", refused)
    monkeypatch.setattr(endpoints, "open_tcp", lambda where: socket.socket())
    plan = '[[listener]]\nname = "a"\nlisten = ["127.0.0.1:1"]\n[[receiver]]\nname = "r"\nto = "192.0.2.1:1"\n'
    for line, degrades in (("", True), ('control = "/run/x"', False)):
        loaded = load(f'[service]\nhttp = "127.0.0.1:1"\n{line}\n{plan}[[rule]]\nto = ["r"]\n')
        pages = Pages()
        if degrades:
            pages.open(loaded.config.service)
            assert "cannot make /run/samplicator/control.sock" in pages.degraded[0]
            for sock in pages.shared().values():
                sock.close()
        else:
            with pytest.raises(BuildError, match='cannot make /run/x; write another path, or "" for none') as refusal:
                pages.open(loaded.config.service)
            assert refusal.value.where == ("service", "control")


def test_idle_timeout(start: Callable[..., Daemon]) -> None:
    daemon = start({"idle_timeout_ms": 500})
    daemon.until_told("READY=1")
    for _ in range(8):
        daemon.echo(b"x")
        time.sleep(0.1)
    begun = time.monotonic()
    assert daemon.process.wait(10) == 5
    assert 0.3 < time.monotonic() - begun < 3


def test_pid_file(start: Callable[..., Daemon], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    daemon = start({"pid_file": str(pid)})
    daemon.until_told("READY=1")
    assert int(pid.read_text()) == daemon.process.pid
    assert daemon.end(signal.SIGINT) == 0
    assert not pid.exists()


def test_background(start: Callable[..., Daemon], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    daemon = start({"background": True, "pid_file": str(pid)})
    assert daemon.process.wait(15) == 0
    number = int(pid.read_text())  # the sockets are there when the command returns
    try:
        assert number != daemon.process.pid
        assert daemon.echo(b"hello") == b"hello"
        assert os.getsid(number) != os.getsid(0)
    finally:
        os.kill(number, signal.SIGTERM)
    wait(lambda: not pid.exists())


def test_background_that_cannot_start_says_so(start: Callable[..., Daemon]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        listener = f'[[listener]]\nname = "two"\nlisten = ["127.0.0.1:{other.getsockname()[1]}"]\n'
        daemon = start({"background": True, "legacy": True}, text=listener)
        assert daemon.process.wait(15) == 1
    assert "cannot listen" in daemon.log.read_text()


def test_debug_text_is_the_ancestors(start: Callable[..., Daemon]) -> None:
    daemon = start({"debug": 1}, text='[[rule]]\nfrom = ["10.0.0.0/8"]\nto = ["one"]\n')
    daemon.until_told("READY=1")
    daemon.echo(b"12345")
    wait(lambda: daemon.said("  sent to "))
    text = daemon.log.read_text()
    assert re.search(r"^received 5 bytes from 127\.0\.0\.1:\d+$", text, re.MULTILINE)
    assert re.search(rf"^  sent to 127\.0\.0\.1:{daemon.collector.getsockname()[1]}$", text, re.MULTILINE)
    assert re.search(r"^Not matching 10\.0\.0\.0/8$", text, re.MULTILINE)
