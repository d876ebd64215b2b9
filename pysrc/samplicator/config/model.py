"""The configuration: what every key means, its range and its default.

Purpose: the pydantic models that TOML files and `samplicate` command lines both end in, and `Loaded`, what a loader
returns. Invariants: frozen, unknown keys forbidden, types strict; a model checks what can be judged inside one table,
config.validate what needs the whole file. Everybody after the loaders reads these models. Never imports socket or
asyncio, never touches the file system.

A rule's `from` is the attribute `from_`; build rules with `Rule.model_validate({"from": [...], "to": [...]})`.
Each field says in `json_schema_extra` whether a reload changes it at run time ("live") or only a restart does
("restart").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from samplicator.config.address import (
    EVERYTHING,
    Endpoint,
    ParsedSource,
    parse_listen,
    parse_own_source,
    parse_source,
    parse_target,
)
from samplicator.config.fields import (
    Family,
    ListenText,
    Minutes,
    Mtu,
    Name,
    OwnSourceText,
    ProbeText,
    Refresh,
    Size,
    SourceText,
    TargetText,
    Tos,
    Ttl,
    Weights,
    Workers,
    check_control,
    check_file,
    check_group,
    check_http,
    check_interface,
)
from samplicator.config.probe import Probe, parse_probe
from samplicator.errors import Problem

LIVE: dict[str, Any] = {"reload": "live"}
RESTART: dict[str, Any] = {"reload": "restart"}
Path = tuple[str | int, ...]
"""Where a value stands in the configuration, as ("receiver", 0, "to")."""


class Table(BaseModel):
    """What all tables share: frozen, strict, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Service(Table):
    """The control plane."""

    http: Annotated[str, AfterValidator(check_http)] = Field(
        "127.0.0.1:9420",
        description='HOST:PORT of the metrics and status pages; "" = off.',
        json_schema_extra=RESTART,
    )
    control: Annotated[str, AfterValidator(check_control)] = Field(
        "/run/samplicator/control.sock",
        description='Path of the local socket that the command line uses; "" = off.',
        json_schema_extra=RESTART,
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log level written.", json_schema_extra=LIVE
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines as text or one JSON object a line.", json_schema_extra=LIVE
    )
    reload_token_file: Annotated[str, AfterValidator(check_file)] = Field(
        "",
        description='File with the bearer token that allows POST /-/reload over TCP; "" = only over the local socket.',
        json_schema_extra=LIVE,
    )
    resolve_interval: float = Field(
        30.0,
        ge=0.1,
        le=86400,
        allow_inf_nan=False,
        description="Seconds between refreshes of receivers' host names, 0.1..86400.",
        json_schema_extra=LIVE,
    )
    drain_timeout: float = Field(
        5.0,
        ge=0,
        le=300,
        allow_inf_nan=False,
        description="Seconds at most to forward what is queued before the process ends, 0..300.",
        json_schema_extra=LIVE,
    )


class Datapath(Table):
    """The threads that forward."""

    workers: Workers = Field(
        1, description='Forwarding threads, 1..256, or "auto": one per allowed CPU.', json_schema_extra=LIVE
    )
    cpus: list[Annotated[int, Field(ge=0, le=4095)]] = Field(
        default=[],
        description="CPUs to pin the workers to, in order; empty = the allowed CPUs.",
        json_schema_extra=LIVE,
    )
    receive_buffer: Size = Field(
        64 << 20,
        description='Receive buffer of each listener socket in bytes, or as "64MiB"; the kernel may grant less.',
        json_schema_extra=LIVE,
    )
    send_buffer: Size = Field(
        4 << 20,
        description='Send buffer of each sending socket in bytes, or as "4MiB"; the kernel may grant less.',
        json_schema_extra=LIVE,
    )
    ring_buffer: Size = Field(
        64 << 20,
        description="Ring of each listener that receives by ring, per worker and interface, in bytes, or as "
        '"64MiB"; at least 2 MiB are taken.',
        json_schema_extra=RESTART,
    )
    flow_memory: Size = Field(
        64 << 20,
        description="Memory for what is known of the exporters' flow data (templates, options, sequences), in bytes or "
        'as "64MiB"; the workers of the start share it evenly, a later one adds as large a share.',
        json_schema_extra=RESTART,
    )
    template_life_minutes: Minutes = Field(
        120,
        description="Minutes after which a template that the exporter has not repeated, and of which no data came, is "
        "forgotten, 0..10080, and options data that it has not repeated; 0 = never.",
        json_schema_extra=LIVE,
    )
    max_datagram: int = Field(
        65535,
        ge=1,
        le=65535,
        description="Largest UDP payload forwarded in bytes, 1..65535; longer ones are counted and dropped.",
        json_schema_extra=RESTART,
    )
    batch: int = Field(
        512, ge=1, le=512, description="Most datagrams taken by one receive call, 1..512.", json_schema_extra=RESTART
    )
    max_delay: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Microseconds a busy worker waits for more datagrams before it receives, 0..100000: larger batches "
        "for more latency; 0 = never, but 250 for those of a ring.",
        json_schema_extra=RESTART,
    )


class Listener(Table):
    """A place where exporters send to."""

    name: Name = Field(description="Name used by rules, metrics and logs; unique.", json_schema_extra=LIVE)
    listen: list[ListenText] = Field(
        min_length=1,
        description="ADDR:PORT, ADDR:LO-HI or [v6]:PORT; every entry is a bound UDP socket (a range: one per port).",
        json_schema_extra=LIVE,
    )
    interface: Annotated[str, AfterValidator(check_interface)] = Field(
        "", description='Only datagrams that arrive on this interface; "" = any.', json_schema_extra=LIVE
    )
    multicast: list[Annotated[str, AfterValidator(check_group)]] = Field(
        default=[], description="Multicast groups to join, on `interface` when given.", json_schema_extra=LIVE
    )
    receive: Literal["auto", "recvmmsg", "ring"] = Field(
        "recvmmsg",
        description="How datagrams come in: by the UDP sockets, or by a packet ring on the interfaces, before firewall "
        "and UDP stack (ring; needs CAP_NET_RAW and CAP_NET_ADMIN); auto: the ring where the process may.",
        json_schema_extra=LIVE,
    )
    flow: Literal["auto", "off"] = Field(
        "auto",
        description="auto: NetFlow, IPFIX and sFlow are recognised, off: datagrams are only bytes.",
        json_schema_extra=LIVE,
    )
    family: Family = Field(
        "any", description="Address family wanted when `listen` has a host name.", json_schema_extra=LIVE
    )

    @property
    def endpoints(self) -> list[Endpoint]:
        """`listen`, parsed, in order."""
        return [parse_listen(text) for text in self.listen]


class Receiver(Table):
    """A destination of copies."""

    name: Name = Field(description="Name used by rules, metrics and logs; unique.", json_schema_extra=LIVE)
    to: TargetText = Field(
        description="HOST:PORT or [v6]:PORT; a host name is resolved off the datapath and refreshed.",
        json_schema_extra=LIVE,
    )
    spoof: bool = Field(
        False, description="Keep the exporter's address and port as the source of copies.", json_schema_extra=LIVE
    )
    source: OwnSourceText = Field(
        "", description='Own source ADDR or ADDR:PORT of copies; "" = the kernel chooses.', json_schema_extra=LIVE
    )
    source_port: Literal["shared", "per-session"] = Field(
        "shared",
        description="Source port of copies that are not spoofed: one for all exporters, or one for each exporter's "
        "address and port, so that collectors can tell them apart.",
        json_schema_extra=LIVE,
    )
    domain: Literal["keep", "unique"] = Field(
        "keep",
        description="Observation domain (IPFIX) or source id (NetFlow v9) of copies: as received, or a number of "
        "its own for each exporter and domain, for collectors that tell exporters by their address only.",
        json_schema_extra=LIVE,
    )
    checksum: bool = Field(
        True, description="false: UDP checksum 0 (none) on IPv4 copies; illegal over IPv6.", json_schema_extra=LIVE
    )
    freq: int = Field(
        1,
        ge=1,
        le=2**32 - 1,
        description="One datagram in so many is sent, 1..4294967295; 1 = every one. Templates are always sent.",
        json_schema_extra=LIVE,
    )
    freq_mode: Literal["datagram", "exporter"] = Field(
        "datagram",
        description="What freq counts: datagram = every freq-th datagram; exporter = 1/freq of the exporters, whole.",
        json_schema_extra=LIVE,
    )
    template_refresh_packets: Refresh = Field(
        0,
        description="Templates are sent again, as the exporter, after so many datagrams of it; 0 = never.",
        json_schema_extra=LIVE,
    )
    template_refresh_minutes: Minutes = Field(
        0, description="Templates are sent again after so many minutes, 0..10080; 0 = never.", json_schema_extra=LIVE
    )
    options_refresh_packets: Refresh = Field(
        0,
        description="The last options data are sent again after so many datagrams of the exporter; 0 = never.",
        json_schema_extra=LIVE,
    )
    options_refresh_minutes: Minutes = Field(
        0, description="Options data are sent again after so many minutes, 0..10080; 0 = never.", json_schema_extra=LIVE
    )
    probe: ProbeText = Field(
        "auto",
        description="How to find out that the receiver is down or back, every 2 s (0.5 s where a standby or a pool "
        "waits for it), from our own address: an empty datagram (udp), an IPFIX message without sets (ipfix), a "
        "connection (tcp://HOST:PORT, tcp://:PORT = the receiver's host) or a GET answered 2xx "
        "(http://HOST:PORT/PATH); off; auto: an empty datagram while copies are refused and, where refusals of copies "
        "cannot be heard (spoofed), always if a standby or a pool needs to know or if the receiver gets templates.",
        json_schema_extra=LIVE,
    )
    standby_for: str = Field(
        "",
        description='Name of the receiver whose copies this one gets while that one is down, templates first; "" = no '
        "standby.",
        json_schema_extra=LIVE,
    )
    ttl: Ttl = Field(
        64, description='TTL or hop limit of copies, 1..255, or "keep": as received.', json_schema_extra=LIVE
    )
    tos: Tos = Field(
        0, description='TOS or traffic class of copies, 0..255, or "keep": as received.', json_schema_extra=LIVE
    )
    mtu: Mtu = Field(
        "auto",
        description="Bytes of an IP packet to it at most, 68..65535 (IPv6: 1280 at least); what is longer leaves in "
        "fragments. auto: what route and path take.",
        json_schema_extra=LIVE,
    )
    engine: Literal["auto", "udp", "raw", "transparent", "packet"] = Field(
        "auto",
        description="How copies leave: a UDP socket, a raw socket, sockets bound to the exporters' ports "
        "(transparent), link frames past routing and firewall (packet); auto: the best of the first three.",
        json_schema_extra=LIVE,
    )
    pause_us: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Microseconds to wait after each copy, 0..1000000 (samplicate -x); delays all receivers.",
        json_schema_extra=LIVE,
    )
    family: Family = Field(
        "any",
        description="Address family wanted when `to` has a host name (samplicate -4, -6).",
        json_schema_extra=LIVE,
    )

    @property
    def endpoint(self) -> Endpoint:
        """`to`, parsed."""
        return parse_target(self.to)

    @property
    def own_source(self) -> tuple[int, bytes, int] | None:
        """(family, address, port) of `source`; None when there is none."""
        return parse_own_source(self.source) if self.source else None

    @property
    def probing(self) -> Probe:
        """`probe`, parsed."""
        return parse_probe(self.probe)


class Pool(Table):
    """Receivers that share the exporters: each datagram goes to one of them, templates go to all."""

    name: Name = Field(
        description="Name used by rules, metrics and logs; unique among pools and receivers.", json_schema_extra=LIVE
    )
    members: list[str] = Field(
        min_length=1, description="Names of the receivers that share the exporters.", json_schema_extra=LIVE
    )
    weight: Weights = Field(
        default=[],
        description="Share of each member, 1..1000: a list in the order of `members`, or a table { NAME = WEIGHT }; "
        "left out = 1.",
        json_schema_extra=LIVE,
    )
    balance: Literal["exporter-hash", "round-robin"] = Field(
        "exporter-hash",
        description="exporter-hash: an observation domain of an exporter stays with one member; round-robin: each "
        "datagram goes to the next.",
        json_schema_extra=LIVE,
    )

    @property
    def weights(self) -> tuple[int, ...]:
        """One for each member, in their order."""
        if isinstance(self.weight, dict):
            return tuple(self.weight.get(name, 1) for name in self.members)
        return tuple(self.weight) or (1,) * len(self.members)


class Rule(Table):
    """Which exporters' datagrams go to which receivers. Every matching rule fires, in order, until one with `stop`."""

    from_: list[SourceText] = Field(
        default=[],
        alias="from",
        description="Sources: addresses or prefixes of exporters; left out = every exporter.",
        json_schema_extra=LIVE,
    )
    listener: list[str] = Field(default=[], description="Names of listeners; left out = all.", json_schema_extra=LIVE)
    to: list[str] = Field(
        description="Names of receivers and pools that get a copy; [] with `stop = true` denies.",
        json_schema_extra=LIVE,
    )
    stop: bool = Field(
        False, description="true: when this rule matches, later rules are not looked at.", json_schema_extra=LIVE
    )


class Config(Table):
    """The whole configuration."""

    service: Service = Field(default_factory=Service, description="The control plane.")
    datapath: Datapath = Field(default_factory=Datapath, description="The threads that forward.")
    listener: list[Listener] = Field(default=[], description="Where exporters send to.")
    receiver: list[Receiver] = Field(default=[], description="Where copies go.")
    pool: list[Pool] = Field(default=[], description="Receivers that share the exporters.")
    rule: list[Rule] = Field(default=[], description="Which copies are made.")


def _nowhere(path: Path) -> tuple[str, int]:  # a lambda cannot be pickled (config.compact)
    return "", 0


@dataclass(frozen=True)
class Loaded:
    """What a loader returns: a configuration that passed every check, and where it came from.

    sources: of each rule, parsed (EVERYTHING alone when `from` is left out). warnings: in file order.
    files: files read, as given. text_hash: hex sha256 of what was read (for a command line: the arguments too).
    locate: path of a value -> (file, line), so that later stages can report it; line 0 when there is none. Answers for
    the nearest enclosing value when the very one has no line; slow on its first call, so call it only when there is a
    problem to report.
    """

    config: Config
    sources: tuple[tuple[ParsedSource, ...], ...]
    warnings: list[Problem] = field(default_factory=list)
    files: tuple[str, ...] = ()
    text_hash: str = ""
    origin: Literal["toml", "legacy"] = "toml"
    locate: Callable[[Path], tuple[str, int]] = _nowhere

    def problem(self, path: Path, why: str) -> Problem:
        """A Problem about the value at `path`."""
        file, line = self.locate(path)
        return Problem(file, line, dotted(path), why)


def dotted(path: Path) -> str:
    """`receiver[0].to` of ("receiver", 0, "to")."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def sources_of(rule: Rule) -> tuple[ParsedSource, ...]:
    """The entry of `Loaded.sources` for a rule as TOML means it."""
    return tuple(parse_source(text) for text in rule.from_) or (EVERYTHING,)


class SharedValues:
    """Has equal lists of names be one list: of ten thousand rules a few hundred bytes each. Nobody changes them."""

    def __init__(self) -> None:
        self._lists: dict[tuple[str, ...], list[str]] = {}
        self._keys: dict[frozenset[str], set[str]] = {}

    def share(self, rule: Rule) -> None:
        """As soon as the rule is made: what it gives back is where the next one goes."""
        for key in ("to", "listener"):
            names: list[str] = rule.__dict__[key]
            rule.__dict__[key] = self._lists.setdefault(tuple(names), names)
        given = self._keys.setdefault(frozenset(rule.model_fields_set), rule.model_fields_set)
        object.__setattr__(rule, "__pydantic_fields_set__", given)


def restart_settings() -> list[tuple[str, str]]:
    """(table, key) of every setting that only a restart changes."""
    tables: dict[str, type[Table]] = {"service": Service, "datapath": Datapath}
    return [
        (table, key)
        for table, model in tables.items()
        for key, info in model.model_fields.items()
        if info.json_schema_extra == RESTART
    ]


def json_schema() -> dict[str, Any]:
    """JSON Schema of the TOML file, for editors and `samplicator schema`."""
    schema = Config.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "samplicator configuration"}
