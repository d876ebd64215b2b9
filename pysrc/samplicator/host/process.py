"""Process: running in the background and the pid file, for `samplicate -f -m FILE`, the limit of descriptors, and
giving memory back. Called by service; all but the last before any thread exists.

Invariant: the command in the foreground ends with status 0 only when the daemon has opened its sockets, otherwise with
the daemon's status.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import resource
import stat
import sys

from samplicator.config.files import read_regular


class Background:
    """The child's end of the pipe on which the command that was typed waits."""

    def __init__(self) -> None:
        self._pipe = _fork()

    def ready(self, *, keep_stderr: bool = False) -> None:
        """Ends the waiting command with status 0, and releases its terminal."""
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1) if keep_stderr else (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        self.tell(0)

    def tell(self, status: int) -> None:
        if self._pipe >= 0:
            with contextlib.suppress(OSError):
                os.write(self._pipe, bytes([status & 0xFF]))
            os.close(self._pipe)
            self._pipe = -1


def _fork() -> int:
    """Returns only in the daemon, which has no parent command and no terminal; returns the pipe's write end."""
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    first = os.fork()
    if first:
        os.close(write_end)
        os.waitpid(first, 0)
        status = os.read(read_end, 1)
        os._exit(status[0] if status else 1)
    os.close(read_end)
    os.setsid()
    if os.fork():
        os._exit(0)
    return write_end


def write_pid_file(path: str) -> None:
    """Writes the file beside its place and moves it there: whatever is at `path`, a symbolic link, a hard link or a
    pipe, is replaced and not written through. Where the directory may not be written to, a file of that name that is
    ours alone is written in place. Raises OSError.
    """
    text = f"{os.getpid()}\n".encode()
    fresh = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    beside = f"{path}.{os.getpid()}"
    try:
        descriptor = os.open(beside, fresh, 0o644)
    except PermissionError:
        _write_in_place(path, text)
        return
    try:
        with open(descriptor, "wb") as file:
            file.write(text)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def _write_in_place(path: str, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "wb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1 or facts.st_uid != os.geteuid():
            raise PermissionError(
                errno.EPERM, "the file must be a regular file that belongs to this user and has no other links", path
            )
        file.truncate()
        file.write(text)


def remove_pid_file(path: str) -> None:
    """Removes the file if it is still ours."""
    with contextlib.suppress(OSError, ValueError):
        ours = int(read_regular(path, 32)) == os.getpid()
        if ours and not os.path.islink(path):
            os.unlink(path)


def raise_descriptor_limit() -> int:
    """Raises RLIMIT_NOFILE to its hard limit; returns what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard or hard == resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


def give_back_memory() -> None:
    """After a configuration was read: drops what is unreachable, has the kernel take back what malloc keeps for later
    (malloc_trim(3), glibc only). What is left the first time, modules above all, the collector never looks at again.
    """
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
