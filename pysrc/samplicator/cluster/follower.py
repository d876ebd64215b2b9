"""Follower: the EndpointSlices of one Service, listed once and watched from then on.

Purpose: a thread per Service that keeps a small picture of its slices. Invariants: what was known stays while the API
server does not answer; a watch that ends goes on where it was (resourceVersion), and after 410 Gone the slices are
listed anew; the server is never asked more often than once a second on average, and after failures with growing,
random pauses; the picture is bounded, whatever the server sends. Called by services. It must never decide who gets
copies. Source: "Efficient detection of changes", Kubernetes API Concepts, kubernetes.io.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final

from samplicator.cluster.api import Account, ApiError, Connection, clean, event
from samplicator.cluster.slices import Slice, read_slice

log = logging.getLogger(__name__)

VERSIONS: Final = ("v1", "v1beta1")
"""Of discovery.k8s.io; the second for servers before 1.21."""
PAGE: Final = 5
"""Slices in one answer to a list."""
WATCH_SECONDS: Final = (240, 300)
"""The server ends a watch after this time, and the next one begins."""
SHORT_SECONDS: Final = 5.0
"""A watch that lasted longer was no failure."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
EVENTS_PER_SECOND: Final = 50
"""More are read later: the server waits."""
MAX_SLICES: Final = 1000
MAX_ENDPOINTS: Final = 4000
"""In all slices of a Service; the others are left out, and a warning says so."""
GONE: Final = 410


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of a Service. slices: None = nothing yet. why: why it is not followed now, "" = it is. since: when
    that began (monotonic). left_out: there are more slices or endpoints than are kept.
    """

    slices: tuple[Slice, ...] | None = None
    why: str = "the API server has not answered yet"
    since: float = 0.0
    left_out: bool = False


class Follower:
    """Of one Service, from start() to stop()."""

    def __init__(self, namespace: str, service: str, account: Account, changed: Callable[[], None]) -> None:
        """changed: called on the follower's thread when the picture is another one."""
        self.picture = Picture(since=time.monotonic())
        self.answered = threading.Event()
        """The server has answered, or could not be asked."""
        self._place = f"{namespace}/{service}"
        self._folder = f"/namespaces/{namespace}/endpointslices"
        self._query = {"labelSelector": f"kubernetes.io/service-name={service}"}
        self._namespace = namespace
        self._account = account
        self._changed = changed
        self._slices: dict[str, Slice] = {}
        self._left_out = False
        self._version = ""  # of the slices that are known, "" = list them
        self._api = ""
        self._failures = 0
        self._connection: Connection | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pods", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends it soon; does not wait."""
        self._stopped.set()
        connection = self._connection
        if connection is not None:
            connection.close()

    # ------------------------------------------------------------------ on the thread

    def _run(self) -> None:
        while not self._stopped.is_set():
            pause = 0.0
            try:
                self._follow()
            except ApiError as error:
                pause = error.retry_seconds
                if error.status == GONE:
                    self._version = ""
                    self._failures += 1
                else:
                    if error.status == 404:  # the server is another one now: it may have another version of the API
                        self._api = self._version = ""
                    self._failed(self._words(error))
            except (OSError, HTTPException) as error:
                self._failed(f"the API server does not answer: {_reason(error)}")
            except Exception as error:
                log.exception("the Service %s: this is a defect in samplicator; please report it", self._place)
                self._version = ""
                self._failed(f"a defect in samplicator: {error!r}")
            if self._failures:
                longest = min(FIRST_PAUSE * 2 ** min(self._failures - 1, 10), LONGEST_PAUSE)
                pause = max(random.uniform(longest / 2, longest), min(pause, 2 * LONGEST_PAUSE))
                self._stopped.wait(pause)

    def _follow(self) -> None:
        """Connects, lists if needed, and watches until a watch ends badly."""
        connection = Connection(self._account)
        self._connection = connection
        try:
            while not self._stopped.is_set():
                if not self._version:
                    self._list(connection)
                begun = time.monotonic()
                try:
                    self._watch(connection)
                finally:
                    lasted = time.monotonic() - begun
                    if lasted >= SHORT_SECONDS:
                        self._failures = 0
                if lasted < SHORT_SECONDS:
                    self._failures += 1
                    return
        finally:
            self._connection = None
            connection.end()

    def _path(self) -> str:
        return f"/apis/discovery.k8s.io/{self._api or VERSIONS[0]}{self._folder}"

    def _list(self, connection: Connection) -> None:
        slices: dict[str, Slice] = {}
        left_out, token, version = False, "", ""
        for _ in range(MAX_SLICES):  # a server that goes on and on is left
            try:
                query = {**self._query, "limit": str(PAGE), **({"continue": token} if token else {})}
                page = connection.get(self._path(), query)
            except ApiError as error:
                if error.status != 404 or self._api:
                    raise
                self._api = VERSIONS[1]
                page = connection.get(self._path(), query)
            self._api = self._api or VERSIONS[0]
            items, metadata = page.get("items"), page.get("metadata")
            for item in items if isinstance(items, list) else ():
                left_out |= isinstance(item, Mapping) and not _keep(slices, item)
            metadata = metadata if isinstance(metadata, Mapping) else {}
            version, token = clean(metadata.get("resourceVersion"), 64), clean(metadata.get("continue"), 4096)
            if not token or left_out:
                break
        else:
            left_out = True
        if not version:
            raise ApiError(0, "the API server's list has no resourceVersion")
        self._slices, self._left_out, self._version = slices, left_out, version
        self._tell()

    def _watch(self, connection: Connection) -> None:
        """Until the server ends it. Raises ApiError, OSError, HTTPException."""
        seconds = random.randint(*WATCH_SECONDS)
        query = {
            **self._query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
        }
        response = connection.watch(self._path(), query, seconds + 30.0)
        self._tell()
        begun, count = time.monotonic(), 0
        while (found := event(response)) is not None:
            self._take(found)
            count += 1
            if count >= EVENTS_PER_SECOND:
                self._stopped.wait(max(0.0, begun + 1.0 - time.monotonic()))
                begun, count = time.monotonic(), 0
            if self._stopped.is_set():
                return
        response.close()

    def _take(self, found: Mapping[str, Any]) -> None:
        kind, item = found.get("type"), found.get("object")
        if not isinstance(item, Mapping):
            raise ApiError(0, "an event of the API server has no object")
        if kind == "ERROR":
            code = item.get("code")
            raise ApiError(code if isinstance(code, int) else 0, clean(item.get("message")) or "no reason given")
        metadata = item.get("metadata")
        version = clean(metadata.get("resourceVersion"), 64) if isinstance(metadata, Mapping) else ""
        self._version = version or self._version
        if kind == "DELETED":
            name = read_slice(item)[0]
            freed = self._slices.pop(name, None) is not None and self._left_out
        elif kind in ("ADDED", "MODIFIED"):
            freed = False
            self._left_out |= not _keep(self._slices, item)
        else:
            return  # a bookmark: the version is all that it says
        self._tell()
        if freed:  # there may be room for what was left out
            raise ApiError(GONE, "list again")

    # ------------------------------------------------------------------ what is known

    def _tell(self) -> None:
        """The slices are those of the server now."""
        before = self.picture
        if before.why and before.slices is not None:
            log.info("the Service %s is followed again", self._place)
        slices = tuple(self._slices[name] for name in sorted(self._slices))
        since = before.since if not before.why else time.monotonic()
        self.picture = Picture(slices, "", since, self._left_out)
        self.answered.set()
        if (before.slices, before.why, before.left_out) != (slices, "", self._left_out):
            self._changed()

    def _failed(self, why: str) -> None:
        self._failures += 1
        before = self.picture
        if self._stopped.is_set():
            return
        if before.why != why:
            then = "its last known pods stay in use" if before.slices is not None else "samplicator tries again"
            log.warning("the Service %s is not followed: %s; %s", self._place, why, then)
        since = before.since if before.why else time.monotonic()
        self.picture = Picture(before.slices, why, since, before.left_out)
        self.answered.set()
        if before.why != why:
            self._changed()

    def _words(self, error: ApiError) -> str:
        if error.status == 401:
            return f"the API server refuses the token of the service account (401: {error})"
        if error.status == 403:
            return (
                f"the service account may not get, list and watch endpointslices of discovery.k8s.io in namespace "
                f"{self._namespace} (403: {error}); bind it to a Role that may"
            )
        if error.status == 404:
            return f"the API server has no EndpointSlices (discovery.k8s.io {' or '.join(VERSIONS)})"
        return f"{error}" if not error.status else f"the API server answers {error.status}: {error}"


def _keep(slices: dict[str, Slice], item: Mapping[str, Any]) -> bool:
    """Takes a slice in; False when there is no room for all of it."""
    name, content = read_slice(item)
    if not name:
        return True
    slices.pop(name, None)
    room = MAX_ENDPOINTS - sum(len(each.endpoints) for each in slices.values())
    if len(slices) >= MAX_SLICES or room < len(content.endpoints):
        return False
    slices[name] = content
    return True


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return clean(text) or type(error).__name__
