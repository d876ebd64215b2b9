"""Ending: the last steps of what runs: nothing more comes in, the workers end, everything is closed.

Invariants: what a worker that does not end may still use is not closed; counters of workers that ended are kept. Called
by Supervisor, under its lock.
"""

from __future__ import annotations

import contextlib
import logging
import time

from samplicator.datapath.thread import WorkerThread
from samplicator.health.running import Running
from samplicator.host import bpf
from samplicator.readings import add_up

log = logging.getLogger(__name__)


def refuse_all(running: Running) -> None:
    """Sockets and doors take nothing more; what they hold can be read."""
    for listener in running.listeners.values():
        for intake in listener.sockets():
            with contextlib.suppress(OSError):
                bpf.attach(intake.sock, bpf.TAKE_NOTHING)
        for door in (intake for group in listener.doors.values() for intake in group):
            with contextlib.suppress(OSError):
                door.refuse_all()


def end_workers(running: Running, timeout: float) -> bool:
    """Has the workers forward what is queued, for at most `timeout` seconds, and end; False when one does not."""
    for worker in running.workers:
        worker.worker.stop(int(timeout * 1000))
    deadline = time.monotonic() + timeout + 2.0
    for worker in running.workers:
        worker.thread.join(max(0.0, deadline - time.monotonic()))
    if any(worker.thread.is_alive() for worker in running.workers):
        log.error("a worker does not stop; its sockets stay open until the process ends")
        return False
    for worker in running.workers:
        worker.close()
        keep_latency(running, worker)
    running.workers = []
    return True


def close_all(running: Running) -> int:
    """When the workers have ended. Returns the bytes that were left in sockets, rings and doors."""
    left = 0
    for listener in running.listeners.values():
        for each in listener.open():
            with contextlib.suppress(OSError):  # it is closed already
                left += each.memory().queue_bytes
            each.close()
    for receiver in running.receivers.values():
        receiver.close_but(None)
    if running.ingress is not None:
        running.ingress.close()
    return left


def keep_latency(running: Running, worker: WorkerThread) -> None:
    """Of a worker that has ended."""
    counts, total = worker.worker.latency()
    with running.lock:
        running.gone_latency = add_up([running.gone_latency, counts])
        running.gone_latency_sum_ns += total
