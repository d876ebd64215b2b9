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

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from samplicator.config.address import (
    EVERYTHING,
    Endpoint,
    ParsedSource,
    parse_bind,
    parse_ip,
    parse_listen,
    parse_own_source,
    parse_size,
    parse_source,
    parse_target,
)
from samplicator.errors import Problem

__all__ = [
    "EVERYTHING",
    "Config",
    "Datapath",
    "Endpoint",
    "Listener",
    "Loaded",
    "ParsedSource",
    "Path",
    "Receiver",
    "Rule",
    "Service",
    "json_schema",
    "parse_listen",
    "parse_own_source",
    "parse_source",
    "parse_target",
    "restart_settings",
]

LIVE: dict[str, Any] = {"reload": "live"}
RESTART: dict[str, Any] = {"reload": "restart"}
MAX_SOCKET_BUFFER = 2**31 - 1

Path = tuple[str | int, ...]
"""Where a value stands in the configuration, as ("receiver", 0, "to")."""


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    def check(value: str) -> str:
        parse(value)
        return value

    return check


def _name(value: str) -> str:
    if not value or len(value) > 300 or value != value.strip() or not value.isprintable():
        raise ValueError("want a name of 1..300 printable characters, without blanks around it")
    return value


def _http(value: str) -> str:
    if value:
        parse_bind(value)
    return value


def _control(value: str) -> str:
    if value and not value.startswith("/"):
        raise ValueError(f'{value!r}: want an absolute path, or "" for none')
    if not value.isprintable() or len(value.encode()) > 107:
        raise ValueError("want a path of printable characters, 107 bytes at most")
    return value


def _file(value: str) -> str:
    if not value.isprintable():
        raise ValueError("want a path of printable characters")
    return value


def _interface(value: str) -> str:
    if value and (len(value) > 15 or "/" in value or not value.isprintable() or " " in value):
        raise ValueError(f"{value!r} is not an interface name (1..15 characters)")
    return value


def _group(value: str) -> str:
    literal = parse_ip(value)
    first = literal[1][0] if literal else 0
    if literal is None or not (224 <= first <= 239 if literal[0] == 4 else first == 0xFF):
        raise ValueError(f"{value!r} is not a multicast group, as 239.1.1.1 or ff05::1")
    return value


def _workers(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256):
        return value
    raise ValueError('want a whole number 1..256 or "auto"')


def _number_or_keep(low: int, high: int) -> Callable[[object], object]:
    def check(value: object) -> object:
        if value == "keep" or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
            return value
        raise ValueError(f'want a whole number {low}..{high} or "keep"')

    return check


def _either(low: int, high: int, word: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, {"const": word}]})


Name = Annotated[str, AfterValidator(_name)]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(ge=1, le=MAX_SOCKET_BUFFER),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_SOCKET_BUFFER},
                {"type": "string", "pattern": "^[0-9]{1,18} ?(B|KiB|MiB|GiB|kB|MB|GB)?$"},
            ]
        }
    ),
]
Workers = Annotated[int | Literal["auto"], BeforeValidator(_workers), _either(1, 256, "auto")]
Ttl = Annotated[int | Literal["keep"], BeforeValidator(_number_or_keep(1, 255)), _either(1, 255, "keep")]
Tos = Annotated[int | Literal["keep"], BeforeValidator(_number_or_keep(0, 255)), _either(0, 255, "keep")]
ListenText = Annotated[str, AfterValidator(_checked(parse_listen))]
TargetText = Annotated[str, AfterValidator(_checked(parse_target))]
SourceText = Annotated[str, AfterValidator(_checked(parse_source))]
OwnSourceText = Annotated[str, AfterValidator(lambda text: _checked(parse_own_source)(text) if text else text)]
Family = Literal["any", "ipv4", "ipv6"]


class Table(BaseModel):
    """What all tables share: frozen, strict, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Service(Table):
    """The control plane."""

    http: Annotated[str, AfterValidator(_http)] = Field(
        "127.0.0.1:9420",
        description='HOST:PORT of the metrics and status pages; "" = off.',
        json_schema_extra=RESTART,
    )
    control: Annotated[str, AfterValidator(_control)] = Field(
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
    reload_token_file: Annotated[str, AfterValidator(_file)] = Field(
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
        "for more latency; 0 = never.",
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
    interface: Annotated[str, AfterValidator(_interface)] = Field(
        "", description='Only datagrams that arrive on this interface; "" = any.', json_schema_extra=LIVE
    )
    multicast: list[Annotated[str, AfterValidator(_group)]] = Field(
        default=[], description="Multicast groups to join, on `interface` when given.", json_schema_extra=LIVE
    )
    receive: Literal["auto", "recvmmsg", "ring"] = Field(
        "recvmmsg",
        description="How datagrams come in: by the UDP sockets, or by a packet ring on the interfaces, before firewall "
        "and UDP stack (ring; needs CAP_NET_RAW and CAP_NET_ADMIN); auto: the ring where the process may.",
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
    checksum: bool = Field(
        True, description="false: UDP checksum 0 (none) on IPv4 copies; illegal over IPv6.", json_schema_extra=LIVE
    )
    freq: int = Field(
        1,
        ge=1,
        le=2**32 - 1,
        description="One datagram in so many is sent, 1..4294967295; 1 = every one.",
        json_schema_extra=LIVE,
    )
    ttl: Ttl = Field(
        64, description='TTL or hop limit of copies, 1..255, or "keep": as received.', json_schema_extra=LIVE
    )
    tos: Tos = Field(
        0, description='TOS or traffic class of copies, 0..255, or "keep": as received.', json_schema_extra=LIVE
    )
    engine: Literal["auto", "udp", "raw", "transparent", "packet"] = Field(
        "auto",
        description="How copies leave: a UDP socket, a raw socket, sockets bound to the exporters' addresses "
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
        description="Names of receivers that get a copy; [] with `stop = true` denies.", json_schema_extra=LIVE
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
    rule: list[Rule] = Field(default=[], description="Which copies are made.")


@dataclass(frozen=True)
class Loaded:
    """What a loader returns: a configuration that passed every check, and where it came from.

    sources: index of a rule -> its parsed sources (EVERYTHING alone when `from` is left out). warnings: in file order.
    files: files read, as given. text_hash: hex sha256 of what was read (for a command line: the arguments too).
    locate: path of a value -> (file, line), so that later stages can report it; line 0 when there is none. Answers for
    the nearest enclosing value when the very one has no line; slow on its first call, so call it only when there is a
    problem to report.
    """

    config: Config
    sources: dict[int, tuple[ParsedSource, ...]]
    warnings: list[Problem] = field(default_factory=list)
    files: tuple[str, ...] = ()
    text_hash: str = ""
    origin: Literal["toml", "legacy"] = "toml"
    locate: Callable[[Path], tuple[str, int]] = lambda path: ("", 0)

    def problem(self, path: Path, why: str) -> Problem:
        """A Problem about the value at `path`."""
        file, line = self.locate(path)
        return Problem(file, line, dotted(path), why)


def dotted(path: Path) -> str:
    """`receiver[0].to` of ("receiver", 0, "to")."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def parsed_sources(config: Config) -> dict[int, tuple[ParsedSource, ...]]:
    """`Loaded.sources` of a configuration as TOML means it."""
    return {
        index: tuple(parse_source(text) for text in rule.from_) or (EVERYTHING,)
        for index, rule in enumerate(config.rule)
    }


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
