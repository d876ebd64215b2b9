"""Notify: tells systemd how the service is doing, by the datagram protocol of sd_notify(3); silent where there is no
systemd.

Called by service. It must never raise: a supervisor that does not listen is no reason to stop.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """One per process. watchdog_seconds: how often systemd wants to hear from us at least, 0 = not at all."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        env = os.environ if environ is None else environ
        self._address = env.get("NOTIFY_SOCKET", "")
        self._executed = env.get("SYSTEMD_EXEC_PID", "") == str(os.getpid())
        self.watchdog_seconds = 0.0
        usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
        if self._address and usec.isdigit() and (not pid or pid == str(os.getpid())):
            self.watchdog_seconds = int(usec) / 1e6

    @property
    def is_managed(self) -> bool:
        """Whether a service manager watches this very process, and would start another one when it ends
        (systemd.exec(5), SYSTEMD_EXEC_PID).
        """
        return bool(self._address) or self._executed

    def send(self, **fields: str | int) -> bool:
        """Sends KEY=value lines; False when there is no service manager."""
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        lines = (f"{key}={value}".replace("\n", " ") for key, value in fields.items())
        message = "\n".join(lines).encode(errors="replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message, address)
        except OSError:
            return False
        return True

    def ready(self, status: str) -> None:
        self.send(READY=1, STATUS=status, MAINPID=os.getpid())

    def reloading(self) -> None:
        """sd_notify(3): RELOADING=1 carries the moment on CLOCK_MONOTONIC; READY=1 ends it."""
        self.send(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)

    def stopping(self, status: str) -> None:
        self.send(STOPPING=1, STATUS=status)

    def watchdog(self) -> None:
        self.send(WATCHDOG=1)
