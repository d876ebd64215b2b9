"""systemd: tells the service manager how the service is doing, and leaves sockets with it, by the datagram protocol of
sd_notify(3); takes the sockets that the manager passes at the start (sd_listen_fds(3)). Silent where there is none.

Called by service. It must never raise: a manager that does not listen is no reason to stop.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import Final

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START."""
MOST_SOCKETS: Final = 1 << 16
PATIENCE_SECONDS: Final = 5.0
"""How long a message that must arrive waits for room in the manager's queue."""


class Notifier:
    """One per process. watchdog_seconds: how often systemd wants to hear from us at least, 0 = not at all. store_limit:
    sockets that its store takes for us, 0 = none, -1 = not known (systemd before version 254 does not say).
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        env = os.environ if environ is None else environ
        self._address = env.get("NOTIFY_SOCKET", "")
        self._executed = env.get("SYSTEMD_EXEC_PID", "") == str(os.getpid())
        self.watchdog_seconds = 0.0
        usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
        if self._address and usec.isdigit() and (not pid or pid == str(os.getpid())):
            self.watchdog_seconds = int(usec) / 1e6
        limit = env.get("FDSTORE", "")
        self.store_limit = 0 if not self._address else int(limit) if limit.isdigit() else -1

    @property
    def is_managed(self) -> bool:
        """Whether a service manager watches this very process, and would start another one when it ends
        (systemd.exec(5), SYSTEMD_EXEC_PID).
        """
        return bool(self._address) or self._executed

    def send(self, *, sock: socket.socket | None = None, surely: bool = False, **fields: str | int) -> bool:
        """Sends KEY=value lines; False when there is no service manager. sock: goes with them. surely: waits when the
        manager's queue is full.
        """
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        lines = (f"{key}={value}".replace("\n", " ") for key, value in fields.items())
        message = "\n".join(lines).encode(errors="replace")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))] if sock else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(PATIENCE_SECONDS if surely else 0)
                channel.sendmsg([message], rights, 0, address)
        except OSError:
            return False
        return True

    def ready(self, status: str) -> None:
        """Waits for room: the sockets that were stored just before may fill the manager's queue, and a start that it is
        not told of is ended.
        """
        self.send(surely=True, READY=1, STATUS=status, MAINPID=os.getpid())

    def reloading(self) -> None:
        """sd_notify(3): RELOADING=1 carries the moment on CLOCK_MONOTONIC; READY=1 ends it."""
        self.send(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)

    def stopping(self, status: str) -> None:
        self.send(STOPPING=1, STATUS=status)

    def watchdog(self) -> None:
        self.send(WATCHDOG=1)

    def store(self, label: str, sock: socket.socket) -> bool:
        """Leaves a socket in the file descriptor store, from where the next process of this service gets it. FDPOLL=0:
        else systemd would drop a socket with an error (POLLERR), which a UDP socket survives.
        """
        return self.send(sock=sock, surely=True, FDSTORE=1, FDNAME=label, FDPOLL=0)

    def unstore(self, label: str) -> bool:
        """Removes a socket of this label from the store."""
        return self.send(surely=True, FDSTOREREMOVE=1, FDNAME=label)


def take_sockets(environ: MutableMapping[str, str] | None = None) -> list[tuple[str, socket.socket]]:
    """Name and socket of all that the service manager has passed to this process: those of socket units, and those in
    the file descriptor store. The variables are removed: no other process is meant.
    """
    env = os.environ if environ is None else environ
    count, pid, names = (env.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit() or int(count) > MOST_SOCKETS:
        return []
    labels = names.split(":") if names else []
    found = []
    for number in range(int(count)):
        with contextlib.suppress(OSError):  # it is no socket, or not open
            sock = socket.socket(fileno=FIRST_FD + number)
            sock.set_inheritable(False)
            found.append((labels[number] if number < len(labels) else "unknown", sock))
    return found
