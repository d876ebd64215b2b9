"""Exporters as they are: numbers that count something else than the standard says, that are none, or that template
packets do not share; messages filled up with zeros; padding that looks like rows; templates sent once.

Each stream is made by a slow model that knows what was removed from it.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Sequence

import pytest
from samplicator import _inside_flow as probe
from samplicator._inside_flow import FLOW_SESSION_FIELDS
from support import flows as model
from support.flows import IPFIX, M32, V9

ADDRESS, PORT = b"\x0a\0\0\1", 2055
START = 3 * 24 * 3600 * 10**9
SECOND = 10**9
FIELDS: list[tuple[int, ...]] = [(8, 4), (12, 4)]


def new(**bounds: int) -> probe.Flow:
    flow = probe.Flow(1 << 22, **bounds)
    probe.tick(flow, START)
    return flow


def row_of(flow: probe.Flow, number: int) -> dict[str, object]:
    return dict(zip(FLOW_SESSION_FIELDS, flow.session(number), strict=True))


def feed(flow: probe.Flow, payloads: Sequence[bytes], pause_ns: int = 0) -> dict[str, object]:
    number, now = 0, START
    for payload in payloads:
        now += pause_ns
        probe.tick(flow, now)
        number = probe.observe(flow, ADDRESS, PORT, payload).number
    return row_of(flow, number)


def message(kind: int, sequence: int, *sets: bytes, count: int = 1, uptime: int = 1000) -> bytes:
    if kind == V9:
        return model.v9(sequence, 1, *sets, count=count, uptime=uptime)
    return model.ipfix(sequence, 1, *sets)


def taught(kind: int, identity: int = 256) -> bytes:
    return model.a_set(0 if kind == V9 else 2, model.template(identity, FIELDS))


def data(rows: int, identity: int = 256) -> bytes:
    return model.a_set(identity, bytes([1]) * (8 * rows))


# ---- filled up with zeros


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("zeros", [1, 3, 4, 5, 15, 16, 63, 64, 1000])
@pytest.mark.parametrize("inside", [False, True])
def test_zeros_behind_the_last_set(kind: int, zeros: int, inside: bool) -> None:
    """Behind the end that the header says, or (inside) before it: what came before holds, the number is judged."""
    flow = new()
    for n in range(40):
        sets = [taught(kind), data(2)] if n == 0 else [data(2)]
        step = 1 if kind == V9 else 2
        payload = message(kind, n * step, *sets, *[bytes(zeros)] * inside, count=len(sets) + 1)
        seen = probe.observe(flow, ADDRESS, PORT, payload + bytes(zeros) * (not inside))
        assert not seen.flags & (probe.MALFORMED | probe.UNKNOWN)
        assert seen.units == step
    row = row_of(flow, seen.number)
    assert (row["templates"], row["malformed"], row["lost"], row["pending"]) == (1, 0, 0, 0)


def test_a_second_message_is_not_filler() -> None:
    one = model.ipfix(0, 1, taught(IPFIX), data(2))
    assert probe.scan(one + one).flags & probe.MALFORMED
    assert not probe.scan(one + b"\xff" * 40).flags & probe.MALFORMED


# ---- padding in options data


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("zeros", [0, 1, 3, 9, 21, 24, 36, 900])
def test_zeros_behind_options_rows_are_no_rows(rows: int, zeros: int) -> None:
    options = model.options_template(V9, 257, [(1, 4)], [(48, 1), (50, 4)])
    body = [struct.pack(">IBI", n + 1, 0, 0) for n in range(rows)]
    flow = new()
    seen = probe.observe(
        flow, ADDRESS, PORT, model.v9(0, 1, model.a_set(1, options), model.a_set(257, *body, bytes(zeros)))
    )
    kept = [item[-1] for item in flow.items(seen.number) if item[1] == "options_data"]
    assert sorted(kept) == sorted(body)


def test_a_single_row_of_zeros_is_a_row() -> None:
    options = model.options_template(V9, 257, [(1, 4)], [(50, 4)])
    flow = new()
    seen = probe.observe(flow, ADDRESS, PORT, model.v9(0, 1, model.a_set(1, options), model.a_set(257, bytes(16))))
    assert [item[-1] for item in flow.items(seen.number) if item[1] == "options_data"] == [bytes(8)]


# ---- template packets with a counter of their own


def own_numbers(
    kind: int, rounds: int, per_round: int, own: int, first: int, *, data_first: bool, gone: Callable[[int], bool]
) -> tuple[list[bytes], int]:
    """Rounds of template packets and data; returns the datagrams and the units lost. own, first: where the two
    counters begin. gone: which data datagrams do not arrive.
    """
    out, number, lost, sent = [], first, 0, 0
    for turn in range(rounds):
        teaching = []
        for n in range(per_round):
            teaching.append(message(kind, own, taught(kind, 256 + n), uptime=10_000 + 1000 * turn))
            own += 1
        flowing = []
        for n in range(40):
            rows = 1 + n % 5
            if gone(sent):
                lost += 1 if kind == V9 else rows
            else:
                flowing.append(message(kind, number, data(rows), uptime=10_010 + 1000 * turn + n, count=rows))
            number += 1 if kind == V9 else rows
            sent += 1
        out += flowing + teaching if data_first else teaching + flowing
    return out, lost


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("per_round", [1, 2, 5])
@pytest.mark.parametrize("data_first", [False, True])
@pytest.mark.parametrize(
    ("own", "first"),
    [(50, 5_000_000), (60_342_277, 2855), (2855, 60_342_277), (7, 2**31 + 9), (2**31 + 9, 500), (2**32 - 3, 70_000)],
)
@pytest.mark.parametrize("rounds", [1, 2, 6])
def test_template_packets_with_their_own_counter(
    kind: int, per_round: int, data_first: bool, own: int, first: int, rounds: int
) -> None:
    """No phantom loss from the first round on, and real loss is seen all the same."""
    payloads, _ = own_numbers(kind, rounds, per_round, own, first, data_first=data_first, gone=lambda n: False)
    if kind == IPFIX:
        payloads.insert(0, message(IPFIX, own - 1, taught(IPFIX)))  # so that records can be counted
    row = feed(new(), payloads, SECOND // 50)
    assert (row["lost"], row["pending"], row["restarts"]) == (0, 0, 0)
    gone = set(random.Random(first).sample(range(70, 230), 9))
    payloads, lost = own_numbers(kind, 6, per_round, own, first, data_first=data_first, gone=gone.__contains__)
    if kind == IPFIX:
        payloads.insert(0, message(IPFIX, own - 1, taught(IPFIX)))
    row = feed(new(), payloads, SECOND // 50)
    assert (row["lost"] + row["pending"], row["restarts"]) == (lost, 0)


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("per_round", [1, 3])
def test_one_counter_for_all_loses_what_is_lost(kind: int, per_round: int) -> None:
    """The ordinary exporter, template packets apart: loss around them is loss, also of themselves (v9)."""
    generator = random.Random(per_round)
    flow, number, lost, numbers = new(), 70_000, 0, set()
    for n in range(600):
        teaching = n % 40 < per_round
        rows = generator.randrange(1, 9)
        sets = [taught(kind)] if teaching else [data(rows)]
        step = 1 if kind == V9 else 0 if teaching else rows
        if n < 41 or n > 580 or generator.random() > 0.05:
            numbers.add(probe.observe(flow, ADDRESS, PORT, message(kind, number, *sets, count=rows)).number)
        else:
            lost += step
        number += step
    row = row_of(flow, numbers.pop())
    assert (row["lost"] + row["pending"], row["restarts"], row["late"]) == (lost, 0, 0)


def test_their_numbers_stay_as_they_are_for_a_receiver_that_samples() -> None:
    payloads, _ = own_numbers(V9, 5, 2, 50, 5_000_000, data_first=False, gone=lambda n: False)
    flow, numbers = new(), []
    for n, payload in enumerate(payloads):
        seen = probe.observe(flow, ADDRESS, PORT, payload)
        if seen.always or n % 3 == 0:
            copy = probe.keep(flow, seen, 9, payload)
            if seen.always:
                assert copy == payload
            else:
                numbers.append(model.parse(copy).sequence)
        else:
            probe.leave_out(flow, seen, 9)
    assert {later - earlier for earlier, later in itertools.pairwise(numbers)} == {1}


# ---- what v9 numbers count


def counting(style: str, n: int, share: float, seed: int) -> tuple[list[bytes], int, int]:
    """(datagrams that arrive, units that do not, the next number) of an exporter that counts as style says."""
    generator = random.Random(seed)
    number, lost, out = 1000 * seed, 0, []
    options = model.a_set(1, model.options_template(V9, 257, [(1, 4)], [(34, 4)]))
    for i in range(n):
        rows = generator.randrange(1, 30)
        sets, templates, extra = [data(rows)], 0, 0
        if i % 20 == 0:
            sets, templates, extra = [taught(V9), options, model.a_set(257, b"\1" * 8), *sets], 2, 1
        step = {"packets": 1, "flows": rows, "records": rows + extra, "all records": rows + extra + templates}[
            style.removesuffix(", these too")
        ]
        sequence = number + (step if style.endswith("too") else 0)
        number += step
        if 120 <= i < n - 20 and i % 20 and generator.random() < share:
            lost += step
        else:
            out.append(model.v9(sequence, 1, *sets, count=rows + extra + templates))
    return out, lost, number


STYLES = ["packets", "flows", "records", "all records"]


@pytest.mark.parametrize("style", [*STYLES, *[f"{style}, these too" for style in STYLES[1:]]])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_v9_numbers_that_count_something_else(style: str, share: float, seed: int) -> None:
    payloads, lost, following = counting(style, 1000, share, seed)
    row = feed(new(), payloads)
    assert (row["restarts"], row["style"]) == (0, style.removesuffix(", these too"))
    assert row["lost"] + row["pending"] == lost
    assert row["sequence"] == following


@pytest.mark.parametrize("rows", [1, 7])
def test_v9_flows_close_up_for_a_receiver_that_samples(rows: int) -> None:
    flow, number, out = new(), 0, []
    for n in range(400):
        sets = [taught(V9), data(rows)] if n % 20 == 0 else [data(rows)]
        payload = model.v9(number, 1, *sets, count=rows + (n % 20 == 0))
        number += rows
        seen = probe.observe(flow, ADDRESS, PORT, payload)
        if seen.always or n % 3 == 0:
            out.append(model.parse(probe.keep(flow, seen, 9, payload)).sequence)
        else:
            probe.leave_out(flow, seen, 9)
    steps = [(later - earlier) % M32 for earlier, later in itertools.pairwise(out)]
    assert set(steps[20:]) == {rows}


def test_ipfix_numbers_that_count_messages() -> None:
    generator = random.Random(3)
    payloads = [
        model.ipfix(n, 1, *[taught(IPFIX)] * (n % 20 == 0), data(generator.randrange(2, 20))) for n in range(200)
    ]
    row = feed(new(), [p for n, p in enumerate(payloads) if n not in (101, 102, 150)])
    assert (row["lost"] + row["pending"], row["restarts"], row["style"]) == (3, 0, "packets")


# ---- numbers that are none


def constant(name: str, value: int, n: int) -> list[bytes]:
    if name == "netflow5":
        return [model.v5(value, 3, uptime=1000 + i) for i in range(n)]
    if name == "sflow":
        return [model.sflow(value, uptime=1000 + i) for i in range(n)]
    kind = V9 if name == "netflow9" else IPFIX
    return [message(kind, value, *[taught(kind)] * (i % 10 == 0), data(3), uptime=1000 + i) for i in range(n)]


@pytest.mark.parametrize("name", ["netflow5", "netflow9", "ipfix", "sflow"])
@pytest.mark.parametrize("value", [0, 1, 4242, 2**32 - 1])
def test_one_number_for_ever_is_none(name: str, value: int) -> None:
    """Neither lost nor restarted nor renumbered; who begins to count then is judged from there on."""
    flow, payloads = new(), constant(name, value, 100)
    for n, payload in enumerate(payloads):
        seen = probe.observe(flow, ADDRESS, PORT, payload)
        if n % 3 == 0:
            assert probe.keep(flow, seen, 9, payload) == payload or n < 4
        else:
            probe.leave_out(flow, seen, 9)
    row = row_of(flow, seen.number)
    assert (row["lost"], row["pending"], row["restarts"]) == (0, 0, 0)
    assert row["repeated"] <= (0 if value == 0 else 2)
    assert row["style"] == "none"
    if value == 0:
        assert all(model.parse(p).sequence == 0 for p in probe.replay(flow, seen.number, 5, 3, probe.JOIN, 1400)[0])
    step = 1 if name in ("netflow9", "sflow") else 3
    later = [struct.pack(">I", 5000 + step * i) for i in range(40) if i != 20]
    at = 12 if name == "netflow9" else 8 if name == "ipfix" else 16
    row = feed(flow, [payloads[1][:at] + number + payloads[1][at + 4 :] for number in later])
    assert (row["lost"] + row["pending"], row["restarts"]) == (step, 0)


def test_ipfix_templates_before_any_data_are_not_unnumbered() -> None:
    flow = new()
    feed(flow, [message(IPFIX, 0, taught(IPFIX)) for _ in range(9)])
    row = feed(flow, [message(IPFIX, 3 * n, data(3)) for n in range(30) if n != 12])
    assert (row["lost"] + row["pending"], row["style"], row["restarts"]) == (3, "records", 0)


# ---- templates that are sent once


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_a_template_lives_while_its_data_comes(kind: int) -> None:
    """One of two: no data of 257 comes, and it goes after its life; 256 stays, and goes when its data has stopped."""
    flow = new(template_ms=60_000, forget_ms=10**9)
    number = probe.observe(flow, ADDRESS, PORT, message(kind, 0, taught(kind), taught(kind, 257))).number
    for sequence, second in enumerate(range(1, 1000, 20), 1):
        probe.tick(flow, START + second * SECOND)
        probe.observe(flow, ADDRESS, PORT, message(kind, sequence, data(1)))
        probe.age(flow, flow.capacity[0])
        assert {item[0] for item in flow.items(number)} == ({256} if second > 60 else {256, 257})
    for later in (61, 122):
        probe.tick(flow, START + (second + later) * SECOND)
        probe.age(flow, flow.capacity[0])
    assert flow.items(number) == ()


def test_the_life_of_templates_is_set_while_running() -> None:
    flow = new()
    number = probe.observe(flow, ADDRESS, PORT, message(V9, 0, taught(V9))).number
    flow.set_template_life(0)
    probe.tick(flow, START + 20 * 3600 * SECOND)
    probe.age(flow, flow.capacity[0])
    assert len(flow.items(number)) == 1
    flow.set_template_life(60_000)
    probe.age(flow, flow.capacity[0])
    assert flow.items(number) == ()
    flow.set_template_life(7 * 24 * 3600 * 1000)
    probe.tick(flow, START + 6 * 24 * 3600 * SECOND)
    probe.age(flow, flow.capacity[0])
    assert flow.session(number) is not None, "who taught it is remembered for as long"
    with pytest.raises(ValueError, match="template life"):
        flow.set_template_life(7 * 24 * 3600 * 1000 + 1)


# ---- the clock


@pytest.mark.parametrize("step", [-5, -3600, -5 * 10**8])
def test_a_clock_that_goes_back_is_not_believed(step: int) -> None:
    flow = new(template_ms=60_000)
    number = probe.observe(flow, ADDRESS, PORT, message(V9, 0, taught(V9), data(1))).number
    probe.tick(flow, max(0, START + step * SECOND))
    probe.observe(flow, ADDRESS, PORT, message(V9, 1, data(1)))
    probe.age(flow, flow.capacity[0])
    assert len(flow.items(number)) == 1
    assert row_of(flow, number)["seen_ns"] == START
