"""A configuration while it is checked, and the findings of the checks.

Purpose: the input and the output of config.validate and config.groups. Called by them, config.toml and config.legacy.
Never raises.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from samplicator.config.address import ParsedSource
from samplicator.config.model.datapath import Datapath
from samplicator.config.model.listener import Listener
from samplicator.config.model.loaded import Path
from samplicator.config.model.pool import Pool
from samplicator.config.model.receiver import Receiver
from samplicator.config.model.rule import Rule
from samplicator.config.model.whole import Config

MAX_SUGGESTIONS = 20
"""Largest number of searches for similar names in one run; thousands of unknown names would take long."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An error or a warning at a path."""

    path: Path
    why: str
    error: bool = True


@dataclass
class Draft:
    """A configuration while it is checked. None stands for a table with too many errors to check; the lists of names
    keep the names that could be read."""

    datapath: Datapath
    listener: Sequence[Listener | None]
    receiver: Sequence[Receiver | None]
    rule: Sequence[Rule | None]
    listener_names: Sequence[str | None]
    receiver_names: Sequence[str | None]
    sources: dict[int, tuple[ParsedSource, ...]] = field(default_factory=dict)
    pool: Sequence[Pool | None] = ()
    pool_names: Sequence[str | None] = ()

    @classmethod
    def of(cls, config: Config, sources: dict[int, tuple[ParsedSource, ...]]) -> Draft:
        """The draft of a complete configuration."""
        return cls(
            config.datapath,
            config.listener,
            config.receiver,
            config.rule,
            [listener.name for listener in config.listener],
            [receiver.name for receiver in config.receiver],
            sources,
            config.pool,
            [pool.name for pool in config.pool],
        )


class Suggest:
    """The nearest known word, a bounded number of times."""

    def __init__(self) -> None:
        self.left = MAX_SUGGESTIONS

    def __call__(self, word: str, known: Iterable[str]) -> str:
        """`; did you mean 'x'?`, or nothing."""
        if self.left <= 0:
            return ""
        self.left -= 1
        near = difflib.get_close_matches(word, list(known), 1)
        return f"; did you mean {near[0]!r}?" if near else ""
