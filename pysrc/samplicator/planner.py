"""The planner: from a checked configuration and resolved addresses to a PlanSpec, the pure description of what shall
run.

Purpose: every decision that can be taken without opening anything is taken here, once: which sockets, which engine
for which receiver and why, which rule fires for whom, and whether a receiver would loop back into a listener.
Invariants: pure data in, pure data out; all problems are reported at once. Called by reload, and by the command line
for `check` and `explain`. It must never open a socket, ask the kernel (what it needs to know about the host comes in
as Capabilities) or import the compiled module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ResolvedAddress:
    """Where a host name or address text points now: 4 or 16 bytes, and the interface index of a link-local address (0
    = none).
    """

    address: bytes
    scope_id: int = 0

    @property
    def family(self) -> int:
        return 4 if len(self.address) == 4 else 6


def _nothing_is_local(address: bytes) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this process may do and what the planner must know of the host.

    net_raw: raw sockets can be opened. net_admin: buffer limits can be passed. is_local(address): the address is one
    of this host. cpus: the CPUs this process may run on.
    """

    net_raw: bool
    net_admin: bool = False
    is_local: Callable[[bytes], bool] = field(default=_nothing_is_local, compare=False)
    cpus: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class SocketSpec:
    """One bound UDP socket of a listener (each worker opens one). address: text without brackets; listener: index
    into listeners.

    v6only: refuse IPv4 on this IPv6 socket. interface: "" = all. groups: multicast groups to join, of this socket's
    family.
    """

    listener: int
    address: str
    port: int
    family: int
    v6only: bool
    interface: str
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """A listener: its index in the plan, its name (the metric label) and its sockets."""

    index: int
    name: str
    sockets: tuple[SocketSpec, ...]


@dataclass(frozen=True, slots=True)
class ReceiverSpec:
    """A receiver: where its copies go and how they leave.

    address: network order, 4 or 16 bytes, as `family` says. host: as the operator wrote it. engine_why: one sentence
    for people. source: a fixed (address, port) instead of our own, port 0 = one the kernel picks. ttl 0 and tos -1 =
    kept from the datagram.
    """

    name: str
    address: bytes
    port: int
    family: int
    scope_id: int
    host: str
    engine: str
    engine_why: str
    spoof: bool
    source: tuple[bytes, int] | None
    checksum: bool
    freq: int
    ttl: int
    tos: int
    pause_us: int


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source of a rule: family 0 (any) | 4 | 6, address and mask in IPv4-mapped form (16 bytes each), text as
    written.
    """

    family: int
    address: bytes
    mask: bytes
    text: str


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule: sources, listener indexes (None = all), receiver indexes, whether later rules are skipped; text for
    people.
    """

    sources: tuple[SourceSpec, ...]
    listeners: tuple[int, ...] | None
    receivers: tuple[int, ...]
    stop: bool
    text: str


@dataclass(frozen=True, slots=True)
class PlanSpec:
    """All that shall run. workers >= 1; cpus: worker k is pinned to cpus[k % len], () = not pinned; sizes in bytes."""

    listeners: tuple[ListenerSpec, ...]
    receivers: tuple[ReceiverSpec, ...]
    rules: tuple[RuleSpec, ...]
    workers: int
    cpus: tuple[int, ...]
    receive_buffer: int
    send_buffer: int
    max_datagram: int
    batch: int
    warnings: tuple[str, ...] = ()


__all__ = [
    "Capabilities",
    "ListenerSpec",
    "PlanSpec",
    "ReceiverSpec",
    "ResolvedAddress",
    "RuleSpec",
    "SocketSpec",
    "SourceSpec",
]
