"""Processes and waiting for the system tests: started inside a namespace, ended by their own pid, never waited for
by a fixed sleep.

Invariants: every child is bound to the test process (PR_SET_PDEATHSIG), so that an aborted run leaves nothing
behind; every wait has an end. Used by lab.py and the tests. Must never end a process by name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = float(os.environ.get("TEST_PATIENCE", "1"))
"""How many times as long as elsewhere things may take here, e.g. in a guest without KVM."""

PACKAGES = {
    "nfcapd": "nfdump", "nfacctd": "pmacct", "nft": "nftables", "ip": "iproute2", "tc": "iproute2",
    "setpriv": "util-linux",
}  # fmt: skip


def tool(name: str) -> str:
    """Path of a program the tests need; a missing one is a failure that says what to install."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        package = PACKAGES.get(name, name)
        raise AssertionError(f"{name} is not installed (Debian package {package}); `make test` installs it")
    return path


def command(name: str) -> str:
    """Path of one of our own commands, beside the interpreter that runs the tests."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise AssertionError(f"{path} does not exist; `make build` makes it")
    return str(path)


def bench_tool(name: str) -> str:
    """Path of one of the C tools of bench/ (loadgen, sink, classic)."""
    path = Path(__file__).resolve().parents[2] / "build" / "tools" / name
    if not path.exists():
        raise AssertionError(f"{path} does not exist; `make tools` builds it")
    return str(path)


def wait_for(probe: Callable[[], T], what: str, timeout: float = 30.0, interval: float = 0.02) -> T:
    """Polls until `probe` returns something true and hands that back; fails with `what` after `timeout` seconds, or as
    many times that as the machine is slow.
    """
    timeout *= PATIENCE
    end = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}; last seen: {value!r}")
        time.sleep(interval)


class Process:
    """One child process with its output in files. `expected` exit statuses are those that end() does not complain
    about.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        namespace: str | None,
        directory: Path,
        label: str,
        env: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        expected: tuple[int, ...] = (0, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM),
    ) -> None:
        self.argv = [str(word) for word in argv]
        self.label = label
        self.expected = expected
        self.out_path = directory / f"{label}.out"
        self.err_path = directory / f"{label}.err"
        prefix = [tool("ip"), "netns", "exec", namespace] if namespace else []
        # ahead of whatever else the machine does: rates are part of the tests, a starved relay drops for want of CPU
        prefix += [tool("nice"), "-n", "-10", tool("setpriv"), "--pdeathsig", "KILL"]
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.popen = subprocess.Popen(
                prefix + self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=directory,
                env={**os.environ, **(env or {})},
                pass_fds=pass_fds,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid  # `ip netns exec`, nice and setpriv all exec: the pid stays

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def stdout(self) -> str:
        return self.out_path.read_text(errors="replace")

    def stderr(self) -> str:
        return self.err_path.read_text(errors="replace")

    def said(self, text: str) -> bool:
        """True when `text` stands on either output; a process that died before is a failure with its last words."""
        found = text in self.stderr() or text in self.stdout()
        if not found and not self.alive:
            raise AssertionError(f"{self.label} ended with {self.popen.returncode}:\n{self.tail()}")
        return found

    def tail(self, characters: int = 3000) -> str:
        return f"$ {' '.join(self.argv)}\n{self.stdout()[-characters:]}\n{self.stderr()[-characters:]}"

    def send_signal(self, number: int) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 30.0) -> int:
        """Exit status; a process that does not end in time is killed and reported."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.label} did not end within {timeout:g} s:\n{self.tail()}") from None

    def end(self, number: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Sends `number` and waits; the status must be an expected one."""
        self.send_signal(number)
        status = self.wait(timeout)
        if status not in self.expected:
            raise AssertionError(f"{self.label} ended with {status}:\n{self.tail()}")
        return status

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(5)

    def result(self, timeout: float = 60.0) -> Any:
        """Waits for the end and reads the one JSON line that the bench tools print."""
        status = self.wait(timeout)
        lines = [line for line in self.stdout().splitlines() if line.startswith("{")]
        if status != 0 or not lines:
            raise AssertionError(f"{self.label} ended with {status} and no result:\n{self.tail()}")
        return json.loads(lines[-1])

    def rss(self) -> int:
        """Resident memory in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"{self.label} has no VmRSS: gone?")
