"""The state file: records (JSON objects) in a file that is complete or ignored.

Purpose: keeps the state of a service over a restart. The format is our own: one line of text as a header, then the
records as lines of JSON, compressed (zlib). The header has the version, whether a service wrote the file at its end
("final") or while it ran ("running"), the length, and the BLAKE2b digest of the rest. Invariants: a file appears
complete under its name (temporary file, fsync, rename, fsync of the folder; at the end of a service, when the next
process waits for it, without fsync), mode 0600; reading takes bounded memory for any content, and no content is used
before length and digest are checked. The file holds addresses, but no secrets; a program that can write to it can only
make the service show wrong counters. Called by carry and by the command line. It must never stop a service from
starting: a file that cannot be used is an Unusable, which says why.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterator
from io import RawIOBase
from typing import Any, BinaryIO, Final

VERSION: Final = 1
MAGIC: Final = b"samplicator state"
FINAL: Final = b"final  "
RUNNING: Final = b"running"
HEAD_BYTES: Final = len(MAGIC) + len(" 1 ") + len(FINAL) + 1 + 16 + 1 + 32 + 1
FINAL_AT: Final = len(MAGIC) + len(" 1 ")
LIMIT_BYTES: Final = 64 << 20
"""Of a file. What does not fit is left out when it is written; a longer one is not read."""
INFLATED: Final = 16
"""The records of a file are so many times as long as LIMIT_BYTES at most."""
LINE_BYTES: Final = 4 << 20
"""The longest record: a domain with all the templates that it may have."""
MOST_RECORDS: Final = 1 << 20
CHUNK: Final = 1 << 18
HELD_BACK: Final = 1 << 16
"""More than zlib holds back of what it was given (deflate's window is 32 KiB)."""
MODE: Final = 0o600
PLAIN: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Unusable(ValueError):
    """A file that is ignored; says why."""


class Writer:
    """Writes records into a binary file that can be sought, from its beginning on; finish() completes it."""

    def __init__(self, file: BinaryIO, *, final: bool, limit: int = LIMIT_BYTES) -> None:
        self._file = file
        self._final = final
        self._limit = limit
        self._packer = zlib.compressobj(1)
        self._digest = hashlib.blake2b(digest_size=16)
        self._length = 0
        file.write(bytes(HEAD_BYTES))

    def add(self, record: dict[str, Any]) -> bool:
        """False: the file is full; the record is not in it, and no later one may be."""
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
        if len(line) > LINE_BYTES:
            return True  # one such record is not worth more than all the others
        if self._length + HELD_BACK + len(line) > self._limit:
            return False
        self._put(self._packer.compress(line))
        return True

    def finish(self) -> None:
        self._put(self._packer.flush())
        word = FINAL if self._final else RUNNING
        self._file.seek(0)
        self._file.write(
            b"%s %d %s %016x %s\n" % (MAGIC, VERSION, word, self._length, self._digest.hexdigest().encode())
        )
        self._file.flush()

    def _put(self, packed: bytes) -> None:
        if packed:
            self._file.write(packed)
            self._digest.update(packed)
            self._length += len(packed)


@contextlib.contextmanager
def replacing(path: str, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to be written beside the one of this name, and put there when it is complete. sync: it survives a host
    that loses its power now; without, what is left of it then is found to be damaged. Raises OSError; then, and when
    anything else is raised, the old file stays.
    """
    with contextlib.suppress(FileNotFoundError):
        if not _ours(path):
            raise FileExistsError(
                errno.EEXIST, "the file is not a state file of samplicator, so it is not replaced", path
            )
    temporary = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, MODE)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.rename(temporary, path)
        if sync:
            with contextlib.suppress(OSError):  # not every file system can do this
                _sync_folder(os.path.dirname(path) or ".")
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _ours(path: str) -> bool:
    """Whether a file may be replaced. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | PLAIN)
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and MAGIC.startswith(os.pread(fd, len(MAGIC), 0))
    finally:
        os.close(fd)


def obstacle(path: str) -> str:
    """Why a state file of this name could not be written by this user now, and what to do, for people; "" = it could.
    Writes nothing.
    """
    folder = os.path.dirname(path) or "/"
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            return f"{folder} is not a directory; write another path"
        if os.path.isdir(path):
            return f"{path} is a directory; write the path of a file, such as {os.path.join(path, 'samplicator.state')}"
        if os.path.lexists(path) and not _ours(path):
            return f"{path} is not a state file of samplicator, so it is not replaced; remove it, or write another path"
    except FileNotFoundError:
        return f"the directory {folder} does not exist; make it"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"{path} is a symbolic link; write the path that it leads to"
        return f"this user cannot open {path} ({error.strerror}); the user of the service must be able to"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"this user cannot write in the directory {folder}; the user of the service must be able to"
    return ""


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def mark_running(path: str) -> None:
    """Marks the file as "running", so that its counters are not loaded again. Raises OSError."""
    fd = os.open(path, os.O_RDWR | PLAIN)
    try:
        if os.pread(fd, FINAL_AT, 0) == b"%s %d " % (MAGIC, VERSION):
            os.pwrite(fd, RUNNING, FINAL_AT)
    finally:
        os.close(fd)


@contextlib.contextmanager
def reading(path: str, *, limit: int = LIMIT_BYTES) -> Iterator[Reader]:
    """The file of this name. Raises FileNotFoundError, OSError, Unusable."""
    with os.fdopen(os.open(path, os.O_RDONLY | PLAIN), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.geteuid(), 0):
            raise Unusable("the file does not belong to this user")
        yield Reader(file, status.st_size, limit=limit)


class Reader:
    """A complete file. final: a service wrote it at its end, and no process has loaded its counters yet."""

    def __init__(self, file: RawIOBase | BinaryIO, size: int, *, limit: int = LIMIT_BYTES) -> None:
        """size: bytes of the file. Raises OSError, Unusable."""
        self._limit = limit
        self._file = file
        self._size = size
        self.final = self._check()

    def _check(self) -> bool:
        if self._size > self._limit + HEAD_BYTES:
            raise Unusable(f"the file is longer than {self._limit} bytes")
        head = self._file.read(HEAD_BYTES)
        if not head.startswith(MAGIC + b" "):
            raise Unusable("the file is empty" if not head else "the file is not a state file of samplicator")
        words = head[len(MAGIC) :].split()
        if words[:1] != [b"%d" % VERSION]:
            raise Unusable("another version of samplicator wrote the file")
        if len(head) < HEAD_BYTES:
            raise Unusable("the file is truncated")
        try:
            word, length, digest = words[1], int(words[2], 16), bytes.fromhex(words[3].decode("ascii"))
        except (IndexError, ValueError):
            raise Unusable("the file is damaged") from None
        if self._size - HEAD_BYTES != length:
            raise Unusable("the file is truncated" if self._size - HEAD_BYTES < length else "the file is damaged")
        found = hashlib.blake2b(digest_size=16)
        while chunk := self._file.read(CHUNK):
            found.update(chunk)
        if found.digest() != digest or word not in (FINAL.strip(), RUNNING):
            raise Unusable("the file is damaged")
        return word == FINAL.strip()

    def records(self) -> Iterator[dict[str, Any]]:
        """Each record. Raises Unusable, OSError."""
        self._file.seek(HEAD_BYTES)
        rest = b""
        count = 0
        try:
            for part in self._inflated():
                *lines, rest = (rest + part).split(b"\n")
                count += len(lines)
                if count > MOST_RECORDS:
                    raise Unusable("the file is damaged")
                for line in lines:
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise Unusable("the file is damaged")
                    yield record
                if len(rest) > LINE_BYTES:
                    raise Unusable("the file is damaged")
        except (zlib.error, ValueError, RecursionError) as error:
            if isinstance(error, Unusable):
                raise
            raise Unusable("the file is damaged") from error

    def _inflated(self) -> Iterator[bytes]:
        unpacker = zlib.decompressobj()
        total = 0
        while chunk := self._file.read(CHUNK):
            while part := unpacker.decompress(chunk, CHUNK):
                chunk = unpacker.unconsumed_tail
                total += len(part)
                if total > INFLATED * self._limit:
                    raise Unusable("the file is damaged")
                yield part
        if not unpacker.eof:
            raise Unusable("the file is damaged")
