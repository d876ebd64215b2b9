"""What a datagram is, told from its bytes: every format, every truncation, every lie about a length; against the
slow model.
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplicator import _inside_flow as probe
from support import flows as model

V8_RECORDS = {1: 28, 2: 28, 3: 32, 4: 32, 5: 40, 6: 32, 7: 40, 8: 44, 9: 32, 10: 32, 11: 32, 12: 32, 13: 40, 14: 40}
FIELDS = [(8, 4), (12, 4), (1, 8)]


def test_netflow5() -> None:
    seen = probe.scan(model.v5(77, 30, engine=0x0102, uptime=5))
    assert (seen.kind, seen.flags, seen.sequence, seen.sequence_at, seen.units, seen.records) == (
        5,
        probe.DATA,
        77,
        16,
        30,
        30,
    )
    assert (seen.domain, seen.uptime_ms, seen.export_s) == (0x0102, 5, 1700000000)


def test_netflow1_has_no_sequence() -> None:
    seen = probe.scan(model.fixed(1, 0, 3, 52))
    assert (seen.kind, seen.flags, seen.sequence_at, seen.records, seen.units) == (1, probe.DATA, 0, 3, 0)


def test_netflow7() -> None:
    seen = probe.scan(model.fixed(7, 9, 2, 52))
    assert (seen.kind, seen.flags, seen.sequence, seen.units, seen.domain) == (7, probe.DATA, 9, 2, 0)


@pytest.mark.parametrize(("aggregation", "record"), V8_RECORDS.items())
def test_netflow8(aggregation: int, record: int) -> None:
    tail = bytes([1, 2, aggregation, 1]) + bytes(4)
    seen = probe.scan(model.fixed(8, 9, 2, record, tail))
    assert (seen.kind, seen.flags, seen.sequence, seen.units, seen.domain) == (
        8,
        probe.DATA,
        9,
        2,
        0x010200 | aggregation,
    )
    assert probe.scan(model.fixed(8, 9, 2, record, tail)[:-1]).flags == probe.MALFORMED


@pytest.mark.parametrize(("agent", "at"), [(b"\x0a\0\0\1", 16), (bytes(range(16)), 28)])
def test_sflow(agent: bytes, at: int) -> None:
    seen = probe.scan(model.sflow(12, agent, 3, samples=4, uptime=6))
    assert (seen.kind, seen.flags, seen.sequence, seen.sequence_at, seen.units) == (11, probe.DATA, 12, at, 1)
    assert (seen.records, seen.uptime_ms, seen.header_bytes) == (4, 6, 24 + len(agent))
    assert seen.domain != probe.scan(model.sflow(12, agent, 4)).domain
    assert seen.domain != probe.scan(model.sflow(12, agent[:-1] + b"\xee", 3)).domain


def test_netflow9_sets() -> None:
    payload = model.v9(
        5,
        99,
        model.a_set(0, model.template(256, FIELDS)),
        model.a_set(1, model.options_template(9, 257, [(1, 4)], [(34, 4)]), pad=4),
        model.a_set(256, bytes(16)),
    )
    seen = probe.scan(payload)
    assert (seen.kind, seen.sequence, seen.sequence_at, seen.domain, seen.units, seen.sets) == (9, 5, 12, 99, 1, 3)
    assert seen.flags == probe.TEMPLATE | probe.OPTIONS_TEMPLATE | probe.DATA
    assert seen.always


def test_ipfix_sets() -> None:
    payload = model.ipfix(
        5, 99, model.a_set(2, model.template(256, [*FIELDS, (82, 65535), (1, 4, 9)])), model.a_set(256, bytes(16))
    )
    seen = probe.scan(payload)
    assert (seen.kind, seen.sequence, seen.sequence_at, seen.domain, seen.sets) == (10, 5, 8, 99, 2)
    assert seen.flags == probe.TEMPLATE | probe.DATA
    assert not probe.scan(model.ipfix(5, 99, model.a_set(256, bytes(16)))).always


@pytest.mark.parametrize(
    "payload", [b"", b"\0", b"<14>hello", bytes(100), b"\0\5", b"\0\0\0\4" + bytes(60), b"\0\2" + bytes(60)]
)
def test_other(payload: bytes) -> None:
    seen = probe.scan(payload)
    assert (seen.kind, seen.flags, seen.sequence_at) == (0, 0, 0)


def bad_datagrams() -> list[tuple[str, bytes]]:
    good_set = model.a_set(2, model.template(256, FIELDS))
    message = bytearray(model.ipfix(1, 1, good_set))
    longer, shorter = (
        bytes(message[:2]) + b"\xff\xff" + bytes(message[4:]),
        bytes(message[:2]) + b"\0\x0f" + bytes(message[4:]),
    )
    return [
        ("v5 claims a record more", struct.pack(">HH", 5, 3) + model.v5(0, 2)[4:]),
        ("sFlow agent of no family", struct.pack(">II", 5, 3) + bytes(40)),
        ("sFlow counts more samples than bytes", model.sflow(1, samples=1)[:24] + b"\xff\xff\xff\xff" + bytes(8)),
        ("set of length 0", model.v9(1, 1, struct.pack(">HH", 256, 0))),
        ("IPFIX set of length 0", model.ipfix(1, 1, struct.pack(">HH", 256, 0))),
        ("set of length 3", model.v9(1, 1, struct.pack(">HH", 256, 3))),
        ("set beyond the end", model.v9(1, 1, struct.pack(">HH", 256, 9) + bytes(4))),
        ("template id below 256", model.v9(1, 1, model.a_set(0, model.template(255, FIELDS)))),
        ("template without fields", model.v9(1, 1, model.a_set(0, model.template(256, [])))),
        ("template of more fields than bytes", model.v9(1, 1, model.a_set(0, struct.pack(">HHHH", 256, 2, 8, 4)))),
        (
            "v9 options lengths not of 4",
            model.v9(1, 1, model.a_set(1, struct.pack(">HHHHHHH", 256, 2, 4, 1, 4, 34, 4))),
        ),
        ("more scope than fields", model.ipfix(1, 1, model.a_set(3, struct.pack(">HHHHH", 256, 1, 2, 8, 4)))),
        ("enterprise number cut off", model.ipfix(1, 1, model.a_set(2, struct.pack(">HHHH", 256, 1, 0x8001, 4)))),
        ("withdrawal of id 5", model.ipfix(1, 1, model.a_set(2, model.withdrawal(5)))),
        (
            "all templates withdrawn in the set of the other kind",
            model.ipfix(1, 1, model.a_set(2, model.withdrawal(3))),
        ),
        ("IPFIX length beyond the end", longer),
        ("IPFIX length below its header", shorter),
        ("two IPFIX messages", bytes(message) * 2),
    ]


@pytest.mark.parametrize("payload", [p for _, p in bad_datagrams()], ids=[name for name, _ in bad_datagrams()])
def test_malformed(payload: bytes) -> None:
    assert probe.scan(payload).flags & probe.MALFORMED
    flow = probe.Flow(1 << 22)
    probe.tick(flow, 10**18)
    assert probe.observe(flow, b"\x0a\0\0\1", 2055, payload).number == 0
    assert flow.sessions() == []
    assert sum(flow.counters()[2]) == 1


@pytest.mark.parametrize("version", [1, 5, 7, 8, 9, 10])
def test_every_header_cut_short(version: int) -> None:
    header = {1: 16, 5: 24, 7: 24, 8: 28, 9: 20, 10: 16}[version]
    for n in range(4, header):
        assert probe.scan(struct.pack(">H", version) + b"\0\x10" + bytes(n - 4)).flags == probe.MALFORMED, n


def agrees(payload: bytes) -> None:
    seen = probe.scan(payload)
    try:
        message = model.parse(payload)
    except model.Malformed:
        assert seen.flags & probe.MALFORMED
        return
    if message is None:
        assert seen.kind not in (9, 10)
        return
    assert not seen.flags & probe.MALFORMED
    assert (seen.kind, seen.sequence, seen.domain, seen.sets) == (
        message.kind,
        message.sequence,
        message.domain,
        len(message.sets),
    )
    kinds = {(one.identity if message.kind == 9 else one.identity - 2) for one in message.sets if one.identity < 256}
    assert bool(seen.flags & probe.TEMPLATE) == (0 in kinds)
    assert bool(seen.flags & probe.OPTIONS_TEMPLATE) == (1 in kinds)
    assert bool(seen.flags & probe.DATA) == any(one.identity >= 256 for one in message.sets)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from([b"\0\x09", b"\0\x0a", b"\0\5", b"\0\0\0\5", b""]), st.binary(max_size=200))
def test_any_bytes(start: bytes, rest: bytes) -> None:
    agrees(start + rest)


def mutations(payload: bytes, generator: random.Random) -> bytes:
    """One to four small lies, and perhaps a cut."""
    out = bytearray(payload)
    for _ in range(generator.randrange(1, 5)):
        at = generator.randrange(len(out))
        out[at] = generator.choice([0, 1, 2, 3, 4, 255, out[at] ^ 1, out[at] ^ 128, generator.randrange(256)])
    return bytes(out[: generator.randrange(len(out) + 1)] if generator.random() < 0.2 else out)


@pytest.mark.parametrize("name", ["netflow5", "netflow9", "ipfix", "sflow"])
def test_captures_whole_and_mutated(name: str) -> None:
    """Real exporters' datagrams are well formed; lies about them are judged as the model judges, the more in the
    first 120 bytes.
    """
    generator = random.Random(name)
    for _, _, payload in model.capture_payloads(model.CAPTURES / f"{name}.pcap"):
        assert not probe.scan(payload).flags & probe.MALFORMED
        agrees(payload)
        for _ in range(20):
            agrees(mutations(payload[:120], generator) + payload[120:])
            agrees(mutations(payload, generator))
