"""Publish: hands plans to the workers, and waits until they run them; and takes everything from them for a while.

Invariants: a wait has an end; a worker that does not adopt its plan is an error, and then nothing that it may use is
closed. Called by Supervisor, under its lock. It must never open or close a socket.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from samplicator._fastpath import Plan
from samplicator.datapath.intakes import Intake, RingGroup
from samplicator.datapath.thread import WorkerThread
from samplicator.health.running import Running
from samplicator.host import listening, ring
from samplicator.supervisor.build import Build

log = logging.getLogger(__name__)

ADOPT_SECONDS: Final = 10.0
"""How long a worker may take to adopt a plan: it may have to drain a socket first, for a second at most each."""
BACKLOG_SECONDS: Final = 10.0
"""How long it is waited for sockets that were handed in to be read out."""
NEARLY_EMPTY_BYTES: Final = 1 << 16
"""What is left in a socket then is read when it leaves the plan."""


class WorkerStuck(RuntimeError):
    """A worker did not adopt its plan in time; nothing it may still use was closed."""


def hand_out(running: Running, workers: Iterable[WorkerThread], plans: dict[int, Plan]) -> None:
    running.generation = plans[0].generation
    for worker in workers:
        worker.worker.publish(plans[worker.index])


def wait_for(running: Running, workers: Iterable[WorkerThread]) -> None:
    """Until every worker has adopted the newest plan. Raises WorkerStuck."""
    deadline = time.monotonic() + ADOPT_SECONDS
    pause = 0.00005
    for worker in workers:
        while worker.worker.generation < running.generation:
            if worker.failed or time.monotonic() > deadline:
                text = f"worker {worker.index} has not adopted plan {running.generation}"
                log.error("%s; the worker hangs, so nothing that it may use is closed", text)
                raise WorkerStuck(text)
            time.sleep(pause)
            pause = min(pause * 2, 0.002)


def wake(workers: Iterable[WorkerThread]) -> None:
    for worker in workers:
        worker.worker.wake()


def wait_empty(intakes: Sequence[Intake]) -> None:
    """Until hardly anything waits in these sockets, or for BACKLOG_SECONDS."""
    deadline = time.monotonic() + BACKLOG_SECONDS
    for intake in intakes:
        with contextlib.suppress(OSError):
            while intake.memory().queue_bytes > NEARLY_EMPTY_BYTES and time.monotonic() < deadline:
                time.sleep(0.001)


def stop_rings(groups: Collection[RingGroup]) -> None:
    """These rings take no more; what they took can be read when this returns."""
    for group in groups:
        group.stop()
    if groups:
        time.sleep(ring.SETTLE_SECONDS)


def ring_groups(running: Running) -> list[RingGroup]:
    return [group for state in running.listeners.values() for group in state.rings.values()]


def pause(running: Running, build: Build) -> None:
    """Every worker ends the batch that it has in hand, then reads nothing more. Rings and doors are read out; sockets
    stay as they are, with what they hold. Raises WorkerStuck.
    """
    stop_rings(ring_groups(running))
    hand_out(running, running.workers, build.plans(running.generation + 1, without=build.owners.keys(), unread=True))
    wait_for(running, running.workers)
    if build.aliases is not None:
        build.aliases.release()


def resume(running: Running, build: Build) -> None:
    """The end of a pause: reads on. Another process may have had the sockets meanwhile and changed their options.
    Raises WorkerStuck.
    """
    for intake in build.incoming:
        with contextlib.suppress(OSError):
            listening.set_kept_fields(intake.sock, intake.spec, **build.keep)
            intake.program = None
            listening.follow_groups(intake.sock, intake.spec, join=build.incoming.joins(intake))
    if build.aliases is not None:
        build.aliases.regain()
    build.mark_flow()
    for group in ring_groups(running):
        try:
            group.install(group.intakes)
        except OSError as error:
            log.error("the ring on %s cannot start again: %s; the sockets receive", group.spec.interface, error)
    hand_out(running, running.workers, build.plans(running.generation + 1))
    wait_for(running, running.workers)
