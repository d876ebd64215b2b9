"""NetFlow v9 messages, as far as a gateway must read them (RFC 3954): exporters send them by SCTP.

Pure, as ipfix, and with the same types. Where v9 differs: no length in the header, so the transport must keep messages
whole; a count of records; a sequence that counts messages; an options template says its lengths in bytes. Called by
forms and heard. It must never look at the values of data records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from samplicator.gateways.ipfix import LEAST_DATA_SET, MAX_MESSAGE, SET, Set, Template

VERSION: Final = 9
HEADER: Final = struct.Struct(">HHIIII")
"""Version, count of records, uptime in ms, seconds, sequence, source id (section 5.1)."""
TEMPLATE_SET: Final = 0
OPTIONS_SET: Final = 1
TEMPLATE_SETS: Final = (TEMPLATE_SET, OPTIONS_SET)
_OPTIONS_HEAD: Final = struct.Struct(">HHH")


def sets_of(message: bytes) -> list[Set]:
    """The flow sets, in order; fewer than four bytes behind them, or zeros, are padding. Raises ValueError."""
    if len(message) < HEADER.size or message[:2] != b"\0\x09":
        raise ValueError(f"{len(message)} bytes are no NetFlow v9 message")
    found = []
    at = HEADER.size
    while len(message) - at >= SET.size:
        identity, size = SET.unpack_from(message, at)
        if identity == size == 0:
            break
        if size < SET.size or size > len(message) - at:
            raise ValueError(f"flow set {identity} has length {size} where {len(message) - at} bytes are left")
        found.append(Set(identity, at + SET.size, at + size))
        at += size
    return found


def templates_of(message: bytes, found: Set) -> Iterator[Template]:
    """The records of a template or options template flow set. Raises ValueError for one that is cut short."""
    at = found.begin
    while found.end - at >= SET.size:
        begin = at
        identity, count = SET.unpack_from(message, at)
        if not identity:  # padding
            return
        if found.identity == OPTIONS_SET:
            if found.end - at < _OPTIONS_HEAD.size:
                raise ValueError(f"options template {identity} is cut short")
            _, scope, options = _OPTIONS_HEAD.unpack_from(message, at)
            if scope % 4 or options % 4:
                raise ValueError(f"options template {identity} has lengths that are no multiples of 4")
            at, count = at + _OPTIONS_HEAD.size, (scope + options) // 4
        else:
            at += SET.size
        if identity < LEAST_DATA_SET or not count:
            raise ValueError(f"template {identity} with {count} fields")
        if found.end - at < 4 * count:
            raise ValueError(f"template {identity} is cut short")
        lengths = struct.unpack_from(f">{2 * count}H", message, at)[1::2]
        at += 4 * count
        yield Template(found.identity, identity, message[begin:at], lengths)


def message_of(like: bytes, count: int, sequence: int, sets: Sequence[tuple[int, bytes]]) -> bytes:
    """A message of (identity, records) with the times and the source id of `like`, each set padded to four bytes.
    Raises ValueError for one that is too long.
    """
    _, _, uptime, seconds, _, source = HEADER.unpack_from(like)
    parts = [HEADER.pack(VERSION, count & 0xFFFF, uptime, seconds, sequence & 0xFFFFFFFF, source)]
    for identity, records in sets:
        padding = bytes(-len(records) % 4)
        parts += [SET.pack(identity, SET.size + len(records) + len(padding)), records, padding]
    made = b"".join(parts)
    if len(made) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(made)} bytes is too long")
    return made
