"""Bound: what a UDP socket is bound to, read from the socket or from its specification, and the label that says so.

Purpose: sockets go from process to process, where listeners have other names and interfaces other numbers; what a
socket is bound to stays. Invariants: two sockets that may serve the same place are equal here, and only they; labels
of places that differ differ, and are valid names in systemd's file descriptor store (sd_notify(3), FDNAME: printable
ASCII without a colon, 255 characters at most). Called by sources and listening. It must never change a socket.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Final

from samplicator.plan.spec import SocketSpec

FAMILIES: Final = {socket.AF_INET: 4, socket.AF_INET6: 6}
_WORKER: Final = re.compile(r"#(\d{1,4})$")
_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@+")


@dataclass(frozen=True, slots=True)
class Bound:
    """family: 4 or 6. address: network order, 4 or 16 bytes, all zeros = every address. device: the interface that it
    is bound to, or that its link-local address belongs to, "" = none. v6only: every IPv6 address, but no IPv4 one.
    """

    family: int
    address: bytes
    port: int
    device: str
    v6only: bool

    def label(self, worker: int) -> str:
        """A name for people and for the file descriptor store. worker: 0.., which socket of those at one place."""
        family = f"udp{self.family}{'only' if self.v6only else ''}"
        text = socket.inet_ntop(socket.AF_INET if self.family == 4 else socket.AF_INET6, self.address)
        device = "".join(chr(c) if c in _PLAIN else f"%{c:02x}" for c in self.device.encode(errors="surrogateescape"))
        return "-".join([family, text.replace(":", "_"), str(self.port), *([device] if device else [])]) + f"#{worker}"

    def overlaps(self, other: Bound) -> bool:
        """Whether a datagram can come that either of them takes where the other one is not open."""
        if self.port != other.port or (self.device and other.device and self.device != other.device):
            return False
        if self.family == other.family:
            return self.address == other.address or not any(self.address) or not any(other.address)
        six = self if self.family == 6 else other
        return not six.v6only and not any(six.address)


def worker_of(label: str) -> int:
    """The worker's number in a label, -1 = there is none: whoever gave the name is not samplicator."""
    found = _WORKER.search(label)
    return int(found[1]) if found else -1


def bound_by(spec: SocketSpec) -> Bound:
    """What a socket with this specification is bound to. Raises OSError when its interface does not exist."""
    address, _, zone = spec.address.partition("%")
    device = spec.interface or (socket.if_indextoname(int(zone)) if zone.isdigit() else zone)
    packed = socket.inet_pton(socket.AF_INET if spec.family == 4 else socket.AF_INET6, address)
    return Bound(spec.family, packed, spec.port, device, spec.family == 6 and spec.v6only and not any(packed))


def bound_of(sock: socket.socket) -> Bound:
    """What an open socket is bound to. Raises ValueError when it is no UDP socket or is bound to nothing, and OSError
    (ENODEV) when its interface does not exist any more: then it will never receive again.
    """
    family = FAMILIES.get(socket.AddressFamily(sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)))
    protocol = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
    if family is None or protocol != socket.IPPROTO_UDP:
        raise ValueError("it is not a UDP socket")
    name = sock.getsockname()
    if not name[1]:
        raise ValueError("it is not bound to a port")
    device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).partition(b"\0")[0]
    packed = socket.inet_pton(sock.family, name[0].partition("%")[0])
    # the kernel sets the option by itself for any other address (net/ipv6/af_inet6.c, __inet6_bind)
    v6only = family == 6 and not any(packed) and bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    return Bound(family, packed, name[1], device.decode(errors="surrogateescape"), v6only)
