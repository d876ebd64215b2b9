"""Receivers and pools as they are shown, and the sums that every view of receivers uses.

Pure: readings in, plain values out. Called by http and by the other views; the command line draws the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypedDict

from samplicator.readings import PoolReading, Readings, ReceiverReading

FAILED = "failed_"
"""How the names of the counters begin that count copies which could not be sent, by reason."""


class Receiver(TypedDict):
    """A receiver as it runs now."""

    name: str
    host: Annotated[str, "Configured address or host name."]
    address: Annotated[str, "Address that copies are sent to now."]
    port: Annotated[int, "0 while the number of a named port is not known, and behind a gateway."]
    source: Annotated[str, "Source address of copies: own or spoof."]
    engine: Annotated[str, "Engine that sends copies: udp, raw, transparent or packet."]
    engine_why: str
    counters: Annotated[Mapping[str, int], "Totals; offered = skipped + sent + all that begin with failed_."]
    up: bool
    generation_added: int
    gave_up: Annotated[
        list[str], "Features given up because the kernel refuses them: segment, transparent, packet, copier."
    ]
    link: Annotated[str, "Engine packet: the next hop, or why the raw socket sends now."]
    mtu: Annotated[int, "Largest IP packet in bytes; longer copies are sent in fragments. 0 = not known."]
    mtu_why: str
    state: Annotated[str, "up, refusing, unreachable or looping."]
    state_why: str
    state_since_unix: float
    standby_for: Annotated[str, "Primary of this standby; empty if the receiver is not a standby."]
    waiting: Annotated[bool, "true for a standby that gets no copies now."]
    takeovers: Annotated[int, "Times that the standby took over the copies of its primary."]
    failed: Annotated[int, "Copies that failed, all reasons."]


class Member(TypedDict):
    """A receiver in a pool."""

    receiver: str
    weight: int
    up: Annotated[bool, "true while the pool sends to the member."]
    exporters: Annotated[int, "Exporters' observation domains that the member gets now; 0 with round-robin."]


class Pool(TypedDict):
    """Receivers that share the exporters."""

    name: str
    balance: Annotated[str, "exporter-hash or round-robin."]
    members: list[Member]


def failed(counters: Mapping[str, int]) -> int:
    """Copies that failed, all reasons together. counters: of a ReceiverReading."""
    return sum(count for field, count in counters.items() if field.startswith(FAILED))


def failed_by_reason(counters: Mapping[str, int]) -> dict[str, int]:
    """The same, by reason."""
    return {field.removeprefix(FAILED): count for field, count in counters.items() if field.startswith(FAILED)}


def receivers(readings: Readings) -> list[Receiver]:
    """All of them, in the order of the configuration."""
    return [_receiver(item) for item in readings.receivers]


def pools(readings: Readings) -> list[Pool]:
    """All of them, in the order of the configuration."""
    return [_pool(item) for item in readings.pools]


def _receiver(item: ReceiverReading) -> Receiver:
    return {
        "name": item.name,
        "host": item.host,
        "address": item.address,
        "port": item.port,
        "source": item.source,
        "engine": item.engine,
        "engine_why": item.engine_why,
        "counters": item.counters,
        "up": item.up,
        "generation_added": item.generation_added,
        "gave_up": list(item.gave_up),
        "link": item.link,
        "mtu": item.mtu,
        "mtu_why": item.mtu_why,
        "state": item.state,
        "state_why": item.state_why,
        "state_since_unix": item.state_since_unix,
        "standby_for": item.standby_for,
        "waiting": item.waiting,
        "takeovers": item.takeovers,
        "failed": failed(item.counters),
    }


def _pool(item: PoolReading) -> Pool:
    return {
        "name": item.name,
        "balance": item.balance,
        "members": [
            {"receiver": each.receiver, "weight": each.weight, "up": each.up, "exporters": each.exporters}
            for each in item.members
        ],
    }
