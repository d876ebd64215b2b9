"""A network of its own for every process that runs tests: nothing that it binds, sends or configures meets another's.

The loopback of the machine is full of others: a second process of the same run, another run, the machine's own
services. Two processes that each ask for a free port get the same one sooner or later. Called by tests/conftest.py
once, before the first test. Must never be called by a process that has threads which need the machine's network.
The few tests that install packages into a root of their own fetch them with outside().
"""

from __future__ import annotations

import ctypes
import os
import subprocess

from support.process import tool

CLONE_NEWNET = 0x40000000
_left: list[int] = []
"""A descriptor of the network namespace that enter_own() left."""


def enter_own() -> None:
    """Moves the calling thread, and all that it starts from now on, into a new network namespace with loopback up.

    The namespace vanishes with the last process in it. Needs root.
    """
    _left.append(os.open("/proc/self/ns/net", os.O_RDONLY))
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot make a network namespace: {os.strerror(number)}")
    subprocess.run([tool("ip"), "link", "set", "lo", "up"], check=True, timeout=30)


def outside() -> list[str]:
    """The words before a command that fetches packages: it runs in the network that this process came from."""
    return [tool("nsenter"), f"--net=/proc/{os.getpid()}/fd/{_left[0]}"] if _left else []
