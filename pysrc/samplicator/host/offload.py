"""Ingress offload: the BPF program that copies sessions' datagrams where they come in.

Purpose: what fastpath/bpf/offload.bpf.c needs of the host: the program loaded, its maps and the workers' ring buffers,
the program at every interface that listeners are reached by, and where they listen. Invariants: a hook is a link that
ends with the process; programs of others there stay, and come first if they were first; an interface that is made anew
gets the program anew. Called by supervisor. It must never decide which sessions are copied.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from samplicator.host.express import Express
from samplicator.host.interfaces import Device, devices
from samplicator.host.libbpf import Hook, Link, Objects, ring_buffer
from samplicator.host.netlink import Conversation
from samplicator.plan.spec import RingSpec

OBJECT: Final = Path(__file__).parent.parent / "bpf" / "offload.bpf.o"
PROGRAM: Final = "offload_ingress"
SESSIONS: Final = 65536
SETS: Final = 32
RECEIVERS: Final = 64
PLACES: Final = 4095
EXPRESS_PLACES: Final = 2048
"""Numbers of places from here on are for interfaces where XDP is.
"""
ARPHRD_ETHER: Final = 1
MAPS: Final = ("keys", "sessions", "sets", "receivers", "counters", "rings")
LEAST_BYTES: Final = 1 << 20
"""Of a ring buffer: many times the longest run.
"""
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


class TooManyPlaces(ValueError):
    """A listener listens at more addresses and ports than the program can know."""


def places_of(gate: RingSpec) -> Iterator[bytes]:
    """The keys (struct offload_place) of all that a listener is reached at by one interface, but for multicast groups,
    which others here may be in. Raises TooManyPlaces.
    """
    many = sum(len(match.addresses) * (high - low + 1) for match in gate.matches for low, high in match.ports)
    if many > PLACES:
        raise TooManyPlaces(f"{many} addresses and ports on {gate.interface}, and the program knows {PLACES}")
    for match in gate.matches:
        for address in match.addresses:
            full = address if len(address) == 16 else _MAPPED + address
            for low, high in match.ports:
                for port in range(low, high + 1):
                    yield struct.pack("=I16s2sxx", gate.index, full, port.to_bytes(2))


class Offload:
    """workers: how many it serves; ring_bytes: of each one's ring buffer. maps, rings: descriptors, see Worker.offload.
    interfaces: names of those that it is at. express: has XDP copy, too; no_express: why it does not, at some or all.
    """

    def __init__(self, workers: int, ring_bytes: int, *, express: bool = False) -> None:
        """ring_bytes: a power of two from LEAST_BYTES on is made of it. Raises OSError, with what is missing: the
        compiled program, libbpf, a right, a kernel that has the hook.
        """
        try:
            image = OBJECT.read_bytes()
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "samplicator was built without clang, so it has no BPF program") from None
        self.workers = workers
        self.ring_bytes = 1 << (min(max(ring_bytes, LEAST_BYTES), 1 << 30).bit_length() - 1)
        self.interfaces: tuple[str, ...] = ()
        self._places: dict[bytes, tuple[int, int, bool]] = {}
        self._free = {False: deque(range(1, EXPRESS_PLACES)), True: deque(range(EXPRESS_PLACES, PLACES + 1))}
        self.express: Express | None = None
        self.no_express: tuple[str, ...] = ()
        self._links: dict[int, Link] = {}
        self.rings: list[int] = []
        many = {
            "keys": SESSIONS * workers,
            "sessions": SESSIONS * workers,
            "sets": SETS * workers + 1,
            "receivers": SETS * RECEIVERS * workers + RECEIVERS,
            "counters": SETS * RECEIVERS * workers,
        }
        self._objects = Objects(image, [PROGRAM], many)
        try:
            for number in range(workers):
                self.rings.append(ring_buffer(self.ring_bytes))
                self._show_by(number)
            if express:
                self._begin_express()
        except BaseException:
            self.close()
            raise

    def _show_by(self, number: int) -> None:
        """Has the program show a worker what it copies."""
        ring = self.rings[number].to_bytes(4, sys.byteorder)
        self._objects.maps["rings"].put(number.to_bytes(4, sys.byteorder), ring)

    def _begin_express(self) -> None:
        try:
            self.express = Express(self._objects.maps, SETS * self.workers, RECEIVERS)
        except OSError as error:
            hint = "; install the unit's drop-in xdp.conf" if error.errno in (errno.EPERM, errno.EACCES) else ""
            self.no_express = (f"{error.strerror or error}{hint}",)

    def broadcasts(self, number: int) -> Sequence[int]:
        """XDP's program for each copy, and device maps of the sets of a worker; nothing: there is no XDP."""
        if self.express is None:
            return ()
        return (self.express.copy, *self.express.broadcasts[number * SETS : (number + 1) * SETS])

    @property
    def maps(self) -> tuple[int, ...]:
        return tuple(self._objects.maps[name].fd for name in MAPS)

    def follow(self, gates: Sequence[tuple[int, RingSpec]]) -> Mapping[int, str]:
        """From now on the program is at these interfaces, and knows these listeners (by slot) and no others. Returns
        listeners that it does not know, and why.
        """
        wanted: dict[bytes, int] = {}
        without: dict[int, str] = {}
        ethernet = self._ethernet() if gates else {}
        indexes: dict[int, str] = {}
        for slot, gate in gates:
            if gate.index not in ethernet:
                continue
            try:
                wanted |= dict.fromkeys(places_of(gate), slot)
                indexes[gate.index] = gate.interface
            except TooManyPlaces as error:
                without[slot] = str(error)
        by_express = self._express_at({index: ethernet[index] for index in indexes}, ethernet)
        for index in self._links.keys() - indexes.keys():
            self._links.pop(index).close()
        without |= self._know(wanted, by_express)
        for index, name in indexes.items():
            if index not in self._links:
                try:
                    self._links[index] = self._objects.attach(PROGRAM, index, Hook.TCX_INGRESS)
                except OSError as error:
                    without |= {slot: f"{name}: {error.strerror}" for slot, gate in gates if gate.index == index}
        self.interfaces = tuple(sorted(name for index, name in indexes.items() if index in self._links))
        return without

    def _express_at(self, wanted: Mapping[int, Device], every: Mapping[int, Device]) -> set[int]:
        """Has XDP be at these interfaces; returns those where it is."""
        if self.express is None:
            return set()
        before = set(self.express.interfaces)
        try:
            without = self.express.follow(wanted, every)
        except OSError as error:
            self.express.leave()
            without = {0: error.strerror or str(error)}
        self.no_express = tuple(without.values())
        if before - set(self.express.interfaces):
            self._show_by(0)  # as in leave()
        if wanted and not self.express.outputs:
            self.no_express += ("no interface can send what XDP broadcasts",)
        return set(self.express.interfaces)

    def _know(self, wanted: Mapping[bytes, int], by_express: set[int]) -> dict[int, str]:
        """Has the program know these places, of listeners by slot, and no others. Each has a number, which is another
        one's much later: a session may still be on for the one before.
        """
        known = self._objects.maps["places"]
        here = {place: int.from_bytes(place[:4], sys.byteorder) in by_express for place in self._places.keys() | wanted}
        for place in list(self._places):
            slot, number, express = self._places[place]
            if (wanted.get(place), here[place]) != (slot, express):
                known.delete(place)
                self._free[number >= EXPRESS_PLACES].append(number)
                del self._places[place]
        for place, slot in wanted.items():
            if place in self._places:
                continue
            free = self._free[here[place]] or self._free[not here[place]]  # of the other kind: XDP leaves it to tcx
            if not free:
                return dict.fromkeys(set(wanted.values()), f"the program knows {PLACES} addresses and ports at most")
            known.put(place, struct.pack("=HH", slot, free[0]))
            self._places[place] = slot, free.popleft(), here[place]
        return {}

    def leave(self) -> None:
        """Is at no interface any more: what comes passes to the sockets."""
        if self.express is not None and self.express.interfaces:
            self.express.leave()
            self._show_by(0)  # the kernel waits for what has begun: what comes later meets the other program
        for link in self._links.values():
            link.close()
        self._links = {}
        self.interfaces = ()

    def close(self) -> None:
        """When no worker uses the maps any more."""
        self.leave()
        for ring in self.rings:
            with contextlib.suppress(OSError):
                os.close(ring)
        self.rings = []
        if self.express is not None:
            self.express.close()
        self._objects.close()

    def _ethernet(self) -> dict[int, Device]:
        """The interfaces that carry Ethernet frames."""
        with Conversation() as kernel:
            return {index: device for index, device in devices(kernel).items() if device.kind == ARPHRD_ETHER}
