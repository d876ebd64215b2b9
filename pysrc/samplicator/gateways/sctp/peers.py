"""Who a packet belongs to: the table between networks, which know addresses, and libusrsctp, which knows handles.

Purpose: multihomed peers. libusrsctp sees one peer, the handle; here the handle has all addresses that the peer listed,
and packets are known by their verification tag, so the peer keeps its identity whatever address it sends from, and is
answered where it sent from last. Invariants: pure; the table is bounded (`MOST_PENDING` peers that have said INIT and
nothing else, `most` in all); a packet belongs to a peer only if it has the right tag and comes from one of its
addresses. Called by userland. Must never decide who may come in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from samplicator.gateways.sctp.liveness import Liveness
from samplicator.gateways.sctp.packet import ABORT, SHUTDOWN_ACK, SHUTDOWN_COMPLETE, Packet

MOST_PENDING: Final = 1024
PENDING_SECONDS: Final = 60.0
"""As long as libusrsctp takes a cookie."""
MOST_TAGS: Final = 4
"""Of one peer: each association that it restarts has a new one."""


class Place(NamedTuple):
    """Where packets come from and go to. address: 4 or 16 bytes. port: of UDP, 0 without encapsulation."""

    address: bytes
    port: int = 0
    scope_id: int = 0


@dataclass(slots=True, eq=False)
class Peer:
    """handle: as the library knows it. first: the place that it is known by. port, local_port: SCTP's. towards: where
    packets to it go now. ours: our address that it speaks to, b"" = the kernel chooses. pending: since when it has said
    INIT and nothing else, None = it has an association or we asked for one.
    """

    handle: int
    first: Place
    port: int
    local_port: int
    towards: Place
    ours: bytes = b""
    pending: float | None = None
    known: set[bytes] = field(default_factory=set)
    tags: list[int] = field(default_factory=list)
    liveness: Liveness | None = None
    user: object = None

    def places(self) -> Iterator[tuple[bytes, int, int, int]]:
        for address in self.known:
            yield address, self.first.port, self.port, self.local_port


class Peers:
    """most: peers at the same time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._by_key: dict[tuple[bytes, int, int, int], Peer] = {}
        self._by_tag: dict[tuple[int, int], Peer] = {}  # our port and our tag
        self._by_handle: dict[int, Peer] = {}
        self._pending: dict[int, Peer] = {}  # by handle; the oldest first

    def __len__(self) -> int:
        return len(self._by_handle)

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._by_handle.values()))

    def get(self, handle: int) -> Peer | None:
        return self._by_handle.get(handle)

    def add(self, peer: Peer, listed: tuple[bytes, ...] = ()) -> list[Peer]:
        """Returns who had to go for it, and is forgotten; the caller drops their handles."""
        gone = []
        if peer.pending is not None:
            while len(self._pending) >= MOST_PENDING:
                gone.append(next(iter(self._pending.values())))
                self.forget(gone[-1])
            self._pending[peer.handle] = peer
        self._by_handle[peer.handle] = peer
        peer.known.add(peer.first.address)
        self._by_key.update((key, peer) for key in peer.places())
        self.widen(peer, listed)
        return gone

    def widen(self, peer: Peer, listed: tuple[bytes, ...]) -> None:
        """Further addresses of a peer; one that another peer has stays that one's."""
        for address in listed:
            key = (address, peer.first.port, peer.port, peer.local_port)
            if self._by_key.setdefault(key, peer) is peer:
                peer.known.add(address)

    def learn(self, peer: Peer, tag: int) -> None:
        """We told the peer to put this tag into its packets."""
        if tag in peer.tags:
            return
        peer.tags.append(tag)
        self._by_tag[peer.local_port, tag] = peer
        if len(peer.tags) > MOST_TAGS:
            self._by_tag.pop((peer.local_port, peer.tags.pop(0)), None)

    def settle(self, peer: Peer) -> None:
        """It has an association now."""
        peer.pending = None
        self._pending.pop(peer.handle, None)

    def forget(self, peer: Peer) -> None:
        self._by_handle.pop(peer.handle, None)
        self._pending.pop(peer.handle, None)
        for key in list(peer.places()):
            if self._by_key.get(key) is peer:
                del self._by_key[key]
        for tag in peer.tags:
            if self._by_tag.get((peer.local_port, tag)) is peer:
                del self._by_tag[peer.local_port, tag]

    def stale(self, now: float) -> list[Peer]:
        """Those that have been pending for too long; they are forgotten, as by `add`."""
        gone = []
        for peer in list(self._pending.values()):
            if peer.pending is None or now - peer.pending < PENDING_SECONDS:
                break
            gone.append(peer)
            self.forget(peer)
        return gone

    def at(self, place: Place, port: int, local_port: int) -> Peer | None:
        """Who is known to send from there: for an INIT, which has no tag, and for packets with the sender's own tag."""
        return self._by_key.get((place.address, place.port, port, local_port))

    def find(self, packet: Packet, place: Place) -> Peer | None:
        """Whose packet this is; an INIT is nobody's."""
        found = self._by_tag.get((packet.destination_port, packet.tag)) if packet.tag else None
        if found is not None:
            # The UDP port may change, where NAT is between: the tag proves enough.
            return found if place.address in found.known and packet.source_port == found.port else None
        if packet.chunks[0].kind in (ABORT, SHUTDOWN_COMPLETE, SHUTDOWN_ACK):
            return self.at(place, packet.source_port, packet.destination_port)
        return None
