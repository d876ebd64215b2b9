"""SCTP in this process, by libusrsctp, over raw IP or UDP: `Transport` of gateways.transport.

Purpose: hosts whose kernel has no SCTP. Packets come from a carrier, get their handle from the table of peers, and go
into the library; what the library sends takes the way back. All of it happens in one event loop. Invariants: packets
that wait are read before anybody is said to be silent; after every packet and every tick all sockets concerned are
emptied, since events that a timer raises fire no upcall; strangers cost a bounded memory, and answers to them are
bounded per second. Called by choice. Must never be used on a host whose kernel has SCTP with raw IP: the kernel would
abort our associations.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterable
from typing import Final

from samplicator.gateways.sctp import library as lib
from samplicator.gateways.sctp.association import CLOSE_SECONDS, Association, Socket, settings
from samplicator.gateways.sctp.carrier import Arrival, Carrier
from samplicator.gateways.sctp.entrance import Ear, Entrance
from samplicator.gateways.sctp.liveness import Liveness
from samplicator.gateways.sctp.packet import ABORT, HEADER_BYTES, Packet, initiate_tag, parse
from samplicator.gateways.sctp.peers import Peer, Place
from samplicator.gateways.transport import Address, Events, Options, Session

VERSIONS: Final = (9, 10)
"""NetFlow v9 and IPFIX: SCTP keeps messages whole."""
TICK_SECONDS: Final = 0.01
SWEEP_SECONDS: Final = 0.1
LEAST_TICK_SECONDS: Final = 0.002
MOST_PEERS: Final = 4096
MOST_MESSAGES: Final = 256
"""Of one socket before others get their turn."""
MOST_OVERHEAD_BYTES: Final = 60
"""IPv6, UDP and SCTP."""
MOST_READS: Final = 16


class Userland:
    """See gateways.transport.Transport. carry: opens the carrier of an address family. udp_port: of peers, 0 = raw IP.
    most: peers at the same time.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        carry: Callable[[int], Carrier],
        *,
        udp_port: int = 0,
        most: int = MOST_PEERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises OSError: libusrsctp is not installed."""
        self.library = lib.instance()
        self.entrance = Entrance(self.library, most, self._leaves, self._reply, clock)
        self._loop = loop
        self._carry = carry
        self._udp_port = udp_port
        self._clock = clock
        self._carriers: dict[int, Carrier] = {}
        self._ports: dict[int, Socket] = {}
        self._own: dict[int, Association] = {}  # by socket: those that we asked for
        self._beacons: dict[tuple[Place, int], Association] = {}
        self._waiting: set[Association] = set()  # for room
        self._next_sweep = 0.0
        self._told: list[Association] = []  # end by our will
        self._left: list[Association] = []  # have ended, and are to be put away
        self._timer: asyncio.TimerHandle | None = None
        self._woken = False

    # ---- Transport

    @property
    def versions(self) -> tuple[int, ...]:
        return VERSIONS

    def listen(self, place: Address, events: Events, options: Options) -> Ear:
        self._carrier(place.address)
        mtu = options.mtu - MOST_OVERHEAD_BYTES
        if (known := self._ports.get(place.port)) is not None:  # for associations from now on
            settings(self.library, known.number, streams=options.streams, mtu=mtu, heartbeat_ms=0)
        else:
            number = self.library.open()
            sock = Socket(self.library, number, shared=True)
            try:
                settings(self.library, number, streams=options.streams, mtu=mtu, heartbeat_ms=0)
                self.library.bind(number, place.port)
                self.library.listen(number)
            except BaseException:
                sock.close()
                raise
            self._ports[place.port] = sock
        ears = self.entrance.ears.setdefault(place.port, [])
        if any(ear.place.address == place.address for ear in ears):
            raise OSError(errno.EADDRINUSE, "this address and port are listened at already")
        ears.append(Ear(place, events, self._release))
        self._tick_later()
        return ears[-1]

    def connect(self, place: Address, events: Events, options: Options) -> Session:
        carrier = self._carrier(place.address)
        number = self.library.open()
        sock = Socket(self.library, number, shared=False)
        peer: Peer | None = None
        try:
            settings(
                self.library,
                number,
                streams=options.streams,
                mtu=options.mtu - carrier.overhead_bytes - HEADER_BYTES,
                heartbeat_ms=options.heartbeat_ms,
            )
            if options.source and options.source.port:
                self.library.bind(number, options.source.port)
            first = Place(place.address, self._udp_port, place.scope_id)
            peer = self.entrance.invite(first, place.port, options.source.address if options.source else b"")
            session = Association(sock, peer, events, self._gone, self._wait)
            session.heartbeat_s = options.heartbeat_ms / 1000
            peer.user, peer.liveness = session, Liveness() if options.heartbeat_ms else None
            self._own[number] = session
            self.library.connect(number, peer.handle, place.port)
        except BaseException:
            self._own.pop(number, None)
            sock.close()
            if peer is not None:
                self.entrance.forget(peer)
            raise
        self._tick_later()
        return session

    def check(self, options: Options) -> None:
        if options.tls is not None:
            raise OSError(errno.EPROTONOSUPPORT, "SCTP has no TLS")

    def close(self) -> None:
        for session in self.sessions():
            session.abort("closed here")
        self._settle()
        for sock in list(self._ports.values()):
            sock.close()
        self._ports.clear()
        self.entrance.ears.clear()
        for peer in self.entrance.peers:
            self.entrance.forget(peer)
        for carrier in self._carriers.values():
            self._loop.remove_reader(carrier.fileno())
            carrier.close()
        self._carriers.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def sessions(self) -> list[Association]:
        found = [session for sock in self._ports.values() for session in sock.sessions.values()]
        return found + list(self._own.values())

    # ---- carriers, peers

    def _carrier(self, address: bytes) -> Carrier:
        family = socket.AF_INET6 if len(address) == 16 else socket.AF_INET
        if family not in self._carriers:
            carrier = self._carriers[family] = self._carry(family)
            self._loop.add_reader(carrier.fileno(), self._readable, carrier)
        return self._carriers[family]

    def _leaves(self, peer: Peer, data: bytes) -> None:
        packet = parse(data)
        if packet is None:
            return
        if tag := initiate_tag(packet):
            if not peer.local_port:  # what the library chose
                self.entrance.peers.forget(peer)
                peer.local_port = packet.source_port
                self.entrance.peers.add(peer)
            self.entrance.peers.learn(peer, tag)
        if peer.liveness is not None:
            peer.liveness.leaves(packet, self._clock())
        self._reply(data, peer.towards, peer.ours)

    def _reply(self, data: bytes, to: Place, ours: bytes) -> None:
        self._carrier(to.address).send(data, to, ours)

    # ---- what happens

    def _readable(self, carrier: Carrier) -> None:
        self.arrived(carrier.receive())

    def arrived(self, packets: Iterable[Arrival]) -> None:
        """Packets that a carrier brought."""
        touched: dict[int, Socket] = {}
        for data, place, ours in packets:
            packet = parse(data)
            sock = self._arrived(packet, place, ours) if packet is not None else None
            if sock is not None:
                touched[sock.number] = sock
        for sock in touched.values():
            self._drain(sock)
        self._settle()

    def _arrived(self, packet: Packet, place: Place, ours: bytes) -> Socket | None:
        """Hands it to the library; returns the socket that may have something to say now."""
        peer = self.entrance.whose(packet, place, ours)
        if peer is None:
            return None
        before, peer.towards, peer.ours = peer.towards, place, ours or peer.ours
        session = peer.user if isinstance(peer.user, Association) else None
        if session is not None and packet.chunks[0].kind == ABORT:
            session.aborted = True
        if peer.liveness is not None:
            peer.liveness.arrives(packet)
        self.library.arrived(peer.handle, packet.data)
        if not packet.tag and peer.pending is None:  # an INIT proves nothing: its answer alone goes where it came from
            peer.towards = before
        return session.sock if session is not None and not session.sock.shared else self._ports.get(peer.local_port)

    def _drain(self, sock: Socket) -> bool:
        """Reads some; False: there is no more now."""
        for _ in range(MOST_MESSAGES):
            if sock.paused:
                return False
            try:
                got = self.library.receive(sock.number)
            except OSError:
                return False
            if got is None:
                return False
            if got.flags & lib.MSG_NOTIFICATION:
                self._notified(sock, got)
            elif (session := sock.sessions.get(got.association)) is not None:
                session.part(got.stream, got.payload, bool(got.flags & lib.MSG_EOR))
        return True

    def _notified(self, sock: Socket, got: lib.Received) -> None:
        data = got.payload
        if len(data) < 8:
            return
        kind = struct.unpack_from("=H", data)[0]
        if kind == lib.ASSOC_CHANGE and len(data) >= 20:
            state, _, streams, _, number = struct.unpack_from("=HHHHI", data, 8)
            self._changed(sock, got.handle, state, number, streams)
        elif kind == lib.SEND_FAILED_EVENT and len(data) >= 32:
            context, number = struct.unpack_from("=II", data, 20)
            if (session := sock.sessions.get(number)) is not None:
                session.failed(context)
        elif kind == lib.PARTIAL_DELIVERY_EVENT and len(data) >= 24:
            number = struct.unpack_from("=I", data, 20)[0]
            if (session := sock.sessions.get(number)) is not None:
                session.parts_are_lost()

    def _changed(self, sock: Socket, handle: int, state: int, number: int, streams: int) -> None:
        peer, session = self.entrance.peers.get(handle), sock.sessions.get(number)
        if state in (lib.COMM_UP, lib.RESTART):
            if session is not None:
                self._ended(session, "restarted by the peer")
            if peer is not None:
                self._begin(sock, peer, number, streams)
            return
        session = session or self._own.get(sock.number)
        if session is None or session.ended:
            return
        if state == lib.SHUTDOWN_COMP:
            self._ended(session, "")
        elif state in (lib.COMM_LOST, lib.CANT_STR_ASSOC):
            refused = "refused by the peer" if state == lib.CANT_STR_ASSOC else "aborted by the peer"
            self._ended(session, refused if session.aborted else "no answer")

    def _ended(self, session: Association, why: str) -> None:
        """The library says so."""
        if not session.ended:
            session.end()
            session.events.closed(session, session.why or why)
            self._left.append(session)

    def _begin(self, sock: Socket, peer: Peer, number: int, streams: int) -> None:
        self.entrance.peers.settle(peer)
        session = self._own.get(sock.number)
        if session is None or session.ended:
            if not isinstance(peer.user, Ear | Association):
                return
            last, session = session, Association(sock, peer, peer.user.events, self._gone, self._wait)
            if last is not None:  # one that we asked for
                session.heartbeat_s = last.heartbeat_s
                peer.liveness = Liveness() if last.heartbeat_s else None
                self._own[sock.number] = session
        peer.user = session
        if session.heartbeat_s:
            beacon = self._beacons.get(session.place)
            if beacon is None or not beacon.open:
                beacon = self._beacons[session.place] = session
            session.beacon = beacon
        session.begin(number, streams)

    # ---- time

    def _gone(self, session: Association) -> None:
        self._told.append(session)
        self._settle_soon()

    def _wait(self, session: Association) -> None:
        """For room to send."""
        self._waiting.add(session)

    def _release(self, ear: Ear) -> None:
        ears = self.entrance.ears.get(ear.place.port, [])
        if ear in ears:
            ears.remove(ear)
            self._settle_soon()

    def _settle_soon(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        """Tells what had to wait until the user's call was over, and puts away what has ended."""
        self._woken = False
        while self._told:
            session = self._told.pop(0)
            while self._drain(session.sock):  # all that it could not deliver; nothing comes from outside meanwhile
                pass
            self._ended(session, session.why)
        while self._left:
            session = self._left.pop()
            if self._own.get(session.sock.number) is session:
                del self._own[session.sock.number]
                session.sock.close()
                self.entrance.forget(session.other)
            elif session.sock.shared and session.other.user is session:
                self.entrance.forget(session.other)
        for port in [
            port for port, sock in self._ports.items() if not self.entrance.ears.get(port) and not sock.sessions
        ]:
            self._ports.pop(port).close()
            self.entrance.ears.pop(port, None)

    def _tick_later(self) -> None:
        if self._timer is None and (self._ports or self._own):
            wanted = [beacon.heartbeat_s for beacon in self._beacons.values()]
            self._timer = self._loop.call_later(max(min([TICK_SECONDS, *wanted]), LEAST_TICK_SECONDS), self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            for carrier in list(self._carriers.values()):
                for _ in range(MOST_READS):
                    if not (packets := carrier.receive()):
                        break
                    self.arrived(packets)
            self.tick()
        finally:  # whatever a user of a session does, time goes on
            self._tick_later()

    def tick(self) -> None:
        """Time has passed."""
        now = self._clock()
        self.library.advance(now)
        self._ask(now)
        for sock in self._ports.values():
            self._drain(sock)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._sweep(now)
        waiting, self._waiting = self._waiting, set()
        for session in waiting:
            if session.open:
                session.events.writable(session)
        self.entrance.forget_stale()
        self._settle()

    def _sweep(self, now: float) -> None:
        """What need not be done at once, since it costs something for each association."""
        for session in self.sessions():
            if not session.sock.shared:
                self._drain(session.sock)  # what timers raised
            session.forget_delivered()
            if session.closing and session.deadline is None:
                session.deadline = now + CLOSE_SECONDS
            elif session.deadline is not None and now >= session.deadline:
                session.abort("closed here")

    def _ask(self, now: float) -> None:
        """For signs of life: of those that go to the same place, one asks for all."""
        for place, beacon in list(self._beacons.items()):
            if not beacon.open:
                del self._beacons[place]
                others = [one for one in self._own.values() if one.heartbeat_s and one.open and one.place == place]
                if others:
                    beacon = self._beacons[place] = others[0]
                for other in others:
                    other.beacon = beacon
            if beacon.open and now >= beacon.next_heartbeat:
                beacon.next_heartbeat = now + beacon.heartbeat_s
                address = lib.conn_address(beacon.other.handle, beacon.other.port)
                with contextlib.suppress(OSError):  # between ending and being told
                    self.library.peer_parameters(beacon.sock.number, lib.HB_DEMAND, address=address)
