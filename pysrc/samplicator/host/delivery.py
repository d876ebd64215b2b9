"""Delivery: where the kernel would take what this host sends to an address: away, or back to this host.

Purpose: plain questions to rtnetlink(7), which judges as the copies will be judged (policy rules, anycast, `ip route
add local`), for the guard against loops and for the filters of listeners. Called by supervisor. It must never send a
datagram or change a route.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from samplicator.host.neighbors import (
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTA_DST,
    RTA_OIF,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    attributes,
)
from samplicator.plan.loops import AWAY, BROADCAST, GROUP, LOCAL, Delivery

KINDS: Final = {2: LOCAL, 3: BROADCAST, 4: LOCAL, 5: GROUP}
"""RTN_LOCAL, _BROADCAST, _ANYCAST, _MULTICAST, include/uapi/linux/rtnetlink.h."""
RTN_BROADCAST: Final = 3
RT_TABLE_LOCAL: Final = 255
SOL_NETLINK: Final = 270
NETLINK_GET_STRICT_CHK: Final = 12
"""Since Linux 4.20: a dump has only what was asked for; before, the whole table comes and is looked through."""


class Host:
    """One conversation with the kernel; a context manager. Raises OSError when it cannot be asked."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        try:
            self._socket.settimeout(1.0)
            self._socket.bind((0, 0))
            with contextlib.suppress(OSError):
                self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def delivery(self, address: bytes, scope_id: int = 0) -> Delivery:
        """What becomes of a datagram to an address (4 or 16 bytes). No route: it goes away, as far as can be told."""
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        body = struct.pack("=BBBBBBBBI", family, 8 * len(address), 0, 0, 0, 0, 0, 0, 0)
        body += struct.pack("=HH", 4 + len(address), RTA_DST) + address
        if scope_id:
            body += struct.pack("=HHI", 8, RTA_OIF, scope_id)
        for kind, answer in self._ask(RTM_GETROUTE, 0, body):
            if kind == RTM_NEWROUTE and len(answer) >= 12:
                (index,) = struct.unpack("=i", dict(attributes(answer, 12)).get(RTA_OIF, bytes(4)))
                name = ""
                with contextlib.suppress(OSError):
                    name = socket.if_indextoname(index) if index else ""
                return Delivery(KINDS.get(answer[7], AWAY), name)
        return Delivery()

    def broadcasts(self) -> frozenset[bytes]:
        """Every IPv4 broadcast address of this host, but 255.255.255.255."""
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, RT_TABLE_LOCAL, 0, 0, RTN_BROADCAST, 0)
        found = set()
        for kind, answer in self._ask(RTM_GETROUTE, NLM_F_DUMP, body):
            if kind == RTM_NEWROUTE and len(answer) >= 12 and answer[7] == RTN_BROADCAST:
                found.add(dict(attributes(answer, 12)).get(RTA_DST, b""))
        return frozenset(address for address in found if len(address) == 4)

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """(type, payload) of each message of the answer, errors left out."""
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST, 1, 0) + body)
        while True:
            data = self._socket.recv(1 << 18)
            offset = 0
            while offset + 16 <= len(data):
                length, answer = struct.unpack_from("=IH", data, offset)
                if answer in (NLMSG_ERROR, NLMSG_DONE) or length < 16:
                    return
                yield answer, data[offset + 16 : offset + length]
                offset += (length + 3) & ~3
            if not flags & NLM_F_DUMP:
                return
