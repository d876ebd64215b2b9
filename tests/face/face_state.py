"""A ServiceState without a datapath: readings made up field by field, so that every number in the output can be told
from the others.

Used by the tests of metrics and HTTP.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from samplicator import _fastpath
from samplicator.config.model import Config, Loaded
from samplicator.readings import ListenerReading, Readings, ReceiverReading, WorkerReading
from samplicator.reload import ReloadResult
from samplicator.service import ServiceState


def counters(fields: tuple[str, ...], start: int) -> dict[str, int]:
    return {field: start + place for place, field in enumerate(fields)}


def lawful_rx(start: int) -> dict[str, int]:
    values = counters(_fastpath.RX_FIELDS, start)
    values["datagrams"] = values["truncated"] + values["unmatched"] + values["denied"] + values["matched"]
    return values


def lawful_tx(start: int) -> dict[str, int]:
    values = counters(_fastpath.TX_FIELDS, start)
    dropped = sum(values[f"dropped_{reason}"] for reason in _fastpath.REASONS)
    values["offered"] = values["sampled_out"] + values["sent"] + dropped
    return values


def make_readings(*, zero: bool = False) -> Readings:
    """Two listeners (one with two sockets), two receivers (one with an IPv6 address), two workers."""
    batches = tuple(range(len(_fastpath.BATCH_BOUNDS) + 1))
    listeners = tuple(
        ListenerReading(
            name=name,
            sockets=sockets,
            counters=dict.fromkeys(_fastpath.RX_FIELDS, 0) if zero else lawful_rx(start),
            batch_counts=tuple(0 for _ in batches) if zero else batches,
            buffer_bytes=1 << 20,
            queue_bytes=0 if zero else 4096,
            kernel_drops=0 if zero else start + 77,
            up=True,
        )
        for name, start, sockets in (
            ("netflow", 1000, (("0.0.0.0", 2055), ("::", 2055))),
            ('odd "name"\\', 2000, (("127.0.0.1", 6343),)),
        )
    )
    receivers = tuple(
        ReceiverReading(
            name=name,
            host=address,
            address=address,
            port=9995,
            source=source,
            engine=engine,
            engine_why="because",
            counters=dict.fromkeys(_fastpath.TX_FIELDS, 0) if zero else lawful_tx(start),
            up=start == 3000,
            generation_added=1,
        )
        for name, start, address, source, engine in (
            ("nfdump", 3000, "192.0.2.10", "spoof", "raw"),
            ("six", 4000, "2001:db8::10", "own", "udp"),
        )
    )
    workers = tuple(
        WorkerReading(
            index=index,
            cpu=None,
            counters=dict.fromkeys(_fastpath.WORKER_FIELDS, 0)
            if zero
            else {field: value * 10**9 for field, value in counters(_fastpath.WORKER_FIELDS, 1 + 10 * index).items()},
            generation=7,
        )
        for index in range(2)
    )
    latencies = tuple(range(len(_fastpath.LATENCY_BOUNDS_NS) + 1))
    return Readings(
        generation=7,
        listeners=listeners,
        receivers=receivers,
        workers=workers,
        latency_counts=tuple(0 for _ in latencies) if zero else latencies,
        latency_sum_ns=0 if zero else 1_500_000_000,
        plan_started_unix=1.7e9,
    )


class FakeSupervisor:
    def __init__(self, readings: Readings) -> None:
        self.value = readings
        self.error: Exception | None = None

    def readings(self) -> Readings:
        if self.error is not None:
            raise self.error
        return self.value


class FakeReloader:
    """Answers what it is told to, and remembers who asked."""

    def __init__(self) -> None:
        self.reloads_total = 5
        self.failures_total = 2
        self.last_successful = True
        self.last_success_timestamp = 1.7e9
        self.config_hash = 0xABCDEF012345
        self.triggers: list[str] = []
        self.finished = 0
        self.delay = 0.0
        self.result = ReloadResult(True, 8, "1 receiver added", (), 0.01)

    async def reload(self, trigger: str) -> ReloadResult:
        self.triggers.append(trigger)
        await asyncio.sleep(self.delay)
        self.finished += 1
        return self.result


def make_state(*, zero: bool = False, **changes: Any) -> ServiceState:
    values: dict[str, Any] = {
        "supervisor": FakeSupervisor(make_readings(zero=zero)),
        "reloader": FakeReloader(),
        "loaded": Loaded(Config(), {}, files=("a.toml",), text_hash="ab" * 32),
        "started_unix": time.time() - 60,
        "version": "9.9.9",
        "ready": lambda: (True, "ok"),
        "healthy": lambda: (True, "ok"),
        "log_messages": {"warning": 3},
        **changes,
    }
    return ServiceState(**values)
