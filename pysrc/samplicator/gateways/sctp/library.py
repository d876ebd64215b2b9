"""libusrsctp, loaded when it is needed: its functions, structures and numbers (usrsctp.h of 0.9.5.0, Debian 12).

Purpose: the one place that calls into the library. It runs without threads of its own (`usrsctp_init_nothreads`), in
AF_CONN mode: a peer is a number (a handle), packets leave through a callback and come in by `arrived`, and time passes
by `advance`. Invariants: one instance per process, since the library's state is the process's; all calls come from one
thread, with the GIL held, because they take microseconds and call back; handles are never used twice. Called by
userland. Must never look into a packet, and never know a network.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

NAME: Final = "libusrsctp.so.2"
AF_CONN: Final = 123
IPPROTO_SCTP: Final = 132
MSG_NOTIFICATION: Final = 0x2000
MSG_EOR: Final = 0x80
RTOINFO, ASSOCINFO, INITMSG, NODELAY, PEER_ADDR_PARAMS, EVENT, RECVRCVINFO = 1, 2, 3, 4, 10, 30, 31
SNDBUF_USE: Final = 0x1101
ASSOC_CHANGE, SHUTDOWN_EVENT, PARTIAL_DELIVERY_EVENT, SEND_FAILED_EVENT = 1, 5, 6, 14
COMM_UP, COMM_LOST, RESTART, SHUTDOWN_COMP, CANT_STR_ASSOC = 1, 2, 3, 4, 5
HB_ENABLE, HB_DISABLE, HB_DEMAND, PMTUD_DISABLE = 1, 2, 4, 0x10
EOF, ABORT, SACK_IMMEDIATELY = 0x100, 0x200, 0x4000
PR_NONE, PR_TTL, PR_RTX = 0, 1, 3
SENDV_SPA: Final = 4
RECV_BYTES: Final = (1 << 16) + 512
"""Room for one message, or for one notification with a message in it."""

_ADDRESS = struct.Struct("=H2xQ")  # sockaddr_conn; the port is in network order
_PADDR = struct.Struct("=16s112xIIIIIHBx")


class Received(NamedTuple):
    """flags: MSG_NOTIFICATION, MSG_EOR. handle: of the peer. association, stream: of a message, else 0."""

    payload: bytes
    flags: int
    handle: int
    association: int
    stream: int


def conn_address(handle: int, port: int) -> bytes:
    """sockaddr_conn. handle 0: any."""
    return struct.pack("=H", AF_CONN) + struct.pack("!H", port) + struct.pack("=4xQ", handle)


def error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"libusrsctp: {what}: {os.strerror(number)}")


class Library:
    """See above; `instance` gives the one there is."""

    def __init__(self) -> None:
        lib = ctypes.PyDLL(NAME, use_errno=True)  # OSError: it is not installed
        signature = ctypes.PYFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint8, ctypes.c_uint8
        )
        self._output = signature(self._leaves)  # must outlive the library's use of it
        self._sinks: dict[int, Callable[[bytes], None]] = {}
        self._next = 1
        self._time: float | None = None
        pointer, size, word = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
        for name, result, arguments in (
            ("init_nothreads", None, [ctypes.c_uint16, signature, pointer]),
            (
                "socket",
                pointer,
                [ctypes.c_int, ctypes.c_int, ctypes.c_int, pointer, pointer, word, pointer],
            ),
            ("setsockopt", ctypes.c_int, [pointer, ctypes.c_int, ctypes.c_int, ctypes.c_char_p, word]),
            ("getsockopt", ctypes.c_int, [pointer, ctypes.c_int, ctypes.c_int, pointer, pointer]),
            ("bind", ctypes.c_int, [pointer, ctypes.c_char_p, word]),
            ("listen", ctypes.c_int, [pointer, ctypes.c_int]),
            ("connect", ctypes.c_int, [pointer, ctypes.c_char_p, word]),
            ("close", None, [pointer]),
            ("set_non_blocking", ctypes.c_int, [pointer, ctypes.c_int]),
            ("register_address", None, [pointer]),
            ("deregister_address", None, [pointer]),
            ("conninput", None, [pointer, ctypes.c_char_p, size, ctypes.c_uint8]),
            ("handle_timers", None, [word]),
            ("get_events", ctypes.c_int, [pointer]),
            ("crc32c", word, [ctypes.c_char_p, size]),
            ("sysctl_set_sctp_blackhole", ctypes.c_int, [word]),
            (
                "sendv",
                ctypes.c_ssize_t,
                [pointer, ctypes.c_char_p, size, pointer, ctypes.c_int, ctypes.c_char_p, word, word, ctypes.c_int],
            ),
            (
                "recvv",
                ctypes.c_ssize_t,
                [pointer, pointer, size, pointer, pointer, pointer, pointer, pointer, pointer],
            ),
        ):
            function = getattr(lib, f"usrsctp_{name}")
            function.restype, function.argtypes = result, arguments
        self._lib: Any = lib
        self._buffer = ctypes.create_string_buffer(RECV_BYTES)
        self._from = ctypes.create_string_buffer(128)
        self._info = ctypes.create_string_buffer(64)
        self._counts = (ctypes.c_uint32 * 4)()  # length of from, of info; type of info; flags
        lib.usrsctp_init_nothreads(0, self._output, None)
        lib.usrsctp_sysctl_set_sctp_blackhole(2)  # other SCTP of this host is not ours to abort

    # ---- peers and packets

    def new_peer(self, sink: Callable[[bytes], None]) -> int:
        """A handle; sink gets the packets for this peer, and must not call the library."""
        handle, self._next = self._next, self._next + 1
        self._sinks[handle] = sink
        self._lib.usrsctp_register_address(handle)
        return handle

    def drop_peer(self, handle: int) -> None:
        if self._sinks.pop(handle, None) is not None:
            self._lib.usrsctp_deregister_address(handle)

    def _leaves(self, handle: int | None, buffer: int, length: int, tos: int, dont_fragment: int) -> int:
        sink = self._sinks.get(handle or 0)
        if sink is None:
            return errno.EHOSTUNREACH
        sink(ctypes.string_at(buffer, length))
        return 0

    def arrived(self, handle: int, packet: bytes) -> None:
        self._lib.usrsctp_conninput(handle, packet, len(packet), 0)

    def advance(self, now: float) -> None:
        """Time passes for all sockets; now: monotonic seconds. A clock that goes back is another one."""
        if self._time is None or now < self._time:
            self._time = now
        elapsed_ms = int((now - self._time) * 1000)
        if elapsed_ms > 0:
            self._time += elapsed_ms / 1000
            self._lib.usrsctp_handle_timers(elapsed_ms)

    def checksum(self, packet: bytes) -> int:
        value: int = self._lib.usrsctp_crc32c(packet, len(packet))
        return value

    # ---- sockets

    def open(self) -> int:
        """A one-to-many socket that does not block. Raises OSError."""
        made: int | None = self._lib.usrsctp_socket(AF_CONN, socket.SOCK_SEQPACKET, IPPROTO_SCTP, None, None, 0, None)
        if not made:
            raise error("socket")
        self._lib.usrsctp_set_non_blocking(made, 1)
        return made

    def close(self, sock: int) -> None:
        self._lib.usrsctp_close(sock)

    def set_option(self, sock: int, name: int, value: bytes, level: int = IPPROTO_SCTP) -> None:
        """Raises OSError."""
        if self._lib.usrsctp_setsockopt(sock, level, name, value, len(value)):
            raise error(f"option {name}")

    def peer_parameters(
        self, sock: int, flags: int, *, address: bytes = b"", heartbeat_ms: int = 0, mtu: int = 0, retries: int = 0
    ) -> None:
        """SCTP_PEER_ADDR_PARAMS. address: conn_address of the peer; b"": of all to come. mtu: of a packet without its
        IP and SCTP headers (the library leaves out the 12 bytes of the common header). Raises OSError.
        """
        address = address or conn_address(0, 0)
        self.set_option(sock, PEER_ADDR_PARAMS, _PADDR.pack(address, 0, heartbeat_ms, mtu, flags, 0, retries, 0))

    def bind(self, sock: int, port: int) -> None:
        """Raises OSError."""
        address = conn_address(0, port)
        if self._lib.usrsctp_bind(sock, address, len(address)):
            raise error(f"bind port {port}")

    def listen(self, sock: int) -> None:
        if self._lib.usrsctp_listen(sock, 128):
            raise error("listen")

    def connect(self, sock: int, handle: int, port: int) -> None:
        address = conn_address(handle, port)
        if self._lib.usrsctp_connect(sock, address, len(address)) and ctypes.get_errno() != errno.EINPROGRESS:
            raise error("connect")

    def send(
        self,
        sock: int,
        association: int,
        payload: bytes,
        stream: int,
        flags: int = 0,
        policy: int = 0,
        value: int = 0,
        context: int = 0,
    ) -> bool:
        """False: there is no room now. policy, value: PR_*, with ms or a number of retransmissions. context: comes back
        in SEND_FAILED events, of which a message may have several. Raises OSError.
        """
        spa = struct.pack("=IHHIIIHxxIHxx", 3, stream, flags, 0, context, association, policy, value, 0)
        sent: int = self._lib.usrsctp_sendv(sock, payload, len(payload), None, 0, spa, len(spa), SENDV_SPA, 0)
        if sent >= 0:
            return True
        if ctypes.get_errno() in (errno.EAGAIN, errno.ENOBUFS):
            return False
        raise error("send")

    def receive(self, sock: int) -> Received | None:
        """None: there is nothing now. Raises OSError."""
        counts = self._counts
        counts[0], counts[1], counts[2], counts[3] = 128, 64, 0, 0
        at = ctypes.addressof(counts)
        got: int = self._lib.usrsctp_recvv(
            sock, self._buffer, RECV_BYTES, self._from, at, self._info, at + 4, at + 8, at + 12
        )
        if got < 0:
            if ctypes.get_errno() == errno.EAGAIN:
                return None
            raise error("receive")
        flags = counts[3]
        if got == 0 and not flags & MSG_NOTIFICATION:
            return None
        family, handle = _ADDRESS.unpack_from(self._from.raw) if counts[0] >= 16 else (0, 0)
        handle = struct.unpack_from("=Q", self._from.raw, 8)[0] if family == AF_CONN else 0
        stream, association = 0, 0
        if counts[2] == 1:
            stream, association = struct.unpack_from("=H22xI", self._info.raw)
        return Received(ctypes.string_at(self._buffer, got), flags, handle, association, stream)

    def unsent_bytes(self, sock: int, association: int) -> int | None:
        """What the association holds that is not acknowledged; None: it has ended, and what comes back is yet to be
        read.
        """
        value = ctypes.create_string_buffer(struct.pack("=III", association, 0, 0), 12)
        length = ctypes.c_uint32(12)
        if self._lib.usrsctp_getsockopt(sock, IPPROTO_SCTP, SNDBUF_USE, value, ctypes.addressof(length)):
            return None
        held: int = struct.unpack_from("=4xI", value.raw)[0]
        return held


_instances: list[Library] = []


def instance() -> Library:
    """Loads it on the first call. Raises OSError when it is not installed."""
    if not _instances:
        _instances.append(Library())
    return _instances[0]
