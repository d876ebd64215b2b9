"""Sockets: every socket option of the datapath, and what the kernel must be asked about this host, in one place.

Purpose: opens listener sockets, the sockets copies leave by, and short-lived probes. Invariants: a function either
returns a ready, non-blocking, close-on-exec socket or raises OSError and has closed what it opened; a granted buffer
size is always read back. Called by engines, supervisor and service. It must never block, and never keep a socket of
its own.

Option numbers that Python does not name are those of Linux (include/uapi/asm-generic/socket.h, linux/in.h,
linux/in6.h).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from samplicator.host import bpf
from samplicator.plan.spec import Udp

SO_NO_CHECK: Final = 11
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_MEMINFO: Final = 55
SO_COOKIE: Final = 57
SO_NETNS_COOKIE: Final = 71
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IP_MTU: Final = 14
IP_PMTUDISC_DONT: Final = 0
IPV6_MTU_DISCOVER: Final = 23
IPV6_MTU: Final = 24
IPV6_RECVERR: Final = 25
IPV6_TCLASS: Final = 67
SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15
PACKET_SEND_BUFFER: Final = 16 << 20
"""At least so much for a packet socket, which all receivers of a worker share."""
TX_RECEIVE_BUFFER: Final = 65536
"""Room for ICMP reports in the error queue of a way out. Datagrams never get in, a filter refuses all."""
UDP_SOCKET_TTL: Final = 64
"""Of a socket whose copies keep the TTL they came with; the datapath knows it (fastpath/tx/udp.pxi)."""
NO_ROUTE_YET: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.EINVAL}
)
"""connect() failures that a later route, link or address mends: the receiver starts as down and is tried again."""


@dataclass(frozen=True, slots=True)
class MemInfo:
    """SO_MEMINFO of a socket: bytes queued for reading, its receive buffer limit, datagrams dropped (32 bits,
    wraps).
    """

    queue_bytes: int
    buffer_bytes: int
    drops: int


@dataclass(frozen=True, slots=True)
class PathProbe:
    """What the route to a receiver is now. mtu: 0 = no route. source: our own address towards it, b"" = none."""

    mtu: int
    source: bytes
    error: int = 0


def set_bool(sock: socket.socket, level: int, option: int, value: bool) -> None:
    sock.setsockopt(level, option, 1 if value else 0)


def family_of(family: int) -> socket.AddressFamily:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def scoped(address: str) -> tuple[str, int]:
    """ "fe80::1%eth0" -> ("fe80::1", index of eth0)."""
    text, _, zone = address.partition("%")
    if not zone:
        return text, 0
    return text, int(zone) if zone.isdigit() else index_of(zone)


def index_of(name: str) -> int:
    """Of an interface. Raises OSError (ENODEV): that of if_nametoindex has no number."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV)) from None


def endpoint(address: bytes, port: int, scope_id: int = 0) -> tuple[str, int] | tuple[str, int, int, int]:
    """The sockaddr of an address in network order."""
    if len(address) == 4:
        return socket.inet_ntop(socket.AF_INET, address), port
    return socket.inet_ntop(socket.AF_INET6, address), port, 0, scope_id


def set_receive_buffer(sock: socket.socket, size: int) -> int:
    """Asks for `size` bytes, past net.core.rmem_max where the process may; returns what the kernel granted of it, in
    the same unit.
    """
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
        return granted_receive_buffer(sock)
    with socket.socket(
        sock.family, sock.type
    ) as other:  # SO_RCVBUF is cut to net.core.rmem_max: not below what is there
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        if granted_receive_buffer(other) > granted_receive_buffer(sock):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    return granted_receive_buffer(sock)


def granted_receive_buffer(sock: socket.socket) -> int:
    """socket(7): the kernel doubles the value for its bookkeeping and returns the double; here it is in the unit
    asked for.
    """
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def cookie(sock: socket.socket) -> int:
    """SO_COOKIE (since Linux 4.12): the number of a socket, which no other one of this network namespace has until the
    host starts again; every process that has the socket sees the same.
    """
    found: int = struct.unpack("@Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
    return found


def network_of(sock: socket.socket) -> int:
    """SO_NETNS_COOKIE (since Linux 5.14): the number of the network namespace that a socket is in; 0 = not known."""
    try:
        found: int = struct.unpack("@Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]
    except OSError:
        return 0
    return found


def meminfo(sock: socket.socket) -> MemInfo:
    """Reads SO_MEMINFO (net/core/sock.c, sk_get_meminfo): nine u32, [0] rmem_alloc, [1] rcvbuf, [8] drops."""
    fields = struct.unpack("@9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    return MemInfo(queue_bytes=fields[0], buffer_bytes=fields[1], drops=fields[8])


def _open_tx(family: int, kind: int, protocol: int, send_buffer: int) -> socket.socket:
    sock = socket.socket(family_of(family), kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        bpf.attach(sock, bpf.TAKE_NOTHING)  # what a receiver answers takes no memory; reports of ICMP pass by
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TX_RECEIVE_BUFFER)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, send_buffer)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        set_bool(sock, socket.SOL_SOCKET, socket.SO_BROADCAST, True)
        if family == 4:
            set_bool(sock, socket.IPPROTO_IP, IP_RECVERR, True)
        else:
            set_bool(sock, socket.IPPROTO_IPV6, IPV6_RECVERR, True)
    except BaseException:
        sock.close()
        raise
    return sock


def open_udp(spec: Udp, send_buffer: int) -> socket.socket:
    """The socket of the `udp` engine, bound when a source is set; still to be connected."""
    sock = _open_tx(spec.family, socket.SOCK_DGRAM, 0, send_buffer)
    try:
        ttl, tos = spec.ttl or UDP_SOCKET_TTL, spec.tos
        if spec.family == 4:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)  # the kernel fragments, DF clear
            set_bool(sock, socket.SOL_SOCKET, SO_NO_CHECK, not spec.checksum)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
            if tos >= 0:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DONT)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, ttl)
            if tos >= 0:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TCLASS, tos)
        if spec.source is not None:
            address, port = spec.source
            if port:  # one socket per worker, all from this port
                set_bool(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
            sock.bind(endpoint(address, port, spec.scope_id))
    except BaseException:
        sock.close()
        raise
    return sock


def open_raw(spec: Udp, send_buffer: int) -> socket.socket:
    """The socket of the `raw` engine: whole packets, header included (raw(7): IPPROTO_RAW implies IP_HDRINCL); still
    to be connected.
    """
    sock = _open_tx(spec.family, socket.SOCK_RAW, socket.IPPROTO_RAW, send_buffer)
    try:
        if spec.family == 4:
            set_bool(sock, socket.IPPROTO_IP, socket.IP_HDRINCL, True)
    except BaseException:
        sock.close()
        raise
    return sock


def open_packet(send_buffer: int) -> socket.socket:
    """The packet socket of a worker (engine `packet`): sends frames that begin with a virtio-net header (packet(7),
    PACKET_VNET_HDR), receives nothing (protocol 0).
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        set_bool(sock, SOL_PACKET, PACKET_VNET_HDR, True)
        size = max(send_buffer, PACKET_SEND_BUFFER)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, size)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    except BaseException:
        sock.close()
        raise
    return sock


def open_nowhere() -> socket.socket:
    """The socket of a way to a receiver that nothing can be sent to now: it is only held."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)


def connect(sock: socket.socket, spec: Udp) -> bool:
    """Connects to the receiver; False when there is no route yet (the supervisor tries again), OSError on anything
    else.
    """
    port = spec.port if sock.type & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) == socket.SOCK_DGRAM else 0
    try:
        sock.connect(endpoint(spec.address, port, spec.scope_id))
    except OSError as error:
        if error.errno in NO_ROUTE_YET:
            return False
        raise
    return True


def probe_path(address: bytes, port: int, scope_id: int = 0) -> PathProbe:
    """Asks the routing table, through a connected socket, for path MTU and own source address. Sends nothing."""
    family = 4 if len(address) == 4 else 6
    with socket.socket(family_of(family), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        set_bool(sock, socket.SOL_SOCKET, socket.SO_BROADCAST, True)
        try:
            sock.connect(endpoint(address, port, scope_id))
            if family == 4:
                mtu = sock.getsockopt(socket.IPPROTO_IP, IP_MTU)
            else:
                mtu = sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
        except OSError as error:
            return PathProbe(mtu=0, source=b"", error=error.errno or errno.EIO)
        own = sock.getsockname()[0].partition("%")[0]
    return PathProbe(
        mtu=min(max(mtu, 68 if family == 4 else 1280), 65535), source=socket.inet_pton(family_of(family), own)
    )


def own_address(sock: socket.socket) -> bytes:
    """The local address of a connected or bound socket."""
    return socket.inet_pton(sock.family, str(sock.getsockname()[0]).partition("%")[0])


def reserve_source(spec: Udp) -> tuple[socket.socket, tuple[bytes, int]]:
    """An own address and port for raw copies that are not spoofed, held by a socket so that no other program sends from
    that port.
    """
    sock = socket.socket(family_of(spec.family), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        bpf.attach(sock, bpf.TAKE_NOTHING)  # what a receiver answers takes no memory; reports of ICMP pass by
        wanted = spec.source[0] if spec.source else bytes(len(spec.address))
        try:
            sock.bind(endpoint(wanted, 0, spec.scope_id))
        except OSError:  # not an address of this host: a raw socket can still use it, and only the port is held
            sock.bind(endpoint(bytes(len(spec.address)), 0))
        port = sock.getsockname()[1]
        if any(wanted):
            return sock, (wanted, port)
        probe = probe_path(spec.address, spec.port, spec.scope_id)
        return sock, (probe.source or wanted, port)
    except BaseException:
        sock.close()
        raise
