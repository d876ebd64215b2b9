"""Rules: which receivers and pools the rules of a plan name, including standbys and the pods of Services.

Pure: a checked configuration and resolved addresses in, specs out. Called by planner. It must never ask the host
anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from samplicator.config.address import MAPPED, ParsedSource
from samplicator.config.model.loaded import Loaded
from samplicator.config.model.whole import Config
from samplicator.plan.spec import PlanSpec, PoolSpec, ReceiverSpec, Resolved, RuleSpec

BALANCE: Final = "exporter-hash"
"""How the pods of a Service share the exporters: a collector keeps templates and sums of each exporter."""
_MAPPED_MASK: Final = b"\xff" * 12


def needed(config: Config) -> set[str]:
    """Names of the receivers whose state a standby or a pool acts on."""
    names = {receiver.standby_for for receiver in config.receiver if receiver.standby_for}
    names |= {receiver.name for receiver in config.receiver if receiver.service_port is not None}
    return names | {name for pool in config.pool for name in pool.members}


def places(receivers: Sequence[ReceiverSpec]) -> dict[str, list[int]]:
    """The indexes in the plan of each receiver that the operator wrote: several of one that is a Service."""
    found: dict[str, list[int]] = {}
    for index, receiver in enumerate(receivers):
        found.setdefault(receiver.written or receiver.name, []).append(index)
    return found


def pool_specs(config: Config, receivers: Mapping[str, Sequence[int]]) -> tuple[PoolSpec, ...]:
    """The pools, in the order of the configuration, then one for each receiver that is a Service and that a rule names:
    its pods share the exporters. receivers: see places.
    """
    written = [
        PoolSpec(
            pool.name,
            pool.balance,
            tuple(
                (index, weight)
                for name, weight in zip(pool.members, pool.weights, strict=True)
                for index in receivers[name]
            ),
        )
        for pool in config.pool
    ]
    named = {name for rule in config.rule for name in rule.to}
    services = [each.name for each in config.receiver if each.service_port is not None and each.name in named]
    return (*written, *(PoolSpec(name, BALANCE, tuple((i, 1) for i in receivers[name])) for name in services))


def rule_specs(
    loaded: Loaded, resolved: Resolved, receivers: Mapping[str, Sequence[int]], pools: Sequence[PoolSpec]
) -> tuple[RuleSpec, ...]:
    """The rules. A standby is a receiver of every rule that names its primary, right behind it. receivers: see places;
    pools: of the plan.
    """
    config = loaded.config
    listener_index = {listener.name: index for index, listener in enumerate(config.listener)}
    pool_index = {pool.name: index for index, pool in enumerate(pools)}
    receiver_index = {name: found[0] for name, found in receivers.items() if name not in pool_index}
    standbys: dict[str, list[str]] = {}
    for receiver in config.receiver:
        if receiver.standby_for:
            standbys.setdefault(receiver.standby_for, []).append(receiver.name)
    specs = []
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # of many rules most go to the same few
    for index, rule in enumerate(config.rule):
        sources = tuple(s for source in loaded.sources[index] for s in _expand(source, resolved))
        if sources == loaded.sources[index]:
            sources = loaded.sources[index]
        listeners = tuple(dict.fromkeys(listener_index[name] for name in rule.listener)) if rule.listener else None
        names = [each for name in rule.to for each in (name, *standbys.get(name, ()))]
        direct = tuple(dict.fromkeys(receiver_index[name] for name in names if name in receiver_index))
        direct = shared.setdefault(direct, direct)
        pooled = tuple(dict.fromkeys(pool_index[name] for name in rule.to if name in pool_index))
        specs.append(RuleSpec(sources, listeners, direct, rule.stop, rule, pooled))
    return tuple(specs)


def _expand(source: ParsedSource, resolved: Resolved) -> list[ParsedSource]:
    """A source as literals: a host name becomes each of its addresses, one that can never match becomes nothing."""
    if not source.host:
        return [] if source.never else [source]
    literals = []
    for address in resolved.get((source.host, source.family), ()):
        full = address.address if address.family == 6 else MAPPED + address.address
        mask = source.mask
        if address.family == 4 and mask[:12] != _MAPPED_MASK:
            continue
        masked = bytes(a & m for a, m in zip(full, mask, strict=True))
        literals.append(ParsedSource(address.family, masked, mask, source.text, source.host))
    return literals


@dataclass(frozen=True, slots=True)
class Routes:
    """Who may get the datagrams of which exporters: receivers by rule, those named by a pool too. A rule is a digest of
    its sources, listeners and `stop`; stops: the digests of those with stop.
    """

    names: Mapping[str, frozenset[str]]
    stops: frozenset[str]


def routes(spec: PlanSpec) -> Routes:
    """Of a plan."""
    found: dict[str, set[str]] = {}
    stops = set()
    for rule in spec.rules:
        listeners = None if rule.listeners is None else [spec.listeners[index].name for index in rule.listeners]
        sources = [(source.family, source.address, source.mask) for source in rule.sources]
        digest = hashlib.blake2b(repr((sources, listeners, rule.stop)).encode(), digest_size=12).hexdigest()
        names = found.setdefault(digest, set())
        names.update(spec.receivers[index].name for index in rule.receivers)
        names.update(spec.receivers[index].name for pool in rule.pools for index, _ in spec.pools[pool].members)
        if rule.stop:
            stops.add(digest)
    return Routes({digest: frozenset(names) for digest, names in found.items()}, frozenset(stops))


def widened(before: Routes, new: PlanSpec) -> set[str]:
    """Names of the receivers that the new rules may send exporters to which the old ones did not: the result may have
    too many names, but never too few."""
    after = routes(new)
    if before.stops != after.stops:
        return {receiver.name for receiver in new.receivers}  # who was stopped short of later rules
    return {name for rule, names in after.names.items() for name in names - before.names.get(rule, frozenset())}
