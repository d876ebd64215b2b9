"""Runs as they reach the kernel: what may leave as one segmented send, and that grouping never changes what leaves."""

from __future__ import annotations

import random
import struct

import pytest
from samplicator import _inside

RECEIVER = {4: bytes([198, 18, 0, 2]), 6: bytes(15) + b"\2"}
CMSG = {
    4: {"tos": (0, 1), "ttl": (0, 2)},
    6: {"tos": (41, 67), "ttl": (41, 52)},
}
Datagram = tuple[bytes, int, int, int, bytes]


def controls(data: bytes) -> dict[tuple[int, int], int]:
    """Control messages of a send: (level, type) -> value."""
    found = {}
    while data:
        length, level, kind = struct.unpack_from("=Qii", data)
        found[level, kind] = int.from_bytes(data[16:length], "little")
        data = data[(length + 7) // 8 * 8 :]
    return found


def batch_of(generator: random.Random, count: int) -> list[Datagram]:
    sizes = generator.choices((0, 1, 90, 90, 90, 1400, 1472, 1473, 9000), k=6)
    tos = generator.choice(((0,), (0, 0, 0, 0x28)))
    ttl = generator.choice(((64,), (64, 64, 17)))
    rows = []
    for n in range(count):
        size = sizes[n // generator.choice((1, 8, 90)) % 6]
        payload = (n.to_bytes(2, "big") + bytes(size))[:size]
        source = bytes([198, 18, 1, generator.randrange(3)])
        rows.append((source, 7, generator.choice(ttl), generator.choice(tos), payload))
    return rows


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("seed", range(60))
def test_every_send_is_one_the_kernel_takes(seed: int, family: int) -> None:
    """Same sizes but the last, which is not empty; within the MTU, 64 segments and 65,000 bytes; one TOS, one TTL."""
    generator = random.Random(seed)
    worker = _inside.Worker(batch=1, sessions=8)
    keeps = generator.random() < 0.5
    tx = _inside.Tx(
        _inside.ENGINE_UDP,
        -1,
        _inside.TxCounters(),
        RECEIVER[family],
        1,
        ttl=0 if keeps else 64,
        tos=-1 if keeps else 0x10,
        mtu=1500,
    )
    batch = batch_of(generator, generator.choice((1, 2, 65, 300, 512)))
    script = _inside.Script()
    _inside.play(worker, tx, batch, script)
    rest = list(batch)
    for message, control in script.accepted:
        values = controls(control)
        segment = values.get((17, 103), 0)
        pieces = [message[i : i + segment] for i in range(0, len(message), segment)] if segment else [message]
        if segment:
            assert 2 <= len(pieces) <= 64
            assert len(message) <= 65000
            assert segment + (28 if family == 4 else 48) <= 1500
        taken, rest = rest[: len(pieces)], rest[len(pieces) :]
        assert [payload for *_, payload in taken] == pieces
        if keeps:
            assert {tos for _, _, _, tos, _ in taken} == {values.get(CMSG[family]["tos"], 0)}
            assert {ttl for _, _, ttl, _, _ in taken} == {values.get(CMSG[family]["ttl"])}
        else:
            assert CMSG[family]["tos"] not in values
            assert CMSG[family]["ttl"] not in values
    assert rest == []


@pytest.mark.parametrize("options", [{"checksum": False}, {"pause_us": 1}, {"mtu": 117}])
def test_no_run_where_the_kernel_or_the_operator_forbids_it(options: dict[str, int]) -> None:
    """SO_NO_CHECK, a pause after each copy, segments over the MTU."""
    worker = _inside.Worker(batch=1, sessions=8)
    tx = _inside.Tx(_inside.ENGINE_UDP, -1, _inside.TxCounters(), RECEIVER[4], 1, **options)
    script = _inside.Script()
    _inside.play(worker, tx, [(RECEIVER[4], 1, 64, 0, bytes(90))] * 20, script)
    assert len(script.accepted) == 20
    assert not any(controls(control).get((17, 103)) for _, control in script.accepted)


def test_a_run_is_cut_at_64_segments() -> None:
    worker = _inside.Worker(batch=1, sessions=8)
    tx = _inside.Tx(_inside.ENGINE_UDP, -1, _inside.TxCounters(), RECEIVER[4], 1)
    script = _inside.Script()
    _inside.play(worker, tx, [(RECEIVER[4], 1, 64, 0, bytes(90))] * 200, script)
    assert [len(message) // 90 for message, _ in script.accepted] == [64, 64, 64, 8]
