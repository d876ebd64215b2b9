"""Listening: opens or takes over the sockets of listeners, and explains why a socket cannot be opened.

Invariants: a function either returns a ready, non-blocking, close-on-exec socket or raises OSError and has closed what
it opened; a granted buffer size is always read back. Called by sources, intakes and supervisor. It must never block,
and never keep a socket of its own.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Sequence
from typing import Final

from samplicator.host import bpf
from samplicator.host.abilities import sysctl
from samplicator.host.sockets import family_of, index_of, scoped, set_bool, set_receive_buffer
from samplicator.plan.spec import SocketSpec

SO_TIMESTAMPNS: Final = 35
IP_RECVTTL: Final = 12
IP_RECVTOS: Final = 13
IP_MULTICAST_ALL: Final = 49
IPV6_MULTICAST_ALL: Final = 29
IPV6_RECVHOPLIMIT: Final = 51
IPV6_RECVTCLASS: Final = 66
UDP_GRO: Final = 104


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
    sock = socket.socket(family_of(spec.family), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if beside:
            for other in beside:
                set_bool(other, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
            set_bool(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
        if spec.family == 6:
            set_bool(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, spec.v6only)
        if spec.interface:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, spec.interface.encode() + b"\0")
        _prepare(sock, spec, receive_buffer, ttl, tos, runs)
        if program:
            bpf.set_filter(sock, program)
        address, scope_id = scoped(spec.address)
        sock.bind((address, spec.port) if spec.family == 4 else (address, spec.port, 0, scope_id))
        if join:
            named = index_of(spec.interface) if spec.interface and spec.groups else 0
            for group, index in zip(spec.groups, spec.joins or (0,) * len(spec.groups), strict=True):
                _join(sock, group, named or index)
    except BaseException:
        sock.close()
        raise
    return sock


def _prepare(sock: socket.socket, spec: SocketSpec, receive_buffer: int, ttl: bool, tos: bool, runs: bool) -> None:
    """What a listener's socket hands over and how much it holds."""
    set_receive_buffer(sock, receive_buffer)
    set_bool(sock, socket.SOL_SOCKET, SO_TIMESTAMPNS, True)
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
    address, scope_id = scoped(spec.address)
    bound = sock.getsockname()
    wanted = (address, spec.port) if spec.family == 4 else (address, spec.port, 0, scope_id)
    device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).partition(b"\0")[0].decode()
    if sock.family != family_of(spec.family) or sock.type & 0xF != socket.SOCK_DGRAM or device != spec.interface:
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
        set_bool(one, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
    _prepare(sock, spec, receive_buffer, ttl, tos, runs)
    bpf.set_filter(sock, program)
    if join:
        named = index_of(spec.interface) if spec.interface and spec.groups else 0
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
        set_bool(sock, socket.IPPROTO_UDP, UDP_GRO, wanted)


def share_port(sock: socket.socket) -> None:
    """Lets the workers' sockets for exporters that send from this port (engine `transparent`) be bound beside a
    listener that is bound already: until then the port is its own, so that another program that has it is found out.
    Programs of another user are refused as before (SO_REUSEPORT, socket(7)).
    """
    set_bool(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)


def unshared(socks: Sequence[socket.socket]) -> list[socket.socket]:
    """Those that have their port for themselves (no SO_REUSEPORT): what open_listener() changes when it opens others
    beside them."""
    return [sock for sock in socks if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)]


def unshare(socks: Sequence[socket.socket]) -> None:
    """Takes that back, when the others are closed."""
    for sock in socks:
        with contextlib.suppress(OSError):
            set_bool(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, False)


HOST_LACKS: Final = frozenset(
    {errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH, errno.EINVAL, errno.ENXIO}
)
"""Failures to open a socket that a later interface, address or route mends without anybody's help. EINVAL: of an
interface that has no IPv6 yet."""
SOMEBODY_MUST: Final = frozenset({errno.EADDRINUSE, errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT, errno.ENOBUFS})
"""Failures that an operator must correct on this host: another program, a right, a setting."""


def why_not_listening(spec: SocketSpec, error: OSError) -> str:
    """What this host lacks, for people: a clause that stands after "listener X is down: "."""
    number = error.errno
    if number == errno.ENODEV and spec.device:
        return f"there is no interface {spec.device}"
    if number == errno.ENODEV:
        return f"no interface has a route to the multicast groups ({', '.join(spec.groups)}); name one with `interface`"
    if number == errno.EADDRNOTAVAIL:
        return f"{spec.address} is not an address of this host now"
    if number == errno.EADDRINUSE:
        return f"another program uses port {spec.port}; find it with: ss -lunp sport = :{spec.port}"
    if number == errno.EACCES and spec.port < sysctl("net/ipv4/ip_unprivileged_port_start", 1024):
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


def set_kept_fields(sock: socket.socket, spec: SocketSpec, *, ttl: bool, tos: bool) -> None:
    """Has the kernel hand over TTL and TOS of each datagram when some receiver keeps them. Works on a live socket."""
    if spec.family == 4 or not spec.v6only:  # a dual-stack socket receives IPv4 datagrams with IPv4 control messages
        set_bool(sock, socket.IPPROTO_IP, IP_RECVTTL, ttl)
        set_bool(sock, socket.IPPROTO_IP, IP_RECVTOS, tos)
    if spec.family == 6:
        set_bool(sock, socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, ttl)
        set_bool(sock, socket.IPPROTO_IPV6, IPV6_RECVTCLASS, tos)
