"""What runs: listeners, receivers, workers and what they share.

One owner: the supervisor changes it, under its lock; failover reads it. Nothing here acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from samplicator.datapath.flows import Flows
from samplicator.datapath.intakes import ListenerState
from samplicator.datapath.thread import WorkerThread
from samplicator.health.receiver import ReceiverState
from samplicator.host.ingress import Ingress

if TYPE_CHECKING:
    from samplicator._fastpath import Aliases


@dataclass(slots=True)
class Running:
    """What runs now. batch, max_datagram and max_delay_us are of the first plan: they hold until a restart. pool_ids:
    by name, kept while the pool exists; pools_made: the last of them. aliases: from the first plan that needs any on.
    keep: what the sockets hand over with each datagram. strict: a port that is taken ends the start, as samplicate's
    user expects it.
    """

    listeners: dict[str, ListenerState] = field(default_factory=dict)
    receivers: dict[str, ReceiverState] = field(default_factory=dict)
    workers: list[WorkerThread] = field(default_factory=list)
    ingress: Ingress | None = None
    batch: int = 0
    max_datagram: int = 0
    max_delay_us: int = -1
    flows: Flows = field(default_factory=Flows)
    pool_ids: dict[str, int] = field(default_factory=dict)
    pools_made: int = 0
    aliases: Aliases | None = None
    strict: bool = False
    keep: Mapping[str, bool] = field(default_factory=lambda: {"ttl": False, "tos": False})
