"""freq in the ancestor's order: the first copy is sent, then freq - 1 are left out; the countdown outlives a reload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samplicator import _inside


@pytest.mark.parametrize("freq", [1, 2, 3, 7, 100, 65536, 2**32 - 1])
def test_first_then_every_nth(freq: int) -> None:
    counters = _inside.TxCounters()
    kept = [_inside.keep(counters, freq) for _ in range(300)]
    assert kept == [n % freq == 0 for n in range(300)]


def test_smaller_freq_after_a_reload_is_not_held_up_by_the_larger() -> None:
    """1-in-1,000,000 becomes 1-in-3: the next copy is sent at once, not 999,999 copies later."""
    counters = _inside.TxCounters()
    _inside.keep(counters, 1_000_000)
    assert [_inside.keep(counters, 3) for _ in range(7)] == [True, False, False, True, False, False, True]


def test_larger_freq_after_a_reload_finishes_the_old_countdown() -> None:
    counters = _inside.TxCounters()
    assert [_inside.keep(counters, 3) for _ in range(2)] == [True, False]
    assert [_inside.keep(counters, 5) for _ in range(7)] == [False, True, False, False, False, False, True]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 50)), min_size=1, max_size=10))
def test_never_more_than_freq_apart(phases: list[tuple[int, int]]) -> None:
    """However freq changes, between two copies sent never more are left out than the larger freq of both allows."""
    counters = _inside.TxCounters()
    out, worst = 0, 0
    for freq, count in phases:
        worst = max(worst, freq)
        for _ in range(count):
            if _inside.keep(counters, freq):
                out, worst = 0, freq
            else:
                out += 1
                assert out < worst
