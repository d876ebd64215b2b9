"""[[receiver]]: where copies go, and which. Judges what can be judged within the table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from samplicator.config.address import (
    Endpoint,
    parse_own_source,
)
from samplicator.config.fields import (
    Family,
    Minutes,
    Mtu,
    Name,
    OwnSourceText,
    ProbeText,
    Refresh,
    TargetText,
    Tos,
    Ttl,
    check_file,
)
from samplicator.config.kubernetes import ServicePort, names_service, parse_service_port
from samplicator.config.model.sctp import Backup
from samplicator.config.model.table import LIVE, Table
from samplicator.config.probe import Probe, parse_probe
from samplicator.config.transport import parse_peer


class Receiver(Table):
    """A destination of copies."""

    name: Name = Field(description="Name used by rules, metrics and logs; unique.", json_schema_extra=LIVE)
    to: TargetText = Field(
        description="HOST:PORT or [v6]:PORT; host names are resolved again regularly. k8s://NAMESPACE/SERVICE:PORT = "
        "the ready pods of a Kubernetes Service, which share the exporters as the members of a pool do. "
        "tcp://HOST:PORT or tls://HOST:PORT = IPFIX over TCP or TLS, sctp://HOST:PORT = IPFIX and NetFlow v9 over "
        "SCTP, one connection per exporter.",
        json_schema_extra=LIVE,
    )
    spoof: bool = Field(
        False, description="Keep the exporter's address and port as the source of copies.", json_schema_extra=LIVE
    )
    source: OwnSourceText = Field(
        "",
        description='Source ADDR or ADDR:PORT of copies that are not spoofed; "" = the kernel chooses.',
        json_schema_extra=LIVE,
    )
    source_port: Literal["shared", "per-session"] = Field(
        "shared",
        description="Source port of copies that are not spoofed: shared = one for all exporters; per-session = one per "
        "exporter address and port, so that collectors can tell exporters apart.",
        json_schema_extra=LIVE,
    )
    domain: Literal["keep", "unique"] = Field(
        "keep",
        description="Observation domain (IPFIX) or source id (NetFlow v9) of copies: keep = as received; unique = one "
        "number per exporter and domain, for collectors that identify exporters by address only.",
        json_schema_extra=LIVE,
    )
    checksum: bool = Field(
        True, description="false: UDP checksum 0 (none) on IPv4 copies; illegal over IPv6.", json_schema_extra=LIVE
    )
    freq: int = Field(
        1,
        ge=1,
        le=2**32 - 1,
        description="One datagram in this many is sent, 1..4294967295; 1 = every datagram. Templates are always sent.",
        json_schema_extra=LIVE,
    )
    freq_mode: Literal["datagram", "exporter"] = Field(
        "datagram",
        description="What freq counts: datagram = every freq-th datagram; exporter = all of every freq-th exporter.",
        json_schema_extra=LIVE,
    )
    template_refresh_packets: Refresh = Field(
        0,
        description="Templates are replayed after this many datagrams of an exporter; 0 = never.",
        json_schema_extra=LIVE,
    )
    template_refresh_minutes: Minutes = Field(
        0, description="Templates are replayed after this many minutes, 0..10080; 0 = never.", json_schema_extra=LIVE
    )
    options_refresh_packets: Refresh = Field(
        0,
        description="The last options data are replayed after this many datagrams of an exporter; 0 = never.",
        json_schema_extra=LIVE,
    )
    options_refresh_minutes: Minutes = Field(
        0, description="Options data are replayed after this many minutes, 0..10080; 0 = never.", json_schema_extra=LIVE
    )
    probe: ProbeText = Field(
        "auto",
        description="How samplicator finds out that the receiver is down or back: it sends a probe from this host's "
        "address every 2 s (0.5 s if a standby or a pool needs the state). udp = an empty datagram; ipfix = an IPFIX "
        "message without sets; tcp://HOST:PORT = a connection; http://HOST:PORT/PATH = a GET with status 2xx; without "
        "HOST the receiver's host; off = no probe; auto = an empty datagram while copies are refused, and for spoofed "
        "copies always if a standby, a pool or templates need the state.",
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
        description="Largest IP packet in bytes, 68..65535 (IPv6: at least 1280); longer copies are sent in "
        "fragments. auto = what the route and the path take.",
        json_schema_extra=LIVE,
    )
    engine: Literal["auto", "udp", "raw", "transparent", "packet"] = Field(
        "auto",
        description="How copies are sent: udp = a UDP socket; raw = a raw socket; transparent = sockets bound to the "
        "exporters' ports; packet = link frames, without routing and firewall; auto = the best of these, frames only "
        "while they bypass nothing of this host.",
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
        description="Address family of a host name in `to` (samplicate -4, -6).",
        json_schema_extra=LIVE,
    )
    reliability: Literal["full", "partial", "none"] = Field(
        "full",
        description="How hard data is tried to be delivered by sctp://: full = until it is acknowledged; partial = "
        "until buffer_limit needs the room; none = sent once. Templates are always sent in full.",
        json_schema_extra=LIVE,
    )
    buffer_limit: int = Field(
        1024,
        ge=1,
        le=65535,
        description="Flow records of an exporter that may wait for an sctp:// receiver, 1..65535; then the oldest are "
        "dropped.",
        json_schema_extra=LIVE,
    )
    streams: int = Field(
        2,
        ge=2,
        le=65535,
        description="Streams of an association, 2..65535: 0 for templates and options, the others for data.",
        json_schema_extra=LIVE,
    )
    backup: Backup | None = Field(
        None,
        description="The collector that gets the messages while an sctp:// receiver does not answer.",
        json_schema_extra=LIVE,
    )
    tls_cert_file: Annotated[str, AfterValidator(check_file)] = Field(
        "", description="PEM file with the certificate that is shown to the receiver (tls://).", json_schema_extra=LIVE
    )
    tls_key_file: Annotated[str, AfterValidator(check_file)] = Field(
        "", description="PEM file with the key of `tls_cert_file`.", json_schema_extra=LIVE
    )
    tls_ca_file: Annotated[str, AfterValidator(check_file)] = Field(
        "",
        description="PEM file with the authorities that have signed the receiver's certificate (tls://).",
        json_schema_extra=LIVE,
    )
    tls_names: list[str] = Field(
        default=[],
        description="DNS names of which the receiver's certificate must have one; empty = the host in `to`.",
        json_schema_extra=LIVE,
    )

    @property
    def service_port(self) -> ServicePort | None:
        """`to`, if it names a Kubernetes Service."""
        return parse_service_port(self.to) if names_service(self.to) else None

    @property
    def endpoint(self) -> Endpoint:
        """`to`, parsed. Of a Service: its name, which nobody resolves, and its port, 0 if that has a name."""
        if (wanted := self.service_port) is not None:
            return Endpoint(wanted.host, 0, b"", wanted.port, wanted.port)
        return parse_peer(self.to)

    @property
    def own_source(self) -> tuple[int, bytes, int] | None:
        """(family, address, port) of `source`; None when there is none."""
        return parse_own_source(self.source) if self.source else None

    @property
    def probing(self) -> Probe:
        """`probe`, parsed."""
        return parse_probe(self.probe)
