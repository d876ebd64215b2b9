"""Watch: tells when the content of the configuration files changed, also when Kubernetes swaps a ConfigMap's `..data`
link.

inotify(7) on the directories, not on the files: editors and the kubelet replace files, and a watch on a replaced file
is deaf. Invariants: a change is reported once, after things have been quiet for a moment, and only when the bytes
differ; a slow poll catches what inotify cannot see (a directory that was itself replaced, a network file system).
Called by service, on its loop. It must never block the loop longer than reading the configuration files takes, and
never raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Final

IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_ONLYDIR: Final = 0x01000000
_MASK: Final = IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR


def content_hash(files: Iterable[str]) -> str:
    """One hash over names and bytes; a file that cannot be read counts as absent."""
    digest = hashlib.sha256()
    for name in files:
        digest.update(name.encode() + b"\0")
        try:
            with open(name, "rb") as file:
                digest.update(hashlib.sha256(file.read()).digest())
        except OSError:
            digest.update(b"absent")
    return digest.hexdigest()


def directories_of(files: Iterable[str]) -> set[str]:
    """Where to listen: the directory each file is named in, and the one it really lies in."""
    found: set[str] = set()
    for name in files:
        for path in (os.path.abspath(name), os.path.realpath(name)):
            found.add(os.path.dirname(path))
    return found


class Watcher:
    """Calls `changed()` on the running loop when the files' content changed since this object was made or the
    last mark()."""

    def __init__(
        self,
        files: Iterable[str],
        changed: Callable[[], None],
        *,
        quiet_seconds: float = 0.1,
        poll_seconds: float = 15.0,
    ) -> None:
        self._files = tuple(files)
        self._changed = changed
        self._quiet = quiet_seconds
        self._poll = poll_seconds
        self._fd = -1
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watched: dict[str, int] = {}
        self._seen = content_hash(self._files)
        self._settle: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._tick: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._add_watches()
            asyncio.get_running_loop().add_reader(self._fd, self._on_events)
        self._on_tick()

    def mark(self) -> None:
        """A reload is about to read the files: what they hold now is no news any more."""
        self._seen = content_hash(self._files)

    def follow(self, files: Iterable[str]) -> None:
        """From now on these files."""
        if tuple(files) != self._files:
            self._files = tuple(files)
            self.mark()
            self._add_watches()

    def stop(self) -> None:
        for handle in (self._settle, self._tick):
            if handle is not None:
                handle.cancel()
        if self._fd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _add_watches(self) -> None:
        if self._fd < 0:
            return
        wanted = directories_of(self._files)
        for path in wanted:  # adding a directory again is harmless and revives a watch on a replaced one
            descriptor = self._libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(_MASK))
            if descriptor >= 0:
                self._watched[path] = descriptor
        live = {self._watched[path] for path in wanted if path in self._watched}
        for path in [path for path in self._watched if path not in wanted]:
            descriptor = self._watched.pop(path)
            if descriptor not in live:
                self._libc.inotify_rm_watch(self._fd, descriptor)

    def _on_events(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(self._fd, 65536):
                pass
        loop = asyncio.get_running_loop()
        if self._settle is not None:
            if loop.time() - self._since > 10 * self._quiet:  # writes without end must not put it off for ever
                return
            self._settle.cancel()
        else:
            self._since = loop.time()
        self._settle = loop.call_later(self._quiet, self._settled)

    def _settled(self) -> None:
        self._settle = None
        self._compare()

    def _on_tick(self) -> None:
        self._tick = asyncio.get_running_loop().call_later(self._poll, self._on_tick)
        self._compare()

    def _compare(self) -> None:
        self._add_watches()
        now = content_hash(self._files)
        if now != self._seen:
            self._seen = now
            self._changed()
