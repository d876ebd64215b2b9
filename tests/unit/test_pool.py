"""Pools: who gets an exporter. Fair, steady, and only those move that have to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from samplicator import _inside

ANY = (0, bytes(16), bytes(16))
CAPACITY = 65536


def plan(counters: Sequence[_inside.TxCounters], weights: Sequence[int] = (), generation: int = 1) -> _inside.Plan:
    """One pool of dry receivers, member n of weights[n]; the same counters are the same receiver."""
    txs = [_inside.Tx(_inside.ENGINE_UDP, -1, c, bytes([198, 18, 0, c.id % 250 + 1]), 9000 + c.id) for c in counters]
    members = [(n, weights[n] if weights else 1) for n in range(len(txs))]
    return _inside.Plan(generation, [], txs, [([ANY], None, [len(txs)], False)], [(7, 0, members)])


def exporters(n: int, seed: int = 1) -> list[tuple[bytes, int]]:
    generator = random.Random(seed)
    return [(bytes(10) + b"\xff\xff" + generator.randbytes(4), generator.randrange(3)) for _ in range(n)]


def new(members: int, weights: Sequence[int] = ()) -> tuple[_inside.Worker, _inside.Plan, list[_inside.TxCounters]]:
    counters = [_inside.TxCounters() for _ in range(members)]
    worker = _inside.Worker(batch=1, sessions=8)
    first = plan(counters, weights)
    _inside.pool_adopt_plan(worker, first)
    return worker, first, counters


def give(worker: _inside.Worker, which: _inside.Plan, some: list[tuple[bytes, int]]) -> dict[tuple[bytes, int], int]:
    return {one: _inside.pool_give(worker, which, *one)[1] for one in some}


def check_shares(which: _inside.Plan, given: dict[tuple[bytes, int], int]) -> None:
    loads = Counter(given.values())
    assert {receiver: load for receiver, _, load in _inside.pool_shares(which)} == {
        receiver: loads[receiver] for receiver, _, _ in _inside.pool_shares(which)
    }
    assert sum(homes for _, homes, _ in _inside.pool_shares(which)) == len(given)


@pytest.mark.parametrize("seed", range(20))
def test_equal_members_share_evenly(seed: int) -> None:
    worker, which, _ = new(4)
    given = give(worker, which, exporters(400, seed))
    loads = Counter(given.values())
    assert len(loads) == 4
    assert max(loads.values()) / min(loads.values()) < 1.25
    check_shares(which, given)


@pytest.mark.parametrize("step", [1, 4, 256])
def test_neighboring_addresses_share_evenly(step: int) -> None:
    worker, which, _ = new(4)
    block = [(bytes(10) + b"\xff\xff\xc6\x12" + (n * step).to_bytes(2, "big"), 0) for n in range(250)]
    loads = Counter(give(worker, which, block).values())
    assert max(loads.values()) / min(loads.values()) < 1.25


def test_weights() -> None:
    worker, which, counters = new(3, (1, 2, 5))
    # 4,000 come within 9.8 percent in the worst of 300 pools of other addresses, 30,000 within 4
    loads = Counter(give(worker, which, exporters(30_000)).values())
    for weight, one in zip((1, 2, 5), counters, strict=True):
        assert loads[one.id] == pytest.approx(3750 * weight, rel=0.1)


def test_the_answer_stays() -> None:
    worker, which, _ = new(5)
    some = exporters(1000)
    first = give(worker, which, some)
    for one in some:
        before, now, _ = _inside.pool_give(worker, which, *one)
        assert before == now == first[one]


def test_without_memory_the_hash_ranks_alike() -> None:
    """Two relays, exporters in another order: most choices are the same, those that met no bound."""
    worker, which, counters = new(4)
    other = _inside.Worker(batch=1, sessions=8)
    _inside.pool_adopt_plan(other, plan(counters))
    some = exporters(1000)
    second = plan(counters)
    _inside.pool_adopt_plan(other, second)
    one, two = give(worker, which, some), give(other, second, some[::-1])
    assert sum(one[key] == two[key] for key in some) > 750  # 821 to 934 in 300 pools of other addresses; by chance: 250


@pytest.mark.parametrize("dead", range(4))
def test_a_member_fails_and_returns(dead: int) -> None:
    """Only its exporters move, to all others evenly; when it returns they are the ones that come back."""
    worker, which, counters = new(4)
    some = exporters(400)
    before = give(worker, which, some)
    _inside.pool_member_down(worker, which, dead, True)
    during = give(worker, which, some)
    gone = counters[dead].id
    for one in some:
        assert (during[one] != before[one]) == (before[one] == gone)
        assert during[one] != gone
    loads = Counter(during.values())
    assert max(loads.values()) / min(loads.values()) < 1.25
    check_shares(which, during)
    _inside.pool_member_down(worker, which, dead, False)
    assert give(worker, which, some) == before
    check_shares(which, before)


def test_two_fail_one_after_the_other() -> None:
    worker, which, counters = new(4)
    some = exporters(400)
    before = give(worker, which, some)
    _inside.pool_member_down(worker, which, 0, True)
    first = give(worker, which, some)
    _inside.pool_member_down(worker, which, 1, True)
    second = give(worker, which, some)
    for one in some:
        assert (second[one] != first[one]) == (first[one] == counters[1].id)
    _inside.pool_member_down(worker, which, 0, False)
    third = give(worker, which, some)
    for one in some:  # those of the first come home, deputies of the second stay
        assert third[one] == (before[one] if before[one] == counters[0].id else second[one])
    _inside.pool_member_down(worker, which, 1, False)
    assert give(worker, which, some) == before


def test_all_down_keeps_who_had_it() -> None:
    worker, which, _ = new(3)
    some = exporters(100)
    before = give(worker, which, some)
    for member in range(3):
        _inside.pool_member_down(worker, which, member, True)
    assert give(worker, which, some) == before
    fresh = exporters(10, seed=2)
    assert len(give(worker, which, fresh)) == 10


def test_a_member_joins() -> None:
    """It takes about its share, from all; nobody else moves."""
    worker, which, counters = new(3)
    some = exporters(900)
    before = give(worker, which, some)
    more = [*counters, _inside.TxCounters()]
    second = plan(more, generation=2)
    _inside.pool_adopt_plan(worker, second, which)
    after = give(worker, second, some)
    moved = [one for one in some if after[one] != before[one]]
    assert {after[one] for one in moved} == {more[3].id}
    assert len(moved) == pytest.approx(225, abs=60)
    check_shares(second, after)


def test_a_member_leaves() -> None:
    worker, which, counters = new(4)
    some = exporters(400)
    before = give(worker, which, some)
    second = plan(counters[1:], generation=2)
    _inside.pool_adopt_plan(worker, second, which)
    after = give(worker, second, some)
    for one in some:
        assert (after[one] != before[one]) == (before[one] == counters[0].id)
    check_shares(second, after)


def test_a_reload_that_changes_nothing_moves_nobody() -> None:
    worker, which, counters = new(4)
    some = exporters(400)
    before = give(worker, which, some)
    second = plan(counters, generation=2)
    _inside.pool_adopt_plan(worker, second, which)
    assert give(worker, second, some) == before


def test_a_pool_that_goes_is_forgotten() -> None:
    worker, which, _ = new(2)
    give(worker, which, exporters(50))
    assert _inside.pool_used(worker) == 50
    _inside.pool_adopt_plan(worker, _inside.Plan(2, [], [], []), which)
    assert _inside.pool_used(worker) == 0


def test_bounded_under_forged_exporters() -> None:
    worker, which, _ = new(4)
    give(worker, which, exporters(3 * CAPACITY))
    assert _inside.pool_used(worker) <= CAPACITY
    shares = _inside.pool_shares(which)
    assert sum(load for _, _, load in shares) == sum(homes for _, homes, _ in shares) == _inside.pool_used(worker)


def test_the_silent_are_forgotten() -> None:
    worker, which, _ = new(2)
    _inside.pool_seconds(worker, 100)
    give(worker, which, exporters(50))
    _inside.pool_seconds(worker, 1000)
    give(worker, which, exporters(20))
    _inside.pool_seconds(worker, 1900)
    _inside.pool_forget(worker, which, CAPACITY)
    assert _inside.pool_used(worker) == 20
    assert sum(load for _, _, load in _inside.pool_shares(which)) == 20


@pytest.mark.parametrize(
    ("weights", "turns"), [((1, 1, 1), (4, 4, 4)), ((3, 2, 1), (6, 4, 2)), ((10, 1, 1), (10, 1, 1))]
)
def test_round_robin(weights: tuple[int, ...], turns: tuple[int, ...]) -> None:
    _, which, _ = new(3, weights)
    counted = Counter(_inside.pool_turns(which, 12))
    assert tuple(counted[way] for way in range(3)) == turns


def test_round_robin_is_smooth_and_passes_the_dead() -> None:
    worker, which, _ = new(3)
    assert sorted(_inside.pool_turns(which, 3)) == [0, 1, 2]
    _inside.pool_member_down(worker, which, 1, True)
    assert set(_inside.pool_turns(which, 20)) == {0, 2}
    _inside.pool_member_down(worker, which, 0, True)
    _inside.pool_member_down(worker, which, 2, True)
    assert set(_inside.pool_turns(which, 20)) == {0, 1, 2}


@pytest.mark.parametrize(
    "pools",
    [
        [(0, 0, [(0, 1)])],
        [(1, 0, [])],
        [(1, 0, [(2, 1)])],
        [(1, 0, [(0, 0)])],
        [(1, 0, [(0, 1001)])],
        [(1, 0, [(0, 1), (0, 1)])],
        [(1, 0, [(0, 1)]), (1, 0, [(1, 1)])],
    ],
)
def test_bad_pools_are_refused(pools: list[tuple[int, int, list[tuple[int, int]]]]) -> None:
    txs = [_inside.Tx(_inside.ENGINE_UDP, -1, _inside.TxCounters(), bytes(4), 9) for _ in range(2)]
    with pytest.raises(ValueError, match=r"pool|weight"):
        _inside.Plan(1, [], txs, [], pools)


def test_routes_name_ways_first_then_pools() -> None:
    txs = [_inside.Tx(_inside.ENGINE_UDP, -1, _inside.TxCounters(), bytes(4), 9) for _ in range(3)]
    rules = [([ANY], None, [3, 0], False), ([ANY], None, [2, 4, 3], False)]
    which = _inside.Plan(1, [], txs, rules, [(1, 0, [(0, 1), (1, 1)]), (2, 1, [(2, 1)])])
    assert which.route(bytes(4), 0) == ((0, 1), (0, 2, 3, 4), False)
    with pytest.raises(ValueError, match="way 5"):
        _inside.Plan(1, [], txs, [([ANY], None, [5], False)], [(1, 0, [(0, 1)]), (2, 1, [(2, 1)])])
