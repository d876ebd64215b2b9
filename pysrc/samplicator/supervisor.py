"""The supervisor: owns workers, listener sockets, ways to receivers and their counters, and changes them while
datagrams flow.

Purpose: turns one PlanSpec into running workers and the next into a difference. Invariants: everything that can fail
fails before the first publish, and then nothing has changed; a socket is read by one worker at a time; a counter has
one writer; what stays (same name, nothing changed) keeps socket and countdown; nothing is closed before every worker
that used it has left the plan that names it. Called by reload and service (apply, drain_and_stop, housekeeping) and
by metrics and http (readings, route). It must never take a lock that a worker takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ListenerReading:
    """One listener. counters: keyed by _fastpath.RX_FIELDS. batch_counts: one per _fastpath.BATCH_BOUNDS and +Inf
    last, not cumulative.

    buffer_bytes: what the kernel really grants, sum of the sockets. queue_bytes: waiting to be read. kernel_drops:
    dropped by the kernel because the buffer was full. sockets: (address, port) pairs, one per configured socket,
    whatever the number of workers.
    """

    name: str
    sockets: tuple[tuple[str, int], ...]
    counters: Mapping[str, int]
    batch_counts: tuple[int, ...]
    buffer_bytes: int
    queue_bytes: int
    kernel_drops: int
    up: bool


@dataclass(frozen=True, slots=True)
class ReceiverReading:
    """One receiver. counters: keyed by _fastpath.TX_FIELDS. address: text. source: "own" | "spoof". up: reachable as
    far as known.
    """

    name: str
    host: str
    address: str
    port: int
    source: str
    engine: str
    engine_why: str
    counters: Mapping[str, int]
    up: bool
    generation_added: int


@dataclass(frozen=True, slots=True)
class WorkerReading:
    """One worker. counters: keyed by _fastpath.WORKER_FIELDS. cpu: None when not pinned."""

    index: int
    cpu: int | None
    counters: Mapping[str, int]
    generation: int


@dataclass(frozen=True, slots=True)
class Readings:
    """All counters at one moment, summed over workers. latency_counts: one per _fastpath.LATENCY_BOUNDS_NS and +Inf
    last.
    """

    generation: int
    listeners: tuple[ListenerReading, ...]
    receivers: tuple[ReceiverReading, ...]
    workers: tuple[WorkerReading, ...]
    latency_counts: tuple[int, ...]
    latency_sum_ns: int
    plan_started_unix: float
