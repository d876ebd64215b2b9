"""Resolve: host names to addresses, in separate threads.

Invariants: a name that does not resolve is not an error of the configuration: the answer does not include it, it is
looked up again every few seconds, and its user shows it; a name that once resolved keeps its last address when the name
server fails, with one log line until it works again; an address that is still among the answers is kept, so that
round-robin answers do not move a receiver; names of listeners are resolved once; only one look-up of a name runs at a
time, so that a silent name server causes no queue. Called by reload (before a plan is compiled), service (tick) and the
command line (`check`, `explain`). resolve() and refresh() must never be called on the control loop's thread: they wait.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, InvalidStateError
from typing import Final

from samplicator.config.model.loaded import Loaded, Path
from samplicator.plan.names import names_of, source_names_of
from samplicator.plan.spec import NameKey, Resolved, ResolvedAddress

log = logging.getLogger(__name__)

Lookup = Callable[[str, int], tuple[ResolvedAddress, ...]]
"""(host, family 0|4|6) -> its addresses in the order to try them; raises OSError."""

TIMEOUT_SECONDS: Final = 15.0
"""How long to wait for names without an address, if there is time."""
KNOWN_SECONDS: Final = 2.0
"""How long it waits for names that have one, which is good enough, and for names that have failed before: answers that
come later count as well."""
RETRY_SECONDS: Final = 5.0
"""How often a name that does not resolve is asked for again, when resolve_interval is not shorter."""


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

    def __init__(self, work: Callable[[NameKey], None], count: int = 8) -> None:
        self._queue: queue.SimpleQueue[NameKey] = queue.SimpleQueue()
        self._work = work
        for _ in range(count):
            threading.Thread(target=self._run, name="resolve", daemon=True).start()

    def submit(self, key: NameKey) -> None:
        self._queue.put(key)

    def _run(self) -> None:
        while True:
            self._work(self._queue.get())


class Resolver:
    """The names in use and where they point. Thread-safe; look-ups run side by side."""

    def __init__(self, lookup: Lookup = getaddrinfo, *, max_age: float = 30.0) -> None:
        self._lookup = lookup
        self._lock = threading.Lock()
        self._known: dict[NameKey, tuple[ResolvedAddress, ...]] = {}
        self._asked: dict[NameKey, float] = {}
        self._failing: set[NameKey] = set()
        self._refreshed: frozenset[NameKey] = frozenset()
        self._given: Resolved = {}
        self._used: Resolved = {}
        self._threads: _Threads | None = None
        self._asking: dict[NameKey, Future[None]] = {}
        self._closed = False
        self.max_age = max_age

    def resolve(self, loaded: Loaded, timeout: float | None = None) -> Resolved:
        """Addresses of every name of a configuration that resolves; asks only for those not asked within max_age
        seconds, and waits `timeout` seconds at most (None: TIMEOUT_SECONDS). Changes what tick() and refresh() look
        after only when told by adopt().
        """
        limit = TIMEOUT_SECONDS if timeout is None else timeout
        names = all_names(loaded)
        now = time.monotonic()
        with self._lock:
            stale = [key for key in names if now - self._asked.get(key, -1e9) >= self.max_age or key not in self._known]
        self._ask(stale, limit)
        return self.known(loaded)

    def known(self, loaded: Loaded) -> Resolved:
        """The same without asking anybody."""
        names = all_names(loaded)
        with self._lock:
            self._given = {key: self._known[key] for key in names if key in self._known}
            return self._given

    def adopt(self, loaded: Loaded) -> None:
        """These are the names in use from now on, with the addresses that were given out last: all others are
        forgotten. Names of listeners that have an address are not asked for again."""
        names = frozenset(all_names(loaded))
        with self._lock:
            self._used = {key: self._given.get(key, self._known.get(key, ())) for key in names}
            fixed = {
                key for key, path in names_of(loaded.config).items() if path[0] == "listener" and self._used.get(key)
            }
            self._refreshed = names - fixed
            for key in [key for key in self._known if key not in names]:
                del self._known[key]
            for key in [key for key in self._asked if key not in names]:
                del self._asked[key]
            self._failing &= names

    @property
    def in_use(self) -> bool:
        """There is something to refresh."""
        return bool(self._refreshed)

    def tick(self) -> list[str]:
        """Asks again for the names that are due, without waiting for answers; returns the names whose addresses are no
        longer those in use."""
        now = time.monotonic()
        with self._lock:
            due = [key for key in self._refreshed if now - self._asked.get(key, -1e9) >= self._interval(key)]
        for key in due:
            self._submit(key)
        return self.changed()

    def refresh(self) -> list[str]:
        """Asks for all names in use and waits for the answers; returns the same as tick()."""
        self._ask(self._refreshed, TIMEOUT_SECONDS)
        return self.changed()

    def changed(self) -> list[str]:
        """Names in use whose addresses are no longer those that were given out."""
        with self._lock:
            return sorted({key[0] for key in self._refreshed if self._known.get(key, ()) != self._used.get(key, ())})

    def close(self) -> None:
        """Ends all waiting for answers."""
        with self._lock:
            self._closed = True
            waiting = list(self._asking.values())
        for future in waiting:
            _end(future)

    def _interval(self, key: NameKey) -> float:
        """Seconds between two questions for a name."""
        sound = key in self._known and key not in self._failing
        return self.max_age if sound else min(self.max_age, RETRY_SECONDS)

    def _submit(self, key: NameKey) -> Future[None]:
        """Asks for a name unless that is under way already; the future ends with the question."""
        with self._lock:
            future = self._asking.get(key)
            if future is not None:
                return future
            future = self._asking[key] = Future()
            if self._closed:
                _end(future)
            self._asked[key] = time.monotonic()
            if self._threads is None:
                self._threads = _Threads(self._answer)
            self._threads.submit(key)
            return future

    def _ask(self, keys: Iterable[NameKey], timeout: float) -> None:
        """Asks for names and waits for the answers, for those that have an address already not for long."""
        begun = time.monotonic()
        futures = {key: self._submit(key) for key in keys}
        short = {key for key in futures if key in self._known or key in self._failing}
        for key, future in futures.items():
            limit = min(timeout, KNOWN_SECONDS) if key in short else timeout
            try:
                future.result(timeout=max(0.0, begun + limit - time.monotonic()))
            except TimeoutError:
                self._failed(key, f"no answer within {limit:g} s")

    def _answer(self, key: NameKey) -> None:
        """Looks one name up; on a thread of its own. Never raises."""
        try:
            answer = self._lookup(*key)
            if answer:
                self._learn(key, answer)
            else:
                self._failed(key, "the name has no address of the configured family")
        except Exception as error:  # whatever a name service module does
            self._failed(key, (error.strerror if isinstance(error, OSError) else "") or str(error))
        with self._lock:
            self._asked[key] = time.monotonic()
            future = self._asking.pop(key)
        _end(future)

    def _learn(self, key: NameKey, answer: tuple[ResolvedAddress, ...]) -> None:
        with self._lock:
            old = self._known.get(key, ())
            if old and old[0] in answer:  # keep what still holds, in the order already in use
                first = old[0]
                answer = (first, *sorted((a for a in answer if a != first), key=lambda a: a.address))
            else:
                answer = (answer[0], *sorted(answer[1:], key=lambda a: a.address))
            self._known[key] = answer
            recovered = key in self._failing
            self._failing.discard(key)
        if recovered:
            log.info("host name %s resolves again", key[0])

    def _failed(self, key: NameKey, why: str) -> None:
        with self._lock:
            first = key not in self._failing and not self._closed
            self._failing.add(key)
            known = key in self._known
        if first:
            then = "its last address stays in use" if known else "samplicator tries again every few seconds"
            log.warning("host name %s does not resolve (%s); %s", key[0], why, then)


def _end(future: Future[None]) -> None:
    with contextlib.suppress(InvalidStateError):  # nobody waits any more
        future.set_result(None)


def all_names(loaded: Loaded) -> Mapping[NameKey, Path]:
    """Every host name of a configuration and the first place it stands at."""
    return {**source_names_of(loaded), **names_of(loaded.config)}


def resolve_once(loaded: Loaded) -> Resolved:
    """For the command line: every name of a configuration that resolves now."""
    resolver = Resolver()
    try:
        return resolver.resolve(loaded)
    finally:
        resolver.close()
