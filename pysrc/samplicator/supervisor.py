"""The supervisor: owns workers, listener sockets, ways to receivers and their counters, and changes them while
datagrams flow.

Purpose: turns one PlanSpec into running workers and the next into a difference. Invariants: everything that can fail
fails before the first publish, and then nothing has changed; a socket is read by one worker at a time; a counter has
one writer; what stays (same name, nothing changed) keeps socket and countdown; nothing is closed before every worker
that used it has left the plan that names it. Called by reload and service (apply, drain_and_stop, housekeeping) and
by metrics and http (readings, route). It must never take a lock that a worker takes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from samplicator import _fastpath, sockets
from samplicator._fastpath import Plan, TxCounters, Worker
from samplicator.config.address import endpoint_text
from samplicator.engines import (
    Intake,
    ListenerState,
    Path,
    ReceiverState,
    Way,
    add_up,
    fast_rules,
    receiver_key,
    socket_key,
)
from samplicator.planner import ListenerSpec, PlanSpec, ReceiverSpec, SocketSpec
from samplicator.readings import Readings, Route, WorkerReading

log = logging.getLogger(__name__)

ADOPT_SECONDS: Final = 10.0
"""How long a worker may take to adopt a plan: it may have to drain a socket first, for a second at most each."""
SPARE_DESCRIPTORS: Final = 64
"""Descriptors kept free for HTTP, files, name look-ups and probes."""
HEARTBEAT_SECONDS: Final = 5.0
"""A worker beats at least once a second; older than this it is stuck."""

_HEARTBEAT: Final = _fastpath.WORKER_FIELDS.index("heartbeat_ns")

TraceCallback = Callable[[bytes, int, int, int, tuple[int, ...]], None]


class BuildError(OSError):
    """The kernel refused a part of a plan. where: path of that part in the configuration, as ("listener", 0)."""

    def __init__(self, error_number: int, text: str, where: tuple[str | int, ...] = ()) -> None:
        super().__init__(error_number, text)
        self.text = text
        self.where = where

    def __str__(self) -> str:
        return self.text


class WorkerStuck(RuntimeError):
    """A worker did not adopt its plan in time; nothing it may still use was closed."""


class _Thread:
    """A worker and the thread that is it."""

    def __init__(self, index: int, worker: Worker, cpu: int | None) -> None:
        self.index = index
        self.worker = worker
        self.cpu = cpu
        self.failed = False
        self.started_ns = time.time_ns()
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
            log.warning("worker %d cannot be pinned to CPU %s: %s", self.index, cpu, error.strerror)
            self.cpu = None

    def read(self) -> WorkerReading:
        return WorkerReading(
            index=self.index,
            cpu=self.cpu,
            counters=dict(zip(_fastpath.WORKER_FIELDS, self.worker.read(), strict=True)),
            generation=self.worker.generation,
        )

    def end(self, drain_ms: int, timeout: float) -> bool:
        self.worker.stop(drain_ms)
        self.thread.join(timeout)
        return not self.thread.is_alive()


class _Build:
    """What an apply() has opened so far, to be closed when it fails, and the state it leads to."""

    def __init__(self) -> None:
        self.intakes: list[Intake] = []
        self.ways: list[Way] = []
        self.paths: list[Path] = []
        self.threads: list[_Thread] = []
        self.listeners: dict[str, ListenerState] = {}
        self.groups: dict[str, dict[SocketSpec, list[Intake]]] = {}
        self.receivers: dict[str, ReceiverState] = {}
        self.workers: list[_Thread] = []

    def undo(self) -> None:
        for thread in self.threads:
            thread.end(0, 2.0)
        for intake in self.intakes:
            intake.sock.close()
        for way in self.ways:
            way.close()
        for path in self.paths:
            path.close()


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
        self._listeners: dict[str, ListenerState] = {}
        self._receivers: dict[str, ReceiverState] = {}
        self._workers: list[_Thread] = []
        self._plan: Plan | None = None
        self._gone_latency: tuple[int, ...] = (0,) * (len(_fastpath.LATENCY_BOUNDS_NS) + 1)
        self._gone_latency_sum = 0
        self._debris: list[Callable[[], None]] = []

    # ------------------------------------------------------------------ apply

    def apply(self, spec: PlanSpec) -> None:
        """Makes `spec` run. Raises OSError (BuildError) when something cannot be opened: then nothing has changed.
        WorkerStuck: a worker hangs.
        """
        with self._lock:
            build = _Build()
            try:
                self._check_descriptors(spec)
                self._open_listeners(spec, build)
                self._open_workers(spec, build)
                self._open_receivers(spec, build)
                owners = self._owners(spec, build)
                moved = [i for i, owner in owners.items() if i.owner is not None and i.owner != owner]
                plans = self._plans(spec, build, owners, self.generation + 1, without=moved)
                last = self._plans(spec, build, owners, self.generation + 2, without=[]) if moved else {}
            except BaseException:
                build.undo()
                raise
            self._publish(spec, build, owners, plans, last)

    def _check_descriptors(self, spec: PlanSpec) -> None:
        # a worker has an epoll and an eventfd; a reload holds old and new side by side only for what changed
        listening = sum(len(listener.sockets) for listener in spec.listeners) * spec.workers
        sending = sum(1 + (r.engine == "raw" and r.spoof) for r in spec.receivers) * spec.workers
        reserved = sum(r.engine == "raw" and not r.spoof for r in spec.receivers)
        need = listening + sending + reserved + 2 * spec.workers + SPARE_DESCRIPTORS
        if need > self._descriptor_limit:
            raise BuildError(
                errno.EMFILE,
                f"this plan needs {need} file descriptors ({listening} for listeners, {sending} for receivers, "
                f"{spec.workers} workers), the limit is {self._descriptor_limit}: raise it (ulimit -Hn, systemd "
                "LimitNOFILE=) or use fewer workers",
            )

    def _open_listeners(self, spec: PlanSpec, build: _Build) -> None:
        ttl, tos = any(r.ttl == 0 for r in spec.receivers), any(r.tos < 0 for r in spec.receivers)
        on_port: dict[int, list[socket.socket]] = {}
        for listener in self._listeners.values():
            for intake in listener.open():
                on_port.setdefault(intake.spec.port, []).append(intake.sock)
        slots = {listener.slot for listener in self._listeners.values()}
        for wanted in spec.listeners:
            state = self._listeners.get(wanted.name)
            if state is None:
                slot = next(i for i in range(len(slots) + 1) if i not in slots)
                slots.add(slot)
                state = ListenerState(wanted.name, slot)
            build.listeners[wanted.name] = state
            groups = build.groups[wanted.name] = {}
            for socket_spec in wanted.sockets:
                key = socket_key(socket_spec)
                group = list(state.intakes.get(key, ()))
                for intake in group:
                    sockets.set_kept_fields(intake.sock, key, ttl=ttl, tos=tos)
                beside = on_port.setdefault(key.port, [])
                while len(group) < spec.workers:
                    intake = self._open_intake(
                        wanted, key, state.slot, spec.receive_buffer, ttl, tos, beside, bool(group)
                    )
                    build.intakes.append(intake)
                    beside.append(intake.sock)
                    group.append(intake)
                groups[key] = group

    def _open_intake(
        self,
        listener: ListenerSpec,
        key: SocketSpec,
        slot: int,
        receive_buffer: int,
        ttl: bool,
        tos: bool,
        beside: Sequence[socket.socket],
        further: bool,
    ) -> Intake:
        try:
            sock = sockets.open_listener(
                key, receive_buffer=receive_buffer, ttl=ttl, tos=tos, beside=beside, join=not further
            )
        except OSError as error:
            where = endpoint_text(key.address, key.port) + (f" on {key.interface}" if key.interface else "")
            text = f"listener {listener.name!r} cannot listen at {where}: {error.strerror}"
            raise BuildError(error.errno or 0, text, ("listener", listener.index)) from error
        try:
            return Intake(sock, key, slot, receive_buffer)
        except BaseException:
            sock.close()
            raise

    def _open_workers(self, spec: PlanSpec, build: _Build) -> None:
        build.workers = self._workers[: spec.workers]
        first = self.spec or spec  # batch and max_datagram hold until a restart
        for index in range(len(build.workers), spec.workers):
            cpu = spec.cpus[index % len(spec.cpus)] if spec.cpus else None
            thread = _Thread(index, Worker(batch=first.batch, max_datagram=first.max_datagram), cpu)
            if self._trace is not None:
                thread.worker.trace(self._trace)
            thread.start()
            build.threads.append(thread)
            build.workers.append(thread)

    def _open_receivers(self, spec: PlanSpec, build: _Build) -> None:
        for index, wanted in enumerate(spec.receivers):
            try:
                build.receivers[wanted.name] = self._open_receiver(wanted, spec, build)
            except OSError as error:
                where = endpoint_text(sockets.text_of(wanted.address), wanted.port)
                text = f"receiver {wanted.name!r} at {where}, engine {wanted.engine}: {error.strerror or error}"
                raise BuildError(error.errno or 0, text, ("receiver", index)) from error

    def _open_receiver(self, wanted: ReceiverSpec, spec: PlanSpec, build: _Build) -> ReceiverState:
        old = self._receivers.get(wanted.name)
        same = (
            old is not None
            and not old.lost
            and old.send_buffer == spec.send_buffer
            and receiver_key(old.spec) == receiver_key(wanted)
        )
        if old is not None and same:
            path, ways = old.path, old.ways[: spec.workers]
        else:
            path, ways = Path(wanted), []
            build.paths.append(path)
        state = ReceiverState(
            spec=wanted,
            path=path,
            send_buffer=spec.send_buffer,
            generation_added=old.generation_added if old else self.generation + 1,
            counters=dict(old.counters) if old else {},
            ways=ways,
            up=old.up if old is not None and same else path.routed,
            seen=old.seen if old else (0,) * len(_fastpath.TX_FIELDS),
        )
        for index in range(len(ways), spec.workers):
            counters = state.counters.setdefault(index, TxCounters())
            way = path.open_way(counters, spec.send_buffer)
            build.ways.append(way)
            state.ways.append(way)
        return state

    def _owners(self, spec: PlanSpec, build: _Build) -> dict[Intake, int]:
        """Socket k of a listener is read by worker k modulo their number."""
        return {
            intake: k % spec.workers
            for groups in build.groups.values()
            for group in groups.values()
            for k, intake in enumerate(group)
        }

    def _plans(
        self, spec: PlanSpec, build: _Build, owners: dict[Intake, int], generation: int, *, without: Sequence[Intake]
    ) -> dict[int, Plan]:
        slots = {index: build.listeners[listener.name].slot for index, listener in enumerate(spec.listeners)}
        rules = fast_rules(spec.rules, slots)
        states = [build.receivers[receiver.name] for receiver in spec.receivers]
        held_back = set(without)
        return {
            worker.index: Plan(
                generation,
                [i.rx for i, owner in owners.items() if owner == worker.index and i not in held_back],
                [state.ways[worker.index].tx for state in states],
                rules,
            )
            for worker in build.workers
        }

    def _publish(
        self, spec: PlanSpec, build: _Build, owners: dict[Intake, int], plans: dict[int, Plan], last: dict[int, Plan]
    ) -> None:
        leaving = self._workers[spec.workers :]
        self._hand_out([*build.workers], plans)
        for worker in leaving:
            worker.worker.publish(Plan(self.generation, [], [], []))
        self._commit(spec, build, owners, leaving)
        self._plan = (last or plans)[0]
        self._wait([*build.workers, *leaving])
        if last:  # second phase: the losers have let go, now the gainers get the sockets
            self._hand_out(build.workers, last)
        for intake, owner in owners.items():
            intake.owner = owner
        for worker in leaving:
            self._retire_worker(worker)
        self._wait(build.workers)
        while self._debris:
            self._debris.pop()()
        for worker in build.workers:
            cpu = spec.cpus[worker.index % len(spec.cpus)] if spec.cpus else None
            if cpu != worker.cpu:
                worker.pin(cpu)
        for listener in build.listeners.values():
            for intake in listener.open():
                if intake.requested != spec.receive_buffer:
                    intake.resize(spec.receive_buffer)

    def _hand_out(self, workers: Sequence[_Thread], plans: dict[int, Plan]) -> None:
        self.generation = plans[0].generation
        for worker in workers:
            worker.worker.publish(plans[worker.index])

    def _commit(self, spec: PlanSpec, build: _Build, owners: dict[Intake, int], leaving: Sequence[_Thread]) -> None:
        """From here on the new plan is what runs; what it no longer names becomes debris, closed when nobody can use
        it any more.
        """
        for name, receiver in self._receivers.items():
            self._debris.append(partial(receiver.close_but, build.receivers.get(name)))
        with self._view_lock:
            for name, listener in build.listeners.items():
                listener.leaving += [intake for intake in listener.open() if intake not in owners]
                listener.intakes = build.groups[name]
                if listener.leaving:
                    self._debris.append(partial(self._close_leaving, listener))
            for name in self._listeners.keys() - build.listeners.keys():
                gone = self._listeners[name]
                gone.leaving += gone.open()
                gone.intakes = {}
                self._debris.append(partial(self._close_leaving, gone))
            self._listeners = build.listeners
            self._receivers = build.receivers
            self._workers = build.workers
            self.spec = spec
            self.plan_started_unix = time.time()

    def _close_leaving(self, state: ListenerState) -> None:
        with self._view_lock:
            gone = state.retire()
        for intake in gone:
            intake.sock.close()

    def _wait(self, workers: Sequence[_Thread]) -> None:
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

    def _retire_worker(self, worker: _Thread) -> None:
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
            for worker in self._workers:
                worker.worker.stop(int(timeout * 1000))
            deadline = time.monotonic() + timeout + 2.0
            for worker in self._workers:
                worker.thread.join(max(0.0, deadline - time.monotonic()))
            if any(worker.thread.is_alive() for worker in self._workers):
                log.error("a worker does not end; its sockets stay open until the process is gone")
                return
            left = 0
            for listener in self._listeners.values():
                for intake in listener.open():
                    left += intake.memory().queue_bytes
                    intake.sock.close()
            for receiver in self._receivers.values():
                receiver.close_but(None)
            self._workers = []
            if left:
                log.warning("%d bytes of socket queue were left unread after %.1f s of draining", left, timeout)

    # ------------------------------------------------------------------ looking at it

    def readings(self) -> Readings:
        """All counters now. Takes no lock that a worker takes."""
        with self._view_lock:
            listeners = tuple(state.read() for state in self._listeners.values())
            receivers = list(self._receivers.values())
            workers = list(self._workers)
            latency, latency_sum = [self._gone_latency], self._gone_latency_sum
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
        )

    def received(self) -> int:
        """Datagrams received so far, whatever became of them."""
        with self._view_lock:
            return sum(i.counters.read()[0] for state in self._listeners.values() for i in state.open())

    def stuck(self, limit_seconds: float = HEARTBEAT_SECONDS) -> str:
        """Which worker has not shown a heartbeat for so long, and for how long; "" when all are well."""
        now = time.time_ns()
        for worker in list(self._workers):
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
            for state in self._receivers.values():
                state.refresh()
            return tuple(name for name, state in self._receivers.items() if state.lost)

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
        if listener not in self._listeners:
            raise KeyError(listener)
        rules, receivers, denied = plan.route(address, self._listeners[listener].slot)
        return Route(
            rules=tuple(spec.rules[index].text for index in rules),
            rule_indexes=rules,
            receivers=tuple(spec.receivers[index].name for index in receivers),
            denied=denied,
        )

    def listener_name(self, slot: int) -> str:
        """Name of the listener whose sockets carry this index (see Worker.trace)."""
        return next((state.name for state in self._listeners.values() if state.slot == slot), "")

    def grants(self) -> dict[str, tuple[int, int]]:
        """Receive buffer per socket by listener: (asked for, least granted), in bytes."""
        with self._view_lock:
            return {
                name: (
                    max((intake.requested for intake in state.open()), default=0),
                    min((intake.granted for intake in state.open()), default=0),
                )
                for name, state in self._listeners.items()
            }
