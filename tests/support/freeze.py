"""Stops one thread of a process and nothing else (ptrace(2), PTRACE_SEIZE and PTRACE_INTERRUPT), as a system call that
never returns would.

Invariant: the thread goes on when the block ends. Used by tests of the watchdog. Must never be used on a process that
is not the test's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, thread: int) -> None:
    if _libc.ptrace(request, thread, None, None) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"ptrace {request:#x}")


def thread_named(pid: int, name: str) -> int:
    """Raises AssertionError."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == name:
            return int(task.name)
    raise AssertionError(f"process {pid} has no thread {name}")


@contextlib.contextmanager
def held(thread: int) -> Iterator[None]:
    """A thread of this process, by its native id, does nothing within: another process sees to that."""
    holder = subprocess.Popen([sys.executable, __file__, str(thread)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        yield
    finally:
        holder.stdin.close()
        holder.wait(20)
        holder.stdout.close()


@contextlib.contextmanager
def frozen(pid: int, name: str) -> Iterator[None]:
    """The thread does nothing within."""
    with _stopped(thread_named(pid, name)):
        yield


@contextlib.contextmanager
def _stopped(thread: int) -> Iterator[None]:
    _ptrace(SEIZE, thread)
    _ptrace(INTERRUPT, thread)
    os.waitpid(thread, WALL)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the process has ended
            _ptrace(DETACH, thread)


if __name__ == "__main__":
    with _stopped(int(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
