"""The supervisor: owns workers, listener sockets, ways to receivers and their counters, and changes them while
datagrams flow.

Purpose: turns one PlanSpec into running workers and the next into a difference. Invariants: everything that can fail
fails before the first publish, and then nothing has changed; a socket is read by one worker at a time; a counter has
one writer; what stays (same name, nothing changed) keeps socket and countdown; nothing is closed before every worker
that used it has left the plan that names it. Called by reload and service (apply, drain_and_stop, housekeeping) and
by metrics and http (readings, route). It must never take a lock that a worker takes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from samplicator import _fastpath, ring
from samplicator._fastpath import Plan
from samplicator.engines import ListenerState, ReceiverState, add_up
from samplicator.neighbours import Neighbours
from samplicator.plan import PlanSpec
from samplicator.readings import FlowSession, FlowTemplate, Readings, Route
from samplicator.routing import widened
from samplicator.supervisor.build import Build, BuildError, Running
from samplicator.supervisor.standings import Standings
from samplicator.supervisor.thread import TraceCallback, WorkerThread

if TYPE_CHECKING:
    from samplicator.links import Links

__all__ = ["BuildError", "Supervisor", "WorkerStuck"]

log = logging.getLogger(__name__)

ADOPT_SECONDS: Final = 10.0
"""How long a worker may take to adopt a plan: it may have to drain a socket first, for a second at most each."""
HEARTBEAT_SECONDS: Final = 5.0
"""A worker beats at least once a second; older than this it is stuck."""

REFUSED: Final = {
    "segment": "the kernel refuses segmented sends (UDP_SEGMENT): datagrams leave one by one",
    "transparent": "the kernel refuses sockets for exporters' ports: copies leave by the raw socket",
    "packet": "the kernel refuses its frames: copies leave by the raw socket",
}
_HEARTBEAT: Final = _fastpath.WORKER_FIELDS.index("heartbeat_ns")


class WorkerStuck(RuntimeError):
    """A worker did not adopt its plan in time; nothing it may still use was closed."""


class Supervisor:
    """See above. One per process; apply, housekeeping and drain_and_stop exclude each other, readings() waits for
    nobody.
    """

    def __init__(self, *, descriptor_limit: int = 1 << 30, trace: TraceCallback | None = None) -> None:
        self.generation = 0
        self.plan_started_unix = 0.0
        self.spec: PlanSpec | None = None
        self._lock = threading.Lock()
        self._view_lock = threading.Lock()  # what readings() shows changes under it; no worker takes it
        self._descriptor_limit = descriptor_limit
        self._trace = trace
        self._running = Running()
        self._plan: Plan | None = None
        self._gone_latency: tuple[int, ...] = (0,) * (len(_fastpath.LATENCY_BOUNDS_NS) + 1)
        self._gone_latency_sum = 0
        self._debris: list[Callable[[], None]] = []
        self._links: Links | None = None
        self._neighbours = Neighbours()
        self._standings = Standings(self._running)

    # ------------------------------------------------------------------ apply

    def apply(self, spec: PlanSpec) -> None:
        """Makes `spec` run. Raises OSError (BuildError) when something cannot be opened: then nothing has changed.
        WorkerStuck: a worker hangs.
        """
        with self._lock:
            build = Build(spec, self._running, generation=self.generation + 1, trace=self._trace)
            try:
                build.open(self._descriptor_limit)
                moved = [i for i, owner in build.owners.items() if i.owner is not None and i.owner != owner]
                told = widened(self.spec, spec) if self.spec is not None else set()
                plans = build.plans(self.generation + 1, without=moved, told=told)
                last = build.plans(self.generation + 2) if moved else {}
            except BaseException:
                build.undo()
                raise
            self._publish(build, plans, last)

    def _publish(self, build: Build, plans: dict[int, Plan], last: dict[int, Plan]) -> None:
        spec = build.spec
        leaving = self._running.workers[spec.workers :]
        self._stop_rings(build)
        build.mark_flow()
        self._standings.arrange(build.receivers, spec)
        joined = [state for state in build.joined() if not state.standing.waiting] if self._running.workers else []
        for state in joined:
            state.replay()
        self._hand_out(build.workers, plans)
        for worker in leaving:
            worker.worker.publish(Plan(self.generation, [], [], []))
        self._commit(build)
        self._plan = (last or plans)[0]
        self._wait([*build.workers, *leaving])
        if last:  # second phase: the losers have let go, now the gainers get the sockets
            self._hand_out(build.workers, last)
        for intake, owner in build.owners.items():
            intake.owner = owner
        for worker in leaving:
            self._retire_worker(worker)
        self._wait(build.workers)
        if joined or spec.pools:
            self._wake(build.workers)
        self._adjust_rings(build)
        self._follow_links()
        while self._debris:
            self._debris.pop()()
        for worker in build.workers:
            cpu = spec.cpus[worker.index % len(spec.cpus)] if spec.cpus else None
            if cpu != worker.cpu:
                worker.pin(cpu)
        for listener in build.listeners.values():
            for intake in listener.sockets():
                if intake.requested != spec.receive_buffer:
                    intake.resize(spec.receive_buffer)

    @staticmethod
    def _wake(workers: Sequence[WorkerThread]) -> None:
        for worker in workers:
            worker.worker.wake()

    def _stop_rings(self, build: Build | None) -> None:
        """Rings that do not stay (build None: all) take no more; what they took is handed over to the workers."""
        staying = {id(part.group) for parts in build.rings.values() for part in parts.values()} if build else set()
        going = [
            group
            for state in self._running.listeners.values()
            for group in state.rings.values()
            if id(group) not in staying
        ]
        for group in going:
            group.stop()
        if going:
            time.sleep(ring.SETTLE_SECONDS)

    def _adjust_rings(self, build: Build) -> None:
        """New rings get their share, and rings that run the new addresses."""
        for name, parts in build.rings.items():
            for part in parts.values():
                try:
                    part.group.select()
                    if part.group.spec != part.spec:
                        part.group.take(part.spec)
                except OSError as error:
                    log.error("listener %r: ring on %s stays as it was: %s", name, part.spec.interface, error.strerror)
        if any(build.rings.values()):
            self._wake(build.workers)

    def _hand_out(self, workers: Sequence[WorkerThread], plans: dict[int, Plan]) -> None:
        self.generation = plans[0].generation
        for worker in workers:
            worker.worker.publish(plans[worker.index])

    def _commit(self, build: Build) -> None:
        """From here on the new plan is what runs; what it no longer names becomes debris, closed when nobody can use
        it any more.
        """
        for name, receiver in self._running.receivers.items():
            self._debris.append(partial(receiver.close_but, build.receivers.get(name)))
        with self._view_lock:
            for name, listener in build.listeners.items():
                listener.leaving += [intake for intake in listener.open() if intake not in build.owners]
                listener.intakes = build.groups[name]
                listener.receive, listener.receive_why = build.receive[name]
                listener.rings = {}
                for interface, part in build.rings[name].items():
                    part.group.intakes = part.intakes
                    listener.rings[interface] = part.group
                if listener.leaving:
                    self._debris.append(partial(self._close_leaving, listener))
            for name in self._running.listeners.keys() - build.listeners.keys():
                gone = self._running.listeners[name]
                gone.leaving += gone.open()
                gone.intakes = {}
                gone.rings = {}
                self._debris.append(partial(self._close_leaving, gone))
            self._running.listeners = build.listeners
            self._running.receivers = build.receivers
            for receiver in build.receivers.values():
                receiver.reach.adopt(receiver.spec)
            self._running.pool_ids = build.pool_ids
            self._running.pools_made = max([self._running.pools_made, *build.pool_ids.values()])
            self._running.workers = build.workers
            self.spec = build.spec
            self._running.batch = self._running.batch or build.spec.batch
            self._running.max_datagram = self._running.max_datagram or build.spec.max_datagram
            if self._running.max_delay_us < 0:
                self._running.max_delay_us = build.spec.max_delay_us
            self.plan_started_unix = time.time()

    def _follow_links(self) -> None:
        """Has the next hops of packet receivers followed, from the first such receiver on."""
        states = {name: state for name, state in self._running.receivers.items() if state.spec.engine == "packet"}
        if not states and self._links is None:
            return
        from samplicator import links  # heavy, and most plans have no such receiver

        if self._links is None:
            self._links = links.Links()
        self._links.follow(
            {
                name: links.Target(state.spec.address, state.spec.scope_id, state.set_link)
                for name, state in states.items()
            }
        )

    def _close_leaving(self, state: ListenerState) -> None:
        with self._view_lock:
            gone = state.retire()
        for intake in gone:
            intake.close()

    def _wait(self, workers: Sequence[WorkerThread]) -> None:
        """Until every worker has adopted the newest plan; bounded."""
        deadline = time.monotonic() + ADOPT_SECONDS
        pause = 0.00005
        for worker in workers:
            while worker.worker.generation < self.generation:
                if worker.failed or time.monotonic() > deadline:
                    text = f"worker {worker.index} has not adopted plan {self.generation}"
                    log.error("%s: it hangs; nothing that it may use is closed", text)
                    raise WorkerStuck(text)
                time.sleep(pause)
                pause = min(pause * 2, 0.002)

    def _retire_worker(self, worker: WorkerThread) -> None:
        if not worker.end(0, 5.0):
            log.error("worker %d does not end", worker.index)
        counts, total = worker.worker.latency()
        with self._view_lock:
            self._gone_latency = add_up([self._gone_latency, counts])
            self._gone_latency_sum += total

    # ------------------------------------------------------------------ end

    def drain_and_stop(self, timeout: float) -> None:
        """Forwards what is queued, for `timeout` seconds at most, ends the workers and closes everything."""
        with self._lock:
            self._stop_rings(None)
            for worker in self._running.workers:
                worker.worker.stop(int(timeout * 1000))
            deadline = time.monotonic() + timeout + 2.0
            for worker in self._running.workers:
                worker.thread.join(max(0.0, deadline - time.monotonic()))
            if any(worker.thread.is_alive() for worker in self._running.workers):
                log.error("a worker does not end; its sockets stay open until the process is gone")
                return
            for worker in self._running.workers:
                worker.close()
            if self._links is not None:
                self._links.close()
            left = 0
            for listener in self._running.listeners.values():
                for intake in listener.open():
                    left += intake.memory().queue_bytes
                    intake.close()
            for receiver in self._running.receivers.values():
                receiver.close_but(None)
            self._running.workers = []
            if self._running.ingress is not None:
                self._running.ingress.close()
            if left:
                log.warning("%d bytes of socket queue were left unread after %.1f s of draining", left, timeout)

    # ------------------------------------------------------------------ looking at it

    def readings(self) -> Readings:
        """All counters now. Takes no lock that a worker takes."""
        with self._view_lock:
            listeners = tuple(state.read() for state in self._running.listeners.values())
            receivers = list(self._running.receivers.values())
            workers = list(self._running.workers)
            latency, latency_sum = [self._gone_latency], self._gone_latency_sum
            pools = self._standings.pools(self.spec) if self.spec is not None else ()
        for worker in workers:
            counts, total = worker.worker.latency()
            latency.append(counts)
            latency_sum += total
        return Readings(
            generation=self.generation,
            listeners=listeners,
            receivers=tuple(state.read() for state in receivers),
            workers=tuple(worker.read() for worker in workers),
            latency_counts=add_up(latency),
            latency_sum_ns=latency_sum,
            plan_started_unix=self.plan_started_unix,
            flow=self._running.flows.read(),
            pools=pools,
        )

    def flow_sessions(
        self, worker: int = 0, after: int = 0, limit: int = 1000
    ) -> tuple[list[FlowSession], tuple[int, int] | None]:
        """Exporters' observation domains, a page: see Flows.sessions."""
        return self._running.flows.sessions(worker, after, limit)

    def flow_templates(self, worker: int, number: int) -> list[FlowTemplate]:
        """Templates and options data of one of them."""
        return self._running.flows.templates(worker, number)

    def received(self) -> int:
        """Datagrams received so far, whatever became of them."""
        with self._view_lock:
            return sum(i.counters.read()[0] for state in self._running.listeners.values() for i in state.open())

    def stuck(self, limit_seconds: float = HEARTBEAT_SECONDS) -> str:
        """Which worker has not shown a heartbeat for so long, and for how long; "" when all are well."""
        now = time.time_ns()
        for worker in list(self._running.workers):
            if worker.failed or not worker.thread.is_alive():
                return f"worker {worker.index} has ended"
            age = (now - max(worker.worker.read()[_HEARTBEAT], worker.started_ns)) / 1e9
            if age > limit_seconds:
                return f"worker {worker.index} has shown no heartbeat for {age:.0f} s"
        return ""

    def housekeeping(self) -> tuple[str, ...]:
        """Every few seconds: path MTU, receivers that had no route, what is up. Returns receivers whose own source
        address is gone: apply() opens them anew.
        """
        with self._lock:
            now = time.monotonic()
            self._follow([state for state in self._running.receivers.values() if state.refresh(now)])
            for state in self._running.receivers.values():
                for feature in state.newly_given_up():
                    log.warning("receiver %r: %s; given up until it is opened anew", state.spec.name, REFUSED[feature])
            if self._plan is not None and self.spec is not None:
                self._standings.mark_templates(self._plan, self.spec)
            return tuple(name for name, state in self._running.receivers.items() if state.lost)

    def look(self) -> None:
        """Several times a second: the state of the receivers and what follows from it. Does nothing while a plan
        changes.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            now = time.monotonic()
            self._follow([state for state in self._running.receivers.values() if state.look(now)])
        finally:
            self._lock.release()

    def _follow(self, changed: Sequence[ReceiverState]) -> None:
        if changed:
            self._standings.follow(changed)
            self._wake(self._running.workers)
        self._standings.finish_returns()

    def watch_neighbours(self) -> None:
        """Several times a second: tells the datapath whose next hop does not answer."""
        with self._lock:
            states = list(self._running.receivers.values())
            try:
                gone = self._neighbours.look({s.spec.name: (s.spec.address, s.spec.scope_id) for s in states})
            except OSError as error:
                log.debug("neighbour table: %s", error)
                return
            for state in states:
                state.set_unresolved(state.spec.name in gone)

    def route(self, address: bytes, port: int = 0, listener: str = "") -> Route:
        """Who gets the datagrams of an exporter now. The listener is named, or found by a port of its; else the
        first.
        """
        plan, spec = self._plan, self.spec
        if plan is None or spec is None:
            raise RuntimeError("no plan runs")
        names = [item.name for item in spec.listeners]
        if not listener:
            by_port = [item.name for item in spec.listeners if any(s.port == port for s in item.sockets)]
            listener = (by_port or names)[0]
        if listener not in self._running.listeners:
            raise KeyError(listener)
        rules, ways, denied = plan.route(address, self._running.listeners[listener].slot)
        return Route(
            rules=tuple(spec.rules[index].text for index in rules),
            rule_indexes=rules,
            receivers=tuple(spec.receivers[index].name for index in ways if index < len(spec.receivers)),
            denied=denied,
            pools=tuple(spec.pools[i - len(spec.receivers)].name for i in ways if i >= len(spec.receivers)),
        )

    def listener_name(self, slot: int) -> str:
        """Name of the listener whose sockets carry this index (see Worker.trace)."""
        return next((state.name for state in self._running.listeners.values() if state.slot == slot), "")

    def listener_names(self) -> dict[int, str]:
        """The same, of all."""
        return {state.slot: state.name for state in list(self._running.listeners.values())}

    def grants(self) -> dict[str, tuple[int, int]]:
        """Receive buffer per socket by listener: (asked for, least granted), in bytes."""
        with self._view_lock:
            return {
                name: (
                    max((intake.requested for intake in state.sockets()), default=0),
                    min((intake.granted for intake in state.sockets()), default=0),
                )
                for name, state in self._running.listeners.items()
            }
