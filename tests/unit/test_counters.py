"""Histogram buckets against their published bounds, and the names of what is counted."""

from __future__ import annotations

import bisect

import pytest
from samplicator import _fastpath, _inside


def test_latency_bounds_are_1_25_5_steps() -> None:
    bounds = _fastpath.LATENCY_BOUNDS_NS
    assert bounds[:4] == (10_000, 25_000, 50_000, 100_000)
    assert bounds[-1] == 1_000_000_000
    assert list(bounds) == sorted(set(bounds))


@pytest.mark.parametrize("around", [-1, 0, 1])
def test_latency_bucket_at_every_bound(around: int) -> None:
    """A bound belongs to its bucket: Prometheus' `le`."""
    for bound in _fastpath.LATENCY_BOUNDS_NS:
        ns = bound + around
        assert _inside.latency_bucket(ns) == bisect.bisect_left(_fastpath.LATENCY_BOUNDS_NS, ns), ns


@pytest.mark.parametrize("ns", [0, 1, 9_999, 2**32, 10**12, 2**62])
def test_latency_bucket_far_out(ns: int) -> None:
    assert _inside.latency_bucket(ns) == bisect.bisect_left(_fastpath.LATENCY_BOUNDS_NS, ns)


def test_batch_bucket_of_every_size() -> None:
    for n in range(1, _fastpath.BATCH_MAX + 1):
        assert _inside.batch_bucket(n) == bisect.bisect_left(_fastpath.BATCH_BOUNDS, n), n
    assert _fastpath.BATCH_BOUNDS[-1] == _fastpath.BATCH_MAX


def test_fields_have_values() -> None:
    assert len(_fastpath.RxCounters().read()) == len(_fastpath.RX_FIELDS)
    assert len(_fastpath.TxCounters().read()) == len(_fastpath.TX_FIELDS)
    assert len(_fastpath.RxCounters().batches()) == len(_fastpath.BATCH_BOUNDS) + 1
    worker = _fastpath.Worker(batch=1, sessions=8)
    assert len(worker.read()) == len(_fastpath.WORKER_FIELDS)
    assert len(worker.latency()[0]) == len(_fastpath.LATENCY_BOUNDS_NS) + 1
    dropped = [name.removeprefix("failed_") for name in _fastpath.TX_FIELDS if name.startswith("failed_")]
    assert tuple(dropped) == _fastpath.REASONS
