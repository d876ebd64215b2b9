"""The flow stage carried from one table to another: as if the process had gone on. Nothing hostile finds room."""

from __future__ import annotations

import contextlib
import copy
import random
import re
import threading
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samplicator import _inside_flow as probe
from samplicator._inside_flow import (
    FLOW_CARRY_ITEM_FIELDS,
    FLOW_CARRY_STATE_FIELDS,
    FLOW_COUNTER_FIELDS,
    FLOW_COUNTER_GAUGES,
    FLOW_DOMAIN_FIELDS,
    FLOW_SESSION_FIELDS,
)
from support import flows as model
from support.flows import IPFIX, V9
from support.sampled import ADDRESS, PORT, SECOND, START, Receiver, counters, new, run, stream
from support.tree import ROOT

RAW = FLOW_CARRY_ITEM_FIELDS.index("raw")
LATER = START + 5 * SECOND
GAUGES = {name: FLOW_COUNTER_FIELDS.index(name) for name in FLOW_COUNTER_GAUGES}


def carry_out(flow: probe.Flow, now: int = START) -> list[dict[str, Any]]:
    """All domains, the one heard last first."""
    found = []
    for place in sorted(probe.flow_carry_order(flow, now)):
        carried = probe.flow_carry_out(flow, place & 0xFFFFFFFF, now)
        assert carried
        found.append(carried)
    return found


def moved(flow: probe.Flow, now: int = START, silent_ns: int = 5 * SECOND, **bounds: int) -> probe.Flow:
    to = probe.Flow(1 << 22, **bounds)
    for carried in carry_out(flow, now):
        assert probe.flow_carry_in(to, carried, now + silent_ns, silent_ns)
    return to


def row(flow: probe.Flow, number: int = 1) -> dict[str, Any]:
    return dict(zip(FLOW_SESSION_FIELDS, flow.session(number), strict=True))


def gauges(flow: probe.Flow) -> list[int]:
    return [flow.counters()[0][at] for at in GAUGES.values()]


def every_kind() -> list[bytes]:
    return [
        b"",
        b"\x00\x03abc",
        model.fixed(1, 0, 2, 52),
        model.v5(7, 3, engine=5),
        model.fixed(7, 9, 2, 52),
        model.fixed(8, 9, 2, 28, tail=b"\x01\x02\x01\x00" + bytes(4)),
        model.sflow(4, samples=3),
        model.sflow(5, agent=bytes(range(16)), sub_agent=3, samples=0),
        *stream(V9, 5, start=2**32 - 3),
        *stream(IPFIX, 5, domain=9),
    ]


def test_every_kind_is_known_again_as_it_was() -> None:
    flow = new()
    for payload in every_kind():
        probe.observe(flow, ADDRESS, PORT, payload, 3)
        probe.observe(flow, bytes(15) + b"\x07", PORT, payload, 3, False)
    to = moved(flow)
    assert sorted(carry_out(to, LATER), key=repr) == sorted(
        [
            {**carried, **{name: carried[name] + 5 * SECOND for name in ("first_age_ns", "seen_age_ns")}}
            | {"items": [(*i[:2], i[2] + 5, i[3] + 5, i[4] + 5000, *i[5:]) for i in carried["items"]]}
            for carried in carry_out(flow)
        ],
        key=repr,
    )
    assert gauges(to) == gauges(flow)
    by_key = {(r[1], r[2], r[3], r[4]): r[5:] for r in flow.sessions()}
    assert {(r[1], r[2], r[3], r[4]): r[5:] for r in to.sessions()} == by_key
    assert [sum(counts) for counts in to.counters()[1:]] == [0, 0]  # nothing of it is traffic


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("cut", [1, 2, 7, 21, 22, 40])
def test_receivers_that_sample_go_on_without_a_gap(kind: int, cut: int) -> None:
    """One stage for the whole stream, one that is carried over at `cut`: every byte that leaves is the same."""
    payloads = stream(kind, 60)
    whole, flow = new(), new()
    expected = [Receiver(whole, 1), Receiver(whole, 2, 3), Receiver(whole, 3, 5)]
    run(whole, payloads, expected)
    receivers = [Receiver(flow, 1), Receiver(flow, 2, 3), Receiver(flow, 3, 5)]
    run(flow, payloads[:cut], receivers)
    flow = moved(flow)
    for receiver in receivers:
        receiver.flow = flow
    run(flow, payloads[cut:], receivers)
    for one, other in zip(receivers, expected, strict=True):
        assert one.got == other.got
        assert one.collector.sequence_errors == 0
    assert {name: row(flow)[name] for name in FLOW_DOMAIN_FIELDS} == {
        name: row(whole)[name] for name in FLOW_DOMAIN_FIELDS
    }


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("lost", [0, 1, 3])
def test_what_is_lost_meanwhile_is_counted_exactly(kind: int, lost: int) -> None:
    payloads = stream(kind, 60, every=1000)
    flow = new()
    run(flow, payloads[:20], [])
    flow = moved(flow)
    run(flow, payloads[20 + lost :], [])
    assert row(flow)["lost"] + row(flow)["pending"] == lost * (1 if kind == V9 else 20)
    assert row(flow)["restarts"] == row(flow)["unknown"] == 0


def test_open_gaps_are_filled_by_what_comes_late() -> None:
    payloads = stream(V9, 12, every=1000)
    flow = new()
    run(flow, [*payloads[:4], *payloads[6:8]], [])
    assert row(flow)["pending"] == 2
    flow = moved(flow)
    assert row(flow)["pending"] == 2
    run(flow, [payloads[4], *payloads[8:]], [])
    assert (row(flow)["pending"], row(flow)["late"], row(flow)["lost"]) == (1, 1, 0)
    probe.tick(flow, START + 60 * SECOND)
    probe.age(flow, 64)
    assert (row(flow)["pending"], row(flow)["lost"], sum(flow.losses()[0])) == (0, 1, 1)


def test_styles_and_unnumbered_exporters_stay_learnt() -> None:
    flow = new()
    for sequence in (7, 9, 12, 14, 17):  # counts flows, as some v9 exporters do
        sizes = {7: 2, 9: 3, 12: 2, 14: 3, 17: 2}
        probe.observe(flow, ADDRESS, 1, model.v9(sequence, 1, model.a_set(256, bytes(8)), count=sizes[sequence]))
        probe.observe(flow, ADDRESS, 2, model.v9(0, 1, model.a_set(256, bytes(8)), count=2))
    to = moved(flow)
    assert [r[13] for r in sorted(to.sessions(), key=lambda r: r[2])] == [
        r[13] for r in sorted(flow.sessions(), key=lambda r: r[2])
    ]
    probe.observe(to, ADDRESS, 1, model.v9(19, 1, model.a_set(256, bytes(8)), count=4))
    assert all(row(to, number)["lost"] + row(to, number)["pending"] == 0 for number in (1, 2))


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_rows_of_options_stay_as_they_were_told_apart(kind: int) -> None:
    """Rows without a key, rows that proved to have none, rows of nothing but zeros, of one byte, of variable length."""
    flow = new()
    plain = model.options_template(kind, 300, [(1, 4)] if kind == V9 else [(149, 4)], [(82, 2)])
    proven = model.options_template(kind, 301, [(2, 4)] if kind == V9 else [(10, 4)], [(50, 2)])
    tiny = model.options_template(kind, 302, [(2, 1)] if kind == V9 else [(10, 1)], [])
    templates = [plain, proven, tiny]
    sets = [model.a_set(300, *[bytes(4) + bytes([0, i]) for i in range(4)])]
    sets += [model.a_set(301, bytes(4) + b"\0\1", bytes(4) + b"\0\2")]
    sets += [model.a_set(302, bytes([i])) for i in range(3)]
    if kind == IPFIX:
        templates.append(model.options_template(kind, 303, [(149, 4)], [(82, model.VARIABLE)]))
        sets.append(model.a_set(303, bytes(4) + b"\3abc", bytes(4) + b"\0", bytes(4) + b"\xff\0\5hello"))
    taught = [model.a_set(1 if kind == V9 else 3, each) for each in templates]
    make = model.v9 if kind == V9 else model.ipfix
    probe.observe(flow, ADDRESS, PORT, make(0, 1, *taught, count=3) if kind == V9 else make(0, 1, *taught))
    probe.observe(flow, ADDRESS, PORT, make(1, 1, *sets, count=9) if kind == V9 else make(0, 1, *sets))
    to = moved(flow)
    before, after = carry_out(flow)[0]["items"], carry_out(to, LATER)[0]["items"]
    assert [(*i[:2], *i[6:]) for i in after] == [(*i[:2], *i[6:]) for i in before]
    assert len([i for i in before if i[0] == 3]) >= 9
    again = make(2, 1, *sets, count=9) if kind == V9 else make(9, 1, *sets)
    probe.observe(to, ADDRESS, PORT, again)
    assert row(to)["options_data"] == row(flow)["options_data"]  # all are known


def test_what_is_void_and_what_is_forgotten_is_not_carried() -> None:
    flow = new()
    run(flow, stream(V9, 2), [])
    assert row(flow)["options_data"] == 1
    redefined = model.a_set(1, model.options_template(V9, 257, [(1, 4)], [(34, 4), (35, 1)]))
    probe.observe(flow, ADDRESS, PORT, model.v9(3, 1, redefined))
    (carried,) = carry_out(flow)
    assert [i[0] for i in carried["items"]] == [1, 2]
    to = probe.Flow(1 << 22)
    day = 24 * 3600 * SECOND
    assert not probe.flow_carry_in(to, carried, START + day, day)
    assert to.sessions() == []
    assert probe.flow_carry_in(to, carried, START + day, day - SECOND)
    probe.age(to, 64)  # templates live for two hours
    assert row(to)["templates"] == row(to)["options_templates"] == 0


def test_after_a_reboot_times_lie_before_its_beginning() -> None:
    flow = new()
    run(flow, stream(V9, 2), [])
    probe.tick(flow, START + 60 * SECOND)
    (carried,) = carry_out(flow, START + 60 * SECOND)
    to = probe.Flow(1 << 22)
    assert probe.flow_carry_in(to, carried, 10 * SECOND, 5 * SECOND)
    assert (row(to)["first_ns"], row(to)["seen_ns"]) == (-55 * SECOND, -55 * SECOND)
    assert to.items(1)[0][2:4] == (-55, -55)
    run(to, stream(V9, 9)[3:], [])
    assert row(to)["lost"] == 0


def test_an_established_domain_stays_so() -> None:
    flow = new(1 << 16)
    for i in range(20):
        probe.tick(flow, START + i * SECOND)
        probe.observe(flow, ADDRESS, PORT, model.v9(i, 1, model.a_set(256, bytes(8))))
    now = START + 20 * SECOND
    to = probe.Flow(1 << 16)
    assert probe.flow_carry_in(to, carry_out(flow, now)[0], now, 0)
    for port in range(3000):
        probe.observe(to, b"\x0a\0\0\2", port + 1, model.v9(0, 1))
    assert ADDRESS in {r[1] for r in to.sessions()}


def test_a_table_that_is_smaller_takes_what_it_can() -> None:
    flow = new()
    for port in range(1, 400):
        probe.observe(flow, ADDRESS, port, stream(V9, 1, domain=port)[0])
    to = probe.Flow(1 << 16)
    taken = 0
    for carried in carry_out(flow):
        with contextlib.suppress(ValueError):
            taken += probe.flow_carry_in(to, carried, LATER)
    assert len(to.sessions()) <= to.capacity[0]
    assert 0 < gauges(to)[0] <= taken
    assert counters(to)["blocks"] <= to.capacity[2]
    assert counters(to)["evicted_domains"] == counters(to)["refused_domains"] == 0


def test_the_one_that_is_there_stays() -> None:
    flow = new()
    run(flow, stream(V9, 5), [])
    (carried,) = carry_out(flow)
    carried["counters"]["datagrams"] = 77
    assert not probe.flow_carry_in(flow, carried, START)
    assert row(flow)["datagrams"] == 6


def test_a_spare_copy_goes_soon_unless_something_comes() -> None:
    flow = new()
    run(flow, stream(V9, 5), [])
    (carried,) = carry_out(flow)
    to = probe.Flow(1 << 22)
    assert probe.flow_carry_in(to, carried, LATER, 5 * SECOND, True)
    other = {**carried, "port": PORT + 1}
    assert probe.flow_carry_in(to, other, LATER, 5 * SECOND, True)
    assert carry_out(to, LATER) == []
    assert [row(to, number)["datagrams"] for number in (1, 2)] == [0, 0]
    run(to, stream(V9, 6)[6:], [])
    probe.tick(to, LATER + 599 * SECOND)
    probe.age(to, 64)
    assert gauges(to)[0] == 2
    probe.tick(to, LATER + 601 * SECOND)
    probe.age(to, 64)
    assert [(r[2], r[8], r[10]) for r in to.sessions()] == [(PORT, 7, 1)]
    assert (row(to)["datagrams"], row(to)["lost"], row(to)["pending"]) == (1, 0, 0)


def test_the_alias_is_known_again() -> None:
    """So that one that changes meanwhile is noticed: the templates are then told under the new one."""
    flow = new()
    run(flow, stream(V9, 1), [])
    to = probe.Flow(1 << 22)
    assert probe.flow_carry_in(to, {**carry_out(flow)[0], "alias": 77}, LATER)
    assert carry_out(to, LATER)[0]["alias"] == 77


def test_totals_add_up_and_gauges_do_not() -> None:
    flow = new()
    run(flow, stream(V9, 5), [])
    before = counters(flow)
    values = dict.fromkeys(FLOW_COUNTER_FIELDS, 5)
    rows = [[i] * 12 for i in range(1, 5)]
    probe.flow_carry_totals(flow, values, *rows)
    assert counters(flow) == {name: n if name in GAUGES else n + 5 for name, n in before.items()}
    assert flow.losses() == ((3,) * 12, (4,) * 12)
    for bad in ({"renumbered": -1}, {"renumbered": 1 << 64}, {"renumbered": "x"}):
        with pytest.raises(ValueError, match="carried"):
            probe.flow_carry_totals(flow, bad, *rows)
    with pytest.raises(ValueError, match="carried"):
        probe.flow_carry_totals(flow, {}, [], [], [], [])
    assert flow.losses() == ((3,) * 12, (4,) * 12)


def test_what_is_carried_out_while_datagrams_come_is_not_torn() -> None:
    """The header of the last datagram and the sequence are of one moment, whenever that is."""
    flow = new()
    data = model.a_set(256, bytes(8))
    payloads = [model.v9(i, 1, data, uptime=1000 * i) for i in range(500)]
    probe.time_of(payloads, True, 1, flow)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            for first in range(0, len(payloads), 20):  # where there is one CPU, it is mostly read in between
                probe.time_of(payloads[first : first + 20], True, 1, flow)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen = set()
        end = time.monotonic() + 30
        while len(seen) <= 10:
            assert time.monotonic() < end
            carried = probe.flow_carry_out(flow, 1, START)
            if not carried:
                continue
            number = int.from_bytes(carried["header"][12:16], "big")
            assert carried["sequence"]["last_sequence"] == number
            assert carried["sequence"]["expected"] == number + 1
            seen.add(number)
    finally:
        done.set()
        thread.join()


# ---------------------------------------------------------------------- hostile

VALUES = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**32, 2**62, 2**64 - 1, 2**64, -(2**63)]),
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.binary(max_size=60),
    st.lists(st.integers(0, 300), max_size=5),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in what is carried."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list | tuple) else ()
    return [at, *[place for key in keys for place in places(value[key], (*at, key))]]


def put(value: Any, at: tuple[Any, ...], new_value: Any) -> Any:
    if not at:
        return new_value
    if isinstance(value, dict):
        return {**value, at[0]: put(value[at[0]], at[1:], new_value)}
    return type(value)([*value[: at[0]], put(value[at[0]], at[1:], new_value), *value[at[0] + 1 :]])


def rich() -> dict[str, Any]:
    flow = new()
    receivers = [Receiver(flow, 2, 3), Receiver(flow, 3, 5)]
    payloads = stream(IPFIX, 30)
    run(flow, [*payloads[:9], *payloads[11:20], *payloads[22:]], receivers)
    return carry_out(flow)[0]


RICH = rich()
PLACES = [place for place in places(RICH) if place]


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_no_number_is_believed(changes: list[tuple[tuple[Any, ...], Any]], chance: random.Random) -> None:
    """What is not taken leaves nothing behind; what is taken works as any other domain."""
    carried: Any = copy.deepcopy(RICH)
    for place, value in sorted(changes, key=lambda change: len(change[0])):
        with contextlib.suppress(KeyError, IndexError, TypeError, ValueError):  # ValueError: no byte holds that number
            carried = put(carried, place, value)
    to = probe.Flow(1 << 20)
    try:
        taken = probe.flow_carry_in(to, carried, LATER, 5 * SECOND)
    except ValueError:
        taken = False
    assert gauges(to)[0] == len(to.sessions()) == taken
    if not taken:
        assert gauges(to) == [0] * len(GAUGES)
    receivers = [Receiver(to, 2, 3), Receiver(to, 3, 5)]
    payloads = [p for p in stream(IPFIX, 40, every=7) if chance.random() < 0.8]
    run(to, payloads, receivers)
    for number in range(1, to.used + 1):
        probe.flow_carry_out(to, number, LATER)
    probe.tick(to, LATER + 3 * 24 * 3600 * SECOND)
    for _ in range(200):
        probe.age(to, 64)
    assert gauges(to) == [0] * len(GAUGES)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([i for i, item in enumerate(RICH["items"])]), st.binary(max_size=90), st.binary(max_size=40))
def test_no_record_is_believed(which: int, raw: bytes, header: bytes) -> None:
    carried = copy.deepcopy(RICH)
    carried["items"][which] = (*carried["items"][which][:RAW], raw)
    if header:
        carried["header"] = header
    to = probe.Flow(1 << 20)
    try:
        probe.flow_carry_in(to, carried, LATER, 5 * SECOND)
    except ValueError:
        assert gauges(to) == [0] * len(GAUGES)
    run(to, stream(IPFIX, 10), [Receiver(to, 2, 3)])


def test_states_are_bounded() -> None:
    carried = copy.deepcopy(RICH)
    state = carried["states"][0]
    at = FLOW_CARRY_STATE_FIELDS.index("receiver")
    assert at == 0
    carried["states"] = [(i + 1, *state[1:]) for i in range(1024)]
    to = probe.Flow(1 << 16)
    assert probe.flow_carry_in(to, carried, LATER)
    assert counters(to)["states"] == min(1024, to.capacity[3])
    carried["states"].append(state)
    with pytest.raises(ValueError, match="fit"):
        probe.flow_carry_in(probe.Flow(1 << 16), carried, LATER)


def declared(struct: str) -> list[str]:
    """Names of the fields of a struct of flow/state.pxd, in order."""
    text = (ROOT / "fastpath" / "flow" / "state.pxd").read_text()
    body = re.search(rf"ctypedef struct {struct}:.*?\n\n", text, re.DOTALL)
    assert body is not None
    return re.findall(r"^    \w+ (\w+)", body[0], re.MULTILINE)


def test_fields_are_carried_in_the_order_of_their_structs() -> None:
    """A field that is added to the sequence or to a renumbering state is carried, or this says so."""
    sequence = [*probe.FLOW_SEQUENCE_FLAGS, "score", *probe.FLOW_SEQUENCE_NUMBERS, "gap_count", "gaps"]
    assert declared("flow_sequence_t") == sequence
    assert declared("flow_domain_t")[-len(FLOW_DOMAIN_FIELDS) :] == list(FLOW_DOMAIN_FIELDS)
    states = {"receiver", "offset", "restarts", "left_out", "owes", "paused", "paused_at", "spent", "owed"}
    times = {"next", "copies", "replayed_ms", "spent_ms"}
    assert set(declared("flow_state_t")) == states | times
    assert states < set(FLOW_CARRY_STATE_FIELDS)
    assert set(RICH["sequence"]) == {*probe.FLOW_SEQUENCE_FLAGS, *probe.FLOW_SEQUENCE_NUMBERS, "score", "gaps"}
    assert len(RICH["items"][0]) == len(FLOW_CARRY_ITEM_FIELDS)
    assert len(RICH["states"][0]) == len(FLOW_CARRY_STATE_FIELDS)
