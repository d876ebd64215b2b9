"""Aliases: the file that holds the table of aliases, and its rows for people.

The table is a file beside the control socket, mapped into memory. Most aliases are hashes, which are always the same.
The file keeps those that are not: where two hashes are equal, or where two sessions of one exporter use the same
domain. So these are the same after a restart, too. Called by the supervisor.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import stat
import time
from collections.abc import Sequence
from typing import Any, Final

from samplicator._fastpath import ALIAS_BYTES, ALIAS_FIELDS, Aliases
from samplicator.config.address import address_text
from samplicator.readings import AliasReading

log = logging.getLogger(__name__)

MODE: Final = 0o600


class Table:
    """The table, and the file that it is in. A file is of one process alone (flock(2)): two that changed the table
    would mix it up.
    """

    def __init__(self, handle: Aliases, fd: int = -1) -> None:
        """fd: of the file, locked, which belongs to this object from now on; -1 = the table is in memory."""
        self.handle = handle
        self._fd = fd

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def release(self) -> None:
        """Lets another process lock the file. No worker of this process may run before regain()."""
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def regain(self) -> None:
        """The other process has changed nothing and never will."""
        if self._fd >= 0:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                log.warning("the file of assigned domains cannot be locked again: %s", error.strerror)


def make(path: str) -> Table:
    """The table in the file, or, if the file cannot be used (or path is ""), in memory of this process."""
    if path:
        try:
            return _kept(path)
        except (OSError, ValueError) as error:
            log.warning(
                "assigned domains will not survive a restart: %s: %s", path, getattr(error, "strerror", "") or error
            )
    return Table(Aliases())


def _kept(path: str) -> Table:
    """The file as memory, made if it is missing; its blocks are there, so that writing to it cannot fail. One of
    another size is replaced and not cut off: a process that takes over maps it while the process before still does,
    and that one would get SIGBUS (mmap(2)).
    """
    fd = _locked(path)
    try:
        if os.fstat(fd).st_size not in (0, ALIAS_BYTES):
            os.unlink(path)
            os.close(fd)
            fd = -1
            fd = _locked(path)
        os.posix_fallocate(fd, 0, ALIAS_BYTES)
        return Table(Aliases(mmap.mmap(fd, ALIAS_BYTES)), fd)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise


def _locked(path: str) -> int:
    """Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise OSError(0, "the file does not belong to this user")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(0, "another samplicator uses this file; give each its own service.control") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def rows(table: Table | None, after: int, limit: int) -> tuple[list[AliasReading], int]:
    """A page of who has which alias, and where the next one begins, 0 = the end."""
    if table is None:
        return [], 0
    found, following = table.handle.list(after, limit)
    return [_reading(row) for row in found], following


def _reading(row: Sequence[Any]) -> AliasReading:
    named = dict(zip(ALIAS_FIELDS, row, strict=True))
    address: bytes = named["address"]
    return AliasReading(
        alias=named["alias"],
        address=address_text(address),
        port=named["port"],
        protocol=named["kind"],
        domain=named["domain"],
        shared=named["shared"],
        silent_seconds=max(0, int(time.monotonic()) - named["seen_s"]),
    )
