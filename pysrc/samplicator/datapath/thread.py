"""A worker and its OS thread: start, pin, end, read. Called by the supervisor only."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence

from samplicator._fastpath import Plan, Worker
from samplicator.datapath.counters import HEARTBEAT, WAKEUPS, WORKER_FIELDS
from samplicator.host import abilities
from samplicator.readings import WorkerReading, wall_ns

log = logging.getLogger(__name__)


class Stir:
    """Whether the datapath has done anything since the last question. Periodic checks of receivers are skipped if it
    has not.
    """

    def __init__(self) -> None:
        self._seen: tuple[int, ...] = ()

    def any(self, generation: int, received: int, workers: Sequence[WorkerThread]) -> bool:
        """generation: of the plan. received: datagrams so far."""
        now = (generation, received, *(worker.worker.read()[WAKEUPS] for worker in workers))
        before, self._seen = self._seen, now
        return now != before


class WorkerThread:
    """A worker and its OS thread."""

    def __init__(self, index: int, worker: Worker, cpu: int | None, packet: socket.socket | None = None) -> None:
        """packet: the worker's packet socket, closed when the thread has ended."""
        self.index = index
        self.packet = packet
        self.worker = worker
        self.cpu = cpu
        self.failed = False
        self.ports = abilities.SourcePorts()
        self.started_ns = time.monotonic_ns()
        self.thread = threading.Thread(target=self._run, name=f"worker-{index}", daemon=True)

    def start(self) -> None:
        self.worker.publish(Plan(0, [], [], []))
        self.thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file:
            file.write(f"sampl-worker-{self.index}")
        self.pin(self.cpu, first=True)
        try:
            self.worker.run()
        except BaseException:
            self.failed = True
            log.exception("worker %d ended", self.index)

    def pin(self, cpu: int | None, *, first: bool = False) -> None:
        """Pins the thread to a CPU, None = all that the process may use (os.sched_getaffinity of the main thread)."""
        if first and cpu is None:
            return
        target = 0 if first else self.thread.native_id
        if target is None:
            return
        allowed = os.sched_getaffinity(os.getpid())
        try:
            os.sched_setaffinity(target, allowed if cpu is None else {cpu})
            self.cpu = cpu
        except OSError as error:
            log.warning("worker %d cannot run on CPU %s only: %s", self.index, cpu, error.strerror)
            self.cpu = None

    def choose_from(self, ports: abilities.SourcePorts) -> None:
        """The ports that exporters' sessions get are of these from now on."""
        if ports != self.ports:
            self.worker.source_ports(ports.first, ports.last, ports.reserved)
            self.ports = ports

    def read(self) -> WorkerReading:
        counters = dict(zip(WORKER_FIELDS, self.worker.read(), strict=True))
        if counters["heartbeat_ns"]:
            counters["heartbeat_ns"] = wall_ns(counters["heartbeat_ns"])
        return WorkerReading(
            index=self.index,
            cpu=self.cpu,
            counters=counters,
            generation=self.worker.generation,
        )

    def stuck(self, limit_seconds: float) -> str:
        """What is wrong with the worker: it has ended, or has shown no heartbeat for some time; "" = nothing."""
        if self.failed or not self.thread.is_alive():
            return f"worker {self.index} has ended"
        age = (time.monotonic_ns() - max(self.worker.read()[HEARTBEAT], self.started_ns)) / 1e9
        return f"worker {self.index} has shown no heartbeat for {age:.0f} s" if age > limit_seconds else ""

    def end(self, drain_ms: int, timeout: float) -> bool:
        self.worker.stop(drain_ms)
        self.thread.join(timeout)
        self.close()
        return not self.thread.is_alive()

    def close(self) -> None:
        """Closes what only the thread uses, when it has ended."""
        if self.packet is not None and not self.thread.is_alive():
            self.packet.close()
