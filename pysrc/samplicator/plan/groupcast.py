"""Group-cast: which socket of a port takes a broadcast or multicast datagram, so that it is received once.

The kernel gives a unicast datagram to one socket of a port: the best match, or one of a SO_REUSEPORT group. A broadcast
or multicast one it gives to every socket that matches (net/ipv4/udp.c, __udp4_lib_mcast_deliver; net/ipv6/udp.c,
__udp6_lib_mcast_deliver), so once to each worker, and to each of two listeners that overlap. Operators expect the same
as for unicast: one listener receives it, the most specific one (a listener with an interface before one with an
address, and that before one without), and one worker of this listener, the first. So the other sockets have a filter
(classic BPF) that drops what another socket takes. It judges by the destination address, not by the link's packet type:
clusters send unicast in multicast frames, tunnels send broadcast without any.

Invariants: pure; a filter drops only what another socket takes. Called by supervisor. It must never open a socket.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from samplicator.plan.loops import LIMITED, by_itself, packed
from samplicator.plan.spec import SocketSpec

_NET: Final = 0xFFF00000  # SKF_NET_OFF, include/uapi/linux/filter.h
_PACKET_TYPE: Final = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_INTERFACE: Final = 0xFFFFF008  # SKF_AD_OFF + SKF_AD_IFINDEX
_LOAD, _LOAD_BYTE, _AND, _EQUAL, _GO, _RETURN = 0x20, 0x30, 0x54, 0x15, 0x05, 0x06
_ALL: Final = 0xFFFFFFFF
_DESTINATION: Final = {4: _NET + 16, 16: _NET + 24}
_MOST: Final = 1500
"""Broadcast addresses a program can hold."""
_LINES: Final = 4000
"""Of a program, but for those around the addresses (BPF_MAXINSNS is 4096)."""
_BROADCAST_FRAME: Final = 1

Code = list[tuple[int, int, int, int]]
Place = tuple[int, bytes]
"""Interface index (0 = any) and destination address of datagrams that another socket takes."""


@dataclass(frozen=True, slots=True)
class Casts:
    """The filters of a set of sockets. broadcasts: the IPv4 broadcast addresses of this host, but 255.255.255.255.
    index: of an interface by its name, 0 = there is none now.
    """

    sockets: Sequence[SocketSpec]
    broadcasts: frozenset[bytes]
    index: Callable[[str], int] = field(compare=False)
    _made: dict[SocketSpec | None, bytes] = field(default_factory=dict, compare=False)

    def program(self, socket: SocketSpec, rank: int) -> bytes:
        """The filter (struct sock_filter array) of the rank-th socket for one spec; b"" = none."""
        if rank:
            return self.nothing
        if socket not in self._made:
            self._made[socket] = self._leave_out(self.taken_elsewhere(socket))
        return self._made[socket]

    @property
    def nothing(self) -> bytes:
        """The filter of a socket that gets unicast only."""
        if None not in self._made:  # there are many such sockets, and a router has many addresses
            self._made[None] = self._unicast()
        return self._made[None]

    def _unicast(self) -> bytes:
        four: Code = [(_LOAD_BYTE, 0, 0, _DESTINATION[4]), (_AND, 0, 0, 0xF0), (_EQUAL, 0, 1, 0xE0), (_RETURN, 0, 0, 0)]
        known = sorted({LIMITED, *self.broadcasts})
        if len(known) > _MOST:
            known = [LIMITED]
            four += [(_LOAD, 0, 0, _PACKET_TYPE), (_EQUAL, 0, 1, _BROADCAST_FRAME), (_RETURN, 0, 0, 0)]
        four.append((_LOAD, 0, 0, _DESTINATION[4]))
        for address in known:
            four += [(_EQUAL, 0, 1, int.from_bytes(address)), (_RETURN, 0, 0, 0)]
        six: Code = [(_LOAD_BYTE, 0, 0, _DESTINATION[16]), (_EQUAL, 0, 1, 0xFF), (_RETURN, 0, 0, 0)]
        return _both(four, six)

    def taken_elsewhere(self, socket: SocketSpec) -> list[Place]:
        """What a more exact socket of the same port takes."""
        found: dict[Place, None] = {}
        for other in self.sockets:
            if other.port != socket.port or _exactness(other) <= _exactness(socket):
                continue
            if socket.interface and socket.interface != other.interface:
                continue  # its datagrams come by another interface
            interface = self.index(other.interface) if other.interface else 0
            if other.interface and not interface:
                continue  # it is not there: it takes nothing
            for address in self._takes(other):
                if _may_take(socket, address):
                    found[interface, address] = None
        return list(found)

    def _takes(self, socket: SocketSpec) -> list[bytes]:
        """Broadcast addresses and groups that a socket gets."""
        groups = [packed(group) for group in socket.groups]
        if socket.family == 4 or not socket.v6only:
            groups += sorted({LIMITED, *self.broadcasts})
        bound = packed(socket.address)
        return [address for address in groups if not any(bound) or address == bound]

    @staticmethod
    def _leave_out(places: Sequence[Place]) -> bytes:
        if not places:
            return b""
        four: Code = []
        six: Code = []
        for interface, address in places:
            code: Code = [(_RETURN, 0, 0, 0)]
            if interface:
                code = [(_LOAD, 0, 0, _INTERFACE), (_EQUAL, 0, 1, interface), *code]
            for word in range(len(address) - 4, -1, -4):
                value = int.from_bytes(address[word : word + 4])
                code = [(_LOAD, 0, 0, _DESTINATION[len(address)] + word), (_EQUAL, 0, len(code), value), *code]
            if len(four) + len(six) + len(code) > _LINES:  # the rest comes twice
                break
            if len(address) == 4:
                four += code
            else:
                six += code
        return _both(four, six)


def _exactness(socket: SocketSpec) -> tuple[bool, bool]:
    return bool(socket.interface), any(packed(socket.address))


def _may_take(socket: SocketSpec, address: bytes) -> bool:
    bound = packed(socket.address)
    if any(bound) and bound != address:
        return False
    told = by_itself(address)
    if told is not None and told.kind == "group":
        return address in map(packed, socket.groups)
    return socket.family == 4 or not socket.v6only


def _both(four: Code, six: Code) -> bytes:
    """The program that goes by the version of the packet; what neither part leaves out is taken."""
    take = (_RETURN, 0, 0, _ALL)
    code: Code = [(_LOAD_BYTE, 0, 0, _NET), (_AND, 0, 0, 0xF0), (_EQUAL, 0, 1, 0x60), (_GO, 0, 0, len(four) + 1)]
    code += [*four, take, *six, take]
    return b"".join(struct.pack("=HBBI", *line) for line in code)
