"""Changeover: the datagrams of listeners come by their rings instead of their sockets, or the other way round.

Purpose: nothing lost, nothing twice, and in order. A filter lets packets into the rings, an ingress rule keeps them
from the sockets, and nothing in the kernel moves both at one moment. So for a moment both ways are open, and then the
second copy is left out (fastpath/rx/overlap.pxd). The steps, in both directions:

1. Nobody reads: the sockets and rings rest (Worker), and hold what comes.
2. The new way opens, then the old way closes. A fence (ring.fence) on both sides: what was on its way has arrived.
3. The old way is read until it is empty, by all workers; all that it brings is noted.
4. The new way is read. What was noted is left out, until nothing that came before the fence waits there.

Invariants: whatever happens in between, each ring that is given back takes nothing, and in the end what shall be read
is read. Called by supervisor.rings, under its lock, while the workers run a plan with all these intakes. It must never
close anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from samplicator._fastpath import Overlap
from samplicator.datapath.intakes import Intake, RingGroup, RingIntake
from samplicator.datapath.thread import WorkerThread
from samplicator.host import ring

ANSWER_SECONDS: Final = 10.0
"""How long a worker may take to bring an intake to rest, or to read it until it is empty."""
BACKLOG_NS: Final = 500_000_000
"""What is older when the rings begin to take is not noted: it waited in a socket before. (The kernel notes the arrival
of a packet before it is shown to rings and sockets, and it may wait for that in a queue of the CPU.)
"""


class Changeover:
    """One change of some listeners. sockets: all of theirs; groups: those of their rings that change."""

    def __init__(self, workers: Sequence[WorkerThread], groups: Sequence[RingGroup], sockets: Sequence[Intake]) -> None:
        self._workers = workers
        self._groups = groups
        self._sockets = sockets
        self._rings = [intake for group in groups for intake in group.intakes]
        self._overlap = Overlap()

    def to_sockets(self) -> None:
        """The rings are given back. Raises TimeoutError if a worker does not answer: then they take nothing more, but
        datagrams may come twice.
        """
        overlap = self._overlap
        try:
            self._rest([*self._sockets, *self._rings])
            ring.fence()  # what was read before has been dropped by the rule
            for group in self._groups:
                group.give_back()
            ring.fence()
            self._settle()
            for intake in self._rings:
                intake.rx.set_overlap(overlap, notes=True)
            for socket in self._sockets:
                socket.rx.set_overlap(overlap)
            overlap.limit(until_ns=time.time_ns())
            self._rest(self._rings, empty=True)
            for intake in self._rings:
                intake.rx.set_overlap(None)
        finally:
            for group in self._groups:
                group.give_back()
            for intake in self._rings:
                intake.rx.rest(empty=True)
            self._go_on(self._sockets)
        self._finish(self._sockets)

    def to_rings(self) -> list[tuple[RingGroup, OSError]]:
        """The rings take what matches. Returns groups whose rule the kernel refuses, and why: their datagrams go on to
        come by the sockets. Raises TimeoutError if a worker does not answer: then datagrams may come twice.
        """
        failed: list[tuple[RingGroup, OSError]] = []
        overlap = self._overlap
        try:
            self._rest([*self._sockets, *self._rings])
            overlap.limit(since_ns=time.time_ns() - BACKLOG_NS)
            for socket in self._sockets:
                socket.rx.set_overlap(overlap, notes=True)
            for group in self._groups:
                try:
                    group.take()
                except OSError as error:
                    failed.append((group, error))
            ring.fence()
            overlap.limit(until_ns=time.time_ns())
            self._settle()
            self._rest(self._sockets, empty=True)
            for socket in self._sockets:
                socket.rx.set_overlap(None)
            for intake in self._rings:
                intake.rx.set_overlap(overlap)
        finally:
            self._go_on([*self._sockets, *self._rings])
        self._finish(self._rings)
        return failed

    def read(self) -> tuple[int, int, int]:
        """Datagrams that were noted, that found no room to be noted (they may come twice), and that were left out."""
        return self._overlap.read()

    def _rest(self, intakes: Sequence[Intake | RingIntake], *, empty: bool = False) -> None:
        for intake in intakes:
            intake.rx.rest(empty=empty)
        self._wake()
        self._until(lambda: all(intake.rx.settled for intake in intakes), "comes to rest")

    def _go_on(self, intakes: Sequence[Intake | RingIntake]) -> None:
        for intake in intakes:
            intake.rx.go_on()
        self._wake()

    def _finish(self, intakes: Sequence[Intake | RingIntake]) -> None:
        self._until(lambda: not any(intake.rx.overlapping for intake in intakes), "reads what came before")
        for intake in intakes:
            intake.rx.set_overlap(None)

    def _settle(self) -> None:
        """Where only blocks are read that the kernel has closed, its timer closes the last one."""
        if not ring.READS_OPEN:
            time.sleep(ring.SETTLE_SECONDS)

    def _wake(self) -> None:
        for worker in self._workers:
            worker.worker.wake()

    def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        pause = 0.00005
        while not done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no worker {what}")
            time.sleep(pause)
            pause = min(pause * 2, 0.002)
