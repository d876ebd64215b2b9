"""The supervisor: owns workers, listener sockets, ways to receivers and their counters, and changes them while
datagrams flow.

Purpose: makes one PlanSpec run, and changes what runs to the next PlanSpec. Invariants: everything that can fail
happens before the first publish, and a failure changes nothing; one worker at a time reads a socket; a counter has one
writer; what stays (same name, same settings) keeps its socket and countdown; nothing is closed before every worker that
used it has adopted a later plan. Called by reload and service (apply, drain_and_stop, housekeeping) and by metrics and
http (readings, route). It must never take a lock that a worker takes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from typing import Final

from samplicator._fastpath import Plan
from samplicator.datapath import doors
from samplicator.datapath.intakes import ListenerState
from samplicator.datapath.thread import Stir, WorkerThread
from samplicator.health.accounts import Accounts
from samplicator.health.failover import Failover
from samplicator.health.reach import Host
from samplicator.health.receiver import ReceiverState
from samplicator.health.running import Running
from samplicator.host import abilities, links
from samplicator.host.neighbors import ASKED_IN_VAIN
from samplicator.host.sources import Opened, Source
from samplicator.logs import RateGate
from samplicator.plan.rules import routes, widened
from samplicator.plan.spec import PlanSpec, Udp
from samplicator.supervisor import carry, ending, guard, publish, replicate, rings, takeup
from samplicator.supervisor.build import Build, Step
from samplicator.supervisor.incoming import contested_ports
from samplicator.supervisor.ports import withhold_ports
from samplicator.supervisor.refusal import REFUSED, REGAINED, BuildError
from samplicator.supervisor.retry import RETRIES, could_open, could_send
from samplicator.supervisor.taps import Taps
from samplicator.supervisor.view import View

log = logging.getLogger(__name__)

SPARED: Final = 10
"""Of so many looks a calm receiver gets one, while no copies leave."""
WATCH_SECONDS: Final = 2.0
"""How often next hops are looked at, while no copies leave and all is well with them."""


class Supervisor:
    """See above. One per process. apply, housekeeping and drain_and_stop exclude each other; readings() never waits."""

    def __init__(
        self,
        *,
        descriptor_limit: int = 1 << 30,
        strict: bool = False,
        source: Source | None = None,
        gateways: doors.Gateways | None = None,
        state_file: str = "",
        state: bytes = b"",
    ) -> None:
        """strict: see Running. source: where listeners' sockets come from, None = they are opened. gateways: what doors
        can lead to, by name. state_file: taken up before the first plan runs, see carry; "" = none. state: what another
        process handed over (final_state), taken up in place of the file; b"" = nothing.
        """
        self._gateways = gateways or {}
        self._source = source or Opened()
        self._lock = threading.Lock()
        self._descriptor_limit = descriptor_limit
        self._running = Running(strict=strict)
        self._state_file = state_file
        self._state = state
        self._taken_up = not (state_file or state)
        self._saving = threading.RLock()  # one at a time; never taken within another
        self._debris: list[Callable[[], None]] = []
        self._build: Build | None = None  # of the plan that runs
        self._begun: Build | None = None  # of the first plan, see prepare()
        self._links: links.Links | None = None
        self._accounts = Accounts()
        self._failover = Failover(self._running)
        self.view = View(self._running, self._failover, self._accounts)
        self.taps = Taps(self._running)
        self._gate = RateGate()
        self._ended = False
        self._stirs = Stir(), Stir()  # of look() and watch_neighbors()
        self._looks = 0
        self._watch_at = 0.0
        self._tried = 0  # sockets of each listener, so far: they take turns

    @property
    def generation(self) -> int:
        """How many plans were published so far."""
        return self._running.generation

    # ------------------------------------------------------------------ apply

    def apply(self, spec: PlanSpec) -> None:
        """Makes `spec` run. Raises OSError (BuildError) when something cannot be opened: then nothing has changed.
        WorkerStuck: a worker hangs.
        """
        with self._lock:
            if self._ended:
                raise BuildError(errno.ESHUTDOWN, "the service is stopping")
            loaded = None if self._taken_up else takeup.load(self._running, spec, self._state_file, self._state)
            self._taken_up, self._state = True, b""
            self._change(spec)
            if loaded is not None and self._state_file:
                takeup.taken_up(self._state_file)

    def _change(self, spec: PlanSpec) -> None:
        ports = contested_ports(self._running, spec)
        if ports:  # rings are given back while the sockets are read
            rings.to_sockets(self._running)
        held = publish.hold(self._running, self._build, ports)
        number = self._running.number + 1
        build = Build(spec, self._running, self._source, generation=number, gateways=self._gateways)
        if self._begun is not None:
            build.go_on_from(self._begun)
            self._begun = None
        try:
            build.open(self._descriptor_limit)
            self.taps.meet(build.workers)
            replay_to = widened(routes(self._running.spec), spec) if self._running.spec is not None else set()
            steps = build.steps(number, replay_to)
        except BaseException:
            build.undo()
            if held and self._build is not None:
                publish.hand_out(self._running, self._running.workers, self._build.plans(number))
            if ports:
                rings.resume(self._running)
            raise
        self._publish(build, steps)

    def _publish(self, build: Build, steps: Sequence[Step]) -> None:
        spec = build.spec
        leaving = self._running.workers[spec.workers :]
        rings.to_sockets(self._running, {id(part.group) for part in build.ring_parts() if part.stays})
        build.keep_fields(adopted=False)
        build.mark_flow()
        build.incoming.share_ports()
        guard.judge_receivers(spec, build.receivers)
        self._failover.arrange(build.receivers, spec)
        joined = [state for state in build.outgoing.joined() if not state.standing.waiting]
        if not self._running.workers and not self._running.carried:
            joined = []  # no templates are known yet
        for state in joined:
            state.replay()
        build.incoming.turn_away()
        doors.begin(
            self._gateways, spec.listeners, [d for s in self._running.listeners.values() for d in s.all_doors()]
        )
        publish.hand_out(self._running, build.workers, steps[0].plans)
        for worker in leaving:
            worker.worker.publish(Plan(self._running.number, [], [], []))
        self._commit(build)
        self._running.generation = self._running.number
        self._running.plan = steps[-1].plans[0]
        publish.wait_for(self._running, [*build.workers, *leaving])
        for before, step in itertools.pairwise(steps):
            publish.wait_empty(before.emptied)
            publish.hand_out(self._running, build.workers, step.plans)
            self._running.generation = self._running.number
            publish.wait_for(self._running, build.workers)
        for intake, owner in build.owners.items():
            intake.owner = owner
        for worker in leaving:
            self._retire_worker(worker)
        guard.judge_listeners(build.listeners.values())
        build.keep_fields(adopted=True)
        self._running.keep = build.keep
        if joined or spec.pools:
            publish.wake(build.workers)
        rings.to_rings(self._running, build.ring_parts())
        self._follow_links()
        replicate.follow(self._running)
        while self._debris:
            self._debris.pop()()
        build.incoming.close_unused()
        for worker in build.workers:
            cpu = spec.cpus[worker.index % len(spec.cpus)] if spec.cpus else None
            if cpu != worker.cpu:
                worker.pin(cpu)
        for listener in build.listeners.values():
            for intake in listener.sockets():
                if intake.requested != spec.receive_buffer:
                    intake.resize(spec.receive_buffer)

    def _commit(self, build: Build) -> None:
        """From here on the new plan runs. What it does not name any more is closed when no worker can use it."""
        self._build = build
        for name, receiver in self._running.receivers.items():
            self._debris.append(partial(receiver.close_but, build.receivers.get(name)))
        unresolved = {wanted.name: wanted.unresolved for wanted in build.spec.listeners}
        with self._running.lock:
            for name, listener in build.listeners.items():
                listener.leaving += [intake for intake in listener.open() if intake not in build.owners]
                listener.leaving += build.incoming.strays.get(name, ())
                listener.intakes = build.incoming.groups[name]
                before = listener.down_why()
                listener.missing = build.incoming.missing[name]
                listener.unresolved = unresolved[name]
                guard.say_listener(listener, before)
                listener.receive, listener.receive_why = build.receive[name]
                listener.rings = {}
                for interface, part in build.rings[name].items():
                    part.group.intakes = part.intakes
                    listener.rings[interface] = part.group
                listener.doors = build.doors[name]
                if listener.leaving:
                    self._debris.append(partial(self._close_leaving, listener))
            gone_listeners = []
            for name in self._running.listeners.keys() - build.listeners.keys():
                gone = self._running.listeners[name]
                gone_listeners.append(gone)
                gone.leaving += gone.open()
                gone.intakes = {}
                gone.rings = {}
                gone.doors = {}
                self._debris.append(partial(self._close_leaving, gone))
            guard.share_casts(build.casts, [*build.listeners.values(), *gone_listeners])
            self._running.listeners = build.listeners
            self._running.receivers = build.receivers
            self._running.carried, self._running.drops = {}, {}
            hosts: dict[tuple[bytes, int], Host] = {}
            for receiver in build.receivers.values():
                receiver.reach.adopt(receiver.spec)
                if isinstance(receiver.spec.delivery, Udp):
                    where = receiver.spec.delivery.address, receiver.spec.delivery.scope_id
                    receiver.reach.stay_at(hosts.setdefault(where, Host()))
            self._running.pool_ids = build.pool_ids
            self._running.pools_made = max([self._running.pools_made, *build.pool_ids.values()])
            self._running.workers = build.workers
            self._running.ingress = build.ingress
            self._running.aliases = build.aliases
            self._running.withheld &= {key.port for missing in build.incoming.missing.values() for key in missing}
            for worker in build.workers:
                worker.worker.withhold(*self._running.withheld)
            self._running.spec = build.spec
            self._running.batch = self._running.batch or build.spec.batch
            self._running.max_datagram = self._running.max_datagram or build.spec.max_datagram
            if self._running.max_delay_us < 0:
                self._running.max_delay_us = build.spec.max_delay_us
            self._running.flows.set_template_life(build.spec.template_life_minutes)
            self._running.started_unix = time.time()

    def can_open(self) -> tuple[str, ...]:
        """Names of the listeners and receivers that a socket could be opened for now which could not be before. Opens
        it and closes it again; apply() opens it for good.
        """
        with self._lock:
            if self._ended or self._running.spec is None:
                return ()
            running = self._running.receivers
            refused = [wanted for wanted in self._running.spec.receivers if not wanted.missing]
            receivers = [w.name for w in refused if running[w.name].spec.missing and could_send(w, self._gateways)]
            listeners = list(self._running.listeners.values())
            on_port: dict[int, list[socket.socket]] = {}
            for state in listeners:
                for intake in state.sockets():
                    on_port.setdefault(intake.spec.port, []).append(intake.sock)
            missing = [state for state in listeners if state.missing]
            self._tried += RETRIES
            could = [state.name for state in missing if could_open(state, on_port, self._tried, self._withhold)]
            return (*could, *receivers)

    def caught_up(self) -> tuple[str, ...]:
        """Names of listeners that have read what was handed in, so that apply() opens sockets for the other workers."""
        with self._lock:
            return () if self._ended or self._build is None else tuple(self._build.incoming.caught_up())

    def _withhold(self, port: int) -> bool:
        """From now on no worker has a socket of its own on this port, until the listener that waits for it has it.
        False: they were closed before, so another program has the port.
        """
        if port in self._running.withheld:
            return False
        self._running.withheld |= {port}
        withhold_ports(self._running.workers, self._running.withheld)
        return True

    def _follow_links(self) -> None:
        """Has the next hops of receivers that get frames followed, from the first such receiver on."""
        receivers = self._running.receivers
        states = {n: s for n, s in receivers.items() if s.spec.framed and not s.spec.missing}
        if all(worker.packet is None for worker in self._running.workers):
            for name in [name for name, state in states.items() if state.spec.udp.frames]:
                states.pop(name).set_link(None, "packet sockets are not permitted")
        if not states and self._links is None:
            return
        self._links = self._links or links.Links(partial(replicate.again, self._running))
        self._links.follow(
            {
                name: links.Target(udp.address, udp.scope_id, state.set_link, careful=udp.frames)
                for name, state in states.items()
                for udp in (state.spec.udp,)
            }
        )

    def _close_leaving(self, state: ListenerState) -> None:
        with self._running.lock:
            gone = state.retire()
        for intake in gone:
            intake.close()

    def _retire_worker(self, worker: WorkerThread) -> None:
        if not worker.end(0, 5.0):
            log.error("worker %d does not stop", worker.index)
        ending.keep_latency(self._running, worker)

    # ------------------------------------------------------------------ end

    def drain_and_stop(self, timeout: float, *, refuse: bool = True) -> None:
        """Forwards what is queued, for at most `timeout` seconds, stops the workers and closes everything. From its
        beginning the sockets accept no more datagrams: the kernel refuses them and counts them as drops of the
        listener. Otherwise datagrams that arrive after the last read would be lost without being counted. refuse False:
        they accept datagrams; somebody else may have the sockets, too.
        """
        with self._lock:
            begun = time.monotonic()
            self._ended = True
            rings.to_sockets(self._running)
            if refuse:
                ending.refuse_all(self._running)
            left = self._stop(timeout)
            if left and refuse:
                text = "%d bytes of received data were not forwarded after %.3f s of draining (drain_timeout: %g s)"
                log.warning(text, left, time.monotonic() - begun, timeout)

    def leave(self, kept: Set[str] | None = None) -> None:
        """Stops the workers and closes everything, while somebody else has the sockets with these labels, too
        (sockets(); None: all): what waits in them stays for the next process. Other sockets are read out.
        """
        with self._lock:
            if not self._ended and self._build is not None:
                self._ended = True
                try:
                    publish.pause(self._running, self._build)
                    if kept is not None:
                        publish.leave_others(self._running, self._build, kept)
                except publish.WorkerStuck as error:
                    log.error("%s; what it has read is lost", error)
            self._ended = True
            self._stop(0.0)

    def _stop(self, timeout: float) -> int:
        """Returns the bytes that wait in sockets, rings and doors when the workers have ended."""
        replicate.leave(self._running)
        if not ending.end_workers(self._running, timeout):
            return 0
        if self._links is not None:
            self._links.close()
        replicate.close(self._running)
        return ending.close_all(self._running)

    # ------------------------------------------------------------------ from and to another process

    def prepare(self, spec: PlanSpec) -> None:
        """Before follow(): opens what takes long for the first plan and disturbs nobody: rings. Raises BuildError."""
        with self._lock:
            build = Build(spec, self._running, Opened(), generation=1, gateways=self._gateways)
            try:
                build.open_states()
            except BaseException:
                build.undo()
                raise
            self._running.listeners |= build.listeners
            self._begun = build

    def follow(self, source: Source, state: bytes) -> None:
        """Before the first plan: this process goes on where another one has paused. state: see __init__."""
        with self._lock:
            self._source = source
            self._state = state or self._state
            self._taken_up = not (self._state_file or self._state)

    @contextlib.contextmanager
    def no_saving(self) -> Iterator[None]:
        """Waits for the state file that is being written, and lets nobody write it within."""
        with self._saving:
            yield

    def given(self) -> None:
        """Another process has taken over: the state file is its file now."""
        with self._saving:
            self._state_file = ""

    def sockets(self) -> list[tuple[str, socket.socket]]:
        """The sockets of all listeners, and the labels by which another process knows them (sources.HandedIn)."""
        with self._lock:
            return [(i.label, i.sock) for state in self._running.listeners.values() for i in state.sockets()]

    def pause(self) -> None:
        """The workers read nothing more, so that another process can read the sockets; what was read is sent. Until
        resume() nothing changes: plans are refused, and states of receivers are not looked at. Raises WorkerStuck.
        """
        with self._lock:
            if self._ended or self._build is None:
                raise RuntimeError("nothing runs")
            self._ended = True
            try:
                publish.pause(self._running, self._build)
            except publish.WorkerStuck:
                self._ended = False
                raise

    def resume(self) -> None:
        """The other process did not take over: reads on. Raises WorkerStuck."""
        with self._lock:
            if self._build is None or not self._running.workers:
                raise RuntimeError("nothing runs")
            self._ended = False
            publish.resume(self._running, self._build)
            guard.share_casts(self._build.casts, self._running.listeners.values())

    def final_state(self) -> bytes:
        """After pause(): everything that the next process takes up (state), counters too."""
        with self._saving:
            with self._running.lock:
                taken = carry.snapshot(self._running, final=True)
            return carry.to_bytes(taken) if taken is not None else b""

    def save_state(self) -> carry.Saved | None:
        """Writes the state file, in the caller's thread: it may take seconds. After drain_and_stop() it is the last
        word, counters too. None: there is no such file, or no plan ran yet. Raises OSError; then the file is as it was.
        """
        with self._saving:
            if not self._state_file:
                return None
            with self._running.lock:
                taken = carry.snapshot(self._running)
            return carry.save(taken, self._state_file) if taken is not None else None

    # ------------------------------------------------------------------ while it runs

    def housekeeping(self) -> tuple[str, ...]:
        """Every few seconds: path MTU, receivers that had no route, what is up. Returns receivers whose own source
        address or gateway is gone, and listeners whose gateway is: apply() opens them again.
        """
        with self._lock:
            if self._ended:
                return ()
            now = time.monotonic()
            self._follow(self._those(list(self._running.receivers.values()), lambda state: state.refresh(now)))
            self.taps.tidy()
            replicate.tidy(self._running, now)
            if self._links is not None:
                self._links.lapse()
            ports = abilities.source_ports()
            for worker in self._running.workers:
                worker.choose_from(ports)
                if self._gate.add(("worker", str(worker.index)), worker.worker.unpolled, now):
                    text = "worker %d: epoll refuses %d sockets, so the worker reads them every millisecond"
                    log.warning(text + "; raise fs.epoll.max_user_watches", worker.index, worker.worker.unpolled)
            for state in self._running.receivers.values():
                for feature in state.newly_given_up():
                    words = f"{REFUSED[feature]}; next try in a minute, then less often"
                    log.warning("receiver %r: %s", state.spec.name, words)
                for feature in state.newly_regained(now):
                    log.info("receiver %r: %s", state.spec.name, REGAINED[feature])
            if self._running.plan is not None and self._running.spec is not None:
                self._failover.mark_templates(self._running.plan, self._running.spec)
            lost = [name for name, state in self._running.receivers.items() if state.lost]
            return (*lost, *(name for name, state in self._running.listeners.items() if state.lost))

    def replay(self, receiver: str) -> None:
        """Has the workers send templates and options data of all exporters to a receiver again; its gateway has a
        new session. Nothing when there is no such receiver.
        """
        with self._lock:
            state = self._running.receivers.get(receiver)
            if state is not None and not self._ended:
                state.replay()
                publish.wake(self._running.workers)

    def follow_host(self) -> None:
        """Addresses or interfaces of this host have changed, or may have: judges again which receivers are this host,
        and which socket takes broadcasts.
        """
        with self._lock:
            if self._running.spec is not None and not self._ended:
                guard.follow_host(self._running.spec, self._running.receivers, self._running.listeners.values())
        self.look()

    def look(self, *, sparing: bool = False) -> None:
        """Several times per second: updates the states of the receivers and acts on changes. Does nothing while a plan
        changes. sparing: receivers whose state can hardly have changed are checked less often.
        """
        if self._ended or not self._lock.acquire(blocking=False):
            return
        try:
            now = time.monotonic()
            self._looks += 1
            states = list(self._running.receivers.values())
            if sparing and not self._has_stirred(self._stirs[0]):
                states = [s for n, s in enumerate(states, self._looks) if not s.calm or n % SPARED == 0]
            self._follow(self._those(states, lambda state: state.look(now)))
        finally:
            self._lock.release()

    def _has_stirred(self, stir: Stir) -> bool:
        return stir.any(self.generation, self.view.received(), self._running.workers)

    def _those(
        self, states: Sequence[ReceiverState], has_changed: Callable[[ReceiverState], bool]
    ) -> list[ReceiverState]:
        """The receivers whose state has changed. A receiver that cannot be checked now (no free descriptor, no memory)
        is checked again next time, and does not stop the check of the others.
        """
        changed = []
        for state in states:
            try:
                if has_changed(state):
                    changed.append(state)
            except Exception as error:
                if self._gate.add(("receiver", state.spec.name), 1, time.monotonic()):
                    defect = None if isinstance(error, OSError) else error
                    log.warning(
                        "the state of receiver %r cannot be read now: %s", state.spec.name, error, exc_info=defect
                    )
        return changed

    def _follow(self, changed: Sequence[ReceiverState]) -> None:
        if changed:
            self._failover.follow(changed)
            publish.wake(self._running.workers)
        self._failover.finish_returns()

    def watch_neighbors(self, *, sparing: bool = False) -> None:
        """Several times per second: tells the datapath which next hops do not answer. sparing: the
        kernel has reported no change since the last time.
        """
        with self._lock:
            states = list(self._running.receivers.values())
            if self._ended:
                return
            now = time.monotonic()
            stirred = self._has_stirred(self._stirs[1])
            if sparing and not stirred and now < self._watch_at:
                self._accounts.rest(states, now)
                return
            _, gone = self._accounts.take(states)
            if gone is None:
                return
            now = time.monotonic()
            for state in states:
                if not state.spec.missing:
                    state.set_accounted(state.standing.account.sight.state in ASKED_IN_VAIN, now)
                    state.set_unresolved(state.spec.name in gone)
            well = all(state.at_ease for state in states)
            self._watch_at = now + WATCH_SECONDS if well else 0.0
