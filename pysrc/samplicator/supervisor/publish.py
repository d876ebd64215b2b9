"""Publish: hands plans to the workers, and waits until they run them; and takes everything from them for a while, or
for good.

Invariants: a wait has an end; a worker that does not adopt its plan is an error, and then nothing that it may use is
closed. Called by Supervisor, under its lock. It must never open or close a socket.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence, Set
from typing import Final

from samplicator._fastpath import Plan
from samplicator.datapath.intakes import Intake
from samplicator.datapath.thread import WorkerThread
from samplicator.health.running import Running
from samplicator.host import bpf, listening
from samplicator.host.bound import bound_by
from samplicator.supervisor import rings
from samplicator.supervisor.build import Build
from samplicator.supervisor.incoming import NEARLY_EMPTY_BYTES

log = logging.getLogger(__name__)

ADOPT_SECONDS: Final = 10.0
"""How long a worker may take to adopt a plan: it may have to drain a socket first, for a second at most each."""
BACKLOG_SECONDS: Final = 10.0
"""How long it is waited for a worker to go on reading out a socket."""


PASS_SECONDS: Final = 0.5
"""Long enough for a worker to read each of some sockets once, if it can keep up with what comes."""


class WorkerStuck(RuntimeError):
    """A worker did not adopt its plan in time; nothing it may still use was closed."""


def hand_out(running: Running, workers: Iterable[WorkerThread], plans: dict[int, Plan]) -> None:
    """The workers take them up when they have ended their batch."""
    running.number = plans[0].generation
    for worker in workers:
        worker.worker.publish(plans[worker.index])


def wait_for(running: Running, workers: Iterable[WorkerThread]) -> None:
    """Until every worker has adopted the newest plan. Raises WorkerStuck."""
    deadline = time.monotonic() + ADOPT_SECONDS
    pause = 0.00005
    for worker in workers:
        while worker.worker.generation < running.number:
            if worker.failed or time.monotonic() > deadline:
                text = f"worker {worker.index} has not adopted plan {running.number}"
                log.error("%s; the worker hangs, so nothing that it may use is closed", text)
                raise WorkerStuck(text)
            time.sleep(pause)
            pause = min(pause * 2, 0.002)


def wake(workers: Iterable[WorkerThread]) -> None:
    for worker in workers:
        worker.worker.wake()


def wait_empty(intakes: Sequence[Intake]) -> None:
    """Until hardly anything waits in these sockets. Of those that take no more: as long as workers go on reading; of
    others for PASS_SECONDS.
    """
    begun = time.monotonic()
    for intake in intakes:
        least, deadline = 1 << 62, 0.0
        with contextlib.suppress(OSError):
            while (waits := intake.memory().queue_bytes) > NEARLY_EMPTY_BYTES:
                now = time.monotonic()
                if waits < least:
                    least, deadline = waits, now + BACKLOG_SECONDS
                elif now > deadline or (not intake.turned_away and now > begun + PASS_SECONDS):
                    break
                time.sleep(0.001)


def hold(running: Running, build: Build | None, ports: Set[int]) -> bool:
    """Has no worker read the sockets on these ports, from when they are empty on; False when there are none. Raises
    WorkerStuck.
    """
    held = {intake for intake in build.incoming if intake.spec.port in ports} if build is not None else set()
    if build is None or not held:
        return False
    hand_out(running, running.workers, build.plans(running.number + 1, without=held))
    wait_for(running, running.workers)
    return True


def pause(running: Running, build: Build) -> None:
    """The sockets take over from the rings; then every worker ends the batch that it has in hand, and reads nothing
    more. Doors are read out; sockets stay as they are, with what they hold. Raises WorkerStuck.
    """
    rings.to_sockets(running)
    plans = build.plans(running.number + 1, without=build.owners.keys(), unread=True)
    hand_out(running, running.workers, plans)
    wait_for(running, running.workers)
    if build.aliases is not None:
        build.aliases.release()


def leave_others(running: Running, build: Build, kept: Set[str]) -> None:
    """After pause(): sockets whose labels are not in `kept` go with this process, so they are read out. New datagrams
    go to a socket that is kept, if one is bound to the same place; else the kernel drops them, and they are counted.
    Raises WorkerStuck.
    """
    others = [intake for intake in build.incoming if intake.label not in kept]
    heirs = {intake.spec for intake in build.incoming if intake.label in kept}
    for intake in others:
        if intake.spec in heirs:
            intake.turn_away()
        else:
            with contextlib.suppress(OSError):
                bpf.attach(intake.sock, bpf.TAKE_NOTHING)
    for intake in others:  # one after the other, see Incoming.read_first
        for first in ([intake], []):
            hand_out(
                running, running.workers, build.plans(running.number + 1, without=build.owners.keys(), first=first)
            )
            wait_for(running, running.workers)
            wait_empty(first)


def resume(running: Running, build: Build) -> None:
    """The end of a pause: reads on. Another process may have had the sockets meanwhile and changed their options.
    Raises WorkerStuck.
    """
    for intake in build.incoming:
        with contextlib.suppress(OSError):
            listening.turn_back(intake.sock, bound_by(intake.spec).device)
        with contextlib.suppress(OSError):
            listening.set_kept_fields(intake.sock, intake.spec, **build.keep)
            intake.program = None
            listening.follow_groups(intake.sock, intake.spec, join=build.incoming.joins(intake))
    if build.aliases is not None:
        build.aliases.regain()
    build.mark_flow()
    hand_out(running, running.workers, build.plans(running.number + 1))
    wait_for(running, running.workers)
    rings.resume(running)
