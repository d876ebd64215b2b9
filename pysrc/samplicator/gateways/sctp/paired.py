"""A collector and its backup as if they were one: a `Session`, for who sends messages.

Purpose: a user that knows one session to one place (gateways.line) exports to a primary and a backup without knowing of
the two. Invariants: the session opens at once and takes everything; what waits is bounded by the export's buffer limit
and counted by its exporter; whenever another collector gets the data, it gets first what the user says that a collector
must know. Made by gateway. Must never look into a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from samplicator.gateways.budget import Budget
from samplicator.gateways.sctp.backlog import Before
from samplicator.gateways.sctp.export import Export
from samplicator.gateways.sctp.exporting import Exporter
from samplicator.gateways.sctp.rounds import Rounds
from samplicator.gateways.tally import OutTally
from samplicator.gateways.transport import Address, Events, Reliability, Transport
from samplicator.readings import AssociationReading, CollectorReading


@runtime_checkable
class Teller(Events, Protocol):
    """What a user of a pair must tell besides its events."""

    def templates(self) -> Sequence[bytes]:
        """Messages for stream 0 that a collector must have before data."""

    def records(self, message: bytes) -> int:
        """Flow records of a message."""

    def teaches(self) -> bool:
        """Asked while a message for stream 0 is sent: whether it has templates."""

    def replaced(self) -> Before | None:
        """Asked while a message for stream 0 is sent: if it is the first that replaces templates, those before."""

    @property
    def tally(self) -> OutTally:
        """Of the receiver; gets what its exporters' collectors did."""

    def again(self) -> None:
        """A collector has opened a session and has templates only: options data are to be sent again."""


class Pair:
    """See gateways.transport.Session. exporter: for what is shown."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Transport,
        export: Export,
        teller: Teller,
        rounds: Rounds,
        budget: Budget,
    ) -> None:
        self._export = export
        self._teller = teller
        self._loop = loop
        self._open = False
        self._closed = False
        self.exporter = Exporter(
            loop,
            transport,
            export,
            teller.templates,
            clock=loop.time,
            ended=self._ended,
            again=teller.again,
            tally=teller.tally,
            rounds=rounds,
            budget=budget,
        )
        loop.call_soon(self._begin)

    def _begin(self) -> None:
        if not self._closed:
            self._open = True
            self._teller.opened(self)

    def _ended(self) -> None:
        self._teller.closed(self, "closed here")

    @property
    def peer(self) -> Address:
        return self._export.primary.place

    @property
    def streams(self) -> int:
        return self._export.streams

    @property
    def unsent_bytes(self) -> int:
        return self.exporter.waiting_bytes

    @property
    def delivers(self) -> bool:
        return self.exporter.logic.any_well

    @property
    def association(self) -> AssociationReading:
        export, exporter = self._export, self.exporter
        return AssociationReading(
            reliability=export.reliability.value,
            mode=export.mode.value if export.backup is not None else "",
            buffer_limit=export.buffer_limit,
            fail_over_ms=export.fail_over_ms,
            restore_s=round(export.restore_s),
            fail_overs=exporter.fail_overs,
            waiting_flows=exporter.backlog.records,
            dropped_resources=exporter.dropped_resources.messages,
            dropped_failure=exporter.dropped_failure.messages,
            collectors=tuple(
                CollectorReading(
                    role=one.which.value,
                    place=one.place.text,
                    state=one.status.value,
                    why=one.last_error,
                    flows=one.counters.flows,
                    messages=one.counters.messages,
                    given_up=one.counters.given_up,
                )
                for one in exporter.shown()
            ),
        )

    @property
    def silent_since(self) -> float:
        return 0.0

    @property
    def transmissions(self) -> int:
        return 0

    def send(self, message: bytes, stream: int = 0, reliability: Reliability = Reliability.FULL) -> bool:
        if not self._open or self._closed:
            return False
        if stream:
            self.exporter.send(message, stream, self._teller.records(message))
        else:
            self.exporter.send(message, stream, 0, self._teller.replaced(), self._teller.teaches())
        return True

    def pause(self) -> None:
        """Nothing comes from collectors."""

    def resume(self) -> None:
        """Nothing comes from collectors."""

    def close(self, *, abort: bool = False) -> None:
        if not self._closed or abort:
            self._closed = True
            self.exporter.close(abort=abort)
