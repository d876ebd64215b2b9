"""Reload: read, parse, validate, diff, resolve, compile, build, publish, reclaim; a step that fails changes nothing
but its metrics.

Purpose: the one way a process gets a configuration, at start and later. Invariants: one reload at a time, in a thread
of its own; triggers that arrive meanwhile share the next one. Called by service (start, signals, file watch, names)
and http. It must never leave a half-applied plan, and never run on the control loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from samplicator import planner
from samplicator.config.compact import load_compact
from samplicator.config.diff import Diff, diff
from samplicator.config.model import Loaded
from samplicator.daemon import give_back_memory
from samplicator.errors import ConfigError
from samplicator.planner import Capabilities, PlanSpec
from samplicator.resolve import Resolver

log = logging.getLogger(__name__)


class Runs(Protocol):
    """What a reload needs of the supervisor."""

    generation: int

    def apply(self, spec: PlanSpec) -> None: ...


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
    """The state of the configuration, and how it changes. The plain attributes are for the metrics config_*.

    loaded, spec: what runs. begins(), ended(result): called on the loop around each reload.
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        runs: Runs,
        resolver: Resolver,
        capabilities: Callable[[], Capabilities],
        *,
        begins: Callable[[], None] = lambda: None,
        ended: Callable[[ReloadResult], None] = lambda result: None,
    ) -> None:
        self.reloads_total = 0
        self.failures_total = 0
        self.last_successful = True
        self.last_success_timestamp = 0.0
        self.config_hash = 0
        self.loaded: Loaded | None = None
        self.spec: PlanSpec | None = None
        self._load = load
        self._runs = runs
        self._resolver = resolver
        self._capabilities = capabilities
        self._begins = begins
        self._ended = ended
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reload")
        self._turn = asyncio.Lock()
        self._triggers: list[str] = []
        self._reread = False
        self._next: asyncio.Task[ReloadResult] | None = None

    async def start(self, loaded: Loaded) -> None:
        """The first configuration. Raises ConfigError or OSError; nothing runs then."""
        async with self._turn:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._apply, loaded)

    async def reload(self, trigger: str) -> ReloadResult:
        """Reads the configuration again, now or after the reload that runs now. Never raises for what the operator or
        the kernel did.
        """
        return await self._join(trigger, reread=True)

    async def replan(self, trigger: str) -> ReloadResult:
        """Applies the configuration that runs once more, because the host or a name has changed; its files are not
        read.
        """
        return await self._join(trigger, reread=False)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _join(self, trigger: str, *, reread: bool) -> ReloadResult:
        self._triggers.append(trigger)
        self._reread |= reread
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._run_next())
        return await asyncio.shield(self._next)

    async def _run_next(self) -> ReloadResult:
        async with self._turn:
            trigger, reread = ", ".join(dict.fromkeys(self._triggers)), self._reread
            self._triggers, self._reread, self._next = [], False, None
            self._begins()
            work = self._reload if reread else self._replan
            result = await asyncio.get_running_loop().run_in_executor(self._pool, work, trigger)
            await asyncio.get_running_loop().run_in_executor(self._pool, give_back_memory)
            self._ended(result)
            return result

    def _reload(self, trigger: str) -> ReloadResult:
        begun = time.monotonic()
        self.reloads_total += 1
        loaded: Loaded | None = None
        changes = Diff()
        try:
            loaded = load_compact(self._load)
            changes = diff(self.loaded.config, loaded.config) if self.loaded else changes
            self._apply(loaded)
        except Exception as error:
            self.failures_total += 1
            self.last_successful = False
            return self._refused("reload", trigger, error, loaded, begun)
        self.last_successful = True
        self.last_success_timestamp = time.time()
        for warning in (*loaded.warnings, *(self.spec.warnings if self.spec else ())):
            log.warning("%s", warning)
        for setting in changes.restart_needed:
            log.warning("%s: only a restart makes that take effect", setting)
        return self._done("reload", trigger, changes.text(), begun)

    def _replan(self, trigger: str) -> ReloadResult:
        begun = time.monotonic()
        try:
            if self.loaded is not None:
                self._apply(self.loaded)
        except Exception as error:
            return self._refused("new plan", trigger, error, self.loaded, begun)
        return self._done("new plan", trigger, "", begun)

    def _done(self, what: str, trigger: str, text: str, begun: float) -> ReloadResult:
        seconds = time.monotonic() - begun
        generation = self._runs.generation
        log.info("%s (%s): generation %d in %.0f ms%s", what, trigger, generation, seconds * 1e3, text and f": {text}")
        return ReloadResult(True, generation, text, (), seconds)

    def _refused(self, what: str, trigger: str, error: Exception, loaded: Loaded | None, begun: float) -> ReloadResult:
        problems = problems_of(error, loaded)
        log.error("%s (%s) failed, nothing has changed: %s", what, trigger, "; ".join(problems))
        if not isinstance(error, (ConfigError, OSError)):
            log.error("this is a defect", exc_info=error)
        return ReloadResult(False, self._runs.generation, "", problems, time.monotonic() - begun)

    def _apply(self, loaded: Loaded) -> None:
        resolved = self._resolver.resolve(loaded)
        spec = planner.compile(loaded, resolved, self._capabilities(), judge_addresses=False)
        self._runs.apply(spec)
        self._resolver.adopt(loaded)
        self.loaded, self.spec = loaded, spec
        self.config_hash = int(loaded.text_hash[:12] or "0", 16)
        self.last_success_timestamp = self.last_success_timestamp or time.time()


def problems_of(error: Exception, loaded: Loaded | None) -> tuple[str, ...]:
    """The reasons, with file and line where they are known."""
    if isinstance(error, ConfigError):
        return tuple(str(problem) for problem in error.problems)
    where = getattr(error, "where", ())
    if loaded is not None and where:
        return (str(loaded.problem(where, str(error))),)
    return (str(error) or type(error).__name__,)
