"""Input that aims at the cost of the flow stage: what one datagram may make it do is bounded, whatever it says, and
the table's memory goes to who is alive.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence

from samplicator import _inside_flow as probe
from samplicator._inside_flow import FLOW_COUNTER_FIELDS
from support import flows as model
from support.flows import IPFIX

START = 1_700_000_000 * 10**9
SECOND = 10**9
ADDRESS, PORT = b"\xc6\x12\0\1", 2055
M64 = 2**64 - 1


def counters(flow: probe.Flow) -> dict[str, int]:
    return dict(zip(FLOW_COUNTER_FIELDS, flow.counters()[0], strict=True))


def cost(flow: probe.Flow, datagrams: Sequence[bytes]) -> float:
    """Seconds that all of them take, the best of a few times."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for datagram in datagrams:
            probe.observe(flow, ADDRESS, PORT, datagram)
        times.append(time.perf_counter() - start)
    return min(times)


def mix(a: int, b: int) -> int:
    """hash_mix() of fastpath/base/hash.pxd."""
    a = (a ^ b) * 0x9E3779B97F4A7C15 & M64
    a ^= a >> 32
    a = a * 0xC2B2AE3D27D4EB4F & M64
    return a ^ a >> 29


def options_datagrams(collide: bool) -> tuple[probe.Flow, list[bytes]]:
    """2000 scopes of 16 bytes; colliding ones have, by a hash without a seed, all the same value."""
    flow = probe.Flow(1 << 22)
    probe.tick(flow, START)
    head = model.options_template(IPFIX, 300, [(1, 16)], [(34, 1)])
    probe.observe(flow, ADDRESS, PORT, model.ipfix(0, 1, model.a_set(3, head)))
    records = []
    for i in range(2000):
        first = i * 0x1234567 + 1
        second = mix(16, first) ^ 0x55 if collide else i * 0x9E3779B97F4A7C15 & M64
        records.append(struct.pack("<QQB", first, second, 1))
    datagrams = [model.ipfix(0, 1, model.a_set(300, *records[at : at + 80])) for at in range(0, 2000, 80)]
    return flow, datagrams


def test_nobody_can_aim_at_a_hash_bucket() -> None:
    usual, aimed = (cost(*options_datagrams(collide)) for collide in (False, True))
    assert aimed < 20 * usual


def test_a_flood_of_withdrawals_is_bounded() -> None:
    """Each of them would walk all templates of its domain, most of which are of the other kind and stay."""

    def one(templates: int) -> float:
        flow = probe.Flow(1 << 22)
        probe.tick(flow, START)
        for number in range(templates):
            sets = model.a_set(2, model.template(256 + number, [(8, 4)]))
            probe.observe(flow, ADDRESS, PORT, model.ipfix(0, 1, sets))
        flood = model.ipfix(0, 1, model.a_set(3, *[model.withdrawal(3)] * 340))
        taken = cost(flow, [flood] * 10)
        assert counters(flow)["templates"] == templates
        return taken

    few, many = one(1), one(2000)
    assert many < 20 * few


def test_one_withdrawal_of_all_is_obeyed_in_a_full_domain() -> None:
    flow = probe.Flow(1 << 22)
    probe.tick(flow, START)
    for number in range(2000):
        probe.observe(flow, ADDRESS, PORT, model.ipfix(0, 1, model.a_set(2, model.template(256 + number, [(8, 4)]))))
    assert counters(flow)["templates"] == 2000
    probe.observe(flow, ADDRESS, PORT, model.ipfix(0, 1, model.a_set(2, model.withdrawal(2))))
    assert counters(flow)["templates"] == 0


def test_a_large_template_gets_the_room_of_many_forged_ones() -> None:
    """The memory for records is full: one established exporter has most, thousands of forged ones a block each."""
    flow = probe.Flow(1 << 21, exporter_blocks=1 << 20)
    probe.tick(flow, START)
    limit = 0
    sequence = 0
    large = [(8, 4)] * 300  # 1204 bytes, 10 blocks
    for step in range(10):  # established
        probe.tick(flow, START + step * SECOND)
        probe.observe(flow, ADDRESS, PORT, model.v9(sequence, 0))
        sequence += 1
    while counters(flow)["refused_items"] == 0:
        sets = model.a_set(0, model.template(256 + limit % 1900, large))
        probe.observe(flow, ADDRESS, PORT, model.v9(sequence, limit // 1900, sets))
        sequence += 1
        limit += 1
    full = counters(flow)["blocks"]
    room = [(8, 4)] * 3
    # give back room for 100 blocks, which forged exporters take
    for number in range(10):
        gone = model.a_set(0, model.template(256 + number, room))
        probe.observe(flow, ADDRESS, PORT, model.v9(sequence, 0, gone))
        sequence += 1
    number = 0
    while counters(flow)["blocks"] < full:
        source = b"\xc6\x13" + struct.pack(">H", number)
        probe.observe(flow, source, 1000, model.v9(0, 1, model.a_set(0, model.template(256, room))))
        number += 1
    before = counters(flow)
    seen = probe.observe(flow, b"\xc6\x12\0\2", 2055, model.v9(0, 1, model.a_set(0, model.template(256, large))))
    assert counters(flow)["refused_items"] == before["refused_items"]
    assert [row[0] for row in flow.items(seen.number)] == [256]
