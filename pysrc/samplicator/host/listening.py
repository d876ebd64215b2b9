"""Listening: opens or takes over the sockets of listeners, and explains why a socket cannot be opened.

Invariants: a function either returns a ready, non-blocking, close-on-exec socket or raises OSError and has closed what
it opened; a granted buffer size is always read back. Called by sources, intakes and supervisor. It must never block,
and never keep a socket of its own.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final

from samplicator.host import bpf, ring
from samplicator.host.abilities import sysctl
from samplicator.host.sockets import (
    family_of,
    granted_receive_buffer,
    index_of,
    scoped,
    set_bool,
    set_receive_buffer,
)
from samplicator.plan.spec import SocketSpec

SO_TIMESTAMPNS: Final = 35
IP_RECVTTL: Final = 12
IP_RECVTOS: Final = 13
IP_MULTICAST_ALL: Final = 49
IPV6_MULTICAST_ALL: Final = 29
IPV6_RECVHOPLIMIT: Final = 51
IPV6_RECVTCLASS: Final = 66
UDP_GRO: Final = 104
SO_ATTACH_REUSEPORT_CBPF: Final = 51
SO_DETACH_REUSEPORT_BPF: Final = 68


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
        else:
            _begin_group(sock)
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
    """Makes a socket that is bound as `spec` says (bound.py) what open_listener would make; what the socket holds
    stays, and so does its filter: the supervisor sets it when the plan runs, and until then it is as good as the one
    that `program` would be. Groups that the listener does not name any more are left. A receive buffer is not made
    smaller: whoever opened the socket may have had rights that this process lacks. Raises OSError.
    """
    sock.setblocking(False)
    sock.set_inheritable(False)
    others = [other for other in beside if other is not sock]
    for one in (sock, *others) if others else ():
        set_bool(one, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
    _prepare(sock, spec, max(receive_buffer, granted_receive_buffer(sock)), ttl, tos, runs)
    follow_groups(sock, spec, join=join)


def follow_groups(sock: socket.socket, spec: SocketSpec, *, join: bool) -> None:
    """Joins the groups of `spec` (join: see open_listener) and leaves all others. The kernel does not list the groups
    of one socket, so each group that this host is in is tried. Raises OSError.
    """
    named = index_of(spec.interface) if spec.interface and spec.groups else 0
    wanted = list(zip(spec.groups, spec.joins or (0,) * len(spec.groups), strict=True)) if join else []
    for group, index in wanted:
        try:
            _join(sock, group, named or index)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # it is a member already
                raise
    kept = {(socket.inet_pton(sock.family, group), named or index) for group, index in wanted}
    for group, index in joined_groups(spec.family):
        packed = socket.inet_pton(sock.family, group)
        if (packed, index) not in kept and (packed, 0) not in kept:
            with contextlib.suppress(OSError):
                _leave(sock, group, index)


def joined_groups(family: int) -> list[tuple[str, int]]:
    """Multicast groups that this host is in, as text, and the index of the interface (proc(5), /proc/net/igmp)."""
    found: list[tuple[str, int]] = []
    try:
        with open(f"/proc/net/{'igmp' if family == 4 else 'igmp6'}", encoding="ascii") as file:
            index = 0
            for line in file:
                words = line.split()
                if family == 6:
                    found.append((socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[2])), int(words[0])))
                elif words[0].isdigit():
                    index = int(words[0])
                elif index:
                    group = int(words[0], 16).to_bytes(4, sys.byteorder)
                    found.append((socket.inet_ntop(socket.AF_INET, group), index))
    except (OSError, ValueError, IndexError):
        pass
    return found


def turn_away(sock: socket.socket) -> None:
    """From now on new datagrams pass a bound socket by, and go to the next one that takes them; what the socket holds
    stays to be read. A connected UDP socket is sent only what comes from its peer (udp(7)); this one's peer is its own
    host, port 9 (discard), or nobody at all. Where connect() does not work, the socket goes on as before.
    """
    own = sock.getsockname()
    peers: list[tuple[str, int] | tuple[str, int, int, int]] = [("127.0.0.1", 9), (own[0], 9)]
    if sock.family == socket.AF_INET6:  # one that is bound to an interface reaches nothing but its neighbors
        peers = [("::1", 9, 0, 0), (own[0].partition("%")[0], 9, 0, own[3])]
        with contextlib.suppress(OSError):  # it is bound to none, or that is gone
            device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).partition(b"\0")[0].decode()
            peers.append(("ff02::1", 9, 0, index_of(device)))
    for peer in peers:
        with contextlib.suppress(OSError):
            sock.connect(peer)
            return


def turn_back(sock: socket.socket, device: str) -> None:
    """Undoes turn_away(), for a socket that another process has turned away. device: the interface that it is bound to
    (Bound), which connect(2) with AF_UNSPEC lets go of (__udp_disconnect(), net/ipv4/udp.c). Raises OSError.
    """
    try:
        sock.getpeername()
    except OSError:
        return
    import ctypes  # hardly ever

    nobody = struct.pack("@H14x", socket.AF_UNSPEC)
    if ctypes.CDLL(None, use_errno=True).connect(sock.fileno(), nobody, len(nobody)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode(errors="surrogateescape") + b"\0")


def take_runs(sock: socket.socket, wanted: bool) -> None:
    """Whether datagrams that the driver has coalesced for this socket come in as they are (UDP_GRO, since Linux 5.0):
    where it is off, the kernel does not coalesce for it. Works on a live socket.
    """
    with contextlib.suppress(OSError):
        set_bool(sock, socket.IPPROTO_UDP, UDP_GRO, wanted)


def _begin_group(sock: socket.socket) -> None:
    """Gives a socket that is not bound yet the program of a group of one. So when a second one is bound beside it, all
    datagrams still come here until spread() says otherwise: they move once, not twice. Bound without SO_REUSEPORT the
    socket still finds out who else has the port. (One that is bound with it may have no program then.)
    """
    set_bool(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, True)
    with contextlib.suppress(OSError):
        bpf.attach(sock, ring.spread(1), socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF)
    set_bool(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, False)


def spread(group: Sequence[socket.socket], beside: Sequence[socket.socket] = ()) -> None:
    """Has sockets that share a place, in the order in which they were bound, get datagrams as so many rings do
    (ring.spread): an exporter has the same worker whichever way its datagrams come in, and in the next process, too.
    beside: our other listeners' sockets on this port.

    socket(7): the program's result is the number of the socket. By itself the kernel takes a hash with a secret, and
    passes by sockets that are connected; a program does not. So where a worker sends from this place, and where this
    does not work at all, the kernel's hash stays.
    """
    with contextlib.suppress(OSError):
        if _others_there(group, beside):
            set_bool(group[0], socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, False)
        else:
            bpf.attach(group[0], ring.spread(len(group)), socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF)


def _others_there(group: Sequence[socket.socket], beside: Sequence[socket.socket]) -> bool:
    """Whether a socket that is none of these has the address and port of this group (proc_net(5): /proc/net/udp)."""
    own = {os.fstat(sock.fileno()).st_ino for sock in group}
    known = own | {os.fstat(sock.fileno()).st_ino for sock in beside}
    try:
        with open(f"/proc/net/{'udp' if group[0].family == socket.AF_INET else 'udp6'}", encoding="ascii") as file:
            rows = [(words[1], int(words[9])) for words in map(str.split, itertools.islice(file, 1, None))]
    except (OSError, ValueError, IndexError):
        return False
    places = {place for place, inode in rows if inode in own}
    return any(place in places and inode not in known for place, inode in rows)


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
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, _membership(group, index))
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _membership(group, index))


def _leave(sock: socket.socket, group: str, index: int) -> None:
    if ":" in group:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP, _membership(group, index))
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, _membership(group, index))


def _membership(group: str, index: int) -> bytes:
    """struct ipv6_mreq, struct ip_mreqn."""
    if ":" in group:
        return socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", index)
    return socket.inet_aton(group) + bytes(4) + struct.pack("@i", index)


def set_kept_fields(sock: socket.socket, spec: SocketSpec, *, ttl: bool, tos: bool) -> None:
    """Has the kernel hand over TTL and TOS of each datagram when some receiver keeps them. Works on a live socket."""
    if spec.family == 4 or not spec.v6only:  # a dual-stack socket receives IPv4 datagrams with IPv4 control messages
        set_bool(sock, socket.IPPROTO_IP, IP_RECVTTL, ttl)
        set_bool(sock, socket.IPPROTO_IP, IP_RECVTOS, tos)
    if spec.family == 6:
        set_bool(sock, socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, ttl)
        set_bool(sock, socket.IPPROTO_IPV6, IPV6_RECVTCLASS, tos)
