"""The work that a datagram makes is bounded by its bytes, whatever was taught before it: counted in steps of all loops
(flow/steps.pxd), not in time.

Two bounds. Over a whole run: STEPS_A_BYTE for each byte that came. For a single datagram the same, and what it may free
besides: that was paid for when it was taught, and is bounded by one domain's items and blocks.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from functools import partial

import pytest
from samplicator import _inside_flow as probe
from support import flows as model
from support.flows import IPFIX, V9

ADDRESS, PORT = b"\x0a\0\0\1", 2055
START = 10**15
STEPS_A_BYTE = 8
STEPS_A_DATAGRAM = 512  # finding room for a newcomer: FLOW_WAYS, FLOW_OWN_STEPS, FLOW_RECLAIM_STEPS times its tries
LARGEST = 65_507
VARIABLE = (82, 65535)


def new(octets: int = 8 << 20, **bounds: int) -> probe.Flow:
    flow = probe.Flow(octets, **bounds)
    probe.tick(flow, START)
    return flow


def steps_of(work: Callable[[], object]) -> int:
    before = probe.steps()
    work()
    return probe.steps() - before


def run(flow: probe.Flow, payloads: Iterable[tuple[bytes, int, bytes]], owed: int) -> None:
    """Observes (address, port, payload)s; owed: what one datagram may free besides."""
    total = steps = 0
    for address, port, payload in payloads:
        taken = steps_of(partial(probe.observe, flow, address, port, payload))
        total += len(payload)
        steps += taken
        assert taken <= STEPS_A_DATAGRAM + STEPS_A_BYTE * len(payload) + owed, (len(payload), taken)
        assert steps <= STEPS_A_DATAGRAM * 50 + STEPS_A_BYTE * total, (total, steps)


def filled(head: Callable[..., bytes], part: Callable[[int], bytes], room: int = LARGEST) -> bytes:
    """A datagram as full of `part`s as it gets."""
    sets, used, n = [], 20, 0
    while used + len(one := part(n)) <= room:
        sets.append(one)
        used += len(one)
        n += 1
    return head(0, 1, *sets)


def mine(*payloads: bytes) -> list[tuple[bytes, int, bytes]]:
    return [(ADDRESS, PORT, payload) for payload in payloads]


LONG = [VARIABLE, *[(8, 0)] * 16_000]  # 64 KB that describe a record of one byte
MANY = [field for _ in range(31) for field in (VARIABLE, (8, 0))]


@pytest.mark.parametrize("fields", [LONG, MANY, [VARIABLE] * 62, [VARIABLE] * 200, [(8, 1)]], ids=len)
@pytest.mark.parametrize("body", [0, 1, 2, 3, 4, 31, 62, 63])
@pytest.mark.parametrize("options", [False, True])
def test_small_sets_of_a_long_template(fields: list[tuple[int, ...]], body: int, options: bool) -> None:
    """The case of the field: 16,000 empty sets, each of which had the template's 65,000 bytes looked through."""
    record = model.options_template(IPFIX, 256, fields[:1], fields[1:]) if options else model.template(256, fields)
    flow = new()
    probe.observe(flow, ADDRESS, PORT, model.ipfix(0, 1, model.a_set(3 if options else 2, record)))
    for content in (bytes(body), b"\1" * body, b"\xff" * body):
        run(flow, mine(*[filled(model.ipfix, lambda n, c=content: model.a_set(256, c))] * 3), 0)


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("size", [1, 2, 5, 8, 100])
@pytest.mark.parametrize("zero", [False, True])
def test_options_rows(kind: int, size: int, zero: bool) -> None:
    """Rows that are new each time and push each other out; rows of zeros with one byte behind them that is none."""
    flow, generator = new(), random.Random(size)
    record = model.options_template(kind, 256, [(1, size)], [(34, 1)])
    head = model.v9 if kind == V9 else model.ipfix
    probe.observe(flow, ADDRESS, PORT, head(0, 1, model.a_set(1 if kind == V9 else 3, record)))
    payloads = [
        head(0, 1, model.a_set(256, bytes(1300) + b"\1" if zero else generator.randbytes(1300))) for _ in range(200)
    ]
    run(flow, mine(*payloads), 0)


@pytest.mark.parametrize("few", [0, 1, 5])
def test_withdrawals_walk_only_what_they_free(few: int) -> None:
    """Thousands of options templates, and withdrawals of all templates, which are few."""
    flow = new()
    payloads = [
        model.ipfix(
            0,
            1,
            model.a_set(3, *[model.options_template(IPFIX, 300 + 50 * n + k, [(8, 4)], [(34, 4)]) for k in range(50)]),
        )
        for n in range(40)
    ]
    run(flow, mine(*payloads), 0)
    again = model.a_set(2, *[model.template(9000 + n, [(8, 4)]) for n in range(few)], model.withdrawal(2))
    run(flow, mine(model.ipfix(0, 1, again), filled(model.ipfix, lambda n: again)), 0)
    run(flow, mine(model.ipfix(0, 1, model.a_set(3, model.withdrawal(3)))), 2048 * 4)


@pytest.mark.parametrize("receivers", [1, 8, 64, 300])
def test_receivers_that_are_renumbered(receivers: int) -> None:
    """The work of a copy does not grow with the number of receivers."""
    flow = new()
    payload = model.v9(0, 1, model.a_set(0, model.template(256, [(8, 4)])))
    for turn in range(20):
        seen = probe.observe(flow, ADDRESS, PORT, model.v9(turn, 1, model.a_set(256, bytes(8))))

        def copies() -> None:
            for receiver in range(receivers):
                if (receiver + turn) % 3:  # noqa: B023
                    probe.leave_out(flow, seen, receiver + 1)  # noqa: B023
                else:
                    probe.keep(flow, seen, receiver + 1, payload)  # noqa: B023
                probe.due(flow, seen, receiver + 1, 1000, 0, probe.LIST_TEMPLATES)  # noqa: B023

        taken = steps_of(copies)
        assert turn < 5 or taken <= 8 * receivers, turn


def test_forged_exporters_that_teach_much_and_little() -> None:
    """Sources that fill the memory, then others that push them out."""
    flow, generator = new(1 << 20), random.Random(5)
    large = filled(model.v9, lambda n: model.a_set(0, model.template(256 + n, [(8, 4)] * 9)))
    small = model.v9(0, 1, model.a_set(0, model.template(256, [(8, 4)])))
    taught = [(generator.randbytes(4), 9, large if n % 3 else small) for n in range(600)]
    run(flow, taught, 6 * 4096)


@pytest.mark.parametrize("seed", range(8))
def test_anything(seed: int) -> None:
    """Random hostile traffic of one exporter with few ids: teaches, redefines, withdraws, sends data of everything."""
    generator = random.Random(seed)
    flow = new()

    def field() -> tuple[int, ...]:
        return generator.randrange(1, 400), generator.choice([0, 0, 1, 1, 4, 200, 65535, 65535])

    def part(_: int) -> bytes:
        identity = generator.randrange(256, 260)
        fields = [field() for _ in range(generator.choice([1, 2, 5, 60, 300]))]
        draw = generator.random()
        if draw < 0.1:
            return model.a_set(2, model.template(identity, fields))
        if draw < 0.2:
            return model.a_set(3, model.options_template(IPFIX, identity, fields[:1], fields[1:]))
        if draw < 0.25:
            kind, which = generator.choice([(2, 2), (3, 3), (2, identity)])
            return model.a_set(kind, model.withdrawal(which))
        body = generator.choice([b"", b"\0", b"\1\2", generator.randbytes(generator.randrange(40))])
        return model.a_set(identity, body)

    for _ in range(12):
        room = generator.choice([100, 1400, 9000, LARGEST])
        run(flow, mine(filled(model.ipfix, part, room)), 0)


def test_sequences_that_jump() -> None:
    flow, generator = new(), random.Random(1)
    number = 0
    payloads = []
    for n in range(3000):
        number = (number + generator.choice([1, 1, 2, 5, 100, -3, -1, 0, 2**31, 12345678])) % 2**32
        sets = [model.a_set(0, model.template(256, [(8, 4)]))] if n % 5 == 0 else [model.a_set(256, bytes(8))]
        payloads.append(model.v9(number, 1, *sets, count=n % 7))
    run(flow, mine(*payloads), 0)


def test_ageing_is_bounded_in_each_pass() -> None:
    """A pass over domains of thousands of templates each, all of them too old."""
    flow = new(template_ms=1000, forget_ms=1000)
    large = filled(model.v9, lambda n: model.a_set(0, model.template(256 + n, [(8, 4)] * 4)))
    for n in range(10):
        probe.observe(flow, bytes([10, 0, 1, n]), PORT, large)
    probe.tick(flow, START + 10**10)
    for _ in range(flow.capacity[0]):
        if not flow.sessions():
            return
        assert steps_of(lambda: probe.age(flow, 64)) <= 64 * 64 + 3 * 2048 * 2
    raise AssertionError("not all is forgotten")


def test_the_counter_counts() -> None:
    flow = new()
    assert steps_of(lambda: probe.scan(struct.pack(">HH", 99, 0))) == 0
    assert steps_of(lambda: probe.observe(flow, ADDRESS, PORT, model.v9(0, 1, model.a_set(256, b"")))) >= 1
