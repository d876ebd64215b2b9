"""Interfaces and neighbors of this host, as rtnetlink(7) tells them.

Purpose: what links, rings and listeners must know of them, in plain values. Invariants: an answer that is not whole is
not taken for one where that matters (host_addresses). Called by links and abilities. It changes nothing.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from dataclasses import dataclass
from typing import Final

from samplicator.host.netlink import NLM_F_DUMP, RTMSG_BYTES, Conversation, attribute, attributes
from samplicator.plan.spec import HostAddress

RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR = 16, 18, 20, 22
IFINFO_BYTES, IFADDR_BYTES = 16, 8
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_QDISC, IFLA_MASTER, IFLA_LINK_NETNSID = 1, 3, 4, 5, 6, 10, 37
IFA_ADDRESS, IFA_LOCAL = 1, 2
NDA_DST, NDA_LLADDR, NDA_FLAGS_EXT = 1, 2, 15
NUD_NOARP, NUD_PERMANENT, NTF_EXT_MANAGED = 0x40, 0x80, 0x1
TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Device:
    """An interface. kind: ARPHRD_*. flags: IFF_*. below: the interface that it is on (of a VLAN), master: that it is a
    part of (of a bond or a bridge), by index, 0 = none. queue: its queueing discipline, "noqueue" = none.
    """

    name: str
    kind: int
    flags: int
    address: bytes
    mtu: int
    below: int = 0
    master: int = 0
    queue: str = ""


@dataclass(frozen=True, slots=True)
class Neighbor:
    """What the kernel knows of one. state: NUD_*. flags: NTF_*. address: its link address, b"" = none. managed: the
    kernel keeps it fresh by itself.
    """

    state: int
    flags: int
    address: bytes
    managed: bool

    @classmethod
    def of(cls, body: bytes) -> Neighbor:
        """Of a message: struct ndmsg (rtnetlink(7)) and attributes."""
        state, flags = struct.unpack_from("=HB", body.ljust(RTMSG_BYTES, b"\0"), 8)
        found = dict(attributes(body, RTMSG_BYTES))
        more = int.from_bytes(found.get(NDA_FLAGS_EXT, b""), sys.byteorder)
        return cls(state, flags, found.get(NDA_LLADDR, b""), bool(more & NTF_EXT_MANAGED))

    @property
    def kept(self) -> bool:
        """It needs no use, and one would take the mark from it by which it is kept (__neigh_update of the kernel, since
        Linux 5.16).
        """
        return bool(self.state & (NUD_PERMANENT | NUD_NOARP)) or self.managed


def ndmsg(family: int, interface: int, address: bytes, flags: int = 0) -> bytes:
    """struct ndmsg (rtnetlink(7)) of a neighbor, and its address."""
    return struct.pack("=BxHiHBB", family, 0, interface, 0, flags, 0) + attribute(NDA_DST, address)


def devices(kernel: Conversation, index: int = 0) -> dict[int, Device]:
    """Interfaces by index; index: this one, if there is one."""
    found = {}
    for kind, body in kernel.ask(RTM_GETLINK, 0 if index else NLM_F_DUMP, struct.pack("=BxHiII", 0, 0, index, 0, 0)):
        if kind == RTM_NEWLINK and len(body) >= IFINFO_BYTES:
            hardware, number, flags = struct.unpack_from("=HiI", body, 2)
            said = dict(attributes(body, IFINFO_BYTES))
            name = said.get(IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
            mtu = int.from_bytes(said.get(IFLA_MTU, b""), sys.byteorder)
            below = said.get(IFLA_LINK, b"") if IFLA_LINK_NETNSID not in said else b""
            found[number] = Device(
                name,
                hardware,
                flags,
                said.get(IFLA_ADDRESS, b""),
                mtu,
                int.from_bytes(below, sys.byteorder),
                int.from_bytes(said.get(IFLA_MASTER, b""), sys.byteorder),
                said.get(IFLA_QDISC, b"").rstrip(b"\0").decode("ascii", "replace"),
            )
    return found


def neighbor_of(body: bytes) -> tuple[int, bytes]:
    """(interface index, address) that a neighbor message is about."""
    (interface,) = struct.unpack_from("=i", body.ljust(RTMSG_BYTES, b"\0"), 4)
    return interface, dict(attributes(body, RTMSG_BYTES)).get(NDA_DST, b"")


def host_addresses() -> tuple[HostAddress, ...]:
    """Every address of this host, sorted. Raises OSError, also when they do not stop changing."""
    for _ in range(TRIES):
        found = set()
        with Conversation() as kernel:
            names = {index: device.name for index, device in devices(kernel).items()}
            refused, changed = kernel.refused, kernel.changed
            for kind, body in kernel.ask(RTM_GETADDR, NLM_F_DUMP, bytes(IFADDR_BYTES)):
                if kind != RTM_NEWADDR or len(body) < IFADDR_BYTES:
                    continue
                (index,) = struct.unpack_from("=I", body, 4)
                said = dict(attributes(body, IFADDR_BYTES))
                address = said.get(IFA_LOCAL) or said.get(IFA_ADDRESS)
                if address:
                    changed = changed or index not in names
                    found.add(HostAddress(names.get(index, ""), index, address))
            refused = refused or kernel.refused
            if refused:
                raise OSError(refused, f"addresses of this host: {os.strerror(refused)}")
            if not changed and not kernel.changed:
                return tuple(sorted(found, key=lambda item: (item.index, len(item.address), item.address)))
    raise OSError(errno.EAGAIN, "the addresses of this host are being changed")
