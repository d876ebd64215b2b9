"""What changes from one configuration to the next.

Purpose: the changes of a reload, for its log line and its answer, and the changes that need a restart. Pure: two
Configs in, a Diff out. Called by reload. Never raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from samplicator.config.model.listener import Listener
from samplicator.config.model.loaded import Loaded
from samplicator.config.model.pool import Pool
from samplicator.config.model.receiver import Receiver
from samplicator.config.model.whole import Config, restart_settings


@dataclass(frozen=True)
class Changes:
    """Names, in the order of the new file (removed: of the old one). changed: the name stays, its settings do not."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def text(self) -> str:
        """`+a -b ~c`."""
        return " ".join(
            f"{sign}{name}"
            for sign, names in (("+", self.added), ("-", self.removed), ("~", self.changed))
            for name in names
        )


@dataclass(frozen=True)
class Diff:
    """settings: live settings that changed, as `datapath.workers: 1 -> 2`. restart_needed: the same for settings that
    only a restart changes; the running process keeps their old values."""

    receivers: Changes = field(default_factory=Changes)
    listeners: Changes = field(default_factory=Changes)
    pools: Changes = field(default_factory=Changes)
    rules_changed: bool = False
    settings: list[str] = field(default_factory=list)
    restart_needed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        tables = self.receivers or self.listeners or self.pools or self.rules_changed
        return bool(tables or self.settings or self.restart_needed)

    def text(self) -> str:
        """One line for people."""
        parts = [f"receivers {self.receivers.text()}"] if self.receivers else []
        parts += [f"listeners {self.listeners.text()}"] if self.listeners else []
        parts += [f"pools {self.pools.text()}"] if self.pools else []
        parts += ["rules changed"] if self.rules_changed else []
        parts += self.settings
        parts += [f"{setting} (needs a restart)" for setting in self.restart_needed]
        return "; ".join(parts) or "nothing changed"


def diff_loaded(old: Loaded, new: Loaded) -> Diff:
    """The same as diff(), and whether the files of service.web_config have changed."""
    found = diff(old.config, new.config)
    if old.web is not None and new.web is not None and old.web != new.web and old.web.path == new.web.path:
        found.settings.append(f"service.web_config: {new.web.path}, or a file that it names, has changed")
    return found


def diff(old: Config, new: Config) -> Diff:
    """What changes from `old` to `new`. The order of rules matters, that of receivers and listeners does not."""
    restart = set(restart_settings())
    live: list[str] = []
    restarts: list[str] = []
    for table in ("service", "datapath", "sctp"):
        before, after = getattr(old, table), getattr(new, table)
        for key in type(after).model_fields:
            if getattr(before, key) != getattr(after, key):
                line = f"{table}.{key}: {getattr(before, key)} -> {getattr(after, key)}"
                (restarts if (table, key) in restart else live).append(line)
    return Diff(
        _changes(old.receiver, new.receiver),
        _changes(old.listener, new.listener),
        _changes(old.pool, new.pool),
        old.rule != new.rule,
        live,
        restarts,
    )


Named = Sequence[Receiver] | Sequence[Listener] | Sequence[Pool]


def _changes(old: Named, new: Named) -> Changes:
    before = {item.name: item for item in old}
    after = {item.name: item for item in new}
    return Changes(
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(name for name, item in after.items() if name in before and before[name] != item),
        kept=tuple(name for name, item in after.items() if before.get(name) == item),
    )
