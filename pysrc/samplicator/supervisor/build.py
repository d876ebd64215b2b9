"""Build: everything that the next plan needs and that does not run yet, opened; or nothing.

Purpose: the half of a change that can fail. Invariants: what runs is only looked at; whatever open() has made, undo()
unmakes; a receiver or listener whose spec is the same is taken over with its sockets and counters. Called by
Supervisor.apply, on the reload's thread. It must never publish a plan that names a socket.
"""

from __future__ import annotations

import errno
import itertools
import socket
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from samplicator import ring, sockets
from samplicator._fastpath import Plan, TxCounters, Worker
from samplicator.config.address import endpoint_text
from samplicator.engines import (
    FastRules,
    Intake,
    ListenerState,
    Path,
    ReceiverState,
    RingGroup,
    RingIntake,
    Standing,
    Way,
    fast_pools,
    meets,
    receiver_key,
    socket_key,
)
from samplicator.engines.receivers import NO_ROUTE
from samplicator.ingress import Ingress
from samplicator.plan import ListenerSpec, PlanSpec, ReceiverSpec, RingSpec, SocketSpec
from samplicator.probes import UNREACHABLE
from samplicator.reach import Reach
from samplicator.supervisor.flows import Flows
from samplicator.supervisor.thread import TraceCallback, WorkerThread

SPARE_DESCRIPTORS: Final = 64
"""Descriptors kept free for HTTP, files, name look-ups and probes."""


class BuildError(OSError):
    """The kernel refused a part of a plan. where: path of that part in the configuration, as ("listener", 0)."""

    def __init__(self, error_number: int, text: str, where: tuple[str | int, ...] = ()) -> None:
        super().__init__(error_number, text)
        self.text = text
        self.where = where

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)
class Running:
    """What runs now. batch, max_datagram and max_delay_us are of the first plan: they hold until a restart. pool_ids:
    by name, kept while the pool exists; pools_made: the last of them.
    """

    listeners: dict[str, ListenerState] = field(default_factory=dict)
    receivers: dict[str, ReceiverState] = field(default_factory=dict)
    workers: list[WorkerThread] = field(default_factory=list)
    ingress: Ingress | None = None
    batch: int = 0
    max_datagram: int = 0
    max_delay_us: int = -1
    flows: Flows = field(default_factory=Flows)
    pool_ids: dict[str, int] = field(default_factory=dict)
    pools_made: int = 0


@dataclass(slots=True, eq=False)
class RingPart:
    """The rings of a listener on one interface in the next state. fresh: the group does not run yet."""

    group: RingGroup
    spec: RingSpec
    intakes: list[RingIntake]
    fresh: bool


class Build:
    """The next state in the making. groups: the sockets of each listener, one list per configured socket; rings: its
    rings by interface; receive: how it receives and why.
    """

    def __init__(self, spec: PlanSpec, running: Running, *, generation: int, trace: TraceCallback | None) -> None:
        self.spec = spec
        self.listeners: dict[str, ListenerState] = {}
        self.groups: dict[str, dict[SocketSpec, list[Intake]]] = {}
        self.rings: dict[str, dict[str, RingPart]] = {}
        self.receive: dict[str, tuple[str, str]] = {}
        self.receivers: dict[str, ReceiverState] = {}
        self.workers: list[WorkerThread] = []
        self.owners: dict[Intake | RingIntake, int] = {}
        new = itertools.count(running.pools_made + 1)
        self.pool_ids = {pool.name: running.pool_ids.get(pool.name) or next(new) for pool in spec.pools}
        self._running = running
        self._generation = generation
        self._trace = trace
        self._intakes: list[Intake | RingIntake] = []
        self._ways: list[Way] = []
        self._paths: list[Path] = []
        self._threads: list[WorkerThread] = []

    def open(self, descriptor_limit: int) -> None:
        """Opens what is missing. Raises OSError; undo() is the caller's."""
        check_descriptors(self.spec, descriptor_limit)
        self._open_states()
        self._open_listeners()
        self._open_workers()
        self._open_receivers()
        self._install_rings()
        # socket k of a listener is read by worker k modulo their number
        for groups in self.groups.values():
            for group in groups.values():
                self.owners.update((intake, k % self.spec.workers) for k, intake in enumerate(group))
        for part in self._ring_parts():
            self.owners.update((intake, k % self.spec.workers) for k, intake in enumerate(part.intakes))

    def undo(self) -> None:
        for thread in self._threads:
            thread.end(0, 2.0)
        for part in self._ring_parts():
            if part.fresh:
                part.group.stop(part.intakes)
        for intake in self._intakes:
            intake.close()
        for way in self._ways:
            way.close()
        for path in self._paths:
            path.close()

    def plans(
        self, generation: int, *, without: Sequence[Intake | RingIntake] = (), told: Set[str] = frozenset()
    ) -> dict[int, Plan]:
        """A plan for each worker; the sockets in `without` are in none. told: names of the receivers that get the
        templates of exporters new to them.
        """
        slots = {index: self.listeners[listener.name].slot for index, listener in enumerate(self.spec.listeners)}
        rules = FastRules(self.spec.rules, len(self.spec.receivers), slots)
        pools = fast_pools(self.spec.pools, self.pool_ids)
        states = [self.receivers[receiver.name] for receiver in self.spec.receivers]
        held_back = set(without)
        return {
            worker.index: Plan(
                generation,
                [i.rx for i, owner in self.owners.items() if owner == worker.index and i not in held_back],
                [state.ways[worker.index].tx for state in states],
                rules,
                pools,
                [index for index, receiver in enumerate(self.spec.receivers) if receiver.name in told],
            )
            for worker in self.workers
        }

    def joined(self) -> list[ReceiverState]:
        """Receivers that collectors' templates are unknown to: new ones, and those that moved."""
        running = self._running.receivers
        return [
            state
            for name, state in self.receivers.items()
            if name not in running or meets(running[name].spec) != meets(state.spec)
        ]

    def mark_flow(self) -> None:
        """Whether the sockets' datagrams go through the flow stage; to be called when nothing can fail any more."""
        for wanted in self.spec.listeners:
            intakes: list[Intake | RingIntake] = [i for group in self.groups[wanted.name].values() for i in group]
            intakes += [i for part in self.rings[wanted.name].values() for i in part.intakes]
            for intake in intakes:
                intake.rx.set_flow(wanted.flow)

    # ------------------------------------------------------------------ listeners

    def _open_states(self) -> None:
        """Listeners and their rings, which take nothing yet. The kernel makes one wait for it at every ring (a grace
        period of RCU, tens of milliseconds): no ring may be filling up while others are opened.
        """
        slots = {running.slot for running in self._running.listeners.values()}
        for wanted in self.spec.listeners:
            state = self._running.listeners.get(wanted.name)
            if state is None:
                slot = next(i for i in range(len(slots) + 1) if i not in slots)
                slots.add(slot)
                state = ListenerState(wanted.name, slot)
            self.listeners[wanted.name] = state
            self._open_rings(wanted, state)

    def _open_listeners(self) -> None:
        """Sockets. A new listener has its rings installed before its sockets are bound, so that nothing comes twice."""
        receivers = self.spec.receivers
        keep = {"ttl": any(r.ttl == 0 for r in receivers), "tos": any(r.tos < 0 for r in receivers)}
        on_port: dict[int, list[socket.socket]] = {}
        for running in self._running.listeners.values():
            for intake in running.sockets():
                on_port.setdefault(intake.spec.port, []).append(intake.sock)
        for wanted in self.spec.listeners:
            state = self.listeners[wanted.name]
            if not state.intakes:
                self._install(wanted)
            groups = self.groups[wanted.name] = {}
            for key in map(socket_key, wanted.sockets):
                group = groups[key] = list(state.intakes.get(key, ()))
                for intake in group:
                    sockets.set_kept_fields(intake.sock, key, **keep)
                self._fill(group, wanted, key, state.slot, keep, on_port.setdefault(key.port, []))

    # ------------------------------------------------------------------ rings

    def _ring_parts(self) -> list[RingPart]:
        return [part for parts in self.rings.values() for part in parts.values()]

    def _open_rings(self, wanted: ListenerSpec, state: ListenerState) -> None:
        """Opens rings until there is one for each worker on each interface."""
        self.rings[wanted.name] = {}
        self.receive[wanted.name] = wanted.receive, wanted.receive_why
        try:
            for spec in wanted.rings:
                self._open_ring(wanted, spec, state)
        except BuildError as error:
            self._do_without_rings(wanted, error)

    def _open_ring(self, wanted: ListenerSpec, spec: RingSpec, state: ListenerState) -> None:
        old = state.rings.get(spec.interface)
        try:
            if old is not None and old.spec.index == spec.index:
                part = RingPart(old, spec, list(old.intakes), False)
                ring.socket_filter(spec.matches)  # it fits, or nothing changes
            else:
                running = self._running
                running.ingress = running.ingress or Ingress()
                group = RingGroup(f"{wanted.name} {spec.interface} {spec.index}", spec, running.ingress)
                part = RingPart(group, spec, [], True)
            self.rings[wanted.name][spec.interface] = part
            while len(part.intakes) < self.spec.workers:
                intake = part.group.open_member(state.slot, self.spec.ring_buffer, self.spec.workers)
                self._intakes.append(intake)
                part.intakes.append(intake)
        except OSError as error:
            raise ring_error(wanted, spec, error) from error

    def _install_rings(self) -> None:
        """Those of listeners that run already: when nothing else can fail."""
        for wanted in self.spec.listeners:
            self._install(wanted)

    def _install(self, wanted: ListenerSpec) -> None:
        """New rings take datagrams from now on."""
        try:
            for part in self.rings[wanted.name].values():
                if part.fresh and not part.group.installed:
                    try:
                        part.group.install(part.intakes)
                    except OSError as error:
                        raise ring_error(wanted, part.spec, error) from error
        except BuildError as error:
            self._do_without_rings(wanted, error)

    def _do_without_rings(self, wanted: ListenerSpec, error: BuildError) -> None:
        """What receive = "auto" makes of a ring that cannot be had."""
        if wanted.ring_required:
            raise error
        for part in self.rings[wanted.name].values():
            opened = [intake for intake in part.intakes if intake in self._intakes]
            if part.fresh:
                part.group.stop(opened)
            for intake in opened:
                self._intakes.remove(intake)
                intake.close()
        self.rings[wanted.name] = {}
        self.receive[wanted.name] = "recvmmsg", f"auto: {error}"

    # ------------------------------------------------------------------ sockets

    def _fill(
        self,
        group: list[Intake],
        listener: ListenerSpec,
        key: SocketSpec,
        slot: int,
        keep: Mapping[str, bool],
        beside: list[socket.socket],
    ) -> None:
        """Opens sockets until there is one for each worker."""
        size = self.spec.receive_buffer
        while len(group) < self.spec.workers:
            try:
                sock = sockets.open_listener(key, receive_buffer=size, beside=beside, join=not group, **keep)
            except OSError as error:
                where = endpoint_text(key.address, key.port) + (f" on {key.interface}" if key.interface else "")
                text = f"listener {listener.name!r} cannot listen at {where}: {error.strerror}"
                raise BuildError(error.errno or 0, text, ("listener", listener.index)) from error
            try:
                intake = Intake(sock, key, slot, size)
            except BaseException:
                sock.close()
                raise
            self._intakes.append(intake)
            beside.append(sock)
            group.append(intake)

    # ------------------------------------------------------------------ workers, receivers

    def _open_workers(self) -> None:
        spec, running = self.spec, self._running
        self.workers = running.workers[: spec.workers]
        for index in range(len(self.workers), spec.workers):
            packet = self._packet_socket()
            try:
                worker = Worker(
                    batch=running.batch or spec.batch,
                    max_datagram=running.max_datagram or spec.max_datagram,
                    send_buffer=spec.send_buffer,
                    packet_fd=packet.fileno() if packet is not None else -1,
                    flow=running.flows.get(index, spec.flow_memory, spec.workers),
                    max_delay_us=spec.max_delay_us if running.max_delay_us < 0 else running.max_delay_us,
                )
            except BaseException:
                if packet is not None:
                    packet.close()
                raise
            if self._trace is not None:
                worker.trace(self._trace)
            thread = WorkerThread(index, worker, spec.cpus[index % len(spec.cpus)] if spec.cpus else None, packet)
            thread.start()
            self._threads.append(thread)
            self.workers.append(thread)

    def _packet_socket(self) -> socket.socket | None:
        """The worker's packet socket. It is there from the start where it may be, for a receiver may want it later."""
        try:
            return sockets.open_packet(self.spec.send_buffer)
        except OSError as error:
            if any(receiver.engine == "packet" for receiver in self.spec.receivers):
                raise BuildError(error.errno or 0, f'engine "packet": {error.strerror or error}') from error
            return None

    def _open_receivers(self) -> None:
        for index, wanted in enumerate(self.spec.receivers):
            try:
                self.receivers[wanted.name] = self._receiver(wanted)
            except OSError as error:
                where = endpoint_text(sockets.text_of(wanted.address), wanted.port)
                text = f"receiver {wanted.name!r} at {where}, engine {wanted.engine}: {error.strerror or error}"
                raise BuildError(error.errno or 0, text, ("receiver", index)) from error

    def _receiver(self, wanted: ReceiverSpec) -> ReceiverState:
        spec = self.spec
        old = self._running.receivers.get(wanted.name)
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
            self._paths.append(path)
        state = ReceiverState(
            spec=wanted,
            path=path,
            send_buffer=spec.send_buffer,
            generation_added=old.generation_added if old else self._generation,
            counters=dict(old.counters) if old else {},
            ways=ways,
            reach=old.reach if old is not None and same else Reach(wanted),
            standing=self._standing(wanted, path, old, same),
            told=old.told if old is not None and same else 0,
        )
        for index in range(len(ways), spec.workers):
            counters = state.counters.setdefault(index, TxCounters())
            way = path.open_way(counters, spec.send_buffer)
            self._ways.append(way)
            state.ways.append(way)
        return state

    @staticmethod
    def _standing(wanted: ReceiverSpec, path: Path, old: ReceiverState | None, same: bool) -> Standing:
        """What is known of the receiver: all of it when it stays, else what is counted."""
        if old is not None and same:
            return old.standing
        standing = Standing(waiting=bool(wanted.standby_for))
        if not path.routed:
            standing.state, standing.why = UNREACHABLE, NO_ROUTE
        if old is not None:
            standing.seen, standing.takeovers = old.standing.seen, old.standing.takeovers
            standing.waiting = old.standing.waiting if old.spec.standby_for else standing.waiting
        return standing


def ring_error(listener: ListenerSpec, spec: RingSpec, error: OSError) -> BuildError:
    text = f"listener {listener.name!r} cannot receive by ring on {spec.interface}: {error.strerror or error}"
    return BuildError(error.errno or 0, text, ("listener", listener.index, "receive"))


def check_descriptors(spec: PlanSpec, limit: int) -> None:
    """Says before anything is opened that it cannot all be opened. Old and new stand side by side only for what
    changes.
    """
    listening = sum(len(listener.sockets) + 2 * len(listener.rings) for listener in spec.listeners) * spec.workers
    sending = sum(1 + r.spoof for r in spec.receivers) * spec.workers
    reserved = sum(r.engine == "raw" and not r.spoof for r in spec.receivers)
    sending += sum(r.probe.kind != "off" for r in spec.receivers)
    need = listening + sending + reserved + 3 * spec.workers + SPARE_DESCRIPTORS  # epoll, eventfd and packet socket
    if need > limit:
        raise BuildError(
            errno.EMFILE,
            f"this plan needs {need} file descriptors ({listening} for listeners, {sending} for receivers, "
            f"{spec.workers} workers), the limit is {limit}: raise it (ulimit -Hn, systemd LimitNOFILE=) or use fewer "
            "workers",
        )
