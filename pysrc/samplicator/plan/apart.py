"""Apart: whether a collector can distinguish exporters whose copies are not spoofed, and the warning if it cannot.

NetFlow v9 and IPFIX templates are unique per exporter and domain only (RFC 3954 section 9; RFC 7011 section 8, per
transport session). Unspoofed copies of all exporters come from one address and port: exporters that use the same domain
and template numbers, as most do, overwrite each other's templates at the collector, which then decodes their flows
wrongly without an error. Pure: specs in, sentences out. Called by planner and explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from samplicator.config.address import ParsedSource
from samplicator.plan.spec import ListenerSpec, PoolSpec, ReceiverSpec, RuleSpec

OTHER_PORTS: Final = frozenset({161, 162, 514, 601, 1514, 6343, 6514, 10162, 10514})
"""Ports of syslog, SNMP and sFlow by custom: what comes there has no templates."""
SHOWN: Final = 5
ONE: Final = b"\xff" * 16
REMEDY: Final = 'set spoof = true, source_port = "per-session" or domain = "unique"'


def warnings(
    listeners: Sequence[ListenerSpec],
    receivers: Sequence[ReceiverSpec],
    rules: Sequence[RuleSpec],
    pools: Sequence[PoolSpec],
) -> list[str]:
    """Warnings for the operator: receivers where templates of several exporters can collide, and domains that cannot be
    replaced."""
    flowing = {listener.index for listener in listeners if listener.flow and _may_flow(listener)}
    deaf = {listener.index: listener.name for listener in listeners if not listener.flow}
    everywhere = frozenset(listener.index for listener in listeners)
    first: dict[int, ParsedSource] = {}
    several: set[int] = set()
    quiet: dict[tuple[int, int], None] = {}
    for rule in rules:
        heard = everywhere if rule.listeners is None else frozenset(rule.listeners)
        named = {*rule.receivers, *(index for pool in rule.pools for index, _ in pools[pool].members)} - several
        for index in named:
            receiver = receivers[index]
            if receiver.apart:
                quiet.update(dict.fromkeys((index, i) for i in sorted(heard & deaf.keys())))
            elif receiver.tells_exporters or not heard & flowing:
                continue
            elif _several(rule, first, index):
                several.add(index)
    mixed = [receivers[index].name for index in sorted(several)]
    blind = [f"{receivers[index].name!r} (listener {deaf[i]!r})" for index, i in sorted(quiet)]
    found = []
    if mixed:
        found.append(
            f"{_listed(mixed)}: copies are not spoofed, so NetFlow v9 and IPFIX of several exporters reach the "
            "collector from one address and port, and the collector can mix up their templates; "
            f'{REMEDY}, or set flow = "off" on listeners without flow telemetry'
        )
    if blind:
        found.append(
            f'receiver {", ".join(blind)}: the listener has flow = "off", so copies of NetFlow v9 and IPFIX keep their '
            "domains; remove that `flow` or the receiver's `domain` and `source_port`"
        )
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN]))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{'receiver' if len(names) == 1 else 'receivers'} {shown}{more}"


def _may_flow(listener: ListenerSpec) -> bool:
    return any(socket.port not in OTHER_PORTS for socket in listener.sockets)


def _several(rule: RuleSpec, first: dict[int, ParsedSource], index: int) -> bool:
    """Whether the rule's sources are more than one exporter, with those of the rules before (first: one of them)."""
    return any(
        source.mask != ONE or first.setdefault(index, source).address != source.address for source in rule.sources
    )
