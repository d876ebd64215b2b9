"""Rings: which packet rings a listener gets: on which interfaces, for which addresses and ports.

Purpose: a ring takes datagrams before the UDP stack chooses a socket. This module computes what the stack would choose,
so that a ring takes only datagrams that a socket of its own listener would get. Invariants: pure (specs and the host's
addresses in, RingSpecs out). Called by planner. It must never ask the kernel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from samplicator.config.address import address_bytes
from samplicator.plan.spec import HostAddress, ListenerSpec, RingMatch, RingSpec, SocketSpec

LOOPBACK = "lo"
NEEDS = (
    'receive = "ring" needs CAP_NET_RAW (packet sockets) and CAP_NET_ADMIN (the ingress rule); run as root, or grant '
    "them (systemd: AmbientCapabilities=CAP_NET_RAW CAP_NET_ADMIN; Kubernetes: securityContext.capabilities.add: "
    '["NET_RAW", "NET_ADMIN"])'
)


def rings_of(
    sockets: Sequence[SocketSpec], others: Sequence[SocketSpec], host: Sequence[HostAddress], indexes: dict[str, int]
) -> tuple[RingSpec, ...]:
    """The rings of a listener with these sockets; () when no interface carries what it listens to.

    others: the sockets of all other listeners. indexes: of interfaces by name, those of `host` and configured ones.
    """
    ports: dict[str, dict[tuple[tuple[bytes, ...], tuple[bytes, ...]], list[int]]] = {}
    for socket in sockets:
        rivals = [other for other in (*sockets, *others) if other is not socket and other.port == socket.port]
        for interface in _interfaces(socket, host):
            if any(rival.interface == interface != socket.interface and _overlap(rival, socket) for rival in rivals):
                continue
            addresses = _addresses(socket, interface, rivals, host)
            groups = tuple(sorted(address_bytes(group) for group in socket.groups)) if socket.interface else ()
            if addresses or groups:
                ports.setdefault(interface, {}).setdefault((addresses, groups), []).append(socket.port)
    return tuple(
        RingSpec(
            interface,
            indexes[interface],
            tuple(RingMatch(_ranges(numbers), addresses, groups) for (addresses, groups), numbers in found.items()),
        )
        for interface, found in sorted(ports.items())
    )


def listener_rings(
    listener: ListenerSpec, listeners: Sequence[ListenerSpec], host: Sequence[HostAddress], indexes: dict[str, int]
) -> tuple[RingSpec, ...]:
    """rings_of a listener among others. indexes: of interfaces; those of its own sockets are added."""
    there = [s for s in listener.sockets if s.index or not s.device]
    for socket in there:
        indexes.setdefault(socket.device, socket.index)
    others = [s for other in listeners if other is not listener for s in other.sockets]
    return rings_of(there, others, host, indexes)


def _families(socket: SocketSpec) -> tuple[int, ...]:
    """Bytes of the addresses that an unspecified socket takes."""
    if socket.family == 4:
        return (4,)
    return (16,) if socket.v6only else (4, 16)


def _is_loopback(address: bytes) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _interfaces(socket: SocketSpec, host: Sequence[HostAddress]) -> list[str]:
    """Where datagrams for the socket are looked for: its own interface, those that carry its address, or all."""
    scope = socket.address.partition("%")[2]
    if socket.interface or scope:
        return [socket.interface or scope]
    bound = address_bytes(socket.address)
    if any(bound):
        if _is_loopback(bound):
            return [LOOPBACK]
        carriers = {item.interface for item in host if item.address == bound}
        if carriers != {LOOPBACK}:
            return sorted(carriers)
    wanted = _families(socket)  # everywhere; so for an address of our own on lo, which comes in anywhere else
    return sorted({item.interface for item in host if item.interface != LOOPBACK and len(item.address) in wanted})


def _addresses(
    socket: SocketSpec, interface: str, rivals: Iterable[SocketSpec], host: Sequence[HostAddress]
) -> tuple[bytes, ...]:
    bound = address_bytes(socket.address)
    if any(bound):
        return (bound,)
    taken = {address_bytes(rival.address) for rival in rivals if rival.interface in ("", interface)}
    wanted = _families(socket)
    return tuple(
        sorted(
            {
                item.address
                for item in host
                if len(item.address) in wanted
                and item.address not in taken
                and (interface == LOOPBACK or not _is_loopback(item.address))
            }
        )
    )


def _overlap(one: SocketSpec, other: SocketSpec) -> bool:
    """Whether a datagram could be for both, but for the interface."""
    a, b = address_bytes(one.address), address_bytes(other.address)
    if any(a) and any(b):
        return a == b
    return bool(set(_families(one) if not any(a) else {len(a)}) & set(_families(other) if not any(b) else {len(b)}))


def _ranges(ports: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Inclusive ranges of port numbers."""
    ranges: list[tuple[int, int]] = []
    for port in sorted(set(ports)):
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], port)
        else:
            ranges.append((port, port))
    return tuple(ranges)
