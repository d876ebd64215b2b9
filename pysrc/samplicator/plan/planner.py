"""The planner: from a checked configuration and resolved addresses to a PlanSpec, the pure description of what shall
run.

Purpose: makes every decision that needs no open socket, once: which sockets, which engine for each receiver and why,
which rule applies to which receiver, and whether copies would loop back to a listener. Invariants: pure data in, pure
data out; all problems are reported at once. Called by reload, and by the command line for `check` and `explain`. It
must never open a socket, ask the kernel (what it needs to know about the host comes in as Capabilities) or import the
compiled module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from samplicator.config.address import Endpoint, address_bytes, address_text, endpoint_text
from samplicator.config.kubernetes import ServicePort, member_name
from samplicator.config.model.loaded import Loaded, Path
from samplicator.config.model.receiver import Receiver
from samplicator.errors import ConfigError, Problem
from samplicator.plan import apart, doors, engines
from samplicator.plan.loops import LOCAL, Delivery, loops_into
from samplicator.plan.names import FAMILIES, source_names_of
from samplicator.plan.pods import Pod
from samplicator.plan.rings import NEEDS, listener_rings
from samplicator.plan.rules import needed, places, pool_specs, rule_specs
from samplicator.plan.sessions import Door, DoorSpec
from samplicator.plan.spec import (
    DELAY_AUTO,
    Capabilities,
    HostAddress,
    ListenerSpec,
    PlanSpec,
    ProbeSpec,
    ReceiverSpec,
    Resolved,
    ResolvedAddress,
    RingSpec,
    SocketSpec,
    Udp,
)
from samplicator.plan.workers import workers_of

NAME_UNRESOLVED: Final = "the host name does not resolve"
NO_INTERFACE: Final = "there is no interface"
UNTIL_THEN: Final = "until that changes the receiver is unreachable and its copies are counted as no_route"


def compile(
    loaded: Loaded, resolved: Resolved, capabilities: Capabilities, *, judge_addresses: bool = True
) -> PlanSpec:
    """The plan of a configuration. Raises ConfigError with every problem: loops, keys that exclude each other. What
    this host or process lacks now (an address of a name, an interface, an own address, a right) is no problem: it is in
    the specs, and in the warnings.

    judge_addresses: whether a receiver at an address that this host has now is one. A daemon has the plan without: such
    an address comes and goes (VRRP, anycast), and the supervisor follows it (supervisor/guard.py).
    """
    return _Compiler(loaded, resolved, capabilities, judge_addresses).run()


class _Compiler:
    def __init__(self, loaded: Loaded, resolved: Resolved, capabilities: Capabilities, judge_addresses: bool) -> None:
        self.loaded = loaded
        self.judge_addresses = judge_addresses
        self.config = loaded.config
        self.resolved = resolved
        self.capabilities = capabilities
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.lacks: list[Problem] = []  # of this host, now
        self.host: tuple[HostAddress, ...] = ()
        self.doors: list[DoorSpec] = []  # where gateways listen
        self.podless: dict[int, str] = {}  # receivers whose Service has no pod, and why
        self.needed = needed(self.config)

    def run(self) -> PlanSpec:
        self.warn_of_sources()
        listeners = self.receive(self.listeners())
        ports: dict[int, list[SocketSpec]] = {}
        for listener in listeners:
            for socket in listener.sockets:
                ports.setdefault(socket.port, []).append(socket)
        self.doors = [door for listener in listeners for door in listener.doors]
        receivers = tuple(self.receivers(ports))
        datapath = self.config.datapath
        workers, cpus = workers_of(datapath, self.capabilities.cpus, self.problem, self.warnings.append)
        if self.problems:
            raise ConfigError(self.problems, self.lacks)
        written = places(receivers)
        pools = pool_specs(self.config, written)
        rules = rule_specs(self.loaded, self.resolved, written, pools)
        if self.loaded.origin == "toml":  # who comes from samplicate knows what collectors see
            self.warnings += apart.warnings(listeners, receivers, rules, pools)
        control = self.config.service.control
        return PlanSpec(
            listeners=listeners,
            receivers=receivers,
            rules=rules,
            workers=workers,
            cpus=cpus,
            receive_buffer=datapath.receive_buffer,
            send_buffer=datapath.send_buffer,
            max_datagram=datapath.max_datagram,
            batch=datapath.batch,
            ring_buffer=datapath.ring_buffer,
            replicate=datapath.replicate,
            max_delay_us=DELAY_AUTO if datapath.max_delay == "auto" else datapath.max_delay,
            flow_memory=datapath.flow_memory,
            template_life_minutes=datapath.template_life_minutes,
            host_addresses=self.host,
            warnings=tuple(dict.fromkeys((*map(str, self.lacks), *self.warnings))),
            pools=pools,
            alias_file=f"{control}.domains" if control and any(r.apart for r in receivers) else "",
        )

    def warn_of_sources(self) -> None:
        for key, path in source_names_of(self.loaded).items():
            if not self.resolved.get(key):
                self.warn(path, f"the host name {key[0]!r} does not resolve now; until then it matches no exporter")

    def problem(self, path: Path, why: str) -> None:
        if (problem := self.loaded.problem(path, why)) not in self.problems:  # each pod has those of its receiver
            self.problems.append(problem)

    def report(self, path: Path, key: str, why: str) -> None:
        self.problem((*path, key), why)

    def lack_right(self, path: Path, key: str, why: str) -> None:
        """All else runs without this right of the process. samplicate ends, as its users know it."""
        if self.loaded.origin == "toml":
            return self.warn((*path, key), f"{why}; {UNTIL_THEN}")
        return self.report(path, key, why)

    def warn(self, path: Path, why: str) -> None:
        self.lacks.append(self.loaded.problem(path, why))

    def lookup(self, endpoint: Endpoint, family: str) -> ResolvedAddress | None:
        """None: the name does not resolve now."""
        if endpoint.literal:
            return ResolvedAddress(endpoint.address, self.index(endpoint.scope))
        found = self.resolved.get((endpoint.host, FAMILIES[family]), ())
        return found[0] if found else None

    def index(self, interface: str) -> int:
        """Of an interface by name or number; 0: none is named, or there is none of this name now."""
        if interface.isdigit():
            return int(interface)
        return self.capabilities.interface_index(interface) if interface else 0

    # ------------------------------------------------------------------ listeners

    def listeners(self) -> tuple[ListenerSpec, ...]:
        bound: list[list[tuple[ResolvedAddress, int, str]]] = []
        heard: list[dict[str, list[tuple[bytes, int, int]]]] = []  # of gateways, by scheme
        unresolved: list[list[str]] = []
        for index, listener in enumerate(self.config.listener):
            if listener.interface and not self.index(listener.interface):
                why = f"there is no interface {listener.interface!r} now; until it appears the listener is down"
                self.warn(("listener", index, "interface"), why)
            entries: list[tuple[ResolvedAddress, int, str]] = []
            places: dict[str, list[tuple[bytes, int, int]]] = {}
            waiting: list[str] = []
            for number, endpoint in enumerate(listener.endpoints):
                path: Path = ("listener", index, "listen", number)
                ports = range(endpoint.port, endpoint.last_port + 1)
                address = self.lookup(endpoint, listener.family)
                if address is None:
                    why = f"the host name {endpoint.host!r} does not resolve now; until then nothing is received there"
                    self.warn(path, why)
                    waiting.extend(endpoint_text(endpoint.host, port) for port in ports)
                    continue
                if endpoint.scope and not address.scope_id:
                    why = f"there is no interface {endpoint.scope!r} now; until it appears nothing is received there"
                    self.warn(path, why)
                if endpoint.scheme:
                    place = (address.address, endpoint.port, address.scope_id)
                    places.setdefault(endpoint.scheme, []).append(place)
                else:
                    entries.extend((address, port, endpoint.scope) for port in ports)
            bound.append(entries)
            heard.append(places)
            unresolved.append(waiting)
        ports_v4 = {port for entries in bound for address, port, _ in entries if address.family == 4}
        taken: dict[tuple[bytes, int, str], str] = {}
        taken_by_gateways: doors.Taken = {}
        specs = []
        for index, (listener, entries) in enumerate(zip(self.config.listener, bound, strict=True)):
            sockets: list[SocketSpec] = []
            for address, port, scope in entries:
                text = address_text(address.address)
                key = (address.address, port, scope or listener.interface)
                if key in taken:
                    why = f"listener {taken[key]!r} already uses {endpoint_text(text, port)}; remove one of the two"
                    self.problem(("listener", index, "listen"), why)
                    continue
                taken[key] = listener.name
                groups = tuple(group for group in listener.multicast if (":" in group) == (address.family == 6))
                device = self.index(scope or listener.interface)
                sockets.append(
                    SocketSpec(
                        listener=index,
                        address=f"{text}%{scope}" if scope else text,
                        port=port,
                        family=address.family,
                        v6only=address.family == 6 and not any(address.address) and port in ports_v4,
                        interface=listener.interface,
                        groups=groups,
                        index=device,
                        joins=tuple(self.joins(listener.interface, device, group) for group in groups),
                    )
                )
            gateways = doors.of_listener(listener, heard[index], self.config)
            for why in doors.clashes(listener.name, gateways, taken_by_gateways):
                self.problem(("listener", index, "listen"), why)
            specs.append(
                ListenerSpec(
                    index=index,
                    name=listener.name,
                    intakes=(*sockets, *gateways),
                    receive="recvmmsg" if sockets or not gateways else "door",
                    receive_why="" if sockets or not gateways else doors.WHY,
                    flow=listener.flow != "off",
                    unresolved=tuple(unresolved[index]),
                )
            )
        return tuple(specs)

    def joins(self, interface: str, index: int, group: str) -> int:
        """Index of the interface that a multicast group is joined on: the configured one, or where its route leads."""
        return index if interface else self.capabilities.group_interface(address_bytes(group))

    def receive(self, listeners: tuple[ListenerSpec, ...]) -> tuple[ListenerSpec, ...]:
        """The listeners with their rings, those that are to have some."""
        wants = [self.config.listener[listener.index].receive for listener in listeners]
        able = self.capabilities.net_raw and self.capabilities.net_admin
        offloads = self.config.datapath.replicate in ("tcx", "xdp") and self.capabilities.net_admin
        if (any(want != "recvmmsg" for want in wants) and able) or offloads:
            self.host = self.capabilities.host_addresses()
        indexes = {item.interface: item.index for item in self.host}
        specs = []
        for listener, want in zip(listeners, wants, strict=True):
            if want == "recvmmsg":
                gates = listener_rings(listener, listeners, self.host, indexes) if offloads else ()
                specs.append(replace(listener, gates=gates))
                continue
            path: Path = ("listener", listener.index, "receive")
            why = NEEDS
            rings: tuple[RingSpec, ...] = ()
            if able:
                why = (
                    "no interface of this host has an address that this listener listens at; name one with `interface`"
                )
                rings = listener_rings(listener, listeners, self.host, indexes)
            if rings and offloads:
                self.warn(path, "the packet ring takes all datagrams before the kernel can copy them (replicate)")
            if rings:
                names = ", ".join(ring.interface for ring in rings)
                why = "configured" if want == "ring" else "auto"
                why += f": a packet ring on {names} receives before the firewall; UDP sockets receive fragments"
            elif want == "ring" and not able:
                self.problem(path, why)
            elif want == "ring":
                self.warn(path, f"{why}; until then UDP sockets receive")
            how = "ring" if rings else "recvmmsg"
            required = want == "ring"
            specs.append(
                replace(
                    listener,
                    intakes=(*listener.intakes, *rings),
                    receive=how,
                    receive_why=why,
                    ring_required=required,
                )
            )
        return tuple(specs)

    # ------------------------------------------------------------------ receivers

    def receivers(self, ports: dict[int, list[SocketSpec]]) -> Iterator[ReceiverSpec]:
        for index, receiver in enumerate(self.config.receiver):
            wanted = receiver.service_port
            for pod in (None,) if wanted is None else self.pods(index, receiver, wanted):
                spec = self.receiver(index, receiver, ports, pod)
                if spec is not None:
                    yield spec

    def pods(self, index: int, receiver: Receiver, wanted: ServicePort) -> tuple[Pod, ...]:
        """The pods of a receiver that is a Service; if there is none, a place for the first one."""
        own = receiver.own_source
        known = self.capabilities.pods(wanted, FAMILIES[receiver.family] or (own[0] if own is not None else 0))
        if known.warning:
            self.warn(("receiver", index, "to"), known.warning)
        if known.pods:
            return known.pods
        self.warn(("receiver", index, "to"), f"{known.why}; {UNTIL_THEN}")
        self.podless[index] = known.why
        return (Pod(0, "", "", b"", wanted.port),)

    def receiver(
        self, index: int, receiver: Receiver, ports: dict[int, list[SocketSpec]], pod: Pod | None
    ) -> ReceiverSpec | None:
        path: Path = ("receiver", index)
        endpoint = receiver.endpoint
        missing = self.podless.get(index, "")
        address = ResolvedAddress(bytes(4 if self.family(receiver) == 4 else 16))
        if pod is not None:  # pods come and go: the supervisor stops one that is this host (supervisor/guard.py)
            address = address if missing else ResolvedAddress(pod.address)
            endpoint = replace(endpoint, port=pod.port, last_port=pod.port)
        elif (found := self.lookup(endpoint, receiver.family)) is None:
            missing = NAME_UNRESOLVED
            self.warn((*path, "to"), f"the host name {endpoint.host!r} does not resolve now; {UNTIL_THEN}")
        else:
            address = found
            if endpoint.scope and not address.scope_id:
                missing = f"{NO_INTERFACE} {endpoint.scope}"
                self.warn((*path, "to"), f"there is no interface {endpoint.scope!r} now; {UNTIL_THEN}")
            elif endpoint.scheme:
                self.guard_door((*path, "to"), receiver, endpoint, address)
            else:
                self.guard_loop(path, receiver, address, endpoint.port, ports)
        if endpoint.scheme:
            door = doors.of_receiver(receiver, address, self.config.sctp, self.backup(index, receiver))
            return self.behind(index, door, address, missing, None)
        source: tuple[bytes, int] | None = None
        if receiver.own_source is not None:
            family, own, port = receiver.own_source
            source = (own, port)
            if family != address.family:
                where = address_text(address.address)
                self.problem(
                    (*path, "source"),
                    f"an IPv{family} source cannot send to {where}; write an IPv{address.family} source",
                )
                return None
        report = partial(self.report, path)
        lacks = partial(self.lack_right, path)
        engine, why = engines.choose(receiver, address, source, self.capabilities, report, lacks)
        if engine == "udp" and source is not None and not self.capabilities.is_local(source[0]) and not missing:
            missing = f"the source {address_text(source[0])} is not an address of this host now"
            self.warn((*path, "source"), f"{missing}; {UNTIL_THEN}")
        if engine == "udp" and source is not None and source[1]:
            for socket in ports.get(source[1], []):
                if address_bytes(socket.address) in (source[0], bytes(len(source[0]))):
                    self.problem(
                        (*path, "source"),
                        f"a listener uses port {source[1]}, and a socket on it would take its datagrams; remove "
                        'the port, or write engine = "raw"',
                    )
        engines.check_mtu(receiver, address, engine, self.capabilities, report, lacks)
        if not receiver.checksum and address.family == 6:
            self.warnings.append(
                f"receiver {receiver.name!r}: checksum = false has no effect, because IPv6 needs UDP checksums "
                "(RFC 8200 section 8.1); remove `checksum`"
            )
        delivery = Udp(
            address=address.address,
            port=endpoint.port,
            family=address.family,
            scope_id=address.scope_id,
            host=endpoint.host,
            engine=engine,
            engine_why=why,
            spoof=receiver.spoof,
            source=source,
            checksum=receiver.checksum or address.family == 6,
            ttl=0 if receiver.ttl == "keep" else receiver.ttl,
            tos=-1 if receiver.tos == "keep" else receiver.tos,
            pause_us=receiver.pause_us,
            mtu=0 if receiver.mtu == "auto" else receiver.mtu,
            per_session=engines.per_session(receiver, engine, report),
            frames=engines.frames(receiver, engine, self.capabilities),
        )
        return self.behind(index, delivery, address, missing, pod)

    def backup(self, index: int, receiver: Receiver) -> ResolvedAddress | None:
        """Where the backup of a receiver is; None: there is none, or its name does not resolve now."""
        if receiver.backup is None:
            return None
        path: Path = ("receiver", index, "backup", "to")
        endpoint = receiver.backup.endpoint
        found = self.lookup(endpoint, receiver.family)
        if found is None:
            self.warn(path, f"the host name {endpoint.host!r} does not resolve now; until then there is no backup")
            return None
        self.guard_door(path, receiver, endpoint, found)
        return found

    def guard_door(self, path: Path, receiver: Receiver, endpoint: Endpoint, address: ResolvedAddress) -> None:
        """As guard_loop, of a place that a gateway sends to."""
        local = self.deliver(address.address).kind == LOCAL
        why = doors.loop(receiver.name, endpoint.scheme, address.address, endpoint.port, self.doors, local=local)
        if why:
            self.problem(path, why)

    def behind(
        self, index: int, delivery: Udp | Door, address: ResolvedAddress, missing: str, pod: Pod | None
    ) -> ReceiverSpec:
        """The spec of a receiver whose delivery is known."""
        receiver = self.config.receiver[index]
        return ReceiverSpec(
            name=receiver.name if pod is None else member_name(receiver.name, pod.number),
            delivery=delivery,
            freq=receiver.freq,
            by_exporter=receiver.freq_mode == "exporter",
            refresh=(
                receiver.template_refresh_packets,
                receiver.template_refresh_minutes * 60_000,
                receiver.options_refresh_packets,
                receiver.options_refresh_minutes * 60_000,
            ),
            probe=self.probe(("receiver", index), receiver, address),
            standby_for=receiver.standby_for,
            needed=receiver.probe != "off" and receiver.name in self.needed,
            unique=receiver.domain == "unique",
            missing=missing,
            pod=None if index in self.podless else pod,
            written="" if pod is None else receiver.name,
            index=index,
        )

    @staticmethod
    def family(receiver: Receiver) -> int:
        """Address family of a receiver whose name does not resolve: what is configured, else IPv4."""
        own = receiver.own_source
        return FAMILIES[receiver.family] or (own[0] if own is not None else 4)

    def probe(self, path: Path, receiver: Receiver, address: ResolvedAddress) -> ProbeSpec:
        """Where and how the receiver is asked. address b"": the name of the probe does not resolve now."""
        probe = receiver.probing
        if probe.kind not in ("tcp", "http"):
            return ProbeSpec(probe.kind)
        host = address_text(address.address) if receiver.service_port is not None else receiver.endpoint.host
        where = endpoint_text(probe.endpoint.host if probe.endpoint is not None else host, probe.port)
        if probe.endpoint is not None:
            found = self.lookup(probe.endpoint, receiver.family)
            if found is None:
                why = f"the host name {probe.endpoint.host!r} does not resolve now; until then the receiver counts as"
                self.warn((*path, "probe"), f"{why} unreachable, but copies are still sent to it")
                return ProbeSpec(probe.kind, b"", probe.port, 0, where, probe.path)
            address = found
        return ProbeSpec(probe.kind, address.address, probe.port, address.scope_id, where, probe.path)

    def guard_loop(
        self,
        path: Path,
        receiver: Receiver,
        address: ResolvedAddress,
        port: int,
        ports: dict[int, list[SocketSpec]],
    ) -> None:
        """A receiver that is a listener of this host would cause a loop of copies."""
        source = receiver.own_source[1] if receiver.own_source is not None else b""
        hit = loops_into(ports.get(port, []), address.address, port, source, self.deliver)
        if hit is not None:
            text = address_text(address.address)
            listener = self.config.listener[hit.listener].name
            self.problem(
                (*path, "to"),
                f"receiver {receiver.name!r} at {endpoint_text(text, port)} is listener {listener!r} of this host "
                f"({endpoint_text(hit.address, hit.port)}), so every datagram would come back in a loop; change `to`",
            )

    def deliver(self, address: bytes) -> Delivery:
        local = self.judge_addresses and self.capabilities.is_local(address)
        return Delivery(LOCAL) if local else Delivery()
