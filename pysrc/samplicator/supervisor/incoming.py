"""Incoming: the UDP sockets of the listeners of the next plan, while the plan is built: those that run, those that were
handed in, and new ones.

Invariants: what runs is only read; a socket that was handed in is never left unread while some listener takes what it
holds; datagrams of an exporter are read in the order in which they came, also when another socket gets the later ones;
undo() closes what was opened or handed in. Called by build. It must never publish.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Iterator, Mapping, Set
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


class Tolerated(Protocol):
    """See Build.tolerated."""

    def __call__(self, error: OSError, *, missing: bool, loses: bool) -> bool: ...


class Incoming:
    """groups: the sockets of each listener, one list per configured socket; missing: the sockets that this host cannot
    have now, and why. hindered: listeners whose port another program has. strays: sockets that were handed in and serve
    no listener, by the listener that takes what they hold; unused: those of them that no listener takes anything of.
    handed_in: whether there were any when this began.
    """

    def __init__(self, spec: PlanSpec, running: Running, source: Source, casts: Casts, tolerated: Tolerated) -> None:
        self.spec = spec
        self.groups: dict[str, dict[SocketSpec, list[Intake]]] = {}
        self.missing: dict[str, dict[SocketSpec, str]] = {}
        self.hindered: set[str] = set()
        self.strays: dict[str, list[Intake]] = {}
        self.unused: list[Had] = []
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
            self._fill(group, wanted, key, state, options)
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
                self.strays.setdefault(name, []).append(self._adopted(had.sock, key, listeners[name].slot))
                self.unused.remove(had)

    def undo(self) -> None:
        for intake in self._opened:
            intake.close()
        for had in self.unused:
            had.sock.close()
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

    def read_first(self, rings: Mapping[str, Set[AnyIntake]]) -> tuple[set[AnyIntake], list[set[AnyIntake]]]:
        """Where a socket gets what another one got before, the older datagrams are to be read first.

        rings: by listener, those that are new: from now on they get what its sockets got. Returns all sockets and rings
        concerned, which no worker may read while these old sockets are read out, and those of the old sockets that
        no worker reads yet, the oldest first.
        """
        strays = {intake for group in self.strays.values() for intake in group}
        fresh = {i for i in self._opened if not i.given}
        old = [*(i for i in self if i.given), *(i for s in self._running.listeners.values() for i in s.sockets())]
        ports = {i.spec.port for i in old} & {i.spec.port for i in fresh} | {i.spec.port for i in strays}
        ringed = {name for name, new in rings.items() if new}
        all_of: set[AnyIntake] = {*strays, *(i for i in self if i.spec.port in ports)}
        for name in ringed:
            sockets_of = [i for group in self.groups[name].values() for i in group]
            if any(i not in fresh for i in sockets_of):
                all_of |= {*sockets_of, *rings[name]}
        given: set[AnyIntake] = {i for i in self if i.given and i.owner is None and i in all_of}
        return all_of, [age for age in (set[AnyIntake](strays), given) if age]

    # ------------------------------------------------------------------ one socket after the other

    def _heir(self, had: Had) -> tuple[str, SocketSpec] | None:
        for wanted in self.spec.listeners:
            for key in self.groups[wanted.name]:
                with contextlib.suppress(OSError):
                    if bound_by(key).overlaps(had.bound):
                        return wanted.name, key
        return None

    def _adopted(self, sock: socket.socket, key: SocketSpec, slot: int) -> Intake:
        """Of a socket that was open before: what it dropped then is counted already, its filter is unknown."""
        drops = sockets.meminfo(sock).drops
        intake = Intake(sock, key, slot, self.spec.receive_buffer, None, given=True, drops_read=drops)
        self._opened.append(intake)
        return intake

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
        while len(group) < self.spec.workers or self._source.has(key):
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
                if had:
                    group.append(self._adopted(sock, key, state.slot))
                    continue
                intake = Intake(sock, key, state.slot, size, program)
            except BaseException:
                sock.close()
                raise
            self._opened.append(intake)
            beside.append(sock)
            group.append(intake)

    def _listen(self, place: Place, **options: Any) -> tuple[socket.socket, bool]:
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
