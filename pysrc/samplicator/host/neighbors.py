"""Neighbors: finds receivers whose next hop does not answer.

Purpose: the kernel accepts copies for a neighbor that does not answer, holds a few and drops the rest unseen (arp(7));
for a spoofed copy this host does not even get a report. So this module reads the neighbor table, with two plain
rtnetlink(7) questions, and reports which receivers are unresolved, for the datapath to count those copies as
no_neighbor, and how each next hop was found, for what was counted as sent before that (engines/account). Invariants: a
receiver is called unresolved only after PATIENCE_SECONDS without an address, and no longer at the first look that finds
one. Called by supervisor. It must never send a datagram or change an entry.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from samplicator.host.netlink import (
    NLM_F_DUMP,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_VIA,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
    RTMSG_BYTES,
    RTN_UNICAST,
    Conversation,
    attributes,
    events,
    interface_of,
)

PATIENCE_SECONDS: Final = 1.0
"""A neighbor that was never asked for is incomplete for a moment; one that is dead stays so."""
ROUTES_SECONDS: Final = 5.0
"""How long a next hop is believed before it is looked up again."""
NUD_INCOMPLETE, NUD_FAILED = 0x01, 0x20
RTMGRP_NEIGH: Final = 0x4
NDA_DST, NDA_CACHEINFO = 1, 3
CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")

Hop = tuple[int, bytes]
"""Interface index and address of a next hop."""


class Answering(enum.Enum):
    """What the kernel knows of a next hop. YES: its link address. ASKED: not yet, it is being asked for. FAILED: it did
    not answer. ABSENT: nothing, or there is no such thing (this host itself, multicast).
    """

    YES = enum.auto()
    ASKED = enum.auto()
    FAILED = enum.auto()
    ABSENT = enum.auto()


@dataclass(frozen=True, slots=True)
class Sight:
    """A receiver's next hop at one look. since: when it came to be so, as far as known (monotonic). late: it has not
    answered for PATIENCE_SECONDS.
    """

    hop: Hop | None
    state: Answering
    since: float = 0.0
    late: bool = False


ASKED_IN_VAIN: Final = (Answering.ASKED, Answering.FAILED)
"""What is sent to such a next hop goes nowhere, unless it answers in time."""
NOWHERE: Final = Sight(None, Answering.ABSENT)


def open_events() -> socket.socket | None:
    """A socket that becomes readable when some neighbor changes (rtnetlink(7)); None: the kernel does not permit it."""
    with contextlib.suppress(OSError):
        return events(RTMGRP_NEIGH)
    return None


def wait_for_events(sock: socket.socket | None, seconds: float) -> bool:
    """Until some neighbor changes, so many seconds at most; then empties the socket. False: nothing has changed."""
    if sock is None:
        time.sleep(seconds)
        return True  # perhaps
    waiter = select.poll()  # not select(): descriptors may be over 1023
    waiter.register(sock, select.POLLIN)
    if not waiter.poll(int(seconds * 1e3)):
        return False
    for _ in range(100):
        try:
            sock.recv(65536)
        except BlockingIOError:
            break
        except OSError:  # ENOBUFS: more came than it could hold
            continue
    return True


def route_interface(address: bytes) -> int:
    """Index of the interface that the route to an address (4 or 16 bytes) leads to, 0 = no route. Raises OSError."""
    with Conversation() as kernel:
        route = kernel.route(address)
    return interface_of(route[1]) if route is not None else 0


class Neighbors:
    """Remembers since when each next hop has had no address. sights: by name, of the last look(). Not for two threads
    at once.
    """

    def __init__(self) -> None:
        self.sights: dict[str, Sight] = {}
        self._hops: dict[tuple[bytes, int], tuple[float, Hop | None]] = {}
        self._since: dict[Hop, float] = {}

    def look(self, receivers: Mapping[str, tuple[bytes, int]]) -> set[str]:
        """Names of the receivers (address, scope id) that are unresolved now. Raises OSError when the kernel cannot be
        asked.
        """
        with Conversation() as kernel:
            old = time.monotonic() - ROUTES_SECONDS
            if any(looked < old for looked, _ in self._hops.values()):
                self._hops = {target: hop for target, hop in self._hops.items() if hop[0] >= old}
            hops = {name: self._hop(kernel, target) for name, target in receivers.items()}
            wanted = set(hops.values())
            table = {hop: (state, age) for hop, state, age in _table(kernel) if hop in wanted}
            now = time.monotonic()
            bad = {hop for hop, (state, _) in table.items() if state & (NUD_INCOMPLETE | NUD_FAILED)}
            self._since = {hop: self._since.get(hop, now) for hop in bad}
            late = {hop for hop, since in self._since.items() if now - since >= PATIENCE_SECONDS}
            sights = {hop: _sight(hop, table, hop in late, now) for hop in wanted}
            self.sights = {name: sights[hop] for name, hop in hops.items()}
            return {name for name, sight in self.sights.items() if sight.late}

    def _hop(self, kernel: Conversation, target: tuple[bytes, int]) -> Hop | None:
        if target not in self._hops:
            self._hops[target] = (time.monotonic(), _next_hop(kernel, *target))
        return self._hops[target][1]


def _table(kernel: Conversation) -> Iterator[tuple[Hop, int, float]]:
    """(next hop, state, seconds since it changed) of every entry."""
    for kind, body in kernel.ask(RTM_GETNEIGH, NLM_F_DUMP, bytes(RTMSG_BYTES)):
        if kind == RTM_NEWNEIGH and len(body) >= RTMSG_BYTES:
            interface, state = struct.unpack_from("=iH", body, 4)
            found = dict(attributes(body, RTMSG_BYTES))
            info = found.get(NDA_CACHEINFO, b"")  # struct nda_cacheinfo: confirmed, used, updated, references
            age = struct.unpack_from("=I", info, 8)[0] / CLOCK_TICKS if len(info) >= 12 else 0.0
            if NDA_DST in found:
                yield (interface, found[NDA_DST]), state, age


def _next_hop(kernel: Conversation, address: bytes, scope_id: int) -> Hop | None:
    """Next hop of an address, None = no route, or not a neighbor's (this host, multicast)."""
    route = kernel.route(address, scope_id)
    if route is None or route[0] != RTN_UNICAST or RTA_OIF not in route[1]:
        return None
    found = route[1]
    return interface_of(found), found.get(RTA_GATEWAY) or found.get(RTA_VIA, b"")[2:] or address


def _sight(hop: Hop | None, table: Mapping[Hop, tuple[int, float]], late: bool, now: float) -> Sight:
    state, age = table.get(hop, (0, 0.0)) if hop is not None else (0, 0.0)
    if state & NUD_INCOMPLETE:
        return Sight(hop, Answering.ASKED, now - age, late)
    if state & NUD_FAILED:
        return Sight(hop, Answering.FAILED, now - age, late)
    return Sight(hop, Answering.YES if state else Answering.ABSENT, now - age)
