"""What runs: the plan, its listeners, receivers and workers, and what they share.

One owner: the supervisor changes it, between two plans and under its lock; build, failover and view only read. Changes
of what a view shows also hold `lock`, which no worker takes. Pure data.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from samplicator.datapath.counters import NO_LATENCY
from samplicator.datapath.flows import Flows
from samplicator.datapath.intakes import ListenerState
from samplicator.datapath.thread import WorkerThread
from samplicator.health.receiver import ReceiverState, Standing
from samplicator.host.copier import Copier
from samplicator.host.ingress import Ingress
from samplicator.host.offload import Offload
from samplicator.plan.spec import PlanSpec

if TYPE_CHECKING:
    from samplicator._fastpath import Plan, TxCounters
    from samplicator.datapath.aliases import Table


@dataclass(slots=True)
class CarriedReceiver:
    """What is known of a receiver from the process before this one. same: it is where it was, and known by the same:
    it has the templates. counters: by worker index.
    """

    same: bool
    counters: dict[int, TxCounters] = field(default_factory=dict)
    takeovers: int = 0

    def go_on(self, standing: Standing, totals: tuple[int, ...]) -> None:
        """What was counted before says nothing of the receiver's state now."""
        standing.takeovers = self.takeovers
        standing.seen = totals
        standing.account.begin(totals)


@dataclass(slots=True)
class Running:
    """What runs now. batch, max_datagram and max_delay_us are of the first plan: they hold until a restart.
    pool_ids: by name, kept while the pool exists; pools_made: the last of them. aliases: from the first plan that
    needs any on. withheld: ports that listeners wait for and that are taken: no worker has a socket of its own
    there. keep: what the sockets hand over with each datagram. strict: a port that is taken ends the start, as
    samplicate's user expects it. copier, offload: make copies in the kernel, as the first plan wants it;
    no_offload: why not; no_express: what XDP lacks, and express_tried when. lock: see above. spec, plan,
    generation, started_unix: of the newest plan; plan is one worker's, for questions. number: of the plans that the
    workers have now; larger than generation while sockets are held back. gone_latency, gone_latency_sum_ns: of
    workers that have ended. carried: receivers that were taken up from a state file, by name, until the first plan
    runs; drops: of sockets that were handed in, by cookie, likewise.
    """

    listeners: dict[str, ListenerState] = field(default_factory=dict)
    receivers: dict[str, ReceiverState] = field(default_factory=dict)
    workers: list[WorkerThread] = field(default_factory=list)
    ingress: Ingress | None = None
    batch: int = 0
    max_datagram: int = 0
    max_delay_us: int = -1
    copier: Copier | None = None
    offload: Offload | None = None
    no_offload: str = "it needs a restart"
    no_express: tuple[str, ...] = ()
    express_tried: float = 0.0
    flows: Flows = field(default_factory=Flows)
    pool_ids: dict[str, int] = field(default_factory=dict)
    pools_made: int = 0
    aliases: Table | None = None
    withheld: frozenset[int] = frozenset()
    strict: bool = False
    keep: Mapping[str, bool] = field(default_factory=lambda: {"ttl": False, "tos": False})
    lock: threading.Lock = field(default_factory=threading.Lock)
    spec: PlanSpec | None = None
    plan: Plan | None = None
    generation: int = 0
    number: int = 0
    started_unix: float = 0.0
    gone_latency: tuple[int, ...] = NO_LATENCY
    gone_latency_sum_ns: int = 0
    carried: dict[str, CarriedReceiver] = field(default_factory=dict)
    drops: dict[int, int] = field(default_factory=dict)
