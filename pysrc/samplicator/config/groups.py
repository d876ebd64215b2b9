"""Checks of receivers that depend on each other: standbys and pools.

Called by config.validate. Never raises.
"""

from __future__ import annotations

from collections.abc import Iterator

from samplicator.config.draft import Draft, Finding, Suggest
from samplicator.config.model.loaded import Path
from samplicator.config.model.pool import Pool


def check_standbys(draft: Draft, suggest: Suggest) -> Iterator[Finding]:
    """Standbys: of whom, and whether somebody would notice that it is down."""
    receivers = {name: number for number, name in enumerate(draft.receiver_names) if name}
    pools = {name for name in draft.pool_names if name}
    for index, receiver in enumerate(draft.receiver):
        if receiver is None or not receiver.standby_for:
            continue
        path: Path = ("receiver", index, "standby_for")
        name = receiver.standby_for
        if name == receiver.name:
            yield Finding(path, "it cannot be its own standby; name the receiver whose copies it shall take over")
            continue
        if name not in receivers:
            if name in pools:
                why = f"{name!r} is a pool, which takes a member that is down out by itself; name a receiver"
            else:
                hint = suggest(name, set(receivers) - {receiver.name})
                why = f"unknown receiver {name!r}{hint}"
            yield Finding(path, why)
            continue
        primary = draft.receiver[receivers[name]]
        if primary is None:
            continue
        where = f"receiver[{receivers[name]}]"
        if primary.standby_for:
            why = f"{name!r} ({where}) is a standby itself, for {primary.standby_for!r}; name that one"
            yield Finding(path, why)
        elif primary.probe == "off":
            why = f'{name!r} ({where}) has probe = "off", so nobody would notice that it is down; leave its probe out'
            yield Finding(path, why)
        elif not any(rule is None or name in rule.to for rule in draft.rule):
            why = f"no rule names {name!r} itself, so there are no copies to take over"
            yield Finding(path, why, error=False)


def check_pools(draft: Draft, suggest: Suggest) -> Iterator[Finding]:
    """Pools: their names, members and weights."""
    receivers = {name: number for number, name in enumerate(draft.receiver_names) if name}
    first: dict[str, int] = {}
    for index, name in enumerate(draft.pool_names):
        if name is None:
            continue
        if name in first:
            yield Finding(("pool", index, "name"), f"{name!r} is already the name of pool[{first[name]}]")
        elif name in receivers:
            why = f"{name!r} is already the name of receiver[{receivers[name]}]; a rule could not tell which is meant"
            yield Finding(("pool", index, "name"), why)
        first.setdefault(name, index)
    silent = bool(draft.listener) and all(listener and listener.flow == "off" for listener in draft.listener)
    for index, pool in enumerate(draft.pool):
        if pool is None:
            continue
        yield from _members(draft, index, pool, receivers, set(first), suggest)
        yield from _weights(index, pool, suggest)
        if silent and len(pool.members) > 1:
            why = 'every listener has flow = "off": a member that takes over an exporter is not sent its templates'
            yield Finding(("pool", index), why, error=False)


def _members(
    draft: Draft, index: int, pool: Pool, receivers: dict[str, int], pools: set[str], suggest: Suggest
) -> Iterator[Finding]:
    seen: set[str] = set()
    for entry, name in enumerate(pool.members):
        path: Path = ("pool", index, "members", entry)
        if name in seen:
            yield Finding(path, f"{name!r} is named twice; a larger share is its `weight`")
        elif name in receivers:
            member = draft.receiver[receivers[name]]
            if member is not None and member.standby_for:
                why = f"{name!r} is a standby (receiver[{receivers[name]}].standby_for), which waits, and a member "
                yield Finding(path, why + "works; leave out one of the two")
            elif member is not None and member.probe == "off":
                why = f'{name!r} has probe = "off": it keeps its exporters when it is down'
                yield Finding(path, why, error=False)
        elif name in pools:
            yield Finding(path, f"{name!r} is a pool; pools have receivers as members: name those")
        else:
            yield Finding(path, f"unknown receiver {name!r}{suggest(name, receivers)}")
        seen.add(name)


def _weights(index: int, pool: Pool, suggest: Suggest) -> Iterator[Finding]:
    path: Path = ("pool", index, "weight")
    if isinstance(pool.weight, dict):
        for name in pool.weight:
            if name not in pool.members:
                yield Finding((*path, name), f"{name!r} is not among the members{suggest(name, pool.members)}")
    elif pool.weight and len(pool.weight) != len(pool.members):
        have, want = len(pool.weight), len(pool.members)
        why = f"{have} weight{'s' if have > 1 else ''} for {want} member{'s' if want > 1 else ''}; want one for each"
        yield Finding(path, why + f", or a table, as {{ {pool.members[0]} = 2 }}, with the others at 1")
