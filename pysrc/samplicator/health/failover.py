"""Fail-over: acts on the states of receivers. Standbys take over, pools give exporters to other members, and returning
receivers get the templates.

Invariants: a standby waits exactly while its primary is up; a way of a waiting standby waits before a plan names it;
the templates are sent before a member gets its exporters back. Called by Supervisor, under its lock. It must never wait
for a worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from samplicator.health.probes import LOOPING
from samplicator.health.receiver import ReceiverState, ids
from samplicator.readings import MemberReading, PoolReading

if TYPE_CHECKING:
    from samplicator._fastpath import Plan
    from samplicator.health.running import Running
    from samplicator.plan.spec import PlanSpec

log = logging.getLogger(__name__)

RETURN_SECONDS: Final = 5.0
"""Longest time that a returning member waits for its templates."""
SCAN: Final = 2000
"""Observation domains looked at in one go when receivers of templates are searched."""


class Failover:
    """Of all receivers of the plan that runs."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._standbys: list[tuple[ReceiverState, ReceiverState]] = []
        self._pools: dict[str, list[str]] = {}  # receiver -> its pools
        self._members: dict[str, list[str]] = {}  # pool -> its receivers
        self._returning: dict[str, float] = {}  # member -> when it gets its exporters back at the latest
        self._empty: set[str] = set()  # pools without a member that is up
        self._place = (0, 0)

    def arrange(self, receivers: Mapping[str, ReceiverState], spec: PlanSpec) -> None:
        """Before a plan is published: sets which receivers wait and which are down. Nothing can fail any more."""
        now = time.monotonic()
        self._members = {pool.name: [spec.receivers[i].name for i, _ in pool.members] for pool in spec.pools}
        self._empty &= self._members.keys()
        self._pools = {}
        for pool, members in self._members.items():
            for name in members:
                self._pools.setdefault(name, []).append(pool)
        self._standbys = []
        self._returning = {}
        for state in receivers.values():
            state.tell_refusing(now)
            if not state.up and not state.standing.logged:
                state.standing.logged = True
                log.warning("receiver %r is %s: %s", state.spec.name, state.standing.state, state.standing.why)
            state.set_down(state.spec.needed and not state.up)
            primary = receivers.get(state.spec.standby_for)
            if primary is None:
                state.set_waiting(False)
                continue
            self._standbys.append((state, primary))
            if not primary.up and state.standing.waiting:
                self._take_over(state, primary)
            else:
                state.set_waiting(primary.up)

    @staticmethod
    def _take_over(standby: ReceiverState, primary: ReceiverState) -> None:
        standby.set_waiting(False)
        standby.standing.takeovers += 1
        why = f"{primary.standing.state} ({primary.standing.why})"
        log.warning(
            "receiver %r is %s; standby %r takes over, templates first", primary.spec.name, why, standby.spec.name
        )

    def follow(self, changed: Sequence[ReceiverState]) -> None:
        """Acts on changed states; the caller wakes the workers."""
        for state in changed:
            name, standing = state.spec.name, state.standing
            if state.up:
                standing.logged = False
                words = "" if standing.waiting else "; all templates are replayed to it"
                log.info("receiver %r is back%s", name, words)
                if not standing.waiting:
                    state.replay()
                self._returning[name] = time.monotonic() + RETURN_SECONDS
                continue
            self._returning.pop(name, None)
            state.set_down(state.spec.needed)
            pools = [
                f"pool {pool!r} gives its exporters to other members"
                for pool in self._pools.get(name, ())
                if state.spec.needed
            ]
            words = "; ".join([f"receiver {name!r} is {standing.state}: {standing.why}", *pools])
            log.log(logging.ERROR if standing.state == LOOPING else logging.WARNING, "%s", words)
            standing.logged = True
        for standby, primary in self._standbys:
            if primary.up and not standby.standing.waiting:
                standby.set_waiting(True)
                log.info("receiver %r is up; standby %r gets no more copies", primary.spec.name, standby.spec.name)
            elif standby.standing.waiting and not primary.up:
                self._take_over(standby, primary)
        self._check_pools(changed)

    def finish_returns(self) -> None:
        """Several times per second: members that have their templates get their exporters back. Not before, because
        templates within a running stream would repeat a sequence number.
        """
        now = time.monotonic()
        for name, latest in list(self._returning.items()):
            state = self._running.receivers[name]
            if now >= latest or not state.replaying:
                del self._returning[name]
                state.set_down(False)

    def _check_pools(self, changed: Sequence[ReceiverState]) -> None:
        receivers = self._running.receivers
        touched = {pool for state in changed for pool in self._pools.get(state.spec.name, ())}
        for pool in sorted(touched):
            up = [name for name in self._members[pool] if receivers[name].up]
            if not up and pool not in self._empty:
                self._empty.add(pool)
                log.error(
                    "pool %r: all members are down; copies are still sent by the normal assignment and counted as "
                    "failed",
                    pool,
                )
            elif up and pool in self._empty:
                self._empty.remove(pool)
                log.info("pool %r: member %s is up again", pool, ", ".join(map(repr, up)))

    # ------------------------------------------------------------------ who gets templates

    def mark_templates(self, plan: Plan, spec: PlanSpec) -> None:
        """Finds the receivers that get datagrams of exporters with known templates. They are probed if nothing else
        shows that they are back. Runs every few seconds; each run does a bounded amount of work.
        """
        flows = self._running.flows
        wanted = {
            index: self._running.receivers[receiver.name].reach
            for index, receiver in enumerate(spec.receivers)
            if receiver.deaf and receiver.probe.kind == "auto" and not receiver.needed
        }
        if not flows.templates_known():
            for reach in wanted.values():
                reach.templates = False
            return
        wanted = {index: reach for index, reach in wanted.items() if not reach.templates}
        if not wanted:
            return
        found, self._place = flows.teachers(self._place, SCAN)
        for address, listener in found:
            for index in plan.route(address, listener)[1]:
                if index in wanted:
                    wanted[index].templates = True

    # ------------------------------------------------------------------ looking at it

    def pools(self, spec: PlanSpec) -> tuple[PoolReading, ...]:
        """The share of each member now. Takes no lock that a worker takes."""
        running = self._running
        states = list(running.receivers.values())
        names = {worker.index: ids(states, worker.index) for worker in running.workers} if spec.pools else {}
        readings = []
        for pool in spec.pools:
            counts: dict[str, int] = {}
            for worker in list(running.workers):
                for number, exporters in worker.worker.pool(running.pool_ids.get(pool.name, 0)).items():
                    name = names[worker.index].get(number, "")
                    counts[name] = counts.get(name, 0) + exporters
            members = []
            for index, weight in pool.members:
                name = spec.receivers[index].name
                down = running.receivers[name].standing.down
                members.append(MemberReading(name, weight, not down, counts.get(name, 0)))
            readings.append(PoolReading(pool.name, pool.balance, tuple(members)))
        return tuple(readings)
