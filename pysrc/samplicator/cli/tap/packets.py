"""Packets as the datagrams and copies of a tap were or would be on a wire: IPv4 or IPv6, UDP, payload.

Called by pcapng. Pure. Invariants: what is not known is zero (an address, a port, a TTL), and checksums are correct
where the payload is whole.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from samplicator.cli.tap.events import Address, Datagram, Open, Place

_UDP: Final = 17
_FORGED: Final = frozenset({"raw", "packet", "transparent"})
"""Ways that can keep the exporter's source."""


def packet(event: Datagram, config: Open) -> tuple[bytes, int]:
    """The packet, as far as its payload is known, and the bytes that the whole has."""
    source, source_port, to, to_port = _ends(event, config)
    length = 8 + event.length
    whole = len(event.payload) == event.length
    udp = struct.pack(">HHHH", source_port, to_port, min(length, 0xFFFF), 0) + event.payload
    pseudo = source.packed + to.packed + struct.pack(">II", length, _UDP)
    checksum = (_checksum(pseudo + udp) or 0xFFFF) if whole else 0  # RFC 768: 0 = none
    udp = udp[:6] + struct.pack(">H", checksum) + udp[8:]
    if isinstance(source, IPv6Address):
        head = struct.pack(">IHBB", 6 << 28 | event.tos << 20, min(length, 0xFFFF), _UDP, event.ttl)
        head += source.packed + to.packed
    else:
        total = min(20 + length, 0xFFFF)
        head = struct.pack(">BBHIBBH", 0x45, event.tos, total, 0, event.ttl, _UDP, 0) + source.packed + to.packed
        head = head[:10] + struct.pack(">H", _checksum(head)) + head[12:]
    return head + udp, len(head) + length


def _ends(event: Datagram, config: Open) -> tuple[Address, int, Address, int]:
    """Source and destination, of one family."""
    if event.kind in ("in", "dropped") or not event.receiver:
        places = config.listeners.get(event.listener, ())
        fitting = [place for place in places if _same(_address(place), event.exporter)]
        if not fitting:
            return event.exporter, event.port, _unspecified(event.exporter), places[0].port if places else 0
        return event.exporter, event.port, _address(fitting[0]) or event.exporter, fitting[0].port
    place = next(iter(config.receivers.get(event.receiver, ())), Place("", "", 0))
    to = _address(place) or _unspecified(event.exporter)
    kept = place.source == "exporter" if place.source else event.way in _FORGED
    if kept and _same(to, event.exporter):
        return event.exporter, event.port, to, place.port
    own = _parsed(place.source)
    return (own if own is not None and _same(own, to) else _unspecified(to)), 0, to, place.port


def _address(place: Place) -> Address | None:
    return _parsed(place.address)


def _parsed(text: str) -> Address | None:
    """None = no address, but the name of a gateway, for example."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _same(one: Address | None, other: Address) -> bool:
    return one is not None and one.version == other.version


def _unspecified(like: Address) -> Address:
    return IPv4Address(0) if like.version == 4 else IPv6Address(0)


def _checksum(data: bytes) -> int:
    """RFC 1071. A number is congruent to the sum of its 16 bit words modulo 65535."""
    rest = int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF
    return 0xFFFF - (rest or 0xFFFF)
