"""SCTP packets (RFC 9260 section 3), as far as the glue around libusrsctp reads and writes them.

Invariants: pure; bytes of any content and length give an answer, never an exception; the checksum is libusrsctp's
matter. Called by userland and peers. Must never decide what happens to a packet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

HEADER_BYTES: Final = 12
DATA, INIT, INIT_ACK, SACK, HEARTBEAT, HEARTBEAT_ACK, ABORT = 0, 1, 2, 3, 4, 5, 6
SHUTDOWN_ACK, ERROR, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE = 8, 9, 10, 11, 14
REFLECTED: Final = 1
"""The T bit of ABORT and SHUTDOWN COMPLETE: the tag is the one of the packet that is answered."""
IPV4_PARAMETER, IPV6_PARAMETER = 5, 6
MOST_ADDRESSES: Final = 16
"""Of one peer; what it lists beyond them is not looked at."""

_PORTS_TAG = struct.Struct("!HHI")
_CHUNK = struct.Struct("!BBH")
_WORD = struct.Struct("!I")


class Chunk(NamedTuple):
    """start, end: of its value, which begins behind its 4 bytes of header."""

    kind: int
    flags: int
    start: int
    end: int


class Packet(NamedTuple):
    """source_port, destination_port: SCTP's. tag: verification tag. chunks: those that are whole, in order."""

    source_port: int
    destination_port: int
    tag: int
    chunks: tuple[Chunk, ...]
    data: bytes


def _chunks(data: bytes) -> Iterator[Chunk]:
    at = HEADER_BYTES
    while at + 4 <= len(data):
        kind, flags, length = _CHUNK.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            return
        yield Chunk(kind, flags, at + 4, at + length)
        at += (length + 3) & ~3


def parse(data: bytes) -> Packet | None:
    """None: it is too short to be a packet, or its first chunk is not whole."""
    if len(data) < HEADER_BYTES + 4:
        return None
    chunks = tuple(_chunks(data))
    if not chunks:
        return None
    source_port, destination_port, tag = _PORTS_TAG.unpack_from(data)
    return Packet(source_port, destination_port, tag, chunks, data)


def initiate_tag(packet: Packet) -> int:
    """The tag that the sender of an INIT or INIT ACK wants to see in packets that come to it; 0: it is neither."""
    first = packet.chunks[0]
    if first.kind not in (INIT, INIT_ACK) or first.end - first.start < 16:
        return 0
    tag: int = _WORD.unpack_from(packet.data, first.start)[0]
    return tag


def listed_addresses(packet: Packet) -> tuple[bytes, ...]:
    """What the sender of an INIT or INIT ACK lists as its addresses besides the one it sends from, of 4 or 16 bytes."""
    first = packet.chunks[0]
    if not initiate_tag(packet):
        return ()
    found: list[bytes] = []
    at = first.start + 16
    while at + 4 <= first.end and len(found) < MOST_ADDRESSES:
        kind, length = struct.unpack_from("!HH", packet.data, at)
        if length < 4 or at + length > first.end:
            break
        if (kind, length) in ((IPV4_PARAMETER, 8), (IPV6_PARAMETER, 20)):
            found.append(packet.data[at + 4 : at + length])
        at += (length + 3) & ~3
    return tuple(found)


def is_later(tsn: int, other: int) -> bool:
    """Serial arithmetic of 32 bits (RFC 1982)."""
    return 0 < (tsn - other) & 0xFFFFFFFF < 1 << 31


def data_tsn(packet: Packet, chunk: Chunk) -> int | None:
    """None: it is no whole DATA chunk."""
    if chunk.kind != DATA or chunk.end - chunk.start < 12:
        return None
    tsn: int = _WORD.unpack_from(packet.data, chunk.start)[0]
    return tsn


class Sack(NamedTuple):
    """cumulative: all TSNs up to this one have arrived. ranges: further ones that have, as offsets from it."""

    cumulative: int
    ranges: tuple[tuple[int, int], ...]


def sack(packet: Packet, chunk: Chunk) -> Sack | None:
    if chunk.kind != SACK or chunk.end - chunk.start < 12:
        return None
    cumulative, _, gaps = struct.unpack_from("!IIH", packet.data, chunk.start)
    room = (chunk.end - chunk.start - 12) // 4
    pairs = struct.iter_unpack("!HH", packet.data[chunk.start + 12 : chunk.start + 12 + 4 * min(gaps, room)])
    return Sack(cumulative, tuple((first, last) for first, last in pairs))


def answer_to_stranger(packet: Packet, checksum: Callable[[bytes], int]) -> bytes | None:
    """What RFC 9260 section 8.4 has us say to a packet of no association, so that its sender knows at once; None:
    nothing. checksum: CRC32c of a packet whose checksum field is zero, as libusrsctp computes it.
    """
    kinds = {chunk.kind for chunk in packet.chunks}
    if kinds & {ABORT, SHUTDOWN_COMPLETE, INIT, INIT_ACK, COOKIE_ACK, ERROR} or not packet.tag:
        return None
    kind = SHUTDOWN_COMPLETE if SHUTDOWN_ACK in kinds else ABORT
    header = _PORTS_TAG.pack(packet.destination_port, packet.source_port, packet.tag)
    chunk = _CHUNK.pack(kind, REFLECTED, 4)
    return header + struct.pack("=I", checksum(header + bytes(4) + chunk)) + chunk
