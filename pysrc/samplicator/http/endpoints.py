"""Endpoints: the listening sockets of the HTTP interface.

Invariants: a socket file is made for its owner and group alone, and replaced only when nobody answers on it. Called by
service, before the first plan, so it must import nothing heavy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from typing import Final

from samplicator.config.address import parse_listen

CONTROL_MODE: Final = 0o660
BACKLOG: Final = 64
_CREDENTIALS: Final = struct.Struct("@3i")


def open_tcp(text: str) -> socket.socket:
    """A listening TCP socket on HOST:PORT. Raises OSError with a text that names the setting."""
    where = parse_listen(text)
    last: OSError | None = None
    for family, kind, proto, _, address in socket.getaddrinfo(
        where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            last = error
            continue
        return sock
    number = last.errno if last is not None and last.errno else errno.EADDRNOTAVAIL
    raise OSError(number, f"cannot listen on http = {text!r}: {os.strerror(number)}")


def listens_on(sock: socket.socket, text: str) -> bool:
    """Whether a listening socket is what open_tcp(text) would open."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    where = parse_listen(text)
    bound = sock.getsockname()
    return any(
        family == sock.family and address[:2] == bound[:2]
        for family, _, _, _, address in socket.getaddrinfo(
            where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    )


def open_control(path: str) -> socket.socket:
    """A listening local socket at `path`, mode 0660. A socket file without a server is replaced; a socket that answers
    belongs to another daemon, and this raises OSError (EADDRINUSE). The last directory of the path is made if it is
    missing.
    """
    what = f"cannot make the control socket {path}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path) or "/", 0o755)
        _clear(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            mask = os.umask(0o777 & ~CONTROL_MODE)  # never open to others, not even between bind and chmod
            try:
                sock.bind(path)
            finally:
                os.umask(mask)
            sock.setblocking(False)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}") from error
    return sock


def _clear(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "a file of this name exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except TimeoutError:  # its backlog is full
            raise OSError(errno.EADDRINUSE, "another process uses it") from None
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise
        else:
            pid = _CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
            raise OSError(errno.EADDRINUSE, f"another process uses it{(pid and f' (process {pid})') or ''}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_control(path: str) -> None:
    """Removes the socket file at the end. Never raises."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
