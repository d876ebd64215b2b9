"""View: reads what runs, and changes nothing.

Purpose: the reading half of the supervisor: readings (all counters), the flow stage page by page, who gets an
exporter's datagrams. Invariants: never waits, takes no lock that a worker takes. Called by views, http, service and
failover's neighbors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from samplicator._fastpath import LATENCY_BOUNDS_NS
from samplicator.datapath import aliases
from samplicator.datapath.counters import DATAGRAMS
from samplicator.health.accounts import Accounts
from samplicator.health.failover import Failover
from samplicator.health.receiver import PROBE_UNRESOLVED
from samplicator.health.running import Running
from samplicator.plan.spec import PlanSpec
from samplicator.readings import Activity, AliasReading, Domain, FlowTemplate, Readings, Route, Unmatched, add_up

HEARTBEAT_SECONDS: Final = 5.0
"""A worker beats at least once a second; older than this it is stuck."""


class View:
    """Of one supervisor's running state. Any thread may ask."""

    def __init__(self, running: Running, failover: Failover, accounts: Accounts) -> None:
        self._running = running
        self._failover = failover
        self._accounts = accounts

    @property
    def spec(self) -> PlanSpec | None:
        """The plan that runs."""
        return self._running.spec

    @property
    def generation(self) -> int:
        """How many plans were published so far."""
        return self._running.generation

    def readings(self) -> Readings:
        """All counters now. Takes no lock that a worker takes."""
        with self._running.lock:
            listeners = tuple(state.read() for state in self._running.listeners.values())
            receivers = list(self._running.receivers.values())
            workers = list(self._running.workers)
            latency, latency_sum = [self._running.gone_latency], self._running.gone_latency_sum_ns
            pools = self._failover.pools(self._running.spec) if self._running.spec is not None else ()
        shown, _ = self._accounts.take(receivers)
        for worker in workers:
            counts, total = worker.worker.latency()
            latency.append(counts)
            latency_sum += total
        return Readings(
            generation=self._running.generation,
            listeners=listeners,
            receivers=tuple(state.read(counters) for state, counters in zip(receivers, shown, strict=True)),
            workers=tuple(worker.read() for worker in workers),
            latency_counts=add_up(latency),
            latency_sum_ns=latency_sum,
            plan_started_unix=self._running.started_unix,
            flow=self._running.flows.read(),
            pools=pools,
            latency_bounds_ns=LATENCY_BOUNDS_NS,
        )

    def domains(
        self, worker: int = 0, after: int = 0, limit: int = 1000
    ) -> tuple[list[Domain], tuple[int, int] | None]:
        """Exporters' observation domains, a page: see Flows.sessions."""
        return self._running.flows.sessions(worker, after, limit)

    def flow_extent(self) -> dict[int, int]:
        """The largest number of an observation domain, by worker."""
        return self._running.flows.extent()

    def flow_activity(self, worker: int, numbers: Iterable[int]) -> list[Activity]:
        """What they have counted, in short: see Flows.activity."""
        return self._running.flows.activity(worker, numbers)

    def flow_templates(self, worker: int, number: int, after: int = -1) -> Iterator[FlowTemplate]:
        """Templates of one of them, by id, above `after`."""
        return self._running.flows.templates(worker, number, after)

    def flow_options(self, worker: int, number: int) -> list[FlowTemplate]:
        """Its options templates and options data."""
        return self._running.flows.options(worker, number)

    def unmatched(self, limit: int = 1000) -> list[Unmatched]:
        """Exporters that no rule of the plan matches, on listeners with flow, the busiest first. One that a rule with
        stop and without receivers matches is denied, not unmatched.
        """
        return self._running.flows.without_rule(self._running.plan, self.listener_names(), limit)

    def aliases(self, after: int, limit: int) -> tuple[list[AliasReading], int]:
        """A page of who has which alias of a domain: see aliases.rows."""
        return aliases.rows(self._running.aliases, after, limit)

    def aliases_unlisted(self) -> int:
        """Times that an alias was given and there was no room to remember it."""
        return self._running.aliases.handle.unlisted if self._running.aliases is not None else 0

    def received(self) -> int:
        """Datagrams received so far, forwarded or not."""
        with self._running.lock:
            return sum(i.counters.read()[DATAGRAMS] for state in self._running.listeners.values() for i in state.open())

    def stuck(self, limit_seconds: float = HEARTBEAT_SECONDS) -> str:
        """Which worker has shown no heartbeat, and for how long; "" when all workers run."""
        return next((why for worker in list(self._running.workers) if (why := worker.stuck(limit_seconds))), "")

    def route(self, address: bytes, port: int = 0, listener: str = "") -> Route:
        """Who gets the datagrams of an exporter now. The listener is named, or found by a port of its; else the
        first.
        """
        plan, spec = self._running.plan, self._running.spec
        if plan is None or spec is None:
            raise RuntimeError("no plan is running")
        names = [item.name for item in spec.listeners]
        if not listener:
            by_port = [item.name for item in spec.listeners if any(s.port == port for s in item.sockets)]
            listener = (by_port or names)[0]
        if listener not in self._running.listeners:
            raise KeyError(listener)
        rules, ways, denied = plan.route(address, self._running.listeners[listener].slot)
        return Route(
            rules=tuple(spec.rules[index].text for index in rules),
            rule_indexes=rules,
            receivers=tuple(spec.receivers[index].name for index in ways if index < len(spec.receivers)),
            denied=denied,
            pools=tuple(spec.pools[i - len(spec.receivers)].name for i in ways if i >= len(spec.receivers)),
        )

    def listener_name(self, slot: int) -> str:
        """Name of the listener whose sockets carry this index (see Worker.trace)."""
        return next((state.name for state in self._running.listeners.values() if state.slot == slot), "")

    def listener_names(self) -> dict[int, str]:
        """The same, of all."""
        return {state.slot: state.name for state in list(self._running.listeners.values())}

    def grants(self) -> dict[str, tuple[int, int]]:
        """Receive buffer per socket by listener: (asked for, least granted), in bytes."""
        with self._running.lock:
            return {
                name: (
                    max((intake.requested for intake in state.sockets()), default=0),
                    min((intake.granted for intake in state.sockets()), default=0),
                )
                for name, state in self._running.listeners.items()
            }

    def missing(self) -> tuple[str, ...]:
        """What does not work because this host lacks something, one sentence each, listeners first."""
        with self._running.lock:
            listeners = [(state.name, state.state, state.down_why()) for state in self._running.listeners.values()]
            receivers = list(self._running.receivers.values())
        said = [f"listener {name!r} is {state}: {why}" for name, state, why in listeners if why]
        lacking = [(s.spec.name, s.spec.missing or PROBE_UNRESOLVED * s.probe_unresolved) for s in receivers]
        return (*said, *(f"receiver {name!r} is unreachable: {why}" for name, why in lacking if why))
