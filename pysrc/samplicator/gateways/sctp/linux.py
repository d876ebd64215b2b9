"""The kernel's SCTP as Python sockets can ask for it: numbers, structures and options (linux/sctp.h of 6.1).

Purpose: the one place for facts about this part of the kernel. Invariants: nothing here waits; `opened` gives a socket
that is ready to listen or to connect. Called by kernel and choice.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from typing import Final

from samplicator.gateways.transport import Address, Options

SOL_SCTP: Final = 132
RTOINFO, ASSOCINFO, INITMSG, NODELAY, PEER_ADDR_PARAMS, STATUS = 0, 1, 2, 3, 9, 14
RECVRCVINFO, BINDX_ADD, CONNECTX, GET_PEER_ADDRS, GET_ASSOC_STATS, EVENT = 32, 100, 110, 108, 112, 127
PR_ASSOC_STATUS: Final = 115
DATA_SENT: Final = 1
SNDINFO, RCVINFO, PRINFO = 2, 3, 5
MSG_NOTIFICATION, MSG_EOR = 0x8000, 0x80
EOF, ABORT, SACK_IMMEDIATELY = 0x200, 4, 8
ASSOC_CHANGE, SHUTDOWN_EVENT, PARTIAL_DELIVERY_EVENT, SEND_FAILED_EVENT = 0x8001, 0x8005, 0x8006, 0x800D
COMM_UP, COMM_LOST, RESTART, SHUTDOWN_COMP, CANT_STR_ASSOC = 0, 1, 2, 3, 4
PR_TTL, PR_RTX = 0x10, 0x20
HB_ENABLE, HB_DISABLE, HB_DEMAND = 1, 2, 4
SO_MEMINFO, WMEM_QUEUED = 55, 5
LARGEST: Final = 65535
SEND_BYTES: Final = 256 << 10
RECEIVE_BYTES: Final = 4 << 20
STREAMS_IN: Final = 2048
RTO_MS: Final = (500, 250, 1000)

_libc = ctypes.CDLL(None, use_errno=True)
PADDR = struct.Struct("=i128sIHIIIIBx")  # packed, aligned to 4: 156 bytes
SNDINFO_FORM = struct.Struct("=HHIIi")
PRINFO_FORM = struct.Struct("=HxxI")
RCVINFO_FORM = struct.Struct("=HHHxxIIIIi")


def sockaddr(address: Address) -> bytes:
    if len(address.address) == 4:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H", address.port) + address.address + bytes(8)
    head = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", address.port, 0)
    return head + address.address + struct.pack("=I", address.scope_id)


def from_sockaddr(raw: bytes) -> Address | None:
    """None: it is of no family of ours."""
    if len(raw) < 16:
        return None
    family = struct.unpack_from("=H", raw)[0]
    port = struct.unpack_from("!H", raw, 2)[0]
    if family == socket.AF_INET:
        return Address(raw[4:8], port)
    if family == socket.AF_INET6 and len(raw) >= 28:
        if raw[8:20] == bytes(10) + b"\xff\xff":
            return Address(raw[20:24], port)
        return Address(raw[8:24], port, struct.unpack_from("=I", raw, 24)[0] if raw[8:10] == b"\xfe\x80" else 0)
    return None


def probe() -> str:
    """Why the kernel cannot do SCTP, "" = it can."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_SEQPACKET, SOL_SCTP).close()
    except OSError as error:
        return f"the kernel has no SCTP ({error.strerror})"
    return ""


def get_option(sock: socket.socket, name: int, request: bytes) -> bytes:
    """An option that wants to be told what is asked for, which Python's getsockopt cannot. Raises OSError."""
    buffer, length = ctypes.create_string_buffer(request, len(request)), ctypes.c_uint32(len(request))
    if _libc.getsockopt(sock.fileno(), SOL_SCTP, name, buffer, ctypes.byref(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw[: length.value]


def opened(family: int, options: Options) -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(family, socket.SOCK_SEQPACKET, SOL_SCTP)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(SOL_SCTP, INITMSG, struct.pack("=HHHH", options.streams, STREAMS_IN, 4, RTO_MS[2]))
        sock.setsockopt(SOL_SCTP, RTOINFO, struct.pack("=iIII", 0, RTO_MS[0], RTO_MS[2], RTO_MS[1]))
        for kind in (ASSOC_CHANGE, SHUTDOWN_EVENT, PARTIAL_DELIVERY_EVENT, SEND_FAILED_EVENT):
            sock.setsockopt(SOL_SCTP, EVENT, struct.pack("=iHBx", 0, kind, 1))
        sock.setsockopt(SOL_SCTP, RECVRCVINFO, struct.pack("=i", 1))
        sock.setsockopt(SOL_SCTP, NODELAY, struct.pack("=i", 1))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        if options.heartbeat_ms:
            sock.setsockopt(SOL_SCTP, ASSOCINFO, struct.pack("=iHHIII", 0, 1000, 0, 0, 0, 0))
            flags, retries = HB_DISABLE, 1000
        else:
            flags, retries = HB_ENABLE, 5
        any_address = struct.pack("=H", family) + bytes(126)
        sock.setsockopt(
            SOL_SCTP,
            PEER_ADDR_PARAMS,
            PADDR.pack(0, any_address, 0 if options.heartbeat_ms else 10_000, retries, 0, 0, flags, 0, 0),
        )
    except BaseException:
        sock.close()
        raise
    return sock
