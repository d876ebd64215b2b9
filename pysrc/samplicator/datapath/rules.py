"""Rules and pools as the compiled datapath takes them, and a dry plan of them.

Purpose: converts specs to the arguments of _fastpath.Plan. Invariants: each rule is made when it is read, because there
can be tens of thousands. Called by supervisor, and by the command line for a dry plan. It must never publish a plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from samplicator import _fastpath
from samplicator._fastpath import Plan, Tx, TxCounters
from samplicator.datapath.doors import identity
from samplicator.datapath.ways import DISCARD, ENGINES
from samplicator.plan.spec import PlanSpec, PoolSpec, ReceiverSpec, RuleSpec, Udp

BALANCES: Final = {"exporter-hash": _fastpath.POOL_EXPORTER_HASH, "round-robin": _fastpath.POOL_ROUND_ROBIN}
FastPool = tuple[int, int, Sequence[tuple[int, int]]]
FastRule = tuple[Sequence[tuple[int, bytes, bytes]], Sequence[int] | None, Sequence[int], bool]


@dataclass(frozen=True, slots=True)
class FastRules(Collection[FastRule]):
    """Rules as a Plan wants them, each made when it is asked for: there may be tens of thousands. receivers: their
    number, which the numbers of pools follow. slots: listener index of the plan -> index the sockets carry; None = the
    same.
    """

    rules: Sequence[RuleSpec]
    receivers: int
    slots: Mapping[int, int] | None = None

    def __len__(self) -> int:
        return len(self.rules)

    def __contains__(self, rule: object) -> bool:
        return any(rule == one for one in self)

    def __iter__(self) -> Iterator[FastRule]:
        for rule in self.rules:
            yield (
                [(source.family, source.address, source.mask) for source in rule.sources],
                None if rule.listeners is None else [self.slots[i] if self.slots else i for i in rule.listeners],
                (*rule.receivers, *(self.receivers + pool for pool in rule.pools)),
                rule.stop,
            )


def fast_pools(pools: Sequence[PoolSpec], ids: Mapping[str, int]) -> list[FastPool]:
    """Pools as a Plan wants them. ids: by name."""
    return [(ids[pool.name], BALANCES[pool.balance], pool.members) for pool in pools]


def dry_plan(spec: PlanSpec) -> Plan:
    """A plan that is never published: for `route()` on a configuration that does not run. Opens nothing."""
    pools = fast_pools(spec.pools, {pool.name: number for number, pool in enumerate(spec.pools, 1)})
    rules = FastRules(spec.rules, len(spec.receivers))
    return Plan(0, [], [_dry_tx(receiver) for receiver in spec.receivers], rules, pools)


def _dry_tx(spec: ReceiverSpec) -> Tx:
    counters = TxCounters()
    if not isinstance(spec.delivery, Udp):
        return Tx(_fastpath.ENGINE_DOOR, -1, counters, identity(spec), 1)
    udp = spec.delivery
    address, port = udp.address, udp.port or DISCARD
    if spec.engine == "udp":
        return Tx(_fastpath.ENGINE_UDP, -1, counters, address, port)
    if udp.spoof:
        other = Tx(_fastpath.ENGINE_UDP, -1, counters, address, port)
        return Tx(ENGINES[spec.engine], -1, counters, address, port, fallback=other)
    return Tx(_fastpath.ENGINE_RAW, -1, counters, address, port, source=udp.source or (address, port))
