"""[[listener]]: where exporters send to. Judges what can be judged within the table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from samplicator.config.address import Endpoint
from samplicator.config.fields import (
    Family,
    ListenText,
    Name,
    SourceText,
    check_file,
    check_group,
    check_interface,
)
from samplicator.config.model.table import LIVE, Table
from samplicator.config.transport import parse_place


class Listener(Table):
    """A place where exporters send to."""

    name: Name = Field(description="Name used by rules, metrics and logs; unique.", json_schema_extra=LIVE)
    listen: list[ListenText] = Field(
        min_length=1,
        description="ADDR:PORT, ADDR:LO-HI or [v6]:PORT; one UDP socket per entry (a range: one per port). "
        "tcp://ADDR:PORT or tls://ADDR:PORT = IPFIX over TCP or TLS; sctp://ADDR:PORT = IPFIX or NetFlow v9 over SCTP.",
        json_schema_extra=LIVE,
    )
    interface: Annotated[str, AfterValidator(check_interface)] = Field(
        "", description='Receive only datagrams that arrive on this interface; "" = any.', json_schema_extra=LIVE
    )
    multicast: list[Annotated[str, AfterValidator(check_group)]] = Field(
        default=[], description="Multicast groups to join, on `interface` if it is set.", json_schema_extra=LIVE
    )
    receive: Literal["auto", "recvmmsg", "ring"] = Field(
        "recvmmsg",
        description="How datagrams are received: recvmmsg = by UDP sockets; ring = by a packet ring on the interfaces, "
        "before firewall and UDP stack (needs CAP_NET_RAW and CAP_NET_ADMIN); auto = ring if permitted.",
        json_schema_extra=LIVE,
    )
    flow: Literal["auto", "off"] = Field(
        "auto",
        description="auto = NetFlow, IPFIX and sFlow are recognized; off = payloads are not read.",
        json_schema_extra=LIVE,
    )
    family: Family = Field("any", description="Address family of host names in `listen`.", json_schema_extra=LIVE)
    allow: list[SourceText] = Field(
        default=[],
        description="Addresses and prefixes of exporters that may connect by tcp://, tls:// or sctp://; empty = all.",
        json_schema_extra=LIVE,
    )
    split_bytes: int = Field(
        1452,
        ge=512,
        le=65507,
        description="Messages that come by tcp://, tls:// or sctp:// become datagrams of at most this many bytes, "
        "512..65507, at the borders of sets and records; 1452 fits an Ethernet frame with IPv6.",
        json_schema_extra=LIVE,
    )
    streams: int = Field(
        16,
        ge=1,
        le=65535,
        description="Streams that an exporter may use by sctp://, 1..65535.",
        json_schema_extra=LIVE,
    )
    tls_cert_file: Annotated[str, AfterValidator(check_file)] = Field(
        "", description="PEM file with the certificate that is shown to exporters (tls://).", json_schema_extra=LIVE
    )
    tls_key_file: Annotated[str, AfterValidator(check_file)] = Field(
        "", description="PEM file with the key of `tls_cert_file`.", json_schema_extra=LIVE
    )
    tls_ca_file: Annotated[str, AfterValidator(check_file)] = Field(
        "",
        description="PEM file with the authorities that have signed the exporters' certificates (tls://).",
        json_schema_extra=LIVE,
    )
    tls_names: list[str] = Field(
        default=[],
        description="DNS names of which an exporter's certificate must have one; empty = any name.",
        json_schema_extra=LIVE,
    )

    @property
    def endpoints(self) -> list[Endpoint]:
        """`listen`, parsed, in order."""
        return [parse_place(text) for text in self.listen]
