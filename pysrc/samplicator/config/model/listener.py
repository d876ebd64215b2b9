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
