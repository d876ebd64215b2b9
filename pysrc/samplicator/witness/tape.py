"""The tape: packets of all interfaces as the kernel writes them into a ring, in order, the newest too.

Purpose: one packet socket with a TPACKET_V3 ring. Invariants: a slot is read once, and only when the kernel says that
it is whole; every offset is held against its block. The block that the kernel still fills is read as well where stores
become visible in order (host/ring has the conditions); elsewhere packets come some milliseconds later. Called by watch.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from samplicator.host import bpf, ring
from samplicator.witness.program import program

BLOCK_BYTES: Final = 1 << 20
BLOCKS: Final = 64
RETIRE_MS: Final = ring.RETIRE_MS if ring.READS_OPEN else 20
"""A block that is not full is handed over after this time, which limits how long the ring lasts: see host/ring."""
SIOCINQ: Final = 0x541B
HEAD_BYTES: Final = 128
"""Bytes given of a packet that holds one datagram: IP and UDP headers, and the longest header of flow telemetry."""
USER: Final = 1
GSO_UDP: Final = 5  # VIRTIO_NET_HDR_GSO_UDP_L4
VNET_BYTES: Final = 10
_SLOT: Final = struct.Struct("=IIIIIIHH")  # struct tpacket3_hdr: next, sec, nsec, snaplen, len, status, mac, net
_BLOCK: Final = struct.Struct("=III")  # status, packets, offset of the first, at 8 in struct tpacket_block_desc

Packet = Callable[[bytes, int], None]
"""An IP packet, and the payload bytes of each datagram in it; 0 = it holds one, and only its headers are given."""


class Tape:
    """Not blocking. drops: packets that the kernel found no room for, which are missing in every count."""

    def __init__(self, port: int, interfaces: Path = Path("/sys/class/net")) -> None:
        """Raises PermissionError without CAP_NET_RAW, OSError."""
        self.drops = 0
        self.skipped = enslaved(interfaces)
        self._block = self._index = 0
        self._offset = 0
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        # Of all interfaces. What comes before there is a ring waits elsewhere, and is never read.
        self.sock = socket.socket(socket.AF_PACKET, kind, socket.htons(ring.ETH_P_ALL))
        try:
            bpf.attach(self.sock, bpf.TAKE_NOTHING)
            with contextlib.suppress(OSError):  # since Linux 4.20; the filter leaves outgoing packets out too
                self.sock.setsockopt(ring.SOL_PACKET, ring.PACKET_IGNORE_OUTGOING, 1)
            self.sock.setsockopt(ring.SOL_PACKET, ring.PACKET_VERSION, ring.TPACKET_V3)
            self.sock.setsockopt(ring.SOL_PACKET, ring.PACKET_VNET_HDR, 1)
            frames = BLOCKS * BLOCK_BYTES // ring.FRAME_BYTES
            request = struct.pack("7I", BLOCK_BYTES, BLOCKS, ring.FRAME_BYTES, frames, RETIRE_MS, 0, 0)
            self.sock.setsockopt(ring.SOL_PACKET, ring.PACKET_RX_RING, request)
            self._map = mmap.mmap(self.sock.fileno(), BLOCKS * BLOCK_BYTES, mmap.MAP_SHARED)
            bpf.attach(self.sock, program(port, self.skipped))
        except BaseException:
            self.sock.close()
            raise

    def close(self) -> None:
        self._map.close()
        self.sock.close()

    def wait(self, seconds: float) -> None:
        """Until a block is closed, or so long."""
        select.select([self.sock], [], [], seconds)

    def count_drops(self) -> int:
        """All so far. PACKET_STATISTICS begins anew with each reading."""
        _, dropped, _ = struct.unpack("3I", self.sock.getsockopt(ring.SOL_PACKET, ring.PACKET_STATISTICS, 12))
        self.drops += dropped
        return self.drops

    def read(self, take: Packet, blocks: int = 8) -> int:
        """Gives what waits to `take`, of so many blocks at most; returns the number of packets."""
        total = 0
        for _ in range(blocks):
            start = self._block * BLOCK_BYTES
            status, packets, first = _BLOCK.unpack_from(self._map, start + 8)
            closed = bool(status & USER)
            if not closed:
                if not ring.READS_OPEN or packets <= self._index:
                    break
                fcntl.ioctl(self.sock, SIOCINQ, b"\0\0\0\0")  # takes the lock once: the counted slots are new ones
            elif packets:
                self._offset = self._offset or first
            got = self._slots(take, start, packets, closed)
            total += got
            if not closed:
                break
            struct.pack_into("=II", self._map, start + 12, 0, 0)
            struct.pack_into("=I", self._map, start + 8, 0)
            self._block = (self._block + 1) % BLOCKS
            self._index = self._offset = 0
        return total

    def _slots(self, take: Packet, start: int, packets: int, closed: bool) -> int:
        """The slots of a block that were not read yet."""
        octets, unpack = self._map, _SLOT.unpack_from
        offset = self._offset or ring.BLOCK_HEADER
        index = self._index
        while index < packets:
            if offset + 68 > BLOCK_BYTES:
                break
            at = start + offset
            step, _, _, kept, length, status, link, network = unpack(octets, at)
            whole = status & USER and VNET_BYTES <= link <= network and offset + link + kept <= BLOCK_BYTES
            if not closed and not (whole and kept == length and (link + kept + 7) & ~7 == step):
                break
            if whole:
                end, segment = at + link + kept, 0
                if octets[at + link - VNET_BYTES + 1] == GSO_UDP:
                    segment = int.from_bytes(octets[at + link - 6 : at + link - 4], sys.byteorder)
                take(octets[at + network : end if segment else min(end, at + network + HEAD_BYTES)], segment)
            index += 1
            if not step:
                break
            offset += step
        got = index - self._index
        self._index, self._offset = index, offset
        return got


def enslaved(interfaces: Path) -> tuple[int, ...]:
    """Indexes of the interfaces whose packets come again at the bridge or bond that they belong to."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(interfaces):
            if (interfaces / name / "brport").exists() or (interfaces / name / "bonding_slave").exists():
                with contextlib.suppress(OSError, ValueError):
                    found.append(int((interfaces / name / "ifindex").read_text()))
    return tuple(sorted(found))
