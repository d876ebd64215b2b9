"""Streams: the datagrams on the wire by exporter session and observation domain, in the order in which they came.

Purpose: IP packets in, the header of each datagram entered into the log of its stream. Invariants: a stream's log is
cut off by its reader (cuts) up to where the relay was, so that it holds what came since; streams, fragments and logs
have a limit, and what is beyond it is counted. Pure. Called by tape, read by cuts.
"""

from __future__ import annotations

import time
from typing import Final

MOST_STREAMS: Final = 65536
MOST_PARTS: Final = 4096
MOST_LOGGED: Final = 8_000_000
PART_SECONDS: Final = 30.0
UDP, FRAGMENT = 17, 44
KINDS: Final = {
    b"\0\1": ("netflow1", 16),
    b"\0\5": ("netflow5", 24),
    b"\0\7": ("netflow7", 24),
    b"\0\x08": ("netflow8", 28),
    b"\0\x09": ("netflow9", 20),
    b"\0\x0a": ("ipfix", 16),
    b"\0\0": ("sflow5", 28),
}
"""Protocol and header bytes, by the first two bytes."""
DOMAIN: Final = {"netflow5": (20, 22), "netflow8": (20, 23), "netflow9": (16, 20), "ipfix": (12, 16)}
"""Where the observation domain is in the header, as in fastpath/flow/scan.pxd."""
OTHER: Final = ("other", 0)

Key = tuple[bytes, int, str, bytes]
"""Source address, source port, protocol, domain."""


class Stream:
    """Datagrams with one key. log: headers of those not cut off. count: all so far."""

    __slots__ = ("count", "key", "log")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.log: list[bytes] = []
        self.count = 0


def classify(payload: bytes) -> tuple[str, int]:
    """Protocol, and bytes of the header; ("other", 0) for what is no flow telemetry."""
    kind = KINDS.get(payload[:2], OTHER)
    if kind[0] == "sflow5":
        if payload[:4] != b"\0\0\0\5" or len(payload) < 28:
            return OTHER
        return ("sflow5", 40) if payload[7] == 2 else kind
    return kind if len(payload) >= kind[1] else OTHER


def domain_of(kind: str, header: bytes) -> bytes:
    """The bytes that tell observation domains of a session apart: for sFlow agent and sub-agent."""
    if kind == "sflow5":
        return header[8:28] if len(header) == 40 else header[8:16]
    start, end = DOMAIN.get(kind, (0, 0))
    return header[start:end]


class _Parts:
    """The fragments of one datagram."""

    __slots__ = ("came", "first", "got", "since", "total")

    def __init__(self, now: float) -> None:
        self.first: bytes | None = None
        self.came: set[int] = set()
        self.got = 0
        self.total = 0
        self.since = now


class Streams:
    """All streams. untracked: datagrams beyond the limits. reassembled: datagrams that came in fragments; incomplete:
    those whose fragments did not all come in time. arrivals, lengths: stream, and bytes of the IP packet, of each
    datagram since the caller emptied them.
    """

    def __init__(self, only: frozenset[bytes] = frozenset()) -> None:
        """only: destination addresses of the datagrams that are counted; the others are one stream. Empty = all."""
        self.only = only
        self.other = Stream((b"", 0, "other", b""))
        self.by_key: dict[Key, Stream] = {}
        self.arrivals: list[Stream] = []
        self.lengths: list[int] = []
        self.logged = 0
        self.count = self.untracked = self.reassembled = self.incomplete = self.broken = 0
        self._parts: dict[tuple[bytes, bytes, bytes], _Parts] = {}

    def packet(self, packet: bytes, segment: int) -> None:
        """One IP packet. segment: see tape.Packet."""
        version = packet[0] >> 4
        if version == 4:
            at, source = (packet[0] & 15) * 4, packet[12:16]
            fragment = packet[6] << 8 | packet[7]
            if fragment & 0x3FFF:
                size = (packet[2] << 8 | packet[3]) - at
                self._part(
                    (source, packet[16:20], packet[4:6]), fragment & 0x1FFF, fragment & 0x2000, size, packet[at:]
                )
                return
        elif version == 6:
            at, source = 40, packet[8:24]
            if packet[6] == FRAGMENT:
                size = (packet[4] << 8 | packet[5]) - 8
                offset = packet[42] << 8 | packet[43]
                self._part((source, packet[24:40], packet[44:48]), offset >> 3, offset & 1, size, packet[48:])
                return
        else:
            self.broken += 1
            return
        if len(packet) < at + 8:
            self.broken += 1
            return
        port = packet[at] << 8 | packet[at + 1]
        at += 8
        if self.only and (packet[16:20] if version == 4 else packet[24:40]) not in self.only:
            many = -(-(len(packet) - at) // segment) if segment else 1
            self.arrivals += [self.other] * many
            self.lengths += [0] * many
            return
        if segment:
            end = len(packet)
            while at < end:
                self.datagram(source, port, packet[at : at + min(segment, 40)], 28 + min(segment, end - at))
                at += segment
        else:
            size = packet[2] << 8 | packet[3] if version == 4 else 40 + (packet[4] << 8 | packet[5])
            self.datagram(source, port, packet[at : at + 40], size)

    def datagram(self, source: bytes, port: int, payload: bytes, length: int = 0) -> None:
        """One datagram to the port; the first 40 bytes of it. length: of its IP packet, 0 = not known."""
        kind, octets = classify(payload)
        header = payload[:octets]
        key = (source, port, kind, domain_of(kind, header))
        stream = self.by_key.get(key)
        self.count += 1
        if stream is None:
            if len(self.by_key) >= MOST_STREAMS:
                self.untracked += 1
                return
            stream = self.by_key[key] = Stream(key)
        stream.count += 1
        stream.log.append(header)
        self.logged += 1
        self.arrivals.append(stream)
        self.lengths.append(length)

    def _part(self, key: tuple[bytes, bytes, bytes], offset: int, more: int, size: int, body: bytes) -> None:
        """A fragment. offset: in units of 8 bytes. body: its first bytes."""
        now = time.monotonic()
        parts = self._parts.get(key)
        if parts is None:
            if len(self._parts) >= MOST_PARTS:
                self.expire(now - PART_SECONDS)
            if len(self._parts) >= MOST_PARTS:
                self.incomplete += 1
                return
            parts = self._parts[key] = _Parts(now)
        if offset in parts.came:
            return
        parts.came.add(offset)
        parts.got += size
        if offset == 0:
            parts.first = body[:48]
        if not more:
            parts.total = offset * 8 + size
        if parts.first is not None and parts.total and parts.got >= parts.total:
            del self._parts[key]
            first = parts.first
            if len(first) >= 8:
                self.reassembled += 1
                if self.only and key[1] not in self.only:
                    self.arrivals.append(self.other)
                    self.lengths.append(0)
                    return
                self.datagram(key[0], first[0] << 8 | first[1], first[8:])

    def expire(self, before: float) -> None:
        """Gives up fragments that began to come before this moment (CLOCK_MONOTONIC). Those without a first fragment
        may be of another port, and are not counted.
        """
        for key in [key for key, parts in self._parts.items() if parts.since < before]:
            parts = self._parts.pop(key)
            self.incomplete += parts.first is not None
