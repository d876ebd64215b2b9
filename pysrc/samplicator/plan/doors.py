"""What of the configuration becomes doors: the places where gateways listen, and the receivers they send to.

Pure. Called by planner. Which transports there are, config.transport says; nothing here depends on which one it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samplicator.config.address import parse_source
from samplicator.config.model.listener import Listener
from samplicator.config.model.receiver import Receiver
from samplicator.plan.spec import Door, DoorSpec, ResolvedAddress, Tls

WITH_TLS = "tls"


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


def why(doors: Sequence[DoorSpec]) -> str:
    """How such a listener receives, for people."""
    return f"sessions at {', '.join(text for door in doors for text in door.texts())}" if doors else ""


def _tls(table: Listener | Receiver) -> Tls:
    return Tls(table.tls_cert_file, table.tls_key_file, table.tls_ca_file, tuple(table.tls_names))
