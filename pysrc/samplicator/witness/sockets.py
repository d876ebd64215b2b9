"""The collector's sockets: what the kernel dropped in front of each, and how full each is (sock_diag(7)).

Purpose: one question to the kernel, all UDP sockets of a port, of both families; a group of SO_REUSEPORT is as many
sockets. Invariants: needs no privilege; drops are 32 bits in the kernel and added up here without a step back.
Called by watch.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from samplicator.host.netlink import NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, attributes, message, messages

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
SKMEMINFO: Final = 7  # INET_DIAG_SKMEMINFO, include/uapi/linux/inet_diag.h
RMEM_ALLOC, RCVBUF, DROPS = 0, 1, 8  # SK_MEMINFO_*, include/uapi/linux/sock_diag.h
MESSAGE_BYTES: Final = 72  # struct inet_diag_msg
_REQUEST: Final = struct.Struct("=BBBBI")  # struct inet_diag_req_v2, up to its struct inet_diag_sockid


@dataclass(slots=True)
class Queue:
    """One socket. dropped: since the witness began. queued_bytes, buffer_bytes: memory in use, and its limit."""

    address: str
    inode: int
    cookie: bytes
    drops: int
    dropped: int = 0
    queued_bytes: int = 0
    buffer_bytes: int = 0


class Queues:
    """All sockets that are bound to a port in this network namespace."""

    def __init__(self, port: int) -> None:
        """Raises OSError where the kernel has no sock_diag."""
        self._ids = struct.pack(">HH", port, 0) + bytes(44)
        self._sequence = 0
        self.known: dict[bytes, Queue] = {}
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        self._sock.settimeout(1.0)
        self._families = (socket.AF_INET, socket.AF_INET6)
        self.sample()

    def close(self) -> None:
        self._sock.close()

    @property
    def dropped(self) -> int:
        """By all of them, also those that are closed, since the witness began."""
        return sum(queue.dropped for queue in self.known.values())

    def sample(self) -> int:
        """Reads all counters; returns how many datagrams were dropped since the last call."""
        total = 0
        for family in self._families:
            for address, inode, cookie, memory in self._ask(family):
                queue = self.known.get(cookie)
                if queue is None:
                    # a socket that was opened after the first sample has dropped all of it since
                    drops = 0 if self._sequence > len(self._families) else memory[DROPS]
                    queue = self.known[cookie] = Queue(address, inode, cookie, drops)
                more = (memory[DROPS] - queue.drops) & 0xFFFFFFFF
                queue.drops = memory[DROPS]
                queue.dropped += more
                queue.queued_bytes, queue.buffer_bytes = memory[RMEM_ALLOC], memory[RCVBUF]
                total += more
        return total

    def _ask(self, family: int) -> list[tuple[str, int, bytes, tuple[int, ...]]]:
        self._sequence += 1
        body = _REQUEST.pack(family, socket.IPPROTO_UDP, 1 << SKMEMINFO - 1, 0, 0xFFFFFFFF) + self._ids
        self._sock.send(message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, body))
        found: list[tuple[str, int, bytes, tuple[int, ...]]] = []
        while True:
            for kind, sequence, payload in messages(self._sock.recv(1 << 18)):
                if sequence != self._sequence:
                    continue
                if kind == NLMSG_DONE:
                    return found
                if kind == NLMSG_ERROR:
                    number = -struct.unpack_from("=i", payload)[0]
                    raise OSError(number, f"sock_diag: {os.strerror(number)}")
                if len(payload) >= MESSAGE_BYTES:
                    memory = dict(attributes(payload, MESSAGE_BYTES)).get(SKMEMINFO, b"")
                    if len(memory) >= 4 * (DROPS + 1):
                        words = struct.unpack_from(f"={DROPS + 1}I", memory)
                        found.append(
                            (_address(payload), int.from_bytes(payload[68:72], "little"), payload[44:52], words)
                        )


def _address(payload: bytes) -> str:
    """The address that a socket is bound to."""
    octets = payload[8:24] if payload[0] == socket.AF_INET6 else payload[8:12]
    return str(ipaddress.ip_address(octets))
