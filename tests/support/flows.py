"""The slow model that the flow stage is held against: encoders, a parser, a collector. Written from the RFCs,
sharing no code with fastpath/.

`Collector` does what nfdump and its kin do: keeps templates per (exporter, domain), decodes what it has templates
for, and counts a sequence error whenever a datagram's number is not the one it expected. Called by
tests/unit/test_flow_*.py and the fuzz corpus maker.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

V9, IPFIX = 9, 10
VARIABLE = 65535
M32 = 1 << 32


class Malformed(ValueError):
    """The datagram is not what it says it is."""


# ---- encoders: fields are (element, length) or (element, length, enterprise)


def specifiers(fields: list[tuple[int, ...]]) -> bytes:
    out = b""
    for element, length, *enterprise in fields:
        if enterprise and enterprise[0]:
            out += struct.pack(">HHI", element | 0x8000, length, enterprise[0])
        else:
            out += struct.pack(">HH", element, length)
    return out


def template(identity: int, fields: list[tuple[int, ...]]) -> bytes:
    return struct.pack(">HH", identity, len(fields)) + specifiers(fields)


def options_template(kind: int, identity: int, scope: list[tuple[int, ...]], fields: list[tuple[int, ...]]) -> bytes:
    if kind == V9:
        return struct.pack(">HHH", identity, 4 * len(scope), 4 * len(fields)) + specifiers(scope + fields)
    return struct.pack(">HHH", identity, len(scope) + len(fields), len(scope)) + specifiers(scope + fields)


def withdrawal(identity: int) -> bytes:
    return struct.pack(">HH", identity, 0)


def a_set(identity: int, *records: bytes, pad: int = 1) -> bytes:
    body = b"".join(records)
    body += bytes(-len(body) % pad)
    return struct.pack(">HH", identity, 4 + len(body)) + body


def v9(sequence: int, domain: int, *sets: bytes, uptime: int = 1000, secs: int = 1700000000, count: int = 1) -> bytes:
    return struct.pack(">HHIIII", 9, count, uptime, secs, sequence % M32, domain) + b"".join(sets)


def ipfix(sequence: int, domain: int, *sets: bytes, secs: int = 1700000000) -> bytes:
    body = b"".join(sets)
    return struct.pack(">HHIII", 10, 16 + len(body), secs, sequence % M32, domain) + body


def v5(sequence: int, count: int, engine: int = 0, uptime: int = 1000) -> bytes:
    return struct.pack(">HHIIIIHH", 5, count, uptime, 1700000000, 0, sequence % M32, engine, 0) + bytes(48 * count)


def fixed(version: int, sequence: int, count: int, record: int, tail: bytes = bytes(4), uptime: int = 1000) -> bytes:
    head = struct.pack(">HHIIII", version, count, uptime, 1700000000, 0, sequence % M32)
    return (head[:16] if version == 1 else head + tail) + bytes(record * count)


def sflow(sequence: int, agent: bytes = bytes(4), sub_agent: int = 0, samples: int = 1, uptime: int = 1000) -> bytes:
    head = struct.pack(">II", 5, 1 if len(agent) == 4 else 2) + agent
    return head + struct.pack(">IIII", sub_agent, sequence % M32, uptime, samples) + struct.pack(">II", 1, 0) * samples


def data_bytes(kind: int, count: int, length: int, start: int = 0) -> list[bytes]:
    return [(start + i).to_bytes(length, "big") if length else b"" for i in range(count)]


# ---- parser


@dataclass
class Template:
    identity: int
    fields: list[tuple[int, int, int]]
    scope: int
    options: bool
    raw: bytes

    @property
    def shortest(self) -> int:
        return sum(1 if length == VARIABLE else length for _, length, _ in self.fields)


@dataclass
class Set:
    identity: int
    body: bytes
    records: list[Template | tuple[int, bool]] = field(default_factory=list)  # (id, options) = a withdrawal


@dataclass
class Message:
    kind: int
    sequence: int
    domain: int
    sets: list[Set]
    count: int
    uptime: int
    seconds: int


def parse_records(kind: int, one: Set) -> None:
    options = one.identity & 1 == 1
    p = one.body
    while len(p) >= 4 and p[:2] != b"\0\0":
        identity, n = struct.unpack_from(">HH", p)
        at, scope = 4, 0
        if kind == IPFIX and n == 0:
            if identity != one.identity and identity < 256:
                raise Malformed("withdrawal")
            one.records.append((identity, options))
            p = p[4:]
            continue
        if identity < 256:
            raise Malformed("template id")
        if options:
            if len(p) < 6:
                raise Malformed("options template")
            scope = struct.unpack_from(">H", p, 4)[0]
            at = 6
            if kind == V9:
                scope, option = n, scope
                if scope % 4 or option % 4:
                    raise Malformed("lengths")
                scope, n = scope // 4, (scope + option) // 4
            elif scope > n:
                raise Malformed("scope count")
        if n == 0:
            raise Malformed("no fields")
        fields = []
        for _ in range(n):
            if len(p) < at + 4:
                raise Malformed("field")
            element, length = struct.unpack_from(">HH", p, at)
            at += 4
            enterprise = 0
            if kind == IPFIX and element & 0x8000:
                if len(p) < at + 4:
                    raise Malformed("enterprise")
                enterprise = struct.unpack_from(">I", p, at)[0]
                element &= 0x7FFF
                at += 4
            fields.append((element, length, enterprise))
        one.records.append(Template(identity, fields, scope, options, p[:at]))
        p = p[at:]


def parse(p: bytes) -> Message | None:
    """A v9 or IPFIX message; None = something else; Malformed."""
    if len(p) < 4 or p[:2] not in (b"\0\x09", b"\0\x0a"):
        return None
    kind = p[1]
    header = 20 if kind == V9 else 16
    if len(p) < header:
        raise Malformed("header")
    if kind == V9:
        _, count, uptime, seconds, sequence, domain = struct.unpack_from(">HHIIII", p)
    else:
        _, length, seconds, sequence, domain = struct.unpack_from(">HHIII", p)
        if length < 16 or length > len(p) or (len(p) - length >= 16 and p[length : length + 2] == b"\0\x0a"):
            raise Malformed("length")  # what is behind is none of ours, unless it is a second message
        p, count, uptime = p[:length], 0, 0
    sets = []
    at = header
    while len(p) - at >= 4:
        identity, length = struct.unpack_from(">HH", p, at)
        if identity == length == 0:
            break  # filled up
        if length < 4 or at + length > len(p):
            raise Malformed("set")
        one = Set(identity, p[at + 4 : at + length])
        if identity in ((0, 1) if kind == V9 else (2, 3)):
            parse_records(kind, one)
        sets.append(one)
        at += length
    return Message(kind, sequence, domain, sets, count, uptime, seconds)


def split(kind: int, one: Template, body: bytes) -> list[tuple[bytes, bytes]] | None:
    """(scope bytes, record) of each data record of a set body; None = they cannot be told apart."""
    if one.shortest == 0:
        return None
    out: list[tuple[bytes, bytes]] = []
    while len(body) >= one.shortest:
        if kind == V9 and one.options and out and not any(body):
            break  # padding
        at = scope_end = 0
        for i, (_, length, _) in enumerate(one.fields):
            if kind == IPFIX and length == VARIABLE:
                if at >= len(body):
                    return None
                length = body[at]
                at += 1
                if length == 255:
                    if len(body) - at < 2:
                        return None
                    length = struct.unpack_from(">H", body, at)[0]
                    at += 2
            at += length
            if at > len(body):
                return None
            if i + 1 == one.scope:
                scope_end = at
        out.append((body[:scope_end], body[:at]))
        body = body[at:]
    return out


IDENTIFIERS = {10, 14, 48, 58, 95, 234, 302}
"""IANA elements that tell rows of options data apart; the tests use no others."""


def row_key(known: Template, record: bytes, scope: bytes) -> bytes:
    """What makes two options data records the same row: scope and identifiers (in front of any variable field)."""
    at, key = 0, scope
    for i, (element, length, enterprise) in enumerate(known.fields):
        if length == VARIABLE:
            break
        if i >= known.scope and element in IDENTIFIERS and not enterprise:
            key += record[at : at + length]
        at += length
    return key


class Collector:
    """One collector's view of one exporter session (or of many: the key is the caller's)."""

    def __init__(self) -> None:
        self.templates: dict[tuple[object, int, int, int], Template] = {}
        self.expected: dict[tuple[object, int, int], int | None] = {}
        self.options: dict[tuple[object, int, int, int, bytes], bytes] = {}
        self.records = 0
        self.options_records = 0
        self.sequence_errors = 0
        self.unknown_sets = 0
        self.undecodable = 0

    def withdraw(self, key: tuple[object, int, int], identity: int, options: bool) -> None:
        for name, one in list(self.templates.items()):
            if name[:3] == key and (identity == name[3] or (identity < 256 and one.options == options)):
                del self.templates[name]

    def data(self, key: tuple[object, int, int], one: Set) -> int | None:
        known = self.templates.get((*key, one.identity))
        if known is None:
            self.unknown_sets += 1
            return None
        records = split(key[1], known, one.body)
        if records is None:
            self.undecodable += 1
            return None
        if known.options:
            self.options_records += len(records)
            for scope, record in records:
                self.options[(*key, one.identity, row_key(known, record, scope))] = record
        else:
            self.records += len(records)
        return len(records)

    def take(self, exporter: object, payload: bytes) -> int | None:
        """Feeds one datagram; returns its data records, None = cannot be counted. Raises Malformed."""
        message = parse(payload)
        if message is None:
            return 0
        key = (exporter, message.kind, message.domain)
        units: int | None = 0
        for one in message.sets:
            for record in one.records:
                if isinstance(record, tuple):
                    self.withdraw(key, *record)
                else:
                    old = self.templates.get((*key, record.identity))
                    if (old is not None and old.raw != record.raw) or old is None:
                        for name in [n for n in self.options if n[:4] == (*key, record.identity)]:
                            del self.options[name]
                    self.templates[(*key, record.identity)] = record
            if one.identity >= 256:
                n = self.data(key, one)
                units = None if n is None or units is None else units + n
        expected = self.expected.get(key)
        if expected is not None and message.sequence != expected:
            self.sequence_errors += 1
        step = 1 if message.kind == V9 else units
        self.expected[key] = None if step is None else (message.sequence + step) % M32
        return units


def capture_payloads(path: Path) -> list[tuple[bytes, int, bytes]]:
    """(source address, source port, UDP payload) of each IPv4 packet of a pcap file, Ethernet or raw IP."""
    data = path.read_bytes()
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    link = struct.unpack_from(order + "I", data, 20)[0]
    at, out = 24, []
    while at < len(data):
        length = struct.unpack_from(order + "I", data, at + 8)[0]
        packet = data[at + 16 : at + 16 + length]
        at += 16 + length
        packet = packet[14:] if link == 1 else packet
        size = (packet[0] & 15) * 4
        total = struct.unpack_from(">H", packet, 2)[0]
        out.append((packet[12:16], struct.unpack_from(">H", packet, size)[0], packet[size + 8 : total]))
    return out


CAPTURES = Path(__file__).resolve().parents[2] / "pysrc" / "samplicator" / "captures"


def without_times(value: Any) -> Any:
    """Without the times between the headers in samples of sFlow, and the numbers of streams that tshark has found."""
    if isinstance(value, dict):
        return {
            key: without_times(item)
            for key, item in value.items()
            if not re.match(r"(?!cflow|sflow).*[._](time|delta|stream)", key)
        }
    return [without_times(item) for item in value] if isinstance(value, list) else value
