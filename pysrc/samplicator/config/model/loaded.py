"""What a loader returns: a configuration that passed every check, and where each value stands in its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from samplicator.config.address import (
    ParsedSource,
)
from samplicator.config.model.whole import Config
from samplicator.config.web.model import WebConfig
from samplicator.errors import Problem

Path = tuple[str | int, ...]
"""Where a value stands in the configuration, as ("receiver", 0, "to")."""


def _nowhere(path: Path) -> tuple[str, int]:  # a lambda cannot be pickled (config.compact)
    return "", 0


@dataclass(frozen=True)
class Loaded:
    """What a loader returns: a configuration that passed every check, and where it came from.

    sources: of each rule, parsed (EVERYTHING alone when `from` is left out). warnings: in file order. files: files
    read, as given. web: of service.web_config. watched: further files whose change is a reason to reload. text_hash:
    hex sha256 of what was read (for a command line: the arguments too). locate: path of a value -> (file, line), so
    that later stages can report it; line 0 when there is none. If the value has no line, the answer is for the nearest
    enclosing value. The first call is slow, so call it only to report a problem.
    """

    config: Config
    sources: tuple[tuple[ParsedSource, ...], ...]
    warnings: list[Problem] = field(default_factory=list)
    files: tuple[str, ...] = ()
    text_hash: str = ""
    origin: Literal["toml", "legacy"] = "toml"
    locate: Callable[[Path], tuple[str, int]] = _nowhere
    web: WebConfig | None = None
    watched: tuple[str, ...] = ()

    def problem(self, path: Path, why: str) -> Problem:
        """A Problem about the value at `path`."""
        file, line = self.locate(path)
        return Problem(file, line, dotted(path), why)


def dotted(path: Path) -> str:
    """`receiver[0].to` of ("receiver", 0, "to")."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
