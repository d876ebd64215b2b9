"""What a payload is: NetFlow v1 to v9, IPFIX, sFlow v5, syslog, an SNMP trap, or only bytes.

Purpose: from bytes to facts, for lines and JSON. Invariants: no bytes raise an exception, and the work is bounded by
their number; what breaks the rules of its protocol is told as a fault, together with what was found before it; an SNMP
community is never told. Called by command. Pure, but for the templates that the session of the exporter learns.
Offsets: RFC 3954 5.1, RFC 7011 3.1, sFlow v5 (sflow.org), Cisco's NetFlow v1-v8 export formats, RFC 5424 6, RFC 1157
4.1, RFC 3416 3.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from struct import unpack_from
from typing import Final

from samplicator.cli.tap.facts import Data, Facts, Flows, Other, Session, Sets, Sflow, Snmp, Syslog, Template
from samplicator.readings import FlowField
from samplicator.views.templates import field_name

MOST_TEMPLATES: Final = 200
MOST_NAMES: Final = 500
"""Per datagram, with names of fields; the rest is counted."""
MOST_TEXT: Final = 400
"""Characters of a syslog message."""
_FIXED: Final = {1: (16, 52), 5: (24, 48), 7: (24, 52)}
"""Bytes of header and record."""
_V8_RECORDS: Final = {1: 28, 2: 28, 5: 40, 7: 40, 8: 44, 13: 40, 14: 40}
_TEMPLATES: Final = {(9, 0): False, (9, 1): True, (10, 2): False, (10, 3): True}
"""(version, set id) -> whether it is options."""
_SAMPLES: Final = {1: "flow", 2: "counter", 3: "flow", 4: "counter"}
"""sFlow's formats of enterprise 0; 3 and 4 are the expanded ones."""
_SNMP_KINDS: Final = dict(
    enumerate(("get", "get-next", "response", "set", "trap", "get-bulk", "inform", "trap", "report"), 0xA0)
)
"""Tags. 0xA4 is the trap of v1, 0xA7 that of v2c."""
_SNMP_VERSIONS: Final = {0: "v1", 1: "v2c", 3: "v3"}


def decode(payload: bytes, session: Session) -> Facts:
    """What the payload is. session: of its exporter, learns the templates in it."""
    if len(payload) >= 4:
        version = int.from_bytes(payload[:2], "big")
        if version in (1, 5, 7, 8):
            return _fixed(payload, version)
        if version in (9, 10):
            return _Walk(payload, version, session).walk()
        if payload[:4] == b"\0\0\0\5":
            return _sflow(payload)
    return _syslog(payload) or _snmp(payload) or Other()


# ---------------------------------------------------------------------------------------------------- NetFlow v1 .. v8


def _fixed(payload: bytes, version: int) -> Flows:
    found = Flows(f"netflow{version}")
    header, record = _FIXED.get(version, (28, 0))
    if len(payload) < header:
        found.fault = "the header is cut short"
        return found
    found.records = int.from_bytes(payload[2:4], "big")
    if version != 1:
        found.sequence = int.from_bytes(payload[16:20], "big")
    if version in (5, 8):
        found.engine = f"{payload[20]}/{payload[21]}"
    if version == 8:
        found.aggregation = payload[22]
        record = _V8_RECORDS.get(payload[22], 32 if 1 <= payload[22] <= 14 else 28)
    if header + found.records * record > len(payload):
        found.fault = f"{found.records} records need {header + found.records * record} bytes"
    return found


# ---------------------------------------------------------------------------------------------------- v9 and IPFIX


def shape_of(lengths: Sequence[int]) -> tuple[int, ...]:
    """A template as far as its records are counted: bytes of fixed length, then those after each field of variable
    length (65535). The number of steps for a record is the number of its fields of variable length.
    """
    shape = [0]
    for length in lengths:
        if length == 65535:
            shape.append(0)
        else:
            shape[-1] += length
    return tuple(shape)


def count_records(body: bytes, shape: Sequence[int]) -> int | None:
    """Records of a data set; padding behind them is none. None = they cannot be counted, a record having no bytes."""
    if len(shape) == 1:
        return len(body) // shape[0] if shape[0] else None
    at = count = 0
    if len(body) < len(shape) - 1:  # so that many short sets are not as many copies of a long shape
        return 0
    while True:
        at += shape[0]
        for more in shape[1:]:  # RFC 7011, 7: one byte of length, or 255 and two bytes
            if at >= len(body):
                return count
            length = body[at]
            at += 1
            if length == 255:
                length = int.from_bytes(body[at : at + 2], "big")
                at += 2
            at += length + more
        if at > len(body):
            return count
        count += 1


class _Walk:
    """One datagram, set by set."""

    def __init__(self, payload: bytes, version: int, session: Session) -> None:
        self._payload = payload
        self._version = version
        self._session = session
        self._found = Sets("netflow9" if version == 9 else "ipfix")
        self._data: dict[int, Data] = {}
        self._names = MOST_NAMES

    def walk(self) -> Sets:
        found, payload = self._found, self._payload
        ipfix = self._version == 10
        header = 16 if ipfix else 20
        if len(payload) < header:
            found.fault = "the header is cut short"
            return found
        found.sequence, found.domain = unpack_from(">II", payload, header - 8)
        end = int.from_bytes(payload[2:4], "big") if ipfix else len(payload)
        if end < header or end > len(payload):
            found.fault = f"the header says {end} bytes"
            end = len(payload)
        elif len(payload) - end >= 16 and payload[end : end + 2] == b"\0\x0a":
            found.fault = "a second message follows"
        at, number = header, 0
        while end - at >= 4:
            set_id, length = unpack_from(">HH", payload, at)
            if not set_id and not length:  # zeros fill the datagram up
                break
            number += 1
            if length < 4 or length > end - at:
                found.fault = found.fault or f"set {number} says {length} bytes, {end - at} are left"
                break
            fault = self._set(set_id, payload[at + 4 : at + length])
            if fault:
                found.fault = found.fault or f"set {number}: {fault}"
                break
            at += length
        found.data = list(self._data.values())
        return found

    def _set(self, set_id: int, body: bytes) -> str:
        """What is wrong with it, "" = nothing."""
        options = _TEMPLATES.get((self._version, set_id))
        if options is not None:
            return self._templates(set_id, body, options)
        if set_id >= 256:
            data = self._data.setdefault(set_id, Data(set_id))
            data.sets += 1
            shape = self._session.find(self._version, self._found.domain, set_id)
            records = None if shape is None else count_records(body, shape)
            if records is None:
                data.uncounted += 1
            else:
                data.records += records
        return ""

    def _templates(self, set_id: int, body: bytes, options: bool) -> str:
        at = 0
        head = 6 if options else 4
        while len(body) - at >= 4:
            identity, fields = unpack_from(">HH", body, at)
            if not identity and not fields:  # padding
                break
            if self._version == 10 and not fields and (identity == set_id or identity >= 256):  # RFC 7011, 8.1
                self._found.withdrawn += 1
                at += 4
                continue
            if len(body) - at < head:
                return "a template is cut short" if any(body[at:]) else ""
            scopes = int.from_bytes(body[at + 4 : at + 6], "big") if options else 0
            if self._version == 9 and options:  # RFC 3954, 6.1: lengths in bytes
                scopes, fields = fields // 4, fields // 4 + scopes // 4
            if identity < 256 or scopes > fields:
                return f"a template has the number {identity}" if identity < 256 else "more scopes than fields"
            after = self._fields(body, at + head, identity, fields, scopes, options)
            if not after:
                return f"template {identity} is cut short"
            at = after
        return ""

    def _fields(self, body: bytes, at: int, identity: int, fields: int, scopes: int, options: bool) -> int:
        """Where the template ends; 0 = it is cut short."""
        if at + 4 * fields > len(body):
            return 0
        template = Template(identity, options, fields, names := [])
        named = len(self._found.templates) < MOST_TEMPLATES
        lengths = []
        for number in range(fields):
            if at + 4 > len(body):
                return 0
            element, length = unpack_from(">HH", body, at)
            at += 4
            enterprise = 0
            if self._version == 10 and element & 0x8000:
                if at + 4 > len(body):
                    return 0
                enterprise = int.from_bytes(body[at : at + 4], "big")
                element &= 0x7FFF
                at += 4
            lengths.append(length)
            if named and self._names:
                self._names -= 1
                names.append(field_name(FlowField(element, length, enterprise, number < scopes), self._found.protocol))
        self._session.learn(self._version, self._found.domain, identity, shape_of(lengths))
        if named:
            self._found.templates.append(template)
        else:
            self._found.more_templates += 1
        return at


# ---------------------------------------------------------------------------------------------------- sFlow


def _sflow(payload: bytes) -> Sflow:
    found = Sflow()
    family = int.from_bytes(payload[4:8], "big")
    size = {1: 4, 2: 16}.get(family, 0)
    if not size or len(payload) < 24 + size:
        found.fault = "the header is cut short" if size or len(payload) < 8 else f"the agent has address type {family}"
        return found
    at = 24 + size
    found.agent = str(ip_address(payload[8 : 8 + size]))
    found.sub_agent, found.sequence, _, samples = unpack_from(">IIII", payload, 8 + size)
    kinds: Counter[str] = Counter()
    for number in range(samples):  # each step takes eight bytes or ends
        if len(payload) - at < 8:
            found.fault = f"{samples} samples are told, {number} are there"
            break
        tag, length = unpack_from(">II", payload, at)
        if length > len(payload) - at - 8:
            found.fault = f"sample {number + 1} says {length} bytes, {len(payload) - at - 8} are left"
            break
        kinds[_SAMPLES.get(tag) or f"e{tag >> 12}/{tag & 0xFFF}"] += 1
        at += 8 + length
    found.samples = dict(kinds)
    return found


# ---------------------------------------------------------------------------------------------------- syslog, SNMP


def _syslog(payload: bytes) -> Syslog | None:
    """<PRI>, 0..191, and text."""
    found = re.match(rb"<(0|[1-9]\d{0,2})>", payload)
    if found is None or int(found[1]) > 191:
        return None
    rest = payload[found.end() : found.end() + 4 * MOST_TEXT]
    return Syslog(int(found[1]), rest.decode(errors="backslashreplace")[:MOST_TEXT].rstrip("\0\r\n"))


def _snmp(payload: bytes) -> Snmp | None:
    """SEQUENCE { INTEGER version, OCTET STRING community, the kind }."""
    outer = _ber(payload, 0, 0x30)
    number = outer and _ber(payload, outer[0], 0x02)
    if not outer or not number or outer[1] > len(payload) or number[1] - number[0] != 1:
        return None
    version = _SNMP_VERSIONS.get(payload[number[0]])
    if version == "v3":
        return Snmp(version, "") if _ber(payload, number[1], 0x30) else None
    community = version and _ber(payload, number[1], 0x04)
    if not version or not community or community[1] >= len(payload):
        return None
    kind = _SNMP_KINDS.get(payload[community[1]])
    return Snmp(version, kind) if kind else None


def _ber(payload: bytes, at: int, tag: int) -> tuple[int, int] | None:
    """Begin and end of the value at a place, if it has this tag (X.690, 8.1.3)."""
    if at + 2 > len(payload) or payload[at] != tag:
        return None
    length = payload[at + 1]
    at += 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4 or at + size > len(payload):
            return None
        length = int.from_bytes(payload[at : at + size], "big")
        at += size
    return at, at + length
