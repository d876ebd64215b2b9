"""Primary and backup, the queue, and liveness: the pure parts, by themselves and against random histories."""

from __future__ import annotations

import struct
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st
from samplicator.gateways.sctp.backlog import Backlog, Item
from samplicator.gateways.sctp.backup import (
    FLAP_SECONDS,
    FORGIVEN_SECONDS,
    GIVE_UP_SECONDS,
    RETRY_SECONDS,
    Backup,
    Do,
    Mode,
    Status,
    Step,
    Which,
)
from samplicator.gateways.sctp.liveness import Liveness
from samplicator.gateways.sctp.packet import is_later, parse

PRIMARY, BACKUP = Which.PRIMARY, Which.BACKUP
FAIL_OVER_S, RESTORE_S = 0.045, 5.0


def made(mode: Mode | None, now: float = 100.0) -> Backup:
    return Backup(now, mode, FAIL_OVER_S, RESTORE_S)


def connected(mode: Mode | None) -> Backup:
    """In use since 100.1."""
    logic = made(mode)
    logic.advance(100.0)
    logic.opened(PRIMARY, 100.1)
    if mode is Mode.REDUNDANT:
        logic.opened(BACKUP, 100.1)
    assert logic.advance(100.1) == [Step(Do.USE, PRIMARY)]
    return logic


def silence(logic: Backup, since: float, until: float, which: Which = PRIMARY) -> list[tuple[float, Step]]:
    """Looks every 10 ms while nothing is answered."""
    found, now = [], since
    while now < until:
        now = round(now + 0.01, 3)
        logic.looked_at(which, now, since, 1)
        found += [(now, step) for step in logic.advance(now)]
    return found


def test_redundant_connects_both_and_uses_the_primary() -> None:
    logic = made(Mode.REDUNDANT)
    assert logic.advance(100.0) == [Step(Do.OPEN, PRIMARY), Step(Do.OPEN, BACKUP)]
    assert logic.status(PRIMARY) is logic.status(BACKUP) is Status.INITIALISING
    logic.opened(BACKUP, 100.01)
    assert logic.advance(100.01) == []
    assert logic.target is None
    logic.opened(PRIMARY, 100.02)
    assert logic.advance(100.02) == [Step(Do.USE, PRIMARY)]
    assert logic.advance(100.03) == []
    assert logic.target is PRIMARY
    assert logic.status(PRIMARY) is logic.status(BACKUP) is Status.CONNECTED


def test_a_silent_primary_is_left_after_the_fail_over_time_and_not_before() -> None:
    logic = connected(Mode.REDUNDANT)
    steps = silence(logic, 101.0, 102.0)
    assert steps == [(101.05, Step(Do.USE, BACKUP))]
    assert (logic.target, logic.fail_overs) == (BACKUP, 1)
    assert logic.status(PRIMARY) is Status.RE_ESTABLISHING
    assert logic.status(BACKUP) is Status.FAIL_OVER


def test_fail_over_mode_connects_the_backup_when_the_primary_fails() -> None:
    logic = connected(Mode.FAIL_OVER)
    assert logic.status(BACKUP) is Status.NOT_CONNECTED
    assert silence(logic, 101.0, 101.2) == [(101.05, Step(Do.OPEN, BACKUP))]
    assert logic.target is None
    assert logic.status(BACKUP) is Status.INITIALISING
    logic.opened(BACKUP, 101.21)
    assert logic.advance(101.21) == [Step(Do.USE, BACKUP)]
    assert logic.status(BACKUP) is Status.FAIL_OVER
    logic.looked_at(PRIMARY, 101.5, 0.0, 0)
    assert logic.advance(106.49) == []
    assert logic.advance(106.5) == [Step(Do.USE, PRIMARY), Step(Do.CLOSE, BACKUP)]
    assert logic.advance(106.6) == []
    logic.closed(BACKUP, 106.7)
    assert logic.advance(120.0) == []
    assert logic.status(BACKUP) is Status.NOT_CONNECTED


def test_the_restore_time_begins_with_the_first_answer_and_anew_with_each_cut() -> None:
    logic = connected(Mode.REDUNDANT)
    silence(logic, 101.0, 102.0)
    logic.looked_at(PRIMARY, 102.5, 0.0, 0)
    assert logic.advance(107.4) == []
    silence(logic, 107.41, 107.6)
    logic.looked_at(PRIMARY, 108.0, 0.0, 0)
    assert logic.advance(112.99) == []
    assert logic.advance(113.0) == [Step(Do.USE, PRIMARY)]
    assert logic.fail_overs == 1


def test_three_transmissions_are_a_failure_though_heartbeats_are_answered() -> None:
    logic = connected(Mode.REDUNDANT)
    logic.looked_at(PRIMARY, 101.0, 0.0, 2)
    assert logic.advance(101.0) == []
    logic.looked_at(PRIMARY, 101.5, 0.0, 3)
    assert logic.advance(101.5) == [Step(Do.USE, BACKUP)]
    logic.looked_at(PRIMARY, 102.0, 0.0, 3)
    assert logic.advance(110.0) == []
    logic.looked_at(PRIMARY, 110.5, 0.0, 0)
    assert logic.advance(115.5) == [Step(Do.USE, PRIMARY)]


def test_what_was_sent_into_a_silence_does_not_delay_the_return() -> None:
    logic = connected(Mode.REDUNDANT)
    silence(logic, 101.0, 102.0)
    logic.looked_at(PRIMARY, 103.0, 0.0, 5)
    logic.looked_at(PRIMARY, 104.0, 0.0, 0)
    assert logic.advance(107.99) == []
    assert logic.advance(108.0) == [Step(Do.USE, PRIMARY)]
    logic.looked_at(PRIMARY, 109.0, 0.0, 3)
    assert logic.advance(109.0) == [Step(Do.USE, BACKUP)]


def test_both_down() -> None:
    logic = connected(Mode.FAIL_OVER)
    silence(logic, 101.0, 101.1)
    assert (logic.target, logic.any_well) == (None, False)
    logic.closed(BACKUP, 101.2)
    assert logic.status(PRIMARY) is Status.RE_ESTABLISHING
    assert logic.status(BACKUP) is Status.INITIALISING
    assert logic.advance(101.2 + RETRY_SECONDS[0]) == [Step(Do.OPEN, BACKUP)]


def test_a_backup_that_fails_while_the_primary_answers_is_left_at_once() -> None:
    logic = connected(Mode.REDUNDANT)
    silence(logic, 101.0, 101.1)
    logic.looked_at(PRIMARY, 101.5, 0.0, 0)
    logic.closed(BACKUP, 101.6)
    assert Step(Do.USE, PRIMARY) in logic.advance(101.6)


def test_a_primary_that_is_not_there_at_the_start_has_one_chance() -> None:
    logic = made(Mode.REDUNDANT)
    logic.advance(100.0)
    logic.opened(BACKUP, 100.1)
    assert logic.advance(100.9) == []
    assert logic.advance(101.0) == [Step(Do.USE, BACKUP)]
    assert logic.status(PRIMARY) is Status.INITIALISING
    refused = made(Mode.FAIL_OVER)
    refused.advance(100.0)
    refused.closed(PRIMARY, 100.1)
    assert Step(Do.OPEN, BACKUP) in refused.advance(100.1)


def test_what_does_not_answer_for_long_is_aborted_and_asked_for_anew() -> None:
    logic = connected(None)
    steps = silence(logic, 101.0, 102.0 + GIVE_UP_SECONDS)
    assert [step for _, step in steps] == [Step(Do.ABORT, PRIMARY)]
    assert steps[0][0] == 101.05 + GIVE_UP_SECONDS
    logic.closed(PRIMARY, 112.0)
    assert logic.advance(112.05) == []
    assert logic.advance(112.1) == [Step(Do.OPEN, PRIMARY)]


def test_attempts_come_after_longer_and_longer_pauses() -> None:
    logic, now, pauses = made(None), 100.0, []
    logic.advance(now)
    for _ in range(10):
        logic.closed(PRIMARY, now)
        begun = now
        while not logic.advance(now):
            now = round(now + 0.05, 2)
        pauses.append(round(now - begun, 2))
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses[-1] == RETRY_SECONDS[1]


def test_a_primary_that_flaps_must_answer_for_twice_as_long_each_time() -> None:
    logic, now, holds = connected(Mode.REDUNDANT), 101.0, []
    for _ in range(4):
        silence(logic, now, now + 0.1)
        now += 0.2
        logic.looked_at(PRIMARY, now, 0.0, 0)
        holds.append(logic.hold_s)
        now += logic.hold_s
        assert Step(Do.USE, PRIMARY) in logic.advance(now)
        now += 1.0
    assert holds == [5.0, 10.0, 20.0, 40.0]
    now += FLAP_SECONDS
    silence(logic, now, now + 0.1)
    assert logic.hold_s == 5.0


EVENTS = st.one_of(
    st.tuples(st.just("pass"), st.floats(0.001, 3.0), st.none()),
    st.tuples(
        st.sampled_from(["open", "close", "silent", "answers", "stuck"]),
        st.floats(0.0, 0.2),
        st.sampled_from(list(Which)),
    ),
)


@given(st.sampled_from([None, *Mode]), st.lists(EVENTS, max_size=80))
@settings(max_examples=300, deadline=None)
def test_random_histories(mode: Mode | None, events: list[tuple[str, float, Which | None]]) -> None:
    """Whatever happens: the target is open and answers, only what is wanted opens, each step comes once, and as soon as
    anybody answers for long enough, data goes somewhere.
    """
    now = 100.0
    logic = made(mode, now)
    asked = dict.fromkeys(Which, False)
    is_open = dict.fromkeys(Which, False)
    ill = dict.fromkeys(Which, False)
    ending = dict.fromkeys(Which, False)
    silent = dict.fromkeys(Which, False)
    forgiven = dict.fromkeys(Which, 0.0)

    def act() -> None:
        for do, which in logic.advance(now):
            if do is Do.OPEN:
                assert not asked[which]
                asked[which] = True
                assert which is PRIMARY or mode is not None
            elif do is Do.USE:
                assert is_open[which]
                assert not ill[which]
            else:
                assert asked[which]
                assert not ending[which]
                ending[which] = True
        target = logic.target
        assert target is None or (is_open[target] and not ill[target])
        assert logic.any_well == any(is_open[which] and not ill[which] for which in Which)

    act()
    for what, seconds, which in events:
        now += seconds
        if which is None:
            act()
            continue
        if what == "open" and asked[which] and not is_open[which] and not ending[which]:
            is_open[which], ill[which], silent[which], forgiven[which] = True, False, False, 0.0
            logic.opened(which, now)
        elif what == "close" and asked[which]:
            asked[which] = is_open[which] = ill[which] = ending[which] = False
            logic.closed(which, now)
        elif is_open[which] and what in ("silent", "answers", "stuck"):
            if silent[which] and what != "silent":
                forgiven[which] = now + FORGIVEN_SECONDS
            silent[which] = what == "silent"
            ill[which] = silent[which] or (what == "stuck" and mode is not None and now >= forgiven[which])
            logic.looked_at(which, now, now - 1 if what == "silent" else 0.0, 3 if what == "stuck" else 0)
        act()
    if is_open[PRIMARY] and not ending[PRIMARY]:
        logic.looked_at(PRIMARY, now, 0.0, 0)
        ill[PRIMARY] = False
        now += 3601
        act()
        assert logic.target is PRIMARY
    assert mode is not None or logic.fail_overs == 0


# ---- the queue

ITEMS = st.builds(Item, st.binary(max_size=8), st.integers(1, 4), st.integers(0, 40))


@given(st.integers(1, 100), st.lists(st.one_of(ITEMS, st.just(None), st.lists(ITEMS, max_size=4)), max_size=60))
def test_the_queue_against_a_list(limit: int, actions: list[Item | list[Item] | None]) -> None:
    queue, expected = Backlog(limit), deque[Item]()
    for action in actions:
        if action is None:
            assert queue.first() == (expected[0] if expected else None)
            if expected:
                assert queue.take() == expected.popleft()
            continue
        if isinstance(action, Item):
            dropped = queue.put(action)
            expected.append(action)
        else:
            dropped = queue.put_back(action)
            expected.extendleft(reversed(action))
        for item in dropped:
            assert item == expected.popleft()
        assert queue.records == sum(item.records for item in expected)
        assert queue.octets == sum(len(item.message) for item in expected)
        assert len(queue) == len(expected)
        assert queue.records <= limit or len(queue) == 1


# ---- liveness


def data(tsn: int) -> bytes:
    return struct.pack("!BBHIHHI", 0, 3, 20, tsn, 1, 0, 0) + b"flow"


def sack(cumulative: int, *gaps: tuple[int, int]) -> bytes:
    body = struct.pack("!IIHH", cumulative, 0, len(gaps), 0) + b"".join(struct.pack("!HH", *gap) for gap in gaps)
    return struct.pack("!BBH", 3, 0, 4 + len(body)) + body


def packet(*chunks: bytes) -> bytes:
    return struct.pack("!HHII", 1, 2, 3, 0) + b"".join(chunks)


@given(
    st.sampled_from([5, 0xFFFFFFF0]),
    st.lists(
        st.one_of(
            st.integers(0, 30),
            st.tuples(st.integers(-3, 30), st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=3)),
        )
    ),
)
def test_transmissions_against_a_slow_count(first: int, actions: list[int | tuple[int, list[tuple[int, int]]]]) -> None:
    alive, counts = Liveness(), dict[int, int]()
    highest = -1
    for action in actions:
        if isinstance(action, int):
            offset = min(action, highest + 1)  # a new TSN follows the last one
            highest = max(highest, offset)
            tsn = (first + offset) & 0xFFFFFFFF
            counts[tsn] = counts.get(tsn, 0) + 1
            parsed = parse(packet(data(tsn)))
            assert parsed is not None
            alive.leaves(parsed, 1.0)
        else:
            cumulative = (first + min(action[0], highest)) & 0xFFFFFFFF
            parsed = parse(packet(sack(cumulative, *action[1])))
            assert parsed is not None
            alive.arrives(parsed)
            for tsn in list(counts):
                offset = (tsn - cumulative) & 0xFFFFFFFF
                if not is_later(tsn, cumulative) or any(a <= offset <= b for a, b in action[1]):
                    del counts[tsn]
        assert alive.transmissions == max(counts.values(), default=0)
    assert alive.silent_since == 0.0


def test_only_a_heartbeat_ack_is_proof_of_life() -> None:
    alive = Liveness()
    heartbeat = parse(packet(struct.pack("!BBH", 4, 0, 8) + bytes(4)))
    theirs = parse(packet(sack(7), struct.pack("!BBH", 4, 0, 8) + bytes(4), data(3)))
    answer = parse(packet(struct.pack("!BBH", 5, 0, 8) + bytes(4)))
    assert heartbeat
    assert theirs
    assert answer
    alive.leaves(heartbeat, 10.0)
    alive.leaves(heartbeat, 10.5)
    alive.arrives(theirs)
    assert alive.silent_since == 10.0
    alive.arrives(answer)
    assert (alive.silent_since, alive.answers) == (0.0, 1)


def test_a_retransmission_that_was_acknowledged_out_of_order_is_known_again() -> None:
    """After a gap was acknowledged and the first TSN is sent again, order in the table is still that of TSNs."""
    alive = Liveness()
    for tsn in (1, 2, 3):
        found = parse(packet(data(tsn)))
        assert found
        alive.leaves(found, 1.0)
    for answer in (sack(0, (2, 3)), sack(3)):
        found = parse(packet(answer))
        assert found
        alive.arrives(found)
    assert alive.transmissions == 0
