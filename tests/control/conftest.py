"""Fixtures of the control plane's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from samplicator.supervisor.supervisor import Supervisor
from support.hosts import load
from support.numbered import Collector

__all__ = ["load"]


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor()
    yield made
    made.drain_and_stop(0.5)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.sock.close()
