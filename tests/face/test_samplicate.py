"""The drop-in's face: usage, exit statuses, what it opens, what it prints. (What options mean is tested with the
configuration.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from samplicator.cli.samplicate import USAGE
from samplicator.config.legacy.command_line import FLAGS, LONG_FLAGS, LONG_WITH_ARGUMENT, WITH_ARGUMENT
from samplicator.demo.daemon import free_port


def run(scripts: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([scripts / "samplicate", *words], capture_output=True, text=True, timeout=60)


@contextlib.contextmanager
def started(scripts: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [scripts / "samplicate", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        process.communicate(timeout=30)


def collector() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(10)
    return sock


def exchange(port: int, sock: socket.socket, payload: bytes = b"flow") -> bytes:
    """Sends to the relay until a copy arrives: it may not listen yet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        sock.settimeout(0.2)
        for _ in range(75):
            exporter.sendto(payload, ("127.0.0.1", port))
            with contextlib.suppress(TimeoutError):
                return sock.recv(65535)
    raise AssertionError("no copy arrived")


def test_usage_names_every_option() -> None:
    for letter in FLAGS + WITH_ARGUMENT:
        assert f" -{letter}" in USAGE, letter
    for name in (*LONG_FLAGS, *LONG_WITH_ARGUMENT):
        assert f"--{name}" in USAGE or name == "help"
    assert max(map(len, USAGE.splitlines())) <= 100


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["-S", "-h"], ["-p", "2055", "-h", "nonsense"]])
def test_help_goes_to_stderr_with_status_0(scripts: Path, words: list[str]) -> None:
    done = run(scripts, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", USAGE)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "You have to specify at least one receiver, exiting"),
        (["-S"], "You have to specify at least one receiver, exiting"),
        (["-Z", "192.0.2.1/9"], "-Z: there is no such option"),
        (["-p"], "-p: this option needs an argument"),
        (["-p", "70000", "192.0.2.1/9"], "70000"),
        (["-c", "/nonexistent", "192.0.2.1/9"], "/nonexistent"),
        (["192.0.2.1/9/0"], "frequency"),
        (["--worker", "2", "192.0.2.1/9"], "--workers"),
    ],
)
def test_errors_have_status_1(scripts: Path, words: list[str], text: str) -> None:
    done = run(scripts, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert text in done.stderr


def test_bind_error_has_status_1(scripts: Path) -> None:
    with collector() as taken:
        port = taken.getsockname()[1]
        done = run(scripts, "-s", "127.0.0.1", "-p", str(port), "192.0.2.1/9")
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr


def test_version_and_check(scripts: Path) -> None:
    assert run(scripts, "--version").stdout == "samplicate 0.1.0 (samplicator)\n"
    done = run(scripts, "--check", "-p", "2055", "192.0.2.1/9", "192.0.2.2/9")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "samplicate: ok: 1 listener (1 port), 2 receivers (2 udp), 1 rule, 1 worker\n"
    assert run(scripts, "--check", "192.0.2.1:9").returncode == 1


def test_t_ends_with_status_5(scripts: Path) -> None:
    started_at = time.monotonic()
    done = run(scripts, "-s", "127.0.0.1", "-p", str(free_port(socket.SOCK_DGRAM)), "-t", "300", "192.0.2.1/9")
    assert done.returncode == 5
    assert time.monotonic() - started_at > 0.3


def test_forwards_opens_only_udp_and_stops_on_sigterm(scripts: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    with collector() as sock:
        to = f"127.0.0.1/{sock.getsockname()[1]}"
        with started(scripts, "-s", "127.0.0.1", "-p", str(port), to) as process:
            assert exchange(port, sock) == b"flow"
            opened = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")}
            inodes = {name.removeprefix("socket:[").rstrip("]") for name in opened if name.startswith("socket:")}
            tables = {
                line.split()[9]
                for table in ("tcp", "tcp6")
                for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            }
            unix = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:] if "/" in line}
            assert not inodes & tables
            assert not inodes & unix
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_d_prints_each_datagram_and_copy(scripts: Path, tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    rules = tmp_path / "rules"
    with collector() as sock:
        rules.write_text("198.51.100.0/24: 127.0.0.1/9\n")
        to = f"127.0.0.1/{sock.getsockname()[1]}"
        with started(scripts, "-s", "127.0.0.1", "-p", str(port), "-c", str(rules), "-d", to) as process:
            exchange(port, sock)
            process.send_signal(signal.SIGTERM)
            _, text = process.communicate(timeout=30)
    assert "received 4 bytes from 127.0.0.1:" in text
    assert "Not matching 198.51.100.0/24" in text
    assert f"  sent to 127.0.0.1:{sock_port(to)}" in text


def sock_port(receiver: str) -> str:
    return receiver.partition("/")[2]


def test_f_and_m(scripts: Path, tmp_path: Path) -> None:
    """To the background: the command ends when the daemon has its sockets; the pid file is there as long as the
    daemon.
    """
    port, pid_file = free_port(socket.SOCK_DGRAM), tmp_path / "pid"
    with collector() as sock:
        to = f"127.0.0.1/{sock.getsockname()[1]}"
        done = run(scripts, "-f", "-m", str(pid_file), "-s", "127.0.0.1", "-p", str(port), to)
        assert done.returncode == 0
        pid = int(pid_file.read_text())
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
                exporter.sendto(b"at once", ("127.0.0.1", port))
            assert sock.recv(100) == b"at once"
        finally:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not pid_file.exists()
    with collector() as taken:
        done = run(scripts, "-f", "-s", "127.0.0.1", "-p", str(taken.getsockname()[1]), "127.0.0.1/9")
        assert done.returncode == 1
