"""Who may come in, and whose packet it is: all that strangers reach of SCTP in this process.

Purpose: allow lists, the table of peers, and answers to packets of no association. Invariants: a peer that its ear does
not admit costs nothing and hears nothing; what one INIT costs is bounded and forgotten after a minute; answers to
strangers are bounded per second and go to those alone who may come in. Called by userland. Must never call the library
but for handles and checksums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from samplicator.gateways.sctp.library import Library
from samplicator.gateways.sctp.packet import (
    INIT,
    Packet,
    answer_to_stranger,
    initiate_tag,
    listed_addresses,
)
from samplicator.gateways.sctp.peers import Peer, Peers, Place
from samplicator.gateways.transport import Address, Events

STRANGERS_PER_SECOND: Final = 100


class Ear:
    """See gateways.transport.Ear. A place of a port; all places of a port share a socket."""

    def __init__(self, place: Address, events: Events, release: Callable[[Ear], None]) -> None:
        self.place = place
        self.events = events
        self._release = release

    def hears(self, ours: bytes) -> bool:
        """Packets to this address of ours; b"": which one is not known."""
        mine = self.place.address
        return mine == ours or not ours or (not any(mine) and len(mine) == len(ours))

    def admits(self, packet: Packet, place: Place) -> bool:
        return not self.events.admits(Address(place.address, packet.source_port, place.scope_id))

    def close(self) -> None:
        self._release(self)


class Entrance:
    """leaves: gets each packet for a peer, from within the library. reply: sends a packet of our own. foreign, refused:
    packets of nobody, and INITs of peers that may not come in.
    """

    def __init__(
        self,
        library: Library,
        most: int,
        leaves: Callable[[Peer, bytes], None],
        reply: Callable[[bytes, Place, bytes], None],
        clock: Callable[[], float],
    ) -> None:
        self.peers = Peers(most)
        self.ears: dict[int, list[Ear]] = {}
        self.foreign = 0
        self.refused = 0
        self._library = library
        self._leaves = leaves
        self._reply = reply
        self._clock = clock
        self._strangers = (0, 0)  # second, answers in it

    def invite(self, first: Place, port: int, ours: bytes) -> Peer:
        """A peer that we go to; its association has no port here yet."""
        peer = self._new(first, port, 0, ours)
        self.peers.add(peer)
        return peer

    def forget(self, peer: Peer) -> None:
        self.peers.forget(peer)
        self._library.drop_peer(peer.handle)

    def forget_stale(self) -> None:
        for peer in self.peers.stale(self._clock()):
            self._library.drop_peer(peer.handle)

    def whose(self, packet: Packet, place: Place, ours: bytes) -> Peer | None:
        """None: it is nobody's, and has been dealt with."""
        if packet.chunks[0].kind == INIT and not packet.tag:
            return self._wants_in(packet, place, ours)
        peer = self.peers.find(packet, place)
        if peer is None:
            self.foreign += 1
            self._answer(packet, place, ours)
        elif initiate_tag(packet):
            self.peers.widen(peer, listed_addresses(packet))
        return peer

    def _new(self, first: Place, port: int, local_port: int, ours: bytes) -> Peer:
        peer = Peer(0, first, port, local_port, first, ours)
        peer.handle = self._library.new_peer(lambda data: self._leaves(peer, data))
        return peer

    def _ear(self, packet: Packet, ours: bytes) -> Ear | None:
        return next((ear for ear in self.ears.get(packet.destination_port, []) if ear.hears(ours)), None)

    def _wants_in(self, packet: Packet, place: Place, ours: bytes) -> Peer | None:
        ear = self._ear(packet, ours)
        if ear is None:
            self.foreign += 1
            return None
        if not ear.admits(packet, place):
            self.refused += 1
            return None
        known = self.peers.at(place, packet.source_port, packet.destination_port)
        if known is not None:
            self.peers.widen(known, listed_addresses(packet))
            if isinstance(known.user, Ear):
                known.user = ear
            return known
        if len(self.peers) >= self.peers.most:
            self.refused += 1
            return None
        peer = self._new(place, packet.source_port, packet.destination_port, ours)
        peer.user, peer.pending = ear, self._clock()
        for gone in self.peers.add(peer, listed_addresses(packet)):
            self._library.drop_peer(gone.handle)
        return peer

    def _answer(self, packet: Packet, place: Place, ours: bytes) -> None:
        """To our own ports alone: what else there is of SCTP on this host is not ours."""
        ear = self._ear(packet, ours)
        if ear is None or not ear.admits(packet, place):
            return
        second = int(self._clock())
        answers = self._strangers[1] if self._strangers[0] == second else 0
        answer = answer_to_stranger(packet, self._library.checksum)
        if answer is not None and answers < STRANGERS_PER_SECOND:
            self._strangers = second, answers + 1
            self._reply(answer, place, ours)
