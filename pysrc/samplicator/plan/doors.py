"""What of the configuration becomes doors: the places where gateways listen, and the receivers they send to.

Pure. Called by planner. Which transports there are, config.transport says; nothing here depends on which one it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from samplicator.config.address import address_text, endpoint_text, parse_source
from samplicator.config.model.listener import Listener
from samplicator.config.model.receiver import Receiver
from samplicator.config.model.sctp import Sctp as Host
from samplicator.config.model.whole import Config
from samplicator.config.transport import SCTP
from samplicator.plan.sessions import Backup, Door, DoorSpec, Sctp, Tls
from samplicator.plan.spec import ResolvedAddress

WITH_TLS: Final = "tls"
WHY: Final = "a gateway has the exporters' sessions"
"""Of a listener that is at no UDP port."""
HEADER_BYTES: Final = {4: 28, 6: 48, 0: 48}
"""IP and UDP, by family; of a name, which may have either, the longer."""
LONGEST: Final = 65507
LEAST: Final = 512
"""Shorter ones would hardly hold a record."""


def of_listener(
    listener: Listener, places: Mapping[str, Sequence[tuple[bytes, int, int]]], config: Config
) -> tuple[DoorSpec, ...]:
    """A door of each transport. places: by scheme; IPv4 comes first, so that an IPv6 socket leaves IPv4 to it."""
    return tuple(
        DoorSpec(
            gateway=scheme,
            places=tuple(sorted(set(found), key=lambda place: (len(place[0]), place))),
            allow=tuple(map(parse_source, listener.allow)),
            message_bytes=min(listener.split_bytes, shortest(config)),
            tls=_tls(listener) if scheme == WITH_TLS else None,
            sctp=Sctp(config.sctp.backend, config.sctp.udp_port, config.sctp.mtu, listener.streams)
            if scheme == SCTP
            else None,
        )
        for scheme, found in sorted(places.items())
    )


def shortest(config: Config) -> int:
    """The longest datagram in bytes that no receiver gets in fragments, as far as the configuration says it."""
    found = [
        receiver.mtu - HEADER_BYTES[receiver.endpoint.family]
        for receiver in config.receiver
        if isinstance(receiver.mtu, int) and not receiver.endpoint.scheme
    ]
    return max(min(found, default=LONGEST), LEAST)


def of_receiver(receiver: Receiver, address: ResolvedAddress, host: Host, backup: ResolvedAddress | None) -> Door:
    """How it is delivered. backup: where that is; None: its name does not resolve now, or there is none."""
    endpoint = receiver.endpoint
    return Door(
        gateway=endpoint.scheme,
        address=address.address,
        port=endpoint.port,
        scope_id=address.scope_id,
        host=endpoint.host,
        tls=_tls(receiver) if endpoint.scheme == WITH_TLS else None,
        sctp=_sctp(receiver, host, backup) if endpoint.scheme == SCTP else None,
    )


def _sctp(receiver: Receiver, host: Host, address: ResolvedAddress | None) -> Sctp:
    wanted, backup = receiver.backup, None
    if wanted is not None:
        backup = Backup(
            address=address.address if address is not None else b"",
            port=wanted.endpoint.port,
            scope_id=address.scope_id if address is not None else 0,
            host=wanted.endpoint.host,
            mode=wanted.mode,
            fail_over_ms=wanted.fail_over_ms,
            restore_s=wanted.restore_s,
        )
    return Sctp(
        host.backend, host.udp_port, host.mtu, receiver.streams, receiver.reliability, receiver.buffer_limit, backup
    )


Taken = dict[tuple[str, tuple[bytes, int, int]], str]
"""Which listener has a port of an address, by protocol."""


def clashes(name: str, doors: Sequence[DoorSpec], taken: Taken) -> Iterator[str]:
    """Two listeners cannot have one port of one address. taken: gets those of this one."""
    for door in doors:
        protocol = _protocol(door.gateway)
        for place in door.places:
            other = taken.setdefault((protocol, place), name)
            if other != name:
                text = endpoint_text(address_text(place[0]), place[1])
                yield f"listener {other!r} already uses {protocol} {text}; remove one of the two"


def loop(name: str, scheme: str, address: bytes, port: int, doors: Sequence[DoorSpec], *, local: bool) -> str:
    """Why a receiver at this address would send to a listener of this host; "" = it would not. local: the address is
    one of this host.
    """
    heard = (place for door in doors if _protocol(door.gateway) == _protocol(scheme) for place in door.places)
    for where, number, _ in heard:
        if port == number and (where == address or (local and not any(where))):
            text = endpoint_text(address_text(address), port)
            why = f"receiver {name!r} at {text} is a listener of this host, so every message would come back in a loop"
            return f"{why}; change `to`"
    return ""


def _protocol(scheme: str) -> str:
    """Whose ports it uses."""
    return "SCTP" if scheme == SCTP else "TCP"


def _tls(table: Listener | Receiver) -> Tls:
    return Tls(table.tls_cert_file, table.tls_key_file, table.tls_ca_file, tuple(table.tls_names))
