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
import re
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from samplicator.host import bpf, neighbors
from samplicator.plan.spec import Capabilities, HostAddress, SocketSpec, Udp

SO_NO_CHECK: Final = 11
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_TIMESTAMPNS: Final = 35
SO_MEMINFO: Final = 55
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IP_RECVTTL: Final = 12
IP_RECVTOS: Final = 13
IP_MTU: Final = 14
IP_MULTICAST_ALL: Final = 49
IP_PMTUDISC_DONT: Final = 0
IPV6_MTU_DISCOVER: Final = 23
IPV6_MTU: Final = 24
IPV6_RECVERR: Final = 25
IPV6_MULTICAST_ALL: Final = 29
IPV6_RECVHOPLIMIT: Final = 51
IPV6_RECVTCLASS: Final = 66
IPV6_TCLASS: Final = 67
UDP_GRO: Final = 104

SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15
PACKET_SEND_BUFFER: Final = 16 << 20
"""At least so much for a packet socket, which all receivers of a worker share."""

CAP_NET_ADMIN: Final = 12

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


def _bool(sock: socket.socket, level: int, option: int, value: bool) -> None:
    sock.setsockopt(level, option, 1 if value else 0)


def _family(family: int) -> socket.AddressFamily:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def _scoped(address: str) -> tuple[str, int]:
    """ "fe80::1%eth0" -> ("fe80::1", index of eth0)."""
    text, _, zone = address.partition("%")
    if not zone:
        return text, 0
    return text, int(zone) if zone.isdigit() else _index(zone)


def _index(name: str) -> int:
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


# ---------------------------------------------------------------------------------------------------- listeners


def open_listener(
    spec: SocketSpec,
    *,
    receive_buffer: int,
    ttl: bool,
    tos: bool,
    beside: Sequence[socket.socket] = (),
    join: bool = True,
    program: bytes = b"",
    runs: bool = True,
) -> socket.socket:
    """Opens and binds a listener socket.

    beside: our other sockets on this port. With none the port is taken without SO_REUSEPORT, so that another process
    that has it is found out (EADDRINUSE) instead of silently sharing the traffic; with some, SO_REUSEPORT is set on
    all of them. join: only one of the sockets of a listener joins multicast groups, because the kernel copies
    multicast to every member socket. program: its filter (groupcast.Casts), b"" = none. runs: see take_runs().
    """
    sock = socket.socket(_family(spec.family), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if beside:
            for other in beside:
                _bool(other, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
            _bool(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
        if spec.family == 6:
            _bool(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, spec.v6only)
        if spec.interface:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, spec.interface.encode() + b"\0")
        _prepare(sock, spec, receive_buffer, ttl, tos, runs)
        if program:
            bpf.set_filter(sock, program)
        address, scope_id = _scoped(spec.address)
        sock.bind((address, spec.port) if spec.family == 4 else (address, spec.port, 0, scope_id))
        if join:
            named = _index(spec.interface) if spec.interface and spec.groups else 0
            for group, index in zip(spec.groups, spec.joins or (0,) * len(spec.groups), strict=True):
                _join(sock, group, named or index)
    except BaseException:
        sock.close()
        raise
    return sock


def _prepare(sock: socket.socket, spec: SocketSpec, receive_buffer: int, ttl: bool, tos: bool, runs: bool) -> None:
    """What a listener's socket hands over and how much it holds."""
    set_receive_buffer(sock, receive_buffer)
    _bool(sock, socket.SOL_SOCKET, SO_TIMESTAMPNS, True)
    set_kept_fields(sock, spec, ttl=ttl, tos=tos)
    take_runs(sock, runs)
    sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
    if spec.family == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)


def adopt_listener(
    sock: socket.socket,
    spec: SocketSpec,
    *,
    receive_buffer: int,
    ttl: bool,
    tos: bool,
    beside: Sequence[socket.socket] = (),
    join: bool = True,
    program: bytes = b"",
    runs: bool = True,
) -> None:
    """Makes a socket that is bound already what open_listener would make; what it holds stays. Its groups are joined
    already, or are joined now. Raises ValueError when it is bound elsewhere, OSError.
    """
    address, scope_id = _scoped(spec.address)
    bound = sock.getsockname()
    wanted = (address, spec.port) if spec.family == 4 else (address, spec.port, 0, scope_id)
    device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).partition(b"\0")[0].decode()
    if sock.family != _family(spec.family) or sock.type & 0xF != socket.SOCK_DGRAM or device != spec.interface:
        raise ValueError(
            f"the socket at {bound} cannot serve {spec.address} port {spec.port}: its family, type or interface differs"
        )
    if (socket.inet_pton(sock.family, bound[0].partition("%")[0]), *bound[1:]) != (
        socket.inet_pton(sock.family, address),
        *wanted[1:],
    ):
        raise ValueError(f"the socket is bound to {bound}, not to {spec.address} port {spec.port}")
    if spec.family == 6 and bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)) != spec.v6only:
        raise ValueError("the socket and the listener differ in the address families that they take (IPV6_V6ONLY)")
    sock.setblocking(False)
    sock.set_inheritable(False)
    for one in (sock, *beside) if beside else ():
        _bool(one, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
    _prepare(sock, spec, receive_buffer, ttl, tos, runs)
    bpf.set_filter(sock, program)
    if join:
        named = _index(spec.interface) if spec.interface and spec.groups else 0
        for group, index in zip(spec.groups, spec.joins or (0,) * len(spec.groups), strict=True):
            try:
                _join(sock, group, named or index)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # it is a member already
                    raise


def take_runs(sock: socket.socket, wanted: bool) -> None:
    """Whether datagrams that the driver has coalesced for this socket come in as they are (UDP_GRO, since Linux 5.0):
    where it is off, the kernel does not coalesce for it. Works on a live socket.
    """
    with contextlib.suppress(OSError):
        _bool(sock, socket.IPPROTO_UDP, UDP_GRO, wanted)


def rings_take_runs() -> bool:
    """Whether a packet ring can hold what was coalesced for a socket: its virtio-net header has a word for it since
    Linux 6.2 (virtio_net_hdr_from_skb(), include/linux/virtio_net.h). Before, the ring drops it.
    """
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= (6, 2)


def share_port(sock: socket.socket) -> None:
    """Lets the workers' sockets for exporters that send from this port (engine `transparent`) be bound beside a
    listener that is bound already: until then the port is its own, so that another program that has it is found out.
    Programs of another user are refused as before (SO_REUSEPORT, socket(7)).
    """
    _bool(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)


def unshared(socks: Sequence[socket.socket]) -> list[socket.socket]:
    """Those that have their port for themselves (no SO_REUSEPORT): what open_listener() changes when it opens others
    beside them."""
    return [sock for sock in socks if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)]


def unshare(socks: Sequence[socket.socket]) -> None:
    """Takes that back, when the others are closed."""
    for sock in socks:
        with contextlib.suppress(OSError):
            _bool(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, False)


HOST_LACKS: Final = frozenset(
    {errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH, errno.EINVAL, errno.ENXIO}
)
"""Failures to open a socket that a later interface, address or route mends without anybody's help. EINVAL: of an
interface that has no IPv6 yet."""
SOMEBODY_MUST: Final = frozenset({errno.EADDRINUSE, errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT, errno.ENOBUFS})
"""Those that somebody must mend on this host: another program, a right, a switch."""


def why_not_listening(spec: SocketSpec, error: OSError) -> str:
    """What this host lacks, for people: a state, not a sentence."""
    number = error.errno
    if number == errno.ENODEV and spec.device:
        return f"there is no interface {spec.device}"
    if number == errno.ENODEV:
        return f"no interface has a route to the multicast groups ({', '.join(spec.groups)}); name one with `interface`"
    if number == errno.EADDRNOTAVAIL:
        return f"{spec.address} is not an address of this host now"
    if number == errno.EADDRINUSE:
        return f"another program uses port {spec.port}; find it with: ss -lunp sport = :{spec.port}"
    if number == errno.EACCES and spec.port < _sysctl("net/ipv4/ip_unprivileged_port_start", 1024):
        return (
            f"port {spec.port} needs CAP_NET_BIND_SERVICE, and this process lacks it; with systemd install the drop-in "
            "samplicator.service.d/low-ports.conf, then systemctl daemon-reload and systemctl restart samplicator; "
            'in Kubernetes securityContext.capabilities.add: ["NET_BIND_SERVICE"]; or lower the sysctl '
            "net.ipv4.ip_unprivileged_port_start"
        )
    if number == errno.EAFNOSUPPORT:
        return f"IPv{spec.family} is switched off on this host"
    if number == errno.ENOBUFS and spec.groups:
        return "the host is in too many multicast groups; raise the sysctl net.ipv4.igmp_max_memberships"
    return error.strerror or str(error)


def _join(sock: socket.socket, group: str, index: int) -> None:
    """index: of the interface, 0 = the kernel chooses."""
    if ":" in group:
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    else:  # struct ip_mreqn
        request = socket.inet_aton(group) + bytes(4) + struct.pack("@i", index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)


def set_receive_buffer(sock: socket.socket, size: int) -> int:
    """Asks for `size` bytes, past net.core.rmem_max where the process may; returns what the kernel granted of it, in
    the same unit.
    """
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
        return granted_receive_buffer(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    return granted_receive_buffer(sock)


def granted_receive_buffer(sock: socket.socket) -> int:
    """socket(7): the kernel doubles the value for its bookkeeping and returns the double; here it is in the unit
    asked for.
    """
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def set_kept_fields(sock: socket.socket, spec: SocketSpec, *, ttl: bool, tos: bool) -> None:
    """Has the kernel hand over TTL and TOS of each datagram when some receiver keeps them. Works on a live socket."""
    if spec.family == 4 or not spec.v6only:  # a dual-stack socket receives IPv4 datagrams with IPv4 control messages
        _bool(sock, socket.IPPROTO_IP, IP_RECVTTL, ttl)
        _bool(sock, socket.IPPROTO_IP, IP_RECVTOS, tos)
    if spec.family == 6:
        _bool(sock, socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, ttl)
        _bool(sock, socket.IPPROTO_IPV6, IPV6_RECVTCLASS, tos)


def meminfo(sock: socket.socket) -> MemInfo:
    """Reads SO_MEMINFO (net/core/sock.c, sk_get_meminfo): nine u32, [0] rmem_alloc, [1] rcvbuf, [8] drops."""
    fields = struct.unpack("@9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    return MemInfo(queue_bytes=fields[0], buffer_bytes=fields[1], drops=fields[8])


# ---------------------------------------------------------------------------------------------------- ways out


def _open_tx(family: int, kind: int, protocol: int, send_buffer: int) -> socket.socket:
    sock = socket.socket(_family(family), kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        bpf.attach(sock, bpf.TAKE_NOTHING)  # what a receiver answers takes no memory; reports of ICMP pass by
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TX_RECEIVE_BUFFER)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, send_buffer)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        _bool(sock, socket.SOL_SOCKET, socket.SO_BROADCAST, True)
        if family == 4:
            _bool(sock, socket.IPPROTO_IP, IP_RECVERR, True)
        else:
            _bool(sock, socket.IPPROTO_IPV6, IPV6_RECVERR, True)
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
            _bool(sock, socket.SOL_SOCKET, SO_NO_CHECK, not spec.checksum)
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
                _bool(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
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
            _bool(sock, socket.IPPROTO_IP, socket.IP_HDRINCL, True)
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
        _bool(sock, SOL_PACKET, PACKET_VNET_HDR, True)
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
    with socket.socket(_family(family), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        _bool(sock, socket.SOL_SOCKET, socket.SO_BROADCAST, True)
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
        mtu=min(max(mtu, 68 if family == 4 else 1280), 65535), source=socket.inet_pton(_family(family), own)
    )


def own_address(sock: socket.socket) -> bytes:
    """The local address of a connected or bound socket."""
    return socket.inet_pton(sock.family, str(sock.getsockname()[0]).partition("%")[0])


def reserve_source(spec: Udp) -> tuple[socket.socket, tuple[bytes, int]]:
    """An own address and port for raw copies that are not spoofed, held by a socket so that nobody else sends from
    that port.
    """
    sock = socket.socket(_family(spec.family), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        bpf.attach(sock, bpf.TAKE_NOTHING)  # what a receiver answers takes no memory; reports of ICMP pass by
        wanted = spec.source[0] if spec.source else bytes(len(spec.address))
        try:
            sock.bind(endpoint(wanted, 0, spec.scope_id))
        except OSError:  # not an address of this host: raw may write it all the same, only the port is ours
            sock.bind(endpoint(bytes(len(spec.address)), 0))
        port = sock.getsockname()[1]
        if any(wanted):
            return sock, (wanted, port)
        probe = probe_path(spec.address, spec.port, spec.scope_id)
        return sock, (probe.source or wanted, port)
    except BaseException:
        sock.close()
        raise


# ---------------------------------------------------------------------------------------------------- the host


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
        _sysctl(f"net/{name}/ip_nonlocal_bind") == 1
    ):  # bind() proves nothing here; the source towards an own address is itself
        return probe_path(address, 9).source == address
    with socket.socket(_family(4 if len(address) == 4 else 6), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.bind(endpoint(address, 0))
        except OSError as error:
            # a link-local address cannot be bound without its interface
            return error.errno == errno.EINVAL and probe_path(address, 9).source == address
    return True


def _sysctl(name: str, unknown: int = 0) -> int:
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return unknown


@dataclass(frozen=True, slots=True)
class SourcePorts:
    """Where this host gives out ports by itself, first..last (net.ipv4.ip_local_port_range, of both families), and the
    ports that it keeps for somebody (net.ipv4.ip_local_reserved_ports): bind(2) of a port by name looks at neither.
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
    return _sysctl("net/core/rmem_max")


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
        is_local=is_local,
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        interface_index=interface_index,
        host_addresses=host_addresses,
        group_interface=group_interface,
    )


def host_addresses() -> tuple[HostAddress, ...]:
    """All addresses of this host. Raises OSError."""
    from samplicator.host import links  # heavy, and only a ring wants to know

    return links.host_addresses()


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
