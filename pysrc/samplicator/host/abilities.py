"""Abilities: what this host has and what this process may do: addresses, interfaces, rights, limits.

Plain questions to the kernel, asked again each time. Called by service, supervisor and the command line. It must never
change anything.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from dataclasses import dataclass
from typing import Final

from samplicator.host import interfaces, neighbors
from samplicator.host.sockets import endpoint, family_of, probe_path
from samplicator.plan.spec import Capabilities

CAP_NET_ADMIN: Final = 12


def rings_take_runs() -> bool:
    """Whether a packet ring can hold what was coalesced for a socket, and a packet socket can send a run: the
    virtio-net header has a word for it since Linux 6.2 (include/linux/virtio_net.h). Before, the ring drops it, and the
    socket refuses it.
    """
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= (6, 2)


def is_local(address: bytes) -> bool:
    """Whether datagrams to this address come back to this host."""
    if len(address) == 16 and address[:12] == bytes(10) + b"\xff\xff":
        address = address[12:]
    if not any(address):
        return True
    if len(address) == 4:
        if address[0] == 127:
            return True
        if address[0] >= 224:
            return False
    elif address[0] == 0xFF:
        return False
    name = "ipv4" if len(address) == 4 else "ipv6"
    if (
        sysctl(f"net/{name}/ip_nonlocal_bind") == 1
    ):  # bind() proves nothing here; the source towards an own address is itself
        return probe_path(address, 9).source == address
    with socket.socket(family_of(4 if len(address) == 4 else 6), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.bind(endpoint(address, 0))
        except OSError as error:
            # a link-local address cannot be bound without its interface
            return error.errno == errno.EINVAL and probe_path(address, 9).source == address
    return True


def sysctl(name: str, unknown: int = 0) -> int:
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return unknown


@dataclass(frozen=True, slots=True)
class SourcePorts:
    """Where this host gives out ports by itself, first..last (net.ipv4.ip_local_port_range, of both families), and the
    ports that it reserves (net.ipv4.ip_local_reserved_ports); bind(2) with an explicit port checks neither.
    """

    first: int = 32768
    last: int = 60999
    reserved: frozenset[int] = frozenset()


def source_ports() -> SourcePorts:
    """As they are now; as the kernel ships them where they cannot be read."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
            first, last = map(int, file.read().split())
        with open("/proc/sys/net/ipv4/ip_local_reserved_ports", encoding="ascii") as file:
            parts = [part.partition("-") for part in file.read().strip().split(",") if part]
        ranges = [range(int(begin), int(end or begin) + 1) for begin, _, end in parts]
    except (OSError, ValueError):
        return SourcePorts()
    return SourcePorts(first, last, frozenset(port for each in ranges for port in each))


def rmem_max() -> int:
    """net.core.rmem_max, 0 when unknown."""
    return sysctl("net/core/rmem_max")


def capabilities() -> Capabilities:
    """What this process may do here, found by trying (NET_RAW) and by its effective set (NET_ADMIN)."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
        net_raw = True
    except OSError:
        net_raw = False
    return Capabilities(
        net_raw=net_raw,
        net_admin=bool(_effective() >> CAP_NET_ADMIN & 1),
        frames=rings_take_runs(),
        is_local=is_local,
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        interface_index=interface_index,
        host_addresses=interfaces.host_addresses,
        group_interface=group_interface,
    )


def group_interface(group: bytes) -> int:
    """Index of the interface that the route to a multicast group leads to, as the kernel chooses for a membership that
    names none (ip_mc_find_dev, net/ipv4/igmp.c; ipv6_sock_mc_join, net/ipv6/mcast.c); 0 when there is none.
    """
    try:
        return neighbors.route_interface(group)
    except (OSError, struct.error):
        return 0


def interface_index(name: str) -> int:
    """0 when there is no such interface."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _effective() -> int:
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    return int(line.split()[1], 16)
    except (OSError, ValueError):
        pass
    return 0
