"""A network of its own for every process that runs tests: nothing that it binds, sends or configures meets another's.

The loopback of the machine is full of others: a second process of the same run, another run, the machine's own
services. Two processes that each ask for a free port get the same one sooner or later. Called by tests/conftest.py
once, before the first test. Must never be called by a process that has threads which need the machine's network.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from typing import Any

from support.process import tool

CLONE_NEWNET = 0x40000000
_outside: list[int] = []  # descriptor of the network that was left


def enter_own() -> None:
    """Moves the calling thread, and all that it starts from now on, into a new network namespace with loopback up.

    The namespace vanishes with the last process in it. Needs root.
    """
    _outside.append(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot make a network namespace: {os.strerror(number)}")
    subprocess.run([tool("ip"), "link", "set", "lo", "up"], check=True, timeout=30)


def run_outside(argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command in the network that was left, to fetch something from a package archive; see subprocess.run."""
    if _outside:
        argv = [tool("nsenter"), f"--net=/proc/self/fd/{_outside[0]}", "--", *argv]
    return subprocess.run(argv, capture_output=True, text=True, pass_fds=_outside, **options)
