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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from samplicator.host.interfaces import devices
from samplicator.host.libbpf import Hook, Link, Objects, ring_buffer
from samplicator.host.netlink import Conversation
from samplicator.plan.spec import RingSpec

OBJECT: Final = Path(__file__).parent.parent / "bpf" / "offload.bpf.o"
PROGRAM: Final = "offload_ingress"
SESSIONS: Final = 65536
SETS: Final = 32
RECEIVERS: Final = 64
PLACES: Final = 4096
ARPHRD_ETHER: Final = 1
_MAPPED: Final = b"\0" * 10 + b"\xff\xff"


class TooManyPlaces(ValueError):
    """A listener listens at more addresses and ports than the program can know."""


def places_of(gate: RingSpec) -> Iterator[bytes]:
    """The keys (struct offload_place) of all that a listener is reached at by one interface. Raises TooManyPlaces."""
    many = sum(
        (len(match.addresses) + len(match.groups)) * (high - low + 1)
        for match in gate.matches
        for low, high in match.ports
    )
    if many > PLACES:
        raise TooManyPlaces(f"{many} addresses and ports on {gate.interface}, and the program knows {PLACES}")
    for match in gate.matches:
        for group, addresses in enumerate((match.addresses, match.groups)):
            for address in addresses:
                full = address if len(address) == 16 else _MAPPED + address
                for low, high in match.ports:
                    for port in range(low, high + 1):
                        yield struct.pack("=I16s2sH", gate.index, full, port.to_bytes(2), group)


class Offload:
    """workers: how many it serves; ring_bytes: of each one's ring buffer. maps, rings: descriptors, see Worker.offload.
    interfaces: names of those that it is at.
    """

    def __init__(self, workers: int, ring_bytes: int) -> None:
        """ring_bytes: a power of two from 4096 on is made of it. Raises OSError, with what is missing: the compiled
        program, libbpf, a right, a kernel that has the hook.
        """
        try:
            image = OBJECT.read_bytes()
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "samplicator was built without clang, so it has no BPF program") from None
        self.workers = workers
        self.ring_bytes = 1 << max(12, min(30, ring_bytes.bit_length() - 1))
        self.interfaces: tuple[str, ...] = ()
        self._places: dict[bytes, bytes] = {}
        self._links: dict[int, Link] = {}
        self.rings: list[int] = []
        many = {
            "keys": SESSIONS * workers,
            "sessions": SESSIONS * workers,
            "sets": SETS * workers,
            "receivers": SETS * RECEIVERS * workers,
            "counters": SETS * RECEIVERS * workers,
        }
        self._objects = Objects(image, [PROGRAM], many)
        try:
            for number in range(workers):
                self.rings.append(ring_buffer(self.ring_bytes))
                ring = self.rings[number].to_bytes(4, sys.byteorder)
                self._objects.maps["rings"].put(number.to_bytes(4, sys.byteorder), ring)
        except BaseException:
            self.close()
            raise

    @property
    def maps(self) -> tuple[int, ...]:
        return tuple(self._objects.maps[name].fd for name in ("keys", "sessions", "sets", "receivers", "counters"))

    def follow(self, gates: Sequence[tuple[int, RingSpec]]) -> Mapping[int, str]:
        """From now on the program is at these interfaces, and knows these listeners (by slot) and no others. Returns
        listeners that it does not know, and why.
        """
        wanted: dict[bytes, bytes] = {}
        without: dict[int, str] = {}
        ethernet = self._ethernet({gate.index for _, gate in gates})
        indexes: dict[int, str] = {}
        for slot, gate in gates:
            if gate.index not in ethernet:
                continue
            try:
                wanted |= dict.fromkeys(places_of(gate), slot.to_bytes(4, sys.byteorder))
                indexes[gate.index] = gate.interface
            except TooManyPlaces as error:
                without[slot] = str(error)
        for index in self._links.keys() - indexes.keys():
            self._links.pop(index).close()
        known = self._objects.maps["places"]
        for place in self._places.keys() - wanted.keys():
            known.delete(place)
            del self._places[place]
        for place, slot_bytes in wanted.items():
            if self._places.get(place) == slot_bytes:
                continue
            try:
                known.put(place, slot_bytes)
                self._places[place] = slot_bytes
            except OSError:
                without[int.from_bytes(slot_bytes, sys.byteorder)] = f"the program knows {PLACES} addresses and ports"
        for index, name in indexes.items():
            if index not in self._links:
                try:
                    self._links[index] = self._objects.attach(PROGRAM, index, Hook.TCX_INGRESS)
                except OSError as error:
                    without |= {slot: f"{name}: {error.strerror}" for slot, gate in gates if gate.index == index}
        self.interfaces = tuple(sorted(name for index, name in indexes.items() if index in self._links))
        return without

    def leave(self) -> None:
        """Is at no interface any more: what comes passes to the sockets."""
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
        self._objects.close()

    def _ethernet(self, wanted: set[int]) -> set[int]:
        """Those of these interfaces that carry Ethernet frames."""
        if not wanted:
            return set()
        with Conversation() as kernel:
            return {
                index for index, device in devices(kernel).items() if index in wanted and device.kind == ARPHRD_ETHER
            }
