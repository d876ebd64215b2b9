"""A ServiceState without a datapath: readings made up field by field, so that every number in the output can be told
from the others.

Used by tests/face.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Any

from samplicator import _fastpath
from samplicator.config.model.loaded import Loaded
from samplicator.config.model.whole import Config
from samplicator.gateways.tally import InTally, OutTally, counts
from samplicator.health.running import Running
from samplicator.readings import (
    Activity,
    AliasReading,
    AssociationReading,
    CollectorReading,
    Domain,
    FlowField,
    FlowReading,
    FlowTemplate,
    GatewayReading,
    ListenerReading,
    MemberReading,
    PodReading,
    PoolReading,
    Readings,
    ReceiverReading,
    Route,
    ServiceReading,
    TransportSessionReading,
    Unmatched,
    WorkerReading,
)
from samplicator.supervisor.reload import ReloadResult
from samplicator.supervisor.taps import Taps
from samplicator.views.service import ServiceState


def counters(fields: tuple[str, ...], start: int) -> dict[str, int]:
    return {field: start + place for place, field in enumerate(fields)}


def lawful_rx(start: int) -> dict[str, int]:
    values = counters(_fastpath.RX_FIELDS, start)
    values["datagrams"] = values["truncated"] + values["unmatched"] + values["denied"] + values["matched"]
    return values


def lawful_tx(start: int) -> dict[str, int]:
    values = counters(_fastpath.TX_FIELDS, start)
    dropped = sum(values[f"failed_{reason}"] for reason in _fastpath.REASONS)
    values["offered"] = values["skipped"] + values["sent"] + dropped
    return values


DOWN: dict[str, Any] = {
    "state": "unreachable",
    "state_why": "there is no route to the receiver",
    "standby_for": "nfdump",
    "takeovers": 2,
}


def make_readings(*, zero: bool = False) -> Readings:
    """Two listeners (one with two sockets), two receivers (one with an IPv6 address), two workers."""
    batches = tuple(range(len(_fastpath.BATCH_BOUNDS) + 1))
    listeners = tuple(
        ListenerReading(
            name=name,
            sockets=sockets,
            counters=dict.fromkeys(_fastpath.RX_FIELDS, 0) if zero else lawful_rx(start),
            batch_counts=tuple(0 for _ in batches) if zero else batches,
            buffer_bytes=1 << 20,
            queue_bytes=0 if zero else 4096,
            kernel_drops=0 if zero else start + 77,
            up=True,
        )
        for name, start, sockets in (
            ("netflow", 1000, (("0.0.0.0", 2055), ("::", 2055))),
            ('odd "name"\\', 2000, (("127.0.0.1", 6343),)),
        )
    )
    receivers = tuple(
        ReceiverReading(
            name=name,
            host=address,
            address=address,
            port=9995,
            source=source,
            engine=engine,
            engine_why="because",
            counters=dict.fromkeys(_fastpath.TX_FIELDS, 0) if zero else lawful_tx(start),
            up=start == 3000,
            generation_added=1,
            **({} if start == 3000 else {**DOWN, "state_since_unix": time.time() - 61.0}),
        )
        for name, start, address, source, engine in (
            ("nfdump", 3000, "192.0.2.10", "spoof", "raw"),
            ("six", 4000, "2001:db8::10", "own", "udp"),
        )
    )
    workers = tuple(
        WorkerReading(
            index=index,
            cpu=None,
            counters=dict.fromkeys(_fastpath.WORKER_FIELDS, 0)
            if zero
            else {field: value * 10**9 for field, value in counters(_fastpath.WORKER_FIELDS, 1 + 10 * index).items()},
            generation=7,
        )
        for index in range(2)
    )
    latencies = tuple(range(len(_fastpath.LATENCY_BOUNDS_NS) + 1))
    return Readings(
        generation=7,
        listeners=listeners,
        receivers=receivers,
        workers=workers,
        latency_counts=tuple(0 for _ in latencies) if zero else latencies,
        latency_sum_ns=0 if zero else 1_500_000_000,
        latency_bounds_ns=_fastpath.LATENCY_BOUNDS_NS,
        plan_started_unix=1.7e9,
        flow=make_flow(0 if zero else 1),
        pools=(
            PoolReading(
                "both", "exporter-hash", (MemberReading("nfdump", 3, True, 301), MemberReading("six", 1, False, 100))
            ),
        ),
    )


def make_flow(scale: int) -> FlowReading:
    """Every number another, or all of them 0."""
    kinds = list(_fastpath.FLOW_KIND_NAMES.values())

    def by_kind(start: int) -> dict[str, int]:
        return {kind: (start + place) * scale for place, kind in enumerate(kinds)}

    return FlowReading(
        counters={field: (600 + place) * scale for place, field in enumerate(_fastpath.FLOW_COUNTER_FIELDS)},
        datagrams=by_kind(700),
        malformed=by_kind(720),
        lost=by_kind(740),
        restarts=by_kind(760),
        memory_bytes=64 << 20,
    )


def make_session(number: int) -> Domain:
    """A v9 domain of 192.0.2.NUMBER: 20 datagrams in 10 s, 3 packets lost, 2 of them in gaps that settled."""
    counters = dict.fromkeys(_fastpath.FLOW_DOMAIN_FIELDS, 0)
    counters |= {"datagrams": 21, "bytes": 2100, "units": 21, "lost": 2, "pending": 1}
    header = bytes.fromhex("0009 0001 000f4240 65000000 00000014 00000007")
    return Domain(
        worker=0,
        number=number,
        address=f"192.0.2.{number}",
        port=2055,
        protocol="netflow9",
        domain=7,
        listener=4,
        first_seen_unix=0x65000000 - 12.0,
        last_seen_unix=0x65000000 - 2.0,
        next_sequence=21,
        header=header,
        templates=1,
        options_templates=1,
        options_data=1,
        lost=3,
        counters=counters,
    )


def make_templates() -> list[FlowTemplate]:
    """Data, and options that say 1 in 512 for interface 3."""
    fields = (FlowField(8, 4, 0, False), FlowField(1, 4, 29305, False), FlowField(40001, 65535, 9, False))
    options = (FlowField(2, 4, 0, True), FlowField(34, 4, 0, False))
    said = (3).to_bytes(4, "big") + (512).to_bytes(4, "big")
    return [
        FlowTemplate(256, "template", 1.0, 2.0, 9, fields, b""),
        FlowTemplate(257, "options_template", 1.0, 2.0, 8, options, b""),
        FlowTemplate(257, "options_data", 1.0, 2.0, 0, (), said),
    ]


class FakeView:
    def __init__(self, readings: Readings) -> None:
        self.value = readings
        self.error: Exception | None = None
        self.without_rule: list[Unmatched] = []

    def readings(self) -> Readings:
        if self.error is not None:
            raise self.error
        return self.value

    def domains(
        self, worker: int = 0, after: int = 0, limit: int = 1000
    ) -> tuple[list[Domain], tuple[int, int] | None]:
        numbers = range(after + 1, min(after + limit, 5) + 1)
        rest = (0, after + limit) if after + limit < 5 else None
        return [make_session(number) for number in numbers], rest

    def flow_extent(self) -> dict[int, int]:
        return {0: 5}

    def flow_activity(self, worker: int, numbers: Iterable[int]) -> list[Activity]:
        return [
            Activity(n, bytes((192, 0, 2, n)), "netflow9", "", 1, 21, 2100, 2, 1, 1, 2055, 7, 4)
            for n in numbers
            if 1 <= n <= 5
        ]

    def flow_templates(self, worker: int, number: int, after: int = -1) -> Iterator[FlowTemplate]:
        return (item for item in make_templates() if item.kind != "options_data" and item.id > after)

    def flow_options(self, worker: int, number: int) -> list[FlowTemplate]:
        return [item for item in make_templates() if item.kind != "template"]

    def unmatched(self, limit: int = 1000) -> list[Unmatched]:
        return self.without_rule

    def aliases(self, after: int, limit: int) -> tuple[list[AliasReading], int]:
        rows = [AliasReading(4000000000 + n, "192.0.2.1", 2055, "netflow9", n, n != 1, 61.0) for n in range(3)]
        return rows[after : after + limit], after + limit if after + limit < 3 else 0

    def aliases_unlisted(self) -> int:
        return 5

    def listener_names(self) -> dict[int, str]:
        return {4: "netflow"}

    @property
    def generation(self) -> int:
        return self.value.generation

    def route(self, address: bytes, port: int = 0, listener: str = "") -> Route:
        """Odd addresses go to a receiver, even ones to the pool."""
        return Route((), (), ("nfdump",) if address[-1] % 2 else (), False, () if address[-1] % 2 else ("both",))


def make_services() -> tuple[ServiceReading, ...]:
    """Two Kubernetes Services: one with two pods that is followed no more, one without a pod."""
    pods = (
        PodReading("siem/0", "collector-0", "node-a", "10.1.0.7", 9995),
        PodReading("siem/1", "collector-1", "", "2001:db8::7", 9995),
    )
    lost = "the API server does not answer: Connection refused"
    empty = "the Service logs/syslog has no ready pod (1 is not ready)"
    return (
        ServiceReading("siem", "k8s://monitoring/collector:flow", False, lost, time.time() - 90, 1, pods),
        ServiceReading("logs", "k8s://logs/syslog:514", True, empty, time.time() - 30, 1, ()),
    )


def make_gateways(*, zero: bool = False) -> list[GatewayReading]:
    """A listener with two exporters by TCP, and a receiver of which one session of three is connected."""
    came, went = counts(InTally()), counts(OutTally())
    if not zero:
        came = {name: number for number, name in enumerate(came, 100)}
        went = {name: number for number, name in enumerate(went, 200)}
    inside = {} if zero else {"connected": 2}
    outside = {} if zero else {"connected": 1, "not connected": 2}
    why = "" if zero else "not connected: Connection refused"
    return [
        GatewayReading("tcp", "in", "netflow", "tcp://0.0.0.0:4739", "", inside, came),
        GatewayReading("tcp", "out", "nfdump", "tcp://192.0.2.10:4739", why, outside, went),
    ]


def make_sessions() -> list[TransportSessionReading]:
    """An exporter by TCP; to collectors: one by TLS that refuses, two by SCTP, of which one uses the backup."""

    def association(first: CollectorReading, second: CollectorReading) -> AssociationReading:
        return AssociationReading("full", "redundant", 1024, 25, 25, 2, 7, 3, 5, (first, second))

    primary, backup = "192.0.2.11:9000", "192.0.2.12:9000"
    lost = "the network lost it"
    broken = association(
        CollectorReading("primary", primary, "re-establishing", lost, 104, 84, 0),
        CollectorReading("backup", backup, "fail-over", "", 50, 40, 0),
    )
    well = association(
        CollectorReading("primary", primary, "connected", "", 1040, 840, 0),
        CollectorReading("backup", backup, "connected", "", 0, 2, 0),
    )
    refused = "Connection refused"
    return [
        TransportSessionReading(
            "tcp", "in", "netflow", "192.0.2.1:50001", "192.0.2.1:50001", "connected", "", 1, 0, 0, 0
        ),
        TransportSessionReading(
            "tls", "out", "nfdump", "192.0.2.1:2055", "192.0.2.10:4740", "not connected", refused, 0, 0, 0, 4096
        ),
        TransportSessionReading(
            "sctp", "out", "six", "192.0.2.2:2055", primary, "re-establishing", lost, 3, 0, 0, 0, 4, broken
        ),
        TransportSessionReading("sctp", "out", "six", "192.0.2.3:2055", primary, "connected", "", 1, 0, 0, 0, 4, well),
    ]


class FakeReloader:
    """Answers what it is told to, and remembers who asked."""

    def __init__(self) -> None:
        self.reloads_total = 5
        self.failures_total = 2
        self.last_successful = True
        self.last_success_timestamp = 1.7e9
        self.config_hash = 0xABCDEF012345
        self.triggers: list[str] = []
        self.finished = 0
        self.delay = 0.0
        self.result = ReloadResult(True, 8, "1 receiver added", (), 0.01)

    async def reload(self, trigger: str) -> ReloadResult:
        self.triggers.append(trigger)
        await asyncio.sleep(self.delay)
        self.finished += 1
        return self.result


def make_state(*, zero: bool = False, **changes: Any) -> ServiceState:
    values: dict[str, Any] = {
        "view": FakeView(make_readings(zero=zero)),
        "taps": Taps(Running()),
        "reloader": FakeReloader(),
        "loaded": Loaded(Config(), (), files=("a.toml",), text_hash="ab" * 32),
        "started_unix": time.time() - 60,
        "version": "9.9.9",
        "ready": lambda: (True, "ok"),
        "healthy": lambda: (True, "ok"),
        "log_messages": {"warning": 3},
        "services": make_services,
        "gateways": lambda: make_gateways(zero=zero),
        **changes,
    }
    return ServiceState(**values)
