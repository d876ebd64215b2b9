"""Accounts: the counters of receivers as shown, corrected by the neighbor table.

The datapath counts copies as sent that the kernel holds for a next hop without an address (datapath/account.py). Called
by supervisor, which informs the ways, and by view, which shows the counters. Invariants: one check at a time; the
totals are read before the table, so the result applies to all of them. It must never wait for a worker.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections.abc import Sequence

from samplicator.datapath.account import SEGMENTING, nothing_left, settle
from samplicator.health.receiver import ReceiverState
from samplicator.host.neighbors import NOWHERE, Neighbors
from samplicator.logs import RateGate

log = logging.getLogger(__name__)


class Accounts:
    """One per process."""

    def __init__(self) -> None:
        self._neighbors = Neighbors()
        self._lock = threading.Lock()  # taken within the supervisor's or alone
        self._gate = RateGate()

    def take(self, states: Sequence[ReceiverState]) -> tuple[list[tuple[int, ...]], set[str] | None]:
        """The counters of each receiver as shown, and the names of receivers whose next hop does not answer; None: the
        kernel cannot be asked now.
        """
        with self._lock:
            totals = [state.totals() for state in states]
            try:
                here = {s.spec.name: s.spec.network for s in states}
                gone = self._neighbors.look(
                    {name: (udp.address, udp.scope_id) for name, udp in here.items() if udp is not None}
                )
            except (OSError, struct.error) as error:
                if self._gate.add(("neighbors",), 1, time.monotonic()):
                    log.warning("the neighbor table cannot be read now: %s", error)
                gone, sights = None, {}
            else:
                sights = {**self._neighbors.sights, **{name: NOWHERE for name, udp in here.items() if udp is None}}
            now = time.monotonic()
            accounts = [state.standing.account for state in states]
            for state, account, counted in zip(states, accounts, totals, strict=True):
                account.runs = state.spec.engine in SEGMENTING
                account.take(counted, sights.get(state.spec.name, account.sight), now)
            settle(accounts)
            return [account.shown(counted) for account, counted in zip(accounts, totals, strict=True)], gone

    def rest(self, states: Sequence[ReceiverState], now: float) -> None:
        """Instead of take(), where no copies have left since and nothing is held back. now: monotonic."""
        with self._lock:
            nothing_left((state.standing.account for state in states), now)
