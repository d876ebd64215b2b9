"""The ring: the second way in. Packet sockets with a TPACKET_V3 ring that take a listener's datagrams at the device.

Purpose: one place for what packet(7) wants to hear. Invariants: the socket filter tests the very same conditions as the
ingress rule (ingress.py builds it from the same sections), so that a datagram comes in exactly one way: whole,
option-less UDP datagrams without VLAN tag to the given addresses and ports. All rings of a listener on an interface
are one fanout group; which of them gets a datagram is decided by exporter address and port alone, and only among those
that are selected, so a ring joins a running group without a gap and without a datagram coming twice. Each ring has a
doorbell, and the doorbells are a group of the same order: see fastpath/rx/ring.pxi. Called by engines. It must never
touch a datagram.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import platform
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from samplicator.host import bpf
from samplicator.plan.spec import RingMatch

SO_TIMESTAMPNS: Final = 35
SOL_PACKET: Final = 263
PACKET_RX_RING: Final = 5
PACKET_STATISTICS: Final = 6
PACKET_VERSION: Final = 10
PACKET_VNET_HDR: Final = 15
PACKET_FANOUT: Final = 18
PACKET_FANOUT_DATA: Final = 22
PACKET_IGNORE_OUTGOING: Final = 23
TPACKET_V2: Final = 1
TPACKET_V3: Final = 2
PACKET_FANOUT_CBPF: Final = 6
PACKET_FANOUT_FLAG_UNIQUEID: Final = 0x2000
ETH_P_ALL: Final = 3

READS_OPEN: Final = platform.machine() == "x86_64"
"""Whether the block that the kernel still fills is read as well (fastpath/rx/ring.pxi says why not everywhere)."""
BLOCK_BYTES: Final = 1 << 17
"""The least: twice the largest packet."""
BLOCK_MOST_BYTES: Final = 1 << 20
BLOCKS: Final = 64
"""As many blocks as a ring should have: the end of a block that the next packet does not fit in is lost, and a block
is given back as a whole.
"""
FRAME_BYTES: Final = 2048
RETIRE_MS: Final = 10000 if READS_OPEN else 1
"""How long a block that is not full waits for more before the kernel hands it over. Where open blocks are read, only
the ring of a worker that does not run is used up by it. Elsewhere it is the latency, and a ring lasts as many
milliseconds as it has blocks, whatever the rate.
"""
SETTLE_SECONDS: Final = 0.03
"""Where only closed blocks are read: after that long no datagram is in a block that was not handed over (the kernel's
timer counts in jiffies).
"""
BLOCK_HEADER: Final = 48
_PAGE: Final = 4096

_NET: Final = 0xFFF00000  # SKF_NET_OFF: loads relative to the network header, include/uapi/linux/filter.h
_PROTOCOL: Final = 0xFFFFF000  # SKF_AD_OFF + SKF_AD_PROTOCOL
_PACKET_TYPE: Final = _PROTOCOL + 4
_VLAN_TAG: Final = _PROTOCOL + 48
_ALL: Final = 0x40000  # bytes kept
_LOAD: Final = {4: 0x20, 2: 0x28, 1: 0x30}
_TAX, _XOR_X, _AND, _MULTIPLY, _SHIFT = 0x07, 0xAC, 0x54, 0x24, 0x74
_JUMP, _EQUAL, _GREATER_EQUAL, _RETURN, _RETURN_A = 0x05, 0x15, 0x35, 0x06, 0x16
_MOST: Final = 4096  # BPF_MAXINSNS

IPV4, IPV6 = 0x0800, 0x86DD
HOST, MULTICAST = 0, 2
"""Packet types, include/uapi/linux/if_packet.h."""


@dataclass(frozen=True, slots=True)
class Header:
    """Where things stand in a packet of one protocol, counted from the network header. tests: (offset, bytes, mask,
    value) that hold for a whole UDP datagram without IP options or extension headers.
    """

    tests: tuple[tuple[int, int, int, int], ...]
    source: int
    destination: int
    octets: int
    ports: int


HEADERS: Final = {
    IPV4: Header(((0, 1, 0xFF, 0x45), (9, 1, 0xFF, 17), (6, 2, 0x3FFF, 0)), 12, 16, 4, 20),
    IPV6: Header(((6, 1, 0xFF, 17),), 8, 24, 16, 40),
}


@dataclass(frozen=True, slots=True)
class Section:
    """One conjunction: packet type, protocol, one of the addresses, one of the port ranges."""

    kind: int
    protocol: int
    addresses: tuple[bytes, ...]
    ports: tuple[tuple[int, int], ...]


def sections(matches: Sequence[RingMatch]) -> Iterator[Section]:
    """What a datagram must be one of, for filter and ingress rule alike."""
    for match in matches:
        for kind, addresses in ((HOST, match.addresses), (MULTICAST, match.groups)):
            for protocol, header in HEADERS.items():
                found = tuple(address for address in addresses if len(address) == header.octets)
                if found:
                    yield Section(kind, protocol, found, match.ports)


# ---------------------------------------------------------------------------------------------------- programs


class _Program:
    """Classic BPF with forward labels: every test falls through when it holds and goes to its label when not."""

    def __init__(self) -> None:
        self.code: list[tuple[int, int, int, int]] = []
        self.labels: dict[str, int] = {}
        self.jumps: dict[int, str] = {}

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def add(self, code: int, value: int = 0) -> None:
        self.code.append((code, 0, 0, value & 0xFFFFFFFF))

    def load(self, size: int, offset: int) -> None:
        self.add(_LOAD[size], offset)

    def jump(self, name: str) -> None:
        self.jumps[len(self.code)] = name
        self.add(_JUMP)

    def unless(self, test: int, value: int, name: str, *, inverted: bool = False) -> None:
        """Goes to `name` unless the test holds (inverted: if it holds)."""
        self.code.append((test, 0 if inverted else 1, 1 if inverted else 0, value))
        self.jump(name)

    def finish(self) -> bytes:
        if len(self.code) > _MOST:
            raise OSError(
                errno.E2BIG, "one ring cannot filter so many addresses and ports; name an interface or fewer addresses"
            )
        out = b""
        for i, (code, jt, jf, k) in enumerate(self.code):
            out += struct.pack("=HBBI", code, jt, jf, self.labels[self.jumps[i]] - i - 1 if i in self.jumps else k)
        return out


def socket_filter(matches: Sequence[RingMatch], keep: int = _ALL) -> bytes:
    """The matches as a classic BPF program (struct sock_filter array). keep: bytes of what matches."""
    program = _Program()
    program.load(4, _VLAN_TAG)
    program.unless(_EQUAL, 0, "reject")
    for number, section in enumerate(sections(matches)):
        _section(program, section, f"s{number}", f"s{number + 1}")
    program.label(f"s{len(list(sections(matches)))}")
    program.label("reject")
    program.add(_RETURN, 0)
    program.label("accept")
    program.add(_RETURN, keep)
    return program.finish()


def _section(program: _Program, section: Section, here: str, following: str) -> None:
    header = HEADERS[section.protocol]
    program.label(here)
    program.load(4, _PACKET_TYPE)
    program.unless(_EQUAL, section.kind, following)
    program.load(4, _PROTOCOL)
    program.unless(_EQUAL, section.protocol, following)
    for offset, size, mask, value in header.tests:
        program.load(size, _NET + offset)
        if mask != (1 << 8 * size) - 1:
            program.add(_AND, mask)
        program.unless(_EQUAL, value, following)
    for number, address in enumerate(section.addresses):
        for word in range(0, header.octets, 4):
            program.load(4, _NET + header.destination + word)
            program.unless(_EQUAL, int.from_bytes(address[word : word + 4]), f"{here}a{number}")
        program.jump(f"{here}port")
        program.label(f"{here}a{number}")
    program.jump(following)
    program.label(f"{here}port")
    program.load(2, _NET + header.ports + 2)
    for number, (low, high) in enumerate(section.ports):
        program.unless(_GREATER_EQUAL, low, f"{here}p{number}")
        program.unless(_GREATER_EQUAL, high + 1, f"{here}p{number}", inverted=True)
        program.jump("accept")
        program.label(f"{here}p{number}")
    program.jump(following)


def spread(members: int) -> bytes:
    """The program that picks the ring of a datagram: a hash of exporter address and port, scaled to `members`. As with
    the kernel's own rule for sockets (reciprocal_scale), another member moves datagrams to higher numbers only; who
    reads the members in their order reads every exporter's datagrams in their order.
    """
    program = _Program()
    program.load(4, _PROTOCOL)
    for protocol, header in HEADERS.items():
        program.unless(_EQUAL, protocol, f"not{protocol}")
        program.load(2, _NET + header.ports)
        for word in range(0, header.octets, 4):
            program.add(_TAX)
            program.load(4, _NET + header.source + word)
            program.add(_XOR_X)
        program.jump("hash")
        program.label(f"not{protocol}")
    program.add(_RETURN, 0)
    program.label("hash")
    program.add(_MULTIPLY, 0x9E3779B1)
    program.add(_SHIFT, 16)
    program.add(_MULTIPLY, members)
    program.add(_SHIFT, 16)
    program.add(_RETURN_A)
    return program.finish()


# ---------------------------------------------------------------------------------------------------- the ring


@dataclass(frozen=True, slots=True)
class Fanout:
    """Numbers of the two groups of a listener on an interface."""

    rings: int
    bells: int


class Ring:
    """One packet socket with its ring, bound to one interface, member of a fanout group. Takes nothing until accept().

    map: the ring. bytes: of it, in blocks of block_bytes. bell, bell_map: the doorbell, where open blocks are read.
    fanout: the groups. drops: what the kernel found no room for.
    """

    def __init__(self, interface: str, ring_bytes: int, fanout: Fanout | None = None) -> None:
        """fanout: the groups to join, None = new ones. Raises OSError."""
        self.interface = interface
        self.drops = 0
        self.block_bytes = BLOCK_BYTES
        while READS_OPEN and self.block_bytes < min(BLOCK_MOST_BYTES, ring_bytes // BLOCKS):
            self.block_bytes *= 2
        blocks = max(2, ring_bytes // self.block_bytes)
        self.bytes = blocks * self.block_bytes
        self.bell: socket.socket | None = None
        self.bell_map: mmap.mmap | None = None
        bells = 0
        self.sock = _packet_socket()
        try:
            if READS_OPEN:
                # Made and bound before the ring: the kernel shows a packet to the socket bound last first.
                self.bell = _packet_socket()
                self.bell.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
                self.bell.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("4I", _PAGE, 1, _PAGE, 1))
                self.bell_map = _map(self.bell, _PAGE)
                bells = _join(self.bell, interface, fanout.bells if fanout else None)
            self.sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
            self.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            frames = self.bytes // FRAME_BYTES
            request = struct.pack("7I", self.block_bytes, blocks, FRAME_BYTES, frames, RETIRE_MS, 0, 0)
            self.sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
            self.map = _map(self.sock, self.bytes)
            self.fanout = Fanout(_join(self.sock, interface, fanout.rings if fanout else None), bells)
        except BaseException:
            self.close()
            raise

    def accept(self, matches: Sequence[RingMatch]) -> None:
        """Takes what matches (one of them), from now on. Raises OSError when there are too many."""
        if self.bell is not None:
            bpf.attach(self.bell, socket_filter(matches, 1))
        bpf.attach(self.sock, socket_filter(matches))

    def reject(self) -> None:
        """Takes nothing more; what is in the ring can still be read."""
        bpf.attach(self.sock, bpf.TAKE_NOTHING)
        if self.bell is not None:
            bpf.attach(self.bell, bpf.TAKE_NOTHING)

    def select(self, members: int) -> None:
        """Spreads over the first `members` rings of the group. A datagram that comes meanwhile may ring another ring's
        doorbell: wake the workers afterwards.
        """
        if self.bell is not None:
            bpf.attach(self.bell, spread(members), SOL_PACKET, PACKET_FANOUT_DATA)
        bpf.attach(self.sock, spread(members), SOL_PACKET, PACKET_FANOUT_DATA)

    def count_drops(self) -> int:
        """Adds what PACKET_STATISTICS counted since the last call (reading resets it) to `drops`."""
        _, dropped, _ = struct.unpack("3I", self.sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))
        self.drops += dropped
        return self.drops

    def waiting_bytes(self, block: int, offset: int) -> int:
        """Bytes that were not read (block_status and blk_len of struct tpacket_hdr_v1), when the reader is at this
        offset of this block: blocks that the kernel has closed follow it, then the one that it fills.
        """
        total = 0
        for number in range(self.bytes // self.block_bytes):
            place = (block * self.block_bytes + number * self.block_bytes) % self.bytes
            status, _, _, used = struct.unpack_from("=4I", self.map, place + 8)
            total += max(0, used - (offset if number == 0 else BLOCK_HEADER))
            if not status & 1:
                break
        return total

    def close(self) -> None:
        self.sock.close()
        if self.bell is not None:
            self.bell.close()


def fence() -> None:
    """Returns when no packet is on its way any more that was on it at the call: each has passed the rings, the ingress
    rules and the UDP stack. Closing a packet socket waits for them (packet_release(), synchronize_net(), in
    net/packet/af_packet.c; the kernel receives a packet within one section of RCU, net/core/dev.c). Takes some ms.
    """
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0).close()
    except OSError:  # no free descriptor
        time.sleep(SETTLE_SECONDS)


def _packet_socket() -> socket.socket:
    """A packet socket that takes nothing yet, bound to no interface. From now on the kernel notes when packets arrive,
    which it takes a moment to begin with: ring and UDP socket tell that time alike (fastpath/rx/overlap.pxd).
    """
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        bpf.attach(sock, bpf.TAKE_NOTHING)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        with contextlib.suppress(OSError):  # since Linux 4.20; the filter also drops outgoing packets
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _map(sock: socket.socket, octets: int) -> mmap.mmap:
    return mmap.mmap(sock.fileno(), octets, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def _join(sock: socket.socket, interface: str, group: int | None) -> int:
    """Binds to the interface and joins the fanout group (None = a new one); returns its number."""
    sock.bind((interface, ETH_P_ALL))
    flags = PACKET_FANOUT_CBPF | (PACKET_FANOUT_FLAG_UNIQUEID if group is None else 0)
    sock.setsockopt(SOL_PACKET, PACKET_FANOUT, (group or 0) | flags << 16)
    return sock.getsockopt(SOL_PACKET, PACKET_FANOUT) & 0xFFFF
