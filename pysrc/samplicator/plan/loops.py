"""Loops: whether copies for a receiver would come back to a listener of this host, and so loop.

Purpose: one function for this question, for the planner (from the file alone) and for the supervisor (from the host's
addresses and routes, which change). Invariants: pure; addresses are compared as bytes, IPv4-mapped ones as IPv4. A
group is a loop on any interface that the listener joined it on, unless the route is known to lead to another interface.
The datapath finds loops through other relays (fastpath/route/echo.pxd). It must never ask the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from samplicator.config.address import MAPPED, address_bytes, address_text, endpoint_text
from samplicator.plan.spec import SocketSpec

AWAY: Final = "away"
LOCAL: Final = "local"
BROADCAST: Final = "broadcast"
GROUP: Final = "group"
LIMITED: Final = bytes([255] * 4)
LOOPBACK: Final = {4: bytes([127, 0, 0, 1]), 16: bytes(15) + b"\1"}


@dataclass(frozen=True, slots=True)
class Delivery:
    """What becomes of a datagram that this host sends: AWAY, or (also) to this host as LOCAL, BROADCAST or GROUP; then
    it comes in by `interface`, "" = not known.
    """

    kind: str = AWAY
    interface: str = ""


Deliver = Callable[[bytes], Delivery]


def packed(text: str) -> bytes:
    """4 or 16 bytes of an address text, scope ignored; an IPv4-mapped one is IPv4."""
    return unmapped(address_bytes(text))


def unmapped(address: bytes) -> bytes:
    return address[12:] if len(address) == 16 and address[:12] == MAPPED else address


def by_itself(address: bytes) -> Delivery | None:
    """What the address alone tells, on any host; None = the host must be asked."""
    if len(address) == 4:
        if address[0] == 127:
            return Delivery(BROADCAST if address[1:] == LIMITED[1:] else LOCAL, "lo")
        if address == LIMITED:
            return Delivery(BROADCAST)
        return Delivery(GROUP) if 224 <= address[0] < 240 else None
    if address == LOOPBACK[16]:
        return Delivery(LOCAL, "lo")
    return Delivery(GROUP) if address[0] == 0xFF else None


def loops_into(
    sockets: Sequence[SocketSpec], address: bytes, port: int, source: bytes, deliver: Deliver
) -> SocketSpec | None:
    """The socket that would get the copies for (address, port), None = none of them. source: our own address that they
    leave from where it is configured, else b"". deliver: what the host says of an address.
    """
    sockets = [socket for socket in sockets if socket.port == port]
    if not sockets:
        return None
    address = unmapped(address)
    if not any(address):  # connect(2) to the unspecified address reaches ourselves
        address = source if any(source) else LOOPBACK[len(address)]
    alone = by_itself(address)
    told = deliver(address) if alone is None or not alone.interface else alone
    delivery = alone if alone is not None and told.kind != alone.kind else told
    if delivery.kind == AWAY:
        return None
    return next((socket for socket in sockets if _takes(socket, address, delivery)), None)


def _takes(socket: SocketSpec, address: bytes, delivery: Delivery) -> bool:
    known = delivery.interface or delivery.kind == LOCAL
    if known and socket.interface not in ("", delivery.interface or "lo"):
        return False
    if delivery.kind == GROUP and address not in map(packed, socket.groups):
        return False
    bound = packed(socket.address)
    if any(bound):
        return bound == address
    return len(address) == (4 if socket.family == 4 else 16) or (socket.family == 6 and not socket.v6only)


def words(address: bytes, socket: SocketSpec, listener: str) -> str:
    """Why a receiver is one, for people."""
    return (
        f"{address_text(address)} is this host, so copies come back to listener {listener!r} "
        f"({endpoint_text(socket.address, socket.port)})"
    )
