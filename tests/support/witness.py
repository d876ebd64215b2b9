"""What really arrived on a wire: an AF_PACKET reader with its own slow dissector, and tshark as the second,
independent opinion.

Invariants: everything is dissected from the bytes on the link: addresses, ports, TTL, TOS, payload, and whether the
checksum is right, absent or wrong; fragments are put together here. Nothing of the product is imported. Used by
lab.py and the tests. Must never send anything.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from support.process import Process, tool, wait_for

if TYPE_CHECKING:
    from support.namespace import Namespace

SOL_PACKET, PACKET_IGNORE_OUTGOING, SO_RCVBUFFORCE, ETH_P_ALL = 263, 23, 33, 3


@dataclass(frozen=True)
class Seen:
    """One UDP datagram as it arrived. checksum: good | zero | bad. fragments: how many packets it took."""

    source: str
    source_port: int
    destination: str
    port: int
    ttl: int
    tos: int
    checksum: str
    payload: bytes = field(repr=False)
    fragments: int = 1
    dont_fragment: bool = False

    @property
    def exporter(self) -> tuple[str, int]:
        return self.source, self.source_port


def ones_complement_sum(data: bytes) -> int:
    """RFC 1071, as plain as it gets: the folded sum, not its complement."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum_state(source: bytes, destination: bytes, datagram: bytes) -> str:
    """State of the UDP checksum of a whole datagram (header and payload); over IPv6 an absent one is a bad one (RFC
    8200 §8.1).
    """
    if datagram[6:8] == b"\0\0":
        return "zero" if len(source) == 4 else "bad"
    if len(source) == 4:
        pseudo = source + destination + struct.pack("!BBH", 0, 17, len(datagram))
    else:
        pseudo = source + destination + struct.pack("!IHBB", len(datagram), 0, 0, 17)
    return "good" if ones_complement_sum(pseudo + datagram) == 0xFFFF else "bad"


class Reassembly:
    """Turns link frames into datagrams, in order of completion. Wrong IPv4 header checksums and overlaps are
    assertion failures.
    """

    def __init__(self) -> None:
        self.parts: dict[tuple[bytes, ...], dict[int, bytes]] = {}
        self.totals: dict[tuple[bytes, ...], int] = {}

    def feed(self, frame: bytes) -> Seen | None:
        ethertype = frame[12:14]
        if ethertype == b"\x08\x00":
            return self._ipv4(frame[14:])
        if ethertype == b"\x86\xdd":
            return self._ipv6(frame[14:])
        return None

    def _ipv4(self, packet: bytes) -> Seen | None:
        if packet[9] != 17:
            return None
        header = (packet[0] & 15) * 4
        length, identification, fragment = struct.unpack("!HHH", packet[2:8])
        assert ones_complement_sum(packet[:header]) == 0xFFFF, f"wrong IPv4 header checksum: {packet[:header].hex()}"
        body = packet[header:length]
        source, destination = packet[12:16], packet[16:20]
        key = (source, destination, identification.to_bytes(2, "big"))
        whole = self._join(key, (fragment & 0x1FFF) * 8, body, bool(fragment & 0x2000))
        if whole is None:
            return None
        return self._datagram(source, destination, packet[8], packet[1], whole, bool(fragment & 0x4000))

    def _ipv6(self, packet: bytes) -> Seen | None:
        tos = (int.from_bytes(packet[0:2], "big") >> 4) & 0xFF
        length, following, ttl = struct.unpack("!HBB", packet[4:8])
        source, destination, body = packet[8:24], packet[24:40], packet[40 : 40 + length]
        if following == 44:
            if body[0] != 17:
                return None
            offset = int.from_bytes(body[2:4], "big")
            whole = self._join((source, destination, body[4:8]), offset & 0xFFF8, body[8:], bool(offset & 1))
        else:
            if following != 17:
                return None
            whole = (body, 1)
        if whole is None:
            return None
        return self._datagram(source, destination, ttl, tos, whole, False)

    def _join(self, key: tuple[bytes, ...], offset: int, body: bytes, more: bool) -> tuple[bytes, int] | None:
        if offset == 0 and not more:
            return body, 1
        parts = self.parts.setdefault(key, {})
        assert offset not in parts, f"fragment at {offset} twice"
        assert not more or len(body) % 8 == 0, "a fragment that is not the last must be a multiple of 8 bytes long"
        parts[offset] = body
        if not more:
            self.totals[key] = offset + len(body)
        if key not in self.totals or sum(map(len, parts.values())) < self.totals[key]:
            return None
        total = self.totals.pop(key)
        del self.parts[key]
        whole = b""
        for start in sorted(parts):
            assert start == len(whole), "fragments overlap or leave a hole"
            whole += parts[start]
        assert len(whole) == total
        return whole, len(parts)

    @staticmethod
    def _datagram(src: bytes, dst: bytes, ttl: int, tos: int, whole: tuple[bytes, int], df: bool) -> Seen:
        datagram, fragments = whole
        source_port, port, length = struct.unpack("!HHH", datagram[:6])
        assert length == len(datagram), f"UDP length {length}, {len(datagram)} bytes there"
        return Seen(
            str(ipaddress.ip_address(src)),
            source_port,
            str(ipaddress.ip_address(dst)),
            port,
            ttl,
            tos,
            checksum_state(src, dst, datagram),
            datagram[8:],
            fragments,
            df,
        )


class Tap:
    """Reads a device from the moment it is made. The kernel queues; collect() dissects. longest: bytes of the longest
    packet of any kind so far.
    """

    def __init__(self, namespace: Namespace, device: str, wanted: Callable[[Seen], bool] | None = None) -> None:
        self.socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 128 << 20)
        self.socket.bind((device, ETH_P_ALL))
        self.socket.setblocking(False)
        self.reassembly = Reassembly()
        self.wanted = wanted or (lambda seen: True)
        self.seen: list[Seen] = []
        self.longest = 0

    def drain(self) -> list[Seen]:
        """Dissects what is there now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self.socket.recv(1 << 17)
                self.longest = max(self.longest, len(frame) - 14)
                seen = self.reassembly.feed(frame)
                if seen is not None and self.wanted(seen):
                    self.seen.append(seen)
        packets, drops = struct.unpack("=II", self.socket.getsockopt(SOL_PACKET, 6, 8))  # PACKET_STATISTICS
        assert drops == 0, f"the witness itself lost {drops} of {packets} packets"
        return self.seen

    def collect(self, count: int, timeout: float = 10.0, settle: float = 0.2) -> list[Seen]:
        """Waits for `count` datagrams, then until nothing more comes for `settle` seconds: surplus copies are seen
        too.
        """
        end = time.monotonic() + timeout
        while len(self.drain()) < count and time.monotonic() < end:
            select.select([self.socket], [], [], max(0.0, end - time.monotonic()))
        while select.select([self.socket], [], [], settle)[0]:
            self.drain()
        return self.seen

    def clear(self) -> None:
        self.drain()
        self.seen.clear()

    def close(self) -> None:
        self.socket.close()


class Tshark:
    """tshark on a device: dissects live; a marker datagram on port 9 tells when it is on and when it has seen
    everything.
    """

    FIELDS = (
        "ip.src", "ipv6.src", "ip.dst", "ipv6.dst", "udp.srcport", "udp.dstport", "ip.ttl", "ipv6.hlim",
        "udp.checksum.status", "udp.length", "udp.payload",
    )  # fmt: skip

    def __init__(self, process: Process, mark: Callable[[bytes], None]) -> None:
        self.process = process
        self.mark = mark

    def on(self) -> Tshark:
        """Waits until it captures."""
        wait_for(lambda: self.process.alive and self._marked(b"start"), "tshark to capture", 30, 0.05)
        return self

    @staticmethod
    def argv(device: str) -> list[str]:
        preferences = ("udp.check_checksum", "ip.check_checksum", "ip.defragment", "ipv6.defragment")
        words = [tool("tshark"), "-n", "-l", "-i", device, "-Y", "udp && !icmp && !icmpv6", "-T", "fields"]
        for preference in preferences:
            words += ["-o", f"{preference}:TRUE"]
        for protocol in ("cflow", "sflow"):  # payloads are plain data here: a dissector on top would hide udp.payload
            words += ["--disable-protocol", protocol]
        for field_name in Tshark.FIELDS:
            words += ["-e", field_name]
        return words

    def _marked(self, text: bytes) -> bool:
        self.mark(text)
        return text.hex() in self.process.stdout()

    def rows(self) -> list[dict[str, str]]:
        """One row a datagram, in order of arrival, markers left out. Checksum status: 1 good, 0 bad, 3 not present."""
        wait_for(lambda: self._marked(b"end of the run"), "tshark to see the end marker", 30, 0.05)
        rows = []
        for line in self.process.stdout().splitlines():
            row = dict(zip(self.FIELDS, line.split("\t"), strict=False))
            if row.get("udp.dstport") != "9":
                rows.append(row)
        return rows
