"""[[listener]]: where exporters send to. Judges what can be judged within the table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from samplicator.config.address import (
    Endpoint,
    parse_listen,
)
from samplicator.config.fields import (
    Family,
    ListenText,
    Name,
    check_group,
    check_interface,
)
from samplicator.config.model.table import LIVE, Table


class Listener(Table):
    """A place where exporters send to."""

    name: Name = Field(description="Name used by rules, metrics and logs; unique.", json_schema_extra=LIVE)
    listen: list[ListenText] = Field(
        min_length=1,
        description="ADDR:PORT, ADDR:LO-HI or [v6]:PORT; one UDP socket per entry (a range: one per port).",
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

    @property
    def endpoints(self) -> list[Endpoint]:
        """`listen`, parsed, in order."""
        return [parse_listen(text) for text in self.listen]
