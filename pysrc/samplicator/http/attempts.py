"""How many wrong credentials a client may try, and what checking them may cost.

Purpose: a password cannot be guessed by trying, and trying costs this host little. Invariants: the memory is bounded
(CLIENTS), whatever the number of addresses; a client is an IPv4 address or an IPv6 /64, which is what one customer
has. Called by http.security, on the control loop.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

CLIENTS: Final = 1024
"""Above, the client that failed the longest time ago is forgotten."""
FREE: Final = 10
"""Wrong attempts before a client must wait."""
SECONDS: Final = 6.0
"""After this time one more attempt is free."""


def client_of(peer: object) -> str:
    """Who asks, of a peer name of a socket."""
    text = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text[:64]
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), 64), strict=False))


class Attempts:
    """Failures by client: each adds one, and one is forgiven every SECONDS."""

    def __init__(self, clients: int = CLIENTS) -> None:
        self._most = clients
        self._failures: OrderedDict[str, tuple[float, float]] = OrderedDict()  # how many, at which time

    def __len__(self) -> int:
        return len(self._failures)

    def wait(self, client: str, now: float) -> float:
        """Seconds until this client may try again, 0 = now. now: monotonic."""
        return max(0.0, (self._left(client, now) - (FREE - 1)) * SECONDS)

    def failed(self, client: str, now: float) -> None:
        """One more failure."""
        self._failures[client] = (self._left(client, now) + 1, now)
        self._failures.move_to_end(client)
        if len(self._failures) > self._most:
            self._failures.popitem(last=False)

    def _left(self, client: str, now: float) -> float:
        count, since = self._failures.get(client, (0.0, now))
        return max(0.0, count - (now - since) / SECONDS)
