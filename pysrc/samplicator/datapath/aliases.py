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


def make(path: str) -> Aliases:
    """The table in the file, or, if the file cannot be used (or path is ""), in memory of this process."""
    if path:
        try:
            return Aliases(_mapped(path))
        except (OSError, ValueError) as error:
            log.warning(
                "assigned domains will not survive a restart: %s: %s", path, getattr(error, "strerror", "") or error
            )
    return Aliases()


def _mapped(path: str) -> mmap.mmap:
    """The file as memory, made or brought to its size; its blocks are there, so that writing to it cannot fail. It is
    this process's alone while it is mapped (mmap keeps the descriptor, and so flock(2)'s lock): two that changed the
    table would mix it up, and one of another version would cut it off under the other, which is SIGBUS (mmap(2)).
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise OSError(0, "the file does not belong to this user")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by the mapping, which has the descriptor, too
        except BlockingIOError:
            raise OSError(0, "another samplicator uses this file; give each its own service.control") from None
        if status.st_size != ALIAS_BYTES:
            os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, ALIAS_BYTES)
        return mmap.mmap(fd, ALIAS_BYTES)
    finally:
        os.close(fd)


def rows(aliases: Aliases | None, after: int, limit: int) -> tuple[list[AliasReading], int]:
    """A page of who has which alias, and where the next one begins, 0 = the end."""
    if aliases is None:
        return [], 0
    found, following = aliases.list(after, limit)
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
