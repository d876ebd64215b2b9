"""IPFIX messages, as far as a gateway must read them: their sets, template records, and where data records end.

Pure: bytes in, values out. What it reads comes from the network: every length is checked, ValueError says what does not
fit, nothing else is raised, and the time is linear in the bytes. Called by heard, told and split. It must never look at
the values of data records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

VERSION: Final = 10
HEADER: Final = struct.Struct(">HHIII")
"""Version, length, export time, sequence, observation domain (RFC 7011 section 3.1)."""
SET: Final = struct.Struct(">HH")
"""Identity, length with these four bytes (section 3.3.2)."""
TEMPLATE_SET: Final = 2
OPTIONS_SET: Final = 3
TEMPLATE_SETS: Final = (TEMPLATE_SET, OPTIONS_SET)
LEAST_DATA_SET: Final = 256
VARIABLE: Final = 65535
MAX_MESSAGE: Final = 65535
_ENTERPRISE: Final = 0x8000


class Set(NamedTuple):
    """identity; begin, end: of its records (and padding) within the message."""

    identity: int
    begin: int
    end: int


class Template(NamedTuple):
    """A template record. kind: TEMPLATE_SET or OPTIONS_SET. record: as it stands in its set. lengths: of the fields,
    VARIABLE for those that say it themselves; () = a withdrawal.
    """

    kind: int
    identity: int
    record: bytes
    lengths: tuple[int, ...]

    @property
    def withdraws(self) -> bool:
        return not self.lengths

    @property
    def withdraws_all(self) -> bool:
        """Every template of its kind (section 8.1)."""
        return not self.lengths and self.identity == self.kind

    @property
    def least(self) -> int:
        """Bytes of its shortest data record."""
        return sum(1 if length == VARIABLE else length for length in self.lengths)


def sets_of(message: bytes) -> list[Set]:
    """The sets, in order. Raises ValueError when header or sets do not fit the message."""
    if len(message) < HEADER.size:
        raise ValueError(f"an IPFIX message has at least 16 bytes, not {len(message)}")
    version, length = SET.unpack_from(message)
    if version != VERSION:
        raise ValueError(f"version {version} is not IPFIX, which has 10")
    if length != len(message):
        raise ValueError(f"the header says {length} bytes, the message has {len(message)}")
    found = []
    at = HEADER.size
    while at < length:
        if length - at < SET.size:
            raise ValueError(f"{length - at} bytes behind the last set")
        identity, size = SET.unpack_from(message, at)
        if size < SET.size or size > length - at:
            raise ValueError(f"set {identity} has length {size} where {length - at} bytes are left")
        found.append(Set(identity, at + SET.size, at + size))
        at += size
    return found


def templates_of(message: bytes, found: Set) -> Iterator[Template]:
    """The records of a template set or an options template set. Raises ValueError for one that is cut short."""
    at, head = found.begin, 6 if found.identity == OPTIONS_SET else 4
    while found.end - at >= 4:
        identity, count = SET.unpack_from(message, at)
        if not identity and not count:  # padding
            return
        begin = at
        if not count:
            at += 4
            yield Template(found.identity, identity, message[begin:at], ())
            continue
        if identity < LEAST_DATA_SET:
            raise ValueError(f"template {identity}: a template has a number of at least 256")
        at += head
        lengths = []
        for _ in range(count):
            if found.end - at < 4:
                raise ValueError(f"template {identity} is cut short")
            element, length = SET.unpack_from(message, at)
            at += 8 if element & _ENTERPRISE else 4
            lengths.append(length)
        if at > found.end:
            raise ValueError(f"template {identity} is cut short")
        yield Template(found.identity, identity, message[begin:at], tuple(lengths))


def record_ends(message: bytes, found: Set, template: Template) -> list[int]:
    """Where each data record of the set ends. What is left behind the last one is padding, or was not to be read."""
    least = template.least
    if not least:
        return []
    if VARIABLE not in template.lengths:
        return list(range(found.begin + least, found.end + 1, least))
    ends: list[int] = []
    at = found.begin
    while found.end - at >= least:
        for length in template.lengths:
            if length == VARIABLE:
                if at >= found.end:
                    return ends
                length = message[at]
                at += 1
                if length == 255:  # three bytes say it (section 7)
                    if found.end - at < 2:
                        return ends
                    length = message[at] << 8 | message[at + 1]
                    at += 2
            at += length
        if at > found.end:
            return ends
        ends.append(at)
    return ends


def message_of(export_time: int, sequence: int, domain: int, sets: Sequence[tuple[int, bytes]]) -> bytes:
    """A message of (identity, records). Raises ValueError when it would be too long."""
    length = HEADER.size + sum(SET.size + len(records) for _, records in sets)
    if length > MAX_MESSAGE:
        raise ValueError(f"{length} bytes are too long for a message")
    parts = [HEADER.pack(VERSION, length, export_time & 0xFFFFFFFF, sequence & 0xFFFFFFFF, domain)]
    for identity, records in sets:
        parts += [SET.pack(identity, SET.size + len(records)), records]
    return b"".join(parts)
