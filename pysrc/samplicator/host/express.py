"""Copies made by XDP: what fastpath/bpf/express.bpf.c needs of the host, beside the programs of ingress offload.

Purpose: its programs loaded with the maps of the others, at the interfaces that listeners are reached by, natively;
which interfaces it can send by, found by trying. Invariants: hooks are links that end with the process; an XDP program
of others at an interface stays, and ours is not there then; an interface is used for sending when copies that were
broadcast by it came in the order of their numbers. Called by host/offload. It must never decide which sessions are
copied.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from samplicator.host.ethtool import ask
from samplicator.host.interfaces import Device
from samplicator.host.libbpf import XDP_FLAGS_DRV_MODE, Hook, Link, Map, Objects, device_map, put

OBJECT: Final = Path(__file__).parent.parent / "bpf" / "express.bpf.o"
INGRESS: Final = "express_ingress"
COPY: Final = "express_copy"
FLUSHED: Final = "express_flushed"
POLLED: Final = "express_polled"
TRY: Final = "express_try"
OUTPUTS: Final = 64
SHARED: Final = ("places", "keys", "sessions", "sets", "receivers", "counters", "rings", "polls")
TRIES: Final = 3
PATTERN: Final = (True, False, True, True, False, True)
"""Of the receivers of a set that an interface is tried with: whose copies leave by it."""
IFF_UP: Final = 1
ETHTOOL_GDRVINFO, ETHTOOL_GRINGPARAM = 0x3, 0x10
DRVINFO_BYTES: Final = 196
RINGPARAM: Final = struct.Struct("=9I")
SLOW: Final = 1 << 31
"""Bit of what `room` says: a CPU of this host empties the queue, when it comes to that.
"""
ROOM: Final = 240
"""Of veth (drivers/net/veth.c: VETH_RING_SIZE 256, of which up to 16 are made free a little later, linux/ptr_ring.h).
"""
REALTIME: Final = Path("/sys/kernel/realtime")
_TURN: Final = struct.Struct("=QQ")
_TRIAL: Final = struct.Struct("=I64I")


class Express:
    """programs are loaded and nothing is hooked, but for the count of what devices take. broadcasts: a device map for
    each set, and one for trying. outputs: of the interfaces that it can send by, indexes, and how many copies their
    queues are sure to hold.
    """

    def __init__(self, maps: Mapping[str, Map], sets: int, receivers: int) -> None:
        """maps: those of ingress offload, with one set more than workers use. Raises OSError, with what is missing."""
        try:
            image = OBJECT.read_bytes()
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "samplicator was built without clang, so it has no BPF program") from None
        self.outputs: dict[int, int] = {}
        self.broadcasts: list[int] = []
        self._sets, self._receivers = sets, receivers
        self._links: dict[int, Link] = {}
        self._told: list[Link] = []
        shared = {name: maps[name] for name in SHARED}
        self._objects = Objects(image, [INGRESS, COPY, FLUSHED, POLLED, TRY], {"broadcasts": sets + 1}, shared)
        self.copy = self._objects.programs[COPY]
        try:
            for number in range(sets + 1):
                self.broadcasts.append(device_map(receivers))
                self._objects.maps["broadcasts"].put(_word(number), _word(self.broadcasts[number]))
            for program, tracepoint in ((FLUSHED, "xdp_devmap_xmit"), (POLLED, "napi_poll")):
                self._told.append(self._objects.attach_raw(program, tracepoint))
        except BaseException:
            self.close()
            raise

    @property
    def maps(self) -> Mapping[str, Map]:
        """By name."""
        return self._objects.maps

    def run(self, program: str, frame: bytes) -> tuple[int, bytes]:
        """For tests: see Objects.run."""
        return self._objects.run(program, frame)

    def tell(self, program: str, *arguments: int) -> None:
        """For tests: see Objects.tell."""
        self._objects.tell(program, *arguments)

    @property
    def interfaces(self) -> tuple[int, ...]:
        """Indexes of those that it is at."""
        return tuple(self._links)

    def follow(self, wanted: Mapping[int, Device], every: Mapping[int, Device]) -> dict[int, str]:
        """From now on the program is at the interfaces wanted, where it can be, and may send by those of all that it
        can. Returns those where it cannot be, and why.
        """
        without: dict[int, str] = {}
        for index in self._links.keys() - wanted.keys():
            self._links.pop(index).close()
            self._objects.maps["devices"].delete(_word(index))
        for index, device in wanted.items():
            if why := _unfit(index, every):
                without[index] = f"{device.name}: {why}"
                if index in self._links:
                    self._links.pop(index).close()
                continue
            self._objects.maps["devices"].put(_word(index), device.address[:6].ljust(8, b"\0"))
            if index in self._links:
                continue
            try:
                self._links[index] = self.attach(index)
            except OSError as error:
                without[index] = f"{device.name}: {error.strerror}"
                self._objects.maps["devices"].delete(_word(index))
        able = [index for index, device in every.items() if device.flags & IFF_UP and not _unfit(index, every)]
        able = sorted(able, key=lambda index: index not in self.outputs)[:OUTPUTS]
        self._send_by({index: room(every[index].name) for index in able})
        return without

    def attach(self, index: int) -> Link:
        """The program at an interface, natively. Raises OSError: the driver has no XDP, or another program is there."""
        return self._objects.attach(INGRESS, index, Hook.XDP, XDP_FLAGS_DRV_MODE)

    def _send_by(self, wanted: Mapping[int, int]) -> None:
        """Those that it sends by already are not tried again: what is under way needs them."""
        turns = self._objects.maps["turns"]
        for index in self.outputs.keys() - wanted.keys():
            turns.delete(_word(index))
        can = [index for index in wanted if index in self.outputs]
        for index in (index for index in wanted if index not in self.outputs):
            turns.put(_word(index), _TURN.pack(0, 0) * (turns.room // _TURN.size))
            with contextlib.suppress(OSError):
                if all(self._try(index) for _ in range(TRIES)):
                    can.append(index)
                    continue
            turns.delete(_word(index))
        self.outputs = {index: wanted[index] for index in can}

    def _try(self, index: int) -> bool:
        """Whether the copies of a frame that is broadcast by an interface come in their order. None of them leaves."""
        maps = self._objects.maps
        maps["sets"].put(_word(self._sets), struct.pack("=4Q4I8x", 0, 0, 0, 1, 1, len(PATTERN), 0, 0))
        for number, here in enumerate(PATTERN):
            slot = self._sets * self._receivers + number
            maps["receivers"].put(_word(slot), struct.pack("=I36x", index if here else 0))
            if here:
                put(self.broadcasts[self._sets], _word(number), _word(index) + _word(self.copy))
        maps["trial"].put(_word(0), bytes(_TRIAL.size))
        self._objects.run_live(TRY, bytes(8) + _word(self._sets) + b"\x08\x00" + bytes(64))
        count, *slots = _TRIAL.unpack(maps["trial"].get(_word(0)) or b"")
        return slots[:count] == [number for number, here in enumerate(PATTERN) if here]

    def leave(self) -> None:
        """Is at no interface any more."""
        for link in self._links.values():
            link.close()
        self._links = {}

    def close(self) -> None:
        """When no worker uses the maps any more."""
        self.leave()
        for link in self._told:
            link.close()
        for fd in self.broadcasts:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.broadcasts = []
        self._objects.close()


def room(name: str) -> int:
    """Copies that the ring of an interface has room for, 1..2**31 - 1: half of its size, because what was sent before
    may still be there; ROOM if the driver does not say; with the bit SLOW for veth (ETHTOOL_GRINGPARAM,
    ETHTOOL_GDRVINFO, linux/ethtool.h).
    """
    driver = ask(name, ETHTOOL_GDRVINFO, DRVINFO_BYTES)[4:36].rstrip(b"\0")
    ring = ask(name, ETHTOOL_GRINGPARAM, RINGPARAM.size)
    copies = (RINGPARAM.unpack(ring)[8] // 2 if ring else 0) or ROOM
    return copies | SLOW if driver == b"veth" else copies


def _unfit(index: int, every: Mapping[int, Device]) -> str:
    """Why XDP cannot be right at an interface, though it might be there; "": it can."""
    if any(device.below == index for device in every.values()):
        return "there are VLANs on it, whose tags XDP may not see"
    if any(device.master == index for device in every.values()):
        return "it is made of other interfaces"
    if REALTIME.exists() and REALTIME.read_text().strip() == "1":
        return "the kernel is PREEMPT_RT"
    return ""


def _word(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
