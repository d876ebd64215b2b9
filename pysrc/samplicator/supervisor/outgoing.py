"""Outgoing: the receivers of the next plan, their ways and paths, while the plan is built.

Invariants: what runs is only read; a receiver with an equal spec keeps its sockets, counters and standing; undo()
closes what open() has opened. Called by build.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

from samplicator._fastpath import TxCounters
from samplicator.datapath.doors import DoorPath, Gateways
from samplicator.datapath.ways import Path, Way, meets, receiver_key
from samplicator.health.probes import UNREACHABLE
from samplicator.health.reach import Reach
from samplicator.health.receiver import ReceiverState, Standing
from samplicator.health.running import Running
from samplicator.plan.engines import NEEDS_NET_RAW
from samplicator.plan.spec import PlanSpec, ReceiverSpec, Udp
from samplicator.supervisor.refusal import BuildError


class Outgoing:
    """states: of every receiver of the plan, by name. tolerated: see Build.tolerated."""

    def __init__(
        self,
        spec: PlanSpec,
        running: Running,
        gateways: Gateways,
        generation: int,
        tolerated: Callable[..., bool],
    ) -> None:
        self.spec = spec
        self.states: dict[str, ReceiverState] = {}
        self.ways: list[Way] = []
        self.paths: list[Path | DoorPath] = []
        self._running = running
        self._gateways = gateways
        self._generation = generation
        self._tolerated = tolerated

    def undo(self) -> None:
        for way in self.ways:
            way.close()
        for path in self.paths:
            path.close()

    def joined(self) -> list[ReceiverState]:
        """Receivers that collectors' templates are unknown to: new ones, and those that moved."""
        running, carried = self._running.receivers, self._running.carried
        known = {n for n, s in running.items() if n in self.states and meets(s.spec) == meets(self.states[n].spec)}
        known |= {name for name, receiver in carried.items() if receiver.same}
        return [state for name, state in self.states.items() if name not in known]

    def open(self) -> None:
        """Raises OSError (BuildError); undo() is the caller's."""
        for wanted in self.spec.receivers:
            try:
                self.states[wanted.name] = self._receiver(wanted)
            except OSError as error:
                old = self._running.receivers.get(wanted.name)
                if self._tolerated(error, missing=old is not None and bool(old.spec.missing), loses=old is not None):
                    self.states[wanted.name] = self._receiver(replace(wanted, missing=why_not_sending(wanted, error)))
                    continue
                why = f"this {NEEDS_NET_RAW}" if lacks_net_raw(wanted, error) else error.strerror or error
                text = f"receiver {wanted.name!r} at {wanted.place}, engine {wanted.engine}: {why}"
                raise BuildError(error.errno or 0, text, ("receiver", wanted.index)) from error

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
            path, ways = new_path(wanted, old.path if old is not None else None, self._gateways), []
            self.paths.append(path)
        carried = self._running.carried.get(wanted.name) if old is None else None
        state = ReceiverState(
            spec=wanted,
            path=path,
            send_buffer=spec.send_buffer,
            generation_added=old.generation_added if old else self._generation,
            counters=dict(old.counters) if old else dict(carried.counters) if carried else {},
            ways=ways,
            reach=old.reach if old is not None and same else Reach(wanted),
            standing=self._standing(wanted, path, old, same),
            given_up_logged=old.given_up_logged if old is not None and same else 0,
            asked=old.asked if old is not None and same else {},
        )
        if carried is not None:
            carried.go_on(state.standing, state.totals())
        opened: list[Way] = []
        try:
            for index in range(len(ways), spec.workers):
                opened.append(path.open_way(state.counters.setdefault(index, TxCounters()), spec.send_buffer, index))
        except BaseException:
            for way in opened:
                way.close()
            if path in self.paths:
                self.paths.remove(path)
                path.close()
            raise
        self.ways += opened
        state.ways += opened
        return state

    @staticmethod
    def _standing(wanted: ReceiverSpec, path: Path | DoorPath, old: ReceiverState | None, same: bool) -> Standing:
        """What is known of the receiver: all of it when it stays, else what is counted."""
        if old is not None and same:
            return old.standing
        standing = Standing(waiting=bool(wanted.standby_for))
        if not path.routed:
            standing.state, standing.why = UNREACHABLE, wanted.missing or path.fault
        if old is not None:
            # what became of copies on the old way says nothing of the new one
            standing.seen, standing.takeovers = old.totals(), old.standing.takeovers
            standing.account = old.standing.account
            standing.waiting = old.standing.waiting if old.spec.standby_for else standing.waiting
        return standing


def lacks_net_raw(wanted: ReceiverSpec, error: OSError) -> bool:
    """Whether a raw socket was refused. Only that needs a right, and raises EPERM (socket(2), raw(7))."""
    udp = wanted.delivery
    return error.errno == errno.EPERM and isinstance(udp, Udp) and (udp.engine != "udp" or udp.mtu > 0)


def why_not_sending(wanted: ReceiverSpec, error: OSError) -> str:
    """What this host lacks, for people: a clause that stands after "receiver X is unreachable: "."""
    source = wanted.delivery.source if isinstance(wanted.delivery, Udp) else None
    if error.errno == errno.EADDRINUSE and source is not None:
        return f"another program uses the source port {source[1]}"
    if lacks_net_raw(wanted, error):
        return "this process lacks CAP_NET_RAW, which a raw socket needs"
    return f"the sending socket cannot be opened: {error.strerror or error}"


def new_path(wanted: ReceiverSpec, before: Path | DoorPath | None, gateways: Gateways) -> Path | DoorPath:
    """before: of the same receiver, in the plan before."""
    if isinstance(wanted.delivery, Udp):
        return Path(wanted, before if isinstance(before, Path) else None)
    return DoorPath(wanted, gateways)
