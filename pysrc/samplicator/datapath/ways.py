"""Ways: from the spec of a receiver to one Tx per worker and its sockets.

Invariants: a function either returns a whole object or raises and has closed what it opened; counters come from the
caller, who keeps them. Called by supervisor. It must never publish, and never decide what runs.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from samplicator import _fastpath
from samplicator._fastpath import Tx, TxCounters
from samplicator.host import abilities, sockets
from samplicator.host.pathmtu import PathMtu, path_mtu
from samplicator.plan.spec import ProbeSpec, ReceiverSpec, Udp

if TYPE_CHECKING:
    from samplicator.host.links import Link

log = logging.getLogger(__name__)

DEFAULT_MTU: Final = 1500
NO_ROUTE: Final = "there is no route to the receiver"
ENGINES: Final = {
    "udp": _fastpath.ENGINE_UDP,
    "raw": _fastpath.ENGINE_RAW,
    "transparent": _fastpath.ENGINE_TRANSPARENT,
    "packet": _fastpath.ENGINE_PACKET,
}
DISCARD: Final = 9
"""In place of a port whose number is not known (RFC 863); nothing is sent there."""


def receiver_key(spec: ReceiverSpec) -> ReceiverSpec:
    """What makes the ways of two receiver specs equal: all fields except texts for people and state."""
    delivery = spec.delivery
    if isinstance(delivery, Udp):
        delivery = replace(delivery, host="", engine_why="")
    return replace(spec, delivery=delivery, probe=ProbeSpec(), standby_for="", needed=False, index=0)


def meets(spec: ReceiverSpec) -> tuple[object, ...]:
    """How the collector identifies exporters, where it is, and whether copies can be sent to it: when this changes, it
    needs the templates again.
    """
    where: tuple[object, ...] = (spec.delivery,)
    if isinstance(spec.delivery, Udp):
        udp = spec.delivery
        where = udp.address, udp.port, udp.scope_id, udp.spoof, udp.source, udp.per_session
    return *where, spec.unique, spec.missing, spec.pod.uid if spec.pod is not None else ""


@dataclass(slots=True, eq=False)
class Way:
    """One Tx of one worker with its sockets. fallback: its Tx for exporters of the other address family. unconnected:
    sockets that had no route when they were opened. cutting: a Tx of engine udp with a cutter (see _fastpath.Tx), and
    its socket, until that is connected. waits: a standby that is to get no copies.
    """

    tx: Tx
    fallback: Tx | None = None
    sockets: list[socket.socket] = field(default_factory=list)
    unconnected: list[socket.socket] = field(default_factory=list)
    cutting: tuple[Tx, socket.socket] | None = None
    waits: bool = False

    @property
    def gave_up(self) -> int:
        """GAVE_UP bits of both."""
        return self.tx.gave_up | (self.fallback.gave_up if self.fallback is not None else 0)

    def set_link(self, link: Link | None) -> None:
        """The next hop of frames; None: unknown, copies leave by the other sockets. One thread at a time."""
        if link is None:
            self.tx.link()
        else:
            self.tx.link(link.interface, link.header, link.mtu, link.cuts)

    def set_waiting(self, waiting: bool) -> None:
        """Whether a standby is to get no copies; to be called before a plan that names a new way is published."""
        if self.waits != waiting:  # Tx.waiting says more: it holds until the templates are sent
            self.waits = waiting
            self.tx.standby(waiting)

    @property
    def looped(self) -> bool:
        """Whether none of its copies is sent: we said so, or the worker has found that they come back."""
        return self.tx.looped or (self.fallback is not None and self.fallback.looped)

    def set_looped(self, looped: bool) -> None:
        """Whether its copies come back: none is sent then, they are counted as `loop`."""
        for tx in (self.tx, self.fallback):
            if tx is not None and tx.looped != looped:
                tx.looped = looped

    def set_mtu(self, mtu: int) -> None:
        self.tx.mtu = mtu
        if self.fallback is not None:
            self.fallback.mtu = mtu

    def start_cutting(self) -> None:
        """Sets the source address of a cutter's copies, as soon as the address is known."""
        if self.cutting is not None and self.cutting[1] not in self.unconnected:
            tx, sock = self.cutting
            tx.cut_from(sockets.own_address(sock), sock.getsockname()[1])
            self.cutting = None

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


class Path:
    """What all workers' ways to one receiver share: the probed path, and the reserved own source of unspoofed raw
    copies. mtu: bytes that a packet has at most, of the route, the configuration and what routers on the way say,
    mtu_why: which of them it is, for people. link: the next hop of frames, link_words: that, or why there is none, for
    people.
    """

    __slots__ = ("_beyond", "_route_mtu", "link", "link_words", "mtu", "mtu_why", "reservation", "routed", "source",
                 "spec")  # fmt: skip

    def __init__(self, spec: ReceiverSpec, before: Path | None = None) -> None:
        """before: the one of the same receiver in the plan before, from which stays what is known of the way there."""
        self.spec = spec
        self.link: Link | None = None
        self.link_words = "not known yet" if spec.framed else ""
        self.mtu = DEFAULT_MTU
        self.routed = False
        self.reservation: socket.socket | None = None
        self.source = spec.udp.source
        self.mtu_why = ""
        self._route_mtu = DEFAULT_MTU
        self._beyond: PathMtu | None = None
        if spec.missing:
            return
        probe = sockets.probe_path(spec.udp.address, spec.udp.port, spec.udp.scope_id)
        self._route_mtu = probe.mtu or DEFAULT_MTU
        self._beyond = path_mtu(spec.udp, spec.probe.kind)
        if self._beyond is not None and before is not None:
            self._beyond.inherit(before._beyond)
        self.mtu, self.mtu_why = self._least_mtu()
        self.routed = probe.mtu > 0
        if spec.engine == "raw" and not spec.udp.spoof and (spec.udp.source is None or spec.udp.source[1] == 0):
            self.reservation, self.source = sockets.reserve_source(spec.udp)

    def close(self) -> None:
        if self.reservation is not None:
            self.reservation.close()
        if self._beyond is not None:
            self._beyond.close()

    def _least_mtu(self) -> tuple[int, str]:
        least, why = self._route_mtu, "from the route"
        beyond = self._beyond
        if beyond is not None and 0 < beyond.learned < least:
            least, why = beyond.learned, "reported by a router on the way"
        elif beyond is not None and beyond.doubtful:
            why += (
                f"; echo requests of {beyond.interface} bytes get no answer, but those of 1280 bytes do; if long "
                "copies are lost, set `mtu`"
            )
        return (self.spec.udp.mtu, "configured") if 0 < self.spec.udp.mtu <= least else (least, why)

    @property
    def fault(self) -> str:
        """Why nothing gets through, "" when it does."""
        return "" if self.routed else NO_ROUTE

    def look(self, now: float, ways: Sequence[Way], counters: Mapping[int, TxCounters]) -> None:
        """Several times per second: follows the MTU that routers on the way report."""
        if self._beyond is not None and self._beyond.step(now):
            self._set_mtu(ways)
            say = log.info if self._beyond.learned == 0 and not self._beyond.doubtful else log.warning
            say(
                "receiver %r: packets have at most %d bytes, %s (the interface takes %d); longer copies are sent in "
                "fragments",
                self.spec.name, self.mtu, self.mtu_why, self._beyond.interface,
            )  # fmt: skip

    def _set_mtu(self, ways: Sequence[Way]) -> None:
        before = self.mtu
        self.mtu, self.mtu_why = self._least_mtu()
        if self.mtu != before:
            for way in ways:
                way.set_mtu(self.mtu)

    def open_way(self, counters: TxCounters, send_buffer: int, worker: int) -> Way:
        """A way for one more worker. Raises OSError."""
        if self.spec.missing:
            return no_way(self.spec, counters, self.spec.udp.address, self.spec.udp.port or DISCARD)
        if self.spec.engine == "udp":
            return _udp_way(self.spec, counters, send_buffer, self.mtu)
        return self._raw_way(counters, send_buffer)

    def _raw_way(self, counters: TxCounters, send_buffer: int) -> Way:
        spec = self.spec
        fallback: Way | None = None
        sock = sockets.open_raw(spec.udp, send_buffer)
        try:
            if spec.udp.spoof:  # an exporter of the other family cannot be the source here: its copies leave unspoofed
                fallback = _udp_way(spec, counters, send_buffer, self.mtu)
            tx = Tx(
                ENGINES[spec.engine],
                sock.fileno(),
                counters,
                spec.udp.address,
                spec.udp.port,
                ttl=spec.udp.ttl,
                tos=spec.udp.tos,
                freq=spec.freq,
                checksum=spec.udp.checksum,
                mtu=self.mtu,
                source=None if spec.udp.spoof else self.source,
                scope_id=spec.udp.scope_id,
                pause_us=spec.udp.pause_us,
                by_exporter=spec.by_exporter,
                refresh=spec.refresh,
                fallback=fallback.tx if fallback else None,
                alias=spec.unique and not spec.udp.spoof,  # a spoofed copy tells its exporter by its address
            )
            if spec.framed and self.link is not None:
                tx.link(self.link.interface, self.link.header, self.link.mtu, self.link.cuts)
            way = Way(tx, None, [sock], [] if sockets.connect(sock, spec.udp) else [sock])
            if fallback is not None:
                way.fallback = fallback.tx
                way.sockets += fallback.sockets
                way.unconnected += fallback.unconnected
                way.cutting = fallback.cutting
        except BaseException:
            sock.close()
            if fallback is not None:
                fallback.close()
            raise
        return way

    def refresh(self, ways: Sequence[Way]) -> bool:
        """Reads the path again: MTU into the ways, connects what had no route. False when our source address is gone
        and the ways must be opened again. Raises OSError when the host cannot be asked now (no descriptor is
        free): then all stays as it is.
        """
        spec = self.spec
        if spec.missing:
            return True
        probe = sockets.probe_path(spec.udp.address, spec.udp.port, spec.udp.scope_id)
        self.routed = probe.mtu > 0
        if not self.routed:
            return True
        self._route_mtu = probe.mtu
        self._set_mtu(ways)
        for way in ways:
            way.unconnected = [sock for sock in way.unconnected if not _try_connect(sock, spec)]
            way.start_cutting()
        return not self._source_lost(ways, probe.source)

    def _source_lost(self, ways: Sequence[Way], source: bytes) -> bool:
        spec = self.spec
        if spec.udp.source is not None or spec.udp.spoof or not ways:
            return False
        if spec.engine == "raw":
            own = self.source[0] if self.source else source
            return own != source and not abilities.is_local(own)
        if ways[0].unconnected:
            return False
        own = sockets.own_address(ways[0].sockets[0])
        return own != source and not abilities.is_local(own)


def no_way(spec: ReceiverSpec, counters: TxCounters, address: bytes, port: int) -> Way:
    """The way to a receiver that this host cannot send to now (ReceiverSpec.missing): every copy counts as no_route."""
    sock = sockets.open_nowhere()
    try:
        tx = Tx(
            _fastpath.ENGINE_UDP,
            sock.fileno(),
            counters,
            address,
            port,
            freq=spec.freq,
            by_exporter=spec.by_exporter,
            refresh=spec.refresh,
            nowhere=True,
        )
        return Way(tx, None, [sock])
    except BaseException:
        sock.close()
        raise


def _udp_way(spec: ReceiverSpec, counters: TxCounters, send_buffer: int, mtu: int) -> Way:
    opened = [sockets.open_udp(spec.udp, send_buffer)]
    sock = opened[0]
    try:
        cutter = None
        if spec.udp.mtu:
            opened.append(sockets.open_raw(spec.udp, send_buffer))
            cutter = _cutter(spec, opened[1], counters, mtu)
        tx = Tx(
            _fastpath.ENGINE_UDP,
            sock.fileno(),
            counters,
            spec.udp.address,
            spec.udp.port,
            ttl=spec.udp.ttl,
            tos=spec.udp.tos,
            freq=spec.freq,
            checksum=spec.udp.checksum,
            mtu=mtu,
            scope_id=spec.udp.scope_id,
            pause_us=spec.udp.pause_us,
            by_exporter=spec.by_exporter,
            refresh=spec.refresh,
            cutter=cutter,
            alias=spec.unique,
            per_session=spec.udp.per_session,
        )
        way = Way(tx, None, opened, [one for one in opened if not sockets.connect(one, spec.udp)])
        if cutter is not None:
            way.cutting = tx, sock
            way.start_cutting()
        return way
    except BaseException:
        for one in opened:
            one.close()
        raise


def _cutter(spec: ReceiverSpec, sock: socket.socket, counters: TxCounters, mtu: int) -> Tx:
    return Tx(
        _fastpath.ENGINE_RAW,
        sock.fileno(),
        counters,
        spec.udp.address,
        spec.udp.port,
        ttl=spec.udp.ttl,
        tos=spec.udp.tos,
        checksum=spec.udp.checksum,
        mtu=mtu,
        source=(bytes(len(spec.udp.address)), 0),  # until the other socket is connected
        scope_id=spec.udp.scope_id,
        pause_us=spec.udp.pause_us,
    )


def _try_connect(sock: socket.socket, spec: ReceiverSpec) -> bool:
    try:
        return sockets.connect(sock, spec.udp)
    except OSError:
        return False
