"""Flow telemetry with templates: many exporters that say them once.

Used by tests/system. The encoders are those of tests/support/flows.py, on real sockets.
"""

from __future__ import annotations

import socket
import time

from support import flows as model
from support.flows import IPFIX, V9
from support.lab import Lab
from support.witness import Seen

FIELDS = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (2, 4), (1, 4)]
ROWS = 5


def as_hosts_are(lab: Lab) -> None:
    for collector in lab.collectors:
        collector.sysctl(ipv4__icmp_ratelimit=1000, ipv4__icmp_msgs_burst=50)


def record(i: int, k: int) -> bytes:
    ports = (1000 + k).to_bytes(2, "big") + (80).to_bytes(2, "big")
    return bytes([10, i // 256 % 256, i % 256, k, 192, 0, 2, 1]) + ports + b"\x06" + bytes([0, 0, 0, 3, 0, 0, 1, 44])


class Exporter:
    """One exporter: templates in its first datagram, data for ever after. kind: V9 or IPFIX."""

    def __init__(self, lab: Lab, address: str, kind: int, domain: int = 1) -> None:
        self.address = address
        self.kind = kind
        self.domain = domain
        self.sock: socket.socket = lab.exporter_socket(address, 50001)
        self.sock.connect((lab.relay4(), 2055))
        self.sequence = 0
        self.sent = 0

    def template(self) -> bytes:
        return model.a_set(0 if self.kind == V9 else 2, model.template(256, FIELDS))

    def payload(self) -> bytes:
        """The next datagram: the first has the templates and no data."""
        seconds = int(time.time())
        data = model.a_set(256, *[record(self.sent, k) for k in range(ROWS)], pad=4) if self.sent else self.template()
        sequence = self.sequence
        self.sent += 1
        if self.kind == V9:
            self.sequence += 1
            return model.v9(sequence, self.domain, data, count=ROWS if self.sent > 1 else 1, secs=seconds)
        self.sequence += ROWS if self.sent > 1 else 0
        return model.ipfix(sequence, self.domain, data, secs=seconds)

    def send(self) -> None:
        self.sock.send(self.payload())


def flock(lab: Lab, count: int) -> list[Exporter]:
    """`count` exporters at addresses of the pool, v9 and IPFIX by turns."""
    kinds = (V9, IPFIX)
    return [Exporter(lab, f"198.18.{100 + n // 250}.{1 + n % 250}", kinds[n % 2], domain=n + 1) for n in range(count)]


def sets(seen: Seen) -> set[str]:
    """ "template", "data": what a datagram of theirs has."""
    message = model.parse(seen.payload)
    if message is None:
        return set()
    return {"template" if one.identity in (0, 2) else "data" for one in message.sets}


def domain(seen: Seen) -> int:
    message = model.parse(seen.payload)
    assert message is not None
    return message.domain
