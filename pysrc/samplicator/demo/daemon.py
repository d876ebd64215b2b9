"""The demo's daemon: `samplicator run` as a process of its own, with a configuration in a directory of its own.

Used by the demo. Invariant: it ends with the process that started it, whatever happens to that one.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from samplicator.demo.traffic import Receiver

START_SECONDS: Final = 20.0
PR_SET_PDEATHSIG: Final = 1  # prctl(2)


class Failed(Exception):
    """The demo cannot go on; the text says why."""


def free_port(kind: socket.SocketKind, preferred: int = 0) -> int:
    """A port of 127.0.0.1 that is free now."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:  # connections of a run before are no reason to take another port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise Failed("no free port on 127.0.0.1")


def may_spoof() -> bool:
    """Whether raw sockets can be opened (CAP_NET_RAW)."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    except OSError:
        return False
    return True


@dataclass(slots=True, eq=False)
class Daemon:
    """The daemon as a process of its own."""

    directory: Path
    listen: tuple[str, int]
    http: str
    process: subprocess.Popen[bytes] | None = None
    config: Path = field(init=False)

    def __post_init__(self) -> None:
        self.config = self.directory / "samplicator.toml"

    def configure(self, receivers: Sequence[Receiver]) -> None:
        """Writes its configuration."""
        text = f'[service]\nhttp = "{self.http}"\ncontrol = "{self.directory}/control.sock"\nlog_level = "warning"\n'
        text += f'\n[[listener]]\nname = "demo"\nlisten = ["{self.listen[0]}:{self.listen[1]}"]\n'
        for receiver in receivers:
            host, port = receiver.address
            spoof = str(receiver.spoof).lower()
            text += f'\n[[receiver]]\nname = "{receiver.label}"\nto = "{host}:{port}"\nspoof = {spoof}\nprobe = "off"\n'
        names = ", ".join(f'"{receiver.label}"' for receiver in receivers)
        text += f'\n[[rule]]\nfrom = ["127.1.0.0/16"]\nto = [{names}]\n'
        self.config.write_text(text)

    def start(self) -> None:
        """Starts it and waits until it is ready. Raises Failed with what it said."""
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "samplicator", "run", "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends the daemon in order
                preexec_fn=_end_with_parent,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Failed(f"the daemon ended at once (status {self.process.returncode}):\n{self.log()}")
            with contextlib.suppress(OSError):
                self.get("/readyz")
                return
            time.sleep(0.05)
        raise Failed(f"the daemon was not ready after {START_SECONDS:g} s:\n{self.log()}")

    def get(self, page: str) -> str:
        """A page of its HTTP interface. Raises OSError."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.http}{page}", timeout=5) as answer:
            return str(answer.read().decode())

    def metrics(self) -> dict[str, float]:
        """Its series by name and labels, as `name{label="value"}`; {} when it does not answer."""
        try:
            text = self.get("/metrics")
        except OSError:
            return {}
        return series(text)

    def log(self) -> str:
        """The end of what it wrote."""
        try:
            return (self.directory / "log").read_text(errors="replace")[-4000:].strip()
        except OSError:
            return ""

    def stop(self) -> int:
        """Ends it; its exit status."""
        if self.process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(5)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def series(text: str) -> dict[str, float]:
    """Our series in Prometheus text, by name and labels as they stand there."""
    return {name: float(value) for name, value in re.findall(r"^(samplicator_.*) (\S+)$", text, re.MULTILINE)}
