"""The demo's traffic: exporters that send what real ones sent, receivers that judge every copy.

Purpose: captures to datagrams, a thread that feeds them at a steady rate, a thread a receiver that compares.
Invariants: addresses are of 127.0.0.0/8; no datagram is sent by two exporters, so a copy tells whose it is; a copy
counts as verified only when its bytes, its place in its exporter's order and its source are right. Used by the demo.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

CAPTURES: Final = {"netflow5": "NetFlow v5", "netflow9": "NetFlow v9", "ipfix": "IPFIX", "sflow": "sFlow"}
PER_CAPTURE: Final = 2  # exporters that share a capture, each with a part of its own
BURST: Final = 8  # consecutive datagrams of one exporter, as routers send them
BUFFER_BYTES: Final = 64 << 20
SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h


def payloads(name: str) -> list[bytes]:
    """The UDP payloads of a capture that ships with the package, in order."""
    return list(udp_payloads(resources.files("samplicator").joinpath("captures", f"{name}.pcap").read_bytes()))


def udp_payloads(pcap: bytes) -> Iterator[bytes]:
    """UDP payloads of a classic pcap of Ethernet frames with IPv4. Raises ValueError for anything else."""
    order = {0xA1B2C3D4: "<", 0xA1B23C4D: "<", 0xD4C3B2A1: ">", 0x4D3CB2A1: ">"}.get(int.from_bytes(pcap[:4], "little"))
    if order is None or len(pcap) < 24 or struct.unpack_from(f"{order}I", pcap, 20)[0] & 0xFFFF != 1:
        raise ValueError("not a pcap of Ethernet frames")
    at = 24
    while at + 16 <= len(pcap):
        kept, length = struct.unpack_from(f"{order}II", pcap, at + 8)
        frame = pcap[at + 16 : at + 16 + kept]
        at += 16 + kept
        if (
            kept != length
            or len(frame) != kept
            or kept < 42
            or frame[12:14] != b"\x08\x00"
            or frame[23] != socket.IPPROTO_UDP
        ):
            raise ValueError("a frame is cut short, or no IPv4 with UDP")
        udp = 14 + (frame[14] & 15) * 4
        yield frame[udp + 8 : udp + struct.unpack_from(">H", frame, udp + 4)[0]]


@dataclass(slots=True, eq=False)
class Exporter:
    """One made-up router: an address of 127.0.0.0/8 and the part of a capture it sends round and round."""

    kind: str
    sock: socket.socket
    datagrams: list[bytes]
    sent: int = 0

    @property
    def address(self) -> tuple[str, int]:
        name: tuple[str, int] = self.sock.getsockname()
        return name


def make_exporters() -> list[Exporter]:
    """Eight exporters, 127.1.K.N; no datagram is sent by two of them, so a copy tells whose it is."""
    exporters: list[Exporter] = []
    seen: set[bytes] = set()
    for number, (name, kind) in enumerate(CAPTURES.items(), 1):
        datagrams = [d for d in dict.fromkeys(payloads(name)) if d not in seen]
        seen.update(datagrams)
        share = len(datagrams) // PER_CAPTURE
        for part in range(PER_CAPTURE):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((f"127.1.{number}.{part + 1}", 0))
            exporters.append(Exporter(kind, sock, datagrams[part * share : (part + 1) * share]))
    return exporters


class Feeder(threading.Thread):
    """Sends for all exporters at a steady rate, in bursts, until told to stop."""

    def __init__(self, exporters: Sequence[Exporter], to: tuple[str, int], rate: int) -> None:
        super().__init__(name="feeder", daemon=True)
        self.exporters = exporters
        self.to = to
        self.rate = rate
        self.halt = threading.Event()
        self.error = ""

    @property
    def sent(self) -> int:
        return sum(exporter.sent for exporter in self.exporters)

    def run(self) -> None:
        start, sent, turn = time.monotonic(), 0, 0
        while not self.halt.is_set():
            due = int((time.monotonic() - start) * self.rate)
            if due - sent > self.rate // 4 + BURST:  # this machine was away: go on from here, no giant burst
                start = time.monotonic() - sent / self.rate
                continue
            while sent < due:
                exporter = self.exporters[turn % len(self.exporters)]
                turn += 1
                try:
                    for _ in range(min(BURST, due - sent)):
                        exporter.sock.sendto(exporter.datagrams[exporter.sent % len(exporter.datagrams)], self.to)
                        exporter.sent += 1
                        sent += 1
                except OSError as error:
                    self.error = f"{exporter.address[0]} cannot send: {error.strerror}"
                    return
            self.halt.wait(0.004)


@dataclass(slots=True)
class Tally:
    """What a receiver saw. lost: copies missing in an exporter's order; wrong: bytes, source or order not as sent."""

    received: int = 0
    verified: int = 0
    lost: int = 0
    wrong_bytes: int = 0
    wrong_source: int = 0
    wrong_order: int = 0

    @property
    def wrong(self) -> int:
        return self.wrong_bytes + self.wrong_source + self.wrong_order


class Receiver(threading.Thread):
    """A collector that knows what every exporter sends and compares every copy with it."""

    def __init__(self, name: str, host: str, spoof: bool, exporters: Sequence[Exporter]) -> None:
        super().__init__(name=f"receiver-{name}", daemon=True)
        self.label = name
        self.spoof = spoof
        self.tally = Tally()
        self.halt = threading.Event()
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        except PermissionError:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 200_000))
        self.sock.bind((host, 0))
        self._addresses = [exporter.address for exporter in exporters]
        self._lengths = [len(exporter.datagrams) for exporter in exporters]
        self._known = {
            datagram: (number, place)
            for number, exporter in enumerate(exporters)
            for place, datagram in enumerate(exporter.datagrams)
        }
        self._next = [0] * len(exporters)
        self._relay: tuple[str, int] | None = None

    @property
    def address(self) -> tuple[str, int]:
        name: tuple[str, int] = self.sock.getsockname()
        return name

    def run(self) -> None:
        while True:
            try:
                data, source = self.sock.recvfrom(65535)
            except BlockingIOError:
                if self.halt.is_set():
                    return
                continue
            except InterruptedError:
                continue
            self.judge(data, source)

    def judge(self, data: bytes, source: tuple[str, int]) -> None:
        """Counts one copy."""
        tally = self.tally
        tally.received += 1
        known = self._known.get(data)
        if known is None:
            tally.wrong_bytes += 1
            return
        number, place = known
        length = self._lengths[number]
        ahead = (place - self._next[number]) % length
        if ahead > length // 2:  # behind what came before: repeated or overtaken
            tally.wrong_order += 1
            return
        tally.lost += ahead
        self._next[number] = (place + 1) % length
        if self._relay is None and not self.spoof:
            self._relay = source
        if source != (self._addresses[number] if self.spoof else self._relay):
            tally.wrong_source += 1
            return
        tally.verified += 1
