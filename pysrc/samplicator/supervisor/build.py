"""Build: opens everything that the next plan needs and that does not run yet, or opens nothing.

Purpose: the half of a change that can fail. Invariants: Build only reads what runs; undo() closes everything that
open() has opened; a receiver or listener with an equal spec keeps its sockets and counters. Called by Supervisor.apply,
on the reload's thread. It must never publish a plan that names a socket.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import socket
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from samplicator._fastpath import Plan, Worker
from samplicator.datapath import aliases
from samplicator.datapath.doors import DoorIntake, Gateways
from samplicator.datapath.intakes import AnyIntake, Intake, ListenerState, RingGroup, RingIntake
from samplicator.datapath.rules import FastRules, fast_pools
from samplicator.datapath.thread import WorkerThread
from samplicator.health.receiver import ReceiverState
from samplicator.health.running import Running
from samplicator.host import abilities, listening, ring, sockets
from samplicator.host.ingress import Ingress
from samplicator.host.sources import Source
from samplicator.plan.sessions import DoorSpec
from samplicator.plan.spec import ListenerSpec, PlanSpec, RingSpec
from samplicator.supervisor import replicate
from samplicator.supervisor.incoming import Incoming
from samplicator.supervisor.outgoing import Outgoing
from samplicator.supervisor.ports import casts_of
from samplicator.supervisor.refusal import BuildError, check_descriptors, ring_error

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class RingPart:
    """The rings of a listener on one interface in the next state."""

    group: RingGroup
    spec: RingSpec
    intakes: list[RingIntake]

    @property
    def stays(self) -> bool:
        """Whether it runs, and goes on to take what it takes."""
        return self.group.taking and self.group.spec == self.spec


@dataclass(slots=True, eq=False)
class Step:
    """A plan for each worker, and the sockets that are read out before the next one."""

    plans: dict[int, Plan]
    emptied: list[Intake]


class Build:
    """The next state, while it is built. incoming: the sockets of the listeners; rings: of each listener, by interface;
    receive: how it receives and why; ingress, aliases: those that run, or new ones. Commits nothing: the supervisor
    owns what runs.
    """

    def __init__(
        self,
        spec: PlanSpec,
        running: Running,
        source: Source,
        *,
        generation: int,
        gateways: Gateways,
    ) -> None:
        """source: where listeners' sockets come from. gateways: what doors can lead to."""
        self.spec = spec
        self.listeners: dict[str, ListenerState] = {}
        self.rings: dict[str, dict[str, RingPart]] = {}
        self.receive: dict[str, tuple[str, str]] = {}
        self.workers: list[WorkerThread] = []
        self.owners: dict[AnyIntake, int] = {}
        self.casts = casts_of(spec)
        new = itertools.count(running.pools_made + 1)
        self.pool_ids = {pool.name: running.pool_ids.get(pool.name) or next(new) for pool in spec.pools}
        self.ingress = running.ingress
        self.aliases = running.aliases
        self._running = running
        self._gateways = gateways
        self.doors: dict[str, dict[DoorSpec, list[DoorIntake]]] = {}
        self.incoming = Incoming(spec, running, source, self.casts, self.tolerated)
        self.outgoing = Outgoing(spec, running, gateways, generation, self.tolerated)
        self._intakes: list[AnyIntake] = []
        self._threads: list[WorkerThread] = []
        self._rings_take_runs = abilities.rings_take_runs()
        doors = len(spec.udp) < len(spec.receivers)  # to gateways
        self._keep = {
            "ttl": doors or any(u.ttl == 0 for u in spec.udp),
            "tos": doors or any(u.tos < 0 for u in spec.udp),
        }

    @property
    def receivers(self) -> dict[str, ReceiverState]:
        return self.outgoing.states

    def open(self, descriptor_limit: int) -> None:
        """Opens what is missing. Raises OSError; undo() is the caller's."""
        check_descriptors(self.spec, descriptor_limit)
        if not self.listeners:
            self.open_states()
        if self.aliases is None and any(receiver.apart for receiver in self.spec.receivers):
            self.aliases = aliases.make(self.spec.alias_file)
        if not self.incoming.handed_in:
            self._open_listeners()
        self._open_workers()
        self.outgoing.open()
        if self.incoming.handed_in:
            self.incoming.commit()
            self._open_listeners()
        # socket k of a listener is read by worker k modulo their number
        together: list[Sequence[AnyIntake]] = [group for by in self.incoming.groups.values() for group in by.values()]
        together += [*(p.intakes for p in self.ring_parts()), *(g for by in self.doors.values() for g in by.values())]
        for group in together:
            self.owners.update((intake, k % self.spec.workers) for k, intake in enumerate(group))

    def go_on_from(self, begun: Build) -> None:
        """What another build of the same plan has opened by open_states() belongs to this one."""
        self.listeners, self.rings, self.receive = begun.listeners, begun.rings, begun.receive
        self.ingress, self._intakes = begun.ingress, begun._intakes

    def undo(self) -> None:
        for thread in self._threads:
            thread.end(0, 2.0)
        for intake in self._intakes:
            intake.close()
        self.outgoing.undo()
        self.incoming.undo()
        if self.ingress is not None and self.ingress is not self._running.ingress:
            self.ingress.close()

    @property
    def keep(self) -> Mapping[str, bool]:
        """Which header fields receivers need with each datagram."""
        return self._keep

    def keep_fields(self, *, adopted: bool) -> None:
        """Has the sockets that stay hand over what receivers keep (TTL, TOS): what is new before the plan that wants it
        is published, what is no longer wanted when every worker has left the plan that did (adopted).
        """
        if self._keep == self._running.keep:
            return
        both = {name: wanted or self._running.keep[name] for name, wanted in self._keep.items()}
        for intake in self.incoming:
            with contextlib.suppress(OSError):
                listening.set_kept_fields(intake.sock, intake.spec, **(self._keep if adopted else both))

    def steps(self, generation: int, replay_to: Set[str] = frozenset()) -> list[Step]:
        """Plans for each worker, to be published one after the other, each when all workers run the one before.

        generation: of the first. replay_to: names of the receivers that get the templates of exporters new to them.
        One plan is enough, unless a socket goes from worker to worker (its old one must have let go of it before), or
        a socket gets what another one got before (Incoming.read_first): the other one is read out first.
        """
        moved = {i for i, owner in self.owners.items() if i.owner is not None and i.owner != owner}
        moved |= self.incoming.passed_on
        concerned, oldest_first = self.incoming.read_first()
        steps: list[tuple[set[AnyIntake], list[Intake]]] = []  # who is not read, and who is read out by worker 0
        for intake in oldest_first:
            steps += [(moved | concerned, [intake]), (moved | concerned, [])]
        if moved and not oldest_first:
            steps.append((moved, []))
        steps.append((set(), []))
        return [
            Step(
                self.plans(
                    generation + number, without=without, replay_to=frozenset() if number else replay_to, first=first
                ),
                first,
            )
            for number, (without, first) in enumerate(steps)
        ]

    def plans(
        self,
        generation: int,
        *,
        without: Set[AnyIntake] = frozenset(),
        replay_to: Set[str] = frozenset(),
        first: Sequence[Intake] = (),
        unread: bool = False,
    ) -> dict[int, Plan]:
        """A plan for each worker; the sockets in `without` are in none, but worker 0 reads those in `first`, in this
        order. unread: see Plan.
        """
        slots = {index: self.listeners[listener.name].slot for index, listener in enumerate(self.spec.listeners)}
        rules = FastRules(self.spec.rules, len(self.spec.receivers), slots)
        pools = fast_pools(self.spec.pools, self.pool_ids)
        states = [self.receivers[receiver.name] for receiver in self.spec.receivers]
        read = [*((i, 0) for i in first), *((i, owner) for i, owner in self.owners.items() if i not in without)]
        return {
            worker.index: Plan(
                generation,
                [i.rx for i, owner in read if owner == worker.index],
                [state.ways[worker.index].tx for state in states],
                rules,
                pools,
                [index for index, receiver in enumerate(self.spec.receivers) if receiver.name in replay_to],
                self.aliases.handle if self.aliases is not None else None,
                unread,
            )
            for worker in self.workers
        }

    def mark_flow(self) -> None:
        """Whether the sockets' datagrams go through the flow stage, and come coalesced; to be called when nothing can
        fail any more.
        """
        for wanted in self.spec.listeners:
            rings = self.rings[wanted.name]
            for intake in (i for group in self.incoming.groups[wanted.name].values() for i in group):
                listening.take_runs(intake.sock, self._takes_runs(rings))
                intake.rx.set_flow(wanted.flow)
            for member in (i for part in rings.values() for i in part.intakes):
                member.rx.set_flow(wanted.flow)
            for door in (i for group in self.doors[wanted.name].values() for i in group):
                door.rx.set_flow(wanted.flow)

    # ------------------------------------------------------------------ listeners

    def open_states(self) -> None:
        """Listeners and their rings, which receive nothing yet. Each ring takes the kernel tens of milliseconds."""
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
        """Opens sockets. Datagrams come in by them until the rings take over (supervisor.rings)."""
        self.incoming.begin()
        for wanted in self.spec.listeners:
            state = self.listeners[wanted.name]
            self.incoming.open(wanted, state, runs=self._takes_runs(self.rings[wanted.name]), **self._keep)
            self._open_doors(wanted, state)
            if wanted.name in self.incoming.hindered:  # a ring would take what another program's socket is to get
                self._drop_rings(wanted, "some of the listener's sockets cannot be opened")
        self.incoming.end(self.listeners)

    def _open_doors(self, wanted: ListenerSpec, state: ListenerState) -> None:
        """Opens doors until there is one for each worker; a door whose gateway has ended is opened again."""
        self.doors[wanted.name] = {}
        for spec in wanted.doors:
            group = [intake for intake in state.doors.get(spec, ()) if not intake.rx.shut]
            self.doors[wanted.name][spec] = group
            while len(group) < self.spec.workers:
                try:
                    size = self.spec.receive_buffer
                    intake = DoorIntake(spec, wanted.name, state.slot, len(group), size, self._gateways)
                except OSError as error:
                    text = f"listener {wanted.name!r}, door of gateway {spec.gateway!r}: {error.strerror or error}"
                    raise BuildError(error.errno or 0, text, ("listener", wanted.index)) from error
                self._intakes.append(intake)
                group.append(intake)

    # ------------------------------------------------------------------ rings

    def ring_parts(self) -> list[RingPart]:
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
                part = RingPart(old, spec, list(old.intakes))
                ring.socket_filter(spec.matches)  # it fits, or nothing changes
            else:
                self.ingress = self.ingress or Ingress()
                group = RingGroup(f"{wanted.name} {spec.interface} {spec.index}", spec, self.ingress)
                part = RingPart(group, spec, [])
            self.rings[wanted.name][spec.interface] = part
            while len(part.intakes) < self.spec.workers:
                intake = part.group.open_member(state.slot, self.spec.ring_buffer, self.spec.workers)
                self._intakes.append(intake)
                part.intakes.append(intake)
        except OSError as error:
            raise ring_error(wanted, spec, error) from error

    def _takes_runs(self, rings: Mapping[str, object]) -> bool:
        """Whether sockets beside these rings have the kernel coalesce datagrams for them."""
        return self._rings_take_runs or not rings

    def _do_without_rings(self, wanted: ListenerSpec, error: BuildError) -> None:
        """Falls back to UDP sockets if a ring of receive = "auto" cannot be opened."""
        if wanted.ring_required:
            raise error
        self._drop_rings(wanted, f"auto: {error}")

    def _drop_rings(self, wanted: ListenerSpec, why: str) -> None:
        if not self.rings[wanted.name]:
            return
        for part in self.rings[wanted.name].values():
            for intake in [intake for intake in part.intakes if intake in self._intakes]:
                self._intakes.remove(intake)
                intake.close()
        self.rings[wanted.name] = {}
        self.receive[wanted.name] = "recvmmsg", why

    def tolerated(self, error: OSError, *, missing: bool, loses: bool) -> bool:
        """missing: it was so before. loses: something that works now would be given up for it."""
        if error.errno not in listening.HOST_LACKS | listening.SOMEBODY_MUST:
            return False
        if self._running.strict and error.errno in listening.SOMEBODY_MUST:
            return False
        if self.spec.follows_host or not self._running.workers or missing:
            return True
        return error.errno in listening.HOST_LACKS and not loses

    # ------------------------------------------------------------------ workers, receivers

    def _open_workers(self) -> None:
        spec, running = self.spec, self._running
        ports = abilities.source_ports()
        self.workers = running.workers[: spec.workers]
        replicate.begin(running, spec)
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
            replicate.serve(running, worker, index)
            thread = WorkerThread(index, worker, spec.cpus[index % len(spec.cpus)] if spec.cpus else None, packet)
            thread.choose_from(ports)
            thread.start()
            self._threads.append(thread)
            self.workers.append(thread)

    def _packet_socket(self) -> socket.socket | None:
        """The worker's packet socket. It is opened at the start if permitted, because a receiver may need it later."""
        try:
            return sockets.open_packet(self.spec.send_buffer)
        except OSError as error:
            if any(receiver.engine == "packet" for receiver in self.spec.receivers):
                hint = "; install the unit's drop-in packet.conf" if error.errno == errno.EAFNOSUPPORT else ""
                why = f'engine "packet": the packet socket cannot be opened: {error.strerror or error}{hint}'
                raise BuildError(error.errno or 0, why) from error
            return None
