"""Delivery: where the kernel would deliver a datagram that this host sends to an address: to another host, or to this
host.

Purpose: plain questions to rtnetlink(7), which judges as the copies will be judged (policy rules, anycast, `ip route
add local`), for the guard against loops and for the filters of listeners. Called by supervisor. It must never send a
datagram or change a route.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

from samplicator.host.netlink import (
    NLM_F_DUMP,
    RTA_DST,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTMSG_BYTES,
    RTN_ANYCAST,
    RTN_BROADCAST,
    RTN_LOCAL,
    RTN_MULTICAST,
    Conversation,
    attributes,
    interface_of,
)
from samplicator.plan.loops import AWAY, BROADCAST, GROUP, LOCAL, Delivery

KINDS: Final = {RTN_LOCAL: LOCAL, RTN_BROADCAST: BROADCAST, RTN_ANYCAST: LOCAL, RTN_MULTICAST: GROUP}
RT_TABLE_LOCAL: Final = 255


class Host(Conversation):
    """One conversation with the kernel; a context manager. Raises OSError when it cannot be asked."""

    def delivery(self, address: bytes, scope_id: int = 0) -> Delivery:
        """What becomes of a datagram to an address (4 or 16 bytes). No route: it goes away, as far as can be told."""
        route = self.route(address, scope_id)
        if route is None:
            return Delivery()
        kind, found = route
        index, name = interface_of(found), ""
        with contextlib.suppress(OSError):
            name = socket.if_indextoname(index) if index else ""
        return Delivery(KINDS.get(kind, AWAY), name)

    def broadcasts(self) -> frozenset[bytes]:
        """Every IPv4 broadcast address of this host, but 255.255.255.255."""
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, RT_TABLE_LOCAL, 0, 0, RTN_BROADCAST, 0)
        found = set()
        for kind, answer in self.ask(RTM_GETROUTE, NLM_F_DUMP, body):
            if kind == RTM_NEWROUTE and len(answer) >= RTMSG_BYTES and answer[7] == RTN_BROADCAST:
                found.add(dict(attributes(answer, RTMSG_BYTES)).get(RTA_DST, b""))
        return frozenset(address for address in found if len(address) == 4)
