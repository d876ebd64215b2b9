"""Has a load go no faster than the machine: it is stopped while too much waits in a socket of those who follow.

A test that counts every datagram must not depend on how fast the machine is, or what else it does: without this, a
relay that gets little of a CPU loses what its buffer cannot hold, and that is no fault of it. Used by tests that send
for long. Invariants: the load runs when the pace ends; the load must be started with --catch-up-ms.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Sequence

from support.process import Process

HIGH_BYTES, LOW_BYTES = 8 << 20, 2 << 20
"""Of a buffer of 64 MiB. What comes until the load is stopped must fit into the rest."""
LOOK_SECONDS = 0.01


def waiting(process: Process) -> int:
    """Bytes in the fullest UDP socket of a process (proc(5): /proc/PID/net/udp, /proc/PID/fd: whose they are)."""
    own, most = set(), 0
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{process.popen.pid}/fd"):
            with contextlib.suppress(OSError):
                own.add(os.readlink(f"/proc/{process.popen.pid}/fd/{name}"))
        for table in ("udp", "udp6"):
            with open(f"/proc/{process.popen.pid}/net/{table}") as file:
                rows = [line.split() for line in file.readlines()[1:]]
            most = max([most, *(int(row[4].partition(":")[2], 16) for row in rows if f"socket:[{row[9]}]" in own)])
    return most


class Pace:
    """One load and the processes that have to keep up with it."""

    def __init__(self, load: Process, followers: Sequence[Process]) -> None:
        self._load = load
        self._followers = followers
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pace", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        stopped = False
        while not self._ended.wait(LOOK_SECONDS) and self._load.alive:
            most = max(waiting(process) for process in self._followers)
            if stopped != (most > (LOW_BYTES if stopped else HIGH_BYTES)):
                stopped = not stopped
                self._load.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)
        if self._load.alive:
            self._load.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
