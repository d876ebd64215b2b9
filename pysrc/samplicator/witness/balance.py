"""The balance: one row per exporter from the device to the collector's software, and what is known as a sum only.

Pure: counters in, plain values out. Made by watch, drawn by cli, shown to Prometheus by exposition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypedDict

STAGES: Final = ("lost_before", "lost_at_socket", "failed", "lost_on_way", "dropped_by_collector")
"""Where a datagram can be lost, in its order."""


class Row(TypedDict):
    """An exporter, in datagrams."""

    exporter: str
    lost_before: int
    lost_at_socket: int
    failed: int
    lost_on_way: int
    dropped_by_collector: int
    taken: int


class Sum(TypedDict):
    """Datagrams that rows do not have, because nobody counts them per exporter."""

    stages: list[str]
    datagrams: int
    why: str


class Socket(TypedDict):
    """A socket of the collector."""

    address: str
    inode: int
    dropped: int
    queued_bytes: int
    buffer_bytes: int


class Fragments(TypedDict):
    """Datagrams that came in fragments: counted when all had come, or given up."""

    reassembled: int
    incomplete: int


class Balance(TypedDict):
    """One balance over the time that the witness watched."""

    receiver: str
    port: int
    seconds: float
    exporters: list[Row]
    total: dict[str, int]
    sums: list[Sum]
    failed_by_reason: dict[str, int]
    sockets: list[Socket]
    fragments: Fragments
    unseen: int
    notes: list[str]


@dataclass(slots=True)
class Account:
    """Counters since the witness began, by exporter. sums: see Sum. unseen: packets that it had no room for."""

    lost_before: Counter[str] = field(default_factory=Counter)
    lost_at_socket: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    lost_on_way: Counter[str] = field(default_factory=Counter)
    dropped_by_collector: Counter[str] = field(default_factory=Counter)
    wire: Counter[str] = field(default_factory=Counter)
    sums: dict[tuple[str, ...], tuple[int, str]] = field(default_factory=dict)
    failed_by_reason: dict[str, int] = field(default_factory=dict)
    fragments: tuple[int, int] = (0, 0)
    unseen: int = 0


def balance(
    receiver: str,
    port: int,
    seconds: float,
    now: Account,
    before: Account,
    sockets: Sequence[Socket],
    notes: Sequence[str],
) -> Balance:
    """What was added to an account between two moments."""
    names: set[str] = set()
    for stage in (*STAGES, "wire"):
        names |= getattr(now, stage).keys()
    rows = [row for name in sorted(names) if any((row := _row(name, now, before))[key] for key in (*STAGES, "taken"))]
    sums: list[Sum] = []
    for stages, (count, why) in now.sums.items():
        more = count - before.sums.get(stages, (0, ""))[0]
        if more > 0:
            sums.append({"stages": list(stages), "datagrams": more, "why": why})
    total = {key: sum(row[key] for row in rows) for key in (*STAGES, "taken")}
    return {
        "receiver": receiver,
        "port": port,
        "seconds": round(seconds, 3),
        "exporters": rows,
        "total": total,
        "sums": sums,
        "failed_by_reason": difference(now.failed_by_reason, before.failed_by_reason),
        "sockets": list(sockets),
        "fragments": {
            "reassembled": now.fragments[0] - before.fragments[0],
            "incomplete": now.fragments[1] - before.fragments[1],
        },
        "unseen": now.unseen - before.unseen,
        "notes": list(notes),
    }


def difference(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """What grew, by how much."""
    return {key: count - before.get(key, 0) for key, count in now.items() if count > before.get(key, 0)}


def _row(name: str, now: Account, before: Account) -> Row:
    def more(counts: Counter[str], old: Counter[str]) -> int:
        return max(0, max(0, counts[name]) - max(0, old[name]))

    dropped = more(now.dropped_by_collector, before.dropped_by_collector)
    return {
        "exporter": name,
        "lost_before": more(now.lost_before, before.lost_before),
        "lost_at_socket": more(now.lost_at_socket, before.lost_at_socket),
        "failed": more(now.failed, before.failed),
        "lost_on_way": more(now.lost_on_way, before.lost_on_way),
        "dropped_by_collector": dropped,
        "taken": max(0, more(now.wire, before.wire) - dropped),
    }


def lost(value: Balance) -> int:
    """All datagrams that were lost, wherever."""
    return sum(value["total"][stage] for stage in STAGES) + sum(item["datagrams"] for item in value["sums"])
