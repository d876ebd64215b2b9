"""TCP sockets and their addresses, as gateways see them.

Invariants: IPv4 is never seen in its IPv6 form; a peer that is gone is noticed, by keepalive or by what is not
acknowledged. Called by stream. It must never wait.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

from samplicator.config.address import MAPPED
from samplicator.gateways.transport import Address

KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),  # ms that written data may wait for an acknowledgment
)


def bound(place: Address) -> socket.socket:
    """A TCP socket at a place; the unspecified IPv6 address takes IPv4 too, unless somebody has that. Raises
    OSError.
    """
    tries = (0, 1) if len(place.address) == 16 and not any(place.address) else (1,)
    for only_six in tries:
        sock = socket.socket(family_of(place), socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_six)
            sock.bind(sockaddr(place))
        except OSError:
            sock.close()
            if only_six == tries[-1]:
                raise
        else:
            return sock
    raise AssertionError("unreachable")


def family_of(place: Address) -> socket.AddressFamily:
    return socket.AF_INET if len(place.address) == 4 else socket.AF_INET6


def sockaddr(place: Address) -> tuple[Any, ...]:
    text = socket.inet_ntop(family_of(place), place.address)
    return (text, place.port) if len(place.address) == 4 else (text, place.port, 0, place.scope_id)


def address_of(name: Any) -> Address:
    """Of what accept() returns; IPv4 in its IPv6 form becomes IPv4."""
    host = str(name[0]).partition("%")[0]
    if ":" not in host:
        return Address(socket.inet_pton(socket.AF_INET, host), name[1])
    packed = socket.inet_pton(socket.AF_INET6, host)
    if packed.startswith(MAPPED):
        return Address(packed[12:], name[1])
    return Address(packed, name[1], name[3] if packed[:2] == b"\xfe\x80" else 0)


def set_keepalive(sock: socket.socket) -> None:
    for level, option, value in KEEPALIVE:
        with contextlib.suppress(OSError):
            sock.setsockopt(level, option, value)
