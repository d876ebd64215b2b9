"""The exporter cache: bounded whatever comes, right whenever it answers, forgetful at a new epoch."""

from __future__ import annotations

import random

import pytest
from samplicator import _inside


def forged(n: int) -> bytes:
    return bytes(10) + b"\xff\xff" + n.to_bytes(4, "big")


def test_hit_after_miss() -> None:
    worker = _inside.Worker(batch=1, sessions=64)
    assert _inside.session(worker, forged(1), 2055, 0, 42) == (False, 42)
    assert _inside.session(worker, forged(1), 2055, 0, 99) == (True, 42)
    assert _inside.session_numbers(worker)[:3] == (1, 1, 0)


@pytest.mark.parametrize("other", [(forged(2), 2055, 0), (forged(1), 2056, 0), (forged(1), 2055, 1)])
def test_address_port_and_listener_make_a_session(other: tuple[bytes, int, int]) -> None:
    worker = _inside.Worker(batch=1, sessions=8)  # one set: all look at the same entries
    _inside.session(worker, forged(1), 2055, 0, 1)
    assert _inside.session(worker, *other, 2) == (False, 2)
    assert _inside.session(worker, forged(1), 2055, 0, 3) == (True, 1)


@pytest.mark.parametrize(("asked", "capacity"), [(1, 8), (8, 8), (9, 16), (1000, 1024), (131072, 131072)])
def test_capacity_is_a_power_of_two(asked: int, capacity: int) -> None:
    assert _inside.session_numbers(_inside.Worker(batch=1, sessions=asked))[3] == capacity


def test_bounded_under_forged_sources() -> None:
    """Twenty times its capacity: it never holds more, and every hit has the right route."""
    worker = _inside.Worker(batch=1, sessions=1024)
    generator = random.Random(1)
    routes: dict[bytes, int] = {}
    hits = 0
    for n in range(20_000):
        _inside.session_batch(worker, n // 32)
        address = forged(generator.randrange(1 << 32)) if n % 4 else forged(generator.randrange(100))
        route = routes.setdefault(address, n)
        hit, got = _inside.session(worker, address, 2055, 0, route)
        assert got == route
        hits += hit
    used, misses, evictions, capacity = _inside.session_numbers(worker)
    assert used <= capacity == 1024
    assert misses == 20_000 - hits
    assert evictions == misses - used
    assert hits > 3000, "the exporters that come back are still known"


def test_grows_instead_of_evicting() -> None:
    """Begins small, doubles when a set is full, and only at its bound does it evict."""
    worker = _inside.Worker(batch=1, sessions=131072)
    assert _inside.session_places(worker) == 4096
    for _ in range(8):  # each doubling forgets all
        for n in range(10_000):
            assert _inside.session(worker, forged(n * 7), 2055, 0, n)[1] == n
    assert all(_inside.session(worker, forged(n * 7), 2055, 0, 0) == (True, n) for n in range(10_000))
    assert _inside.session_numbers(worker)[2] == 0
    assert 16384 <= _inside.session_places(worker) <= 131072
    for n in range(400_000):
        _inside.session(worker, forged(n * 7), 2055, 0, n)
    used, _, evictions, capacity = _inside.session_numbers(worker)
    assert _inside.session_places(worker) == capacity == 131072
    assert used <= capacity
    assert evictions > 200_000


def test_least_recently_seen_goes_first() -> None:
    worker = _inside.Worker(batch=1, sessions=8)
    for n in range(8):
        _inside.session_batch(worker, n + 1)
        _inside.session(worker, forged(n), 1, 0, n)
    _inside.session_batch(worker, 20)
    assert _inside.session(worker, forged(0), 1, 0, 0)[0]  # the oldest is seen again
    _inside.session(worker, forged(100), 1, 0, 100)  # so the second oldest goes
    assert [_inside.session(worker, forged(n), 1, 0, n)[0] for n in (0, 2, 3, 4, 5, 6, 7, 100)] == [True] * 8
    assert not _inside.session(worker, forged(1), 1, 0, 1)[0]


def test_batch_number_wraps() -> None:
    """After 2**32 batches the youngest is not taken for the oldest."""
    worker = _inside.Worker(batch=1, sessions=8)
    for n in range(8):
        _inside.session_batch(worker, (2**32 - 4 + n) % 2**32)
        _inside.session(worker, forged(n), 1, 0, n)
    _inside.session(worker, forged(9), 1, 0, 9)
    assert not _inside.session(worker, forged(0), 1, 0, 0)[0]


def test_more_sessions_of_one_set_than_ways_in_one_batch() -> None:
    worker = _inside.Worker(batch=1, sessions=8)
    for n in range(50):
        assert _inside.session(worker, forged(n), 1, 0, n) == (False, n)
    assert _inside.session_numbers(worker)[:3] == (8, 50, 42)


def test_new_epoch_forgets_everything() -> None:
    worker = _inside.Worker(batch=1, sessions=64)
    for n in range(64):
        _inside.session(worker, forged(n), 1, 0, n)
    assert _inside.session_epoch(worker, 5) == 6
    assert _inside.session_numbers(worker)[0] == 0
    assert _inside.session(worker, forged(63), 1, 0, 7) == (False, 7)
    assert _inside.session_numbers(worker)[0] == 1


def test_epoch_zero_is_never_used() -> None:
    """0 marks entries that were never taken."""
    worker = _inside.Worker(batch=1, sessions=64)
    assert _inside.session_epoch(worker, 2**32 - 1) == 1
