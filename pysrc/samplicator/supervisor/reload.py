"""Reload: read, parse, validate, diff, resolve, compile, build, publish, close the old. A step that fails changes only
the metrics of reloads.

Purpose: the only path by which a process gets a configuration, at the start and later. Invariants: one reload runs at a
time, in its own thread; triggers that arrive meanwhile share the next reload. Called by service (start, signals, file
watch, names) and http. It must never leave a half-applied plan, and never run on the control loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from samplicator.cluster.services import Services
from samplicator.config.compact import load_compact
from samplicator.config.diff import Diff, diff_loaded
from samplicator.config.model.loaded import Loaded
from samplicator.errors import ConfigError
from samplicator.host.process import give_back_memory
from samplicator.host.resolve import Resolver
from samplicator.plan import planner
from samplicator.plan.spec import Capabilities, PlanSpec, Resolved

log = logging.getLogger(__name__)

START_SECONDS: Final = 3.0
"""How long the start waits for names. Receivers whose names resolve must not wait for a name server that is down."""
RELOAD_SECONDS: Final = 5.0
"""The same for a reload: changes of this host are not followed while it waits."""
CHANGED_FILE: Final = "changed file"
SECOND_LOOK_SECONDS: Final = 2.0
"""A changed file with errors is read once more after this time before it is refused, because an editor may still be
saving it."""
HOW_TO_EDIT: Final = "edit a copy, try it with `samplicator check -c COPY`, and move it into place with mv"
LOOKS: Final = 5
"""So often at most while it goes on being written."""


class Runs(Protocol):
    """What a reload needs of the supervisor."""

    @property
    def generation(self) -> int: ...

    def apply(self, spec: PlanSpec) -> None: ...


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload did. diff: one line for people. problems: all errors, as `file:line: key: why` if the place is
    known. warnings: what this host lacks for the new plan, in the same form. published: the reload failed, but the new
    plan runs, because it could not be taken back any more.
    """

    ok: bool
    generation: int
    diff: str
    problems: tuple[str, ...]
    seconds: float
    warnings: tuple[str, ...] = ()
    published: bool = False


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
        services: Services | None = None,
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
        self._services = services or Services()
        self._begins = begins
        self._ended = ended
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reload")
        self._turn = asyncio.Lock()
        self._triggers: list[str] = []
        self._reread = False
        self._next: asyncio.Task[ReloadResult] | None = None
        self._told = ""
        self._looking: asyncio.Task[ReloadResult] | None = None  # it waits for a file to be saved whole
        self._hurry = asyncio.Event()
        self._written_again = False
        self._closed = False

    async def start(self, loaded: Loaded, *, first: Callable[[PlanSpec], None] = lambda spec: None) -> None:
        """The first configuration. first: called when all that takes long is done, just before the plan is applied.
        Raises ConfigError or OSError; nothing runs then.
        """
        async with self._turn:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._start, loaded, first)

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        """No plan changes within; who asks for a change waits."""
        async with self._turn:
            yield

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

    async def follow(self, trigger: str) -> None:
        """Makes a new plan if this host differs from what the running plan was made for. Never raises for what the
        kernel did.
        """
        async with self._turn:
            differs = await asyncio.get_running_loop().run_in_executor(self._pool, self._differs)
        if differs:
            await self.replan(trigger)

    def close(self) -> None:
        """A running reload ends; no further reload begins."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _join(self, trigger: str, *, reread: bool) -> ReloadResult:
        if reread and self._looking is not None:
            self._written_again = True
            if trigger != CHANGED_FILE:
                self._hurry.set()
            return await asyncio.shield(self._looking)
        self._triggers.append(trigger)
        self._reread |= reread
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._run_next())
        return await asyncio.shield(self._next)

    async def _run_next(self) -> ReloadResult:
        async with self._turn:
            trigger, reread = ", ".join(dict.fromkeys(self._triggers)), self._reread
            self._triggers, self._reread, self._next = [], False, None
            loaded = None
            if not self._closed:
                self._begins()
                loaded = await self._settled() if reread and trigger == CHANGED_FILE else None
            if self._closed:
                return ReloadResult(False, self._runs.generation, "", ("the service is stopping",), 0.0)
            work = partial(self._reload, loaded=loaded) if reread else self._replan
            result = await asyncio.get_running_loop().run_in_executor(self._pool, work, trigger)
            if not self._closed:
                await asyncio.get_running_loop().run_in_executor(self._pool, give_back_memory)
                self._ended(result)
            return result

    async def _settled(self) -> Loaded | None:
        """The configuration of a changed file as soon as it has no errors. None if it still has errors after
        SECOND_LOOK_SECONDS without a further change, or if a reload is requested meanwhile; then the file is read once
        more and its errors are reported.
        """
        for _ in range(LOOKS):
            if self._closed:
                return None
            loaded = await asyncio.get_running_loop().run_in_executor(self._pool, self._peek)
            if loaded is not None:
                return loaded
            self._hurry.clear()
            self._written_again = False
            self._looking = asyncio.current_task()
            try:
                async with asyncio.timeout(SECOND_LOOK_SECONDS):
                    await self._hurry.wait()
                return None
            except TimeoutError:
                pass
            finally:
                self._looking = None
            self._begins()
            if not self._written_again:
                return None
        return None

    def _peek(self) -> Loaded | None:
        try:
            return load_compact(self._load)
        except Exception as error:
            why = problems_of(error, None)[0]
            log.info("the changed file has an error and is read again in %g s: %s", SECOND_LOOK_SECONDS, why)
            return None

    def _reload(self, trigger: str, loaded: Loaded | None = None) -> ReloadResult:
        begun, before = time.monotonic(), self._runs.generation
        self.reloads_total += 1
        changes = Diff()
        try:
            loaded = loaded or load_compact(self._load)
            changes = diff_loaded(self.loaded, loaded) if self.loaded else changes
            self._apply(loaded, self._compile(loaded, self._resolve(loaded, RELOAD_SECONDS)))
        except Exception as error:
            self.failures_total += 1
            self.last_successful = False
            return self._refused("reload", trigger, error, loaded, begun, before)
        self.last_successful = True
        self.last_success_timestamp = time.time()
        warnings = (*map(str, loaded.warnings), *(self.spec.warnings if self.spec else ()))
        for warning in warnings:
            log.warning("%s", warning)
        for setting in changes.restart_needed:
            log.warning("%s: this change needs a restart", setting)
        return self._done("reload", trigger, changes.text(), begun, warnings)

    def _replan(self, trigger: str) -> ReloadResult:
        begun, before = time.monotonic(), self._runs.generation
        try:
            if self.loaded is not None:
                spec = self._compile(self.loaded, self._resolver.known(self.loaded))
                self._apply(self.loaded, replace(spec, follows_host=True))
        except Exception as error:
            return self._refused("new plan", trigger, error, self.loaded, begun, before)
        return self._done("new plan", trigger, "", begun, ())

    def _differs(self) -> bool:
        """Whether the plan of the configuration that runs would be another one now."""
        if self.loaded is None:
            return False
        try:
            differs = self._compile(self.loaded, self._resolver.known(self.loaded)) != self.spec
        except Exception as error:
            text = "; ".join(problems_of(error, self.loaded))
            if text != self._told:
                log.error("this host has changed, but no plan can be made for it; the running plan stays: %s", text)
            self._told = text
            return False
        self._told = ""
        return differs

    def _done(self, what: str, trigger: str, text: str, begun: float, warnings: tuple[str, ...]) -> ReloadResult:
        seconds = time.monotonic() - begun
        generation = self._runs.generation
        log.info("%s (%s): generation %d in %.0f ms%s", what, trigger, generation, seconds * 1e3, text and f": {text}")
        return ReloadResult(True, generation, text, (), seconds, warnings)

    def _refused(
        self, what: str, trigger: str, error: Exception, loaded: Loaded | None, begun: float, before: int
    ) -> ReloadResult:
        """before: the generation that ran when it began; when another one runs now, the change could not be taken
        back."""
        problems = problems_of(error, loaded)
        if self.loaded is not None:
            receivers = self.spec.receivers if self.spec is not None else ()
            self._services.adopt(self.loaded, receivers)  # those of the refused configuration are not followed
        published = self._runs.generation != before
        outcome = f"but plan {self._runs.generation} already runs" if published else "the running plan stays"
        hint = f"; {HOW_TO_EDIT}" if loaded is None and CHANGED_FILE in trigger else ""
        log.error("%s (%s) failed, %s: %s%s", what, trigger, outcome, "; ".join(problems), hint)
        if not isinstance(error, (ConfigError, OSError)):
            log.error("this is a defect in samplicator; please report it", exc_info=error)
        return ReloadResult(False, self._runs.generation, "", problems, time.monotonic() - begun, published=published)

    def _start(self, loaded: Loaded, first: Callable[[PlanSpec], None]) -> None:
        spec = self._compile(loaded, self._resolve(loaded, START_SECONDS))
        first(spec)
        self._apply(loaded, spec)

    def _resolve(self, loaded: Loaded, seconds: float) -> Resolved:
        """Asks for names and pods side by side."""
        until = time.monotonic() + seconds
        self._services.begin(loaded)
        resolved = self._resolver.resolve(loaded, seconds)
        self._services.wait(max(0.0, until - time.monotonic()))
        return resolved

    def _compile(self, loaded: Loaded, resolved: Resolved) -> PlanSpec:
        able = replace(self._capabilities(), pods=self._services.pods)
        return planner.compile(loaded, resolved, able, judge_addresses=False)

    def _apply(self, loaded: Loaded, spec: PlanSpec) -> None:
        """Remembers the plan that runs in the end, also when a worker hangs after the plan was published."""
        before = self._runs.generation
        try:
            self._runs.apply(spec)
        finally:
            if self._runs.generation != before:
                self._adopt(loaded, spec)

    def _adopt(self, loaded: Loaded, spec: PlanSpec) -> None:
        self._resolver.adopt(loaded)
        self._services.adopt(loaded, spec.receivers)
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
