"""What happens now, once per second, in one value: exporters, listeners, receivers, their rates, drops and states.

Purpose: a page or a screen can be drawn from one event alone. `sample` reads, `event` puts what was read into words.
Invariants: an event is bounded, whatever the number of exporters, receivers and listeners: it names those that matter
most and counts the others; a sample costs a bounded time (crowd). Called by http, from one thread at a time, only while
somebody looks. It must never take a lock that a worker takes.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Final, TypedDict, TypeVar

from samplicator.config.address import endpoint_text
from samplicator.readings import ListenerReading, Readings, ReceiverReading
from samplicator.views import receivers as receiver_views
from samplicator.views.crowd import Crowd, Pass, Sender, Shared
from samplicator.views.growth import growth
from samplicator.views.history import MEASURES, listener_counts, receiver_counts

if TYPE_CHECKING:
    from samplicator.views.service import ServiceState

STEP_SECONDS: Final = 1.0
SHARE: Final = 0.04
"""Part of one CPU that samples may use; when one takes longer the next one comes later."""
EXPORTERS: Final = 300
ROUTES: Final = 64
LISTENERS: Final = 64
RECEIVERS: Final = 128
POOLS: Final = 32
NAMES: Final = 32
"""Receivers of one route, members of one pool, sockets of one listener that are named; all are counted."""
WORDS: Final = 160
"""Characters of a reason."""

Rates = dict[str, float | None]
T = TypeVar("T")
_LATELY: Final = attrgetter("lately")


class LiveConfig(TypedDict):
    """Which configuration runs."""

    generation: Annotated[int, "Generation of the plan; rises with every reload."]
    sha256: Annotated[str, "SHA-256 of the text of the configuration."]
    reloads: int
    reload_failures: int
    last_reload_successful: bool
    warnings: Annotated[int, "Number of warnings; /api/v1/config has their texts."]


class LiveListener(TypedDict):
    """A listener now."""

    name: str
    sockets: Annotated[list[str], "ADDRESS:PORT, at most 32."]
    state: Annotated[str, "up, partly down or down."]
    state_why: str
    receive: Annotated[str, "How datagrams are received: recvmmsg, ring, or door (by a gateway only)."]
    queue_bytes: Annotated[int, "Kernel memory used by datagrams that wait to be read."]
    buffer_bytes: int
    counts: Annotated[
        dict[str, int], "Totals: datagrams, bytes, matched, rejected, truncated, kernel_drops (as in the history)."
    ]
    rates: Annotated[Rates, "The same per second; null in the first event."]


class LiveReceiver(TypedDict):
    """A receiver now."""

    name: str
    place: Annotated[str, "ADDRESS:PORT that copies are sent to."]
    engine: str
    source: Annotated[str, "Source address of copies: own or spoof."]
    state: Annotated[str, "up, refusing, unreachable or looping."]
    state_why: str
    state_since_unix: float
    written: Annotated[str, "Receiver in the configuration, if this is a pod of a Kubernetes Service; else empty."]
    standby_for: Annotated[str, "Primary of this standby; empty if the receiver is not a standby."]
    waiting: Annotated[bool, "true for a standby that gets no copies now."]
    counts: Annotated[dict[str, int], "Totals: offered, sent, bytes, skipped, failed (as in the history)."]
    rates: Annotated[Rates, "The same per second; null in the first event, and for a new receiver."]
    reasons: Annotated[dict[str, int], "Copies that failed, totals by reason, without reasons that never happened."]


class LiveMember(TypedDict):
    """A receiver in a pool now."""

    receiver: str
    up: Annotated[bool, "true while the pool sends to the member."]
    exporters: Annotated[int, "Exporters' observation domains that the member gets now; 0 with round-robin."]


class LivePool(TypedDict):
    """Receivers that share the exporters."""

    name: str
    balance: Annotated[str, "exporter-hash or round-robin."]
    members: Annotated[list[LiveMember], "At most 32."]
    member_count: int


class LiveRoute(TypedDict):
    """Exporters that are heard by one listener and reach the same receivers: a stream of the map."""

    listener: Annotated[str | None, "null: of exporters whose route is not known yet, or whose listener is gone."]
    receivers: Annotated[list[str], "At most 32."]
    receiver_count: int
    pools: Annotated[list[str], "Pools, of which one member gets each datagram."]
    denied: Annotated[
        bool, "A rule with `stop` drops the datagrams. false without receivers and pools: no rule matches."
    ]
    exporters: int
    sending: Annotated[int, "Exporters that were heard in the last 10 seconds."]
    rates: Annotated[Rates, "Of all these exporters: datagrams, bytes, lost, per second."]


class LiveExporter(TypedDict):
    """An exporter at a listener now."""

    exporter: Annotated[str, "Its address."]
    listener: Annotated[str | None, "null: the listener is gone."]
    route: Annotated[int | None, "Index in `routes`; null: that route is left out."]
    protocols: list[str]
    units: Annotated[list[str], "What `lost` counts."]
    domains: Annotated[int, "Observation domains."]
    silent_seconds: Annotated[float, "Since its last datagram."]
    counts: Annotated[dict[str, int], "Totals: datagrams, bytes, lost."]
    rates: Annotated[Rates, "The same per second; null in the first event."]


class LiveLeftOut(TypedDict):
    """How many rows an event has no room for."""

    listeners: int
    receivers: int
    pools: int
    routes: int
    exporters: int


class LiveEvent(TypedDict):
    """What happens now. Exporters are those of listeners with `flow`."""

    number: Annotated[int, "Rises by one with every event."]
    time_unix: float
    seconds: Annotated[float, "Time that the rates are of; 0 in the first event, whose rates are null."]
    exporter_seconds: Annotated[float, "The same for exporters and routes: longer with more than 10,000 domains."]
    version: Annotated[str, "Version of samplicator."]
    started_unix: float
    ready: bool
    ready_why: str
    config: LiveConfig
    totals: Annotated[Rates, "Per second, the sums over all listeners and receivers, by the names of the history."]
    exporter_count: Annotated[int, "Exporters that are known; one that two listeners hear counts twice."]
    sending: Annotated[int, "Exporters that were heard in the last 10 seconds."]
    listeners: list[LiveListener]
    receivers: list[LiveReceiver]
    pools: list[LivePool]
    routes: Annotated[list[LiveRoute], "Those with the most exporters first."]
    exporters: Annotated[list[LiveExporter], "Those that lose and those that send the most, the busiest first."]
    left_out: LiveLeftOut


class Live:
    """One sampler, whatever the number of those who look."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state
        self._crowd = Crowd(state.view)
        self._number = 0
        self._readings: Readings | None = None
        self._pass = Pass()
        self._at_ns = 0
        self._seconds = 0.0
        self._counts: dict[str, dict[str, tuple[int, ...]]] = {"listeners": {}, "receivers": {}}
        self._rates: dict[str, dict[str, Sequence[float | None]]] = {"listeners": {}, "receivers": {}}
        self._totals: Rates = {}

    def sample(self) -> float:
        """Reads all counters; returns the seconds of CPU that it took."""
        begun = time.thread_time()
        readings = self._state.view.readings()
        now_ns = time.monotonic_ns()
        self._pass = self._crowd.step(now_ns)
        self._seconds = (now_ns - self._at_ns) / 1e9 if self._at_ns else 0.0
        self._at_ns, self._readings = now_ns, readings
        sums = [
            *self._grow("listeners", {item.name: listener_counts(item) for item in readings.listeners}),
            *self._grow("receivers", {item.name: receiver_counts(item) for item in readings.receivers}),
        ]
        self._totals = dict(zip(MEASURES["totals"], sums, strict=True))
        self._number += 1
        return time.thread_time() - begun

    def _grow(self, kind: str, now: dict[str, tuple[int, ...]]) -> list[float | None]:
        """Keeps counts and rates by name; returns the sums of the rates."""
        width = len(MEASURES["listeners" if kind == "listeners" else "receivers"])
        before, sums = self._counts[kind], [0] * width
        rates: dict[str, Sequence[float | None]] = {}
        for name, counts in now.items():
            rates[name] = (None,) * width
            if name in before and self._seconds:
                grown = growth(before[name], counts)
                rates[name] = [round(count / self._seconds, 1) for count in grown]
                sums = [total + count for total, count in zip(sums, grown, strict=True)]
        self._counts[kind], self._rates[kind] = now, rates
        return [round(total / self._seconds, 1) if self._seconds else None for total in sums]

    def event(self, share: float = 1.0) -> LiveEvent:
        """The last sample in words. share: of the rows that an event has otherwise, for an event that is too long."""
        readings, state = self._readings, self._state
        assert readings is not None, "sample() comes first"
        found, names = self._pass, state.view.listener_names()

        def room(rows: int) -> int:
            return max(1, int(rows * share))

        listeners = most(readings.listeners, room(LISTENERS), self._weight_of_listener)
        receivers = most(readings.receivers, room(RECEIVERS), self._weight_of_receiver)
        routes = found.routes[: room(ROUTES)]
        senders = shown(found.senders, room(EXPORTERS))
        ready, why = state.ready()
        reloader = state.reloader
        return {
            "number": self._number,
            "time_unix": round(time.time(), 3),
            "seconds": round(self._seconds, 3),
            "exporter_seconds": round(found.seconds, 3),
            "version": state.version,
            "started_unix": round(state.started_unix, 3),
            "ready": ready,
            "ready_why": why[: 4 * WORDS],
            "config": {
                "generation": readings.generation,
                "sha256": state.loaded.text_hash,
                "reloads": reloader.reloads_total,
                "reload_failures": reloader.failures_total,
                "last_reload_successful": bool(reloader.last_successful),
                "warnings": len(state.loaded.warnings),
            },
            "totals": self._totals,
            "exporter_count": found.exporters,
            "sending": found.sending,
            "listeners": [self._listener(item) for item in listeners],
            "receivers": [self._receiver(item) for item in receivers],
            "pools": [_pool(pool) for pool in receiver_views.pools(readings)[: room(POOLS)]],
            "routes": [_route(each, names, found.seconds) for each in routes],
            "exporters": [self._exporter(each, names, len(routes)) for each in senders],
            "left_out": {
                "listeners": len(readings.listeners) - len(listeners),
                "receivers": len(readings.receivers) - len(receivers),
                "pools": max(0, len(readings.pools) - room(POOLS)),
                "routes": len(found.routes) - len(routes),
                "exporters": found.exporters - len(senders),
            },
        }

    def _weight_of_listener(self, item: ListenerReading) -> tuple[bool, float]:
        return item.state != "up", self._rates["listeners"][item.name][0] or 0.0

    def _weight_of_receiver(self, item: ReceiverReading) -> tuple[bool, float]:
        rates = self._rates["receivers"][item.name]
        return item.state != "up" or bool(rates[4]), rates[0] or 0.0

    def _listener(self, item: ListenerReading) -> LiveListener:
        return {
            "name": item.name,
            "sockets": [*(endpoint_text(address, port) for address, port in item.sockets), *item.places][:NAMES],
            "state": item.state,
            "state_why": item.state_why[:WORDS],
            "receive": item.receive,
            "queue_bytes": item.queue_bytes,
            "buffer_bytes": item.buffer_bytes,
            "counts": dict(zip(MEASURES["listeners"], self._counts["listeners"][item.name], strict=True)),
            "rates": dict(zip(MEASURES["listeners"], self._rates["listeners"][item.name], strict=True)),
        }

    def _receiver(self, item: ReceiverReading) -> LiveReceiver:
        reasons = receiver_views.failed_by_reason(item.counters)
        return {
            "name": item.name,
            "place": item.place,
            "engine": item.engine,
            "source": item.source,
            "state": item.state,
            "state_why": item.state_why[:WORDS],
            "state_since_unix": round(item.state_since_unix, 3),
            "written": item.written,
            "standby_for": item.standby_for,
            "waiting": item.waiting,
            "counts": dict(zip(MEASURES["receivers"], self._counts["receivers"][item.name], strict=True)),
            "rates": dict(zip(MEASURES["receivers"], self._rates["receivers"][item.name], strict=True)),
            "reasons": {reason: count for reason, count in reasons.items() if count},
        }

    def _exporter(self, item: Sender, names: Mapping[int, str], routes: int) -> LiveExporter:
        return {
            "exporter": item.address,
            "listener": names.get(item.key[1]),
            "route": item.route if 0 <= item.route < routes else None,
            "protocols": sorted({kind for kind, _ in item.kinds}),
            "units": sorted({unit for _, unit in item.kinds}),
            "domains": item.domains,
            "silent_seconds": round(max(0, self._at_ns - item.seen_ns) / 1e9, 1),
            "counts": {"datagrams": item.datagrams, "bytes": item.bytes, "lost": item.lost},
            "rates": _rates(item.last, self._pass.seconds),
        }


def most(items: Sequence[T], room: int, weight: Callable[[T], tuple[bool, float]]) -> Sequence[T]:
    """Those with the most weight, in their order."""
    if len(items) <= room:
        return items
    best = heapq.nlargest(room, range(len(items)), key=lambda place: weight(items[place]))
    return [items[place] for place in sorted(best)]


def shown(senders: Sequence[Sender], room: int) -> list[Sender]:
    """Those who lost the most since the pass before, a quarter of the rows at most, and those who sent the most."""
    losing = heapq.nlargest(
        max(1, room // 4), (each for each in senders if each.last[2]), key=lambda each: each.last[2]
    )
    chosen = {each.key: each for each in losing}
    for each in heapq.nlargest(room, senders, key=_LATELY):
        if len(chosen) >= room:
            break
        chosen[each.key] = each
    return sorted(chosen.values(), key=_LATELY, reverse=True)


def _rates(grown: Sequence[int], seconds: float) -> Rates:
    return {
        name: round(count / seconds, 1) if seconds else None
        for name, count in zip(MEASURES["exporters"], grown, strict=True)
    }


def _route(item: Shared, names: Mapping[int, str], seconds: float) -> LiveRoute:
    slot, receivers, pools, denied = item.group or (-1, (), (), False)
    return {
        "listener": names.get(slot),
        "receivers": list(receivers[:NAMES]),
        "receiver_count": len(receivers),
        "pools": list(pools[:NAMES]),
        "denied": denied,
        "exporters": item.exporters,
        "sending": item.sending,
        "rates": _rates(item.grown, seconds),
    }


def _pool(pool: receiver_views.Pool) -> LivePool:
    return {
        "name": pool["name"],
        "balance": pool["balance"],
        "members": [
            {"receiver": each["receiver"], "up": each["up"], "exporters": each["exporters"]}
            for each in pool["members"][:NAMES]
        ],
        "member_count": len(pool["members"]),
    }
