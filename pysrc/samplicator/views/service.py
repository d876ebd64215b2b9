"""What the service knows of itself, for those who show it: the HTTP interface and the metrics.

Written by service alone; nothing here acts.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from samplicator.config.model.loaded import Loaded
from samplicator.readings import GatewayReading, ServiceReading, TransportSessionReading
from samplicator.supervisor.reload import Reloader
from samplicator.supervisor.taps import Taps
from samplicator.supervisor.view import View
from samplicator.views.history import History

HTTP_REFUSALS: Final = ("host", "certificate", "credentials", "attempts", "streams")
"""Why the HTTP interface refuses a request: see http.security and http.events."""
LOOP_LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds (seconds) of the control loop's lag histogram; one more bucket, +Inf, follows."""


@dataclass(slots=True)
class LoopLag:
    """How late the control loop's timer fired: counts per bound of LOOP_LAG_BOUNDS and +Inf last (not cumulative),
    and the sum.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(LOOP_LAG_BOUNDS) + 1))
    sum_seconds: float = 0.0

    @property
    def bounds(self) -> tuple[float, ...]:
        return LOOP_LAG_BOUNDS

    def observe(self, seconds: float) -> None:
        self.sum_seconds += seconds
        for index, bound in enumerate(LOOP_LAG_BOUNDS):
            if seconds <= bound:
                self.counts[index] += 1
                return
        self.counts[-1] += 1


def _no_take_over(_: socket.socket) -> tuple[int, str]:
    return 503, "this process hands nothing over"


@dataclass(slots=True)
class StateFile:
    """The state file as it is shown. path: "" = there is none. why: why it could not be written last time, "" = it
    could. saved_unix: when it was written last, 0 = not yet. domains: in it; left_out: those it has no room for.
    """

    path: str = ""
    why: str = ""
    saved_unix: float = 0.0
    domains: int = 0
    left_out: int = 0


@dataclass(slots=True)
class ServiceState:
    """What the HTTP interface and the metrics may see. Written by Service only, http_refused by http; `loaded` is the
    configuration that runs now.

    started_unix, started: when, by the wall clock for display, and by the monotonic clock for the uptime. ready,
    healthy: (state, one line of why). log_messages: level name in lower case -> lines written. history: the service has
    it take a sample every few seconds. services: of Kubernetes, that receivers are. gateways, sessions: of transports
    other than UDP. tokens: each of them allows changes
    over TCP, empty = nothing does. hand_over: begins a take-over on a connection, which then belongs to the service,
    and returns 101, or another HTTP status and why not.
    """

    view: View
    taps: Taps
    reloader: Reloader
    loaded: Loaded
    started_unix: float
    version: str
    ready: Callable[[], tuple[bool, str]]
    healthy: Callable[[], tuple[bool, str]]
    log_messages: dict[str, int]
    services: Callable[[], tuple[ServiceReading, ...]] = tuple
    gateways: Callable[[], Sequence[GatewayReading]] = tuple
    sessions: Callable[[], Sequence[TransportSessionReading]] = tuple
    loop_lag: LoopLag = field(default_factory=LoopLag)
    started: float = field(init=False)
    history: History = field(init=False)
    startup: str = ""
    tokens: tuple[str, ...] = ()
    state_file: StateFile = field(default_factory=StateFile)
    http_refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HTTP_REFUSALS, 0))
    hand_over: Callable[[socket.socket], tuple[int, str]] = _no_take_over

    def __post_init__(self) -> None:
        self.started = time.monotonic() - (time.time() - self.started_unix)
        self.history = History(self.view)
