"""A scrape touches no worker: a relay without traffic is scraped many times."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from support.watched import fleet, get

pytestmark = pytest.mark.xdist_group("dashboard")

SCRAPES = 100
BEATS_PER_SECOND = 2
"""A worker without traffic wakes up for its heartbeat only, about once per second."""


def test_a_scrape_wakes_no_worker(tmp_path: Path) -> None:
    with fleet(tmp_path, rate=0, names=("a",)) as relays:

        def wakeups() -> int:
            text = get(f"http://{relays.targets[0]}/metrics").decode()
            counts = re.findall(r"^samplicator_worker_wakeups_total{worker=\"\d\"} (\d+)$", text, re.MULTILINE)
            assert len(counts) == 2
            return sum(map(int, counts))

        started, before = time.monotonic(), wakeups()
        for _ in range(SCRAPES):
            after = wakeups()
        seconds = time.monotonic() - started
        assert after - before <= 2 * BEATS_PER_SECOND * (seconds + 1) < 2 * SCRAPES
