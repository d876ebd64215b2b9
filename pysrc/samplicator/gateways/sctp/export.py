"""What an export to a collector and its backup is, and what is counted of it.

Plain data. Made by gateway; used by exporting and paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from samplicator.gateways.sctp.backlog import Item
from samplicator.gateways.sctp.backup import Mode, Status, Which
from samplicator.gateways.transport import Address, Reliability


class Collector(NamedTuple):
    """place: where it listens. name: its host name as written. source: our own address."""

    place: Address
    name: str = ""
    source: Address | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """buffer_limit: flow records that may wait, 1..65535 as Cisco has it. streams: of the association, 2 or more;
    stream 0 is always fully reliable. fail_over_ms: 0..3600; less than 10 is taken as 10. restore_s: 0..3600.
    """

    primary: Collector
    backup: Collector | None = None
    mode: Mode = Mode.FAIL_OVER
    reliability: Reliability = Reliability.FULL
    buffer_limit: int = 1024
    streams: int = 2
    fail_over_ms: int = 25
    restore_s: float = 25.0
    mtu: int = 1500


@dataclass(slots=True)
class Counters:
    """Of one collector: "exported flows in messages". Of both: records "dropped due to lack of SCTP resources" and
    "dropped due to primary & backup failure", with the messages that they were in; given_up: records that were sent
    and not delivered, with partial reliability or none.
    """

    flows: int = 0
    messages: int = 0
    given_up: int = 0


@dataclass(slots=True)
class Dropped:
    records: int = 0
    messages: int = 0

    def add(self, items: Sequence[Item]) -> None:
        self.records += sum(item.records for item in items)
        self.messages += len(items)


class Shown(NamedTuple):
    """What there is to see of one collector."""

    which: Which
    place: Address
    status: Status
    counters: Counters
    last_error: str
