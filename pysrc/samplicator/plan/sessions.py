"""The plan as data, of what comes and goes by TCP, TLS and SCTP: through doors, which gateways have the other ends of.

Pure and frozen, as spec, of which these are parts. Made by doors; read by the gateways, supervisor and explain.
"""

from __future__ import annotations

from dataclasses import dataclass

from samplicator.config.address import ParsedSource, address_text, endpoint_text


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates of a TLS session, both sides of which show one (RFC 7011 section 11.3): paths of PEM files. names:
    DNS names of which a peer's certificate must have one; (): who comes in may have any that the authorities signed,
    and where we connect to, it is the host as written.
    """

    cert_file: str
    key_file: str
    ca_file: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Backup:
    """The collector beside another one. address, port, scope_id, host: as of Udp; address b"": its name does not
    resolve now. mode: redundant | fail-over. fail_over_ms: 0..3600. restore_s: 0..3600.
    """

    address: bytes
    port: int
    scope_id: int
    host: str
    mode: str
    fail_over_ms: int
    restore_s: int


@dataclass(frozen=True, slots=True)
class Sctp:
    """How SCTP is done. backend: auto | kernel | usrsctp | usrsctp-udp. udp_port: ours and the peers', with the last.
    mtu: of the way to peers in bytes, where the kernel does not find it out. streams: of an association. Where we
    connect to: reliability: full | partial | none; buffer_limit: flow records that may wait; backup: None = there is
    none.
    """

    backend: str = "auto"
    udp_port: int = 9899
    mtu: int = 1500
    streams: int = 2
    reliability: str = "full"
    buffer_limit: int = 1024
    backup: Backup | None = None


@dataclass(frozen=True, slots=True)
class DoorSpec:
    """A door of a listener (each worker opens one). gateway: name of the transport that brings its datagrams. places:
    (address of 4 or 16 bytes, port, scope id) to listen at. allow: who may open sessions, () = everybody.
    message_bytes: longer messages are split, 0 = never.
    """

    gateway: str
    places: tuple[tuple[bytes, int, int], ...] = ()
    allow: tuple[ParsedSource, ...] = ()
    message_bytes: int = 0
    tls: Tls | None = None
    sctp: Sctp | None = None

    def texts(self) -> tuple[str, ...]:
        """The places, for people."""
        return tuple(
            f"{self.gateway}://{endpoint_text(address_text(address), port)}" for address, port, _ in self.places
        )


@dataclass(frozen=True, slots=True)
class Door:
    """Copies go to a gateway, the transport of this name, and with them who sent them, when, their TTL and TOS.
    address, port, scope_id, host: where the gateway sends them, as of Udp; b"": nowhere that the plan knows.
    """

    gateway: str
    address: bytes = b""
    port: int = 0
    scope_id: int = 0
    host: str = ""
    tls: Tls | None = None
    sctp: Sctp | None = None

    @property
    def place(self) -> str:
        """For people."""
        if not self.port:
            return f"gateway {self.gateway}"
        return f"{self.gateway}://{endpoint_text(self.host, self.port)}"

    @property
    def known_as(self) -> str:
        """The address, else the host's name if it does not resolve now, else the gateway's."""
        return address_text(self.address) if any(self.address) else self.host or self.gateway
