"""Rows of options data: every row that was sent last is kept and replayed, a newer version replaces the older, and
what only changes is one row.
"""

from __future__ import annotations

import random
import struct

import pytest
from samplicator import _inside_flow as probe
from support import flows as model
from support.flows import IPFIX, V9

ADDRESS, PORT = b"\x0a\0\0\1", 2055
START = 1_700_000_000 * 10**9
SYSTEM = {V9: [(1, 4)], IPFIX: [(144, 4)]}
IDENTIFIERS = {
    "sampler": (48, 2),
    "selector": (302, 8),
    "interface": (10, 4),
    "egress": (14, 2),
    "application": (95, 4),
    "vrf": (234, 4),
    "vlan": (58, 2),
}


class Exporter:
    """A flow table with one exporter's options template in it."""

    def __init__(self, kind: int, scope: list[tuple[int, ...]], fields: list[tuple[int, ...]]) -> None:
        self.kind, self.sequence = kind, 0
        self.flow = probe.Flow(1 << 22)
        probe.tick(self.flow, START)
        one = model.options_template(kind, 300, scope, fields)
        self.number = self.send(model.a_set(1 if kind == V9 else 3, one, pad=4))

    def send(self, *sets: bytes) -> int:
        self.sequence += 1
        payload = (model.v9 if self.kind == V9 else model.ipfix)(self.sequence, 1, *sets)
        return int(probe.observe(self.flow, ADDRESS, PORT, payload).number)

    def rows(self, *records: bytes) -> None:
        self.send(model.a_set(300, *records, pad=4 if self.kind == V9 else 1))

    def kept(self) -> list[bytes]:
        return [row[7] for row in self.flow.items(self.number) if row[1] == "options_data"]

    def replayed(self) -> list[bytes]:
        """Rows as a receiver that joins gets them, in order."""
        out: list[bytes] = []
        collector = model.Collector()
        for payload in probe.replay(self.flow, self.number, 9, probe.EVERYTHING, probe.JOIN, 1400)[0]:
            collector.take(0, payload)
            message = model.parse(payload)
            assert message is not None
            for one in message.sets:
                if one.identity == 300:
                    out += [
                        record
                        for _, record in model.split(self.kind, collector.templates[0, self.kind, 1, 300], one.body)
                        or []
                    ]
        return out


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", IDENTIFIERS)
def test_every_row_of_a_table(kind: int, together: bool, name: str) -> None:
    """One scope, rows told apart by an option field, in one datagram or in many; then one row in a newer version."""
    element, length = IDENTIFIERS[name]
    exporter = Exporter(kind, SYSTEM[kind], [(82, 8), (element, length), (50, 4)])

    def row(identity: int, value: int) -> bytes:
        return struct.pack(">I8s", 0xC0000201, b"row") + identity.to_bytes(length, "big") + struct.pack(">I", value)

    rows = [row(i, 1000 * i) for i in range(1, 120)]
    for _ in range(2):
        if together:
            exporter.rows(*rows)
        else:
            for one in rows:
                exporter.rows(one)
    assert exporter.replayed() == rows
    exporter.rows(row(7, 5))
    assert exporter.replayed() == [*rows[:6], *rows[7:], row(7, 5)]
    assert sorted(exporter.kept()) == sorted(exporter.replayed())


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("together", [True, False])
def test_a_table_without_a_known_identifier(kind: int, together: bool) -> None:
    """What tells the rows apart is an element nobody knows: every different record is a row."""
    exporter = Exporter(kind, SYSTEM[kind], [(500, 4), (83, 4), (3, 4)])
    rows = [struct.pack(">IIII", 1, i, 5, 7) for i in range(200)]
    if together:
        exporter.rows(*rows)
    else:
        for one in rows:
            exporter.rows(one)
    exporter.rows(*rows[:100])
    assert sorted(exporter.replayed()) == rows
    assert exporter.replayed()[-100:] == rows[:100]


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_a_setting_is_one_row(kind: int) -> None:
    """Sampling parameters and counters of the exporter as a whole: the last version only."""
    exporter = Exporter(kind, SYSTEM[kind], [(34, 4), (35, 1), (41, 8)])
    for i in range(50):
        exporter.rows(struct.pack(">IIBQ", 1, 100 + i // 10, 1, i))
    assert exporter.kept() == [struct.pack(">IIBQ", 1, 104, 1, 49)]


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_two_rows_of_one_key_in_a_datagram(kind: int) -> None:
    """They prove that the key is none: both stay, and so does what came before, once."""
    scope = [(2, 4)] if kind == V9 else [(10, 4)]
    exporter = Exporter(kind, scope, [(34, 4), (499, 2)])
    old, one, two = (struct.pack(">IIH", 3, 100 * i, i) for i in range(3))
    exporter.rows(old)
    exporter.rows(one, two)
    assert set(exporter.replayed()) >= {one, two}
    for _ in range(3):
        exporter.rows(one, two)
    assert sorted(exporter.replayed()) == [one, two]
    assert sorted(exporter.kept()) == [one, two]


def test_a_value_that_changes_is_no_table() -> None:
    """An element nobody knows that is never the same twice: bounded, and in the end the last one."""
    exporter = Exporter(V9, SYSTEM[V9], [(4000, 8)])
    for i in range(2000):
        exporter.rows(struct.pack(">IQ", 1, i))
        assert len(exporter.replayed() if i % 100 == 0 else []) <= 252
    assert exporter.replayed() == [struct.pack(">IQ", 1, 1999)]


def test_identifiers_behind_a_variable_field() -> None:
    exporter = Exporter(IPFIX, SYSTEM[IPFIX], [(96, 65535), (95, 4)])
    rows = [struct.pack(">IB", 1, i) + bytes(i) + struct.pack(">I", i) for i in range(1, 60)]
    for _ in range(2):
        exporter.rows(*rows)
    assert exporter.replayed() == rows


@pytest.mark.parametrize("seed", range(8))
def test_memory_adds_up(seed: int) -> None:
    """Any fields, any rows, redefinitions: what is kept can be replayed, and gives all blocks back."""
    generator = random.Random(seed)
    flow = probe.Flow(1 << 21, exporter_blocks=200, domain_items=60)
    probe.tick(flow, START)
    number = 0
    for step in range(600):
        kind = V9
        fields = [(generator.choice([10, 48, 95, 34, 82, 500]), generator.choice([0, 1, 4, 33])) for _ in range(6)]
        one = model.options_template(kind, 300 + generator.randrange(3), fields[:1], fields[1:])
        body = generator.randbytes(generator.randrange(1, 40) * 4)
        sets = [model.a_set(1, one, pad=4)] if generator.random() < 0.2 else []
        sets.append(model.a_set(300 + generator.randrange(3), body))
        number = probe.observe(flow, ADDRESS, PORT, model.v9(step, 1, *sets)).number or number
        probe.replay(flow, number, 9, probe.EVERYTHING, probe.JOIN, 600)
    fields = dict(zip(probe.FLOW_COUNTER_FIELDS, flow.counters()[0], strict=True))
    assert 0 < fields["blocks"] <= 200
    probe.tick(flow, START + 30 * 3600 * 10**9)
    probe.age(flow, flow.capacity[0])
    fields = dict(zip(probe.FLOW_COUNTER_FIELDS, flow.counters()[0], strict=True))
    assert [fields[name] for name in ("blocks", "options_data", "options_templates", "domains")] == [0, 0, 0, 0]
