"""Incoming: the UDP sockets of the listeners of the next plan, while the plan is built: those that run, those that were
handed in, and new ones.

Invariants: what runs is only read; a socket that was handed in is never left unread while some listener takes what it
holds; datagrams of an exporter are read in the order in which they came, also when another socket gets the later ones;
undo() closes what was opened or handed in. Called by build. It must never publish.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from samplicator.config.address import endpoint_text
from samplicator.datapath.intakes import AnyIntake, Intake, ListenerState, socket_key
from samplicator.health.running import Running
from samplicator.host import listening, sockets
from samplicator.host.bound import bound_by
from samplicator.host.sources import Had, Place, Source
from samplicator.plan.groupcast import Casts
from samplicator.plan.spec import ListenerSpec, PlanSpec, SocketSpec
from samplicator.supervisor.ports import place_of, withhold_ports
from samplicator.supervisor.refusal import BuildError

log = logging.getLogger(__name__)

NOT_BESIDE: Final = frozenset({errno.EADDRINUSE, errno.EACCES, errno.EPERM})
"""Why no socket can be opened beside one that was handed in: another user opened that one (SO_REUSEPORT, socket(7)), or
its port needs a right."""


NEARLY_EMPTY_BYTES: Final = 1 << 16
"""So little in a socket is read at once."""


class Tolerated(Protocol):
    """See Build.tolerated."""

    def __call__(self, error: OSError, *, missing: bool, loses: bool) -> bool: ...


def contested_ports(running: Running, spec: PlanSpec) -> set[int]:
    """Ports on which the next plan opens sockets beside those that run, so that another socket than before gets the
    datagrams of some exporters: the sockets there are not read while that happens, or datagrams would overtake others.
    """
    wanted = {(listener.name, key) for listener in spec.listeners for key in map(socket_key, listener.sockets)}
    groups = {(name, key): group for name, state in running.listeners.items() for key, group in state.intakes.items()}
    leaving = {key.port for name, key in groups if (name, key) not in wanted}
    return {
        key.port
        for name, key in wanted
        if (key.port in leaving if (name, key) not in groups else _grows(groups[name, key], spec.workers))
    }


def _grows(group: Sequence[Intake], workers: int) -> bool:
    return len(group) < workers and not any(intake.behind for intake in group)


class Incoming:
    """groups: the sockets of each listener, one list per configured socket; missing: the sockets that this host cannot
    have now, and why. hindered: listeners whose port another program has. strays: sockets that were handed in and serve
    no listener, by the listener that takes what they hold; unused: those of them that no listener takes anything of.
    handed_in: whether there were any when this began.
    short: listeners that have fewer sockets than workers, because what was handed in must be read out first.
    passed_on: sockets that run for another listener until this plan runs.
    """

    def __init__(self, spec: PlanSpec, running: Running, source: Source, casts: Casts, tolerated: Tolerated) -> None:
        self.spec = spec
        self.groups: dict[str, dict[SocketSpec, list[Intake]]] = {}
        self.missing: dict[str, dict[SocketSpec, str]] = {}
        self.hindered: set[str] = set()
        self.strays: dict[str, list[Intake]] = {}
        self.unused: list[Had] = []
        self.short: set[str] = set()
        self.passed_on: set[AnyIntake] = set()
        self._running = running
        self._source = source
        self._casts = casts
        self.handed_in = bool(source.waiting())
        self._tolerated = tolerated
        self._by_ports = any(receiver.engine == "transparent" for receiver in spec.receivers)
        self._opened: list[Intake] = []
        self._on_port: dict[int, list[socket.socket]] = {}
        self._alone: list[socket.socket] = []

    def __iter__(self) -> Iterator[Intake]:
        """All sockets of the next plan."""
        return (intake for groups in self.groups.values() for group in groups.values() for intake in group)

    def joins(self, intake: Intake) -> bool:
        """Whether a socket is the one of its place that is a member of multicast groups."""
        return any(group[0] is intake for groups in self.groups.values() for group in groups.values())

    def commit(self) -> None:
        """To be called when all but these sockets is open, before begin(): whoever had them before may have them still,
        and must find them as they were. Raises OSError: this process must not read them.
        """
        self._source.commit()

    def begin(self) -> None:
        """Finds out what runs and what was handed in, and on which ports."""
        for state in self._running.listeners.values():
            for intake in state.sockets():
                self._on_port.setdefault(intake.spec.port, []).append(intake.sock)
        self._alone = listening.unshared([sock for socks in self._on_port.values() for sock in socks])
        self.unused += self._source.expect([key for wanted in self.spec.listeners for key in wanted.sockets])
        for sock in (*self._source.waiting(), *(had.sock for had in self.unused)):
            self._on_port.setdefault(sock.getsockname()[1], []).append(sock)

    def open(self, wanted: ListenerSpec, state: ListenerState, **options: bool) -> None:
        """Opens the sockets of a listener. options: see listening.open_listener. Raises BuildError."""
        groups = self.groups[wanted.name] = {}
        self.missing[wanted.name] = {}
        for key in map(socket_key, wanted.sockets):
            group = list(state.intakes.get(key, ()))
            before = len(group)
            self._fill(group, wanted, key, state, options)
            if len(group) > max(before, 1) and not group[-1].given:
                self._spread(group)
            if group:
                groups[key] = group

    def end(self, listeners: Mapping[str, ListenerState]) -> None:
        """What a socket holds that serves no listener goes to the listener that would get it now: the address was
        written in another way before.
        """
        for had in list(self.unused):
            found = self._heir(had)
            if found is not None:
                name, key = found
                self.strays.setdefault(name, []).append(self._adopted(had, key, listeners[name].slot))
                self.unused.remove(had)

    def undo(self) -> None:
        for intake in self._opened:
            intake.close()
        for had in self.unused:
            had.sock.close()
        for state in self._running.listeners.values():
            for running in state.sockets():
                running.passed_on = False
            for key, group in state.intakes.items():
                if len(self.groups.get(state.name, {}).get(key, ())) > len(group):
                    self._spread(group)
        listening.unshare(self._alone)

    def close_unused(self) -> None:
        """Sockets that were handed in and whose datagrams no listener takes; what they hold goes with them."""
        for had in self.unused:
            held = sockets.meminfo(had.sock).queue_bytes
            text = "socket %s, which was handed in, serves no listener of the configuration and is closed"
            log.warning(
                text + " with %d bytes of datagrams" * (held > 0), *([had.label, held] if held else [had.label])
            )
            had.sock.close()
        self.unused.clear()

    def share_ports(self) -> None:
        """Copies of exporters that send from a listener's port are sent in runs, too; called when nothing can fail any
        more.
        """
        for intake in self:
            self._share(intake.sock)

    def leaving(self) -> list[Intake]:
        """Sockets that run, are not in the next plan, and do not go on for another listener."""
        stay = set(self)
        running = (i for state in self._running.listeners.values() for i in state.sockets())
        return [intake for intake in running if intake not in stay and not intake.passed_on]

    def turn_away(self) -> None:
        """Sockets that the next plan does not read take no more from now on, so that nothing is lost between the last
        reading and the end; a socket of the next plan gets what comes, if one listens there.
        """
        for intake in (*(i for group in self.strays.values() for i in group), *self.leaving()):
            intake.turn_away()

    def read_first(self) -> tuple[set[AnyIntake], list[Intake]]:
        """Where a socket gets what another one got before, the older datagrams are to be read first.

        Returns all sockets concerned, and those that one worker reads out before others read, one after the other:
        where sockets share a port, the kernel gives the datagrams of one that is turned away to the next one, and with
        each socket more an exporter goes to a later one of them or stays (reciprocal_scale(), net/core/
        sock_reuseport.c). So they are read in the order in which they were opened.
        """
        strays = [intake for group in self.strays.values() for intake in group]
        fresh = {i for i in self._opened if not i.given and i not in self.passed_on}
        old = [intake for intake in self if intake not in fresh]
        ports = {i.spec.port for i in (*old, *self.leaving())} & {i.spec.port for i in fresh}
        ports |= {i.spec.port for i in strays}
        several = (group for groups in self.groups.values() for group in groups.values() if len(group) > 1)
        ports |= {i.spec.port for group in several for i in group if i in fresh}  # the first got all before the second
        gone = [*strays, *(i for i in self.leaving() if i.spec.port in ports)]
        stay = [i for i in self if i.spec.port in ports & {i.spec.port for i in fresh}]
        concerned: set[AnyIntake] = {*gone, *(i for i in self if i.spec.port in ports)}
        return concerned, [*gone, *stay]

    def caught_up(self) -> list[str]:
        """Listeners that are short and have read what was handed in, so that sockets can be opened beside."""
        groups = {name: [intake for group in self.groups[name].values() for intake in group] for name in self.short}
        return [name for name, group in groups.items() if all(map(_caught_up, group))]

    # ------------------------------------------------------------------ one socket after the other

    def _heir(self, had: Had) -> tuple[str, SocketSpec] | None:
        for wanted in self.spec.listeners:
            for key in self.groups[wanted.name]:
                with contextlib.suppress(OSError):
                    if bound_by(key).overlaps(had.bound):
                        return wanted.name, key
        return None

    def _adopted(self, had: Had, key: SocketSpec, slot: int) -> Intake:
        """Of a socket that was open before: what it dropped then is counted already, but for what it dropped since the
        process before has ended, if that is known. Its filter is unknown.
        """
        drops = self._running.drops.get(sockets.cookie(had.sock), sockets.meminfo(had.sock).drops)
        size = self.spec.receive_buffer
        intake = Intake(had.sock, key, slot, size, None, label=had.label, given=True, drops_read=drops)
        self._opened.append(intake)
        return intake

    def _taken_on(self, key: SocketSpec, state: ListenerState) -> list[Intake]:
        """The sockets of a listener that has another name now: they go on, and with them what they hold."""
        kept = {wanted.name: set(map(socket_key, wanted.sockets)) for wanted in self.spec.listeners}
        group = []
        for other in self._running.listeners.values():
            if key not in kept.get(other.name, ()):
                for intake in other.intakes.get(key, ()):
                    group.append(intake.again(state.slot))
                    self._opened.append(group[-1])
                    self.passed_on.add(group[-1])
        return group

    @staticmethod
    def _free_label(key: SocketSpec, group: Sequence[Intake]) -> str:
        taken, bound = {intake.label for intake in group}, bound_by(key)
        return next(label for number in itertools.count() if (label := bound.label(number)) not in taken)

    def _fill(
        self,
        group: list[Intake],
        listener: ListenerSpec,
        key: SocketSpec,
        state: ListenerState,
        options: Mapping[str, bool],
    ) -> None:
        """Opens sockets until there is one for each worker; none when this host lacks what they need."""
        size = self.spec.receive_buffer
        beside = self._on_port.setdefault(key.port, [])
        if not group:
            group += self._taken_on(key, state)
        while len(group) < self.spec.workers or self._source.has(key):
            if not self._source.has(key) and any(intake.behind for intake in group):
                self.short.add(listener.name)
                return
            # until the plan runs, all but the first on a port leave broadcast and multicast to the others
            program = self._casts.nothing if beside else b""
            try:
                sock, had = self._listen(
                    Place(key, len(group)),
                    receive_buffer=size,
                    beside=beside,
                    join=not group,
                    program=program,
                    **options,
                )
            except OSError as error:
                if group and group[0].given and error.errno in NOT_BESIDE:
                    text = "listener %r has %d sockets for %d workers at %s: no socket can be opened beside one that "
                    place = endpoint_text(key.address, key.port)
                    log.info(text + "was handed in: %s", listener.name, len(group), self.spec.workers, place, error)
                    return
                if not group and self._tolerates(listener, key, state, error):
                    self.missing[listener.name][key] = listening.why_not_listening(key, error)
                    if error.errno in listening.SOMEBODY_MUST:
                        self.hindered.add(listener.name)
                    return
                where = endpoint_text(key.address, key.port) + (f" on {key.interface}" if key.interface else "")
                text = f"listener {listener.name!r} cannot listen at {where}: {listening.why_not_listening(key, error)}"
                raise BuildError(error.errno or 0, text, ("listener", listener.index)) from error
            try:
                if had is not None:
                    group.append(self._adopted(had, key, state.slot))
                    continue
                intake = Intake(sock, key, state.slot, size, program, label=self._free_label(key, group))
            except BaseException:
                sock.close()
                raise
            self._opened.append(intake)
            beside.append(sock)
            group.append(intake)
            if len(group) == 1 < len(beside):  # alone at its place, so no datagram moves; see listening._begin_group
                self._spread(group)

    def _listen(self, place: Place, **options: Any) -> tuple[socket.socket, Had | None]:
        """Opens a listener's socket. If a worker uses the port (for exporters that send from it, or for a session), the
        workers close their sockets first.
        """
        try:
            sock, had = self._source.listener(place, **options)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not self._running.workers:
                raise
            try:
                withhold_ports(self._running.workers, self._running.withheld | {place.socket.port})
                sock, had = self._source.listener(place, **options)
            finally:
                for worker in self._running.workers:
                    worker.worker.withhold(*self._running.withheld)
        self._share(sock)
        return sock, had

    def _spread(self, group: Sequence[Intake]) -> None:
        listening.spread(
            [intake.sock for intake in group], [s for s in self._on_port[group[0].spec.port] if s.fileno() >= 0]
        )

    def _share(self, sock: socket.socket) -> None:
        if self._by_ports:
            listening.share_port(sock)

    def _tolerates(self, listener: ListenerSpec, key: SocketSpec, state: ListenerState, error: OSError) -> bool:
        """Whether the plan runs without this socket, which is tried again later, or is refused.

        At the start, and when the host has changed, the plan always runs, because the other listeners and receivers
        must not go down. A requested reload is refused if it would close an address where datagrams arrive now, or if
        an operator must correct something first (another program uses the port, a right is missing): until then the
        running configuration is better. What appears by itself (an interface, an address) is accepted.
        """
        wanted = {place_of(socket) for socket in listener.sockets}
        loses = any(place_of(running) not in wanted for running in state.intakes)
        return self._tolerated(error, missing=place_of(key) in map(place_of, state.missing), loses=loses)


def _caught_up(intake: Intake) -> bool:
    """Whether what a socket held when it was handed in has been read."""
    with contextlib.suppress(OSError):
        intake.behind = intake.behind and intake.memory().queue_bytes > NEARLY_EMPTY_BYTES
    return not intake.behind
