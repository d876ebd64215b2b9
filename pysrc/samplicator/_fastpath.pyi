"""Contract of the compiled datapath. Handles only: the hot loop never touches a Python object.

Field tuples name the values of each `read()` in order. Addresses are network-order bytes: 4 (IPv4) or 16 (IPv6).
"""

import builtins
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, final

from typing_extensions import Buffer

CYTHON_VERSION: Final[str]
"""The version of Cython that compiled this module."""
REASONS: Final[tuple[str, ...]]
"""Why a copy was not sent: no_route, no_neighbor, message_too_long, no_buffer_space, refused, permission, other,
loop."""
TAPS: Final[int]
"""Taps of a worker that can be open at a time."""
TAP_LISTENERS: Final[int]
TAP_EVENTS: Final[dict[int, tuple[str, str]]]
"""(in | sent | skipped | dropped | failed, reason or "") of what a tap shows: see Worker.tap_open."""
RX_FIELDS: Final[tuple[str, ...]]
"""datagrams, bytes, truncated, truncated_bytes, unmatched, denied, matched, errors_again, errors_intr, errors_nomem,
errors_other."""
TX_FIELDS: Final[tuple[str, ...]]
"""offered, skipped, sent, sent_bytes, calls, retries, failed_<reason> for each of REASONS, replays (of all
templates, completed), shared_port (copies of a Tx with per_session whose session had no socket of its own)."""
WORKER_FIELDS: Final[tuple[str, ...]]
"""cpu_ns, busy_ns, wakeups, stalls, heartbeat_ns (CLOCK_MONOTONIC), sessions, session_misses, session_evictions,
session_sockets (open for sessions with a source port of their own)."""
BATCH_BOUNDS: Final[tuple[int, ...]]
"""Upper bounds (datagrams) of the receive batch histogram; one more bucket, +Inf, follows."""
LATENCY_BOUNDS_NS: Final[tuple[int, ...]]
"""Upper bounds (ns) of the forward latency histogram; one more bucket, +Inf, follows."""
ENGINE_UDP: Final[int]
"""From our own address, by a UDP socket connected to the receiver; runs leave as one segmented send (UDP_SEGMENT,
udp(7))."""
ENGINE_RAW: Final[int]
"""Headers made here, one raw socket per receiver (raw(7)), packet by packet."""
ENGINE_TRANSPARENT: Final[int]
"""Spoofed, by a socket bound to the exporter's port; its address goes with each message (IP_TRANSPARENT,
ip(7)); the rest by the raw socket."""
ENGINE_PACKET: Final[int]
"""Spoofed, as link frames by the worker's packet socket (packet(7), PACKET_VNET_HDR); the rest by the raw socket."""
ENGINE_DOOR: Final[int]
"""To a gateway, through a door: messages of datagrams with their exporters (DoorEnd)."""
POOL_EXPORTER_HASH: Final[int]
"""Balance of a pool: each exporter (address and observation domain) has one member, by rendezvous hashing."""
POOL_ROUND_ROBIN: Final[int]
"""Balance of a pool: datagram by datagram, in proportion to the weights."""
GAVE_UP_SEGMENT: Final[int]
"""Bit of Tx.gave_up: segmented sends (EIO, EINVAL or EOPNOTSUPP of a send with UDP_SEGMENT)."""
GAVE_UP_TRANSPARENT: Final[int]
"""Bit of Tx.gave_up: sending by the exporters' own sockets (EIO, EINVAL, EOPNOTSUPP, EPERM or EACCES of a send)."""
GAVE_UP_PACKET: Final[int]
"""Bit of Tx.gave_up: sending by the worker's packet socket (the same errors)."""
GAVE_UP_COPIER: Final[int]
"""Bit of Tx.gave_up: copies made by the kernel (the loopback device takes no frame, or nobody copies it)."""
BATCH_MAX: Final[int]
DELAY_AUTO: Final[int]
"""Most datagrams of one receive call, 512."""
FLOW_KIND_NAMES: Final[dict[int, str]]
"""Kinds of datagrams by number: other, netflow1, netflow5, netflow7, netflow8, netflow9, ipfix, sflow5."""
FLOW_COUNTER_FIELDS: Final[tuple[str, ...]]
"""Names of the first tuple of Flow.counters()."""
FLOW_DOMAIN_FIELDS: Final[tuple[str, ...]]
"""Counters of one observation domain, the last fields of FLOW_SESSION_FIELDS: datagrams, bytes, units (flows,
packets, data
records or datagrams, as the kind counts), lost, pending (missing, may still come late), late, repeated, restarts,
unknown
(datagrams with a data set of an unknown template), malformed, templates_added, templates_seen, withdrawn."""
FLOW_SESSION_FIELDS: Final[tuple[str, ...]]
"""number, address, port, kind, domain, listener, first_ns, seen_ns (CLOCK_MONOTONIC), sequence (next expected), header
(of the
last datagram), templates, options_templates, options_data, style (what the numbers of v9 and IPFIX count: records,
flows,
packets, all records; none = the exporter writes none; "" = other kinds), unmatched (no rule matches the exporter), then
FLOW_DOMAIN_FIELDS."""
FLOW_ITEM_FIELDS: Final[tuple[str, ...]]
"""id, kind (one of FLOW_ITEM_NAMES), first_s, seen_s (first taught and last repeated, CLOCK_MONOTONIC in
seconds), record_bytes (0 = variable),
scope_fields, fields, raw (the record's bytes)."""
FLOW_ITEM_NAMES: Final[tuple[str, ...]]

FLOW_COUNTER_GAUGES: Final[tuple[str, ...]]
"""Those of FLOW_COUNTER_FIELDS that say what is there now; the others only grow."""
FLOW_SEQUENCE_FLAGS: Final[tuple[str, ...]]
FLOW_SEQUENCE_NUMBERS: Final[tuple[str, ...]]
"""What flow_carry_out() says of a sequence, beside `score` and `gaps`: small numbers, and numbers of 32 bits."""
FLOW_CARRY_ITEM_FIELDS: Final[tuple[str, ...]]
"""kind (index into FLOW_ITEM_NAMES), id, first_age_s, seen_age_s, alive_age_ms, used, whole, lone, raw (bytes)."""
FLOW_CARRY_STATE_FIELDS: Final[tuple[str, ...]]
"""receiver (TxCounters.id), offset, restarts, left_out, owes, paused, paused_at, template_copies, option_copies,
template_age_ms, option_age_ms, spent, spent_age_ms, owed."""

def flow_carry_order(flow: Flow, now_ns: int) -> list[int]:
    """age << 32 | number of all domains of a Flow but spare ones that nothing came from; age: ms since the last
    datagram. now_ns: CLOCK_MONOTONIC.
    """

def flow_carry_out(flow: Flow, number: int, now_ns: int) -> dict[str, Any] | tuple[()] | None:
    """All about one domain as of now_ns; None: the place is empty; (): it never stood still, ask again. Safe while a
    worker runs; when all workers have ended it is exact.
    """

def flow_carry_in(flow: Flow, carried: dict[str, Any], now_ns: int, silent_ns: int = 0, spare: bool = False) -> bool:
    """Takes what flow_carry_out() gave; silent_ns: passed since then. spare: for a worker that may never hear of it:
    without its counters, and forgotten in ten minutes if nothing comes. False: the domain is known already, or was
    silent for longer than domains are remembered. Raises ValueError for what is no such thing or finds no room. No
    worker may have the Flow.
    """

def flow_carry_totals(
    flow: Flow,
    counters: Mapping[str, int],
    by_kind: Sequence[int],
    malformed: Sequence[int],
    lost: Sequence[int],
    restarts: Sequence[int],
) -> None:
    """Adds to what the Flow has counted: counters by name (gauges are left out), the others by kind number. Raises
    ValueError; then nothing was added. No worker may have the Flow.
    """

def flow_field_list(raw: bytes, ipfix: bool, options: bool) -> tuple[tuple[int, int, int], ...]:
    """(element, bytes, enterprise) of each field of a raw template record; enterprise 0 = IANA, bytes 65535 =
    variable."""

@final
class Flow:
    """The flow stage's memory of one worker: observation domains, templates, options data, sequences, renumbering.
    Outlives plans and workers. octets: bound of all of it in bytes (64 MiB). Bounds: exporter_domains 1..65535 and
    exporter_blocks of one exporter session, domain_items (templates and options data of a domain), idle_ms,
    template_ms, forget_ms. Raises ValueError, TypeError for an unknown bound, MemoryError."""

    def __new__(cls, octets: int = 67108864, **bounds: int) -> Flow: ...
    @property
    def bytes(self) -> int:
        """Bytes reserved in all; pages are touched as they are needed."""

    @property
    def capacity(self) -> tuple[int, int, int, int]:
        """(domains, items, record blocks, renumbering states)."""

    def set_template_life(self, ms: int) -> None:
        """Templates neither repeated nor used for so long, and options data not repeated, expire from now on, 0 =
        never; their exporter is remembered for as long, 24 hours at least. Raises ValueError beyond 7 days.
        """

    def counters(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(values of FLOW_COUNTER_FIELDS, datagrams by kind number, malformed by kind number)."""

    def losses(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(units lost before us by kind number, restarts by kind number), of domains that are gone too."""

    def sessions(self) -> list[tuple[object, ...]]:
        """One tuple of FLOW_SESSION_FIELDS for each (exporter session, kind, domain)."""

    def session(self, number: int) -> tuple[object, ...] | None:
        """FLOW_SESSION_FIELDS of one, None = the place is empty."""

    @property
    def used(self) -> int:
        """The largest number that a session had so far."""

    def unmatched(self, limit: int, silent_ms: int) -> list[tuple[builtins.bytes, int, int]]:
        """(address, listener, datagrams) of up to `limit` sessions whose exporter no rule matches, heard within
        silent_ms."""

    def items(
        self, number: int, templates: bool = True, options: bool = True, after: int = -1
    ) -> tuple[tuple[object, ...], ...]:
        """FLOW_ITEM_FIELDS of what a session taught. templates: those of data; options: templates and data of options;
        after: ids above it only. Rows of another definition of their template are void and left out."""

@final
class RxCounters:
    """Counters of one listener on one socket; single writer, the worker that reads the socket. Survives the
    socket."""

    def __new__(cls) -> RxCounters: ...
    def read(self) -> tuple[int, ...]: ...
    def batches(self) -> tuple[int, ...]:
        """Receive batches by size, one count per bound of BATCH_BOUNDS and +Inf last (not cumulative)."""

@final
class TxCounters:
    """Counters and freq countdown of one receiver on one worker. Survives its Tx; share one between a Tx and its
    fallback."""

    def __new__(cls) -> TxCounters: ...
    @property
    def id(self) -> int:
        """1 or more, unique in the process: by it workers know the receiver from one plan to the next."""

    @property
    def countdown(self) -> int:
        """Copies to leave out before the next one is sent (freq)."""

    def read(self) -> tuple[int, ...]: ...
    def carry(self, counts: Sequence[int], countdown: int) -> None:
        """Begins at these counts, in the order of TX_FIELDS; before a worker has a Tx with them. Raises ValueError,
        OverflowError, TypeError.
        """

@final
class RxSocket:
    """A bound, non-blocking UDP socket of a listener, a packet socket with a ring, or the worker's end of a door. The
    descriptor stays owned by the caller, who keeps it open until every worker has left the plans that name it. Worker
    enables nothing on the socket: the caller sets SO_TIMESTAMPNS and, when wanted, IP_RECVTTL/IP_RECVTOS
    (IPV6_RECVHOPLIMIT/IPV6_RECVTCLASS), UDP_GRO. counters: its own, or those of other sockets that the same worker
    reads. listener: index in plans, 0..65535. ring:
    a writable buffer over the whole mapping of a TPACKET_V3 receive ring with virtio-net headers (PACKET_RX_RING,
    PACKET_VNET_HDR, packet(7)), kept alive by this object; block_bytes: tp_block_size, a multiple of 8 from 4096 on,
    the buffer has whole blocks. bell: the doorbell: a writable buffer over the mapping of a TPACKET_V2 ring of one
    slot, whose socket, bell_fd, takes the same packets after the ring does; with it the block that the kernel fills is
    read as well, without it only those that it has closed. x86-64 only (fastpath/rx/ring.pxi).
    flow: its datagrams go through the flow stage, if the worker has one. door: `fd` is one end of a non-blocking pair
    of AF_UNIX SOCK_SEQPACKET sockets, whose other end is a DoorEnd's. Raises ValueError for a value out of range."""

    def __new__(
        cls,
        fd: int,
        counters: RxCounters,
        listener: int,
        *,
        ring: Buffer | None = None,
        block_bytes: int = 0,
        bell: Buffer | None = None,
        bell_fd: int = -1,
        flow: bool = False,
        door: bool = False,
    ) -> RxSocket: ...
    @property
    def fd(self) -> int: ...
    @property
    def listener(self) -> int: ...
    @property
    def mark(self) -> tuple[int, int]:
        """Of a ring: block and offset in it of the next slot to be read."""

    @property
    def shut(self) -> bool:
        """Of a door: whether its other end is gone. The worker reads it no more."""

    def set_flow(self, on: bool) -> None:
        """Whether its datagrams go through the flow stage, from the next batch on; while the worker runs, too."""

    def set_offload(self, on: bool) -> None:
        """Whether the kernel may copy its sessions' datagrams; while the worker runs, too."""

    def rest(self, *, empty: bool = False) -> None:
        """Asks the worker to read it no more, after the batch at hand; empty: after it was read until nothing waited in
        it. Any thread may ask; then wake the worker.
        """

    def go_on(self) -> None:
        """Asks the worker to read it (again)."""

    @property
    def settled(self) -> bool:
        """Whether the worker has done what was asked for last. False while no plan that runs names the intake."""

    def set_overlap(self, overlap: Overlap | None, *, notes: bool = False) -> None:
        """What it brings from now on is entered (notes), or left out if it was entered; None: neither. Raises
        ValueError if the intake does not rest. Taking it off is for an intake that rests, or is not overlapping.
        """

    @property
    def overlapping(self) -> bool:
        """Whether it has an overlap. An intake that leaves out has none any more when nothing of it can wait there."""

@final
class Overlap:
    """What older intakes bring, so that newer ones do not bring it again. entries: how many datagrams it can hold;
    what finds no place may be received twice."""

    def __new__(cls, entries: int = 262144) -> Overlap: ...
    def limit(self, *, since_ns: int | None = None, until_ns: int | None = None) -> None:
        """CLOCK_REALTIME. Datagrams that came before since_ns are not entered; one that came after until_ns says that
        nothing that was entered follows.
        """

    def read(self) -> tuple[int, int, int]:
        """Datagrams entered, not entered for want of room, and left out."""

@final
class Tx:
    """One way to one receiver on one worker: an engine, its descriptor and the receiver's header template.

    engine: ENGINE_UDP: `fd` is a non-blocking UDP socket connected to the receiver, IP_RECVERR on, ttl/tos set by the
    caller with socket options (0 / -1 = kept from the datagram, done per copy here). ENGINE_RAW: `fd` is a non-
    blocking raw socket (IPPROTO_RAW), header crafted here. ENGINE_TRANSPARENT: as ENGINE_RAW (same `fd`, no fixed
    source); runs of an exporter leave by a socket bound to its address where it has earned one. ENGINE_PACKET: the same
    by the worker's packet socket and link(). By the raw socket leave with these two: batches that not all go to this
    receiver (freq, rules), batches that are too much for `sessions`, ttl 0, pause_us, and with ENGINE_TRANSPARENT
    checksum False. ttl 1..255, 0 = the exporter's; tos 0..255, -1 = the exporter's; freq 1..2^32-1; pause_us after each
    copy. mtu: of the path in bytes, decides with every engine what can leave as a segmented send and in ENGINE_RAW what
    must be fragmented. source: fixed (address, port) written by ENGINE_RAW; None = the exporter's. by_exporter: freq
    keeps 1/freq of the exporters whole (by address) instead of every freq-th datagram. refresh: templates are replayed
    after so many copies, so many ms, options data likewise (0 = never), per observation domain. fallback: the Tx that
    takes exporters of the other address family (unspoofed; without one, copies of theirs are dropped as `other`);
    shares `counters`. cutter: of an ENGINE_UDP, an ENGINE_RAW with a source and the same counters and `mtu`: what is
    longer than `mtu` leaves by it in fragments of that size, once cut_from() was called; without one the kernel cuts
    for the route. alias: copies of NetFlow v9 and IPFIX carry the alias of their exporter's domain (Aliases) instead of
    the domain. per_session (ENGINE_UDP): each exporter session has a socket of its own, connected and set up like `fd`;
    sessions without one leave by `fd`, under their alias. ENGINE_DOOR: `fd` is the worker's end of a door (see
    RxSocket); what finds no room there is no_buffer_space. address (16 bytes) and port name the receiver for pools
    only; ttl, tos and checksum mean nothing, exporters of both families are taken, and source, pause_us and fallback
    are refused. nowhere: nothing can be sent to it now: every copy is counted as no_route without asking the kernel. fd
    -1: a dry plan, never published. Raises ValueError for a value out of range."""

    def __new__(
        cls,
        engine: int,
        fd: int,
        counters: TxCounters,
        address: bytes,
        port: int,
        *,
        ttl: int = 64,
        tos: int = -1,
        freq: int = 1,
        checksum: bool = True,
        mtu: int = 1500,
        source: tuple[bytes, int] | None = None,
        scope_id: int = 0,
        pause_us: int = 0,
        by_exporter: bool = False,
        refresh: tuple[int, int, int, int] = (0, 0, 0, 0),
        fallback: Tx | None = None,
        cutter: Tx | None = None,
        alias: bool = False,
        per_session: bool = False,
        nowhere: bool = False,
    ) -> Tx: ...
    def cut_from(self, address: bytes, port: int) -> None:
        """Address and port of the socket of a Tx with a cutter; from now on the cutter sends what is longer than `mtu`.
        Once, when the socket is connected; while the worker runs, too."""

    @property
    def fd(self) -> int: ...
    @property
    def gave_up(self) -> int:
        """GAVE_UP bits: what the kernel refused this receiver and is not asked for now; the worker tries it again after
        a minute, then after twice as long each time, 15 minutes at most. Written by the worker; any thread may read."""

    def replay(self) -> None:
        """Asks for all templates and options data of all exporters whose rules name this receiver, as if they had come
        just now (wake the worker if it may be idle). Needs a worker with a Flow; counted in `replays`."""

    @property
    def replaying(self) -> bool:
        """Whether a replay asked for is not finished."""

    def link(self, interface: int = 0, header: bytes = b"", mtu: int = 0, cuts: bool = False) -> None:
        """ENGINE_PACKET: the next hop: index of the egress interface (1 or more), link header (destination, source,
        EtherType: 14 bytes, with VLAN tag 18), MTU in bytes (68 or more), whether it cuts runs up (see host/links); no
        arguments: unknown, copies leave by the raw socket. One thread at a time, any time. Raises ValueError."""

    unresolved: bool
    """Whether the next hop is known not to answer (netlink): copies are then counted as no_neighbor, but for one every
    100 ms, which keeps the kernel asking. Written by the control plane while the worker runs."""

    accounted: bool
    """Whether the control plane accounts for what a next hop that does not answer loses: then a report of that kind
    (host unreachable, IP_RECVERR) is not counted once more. Written by the control plane while the worker runs."""

    down: bool
    """Whether pools pass this member over, from the next batch on. Written by the control plane while the worker runs;
    set it on the main Tx of a receiver only."""

    refusing: bool
    """Whether what the kernel accepts is counted as refused, not as sent: for engines that hear no refusals (all but
    ENGINE_UDP), when a probe has. Copies are sent all the same. Written by the control plane while the worker runs."""

    looped: bool
    """Whether its copies come back to us: they are counted as `loop`, and none is sent, templates included. Set by the
    control plane, and by a worker that has proved it (see Worker); taken back by the control plane only."""

    def standby(self, waiting: bool) -> None:
        """True: from the next batch on it gets no copies; they are not offered, so not counted. False: it gets all
        templates first (as by replay(); wake the worker), then copies. Applies to its fallback too. While it waits,
        replay() sends nothing. By one thread at a time."""

    @property
    def waiting(self) -> bool:
        """Whether it gets no copies now: it waits, or its templates are not sent yet."""

    mtu: int
    """Path MTU in bytes, 68..65535 (IPv6: 1280 at least); may be written while the worker runs."""

DOOR_FIELDS: Final[tuple[str, ...]]
"""Of a datagram at a door: address (of the exporter, 4 or 16 bytes), port, payload, arrival_ns (Unix time, 0 =
unknown), ttl (0 = unknown), tos, listener (of the plan), receiver (TxCounters.id). A worker does not
read the last two."""

@final
class DoorEnd:
    """The gateway's end of a door: a non-blocking AF_UNIX SOCK_SEQPACKET socket, owned by the caller. Never waits. One
    thread at a time."""

    def __new__(cls, fd: int) -> DoorEnd: ...
    def read(self) -> list[tuple[bytes, int, bytes, int, int, int, int, int]]:
        """Tuples of DOOR_FIELDS, of 8 messages at most, [] = nothing is there now. Raises EOFError when the other end
        is gone and all is read, OSError."""

    def write(self, datagrams: Sequence[tuple[bytes, int, bytes, int, int, int, int, int]]) -> int:
        """How many were taken, from the first on; fewer than given: there is no room now. Raises OSError
        (BrokenPipeError: the other end is gone), ValueError and OverflowError for a field out of range: those before it
        may have been taken."""

    @property
    def malformed(self) -> int:
        """Records that could not be read."""

ALIAS_BYTES: Final[int]
"""Bytes of the memory of Aliases."""
ALIAS_COUNT: Final[int]
"""Entries that it has room for."""
ALIAS_FIELDS: Final[tuple[str, ...]]
"""place, alias, address, port (of the session that holds it), kind (a value of FLOW_KIND_NAMES), domain, shared (the
sessions of the exporter hold it in turn), seen_s (CLOCK_MONOTONIC)."""

@final
class Aliases:
    """Who has which number instead of an observation domain: one table for all workers, for the process's life.

    memory: a writable buffer of ALIAS_BYTES that outlives the process (a mapped file), so that the next one goes on
    from there; what is not such a table is begun anew. None: memory of its own. Raises ValueError for another size.
    Any thread may read while workers run."""

    def __new__(cls, memory: Buffer | None = None) -> Aliases: ...
    @property
    def unlisted(self) -> int:
        """Times that an alias was given and there was no room to remember it."""

    def list(self, after: int, limit: int) -> tuple[list[tuple[int, int, bytes, int, str, int, bool, int]], int]:
        """`limit` rows of ALIAS_FIELDS from place `after` on, and where to go on, 0 = the end."""

    def take(
        self, address: bytes, port: int, kind: int, domain: int, now_s: int, may_claim: bool = True, born_s: int = 0
    ) -> int:
        """The alias of a session's domain (kind 9 or 10), as a worker asks for it; 0 = none is left. may_claim: it may
        take over that of a silent session. born_s: when the exporter started as it says, 0 = unknown."""

@final
class Plan:
    """The immutable compiled form of what one worker does. Keeps its sockets, Tx and counters alive.

    rules: (sources, listeners, txs, stop): sources = (family 0|4|6, address 16 bytes, mask 16 bytes), IPv4 in
    IPv4-mapped form; listeners = listener indexes or None for all; txs = indexes into `txs`. Every matching rule
    fires (union, each Tx once), up to and including the first matching rule with stop. pools: (id, balance, members):
    id 1 or more, the same for a pool in every plan; balance POOL_EXPORTER_HASH or POOL_ROUND_ROBIN; members =
    (index into `txs`, weight 1..1000). A rule names pool p as len(txs) + p: one member gets the copy, and a receiver
    that a rule names besides the pool gets one copy. replay_to: indexes of Tx whose rules changed: when the plan is
    adopted they get the templates of the exporters that the plan before did not send to them. unread: UDP sockets of
    the plan before that this one does not name keep what waits in them. Raises ValueError on an index, weight or
    length out of range, or when a Tx needs aliases and there are none. `rules` is gone through twice and not kept."""

    def __new__(
        cls,
        generation: int,
        sockets: Sequence[RxSocket],
        txs: Sequence[Tx],
        rules: Collection[tuple[Sequence[tuple[int, bytes, bytes]], Sequence[int] | None, Sequence[int], bool]],
        pools: Sequence[tuple[int, int, Sequence[tuple[int, int]]]] = (),
        replay_to: Sequence[int] = (),
        aliases: Aliases | None = None,
        unread: bool = False,
    ) -> Plan: ...
    @property
    def generation(self) -> int: ...
    def route(self, address: bytes, listener: int) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """(matching rules in order, Tx indexes that get a copy and behind them pools as len(txs) + p, denied) for an
        exporter address (4 or 16 bytes) on a listener."""

@final
class Worker:
    """One datapath thread's state. Everything it needs is allocated here.

    batch: datagrams a receive call, 1..BATCH_MAX. max_datagram: bytes kept of a datagram, 1..65535; longer ones are
    counted and dropped. sessions: capacity of the exporter cache, 1..2^24 (rounded up to a power of two).
    send_buffer: bytes, 1 or more, of each socket of ENGINE_TRANSPARENT (one an exporters' port, 16384 at most).
    packet_fd: the AF_PACKET socket of ENGINE_PACKET (SOCK_RAW, protocol 0, PACKET_VNET_HDR, non-blocking), owned by
    the caller and kept open as long as the worker runs; -1 = none: copies of that engine leave by their raw sockets.
    max_delay_us: microseconds a worker that is not idle waits for more datagrams before it receives, 0..100000, or
    DELAY_AUTO: 100 while several are likely to come meanwhile.
    Raises ValueError, MemoryError, OSError (epoll, eventfd)."""

    def __new__(
        cls,
        *,
        batch: int = 512,
        max_datagram: int = 65535,
        sessions: int = 131072,
        send_buffer: int = 4194304,
        packet_fd: int = -1,
        max_delay_us: int = 0,
        flow: Flow | None = None,
    ) -> Worker: ...
    def copy_in_kernel(self, receivers: int, counters: int, number: int, device: int, token: int) -> None:
        """Frames for several receivers leave as one, from run() on. number: 0..255. Raises ValueError, OSError."""

    def offload(self, maps: Sequence[int], ring: int, octets: int, number: int, of: int, xdp: Sequence[int]) -> None:
        """The kernel may copy sessions where they come in (host/offload), from run() on. Raises ValueError, OSError."""

    def offload_outputs(self, devices: Mapping[int, int]) -> None:
        """Interfaces that XDP can send by, 64 at most: by index, copies that each ring holds. Whatever thread."""

    def offload_again(self) -> None:
        """What is offloaded has to come through this host again, from the next pass on. One thread at a time."""

    def run(self) -> None:
        """The loop, without the GIL, until stop(). Call from the thread that is to be the worker, after a first
        publish()."""

    def publish(self, plan: Plan) -> None:
        """Hands the worker its next plan; adopted at a batch boundary (see generation). Sockets that are not in the new
        plan are drained under the old one first. The worker keeps references of the plans it runs and has got."""

    @property
    def generation(self) -> int:
        """Generation of the plan the worker runs now, -1 before the first."""

    @property
    def unpolled(self) -> int:
        """Sockets that epoll refuses (epoll_ctl(2): ENOSPC, ENOMEM): the worker looks at them every millisecond
        itself."""

    def stop(self, drain_ms: int = 0) -> None:
        """Ends run(): reads on until its sockets are empty, for drain_ms at most, then returns from run()."""

    def wake(self) -> None:
        """Ends the worker's wait, if it waits: a replay asked for begins at once."""

    def withhold(self, *ports: int) -> None:
        """The worker closes what it has on these UDP ports, of both families, and takes none of them again until others
        are named: sockets of ENGINE_TRANSPARENT, and those of sessions (Tx, per_session). By one thread at a time.
        Raises ValueError for what is not 0..65535."""

    def source_ports(self, first: int, last: int, reserved: Iterable[int] = ()) -> None:
        """Where sockets of sessions (Tx, per_session) get their ports from now on: first..last, but for those that are
        reserved; those that are open keep theirs. Before: net.ipv4.ip_local_port_range as shipped. By one thread at a
        time. Raises ValueError."""

    @property
    def let_go(self) -> bool:
        """Whether the worker, which must run, has done what withhold() last asked for."""

    def pool(self, number: int) -> dict[int, int]:
        """Exporters (address and observation domain) that each member of pool `number` (its id) has now on this worker,
        by TxCounters.id; {} when the running plan has no such pool. Always 0 with POOL_ROUND_ROBIN."""

    def read(self) -> tuple[int, ...]: ...
    def latency(self) -> tuple[tuple[int, ...], int]:
        """(counts per bound of LATENCY_BOUNDS_NS and +Inf last, not cumulative; sum in ns): kernel arrival to handed
        back."""

    def tap_open(
        self,
        fd: int,
        *,
        rate: float,
        drops: bool = False,
        receiver: int = 0,
        listener: int = ...,
        exporter: bytes = b"",
        prefix: int = 0,
    ) -> int:
        """A sample of what happens, into a door: `fd` is the worker's end, to be kept open while `tap_is_used`.
        Payloads of its records begin with 12 bytes in host order: number of the datagram (4; the same for its copies,
        0 = none), length of the datagram (4), key of TAP_EVENTS (1), engine of a copy (1), nothing (2). rate: 1..10^6
        events a second. drops: only what is not forwarded. receiver: TxCounters.id, 0 = all. listener: slot,
        TAP_LISTENERS = all. exporter: 4 or 16 bytes of which `prefix` bits count, b"" = all. Without receiver and
        drops, datagrams are chosen and shown with all their copies. Returns the number of the tap. Raises RuntimeError
        when TAPS are open, BlockingIOError when the worker has not done yet what it was asked for
        before, ValueError."""

    def tap_close(self, tap: int) -> None:
        """The worker stops writing into it; see tap_is_used. By one thread at a time, and so is tap_open()."""

    def tap_is_open(self, tap: int) -> bool:
        """Whether the worker shows what happens. False right after tap_open(), and from some time after tap_close()."""

    def tap_is_used(self, tap: int) -> bool:
        """Whether the worker may still write into it, so that its descriptor must stay."""

    def tap_read(self, tap: int) -> tuple[int, int]:
        """Events shown, and events that were asked for and not shown: over the rate, or the door was full."""
