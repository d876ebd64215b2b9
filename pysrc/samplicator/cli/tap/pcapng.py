"""A writer of pcapng files, as far as a tap needs the format: one section, interfaces, packets.

Purpose: the events of a tap as packets, each on the interface of its listener or receiver, with a comment that says
what became of it. Invariant: a file that is flushed ends with a whole block. Called by command. The format has three
block types here and is written by hand, because no library that is kept up writes comments and interfaces as they come.
Source: draft-ietf-opsawg-pcapng (PCAP Now Generic Capture File Format), 4.1 to 4.3.
"""

from __future__ import annotations

import struct
import time
from typing import BinaryIO, Final

from samplicator import __version__
from samplicator.cli.drawing import plain
from samplicator.cli.tap.events import Datagram, Open
from samplicator.cli.tap.packets import packet

_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_PACKET: Final = 6
_RAW: Final = 101  # LINKTYPE_RAW: begins with an IPv4 or IPv6 header
_COMMENT: Final = 1
_FLAGS: Final = 2  # of a packet: the lowest two bits are its direction, 1 = inbound, 2 = outbound
_NAME: Final = 2
_DESCRIPTION: Final = 3
_RESOLUTION: Final = 9
_PROGRAM: Final = 4
_NANOSECONDS: Final = 9  # 10 to the power of -9
_MOST_INTERFACES: Final = 100_000
_MOST_TEXT: Final = 1000
"""Bytes of an option."""


class Writer:
    """Writes to a file that is open. Raises OSError, and ValueError for more than 100,000 interfaces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._interfaces: dict[tuple[str, str], int] = {}
        head = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
        self._block(_SECTION, head + _options((_PROGRAM, _text(f"samplicator {__version__}"))))

    def open(self, config: Open) -> None:
        """The interfaces of a configuration; those that there are already stay."""
        for name in config.listeners:
            self._interface("listener", name, config)
        for name in config.receivers:
            self._interface("receiver", name, config)

    def packet(self, event: Datagram, config: Open) -> None:
        """One datagram or copy."""
        inbound = event.kind in ("in", "dropped") or not event.receiver
        number = self._interface(*(("listener", event.listener) if inbound else ("receiver", event.receiver)), config)
        data, whole = packet(event, config)
        moment = event.time_ns or time.time_ns()
        head = struct.pack("<IIIII", number, moment >> 32, moment & 0xFFFFFFFF, len(data), whole)
        flags = struct.pack("<I", 1 if inbound else 2)
        self._block(_PACKET, head + _padded(data) + _options((_COMMENT, _text(comment(event))), (_FLAGS, flags)))

    def flush(self) -> None:
        self._file.flush()

    def _interface(self, kind: str, name: str, config: Open) -> int:
        """Its number; a name whose addresses have changed is another interface."""
        places = (config.listeners if kind == "listener" else config.receivers).get(name, ())
        known = [place for place in places if place.address]
        where = [f"[{p.address}]:{p.port}" if ":" in p.address else f"{p.address}:{p.port}" for p in known]
        key = (f"{kind} {name}", ", ".join(where))
        if key not in self._interfaces:
            if len(self._interfaces) == _MOST_INTERFACES:
                raise ValueError("too many listeners and receivers")
            self._interfaces[key] = len(self._interfaces)
            described = [(_DESCRIPTION, _text(key[1]))] if where else []
            options = _options((_NAME, _text(key[0])), *described, (_RESOLUTION, bytes([_NANOSECONDS])))
            self._block(_INTERFACE, struct.pack("<HHI", _RAW, 0, 0) + options)
        return self._interfaces[key]

    def _block(self, kind: int, body: bytes) -> None:
        size = struct.pack("<I", 12 + len(body))
        self._file.write(struct.pack("<I", kind) + size + body + size)


def comment(event: Datagram) -> str:
    """What became of it, for people."""
    match event.kind:
        case "in":
            text = f"in by {event.listener}"
        case "sent":
            text = f"sent to {event.receiver}" + (f" by {event.way}" if event.way else "")
        case "skipped":
            text = f"not sent to {event.receiver}: skipped by {event.reason or 'freq'}"
        case _ if event.receiver:
            text = f"not sent to {event.receiver}: {event.reason or 'no reason is known'}"
        case _:
            text = f"not forwarded: {event.reason or 'no reason is known'}"
    return plain(text) + ("" if event.time_ns else "; its time of arrival is not known")


def _text(text: str) -> bytes:
    return plain(text).encode()[:_MOST_TEXT].decode(errors="ignore").encode()


def _options(*options: tuple[int, bytes]) -> bytes:
    """Code and value each, and the end of the options."""
    parts = (struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options)
    return b"".join(parts) + bytes(4)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
