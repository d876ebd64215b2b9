"""Netlink: the one parser of the kernel's messages (netlink(7), rtnetlink(7)) and one conversation over it.

Plain questions about routes and neighbors, and the sockets on which the kernel tells of changes. Called by neighbors,
links, delivery, changes, bypass and ingress. Invariants: a length in a message is limited to the size of the message.
It must never change anything in the kernel: ingress and links write such messages themselves.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

NETLINK_ROUTE, NETLINK_XFRM, NETLINK_NETFILTER = 0, 6, 12
SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP = 1, 2
NETLINK_GET_STRICT_CHK: Final = 12
"""Since Linux 4.20: a dump has only what was asked for; before, the whole table comes and is looked through."""
RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWNEIGH, RTM_GETNEIGH = 24, 26, 28, 30
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR = 0x1, 0x4, 0x300, 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_VIA = 1, 4, 5, 18
RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST = 1, 2, 3, 4, 5
RTMSG_BYTES: Final = 12
"""struct rtmsg, and struct ndmsg, whose attributes follow at the same place."""
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence, payload) of each whole message that was read at once."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            return
        yield kind, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def interrupted(data: bytes) -> bool:
    """Whether a message that was read says that its answer is not whole."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, _, flags, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            break
        if flags & NLM_F_DUMP_INTR:
            return True
        offset += (length + 3) & ~3
    return False


def attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute from offset on, the flags of the type left out."""
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4 or offset + length > len(body):
            return
        yield kind & 0x3FFF, body[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def events(groups: int, protocol: int = NETLINK_ROUTE) -> socket.socket:
    """A socket that becomes readable when the kernel tells the groups (RTMGRP_*) something. Raises OSError."""
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(socket.AF_NETLINK, kind, protocol)
    try:
        sock.bind((0, groups))
    except BaseException:
        sock.close()
        raise
    return sock


class Conversation:
    """Questions to rtnetlink or to another part of the kernel (protocol), one at a time; a context manager. Raises
    OSError when the kernel cannot be asked. refused: what was wrong with the last question (errno), 0 = nothing.
    changed: while it was answered, something changed, so that it may be not whole.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        self.refused = 0
        self.changed = False
        try:
            self._socket.settimeout(1.0)
            self._socket.bind((0, 0))
            with contextlib.suppress(OSError):
                self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """(type, payload) of each message of the answer, errors left out. What a question before this one has left
        unread is passed over.
        """
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        self.refused, self.changed = 0, False
        self._socket.send(message(kind, flags | NLM_F_REQUEST, self._sequence, body))
        while True:
            mine = False
            data = self._socket.recv(1 << 18)
            self.changed = self.changed or interrupted(data)
            for answer, sequence, payload in messages(data):
                if sequence != self._sequence:
                    continue
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    self.refused = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
                    return
                mine = True
                yield answer, payload
            if mine and not flags & NLM_F_DUMP:
                return

    def route(self, address: bytes, scope_id: int = 0) -> tuple[int, dict[int, bytes]] | None:
        """(kind of route, its attributes) of what an address (4 or 16 bytes) is sent by; None = no route."""
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        body = struct.pack("=BBBBBBBBI", family, 8 * len(address), 0, 0, 0, 0, 0, 0, 0)
        body += struct.pack("=HH", 4 + len(address), RTA_DST) + address
        if scope_id:
            body += struct.pack("=HHI", 8, RTA_OIF, scope_id)
        for kind, answer in self.ask(RTM_GETROUTE, 0, body):
            if kind == RTM_NEWROUTE and len(answer) >= RTMSG_BYTES:
                return answer[7], dict(attributes(answer, RTMSG_BYTES))
        return None


def interface_of(found: dict[int, bytes]) -> int:
    """Index of the interface a route leads to, by its attributes; 0 = none."""
    return int.from_bytes(found.get(RTA_OIF, b"")[:4], sys.byteorder)
