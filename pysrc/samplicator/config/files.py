"""Reads a file that an operator names, without ever blocking.

Invariants: only a regular file is read, because a named pipe would wait for a writer, a device may never end, and a
directory has no bytes; the number of bytes is limited. Called by everything that reads a configuration, a token or a
pid file; raises only OSError.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

MAX_FILE_BYTES: Final = 64 << 20
_KINDS: Final = (
    (stat.S_ISDIR, errno.EISDIR, "a directory"),
    (stat.S_ISFIFO, errno.EINVAL, "a pipe"),
    (stat.S_ISSOCK, errno.EINVAL, "a socket"),
    (stat.S_ISCHR, errno.EINVAL, "a device"),
    (stat.S_ISBLK, errno.EINVAL, "a device"),
)


class TooLarge(OSError):
    """The file is larger than the limit."""


def read_regular(path: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of the regular file at `path` (links are followed). Raises OSError, TooLarge for more than `limit`
    bytes, ValueError for a path that cannot be one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        for is_kind, number, words in _KINDS:
            if is_kind(mode):
                raise OSError(number, f"the file is {words}; name a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
        raise TooLarge(errno.EFBIG, f"the file is larger than {size}, which is the limit")
    return data


def read_tokens(path: str) -> tuple[str, ...]:
    """The lines of the file at `path` that are not empty; "" = none. Raises as read_regular, ValueError for a file that
    is not UTF-8 text.
    """
    lines = read_regular(path, 1 << 16).decode().splitlines() if path else []
    return tuple(line.strip() for line in lines if line.strip())


def signature(path: str) -> tuple[int, ...] | None:
    """A value that differs when the file at `path` may have changed; None = the file does not exist. Does not open the
    file."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return None
    return facts.st_dev, facts.st_ino, facts.st_mode, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
