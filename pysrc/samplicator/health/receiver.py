"""A running receiver: its ways, its counters, and its state.

Purpose: derives one state from the route, the next hop, the copies and the probe of a receiver, and informs the ways.
Invariants: state changes in look() and refresh() only, by one thread at a time; counters and the number of take-overs
only grow. Called by supervisor. It must never wait, and never decide which other receiver gets the copies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from samplicator.config.address import address_text
from samplicator.datapath import counters as fields
from samplicator.datapath.account import Account
from samplicator.datapath.doors import DoorPath
from samplicator.datapath.ways import Path, Way
from samplicator.health.probes import LOOPING, MAKERS, REFUSING, UNREACHABLE, UP
from samplicator.health.reach import HOLD_LIMIT_SECONDS, RELAPSE_SECONDS, Reach
from samplicator.plan.sessions import Door
from samplicator.plan.spec import ReceiverSpec
from samplicator.readings import ReceiverReading, add_up, wall_ns

if TYPE_CHECKING:
    from samplicator._fastpath import TxCounters
    from samplicator.host.links import Link

REGAINED_SECONDS: Final = 10.0
"""A feature works again when copies were sent with it for this time and the kernel did not refuse it."""
NEIGHBOR_SECONDS: Final = 1.2
"""A next hop counts as answering when it was not unresolved for this time (more than neighbors.PATIENCE_SECONDS)."""
FAILED_SECONDS: Final = 5.0
"""The receiver can be reached again when no copy failed (no route, no neighbor) for this time."""
GRACE_SECONDS: Final = 1.0
"""Copies can be counted as refused for this time after a receiver has come back, because the ways still have the old
state, or reports of old copies wait at their sockets."""
PROBE_UNRESOLVED: Final = "the host name of the probe does not resolve"
NO_ANSWER: Final = "the receiver's host or the next hop does not answer"
COPIES_REFUSED: Final = "the receiver refuses copies"
COMES_BACK: Final = (
    "copies come back to this host through another relay or a redirection; remove this host from its receivers"
)
ECHO_FIRST_SECONDS: Final = 10.0
ECHO_MOST_SECONDS: Final = 320.0
"""A receiver whose copies came back is tried again after ECHO_FIRST_SECONDS, then after twice as long each time, up to
ECHO_MOST_SECONDS."""
COPIES_FAIL: Final = "copies fail: no route, or host unreachable"
_FAILED: Final = (fields.NO_ROUTE, fields.NO_NEIGHBOR)


@dataclass(slots=True)
class Standing:
    """What is known of a receiver; kept across reloads. state: up | refusing | unreachable | looping, why: for people,
    since: when that began. own: why it is this host itself, "" = it is not. echo_until: until then nothing is sent, its
    copies having come back; echo_seconds: how long it was stopped. waiting: a standby that gets no copies. down: pools
    do without it. takeovers: times it took over. account: what its next hop lost. logged: the log says that it is
    down. came: when it came back last; hold: how long copies must not fail after it failed again soon; measured: when
    copies were counted last, and how many there were. Times are of the monotonic clock.
    """

    state: str = UP
    why: str = ""
    since: float = field(default_factory=time.monotonic)
    waiting: bool = False
    down: bool = False
    takeovers: int = 0
    unresolved: bool = False
    seen: tuple[int, ...] = fields.NOTHING_SENT
    told_refusing: bool = False
    told_until: float = 0.0
    bad_until: float = 0.0
    failing: str = ""
    sent_at_failure: int = 0
    logged: bool = False
    hold: float = 0.0
    came: float = 0.0
    measured: tuple[float, int] = (0.0, 0)
    accounted_until: float = 0.0
    account: Account = field(default_factory=Account)
    own: str = ""
    echo_until: float = 0.0
    echo_seconds: float = 0.0
    echo_tried: float = 0.0


@dataclass(slots=True, eq=False)
class ReceiverState:
    """A receiver that runs. counters: one per worker index, kept when workers go. ways: one per worker. lost: to be
    opened anew. given_up_logged: GAVE_UP bits that are in the log. asked: for those that are asked for again, by bit:
    since when (monotonic) and the copies sent until then. calm: as of the last look it is up, nobody depends on that,
    and nothing is under way: until copies leave for it, a look now and then is enough.
    """

    spec: ReceiverSpec
    path: Path | DoorPath
    send_buffer: int
    generation_added: int
    counters: dict[int, TxCounters]
    ways: list[Way]
    reach: Reach
    standing: Standing = field(default_factory=Standing)
    lost: bool = False
    given_up_logged: int = 0
    asked: dict[int, tuple[float, int]] = field(default_factory=dict)
    calm: bool = False
    where: tuple[ReceiverSpec, tuple[str, str, int, str, str]] | None = None

    @property
    def up(self) -> bool:
        return self.standing.state == UP

    def totals(self) -> tuple[int, ...]:
        rows = [counters.read() for counters in list(self.counters.values())]
        return rows[0] if len(rows) == 1 else add_up(rows or [fields.NOTHING_SENT])  # asked for all the time

    def close_but(self, kept: ReceiverState | None) -> None:
        """Closes every way, and the path, that `kept` does not share."""
        still = {id(way) for way in kept.ways} if kept else set()
        for way in self.ways:
            if id(way) not in still:
                way.close()
        if kept is None or kept.path is not self.path:
            self.path.close()
        if kept is None or kept.reach is not self.reach:
            self.reach.close()

    @property
    def gave_up(self) -> int:
        """GAVE_UP bits of all ways: what the kernel refused on any of them."""
        bits = 0
        for way in list(self.ways):
            bits |= way.gave_up
        return bits

    def newly_given_up(self) -> tuple[str, ...]:
        """Features given up since the last call, without those that were tried again and failed."""
        bits = self.gave_up & ~self.given_up_logged
        self.given_up_logged |= bits
        return tuple(name for name, bit in fields.FEATURES.items() if bits & bit)

    def newly_regained(self, now: float) -> tuple[str, ...]:
        """Features that were logged as given up and work again. now: monotonic."""
        sent, bits = self.totals()[fields.SENT], self.gave_up
        found = []
        for name, bit in fields.FEATURES.items():
            if not self.given_up_logged & bit or bits & bit:
                self.asked.pop(bit, None)
                continue
            since, before = self.asked.setdefault(bit, (now, sent))
            if now - since >= REGAINED_SECONDS and sent > before:
                self.given_up_logged &= ~bit
                found.append(name)
        return tuple(found)

    # ------------------------------------------------------------------ what the ways get

    def set_link(self, link: Link | None, words: str) -> None:
        """Told by links: where frames for the receiver go now."""
        self.path.link, self.path.link_words = link, words
        for way in list(self.ways):
            way.set_link(link)

    def set_unresolved(self, unresolved: bool) -> None:
        """Told by neighbors: whether the next hop does not answer."""
        self.standing.unresolved = unresolved
        self.calm &= not unresolved
        for way in list(self.ways):
            for tx in (way.tx, way.fallback):
                if tx is not None and tx.unresolved != unresolved:
                    tx.unresolved = unresolved

    def set_accounted(self, asked: bool, now: float) -> None:
        """Whether the kernel tries in vain to resolve the next hop: the account then has what the kernel would report.
        Reports can wait at the sockets for a while.
        """
        standing = self.standing
        if asked:
            standing.accounted_until = now + NEIGHBOR_SECONDS
        elif now >= standing.accounted_until:
            standing.accounted_until = 0.0
        for way in list(self.ways):
            for tx in (way.tx, way.fallback):
                if tx is not None and tx.accounted != (now < standing.accounted_until):
                    tx.accounted = not tx.accounted

    @property
    def at_ease(self) -> bool:
        """Whether the next hop has no trouble now, and no copies are held back from earlier trouble."""
        standing = self.standing
        return not (standing.unresolved or standing.accounted_until or standing.account.held)

    def set_own(self, why: str) -> None:
        """Set by the guard: why copies would come back to a listener of this host, "" = they would not. Called before a
        plan that names a new way is published.
        """
        if not self.standing.own:
            self._echoes(time.monotonic())  # what a worker has found since the last look is not to be wiped out
        self.standing.own = why
        self.calm = False
        self._tell_looped()

    def _tell_looped(self) -> None:
        looped = bool(self.standing.own) or self.standing.echo_until > 0
        for way in list(self.ways):
            way.set_looped(looped)

    def _echoes(self, now: float) -> None:
        """Stops sending on all workers when one has found that copies come back, and tries again later."""
        standing = self.standing
        if standing.echo_until:
            if now >= standing.echo_until:
                standing.echo_until = 0.0
                standing.echo_tried = now
                self._tell_looped()
        elif not standing.own and any(way.looped for way in list(self.ways)):
            again = now - standing.echo_tried < 2 * standing.echo_seconds
            longer = min(2 * standing.echo_seconds, ECHO_MOST_SECONDS)
            standing.echo_seconds = longer if again and longer else ECHO_FIRST_SECONDS
            standing.echo_until = now + standing.echo_seconds
            self._tell_looped()

    def set_waiting(self, waiting: bool) -> None:
        """A standby gets no copies (True), or all templates and then copies; wake the workers."""
        self.standing.waiting = waiting
        for way in list(self.ways):
            way.set_waiting(waiting)

    def set_down(self, down: bool) -> None:
        """Whether pools do without it."""
        self.standing.down = down
        for way in list(self.ways):
            way.tx.down = down

    def tell_refusing(self, now: float) -> None:
        """Tells the ways whether copies are refused although the kernel takes them, for engines that get no reports."""
        refusing = self.spec.deaf and self.reach.refusing
        if refusing != self.standing.told_refusing:
            self.standing.told_refusing = refusing
            self.standing.told_until = now + GRACE_SECONDS
        for way in list(self.ways):
            if way.tx.refusing != refusing:
                way.tx.refusing = refusing

    @property
    def replaying(self) -> bool:
        """Whether a replay asked for is not finished."""
        return any(way.tx.replaying for way in list(self.ways))

    def replay(self) -> None:
        """Asks every worker to send it all templates; wake them."""
        for way in list(self.ways):
            way.tx.replay()

    # ------------------------------------------------------------------ its state

    def look(self, now: float) -> bool:
        """Several times per second: True when the state has changed."""
        self._copies(now)
        self._echoes(now)
        if not self.spec.missing:
            self.path.look(now, self.ways, self.counters)
            if not self.probe_unresolved:
                self.reach.step(now)
        return self._settle(now)

    @property
    def probe_unresolved(self) -> bool:
        """Whether the name that it is to be asked at does not resolve now."""
        return self.spec.probe.kind in MAKERS and not self.spec.probe.address

    def refresh(self, now: float) -> bool:
        """Every few seconds: looks at the path again; True when its state has changed."""
        was_routed = self.path.routed
        if not self.path.refresh(self.ways):
            self.lost = True
        if self.path.routed and not was_routed:  # what failed did so for want of a route
            self._copies(now)
            self.standing.failing, self.standing.bad_until = "", 0.0
        return self.look(now)

    def _copies(self, now: float) -> None:
        """What became of the copies since the last look."""
        standing = self.standing
        totals, before = self.totals(), standing.seen
        self._measure(totals, now)
        if totals == before:
            return
        standing.seen = totals
        refused = totals[fields.REFUSED] != before[fields.REFUSED]
        if refused and not standing.told_refusing and now >= standing.told_until:
            self.reach.refused(now)
        failing = UNREACHABLE if any(totals[i] != before[i] for i in _FAILED) else ""
        if self.spec.probe.kind == "off" and refused:
            failing = REFUSING
        if failing and not standing.unresolved and (standing.failing or now >= standing.bad_until):
            if not standing.failing:
                relapse = standing.came and now - standing.came < RELAPSE_SECONDS
                standing.hold = min(max(FAILED_SECONDS, 2 * standing.hold), HOLD_LIMIT_SECONDS) if relapse else 0.0
            standing.failing = failing
            standing.bad_until = now + max(FAILED_SECONDS, standing.hold)
            standing.sent_at_failure = totals[fields.SENT]

    def _measure(self, totals: Sequence[int], now: float) -> None:
        """How many copies leave for it, once a second."""
        standing = self.standing
        taken = totals[fields.SENT] + totals[fields.REFUSED]
        then, before = standing.measured
        if now - then >= 1.0:
            self.reach.copies_per_second = max(taken - before, 0) / (now - then) if then else 0.0
            standing.measured = now, taken

    def _settle(self, now: float) -> bool:
        standing = self.standing
        state, why = self._judge(now)
        self.reach.anxious = state == UNREACHABLE
        self.tell_refusing(now)
        changed = state != standing.state
        if changed:
            standing.since = now
            standing.told_until = now + GRACE_SECONDS if state == UP else standing.told_until
            standing.came = now if state == UP else standing.came
        standing.state, standing.why = state, why
        self.calm = state == UP and not (changed or standing.failing or self.spec.needed or self.reach.asks)
        return changed

    def _judge(self, now: float) -> tuple[str, str]:
        standing, reach = self.standing, self.reach
        if self.spec.missing:
            return UNREACHABLE, self.spec.missing
        if self.probe_unresolved:  # nothing is known of it; a standby or a pool had better not count on it
            return UNREACHABLE, PROBE_UNRESOLVED
        if standing.own:
            return LOOPING, standing.own
        if standing.echo_until:
            return LOOPING, f"{COMES_BACK}; next try after {standing.echo_seconds:.0f} s"
        if self.path.fault:
            return UNREACHABLE, self.path.fault
        if standing.unresolved:
            standing.bad_until = max(standing.bad_until, now + NEIGHBOR_SECONDS)
            return UNREACHABLE, NO_ANSWER
        if reach.state != UP:
            return reach.state, reach.why
        words = COPIES_REFUSED if standing.failing == REFUSING else COPIES_FAIL
        if now < standing.bad_until:
            return (standing.failing, words) if standing.failing else (UNREACHABLE, NO_ANSWER)
        if standing.failing:  # silence means up only if there are probes, or if copies get through
            if not reach.asks and standing.seen[fields.SENT] == standing.sent_at_failure:
                return standing.failing, words
            standing.failing = ""
        return UP, ""

    def read(self, totals: Sequence[int] | None = None) -> ReceiverReading:
        """totals: the counters to show, None = as the datapath has them now."""
        spec, standing, path, gave_up = self.spec, self.standing, self.path, self.gave_up
        if self.where is None or self.where[0] is not spec:
            # texts of addresses: kept, because a scrape asks for those of all receivers
            self.where = spec, _where(spec)
        host, address, port, source, engine_why = self.where[1]
        return ReceiverReading(
            spec.name,
            host,
            address,
            port,
            source,
            spec.engine,
            engine_why,
            dict(zip(fields.TX_FIELDS, self.totals() if totals is None else totals, strict=True)),
            standing.state == UP,
            self.generation_added,
            tuple(name for name, bit in fields.FEATURES.items() if gave_up & bit) if gave_up else (),
            path.link_words,
            path.mtu,
            path.mtu_why,
            standing.state,
            standing.why,
            wall_ns(int(standing.since * 1e9)) / 1e9,
            spec.standby_for,
            standing.waiting,
            standing.takeovers,
            spec.written,
        )


def _where(spec: ReceiverSpec) -> tuple[str, str, int, str, str]:
    """How a receiver is delivered, as the reading has it: host, address, port, source, engine_why."""
    if isinstance(door := spec.delivery, Door):
        host, address = door.place if door.port else door.gateway, door.known_as
        return host, address, door.port, "beside", "configured"
    udp = spec.udp
    address = udp.host if spec.unresolved else address_text(udp.address)
    return udp.host, address, udp.port, "spoof" if udp.spoof else "own", udp.engine_why


def ids(states: Sequence[ReceiverState], worker: int) -> dict[int, str]:
    """Receiver name by TxCounters.id of a worker."""
    return {state.counters[worker].id: state.spec.name for state in states if worker in state.counters}
