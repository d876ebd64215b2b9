"""Engines: from specs to the handles the compiled datapath works with: sockets that take in, ways that lead out, and
plans of them.

Purpose: pairs every _fastpath object with the Python sockets it lives on, so that nothing is closed too early or
forgotten. Invariants: a function either returns a whole object or raises and has closed what it opened; counters come
from the caller, who keeps them. Called by supervisor, and by the command line for a dry plan. It must never publish,
and never decide what runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samplicator import _fastpath
from samplicator._fastpath import Plan, Tx, TxCounters
from samplicator.engines.intakes import Intake, ListenerState, RingGroup, RingIntake, socket_key
from samplicator.engines.ways import ENGINES, Path, ReceiverState, Way, meets, receiver_key
from samplicator.plan import PlanSpec, ReceiverSpec, RuleSpec
from samplicator.readings import add_up

__all__ = [
    "Intake",
    "ListenerState",
    "Path",
    "ReceiverState",
    "RingGroup",
    "RingIntake",
    "Way",
    "add_up",
    "dry_plan",
    "fast_rules",
    "meets",
    "receiver_key",
    "socket_key",
]

FastRule = tuple[Sequence[tuple[int, bytes, bytes]], Sequence[int] | None, Sequence[int], bool]


def fast_rules(rules: Sequence[RuleSpec], slots: Mapping[int, int] | None = None) -> list[FastRule]:
    """Rules as a Plan wants them. slots: listener index of the plan -> index the sockets carry; None = the same."""
    return [
        (
            [(source.family, source.address, source.mask) for source in rule.sources],
            None if rule.listeners is None else [slots[i] if slots else i for i in rule.listeners],
            rule.receivers,
            rule.stop,
        )
        for rule in rules
    ]


def dry_plan(spec: PlanSpec) -> Plan:
    """A plan that is never published: for `route()` on a configuration that does not run. Opens nothing."""
    return Plan(0, [], [_dry_tx(receiver) for receiver in spec.receivers], fast_rules(spec.rules))


def _dry_tx(spec: ReceiverSpec) -> Tx:
    counters = TxCounters()
    address, port = spec.address, spec.port
    if spec.engine == "udp":
        return Tx(_fastpath.ENGINE_UDP, -1, counters, address, port)
    if spec.spoof:
        other = Tx(_fastpath.ENGINE_UDP, -1, counters, address, port)
        return Tx(ENGINES[spec.engine], -1, counters, address, port, fallback=other)
    return Tx(_fastpath.ENGINE_RAW, -1, counters, address, port, source=spec.source or (address, port))
