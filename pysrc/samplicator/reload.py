"""Reload: read, parse, validate, diff, resolve, compile, build, publish, reclaim; a step that fails changes nothing
but its metrics.

Purpose: the one way a running process gets a new configuration. Invariants: one reload at a time, in a thread;
triggers that arrive meanwhile share the next one. Called by service (signals, file watch, names) and http. It must
never leave a half-applied plan.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload did. diff: one line for people. problems: every reason it failed, `file:line: key: why` where
    there is one.
    """

    ok: bool
    generation: int
    diff: str
    problems: tuple[str, ...]
    seconds: float


class Reloader:
    """Attributes for the metrics: see OPS names config_*."""

    reloads_total: int
    failures_total: int
    last_successful: bool
    last_success_timestamp: float
    config_hash: int

    async def reload(self, trigger: str) -> ReloadResult:
        raise NotImplementedError
