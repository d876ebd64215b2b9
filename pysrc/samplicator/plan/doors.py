"""What of the configuration becomes doors: the places where gateways listen, and the receivers they send to.

Pure. Called by planner. Which transports there are, config.transport says; nothing here depends on which one it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from samplicator.config.address import address_text, endpoint_text, parse_source
from samplicator.config.model.listener import Listener
from samplicator.config.model.receiver import Receiver
from samplicator.plan.spec import Door, DoorSpec, ResolvedAddress, Tls

WITH_TLS: Final = "tls"
WHY: Final = "a gateway has the exporters' sessions"
"""Of a listener that is at no UDP port."""


def of_listener(listener: Listener, places: Mapping[str, Sequence[tuple[bytes, int, int]]]) -> tuple[DoorSpec, ...]:
    """A door of each transport. places: by scheme; IPv4 comes first, so that an IPv6 socket leaves IPv4 to it."""
    return tuple(
        DoorSpec(
            gateway=scheme,
            places=tuple(sorted(set(found), key=lambda place: (len(place[0]), place))),
            allow=tuple(map(parse_source, listener.allow)),
            message_bytes=listener.split_bytes,
            tls=_tls(listener) if scheme == WITH_TLS else None,
        )
        for scheme, found in sorted(places.items())
    )


def of_receiver(receiver: Receiver, address: ResolvedAddress) -> Door:
    """How it is delivered."""
    endpoint = receiver.endpoint
    return Door(
        gateway=endpoint.scheme,
        address=address.address,
        port=endpoint.port,
        scope_id=address.scope_id,
        host=endpoint.host,
        tls=_tls(receiver) if endpoint.scheme == WITH_TLS else None,
    )


def clashes(name: str, doors: Sequence[DoorSpec], taken: dict[tuple[bytes, int, int], str]) -> Iterator[str]:
    """Two listeners cannot have one TCP port of one address. taken: by which listener; gets those of this one."""
    for place in (place for door in doors for place in door.places):
        if taken.setdefault(place, name) != name:
            text = endpoint_text(address_text(place[0]), place[1])
            yield f"listener {taken[place]!r} already uses TCP {text}; remove one of the two"


def loop(name: str, address: bytes, port: int, places: Sequence[tuple[bytes, int, int]], *, local: bool) -> str:
    """Why a receiver at this address would send to a listener of this host; "" = it would not. local: the address is
    one of this host.
    """
    for where, number, _ in places:
        if port == number and (where == address or (local and not any(where))):
            text = endpoint_text(address_text(address), port)
            why = f"receiver {name!r} at {text} is a listener of this host, so every message would come back in a loop"
            return f"{why}; change `to`"
    return ""


def _tls(table: Listener | Receiver) -> Tls:
    return Tls(table.tls_cert_file, table.tls_key_file, table.tls_ca_file, tuple(table.tls_names))
