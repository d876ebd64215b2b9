"""Neighbours: which receivers' next hops do not answer.

Purpose: the kernel accepts copies for a neighbour that does not answer, holds a few and drops the rest unseen (arp(7));
to a spoofed copy not even a report comes back. So this looks at the neighbour table itself, with two plain
rtnetlink(7) questions, and says who is unresolved, for the datapath to count those copies as no_neighbor. Invariants: a
receiver is called unresolved only after PATIENCE_SECONDS without an address, and no longer at the first look that finds
one. Called by supervisor. It must never send a datagram or change an entry.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Final

PATIENCE_SECONDS: Final = 1.0
"""A neighbour that was never asked for is incomplete for a moment; one that is dead stays so."""
ROUTES_SECONDS: Final = 5.0
"""How long a next hop is believed before it is looked up again."""
NUD_INCOMPLETE, NUD_FAILED = 0x01, 0x20
RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWNEIGH, RTM_GETNEIGH = 24, 26, 28, 30
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_VIA = 1, 4, 5, 18
RTN_UNICAST: Final = 1

Hop = tuple[int, bytes]
"""Interface index and address of a next hop."""


def attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute (rtnetlink(7)) from offset on."""
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4 or offset + length > len(body):
            return
        yield kind & 0x3FFF, body[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def route_interface(address: bytes) -> int:
    """Index of the interface that the route to an address (4 or 16 bytes) leads to, 0 = no route. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
        netlink.settimeout(1.0)
        netlink.bind((0, 0))
        for kind, answer in _ask(netlink, RTM_GETROUTE, 0, _route_question(address)):
            if kind == RTM_NEWROUTE:
                (index,) = struct.unpack("=i", dict(attributes(answer, 12)).get(RTA_OIF, bytes(4)))
                return int(index)
    return 0


def _route_question(address: bytes) -> bytes:
    """struct rtmsg and the address asked for."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    body = struct.pack("=BBBBBBBBI", family, 8 * len(address), 0, 0, 0, 0, 0, 0, 0)
    return body + struct.pack("=HH", 4 + len(address), RTA_DST) + address


def _ask(netlink: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of each message of the answer, errors left out."""
    netlink.send(struct.pack("=IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST, 1, 0) + body)
    while True:
        data = netlink.recv(1 << 18)
        offset = 0
        while offset + 16 <= len(data):
            length, answer = struct.unpack_from("=IH", data, offset)
            if answer in (NLMSG_ERROR, NLMSG_DONE) or length < 16:
                return
            yield answer, data[offset + 16 : offset + length]
            offset += (length + 3) & ~3
        if not flags & NLM_F_DUMP:
            return


class Neighbours:
    """Remembers since when each next hop has had no address. Not for two threads at once."""

    def __init__(self) -> None:
        self._hops: dict[tuple[bytes, int], tuple[float, Hop | None]] = {}
        self._since: dict[Hop, float] = {}

    def look(self, receivers: Mapping[str, tuple[bytes, int]]) -> set[str]:
        """Names of the receivers (address, scope id) that are unresolved now. Raises OSError when the kernel cannot be
        asked.
        """
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
            netlink.settimeout(1.0)
            netlink.bind((0, 0))
            now = time.monotonic()
            bad = {hop for hop, state in self._table(netlink) if state & (NUD_INCOMPLETE | NUD_FAILED)}
            self._since = {hop: self._since.get(hop, now) for hop in bad}
            self._hops = {key: hop for key, hop in self._hops.items() if now - hop[0] < ROUTES_SECONDS}
            if not bad:
                return set()
            late = {hop for hop, since in self._since.items() if now - since >= PATIENCE_SECONDS}
            return {name for name, target in receivers.items() if self._hop(netlink, target, now) in late}

    def _hop(self, netlink: socket.socket, target: tuple[bytes, int], now: float) -> Hop | None:
        if target not in self._hops:
            self._hops[target] = (now, self._route(netlink, *target))
        return self._hops[target][1]

    def _table(self, netlink: socket.socket) -> Iterator[tuple[Hop, int]]:
        """(next hop, state) of every entry."""
        for kind, body in _ask(netlink, RTM_GETNEIGH, NLM_F_DUMP, bytes(12)):
            if kind == RTM_NEWNEIGH and len(body) >= 12:
                interface, state = struct.unpack_from("=iH", body, 4)
                for name, value in attributes(body, 12):
                    if name == 1:  # NDA_DST
                        yield (interface, value), state

    def _route(self, netlink: socket.socket, address: bytes, scope_id: int) -> Hop | None:
        """Next hop of an address, None = no route, or not a neighbour's (this host, multicast)."""
        body = _route_question(address)
        if scope_id:
            body += struct.pack("=HHI", 8, RTA_OIF, scope_id)
        for kind, answer in _ask(netlink, RTM_GETROUTE, 0, body):
            if kind == RTM_NEWROUTE and len(answer) >= 12 and answer[7] == RTN_UNICAST:
                found = dict(attributes(answer, 12))
                if RTA_OIF in found:
                    via = found.get(RTA_VIA, b"")[2:]
                    return struct.unpack("=i", found[RTA_OIF])[0], found.get(RTA_GATEWAY) or via or address
        return None
