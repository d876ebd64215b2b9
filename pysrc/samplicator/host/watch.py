"""Watch: tells when the content of the configuration files changed, also when Kubernetes swaps a ConfigMap's `..data`
link.

inotify(7) on the directories, not on the files: editors and the kubelet replace files, and a watch on a replaced file
is deaf. Invariants: a change is reported once, after the files have been quiet for a moment (an editor writes in
pieces), and only when the bytes differ; a slow poll catches what inotify cannot see (a directory that was itself
replaced, a network file system); what is not a regular file counts as absent and is not opened for longer than it takes
to see that. Called by service, on its loop. It must never block the loop longer than reading the configuration files
takes, which it does only when they may have changed, and never raise. What others write beside our files must cost next
to nothing: the kernel tells about all of a directory, so it is asked a few times a second at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import struct
from collections.abc import Callable, Iterable
from typing import Final

from samplicator.config.files import read_regular, signature

IN_MODIFY: Final = 0x2
IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ONLYDIR: Final = 0x01000000
_EVENT: Final = struct.Struct("@iIII")  # struct inotify_event: watch, mask, cookie, bytes of the name that follows
_LOST: Final = IN_DELETE_SELF | IN_MOVE_SELF | IN_Q_OVERFLOW | IN_IGNORED
"""Events after which the watches themselves, or what they told, must be looked at."""
_MASK: Final = IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_TO | IN_CREATE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR


def content_hash(files: Iterable[str]) -> str:
    """One hash over names and bytes; a file that cannot be read counts as absent."""
    digest = hashlib.sha256()
    for name in files:
        digest.update(name.encode() + b"\0")
        try:
            digest.update(hashlib.sha256(read_regular(name)).digest())
        except (OSError, ValueError):
            digest.update(b"absent")
    return digest.hexdigest()


def directories_of(files: Iterable[str]) -> set[str]:
    """Where to listen: the directory each file is named in, and the one it really lies in."""
    found: set[str] = set()
    for name in files:
        for path in (os.path.abspath(name), os.path.realpath(name)):
            found.add(os.path.dirname(path))
    return found


QUIET_SECONDS: Final = 0.4
"""So long nothing is written before a change counts. Pieces of one save by an editor come closer together."""


class Watcher:
    """Calls `changed()` on the running loop when the files' content changed since this object was made or the
    last mark()."""

    def __init__(
        self,
        files: Iterable[str],
        changed: Callable[[], None],
        *,
        quiet_seconds: float = QUIET_SECONDS,
        poll_seconds: float = 15.0,
    ) -> None:
        """quiet_seconds: see QUIET_SECONDS; half of it passes between two looks at what the kernel tells."""
        self._files = tuple(files)
        self._changed = changed
        self._quiet = quiet_seconds
        self._poll = poll_seconds
        self._fd = -1
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watched: dict[str, int] = {}
        self._ours: set[str] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._certain = False
        self._looked = self._signatures()
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
        self._looked = self._signatures()
        self._seen = content_hash(self._files)

    def _signatures(self) -> list[tuple[int, ...] | None]:
        return [signature(name) for name in self._files]

    def follow(self, files: Iterable[str]) -> None:
        """From now on these files."""
        if tuple(files) != self._files:
            self._files = tuple(files)
            self.mark()
            self._add_watches()

    def stop(self) -> None:
        for handle in (self._settle, self._tick, self._rest):
            if handle is not None:
                handle.cancel()
        if self._fd >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _add_watches(self) -> None:
        self._ours = {os.path.basename(path) for name in self._files for path in (name, os.path.realpath(name))}
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
        concerned = False
        with contextlib.suppress(OSError):
            for _ in range(64):  # the rest at the next look
                concerned |= self._concerns(os.read(self._fd, 65536))
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fd)
        self._rest = loop.call_later(self._quiet / 2, self._listen)
        if not concerned:
            return
        if self._settle is not None:
            if loop.time() - self._since > 10 * self._quiet:  # endless writes must not delay it without limit
                return
            self._settle.cancel()
        else:
            self._since = loop.time()
        self._settle = loop.call_later(self._quiet, self._settled)

    def _listen(self) -> None:
        self._rest = None
        if self._fd >= 0:
            asyncio.get_running_loop().add_reader(self._fd, self._on_events)

    def _concerns(self, events: bytes) -> bool:
        """Whether some of these struct inotify_event is more than writing to a file that is none of ours. _certain: it
        is one of ours. A new name may be a link that ours leads through, as in a ConfigMap, or none of our business.
        """
        found = False
        offset = 0
        while offset + _EVENT.size <= len(events):
            _, mask, _, length = _EVENT.unpack_from(events, offset)
            name = events[offset + _EVENT.size : offset + _EVENT.size + length].rstrip(b"\0")
            if mask & _LOST or os.fsdecode(name) in self._ours:
                found = self._certain = True
            found |= bool(mask & ~(IN_MODIFY | IN_CLOSE_WRITE))
            offset += _EVENT.size + length
        return found

    def _settled(self) -> None:
        self._settle = None
        self._add_watches()
        if self._certain or self._signatures() != self._looked:
            self._compare()

    def _on_tick(self) -> None:
        self._tick = asyncio.get_running_loop().call_later(self._poll, self._on_tick)
        self._add_watches()
        if self._signatures() != self._looked:
            self._compare()

    def _compare(self) -> None:
        self._certain = False
        self._looked = self._signatures()
        now = content_hash(self._files)
        if now != self._seen:
            self._seen = now
            self._changed()
