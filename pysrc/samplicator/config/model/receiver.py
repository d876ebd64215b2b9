"""[[receiver]]: where copies go, and which. Judges what can be judged within the table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from samplicator.config.address import (
    Endpoint,
    parse_own_source,
    parse_target,
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
)
from samplicator.config.model.table import LIVE, Table
from samplicator.config.probe import Probe, parse_probe


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
