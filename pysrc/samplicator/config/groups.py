"""Checks of receivers that depend on each other: standbys, pools, and the pods of a Service.

Called by config.validate. Never raises.
"""

from __future__ import annotations

from collections.abc import Iterator

from samplicator.config.draft import Draft, Finding, Suggest
from samplicator.config.kubernetes import is_member_of, names_service
from samplicator.config.model.loaded import Path
from samplicator.config.model.pool import Pool


def check_standbys(draft: Draft, suggest: Suggest) -> Iterator[Finding]:
    """Checks of standbys: the primary exists, and its state is observed."""
    receivers = {name: number for number, name in enumerate(draft.receiver_names) if name}
    pools = {name for name in draft.pool_names if name}
    for index, receiver in enumerate(draft.receiver):
        if receiver is None or not receiver.standby_for:
            continue
        path: Path = ("receiver", index, "standby_for")
        name = receiver.standby_for
        if name == receiver.name:
            why = "a receiver cannot be its own standby; name the receiver whose copies it takes over"
            yield Finding(path, why)
            continue
        if name not in receivers:
            if name in pools:
                why = f"{name!r} is a pool; pools already leave out members that are down. Name a receiver"
            else:
                hint = suggest(name, set(receivers) - {receiver.name})
                why = f"there is no receiver {name!r}{hint}"
            yield Finding(path, why)
            continue
        primary = draft.receiver[receivers[name]]
        if primary is None:
            continue
        where = f"receiver[{receivers[name]}]"
        if names_service(primary.to):
            why = f"{name!r} ({where}) is a Kubernetes Service, and a standby needs one host; name another receiver"
            yield Finding(path, why)
            continue
        if primary.standby_for:
            why = (
                f"{name!r} ({where}) is itself a standby for {primary.standby_for!r}; name {primary.standby_for!r} here"
            )
            yield Finding(path, why)
        elif primary.probe == "off":
            why = (
                f'{name!r} ({where}) has probe = "off", so the standby would not see that it is down; remove that '
                "`probe`"
            )
            yield Finding(path, why)
        elif not any(rule is None or name in rule.to for rule in draft.rule):
            why = f"no rule names {name!r}, so the standby never gets copies; name {name!r} in `to` of a rule"
            yield Finding(path, why, error=False)


def check_services(draft: Draft) -> Iterator[Finding]:
    """Checks of receivers that are the pods of a Kubernetes Service."""
    for index, receiver in enumerate(draft.receiver):
        if receiver is None or receiver.service_port is None:
            continue
        path: Path = ("receiver", index)
        if receiver.standby_for:
            why = "the pods of a Kubernetes Service cannot be a standby; remove `standby_for`, or name a host in `to`"
            yield Finding((*path, "standby_for"), why)
        own = receiver.own_source
        if own is not None and own[2]:
            why = f"several pods cannot share the source port {own[2]}; write the address without a port"
            yield Finding((*path, "source"), why)
        if receiver.probe == "off":
            why = f'{receiver.name!r} has probe = "off", so a ready pod that does not receive keeps its exporters; '
            yield Finding((*path, "probe"), why + "remove that `probe`", error=False)
        names = [*draft.receiver_names, *draft.pool_names]
        for number, name in enumerate(names):
            if name is not None and is_member_of(name, receiver.name):
                table, place = "receiver", number
                if number >= len(draft.receiver_names):
                    table, place = "pool", number - len(draft.receiver_names)
                why = f"{name!r} is a name that samplicator gives to a pod of receiver[{index}]; write another name"
                yield Finding((table, place, "name"), why)


def check_pools(draft: Draft, suggest: Suggest) -> Iterator[Finding]:
    """Checks of pools: names, members and weights."""
    receivers = {name: number for number, name in enumerate(draft.receiver_names) if name}
    first: dict[str, int] = {}
    for index, name in enumerate(draft.pool_names):
        if name is None:
            continue
        if name in first:
            why = f"{name!r} is already the name of pool[{first[name]}]; write another name"
            yield Finding(("pool", index, "name"), why)
        elif name in receivers:
            why = f"{name!r} is already the name of receiver[{receivers[name]}]; write another name"
            yield Finding(("pool", index, "name"), why)
        first.setdefault(name, index)
    silent = bool(draft.listener) and all(listener and listener.flow == "off" for listener in draft.listener)
    for index, pool in enumerate(draft.pool):
        if pool is None:
            continue
        yield from _members(draft, index, pool, receivers, set(first), suggest)
        yield from _weights(index, pool, suggest)
        if silent and len(pool.members) > 1:
            why = 'every listener has flow = "off", so a member that takes over an exporter does not get its templates'
            yield Finding(("pool", index), why, error=False)


def _members(
    draft: Draft, index: int, pool: Pool, receivers: dict[str, int], pools: set[str], suggest: Suggest
) -> Iterator[Finding]:
    seen: set[str] = set()
    for entry, name in enumerate(pool.members):
        path: Path = ("pool", index, "members", entry)
        if name in seen:
            yield Finding(path, f"{name!r} is named twice; remove one, and write `weight` for a larger share")
        elif name in receivers:
            member = draft.receiver[receivers[name]]
            if member is not None and member.standby_for:
                where = f"receiver[{receivers[name]}]"
                why = f"{name!r} ({where}) is a standby, and a standby cannot be a pool member; remove "
                yield Finding(path, why + f"{name!r} here or its `standby_for`")
            elif member is not None and member.probe == "off":
                why = (
                    f'{name!r} has probe = "off", so the pool keeps sending to it while it is down; remove that `probe`'
                )
                yield Finding(path, why, error=False)
        elif name in pools:
            yield Finding(path, f"{name!r} is a pool, and the members of a pool must be receivers; name receivers")
        else:
            yield Finding(path, f"there is no receiver {name!r}{suggest(name, receivers)}")
        seen.add(name)


def _weights(index: int, pool: Pool, suggest: Suggest) -> Iterator[Finding]:
    path: Path = ("pool", index, "weight")
    if isinstance(pool.weight, dict):
        for name in pool.weight:
            if name not in pool.members:
                yield Finding((*path, name), f"{name!r} is not a member of this pool{suggest(name, pool.members)}")
    elif pool.weight and len(pool.weight) != len(pool.members):
        have, members = len(pool.weight), len(pool.members)
        why = f"`weight` must have {members} entries, one per member, but it has {have}; or write a table, such as "
        yield Finding(path, why + f"{{ {pool.members[0]} = 2 }}, in which other members have 1")
