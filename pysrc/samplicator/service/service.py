"""The service: one process, one uvloop, signals, file watch, name refresh, HTTP, systemd; wires the parts and owns
their life cycle.

Purpose: everything around the datapath that depends on time. Invariants: a failure of the control plane never stops the
datapath; the loop never waits for a worker, a name server or a file (threads do). Called by the command line:
`run_service`. The only importer of uvloop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import uvloop

from samplicator import __version__, logs
from samplicator.config.compact import load_compact
from samplicator.config.files import read_tokens
from samplicator.config.model.loaded import Loaded
from samplicator.errors import ConfigError
from samplicator.host import abilities, neighbors
from samplicator.host.changes import HostWatch
from samplicator.host.process import (
    Background,
    give_back_memory,
    raise_descriptor_limit,
    remove_pid_file,
    write_pid_file,
)
from samplicator.host.resolve import Resolver
from samplicator.host.systemd import Notifier
from samplicator.host.watch import Watcher
from samplicator.logs import RateGate
from samplicator.service import keeping, startup
from samplicator.service.debug import DebugLines
from samplicator.service.gateways import Gateways
from samplicator.service.handover import Handover
from samplicator.service.pages import Pages
from samplicator.service.pods import PodWatch
from samplicator.service.pulse import Pulse
from samplicator.service.trouble import Trouble
from samplicator.supervisor.reload import CHANGED_FILE, Reloader, ReloadResult, problems_of
from samplicator.supervisor.supervisor import Supervisor
from samplicator.views import history
from samplicator.views.service import ServiceState, StateFile

log = logging.getLogger(__name__)

EXIT_IDLE: Final = 5
"""samplicate -t: no datagram arrived for the given time."""
HOUSEKEEPING_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 0.1
NEIGHBOR_SECONDS: Final = 0.25
RETRY_SECONDS: Final = 1.0
"""How often it is tried to listen where it was not possible before."""
NAMES_SECONDS: Final = 0.25
"""How often it is looked which names are due, and which have been answered."""
AGAIN_SECONDS: Final = 10.0
"""A new plan for a reason that goes on is not made more often: the last one may be under way, or may have failed."""
LAG_SECONDS: Final = 0.5
FINISH_SECONDS: Final = 1.0
"""How long HTTP clients that connected before a take-over may take to get their answer."""
FOLLOW_REST: Final = 4
"""Following this host takes at most one part in so many of the time, whatever storm of events there is."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a command wants the service to behave; the configuration says the rest.

    legacy: exit status 1, not 2, for a configuration with errors. idle_timeout_ms: end with status 5 when nothing
    arrives for this time, 0 = never. pid_file: "" = none. background: leave the terminal. debug: one line of text per
    datagram on stderr when not 0. watch: reload when the files change. takeover: take the place of the process that
    answers on the control socket. linger: after another process has taken over, wait for a signal before ending.
    """

    legacy: bool = False
    idle_timeout_ms: int = 0
    pid_file: str = ""
    background: bool = False
    debug: int = 0
    watch: bool = True
    takeover: bool = False
    linger: bool = False


def run_service(load: Callable[[], Loaded], *, options: Options | None = None) -> int:
    """Runs until a signal stops it; returns the exit status. `load` reads the configuration, now and at every reload.

    0 = stopped as told, 1 = it could not start (or, legacy, the configuration has errors), 2 = the configuration has
    errors, 5 = idle.
    """
    chosen = options or Options()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    try:
        loaded = load_compact(load)
    except (ConfigError, OSError) as error:
        return _refuse(problems_of(error, None), 1 if chosen.legacy or isinstance(error, OSError) else 2)
    background = Background() if chosen.background else None
    counts = logs.setup(loaded.config.service.log_level, loaded.config.service.log_format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        service = Service(load, loaded, chosen, counts, background)
        status = runner.run(service.run())
    if background is not None:
        background.tell(status)
    return status


def _refuse(problems: Sequence[str], status: int) -> int:
    for problem in problems:
        logs.print_error(problem)
    return status


class Service:
    """One run of the service, from start to exit status."""

    def __init__(
        self,
        load: Callable[[], Loaded],
        loaded: Loaded,
        options: Options,
        log_counts: dict[str, int],
        background: Background | None = None,
    ) -> None:
        self._options = options
        self._background = background
        self._notifier = Notifier()
        self._resolver = Resolver(max_age=loaded.config.service.resolve_interval)
        self._kept = keeping.Kept(self._notifier)
        state = keeping.state_path(loaded.config.service)
        self._gateways = Gateways(uvloop.new_event_loop)
        self._supervisor = Supervisor(
            descriptor_limit=raise_descriptor_limit(),
            strict=options.legacy,
            source=self._kept.source,
            gateways=self._gateways,
            state_file=state,
        )
        self._gateways.replay = self._supervisor.replay
        self._pods = PodWatch(lambda trigger: self._reloader.follow(trigger))
        self._reloader = Reloader(
            load,
            self._supervisor,
            self._resolver,
            abilities.capabilities,
            self._pods.services,
            begins=self._reload_begins,
            ended=self._reload_ended,
        )
        self._watcher = Watcher(
            (*loaded.files, *loaded.watched), lambda: self._spawn(self._reloader.reload(CHANGED_FILE))
        )
        self._host = HostWatch(lambda: self._spawn(self._host_changed()))
        self._trouble = Trouble()
        self._pages = Pages(tls=loaded.web is not None and loaded.web.tls is not None)
        self._stop = asyncio.Event()
        self._told = asyncio.Event()
        self._status = 0
        self._running = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._following = False
        self._follow_again = False
        self._pulses: list[Pulse] = []
        self._missing: Pulse | None = None
        self._gate = RateGate()
        self._short: set[str] = set()
        self._neighbors = neighbors.open_events()
        self._neighbor_news = True
        self._debug: DebugLines | None = None
        self._handover = Handover(
            self._supervisor, self._reloader, self._pages, managed=self._notifier.is_managed, ended=self._stop.set
        )
        self.state = ServiceState(
            view=self._supervisor.view,
            taps=self._supervisor.taps,
            reloader=self._reloader,
            loaded=loaded,
            started_unix=time.time(),
            version=__version__,
            services=self._pods.services.readings,
            gateways=self._gateways.readings,
            sessions=self._gateways.sessions,
            ready=self._ready,
            healthy=self._healthy,
            log_messages=log_counts,
            hand_over=self._hand_over,
            state_file=StateFile(state),
        )

    # ------------------------------------------------------------------ life

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reloader.reload("SIGHUP")))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop, number)
        try:
            await self._start()
        except (ConfigError, OSError) as error:
            _refuse(problems_of(error, self.state.loaded), 0)
            took = self._handover.abandon(str(error))
            if took:  # the other process answers on its control socket, whose file must stay
                self._pages.disown()
            await self._end(leave=took)
            return 2 if isinstance(error, ConfigError) and not self._options.legacy else 1
        await self._stop.wait()
        await self._handover.settle()
        self._notifier.stopping("forwarding what is queued")
        await self._end(leave=self._handover.given)
        return self._status

    async def _start(self) -> None:
        loaded = self.state.loaded
        for warning in loaded.warnings:
            log.warning("%s", warning)
        wanted = self._options.takeover and not len(self._kept.source)  # systemd has passed the sockets
        if wanted and await self._handover.find(loaded.config.service):
            self._pages.prepare(loaded.config.service)
        else:
            self._pages.open(loaded.config.service)
        self._host.start()  # before the plan is made, so that changes meanwhile are seen
        if self._options.debug:
            self._debug = DebugLines(self._supervisor)
        await self._reloader.start(loaded, first=partial(self._handover.follow, loaded.config.service))
        await asyncio.to_thread(self._kept.store, self._supervisor)
        self._running = True
        await self._handover.done()
        self._take_tokens(loaded)
        if self._options.pid_file:
            write_pid_file(self._options.pid_file)
        self._say_startup()
        await self._pages.start(self.state)
        if self._options.watch and loaded.files:
            self._watcher.start()
        self._host.follow_routes(self._needs_routes())
        self._start_pulses()
        self._spawn(self._pods.run())
        if self._pages.works:
            await asyncio.to_thread(self.state.history.sample)  # its beginning
        self._spawn(self._every(history.STEP_SECONDS, self._report))
        self._spawn(self._every(1.0 - LAG_SECONDS, self._measure_lag))
        if self._options.idle_timeout_ms:
            self._spawn(self._watch_idle(self._options.idle_timeout_ms / 1e3))
        if self._notifier.watchdog_seconds:
            self._spawn(self._every(self._notifier.watchdog_seconds / 3, self._feed_watchdog))
        give_back_memory()
        self._notifier.ready(self._status_line())
        if self._background is not None:
            self._background.ready(keep_stderr=bool(self._options.debug))

    async def _end(self, *, leave: bool) -> None:
        """Order matters: workers forward what is queued first, then everything that could disturb or watch them
        goes. leave: another process has the listeners' sockets, so this one forwards nothing more.
        """
        self._running = False
        for task in self._tasks:
            task.cancel()
        for pulse in self._pulses:
            pulse.stop()
        self._watcher.stop()
        self._host.stop()
        self._resolver.close()
        self._pods.services.close()
        self._reloader.close()
        await asyncio.to_thread(self._gateways.deafen)
        if leave:
            await asyncio.to_thread(self._supervisor.leave)
            await self._pages.finish(FINISH_SECONDS)
        else:
            timeout = self.state.loaded.config.service.drain_timeout
            await asyncio.to_thread(self._kept.leave, self._supervisor, timeout)
            await asyncio.to_thread(keeping.save, self._supervisor, self.state.state_file)
        await asyncio.to_thread(self._gateways.close, self.state.loaded.config.service.drain_timeout)
        if self._debug is not None:
            await asyncio.to_thread(self._debug.end)
        if self._options.pid_file:
            remove_pid_file(self._options.pid_file)
        if self._handover.given and self._options.linger:
            log.info("waiting for SIGTERM (--linger)")
            give_back_memory()
            await self._told.wait()
        await self._pages.stop()

    def _on_stop(self, number: int) -> None:
        if self._told.is_set():
            log.warning("second signal to stop: samplicator ends at once")
            if self._options.pid_file:
                remove_pid_file(self._options.pid_file)
            os._exit(128 + number)
        if not self._handover.given:
            log.info("%s: samplicator forwards what is queued, then ends", signal.Signals(number).name)
        self._told.set()
        self._stop.set()

    def _hand_over(self, connection: socket.socket) -> tuple[int, str]:
        if self._stop.is_set() or not self._running:
            return 503, "it is stopping" if self._stop.is_set() else "it is starting"
        return self._handover.begin(connection)

    def _say_startup(self) -> None:
        spec = self._reloader.spec
        if spec is None:
            return
        for warning in spec.warnings:
            log.warning("%s", warning)
        self.state.startup = startup.paragraph(
            __version__,
            spec,
            self._supervisor.view.readings(),
            self._supervisor.view.grants(),
            self._pages.degraded,
            self._pages.served,
        )
        lines = self.state.startup.split("\n")
        log.info("%s", "\n".join(line for line in lines if not line.startswith(startup.DEGRADED)))
        for line in lines:
            if line.startswith(startup.DEGRADED):
                log.warning("%s", line)
        self._short = set(startup.short_buffers(self._supervisor.view.grants()))

    # ------------------------------------------------------------------ reloads

    def _reload_begins(self) -> None:
        self._notifier.reloading()
        self._watcher.mark()

    def _reload_ended(self, result: ReloadResult) -> None:
        loaded = self._reloader.loaded
        if (result.ok or result.published) and loaded is not None:
            self.state.loaded = loaded
            logs.adjust(loaded.config.service.log_level, loaded.config.service.log_format)
            self._resolver.max_age = loaded.config.service.resolve_interval
            self._watcher.follow((*loaded.files, *loaded.watched))
            self._host.follow_routes(self._needs_routes())
            self._take_tokens(loaded)
            short = set(startup.short_buffers(self._supervisor.view.grants()))
            for line in sorted(short - self._short):
                log.warning("%s%s", startup.DEGRADED, line)
            self._short = short
            self._spawn(asyncio.to_thread(self._kept.store, self._supervisor))
        bad = "reload failed, but its plan already runs" if result.published else "configuration refused"
        self._notifier.ready(self._status_line() if result.ok else f"{bad}: {result.problems[0]}")

    def _take_tokens(self, loaded: Loaded) -> None:
        self.state.tokens = ()
        with contextlib.suppress(OSError, ValueError):  # a warning of the configuration
            self.state.tokens = read_tokens(loaded.config.service.reload_token_file)

    def _status_line(self) -> str:
        spec = self._reloader.spec
        if spec is None:
            return ""
        return (
            f"plan {self._supervisor.generation}: {len(spec.listeners)} listeners, {len(spec.receivers)} receivers, "
            f"{spec.workers} workers"
        )

    # ------------------------------------------------------------------ what happens in time

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error(
                "this is a defect in samplicator's control plane; the datapath keeps running", exc_info=task.exception()
            )

    async def _every(self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Continues after a failure."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:
                name = getattr(work, "__name__", "work")
                if self._gate.add((name,), 1, time.monotonic()):
                    log.exception("background task %s failed; samplicator tries again", name)

    def _start_pulses(self) -> None:
        """Tasks that must run on time have their own threads, so that neither the loop nor HTTP requests can delay
        them.
        """
        loop = asyncio.get_running_loop()
        told: dict[str, tuple[str, float]] = {}

        def then(trigger: str, names: Sequence[str]) -> None:
            text, now = f"{trigger} {', '.join(names[:5])}", time.monotonic()
            if not names:
                told.pop(trigger, None)
                return
            before, since = told.get(trigger, ("", 0.0))
            if text != before or now - since >= AGAIN_SECONDS:
                told[trigger] = text, now
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(lambda: self._spawn(self._reloader.replan(text)))

        supervisor = self._supervisor

        def missing() -> None:
            then("can be opened now:", supervisor.can_open())
            then("a socket for each worker, now that older datagrams are forwarded:", supervisor.caught_up())

        self._missing = Pulse("missing", RETRY_SECONDS, missing)
        self._pulses = [
            self._missing,
            Pulse("look", LOOK_SECONDS, lambda: supervisor.look(sparing=True)),
            Pulse("neighbors", 0.001, self._watch_neighbors),
            Pulse(
                "paths",
                HOUSEKEEPING_SECONDS,
                lambda: then("own source address or gateway gone:", supervisor.housekeeping()),
            ),
            Pulse("names", NAMES_SECONDS, lambda: then("new address of", self._resolver.tick())),
            Pulse("state", keeping.SAVE_SECONDS, lambda: keeping.save(supervisor, self.state.state_file)),
        ]
        for pulse in self._pulses:
            pulse.start()
        self._pulses[-1].now()  # a state file that cannot be written is shown from the beginning

    def _watch_neighbors(self) -> None:
        """Several times per second, and when the kernel reports that a neighbor has changed. Reading a large neighbor
        table takes long, so at most a twentieth of a CPU is used for it.
        """
        begun, spent = time.monotonic(), time.thread_time()  # it may wait while a plan changes, which is not work
        try:
            self._supervisor.watch_neighbors(sparing=not self._neighbor_news)
        finally:
            time.sleep(min(max(0.05, 20 * (time.thread_time() - spent)), 5.0))
            rest = max(NEIGHBOR_SECONDS - (time.monotonic() - begun), 0.001)
            self._neighbor_news = neighbors.wait_for_events(self._neighbors, rest)

    async def _report(self) -> None:
        sample = self.state.history.sample if self._pages.works else self._supervisor.view.readings
        readings = await asyncio.to_thread(sample)
        self._trouble.report(readings, unmatched=await asyncio.to_thread(self._supervisor.view.unmatched))
        if not self._host.works:
            await self._host_changed()

    async def _host_changed(self) -> None:
        """Interfaces, addresses or routes have changed, so the plan may change."""
        if self._following:
            self._follow_again = True
            return
        self._following = True
        try:
            while True:
                self._follow_again = False
                begun = time.monotonic()
                await asyncio.to_thread(self._supervisor.follow_host)
                await self._reloader.follow("this host has changed")
                if self._missing is not None:
                    self._missing.now()
                await asyncio.sleep(min(1.0, FOLLOW_REST * (time.monotonic() - begun)))
                if not self._follow_again:
                    return
        finally:
            self._following = False

    def _needs_routes(self) -> bool:
        spec = self._reloader.spec
        listeners = spec.listeners if spec is not None else ()
        return any(each.groups and not each.interface for listener in listeners for each in listener.sockets)

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        self.state.loop_lag.observe(max(0.0, loop.time() - due))

    async def _watch_idle(self, limit: float) -> None:
        loop = asyncio.get_running_loop()
        seen, since = self._supervisor.view.received(), loop.time()
        while True:
            await asyncio.sleep(min(max(limit / 20, 0.002), 1.0))
            now = self._supervisor.view.received()
            if now != seen:
                seen, since = now, loop.time()
            elif loop.time() - since >= limit:
                log.warning("nothing was received for %.0f ms; samplicator ends", limit * 1e3)
                self._status = EXIT_IDLE
                self._stop.set()
                return

    async def _feed_watchdog(self) -> None:
        why = self._supervisor.view.stuck()
        if why:
            log.error("%s; samplicator stops feeding the watchdog so that systemd restarts it", why)
        else:
            self._notifier.watchdog()

    # ------------------------------------------------------------------ answers

    def _ready(self) -> tuple[bool, str]:
        if self._handover.given:
            return False, f"process {self._handover.taker} has taken over from this one"
        if self._stop.is_set():
            return False, "stopping"
        if not self._running:
            return False, "starting"
        healthy, why = self._healthy()
        if not healthy:
            return False, why
        return self._complete()

    def _complete(self) -> tuple[bool, str]:
        """Not ready while a listener is down, because its datagrams are lost. A receiver that is down is reported, but
        is no reason: if an orchestrator stopped samplicator for it, all receivers would lose their copies.
        """
        missing = self._supervisor.view.missing()
        if not missing:
            return True, "ok"
        return not any(text.startswith("listener ") for text in missing), "; ".join(missing[:8])

    def _healthy(self) -> tuple[bool, str]:
        why = self._supervisor.view.stuck()
        return not why, why or "ok"
