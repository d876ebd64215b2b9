"""Classic BPF: attaching a program to a socket, whatever for (socket filters, the choice of a ring).

A program is an array of struct sock_filter (include/uapi/linux/filter.h). Called by sockets and ring. It must never
make a program: those who know what is to be taken do.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from typing import Final

SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
TAKE_NOTHING: Final = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""BPF_RET|BPF_K 0: no datagram passes; reports of ICMP, which go to the error queue, do."""


def attach(sock: socket.socket, program: bytes, level: int = socket.SOL_SOCKET, option: int = SO_ATTACH_FILTER) -> None:
    """In the place of the program there is. Raises OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(level, option, struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))


def set_filter(sock: socket.socket, program: bytes) -> None:
    """Attaches a socket filter in the place of the one there is; b"" = none. Raises OSError."""
    if program:
        attach(sock, program)
        return
    with contextlib.suppress(FileNotFoundError):  # there was none
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
