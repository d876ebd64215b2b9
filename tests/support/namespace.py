"""A network namespace, and the door into it: commands, calls and sockets of its own.

Made and deleted by lab.py only. Must never leave a thread behind in a namespace.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from support.process import tool

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
_libc = ctypes.CDLL(None, use_errno=True)


def run(*argv: str, stdin: str | None = None) -> str:
    """Runs a command to its end; a failure shows what it said."""
    done = subprocess.run([tool(argv[0]), *argv[1:]], input=stdin, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr or done.stdout}\n{stdin or ''}"
    return done.stdout


def alone() -> None:
    """The calling thread has a network namespace of its own from now on, with a loopback and nothing else. It goes
    with the thread and its sockets. Raises OSError.
    """
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


class Namespace:
    """One network namespace, and the door into it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.name, *words)

    def run(self, *argv: str) -> str:
        return run("ip", "netns", "exec", self.name, *argv)

    def call(self, function: Callable[[], T]) -> T:
        """Calls `function` in a short-lived thread that has entered the namespace (setns acts on one thread)."""
        result: list[T] = []
        failure: list[BaseException] = []

        def inside() -> None:
            try:
                with open(f"/run/netns/{self.name}") as door:
                    if _libc.setns(door.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"setns {self.name}")
                result.append(function())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def socket(self, family: int, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> socket.socket:
        """A socket of this namespace, usable from any thread."""
        return self.call(lambda: socket.socket(family, kind, protocol))

    def sysctl(self, **values: object) -> None:
        """Writes net.* settings: dots of the name are written as double underscores."""

        def write() -> None:
            for name, value in values.items():
                Path("/proc/sys/net", *name.split("__")).write_text(str(value))

        self.call(write)
