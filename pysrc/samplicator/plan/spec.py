"""The plan as data: what shall run, with all decisions made, and what the planner must know of the host to make them.

Pure and frozen. A reload keeps what has an equal spec. Made by planner; read by sockets, engines, supervisor, startup
and explain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from samplicator.config.address import ParsedSource, address_text, endpoint_text
from samplicator.config.model.rule import Rule
from samplicator.plan.pods import Pod, PodsOf, no_pods
from samplicator.plan.sessions import Door, DoorSpec

DELAY_AUTO: Final = 0x7FFFFFFF
"""PlanSpec.max_delay_us for "auto"; the datapath has the same."""


@dataclass(frozen=True, slots=True)
class ResolvedAddress:
    """Where a host name or address text points now: 4 or 16 bytes, and the interface index of a link-local address (0
    = none).
    """

    address: bytes
    scope_id: int = 0

    @property
    def family(self) -> int:
        return 4 if len(self.address) == 4 else 6


NameKey = tuple[str, int]
"""A host name and the address family wanted: 0 (any), 4 or 6."""
Resolved = Mapping[NameKey, tuple[ResolvedAddress, ...]]
"""Where each host name points: its addresses, the one to use first. Missing or empty: it does not resolve."""


def _nothing_is_local(address: bytes) -> bool:
    return False


def _no_interface_is_missing(name: str) -> int:
    return 1


def _the_kernel_chooses(group: bytes) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of this host and the interface that carries it. address: 4 or 16 bytes. index: of the interface."""

    interface: str
    index: int
    address: bytes


def _no_addresses() -> tuple[HostAddress, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this process may do and what the planner must know of the host.

    net_raw: raw sockets can be opened. net_admin: buffer limits can be passed, ingress rules made. frames: packet
    sockets take runs. is_local(address): the address is one of this host. cpus: the CPUs this process may run on.
    host_addresses(): all of this host, sorted; asked only for listeners that receive by ring. interface_index(name): 0
    = there is none now. group_interface(group): index of the interface that the route to a multicast group leads to, 0
    = none, or unknown. pods(port, family): of a Kubernetes Service.
    """

    net_raw: bool
    net_admin: bool = False
    frames: bool = False
    is_local: Callable[[bytes], bool] = field(default=_nothing_is_local, compare=False)
    cpus: tuple[int, ...] = (0,)
    interface_index: Callable[[str], int] = field(default=_no_interface_is_missing, compare=False)
    host_addresses: Callable[[], tuple[HostAddress, ...]] = field(default=_no_addresses, compare=False)
    group_interface: Callable[[bytes], int] = field(default=_the_kernel_chooses, compare=False)
    pods: PodsOf = field(default=no_pods, compare=False)


@dataclass(frozen=True, slots=True)
class SocketSpec:
    """One bound UDP socket of a listener (each worker opens one). address: text without brackets; listener: index
    into listeners.

    v6only: refuse IPv4 on this IPv6 socket. interface: "" = all. groups: multicast groups to join, of this socket's
    family. index: of `interface` or of the address's zone, 0 = there is none now, or none is named. joins: index of the
    interface that each group is joined on, 0 = the kernel chooses. An interface that is made again has another index,
    and what was bound to the old one is deaf: so the indexes are part of what a socket is.
    """

    listener: int
    address: str
    port: int
    family: int
    v6only: bool
    interface: str
    groups: tuple[str, ...]
    index: int = 0
    joins: tuple[int, ...] = ()

    @property
    def device(self) -> str:
        """The interface that it names, "" = none."""
        return self.interface or self.address.partition("%")[2]


@dataclass(frozen=True, slots=True)
class RingMatch:
    """Which datagrams a ring takes: whole ones to one of `addresses` (4 or 16 bytes each), or to a multicast group of
    `groups`, and a port of one of the inclusive ranges `ports`.
    """

    ports: tuple[tuple[int, int], ...]
    addresses: tuple[bytes, ...]
    groups: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class RingSpec:
    """The ring of a listener on one interface (each worker opens one). index: of the interface."""

    interface: str
    index: int
    matches: tuple[RingMatch, ...]


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """A listener: its index in the plan, its name (the metric label) and its intakes: the sockets, rings (one per
    interface) and doors that its datagrams come in by. receive: how, "recvmmsg" | "ring" | "door", receive_why: one
    sentence for people; ring_required: without them the plan cannot run. flow: its datagrams go through the flow stage.
    unresolved: HOST:PORT of places to listen at whose name does not resolve now. gates: where its datagrams come in, if
    the kernel may copy them there.
    """

    index: int
    name: str
    intakes: tuple[SocketSpec | RingSpec | DoorSpec, ...]
    receive: str = "recvmmsg"
    receive_why: str = ""
    ring_required: bool = True
    flow: bool = True
    unresolved: tuple[str, ...] = ()
    gates: tuple[RingSpec, ...] = ()

    @property
    def sockets(self) -> tuple[SocketSpec, ...]:
        return tuple(intake for intake in self.intakes if isinstance(intake, SocketSpec))

    @property
    def rings(self) -> tuple[RingSpec, ...]:
        return tuple(intake for intake in self.intakes if isinstance(intake, RingSpec))

    @property
    def doors(self) -> tuple[DoorSpec, ...]:
        return tuple(intake for intake in self.intakes if isinstance(intake, DoorSpec))


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """How a receiver's state is asked for. kind: auto | udp | ipfix | off | tcp | http. For tcp and http: where to
    (address of 4 or 16 bytes, b"" = its name does not resolve now; port, scope id), path, and host: HOST:PORT as the
    operator wrote it.
    """

    kind: str = "auto"
    address: bytes = b""
    port: int = 0
    scope_id: int = 0
    host: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Udp:
    """Copies leave as UDP datagrams.

    address: network order, 4 or 16 bytes, as `family` says. port: 0 = it has a name, and nobody knows its number now
    (then ReceiverSpec.missing says why). host: as the operator wrote it. engine_why: one sentence
    for people. source: a fixed (address, port) instead of our own, port 0 = one the kernel picks. ttl 0 and tos -1 =
    kept from the datagram. mtu: bytes that packets may have at most, 0 = as the path takes. per_session: each exporter
    session has a source port of its own. frames: the engine was chosen here, and its copies leave as frames of a packet
    socket while the next hop is known and that bypasses nothing.
    """

    address: bytes
    port: int
    family: int
    scope_id: int
    host: str
    engine: str
    engine_why: str
    spoof: bool
    source: tuple[bytes, int] | None
    checksum: bool
    ttl: int
    tos: int
    pause_us: int
    mtu: int = 0
    per_session: bool = False
    frames: bool = False


@dataclass(frozen=True, slots=True)
class ReceiverSpec:
    """A receiver: what it gets and when, and how that is delivered, which no other part of it depends on.

    by_exporter: freq chooses exporters, not datagrams. refresh: templates are sent again after so many datagrams, so
    many ms, options data likewise; 0 = never. standby_for: name of the receiver whose copies it gets while that one is
    down, "" = none. needed: a standby or a pool acts on its state. unique: observation domains are replaced by their
    aliases. missing: what this host lacks to send to it at all now, for people ("name does not resolve"), "" = nothing;
    its copies are then counted as no_route, and where the address is not known it is all zeros. pod: the pod that it
    is, None = it is none. written: name of the receiver that the operator wrote, "" = this name: the pods of a
    Kubernetes Service are several receivers. index: the place of that one in the configuration.
    """

    name: str
    delivery: Udp | Door
    freq: int = 1
    by_exporter: bool = False
    refresh: tuple[int, int, int, int] = (0, 0, 0, 0)
    probe: ProbeSpec = ProbeSpec()
    standby_for: str = ""
    needed: bool = False
    unique: bool = False
    missing: str = ""
    pod: Pod | None = None
    written: str = ""
    index: int = field(default=0, compare=False)

    @property
    def udp(self) -> Udp:
        """How it is delivered, of a receiver that is known to get UDP. Raises TypeError for one behind a door."""
        if not isinstance(self.delivery, Udp):
            raise TypeError(f"receiver {self.name!r} gets no UDP")
        return self.delivery

    @property
    def network(self) -> Udp | None:
        """Where it is, as far as copies can be sent there now; None: behind a door, or something is missing."""
        return self.delivery if isinstance(self.delivery, Udp) and not self.missing else None

    @property
    def engine(self) -> str:
        return self.delivery.engine if isinstance(self.delivery, Udp) else "door"

    @property
    def framed(self) -> bool:
        """Whether copies may leave as frames of a packet socket."""
        return isinstance(self.delivery, Udp) and (self.delivery.engine == "packet" or self.delivery.frames)

    @property
    def spoof(self) -> bool:
        """Whether copies tell their exporter by their source. Through a door they tell it beside."""
        return isinstance(self.delivery, Udp) and self.delivery.spoof

    @property
    def tells_exporters(self) -> bool:
        """Whether a copy says whose datagram it is: by its source, or through a door, beside it."""
        return self.spoof or isinstance(self.delivery, Door)

    @property
    def place(self) -> str:
        """Where it is, for people."""
        if isinstance(self.delivery, Door):
            return self.delivery.place
        where = self.delivery.host if self.unresolved else address_text(self.delivery.address)
        return endpoint_text(where, self.delivery.port or "?")

    @property
    def apart(self) -> bool:
        """Whether exporters are kept apart by aliases of their domains, always or where a session has no own port."""
        return self.unique or (isinstance(self.delivery, Udp) and self.delivery.per_session)

    @property
    def unresolved(self) -> bool:
        """Whether its address is not known now."""
        return bool(self.missing) and not any(self.delivery.address)

    @property
    def deaf(self) -> bool:
        """Whether its engine hears nothing of refused copies: ICMP goes to the exporter, or to no socket at all."""
        return isinstance(self.delivery, Udp) and self.delivery.engine != "udp"


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Receivers that share the exporters. balance: exporter-hash | round-robin. members: (receiver index, weight)."""

    name: str
    balance: str
    members: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule: sources, listener indexes (None = all), receiver indexes (a standby right behind its primary), whether
    later rules are skipped; the rule as configured; pool indexes.
    """

    sources: tuple[ParsedSource, ...]
    listeners: tuple[int, ...] | None
    receivers: tuple[int, ...]
    stop: bool
    written: Rule
    pools: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """For people."""
        names = ", ".join(self.written.to) or "nobody"
        return f"{', '.join(self.written.from_) or 'everything'} -> {names}{' (stop)' if self.stop else ''}"


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """All that shall run. workers >= 1; cpus: worker k is pinned to cpus[k % len], () = not pinned; sizes in bytes.
    host_addresses: what rings were derived from, () when there are none. alias_file: where the aliases of domains are
    kept from one process to the next, "" = nowhere. follows_host: nobody has changed the
    configuration, the host or a name has: what it lacks is shown and tried again, never a reason to keep the old plan.
    """

    listeners: tuple[ListenerSpec, ...]
    receivers: tuple[ReceiverSpec, ...]
    rules: tuple[RuleSpec, ...]
    workers: int
    cpus: tuple[int, ...]
    receive_buffer: int
    send_buffer: int
    max_datagram: int
    batch: int
    ring_buffer: int = 64 << 20
    replicate: str = "off"
    max_delay_us: int = 0  # DELAY_AUTO: as the worker finds
    flow_memory: int = 64 << 20
    template_life_minutes: int = 120
    warnings: tuple[str, ...] = ()
    host_addresses: tuple[HostAddress, ...] = ()
    pools: tuple[PoolSpec, ...] = ()
    alias_file: str = ""
    follows_host: bool = field(default=False, compare=False)

    @property
    def udp(self) -> list[Udp]:
        """The deliveries that are UDP, of all receivers."""
        return [receiver.delivery for receiver in self.receivers if isinstance(receiver.delivery, Udp)]
