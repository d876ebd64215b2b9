"""Resolve: host names to addresses, off the datapath and off the control loop.

Invariants: a name that once resolved keeps its last address when the name server fails, with one log line until it
works again; an address that is still among the answers is kept, so that round-robin answers do not move a receiver
about; names of listeners are resolved once. Called by reload (before a plan is compiled), service (refresh) and the
command line (`check`, `explain`). It must never be called on the control loop's thread: getaddrinfo(3) blocks.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from typing import Final

from samplicator.config.model import Loaded, Path
from samplicator.errors import ConfigError, Problem
from samplicator.planner import NameKey, Resolved, ResolvedAddress, names_of, source_names_of

log = logging.getLogger(__name__)

Lookup = Callable[[str, int], tuple[ResolvedAddress, ...]]
"""(host, family 0|4|6) -> its addresses in the order to try them; raises OSError."""

TIMEOUT_SECONDS: Final = 15.0
"""How long one round of look-ups may take as a whole before the names that did not answer count as failed."""


def getaddrinfo(host: str, family: int) -> tuple[ResolvedAddress, ...]:
    """The system's answer, IPv4-mapped addresses as IPv4, each once."""
    wanted = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}[family]
    found: dict[ResolvedAddress, None] = {}
    for answer in socket.getaddrinfo(host, None, wanted, socket.SOCK_DGRAM):
        if answer[0] == socket.AF_INET:
            found[ResolvedAddress(socket.inet_aton(str(answer[4][0])))] = None
        elif answer[0] == socket.AF_INET6:
            text = str(answer[4][0]).partition("%")[0]
            scope = int(answer[4][3]) if len(answer[4]) == 4 else 0
            found[ResolvedAddress(socket.inet_pton(socket.AF_INET6, text), scope)] = None
    return tuple(found)


class _Threads:
    """A few daemon threads: a name server that does not answer must not keep the process from ending."""

    def __init__(self, lookup: Lookup, count: int = 8) -> None:
        self._lookup = lookup
        self._work: queue.SimpleQueue[tuple[NameKey, Future[tuple[ResolvedAddress, ...]]]] = queue.SimpleQueue()
        for _ in range(count):
            threading.Thread(target=self._run, name="resolve", daemon=True).start()

    def submit(self, key: NameKey) -> Future[tuple[ResolvedAddress, ...]]:
        future: Future[tuple[ResolvedAddress, ...]] = Future()
        self._work.put((key, future))
        return future

    def _run(self) -> None:
        while True:
            key, future = self._work.get()
            with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                try:
                    future.set_result(self._lookup(*key))
                except Exception as error:
                    future.set_exception(error)


class Resolver:
    """The names in use and where they point. Thread-safe; look-ups run side by side."""

    def __init__(self, lookup: Lookup = getaddrinfo, *, max_age: float = 30.0) -> None:
        self._lookup = lookup
        self._lock = threading.Lock()
        self._known: dict[NameKey, tuple[ResolvedAddress, ...]] = {}
        self._asked: dict[NameKey, float] = {}
        self._failing: set[NameKey] = set()
        self._refreshed: frozenset[NameKey] = frozenset()
        self._threads: _Threads | None = None
        self._waiting: set[Future[tuple[ResolvedAddress, ...]]] = set()
        self.max_age = max_age

    def resolve(self, loaded: Loaded) -> Resolved:
        """Addresses of every name of a configuration; asks only for those not asked within max_age seconds. Raises
        ConfigError for each name that never resolved. Changes what refresh() looks after only when told by
        adopt().
        """
        names = _all_names(loaded)
        now = time.monotonic()
        with self._lock:
            stale = [key for key in names if now - self._asked.get(key, -1e9) >= self.max_age or key not in self._known]
        failures = self._ask(stale)
        with self._lock:
            resolved = {key: self._known[key] for key in names if key in self._known}
        problems = [_problem(loaded, names[key], key, failures.get(key)) for key in names if key not in resolved]
        if problems:
            raise ConfigError(problems)
        return resolved

    def adopt(self, loaded: Loaded) -> None:
        """These are the names in use from now on: refresh() asks for them, all others are forgotten."""
        names = frozenset(_all_names(loaded))
        fixed = {key for key, path in names_of(loaded.config).items() if path[0] == "listener"}
        with self._lock:
            self._refreshed = names - fixed
            for key in [key for key in self._known if key not in names]:
                del self._known[key]
                self._asked.pop(key, None)
            self._failing &= names

    @property
    def in_use(self) -> bool:
        """There is something to refresh."""
        return bool(self._refreshed)

    def refresh(self) -> list[str]:
        """Asks again for the names in use; returns those whose addresses changed."""
        with self._lock:
            before = {key: self._known.get(key, ()) for key in self._refreshed}
        self._ask(before)
        with self._lock:
            return sorted({key[0] for key in before if self._known.get(key, ()) != before[key]})

    def close(self) -> None:
        """Whoever waits for an answer gets none."""
        with self._lock:
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(OSError("the resolver is closed"))

    def _ask(self, keys: Iterable[NameKey]) -> dict[NameKey, str]:
        """Looks the names up; returns why, for those that failed."""
        asked = list(keys)
        if not asked:
            return {}
        if self._threads is None:
            self._threads = _Threads(self._lookup)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        futures = {key: self._threads.submit(key) for key in asked}
        with self._lock:
            self._waiting |= set(futures.values())
        failures: dict[NameKey, str] = {}
        for key, future in futures.items():
            try:
                answer = future.result(timeout=max(0.0, deadline - time.monotonic()))
                if not answer:
                    raise OSError("no address of the wanted family")
                self._learn(key, answer)
            except TimeoutError:
                failures[key] = f"no answer within {TIMEOUT_SECONDS:.0f} s"
            except (OSError, UnicodeError) as error:
                failures[key] = (error.strerror if isinstance(error, OSError) else "") or str(error)
        with self._lock:
            self._waiting -= set(futures.values())
        for key, why in failures.items():
            self._failed(key, why)
        return failures

    def _learn(self, key: NameKey, answer: tuple[ResolvedAddress, ...]) -> None:
        with self._lock:
            old = self._known.get(key, ())
            if old and old[0] in answer:  # keep what still holds, in the order already in use
                first = old[0]
                answer = (first, *sorted((a for a in answer if a != first), key=lambda a: a.address))
            else:
                answer = (answer[0], *sorted(answer[1:], key=lambda a: a.address))
            self._known[key] = answer
            self._asked[key] = time.monotonic()
            recovered = key in self._failing
            self._failing.discard(key)
        if recovered:
            log.info("host name %s resolves again", key[0])

    def _failed(self, key: NameKey, why: str) -> None:
        with self._lock:
            self._asked[key] = time.monotonic()
            first = key in self._known and key not in self._failing
            if key in self._known:
                self._failing.add(key)
        if first:
            log.warning("host name %s does not resolve (%s); its last address stays in use", key[0], why)


def _all_names(loaded: Loaded) -> dict[NameKey, Path]:
    return {**source_names_of(loaded), **names_of(loaded.config)}


def _problem(loaded: Loaded, path: Path, key: NameKey, why: str | None) -> Problem:
    family = {0: "", 4: " as IPv4", 6: " as IPv6"}[key[1]]
    return loaded.problem(path, f"the host name {key[0]!r} does not resolve{family}{f': {why}' if why else ''}")


def resolve_once(loaded: Loaded) -> Resolved:
    """For the command line: every name of a configuration, now."""
    resolver = Resolver()
    try:
        return resolver.resolve(loaded)
    finally:
        resolver.close()
