"""[sctp]: how this host does SCTP, for all listeners and receivers. Judges what can be judged within the table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from samplicator.config.address import Endpoint
from samplicator.config.fields import BackupText
from samplicator.config.model.table import LIVE, Table
from samplicator.config.transport import parse_peer


class Sctp(Table):
    """How this host does SCTP."""

    backend: Literal["auto", "kernel", "usrsctp", "usrsctp-udp"] = Field(
        "auto",
        description="kernel = the kernel's SCTP; usrsctp = libusrsctp over raw IP, for kernels without; usrsctp-udp = "
        "libusrsctp over UDP (RFC 6951); auto = the kernel's if it has SCTP, else usrsctp.",
        json_schema_extra=LIVE,
    )
    udp_port: int = Field(
        9899,
        ge=1,
        le=65535,
        description="UDP port of this host and of all peers, 1..65535, with backend usrsctp-udp.",
        json_schema_extra=LIVE,
    )
    mtu: int = Field(
        1500,
        ge=576,
        le=65535,
        description="Largest IP packet on the way to peers in bytes, 576..65535, with libusrsctp; the kernel finds it "
        "out by itself.",
        json_schema_extra=LIVE,
    )


class Backup(Table):
    """The collector that gets the messages while the receiver does not answer."""

    to: BackupText = Field(description="sctp://HOST:PORT of the backup.", json_schema_extra=LIVE)
    mode: Literal["redundant", "fail-over"] = Field(
        "redundant",
        description="redundant = the backup is connected at once and always has the templates; fail-over = it is "
        "connected when the receiver fails.",
        json_schema_extra=LIVE,
    )
    fail_over_ms: int = Field(
        25,
        ge=0,
        le=3600,
        description="Milliseconds without an answer to a heartbeat after which the backup is used, 0..3600; less than "
        "10 counts as 10.",
        json_schema_extra=LIVE,
    )
    restore_s: int = Field(
        25,
        ge=0,
        le=3600,
        description="Seconds for which the receiver must have answered before it is used again, 0..3600.",
        json_schema_extra=LIVE,
    )

    @property
    def endpoint(self) -> Endpoint:
        """`to`, parsed."""
        return parse_peer(self.to)
