"""Build: opens everything that the next plan needs and that does not run yet, or opens nothing.

Purpose: the half of a change that can fail. Invariants: Build only reads what runs; undo() closes everything that
open() has opened; a receiver or listener with an equal spec keeps its sockets and counters. Called by Supervisor.apply,
on the reload's thread. It must never publish a plan that names a socket.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from samplicator._fastpath import Plan, Worker
from samplicator.config.address import endpoint_text
from samplicator.datapath import aliases
from samplicator.datapath.doors import DoorIntake, Gateways
from samplicator.datapath.intakes import AnyIntake, Intake, ListenerState, RingGroup, RingIntake, socket_key
from samplicator.datapath.rules import FastRules, fast_pools
from samplicator.datapath.thread import TraceCallback, WorkerThread
from samplicator.health.receiver import ReceiverState
from samplicator.health.running import Running
from samplicator.host import abilities, listening, ring, sockets
from samplicator.host.ingress import Ingress
from samplicator.host.sources import Place, Source
from samplicator.plan.spec import DoorSpec, ListenerSpec, PlanSpec, RingSpec, SocketSpec
from samplicator.supervisor.outgoing import Outgoing
from samplicator.supervisor.ports import casts_of, place_of, withhold_ports
from samplicator.supervisor.refusal import BuildError, check_descriptors, ring_error


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


class Build:
    """The next state, while it is built. groups: the sockets of each listener, one list per configured socket; rings:
    its rings by interface; receive: how it receives and why; missing: the sockets that this host cannot have now, and
    why; ingress, aliases: those that run, or new ones. Commits nothing: the supervisor owns what runs.
    """

    def __init__(
        self,
        spec: PlanSpec,
        running: Running,
        source: Source,
        *,
        generation: int,
        trace: TraceCallback | None,
        gateways: Gateways,
    ) -> None:
        """source: where listeners' sockets come from. gateways: what doors can lead to."""
        self.spec = spec
        self.listeners: dict[str, ListenerState] = {}
        self.groups: dict[str, dict[SocketSpec, list[Intake]]] = {}
        self.rings: dict[str, dict[str, RingPart]] = {}
        self.missing: dict[str, dict[SocketSpec, str]] = {}
        self.receive: dict[str, tuple[str, str]] = {}
        self.workers: list[WorkerThread] = []
        self.owners: dict[AnyIntake, int] = {}
        self.casts = casts_of(spec)
        new = itertools.count(running.pools_made + 1)
        self.pool_ids = {pool.name: running.pool_ids.get(pool.name) or next(new) for pool in spec.pools}
        self.ingress = running.ingress
        self.aliases = running.aliases
        self._running = running
        self._source = source
        self._gateways = gateways
        self.doors: dict[str, dict[DoorSpec, list[DoorIntake]]] = {}
        self.outgoing = Outgoing(spec, running, gateways, generation, self.tolerated)
        self._trace = trace
        self._by_ports = any(receiver.engine == "transparent" for receiver in spec.receivers)
        self._intakes: list[AnyIntake] = []
        self._threads: list[WorkerThread] = []
        self._alone: list[socket.socket] = []
        self._hindered: set[str] = set()
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
        self._open_states()
        if self.aliases is None and any(receiver.apart for receiver in self.spec.receivers):
            self.aliases = aliases.make(self.spec.alias_file)
        self._open_listeners()
        self._open_workers()
        self.outgoing.open()
        # socket k of a listener is read by worker k modulo their number
        for groups in self.groups.values():
            for group in groups.values():
                self.owners.update((intake, k % self.spec.workers) for k, intake in enumerate(group))
        for part in self.ring_parts():
            self.owners.update((intake, k % self.spec.workers) for k, intake in enumerate(part.intakes))
        for doors in self.doors.values():
            for each in doors.values():
                self.owners.update((intake, k % self.spec.workers) for k, intake in enumerate(each))

    def undo(self) -> None:
        for thread in self._threads:
            thread.end(0, 2.0)
        for intake in self._intakes:
            intake.close()
        self.outgoing.undo()
        listening.unshare(self._alone)
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
        for groups in self.groups.values():
            for key, group in groups.items():
                for intake in group:
                    with contextlib.suppress(OSError):
                        listening.set_kept_fields(intake.sock, key, **(self._keep if adopted else both))

    def plans(
        self, generation: int, *, without: Sequence[AnyIntake] = (), replay_to: Set[str] = frozenset()
    ) -> dict[int, Plan]:
        """A plan for each worker; the sockets in `without` are in none. replay_to: names of the receivers that get the
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
                [index for index, receiver in enumerate(self.spec.receivers) if receiver.name in replay_to],
                self.aliases,
            )
            for worker in self.workers
        }

    def mark_flow(self) -> None:
        """Whether the sockets' datagrams go through the flow stage, and come coalesced; to be called when nothing can
        fail any more.
        """
        for wanted in self.spec.listeners:
            rings = self.rings[wanted.name]
            for intake in (i for group in self.groups[wanted.name].values() for i in group):
                listening.take_runs(intake.sock, self._takes_runs(rings))
                intake.rx.set_flow(wanted.flow)
            for member in (i for part in rings.values() for i in part.intakes):
                member.rx.set_flow(wanted.flow)
            for door in (i for group in self.doors[wanted.name].values() for i in group):
                door.rx.set_flow(wanted.flow)

    # ------------------------------------------------------------------ listeners

    def _open_states(self) -> None:
        """Listeners and their rings, which receive nothing yet."""
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
        on_port: dict[int, list[socket.socket]] = {}
        for running in self._running.listeners.values():
            for intake in running.sockets():
                on_port.setdefault(intake.spec.port, []).append(intake.sock)
        self._alone = listening.unshared([sock for socks in on_port.values() for sock in socks])
        for wanted in self.spec.listeners:
            state = self.listeners[wanted.name]
            groups = self.groups[wanted.name] = {}
            self.missing[wanted.name] = {}
            for key in map(socket_key, wanted.sockets):
                group = list(state.intakes.get(key, ()))
                self._fill(group, wanted, key, state, on_port.setdefault(key.port, []))
                if group:
                    groups[key] = group
            self._open_doors(wanted, state)
            if wanted.name in self._hindered:  # a ring would take what another program's socket is to get
                self._drop_rings(wanted, "some of the listener's sockets cannot be opened")

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

    # ------------------------------------------------------------------ sockets

    def _fill(
        self,
        group: list[Intake],
        listener: ListenerSpec,
        key: SocketSpec,
        state: ListenerState,
        beside: list[socket.socket],
    ) -> None:
        """Opens sockets until there is one for each worker; none when this host lacks what they need."""
        size = self.spec.receive_buffer
        while len(group) < self.spec.workers:
            try:
                # until the plan runs, all but the first on a port leave broadcast and multicast to the others
                program = self.casts.nothing if beside else b""
                sock = self._listen(
                    Place(listener.name, key, len(group)),
                    receive_buffer=size,
                    beside=beside,
                    join=not group,
                    program=program,
                    runs=self._takes_runs(self.rings[listener.name]),
                    **self._keep,
                )
            except OSError as error:
                if not group and self._tolerates(listener, key, state, error):
                    self.missing[listener.name][key] = listening.why_not_listening(key, error)
                    if error.errno in listening.SOMEBODY_MUST:
                        self._hindered.add(listener.name)
                    return
                where = endpoint_text(key.address, key.port) + (f" on {key.interface}" if key.interface else "")
                text = f"listener {listener.name!r} cannot listen at {where}: {listening.why_not_listening(key, error)}"
                raise BuildError(error.errno or 0, text, ("listener", listener.index)) from error
            try:
                intake = Intake(sock, key, state.slot, size, program)
            except BaseException:
                sock.close()
                raise
            self._intakes.append(intake)
            beside.append(sock)
            group.append(intake)

    def _listen(self, place: Place, **options: Any) -> socket.socket:
        """Opens a listener's socket. If a worker uses the port (for exporters that send from it, or for a session), the
        workers close their sockets first.
        """
        try:
            return self._share(self._source.listener(place, **options))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not self._running.workers:
                raise
        try:
            withhold_ports(self._running.workers, self._running.withheld | {place.socket.port})
            return self._share(self._source.listener(place, **options))
        finally:
            for worker in self._running.workers:
                worker.worker.withhold(*self._running.withheld)

    def _share(self, sock: socket.socket) -> socket.socket:
        if self._by_ports:
            listening.share_port(sock)
        return sock

    def share_ports(self) -> None:
        """Copies of exporters that send from a listener's port are sent in runs, too; called when nothing can fail any
        more.
        """
        for groups in self.groups.values():
            for intake in (i for group in groups.values() for i in group):
                self._share(intake.sock)

    def _tolerates(self, listener: ListenerSpec, key: SocketSpec, state: ListenerState, error: OSError) -> bool:
        """Whether the plan runs without this socket, which is tried again later, or is refused.

        At the start, and when the host has changed, the plan always runs, because the other listeners and receivers
        must not go down. A requested reload is refused if it would close an address where datagrams arrive now, or if
        an operator must correct something first (another program uses the port, a right is missing): until then the
        running configuration is better. What appears by itself (an interface, an address) is accepted.
        """
        wanted = {place_of(socket) for socket in listener.sockets}
        loses = any(place_of(running) not in wanted for running in state.intakes)
        return self.tolerated(error, missing=place_of(key) in map(place_of, state.missing), loses=loses)

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
                raise BuildError(
                    error.errno or 0, f'engine "packet": the packet socket cannot be opened: {error.strerror or error}'
                ) from error
            return None
