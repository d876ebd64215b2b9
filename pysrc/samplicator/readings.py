"""Readings: a copy of all counters of the datapath at one moment. Pure data.

Made by supervisor, read by metrics, http and service. Counters are sums over all workers and sockets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ListenerReading:
    """One listener. counters: keyed by _fastpath.RX_FIELDS. batch_counts: one per _fastpath.BATCH_BOUNDS and +Inf
    last, not cumulative.

    buffer_bytes: what the kernel really grants, sum of the sockets. queue_bytes: waiting to be read. kernel_drops:
    dropped by the kernel because the buffer or ring was full. sockets: (address, port) pairs, one per configured
    socket, whatever the number of workers. receive: "recvmmsg" | "ring", receive_why: one sentence; rings: interfaces.
    state: "up" | "partly down" | "down", as far as its sockets could be opened; state_why: what this host lacks for the
    others, for people, "" when up. places: SCHEME://ADDRESS:PORT of each place where a gateway listens for it.
    """

    name: str
    sockets: tuple[tuple[str, int], ...]
    counters: Mapping[str, int]
    batch_counts: tuple[int, ...]
    buffer_bytes: int
    queue_bytes: int
    kernel_drops: int
    up: bool
    receive: str = "recvmmsg"
    receive_why: str = ""
    rings: tuple[str, ...] = ()
    state: str = "up"
    state_why: str = ""
    places: tuple[str, ...] = ()


@dataclass(slots=True)  # not frozen: there may be hundreds, and a frozen one takes three times as long to make
class ReceiverReading:
    """One receiver. counters: keyed by _fastpath.TX_FIELDS. address: text; of one behind a door, host is
    SCHEME://HOST:PORT, and what has no address has the gateway's name, and port 0. port: also 0 while its number is
    not known. source: "own" | "spoof" | "beside" (through a door). up: reachable as far as known. gave_up: what the
    kernel refused it lately: segment |
    transparent | packet. link: of engine packet, the next hop, or why copies leave by the raw socket now, for
    people; else "". mtu: bytes of a packet at most: what is longer leaves in fragments, mtu_why: for people. state:
    "up" | "refusing" | "unreachable" | "looping", state_why: for people, "" when up. standby_for: its primary, "" =
    none; waiting: it gets no copies now, the primary being up; takeovers: times it began to get them. written: name
    of the receiver that the operator wrote, if it is a pod of that one; else "".
    """

    name: str
    host: str
    address: str
    port: int
    source: str
    engine: str
    engine_why: str
    counters: Mapping[str, int]
    up: bool
    generation_added: int
    gave_up: tuple[str, ...] = ()
    link: str = ""
    mtu: int = 0
    mtu_why: str = ""
    state: str = "up"
    state_why: str = ""
    state_since_unix: float = 0.0
    standby_for: str = ""
    waiting: bool = False
    takeovers: int = 0
    written: str = ""

    @property
    def place(self) -> str:
        """Where it is, for people."""
        if self.engine == "door":
            return self.host if self.port else f"gateway {self.address}"
        port = self.port or "?"
        return f"[{self.address}]:{port}" if ":" in self.address else f"{self.address}:{port}"


@dataclass(frozen=True, slots=True)
class MemberReading:
    """A receiver in a pool. up: the pool sends to it. exporters: observation domains assigned to it now."""

    receiver: str
    weight: int
    up: bool
    exporters: int


@dataclass(frozen=True, slots=True)
class PoolReading:
    """One pool. balance: "exporter-hash" | "round-robin"."""

    name: str
    balance: str
    members: tuple[MemberReading, ...]


@dataclass(frozen=True, slots=True)
class PodReading:
    """A ready pod of a Kubernetes Service. receiver: name of the receiver that it is. address: text. node: the host
    that it runs on, "" = not known.
    """

    receiver: str
    pod: str
    node: str
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class ServiceReading:
    """A receiver that is a Kubernetes Service. receiver: its name. service: as written. followed: the API server tells
    of changes; otherwise the last known pods stay. why: what is wrong, "" = nothing. since_unix: when `followed` became
    what it is. waiting: pods that are not ready.
    """

    receiver: str
    service: str
    followed: bool
    why: str
    since_unix: float
    waiting: int
    pods: tuple[PodReading, ...]

    @property
    def ready(self) -> int:
        return len(self.pods)


@dataclass(frozen=True, slots=True)
class WorkerReading:
    """One worker. counters: keyed by _fastpath.WORKER_FIELDS. cpu: None when not pinned."""

    index: int
    cpu: int | None
    counters: Mapping[str, int]
    generation: int


@dataclass(frozen=True, slots=True)
class FlowReading:
    """The flow stage, summed over workers. counters: keyed by _fastpath.FLOW_COUNTER_FIELDS; the others by protocol
    (values of _fastpath.FLOW_KIND_NAMES). lost: before us, in the protocol's unit: packets (netflow9), datagrams
    (sflow5), flows (netflow5, 7, 8) or data records (ipfix).
    """

    counters: Mapping[str, int] = field(default_factory=dict)
    datagrams: Mapping[str, int] = field(default_factory=dict)
    malformed: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Domain:
    """One observation domain of one exporter session. worker, number: its place. listener: slot of its listener.
    header: of its last datagram. lost: units lost before us. style: what its numbers count, where that was learnt:
    records | flows | packets | all records | none. unmatched: no rule matches the exporter. counters: keyed by
    _fastpath.FLOW_DOMAIN_FIELDS.
    """

    worker: int
    number: int
    address: str
    port: int
    protocol: str
    domain: int
    listener: int
    first_seen_unix: float
    last_seen_unix: float
    next_sequence: int
    header: bytes
    templates: int
    options_templates: int
    options_data: int
    lost: int
    counters: Mapping[str, int]
    style: str = ""
    unmatched: bool = False


Header = bytes
"""Of a datagram."""


class Activity(NamedTuple):
    """What an observation domain has counted: a Domain in short, for those who look at many of them often.
    address: packed. style, listener, header: as there. first_ns, seen_ns: of its first and last datagram,
    CLOCK_MONOTONIC. lost: units lost before us, without gaps that may close, which are `pending`.
    """

    number: int
    address: bytes
    protocol: str
    style: str
    first_ns: int
    datagrams: int
    bytes: int
    lost: int
    pending: int = 0
    seen_ns: int = 0
    port: int = 0
    domain: int = 0
    listener: int = 0
    unmatched: bool = False
    header: Header = b""
    restarts: int = 0
    unknown: int = 0
    malformed: int = 0
    templates: int = 0
    options_templates: int = 0
    options_data: int = 0
    templates_added: int = 0


@dataclass(frozen=True, slots=True)
class Unmatched:
    """An exporter whose datagrams no rule matches. datagrams: of it, as far as it is remembered."""

    address: str
    listener: str
    datagrams: int


@dataclass(frozen=True, slots=True)
class FlowField:
    """A field of a template. length 65535 = variable; enterprise 0 = IANA."""

    element: int
    length: int
    enterprise: int
    scope: bool


@dataclass(frozen=True, slots=True)
class FlowTemplate:
    """A template, options template or options data record. record_bytes 0 = variable. raw: the record."""

    id: int
    kind: str
    first_seen_unix: float
    last_seen_unix: float
    record_bytes: int
    fields: tuple[FlowField, ...]
    raw: bytes


@dataclass(frozen=True, slots=True)
class AliasReading:
    """Who has an alias: the number that stands in copies instead of an observation domain. port: of the session that
    has it. shared: the sessions of this exporter that use the domain have it in turn; else this session alone.
    """

    alias: int
    address: str
    port: int
    protocol: str
    domain: int
    shared: bool
    silent_seconds: float


@dataclass(frozen=True, slots=True)
class Readings:
    """All counters at one moment, summed over workers. latency_counts: one per bound of latency_bounds_ns, not
    cumulative, and +Inf last.
    """

    generation: int
    listeners: tuple[ListenerReading, ...]
    receivers: tuple[ReceiverReading, ...]
    workers: tuple[WorkerReading, ...]
    latency_counts: tuple[int, ...]
    latency_sum_ns: int
    plan_started_unix: float
    flow: FlowReading = field(default_factory=FlowReading)
    pools: tuple[PoolReading, ...] = ()
    latency_bounds_ns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Answer to "who gets the datagrams of this exporter": rule texts in order, receiver names, denied by a stop
    rule, pool names (one of the members each).
    """

    rules: tuple[str, ...]
    rule_indexes: tuple[int, ...]
    receivers: tuple[str, ...]
    denied: bool
    pools: tuple[str, ...] = ()


def wall_ns(monotonic_ns: int) -> int:
    """Unix time in ns, as the clock says it now, of a moment on CLOCK_MONOTONIC. For display: ages are differences of
    monotonic moments, and a step of the wall clock moves all that is shown, not how old it is.
    """
    return time.time_ns() - (time.monotonic_ns() - monotonic_ns)


def add_up(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Column sums of rows of one length."""
    if len(rows) == 2:
        return tuple(map(add, *rows))
    return tuple(map(sum, zip(*rows, strict=True)))


@dataclass(frozen=True, slots=True)
class CollectorReading:
    """One of the two collectors of an SCTP receiver. role: primary | backup. state: initialising | connected | not
    connected | re-establishing | fail-over (a backup that gets the data). why: its last error, "" = none. flows: flow
    records exported to it in so many messages; given_up: flow records of these that were not delivered.
    """

    role: str
    place: str
    state: str
    why: str
    flows: int
    messages: int
    given_up: int


@dataclass(frozen=True, slots=True)
class AssociationReading:
    """How messages go out by SCTP. reliability: full | partial | none. mode: redundant | fail-over, "" = there is no
    backup. buffer_limit, waiting_flows: flow records that may wait, and that do. fail_overs: switches to the backup.
    dropped_resources, dropped_failure: messages that were dropped because the queue was full, while a collector was
    connected and while none was.
    """

    reliability: str
    mode: str
    buffer_limit: int
    fail_over_ms: int
    restore_s: int
    fail_overs: int
    waiting_flows: int
    dropped_resources: int
    dropped_failure: int
    collectors: tuple[CollectorReading, ...]

    @property
    def connected(self) -> bool:
        return any(one.state in ("connected", "fail-over") for one in self.collectors)


@dataclass(frozen=True, slots=True)
class TransportSessionReading:
    """A TCP connection or an SCTP association. gateway: tcp | tls | sctp. side: "in" from an exporter | "out" to a
    collector. name: of the listener or receiver. exporter: whose datagrams these are, ADDRESS:PORT. peer: the other
    end. state: initialising | connected | not connected | re-establishing. opened: how often it was connected.
    messages, octets: what came, or was sent. queue_bytes: what waits for the peer, or for a worker.
    """

    gateway: str
    side: str
    name: str
    exporter: str
    peer: str
    state: str
    why: str
    opened: int
    messages: int
    octets: int
    queue_bytes: int
    streams: int = 1
    association: AssociationReading | None = None

    @property
    def backup_in_use(self) -> bool:
        return self.association is not None and any(one.state == "fail-over" for one in self.association.collectors)


@dataclass(frozen=True, slots=True)
class GatewayReading:
    """What a gateway does for one listener or receiver. place: where it listens, or sends to. why: what is wrong, "" =
    nothing. sessions: by state. counters: events so far, by name (gateways.tally). backups_in_use: sessions whose
    messages a backup gets.
    """

    gateway: str
    side: str
    name: str
    place: str
    why: str
    sessions: Mapping[str, int]
    counters: Mapping[str, int]
    backups_in_use: int = 0
