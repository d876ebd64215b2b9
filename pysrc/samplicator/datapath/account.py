"""Account: counts a receiver's copies correctly while its next hop has no link address.

Purpose: the kernel accepts copies for a next hop that it still tries to resolve, keeps the last few and drops the
others without an error (arp(7), unres_qlen_bytes; __neigh_event_send() of net/core/neighbor.c). The datapath counts
all of them as sent. So copies that were accepted since the next hop was last seen with an address are held back here:
no counter that is shown includes them, not even `offered`. When the next hop answers, copies that the kernel can have
kept count as sent, and the others as failed, no_neighbor. When the next hop has not answered for a second
(neighbors.PATIENCE_SECONDS), all of them count as failed. If it answers later, the kernel still sends what it kept,
some hundred copies at most, although they count as failed, because a counter must not decrease. Invariants: offered =
skipped + sent + failed in what is shown whenever it holds in what was counted; no counter shown ever falls. One account
per receiver, kept from reload to reload. Called by supervisor, by one thread at a time. It must never ask the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from samplicator.datapath.counters import CALLS, NO_NEIGHBOR, OFFERED, SENT, SENT_BYTES
from samplicator.host.neighbors import NOWHERE, Answering, Hop, Sight

QUEUE_BYTES: Final = 212_992
"""What the kernel keeps for a next hop without an address (unres_qlen_bytes, its default: SK_WMEM_MAX)."""
SEGMENTING: Final = ("udp", "transparent")
"""Engines whose copies wait there as segmented sends."""
TICK_SECONDS: Final = 0.01
"""Grain of the ages in the neighbor table (USER_HZ)."""


@dataclass(slots=True)
class Account:
    """sent, octets, calls: as counted by the datapath at the last look, which was at `at` (monotonic). sight: of the
    next hop then. held, held_octets: not known yet what becomes of them; held_calls: send calls of that time; runs:
    they may have left as segmented sends. lost, lost_octets: counted as sent by the datapath, but not delivered;
    they only grow.
    """

    sent: int = 0
    octets: int = 0
    calls: int = 0
    at: float = 0.0
    sight: Sight = NOWHERE
    held: int = 0
    held_octets: int = 0
    held_calls: int = 0
    runs: bool = False
    lost: int = 0
    lost_octets: int = 0

    def begin(self, totals: Sequence[int]) -> None:
        """Nothing is held back of what was counted so far."""
        self.sent, self.octets, self.calls = totals[SENT], totals[SENT_BYTES], totals[CALLS]

    def take(self, totals: Sequence[int], sight: Sight, now: float) -> None:
        """What was accepted since the last look is held back as far as the next hop had no address then."""
        copies, octets = totals[SENT] - self.sent, totals[SENT_BYTES] - self.octets
        answers = sight.state == Answering.YES == self.sight.state or sight.state == Answering.ABSENT
        if not self.held and (answers or not copies):  # nearly always: there are many receivers
            self.sent, self.octets, self.calls = totals[SENT], totals[SENT_BYTES], totals[CALLS]
            self.at, self.sight = now, sight
            return
        before, gap = self.sight, max(now - self.at, TICK_SECONDS)
        if before.hop != sight.hop:  # it is another way now: what the old one kept is not seen any more
            self.lose(self.held)
            before = NOWHERE
        share = 0.0
        if sight.state == Answering.ASKED:
            share = min((now - sight.since + TICK_SECONDS) / gap, 1.0) if before.state == Answering.YES else 1.0
        elif sight.state == Answering.FAILED:  # before it was asked for, copies left by its old address
            share = 0.0 if before.state == Answering.YES else 1.0
        elif sight.state == Answering.YES and before.state == Answering.ASKED:
            share = min(max(1 - (now - sight.since) / gap, 0.0), 1.0)
        part = round(copies * share)
        self.held += part
        self.held_octets += octets * part // copies if copies else 0
        self.held_calls = self.held_calls + totals[CALLS] - self.calls if self.held else 0
        self.sent, self.octets, self.calls = totals[SENT], totals[SENT_BYTES], totals[CALLS]
        self.at, self.sight = now, sight

    def settle(self) -> None:
        """What is known now of the copies held back."""
        if self.sight.state == Answering.YES:
            self.held = self.held_octets = 0
        elif self.sight.state != Answering.ASKED or self.sight.late:  # with an entry its queue goes, too
            self.lose(self.held)

    def lose(self, copies: int) -> None:
        """Counts this many of the copies held back as lost."""
        octets = self.held_octets * copies // self.held if self.held else 0
        self.held -= copies
        self.held_octets -= octets
        self.lost += copies
        self.lost_octets += octets

    @property
    def kernel_bytes(self) -> int:
        """About what the copies held back would take in the kernel's queue (truesize of struct sk_buff): memory comes
        in powers of two, with some 600 bytes besides; the copies of a run share that.
        """
        if not self.held:
            return 0
        size = self.held_octets // self.held
        alone = min(self.held_calls / self.held, 1.0) if self.runs else 1.0  # how many leave alone, at a guess
        single = 256 + (1 << (size + 400).bit_length())
        return round(self.held * (alone * single + (1 - alone) * (size + 100)))

    def shown(self, totals: Sequence[int]) -> tuple[int, ...]:
        """Counters of the datapath as of the last look, corrected."""
        if not self.held and not self.lost:
            return tuple(totals)
        values = list(totals)
        values[OFFERED] -= self.held
        values[SENT] -= self.held + self.lost
        values[SENT_BYTES] -= self.held_octets + self.lost_octets
        values[NO_NEIGHBOR] += self.lost
        return tuple(values)


def nothing_left(accounts: Iterable[Account], now: float) -> None:
    """As take(), where no copies have left since the last look and nothing is held back."""
    for account in accounts:
        account.at = now


def settle(accounts: Iterable[Account]) -> None:
    """After take() of all. All receivers behind a next hop share its queue; what that cannot hold is lost."""
    holders: dict[Hop | None, list[Account]] = {}
    for account in accounts:
        if account.held:
            holders.setdefault(account.sight.hop, []).append(account)
    for group in holders.values():
        wanted = sum(account.kernel_bytes for account in group)
        for account in group:
            if wanted > QUEUE_BYTES:
                account.lose(account.held - account.held * QUEUE_BYTES // wanted)
            account.settle()
