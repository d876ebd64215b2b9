"""A collector and its backup as if they were one: a `Transport` over another one, for who sends messages.

Purpose: a user that knows one session to one place (gateways.line) exports to a primary and a backup without knowing of
the two. Invariants: the session opens at once and takes everything; what waits is bounded by the export's buffer limit
and counted by its exporter; whenever another collector gets the data, it gets first what the user says that a collector
must know. Called by the gateway. Must never look into a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from samplicator.gateways.sctp.exporting import Collector, Export, Exporter
from samplicator.gateways.transport import Address, Ear, Events, Options, Reliability, Session, Transport


@runtime_checkable
class Teller(Events, Protocol):
    """What a user of a pair must tell besides its events."""

    def templates(self) -> Sequence[bytes]:
        """Messages for stream 0 that a collector must have before data."""

    def records(self, message: bytes) -> int:
        """Flow records of a message."""


class Pair:
    """See gateways.transport.Session. exporter: for what is shown."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: Transport, export: Export, teller: Teller) -> None:
        self._export = export
        self._teller = teller
        self._loop = loop
        self._open = False
        self._closed = False
        self.exporter = Exporter(loop, transport, export, teller.templates, ended=self._ended, clock=loop.time)
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
    def silent_since(self) -> float:
        return 0.0

    @property
    def transmissions(self) -> int:
        return 0

    def send(self, message: bytes, stream: int = 0, reliability: Reliability = Reliability.FULL) -> bool:
        if not self._open or self._closed:
            return False
        self.exporter.send(message, stream, self._teller.records(message) if stream else 0)
        return True

    def pause(self) -> None:
        """Nothing comes from collectors."""

    def resume(self) -> None:
        """Nothing comes from collectors."""

    def close(self, *, abort: bool = False) -> None:
        if not self._closed or abort:
            self._closed = True
            self.exporter.close(abort=abort)


class Paired:
    """See gateways.transport.Transport. export: but for its primary, which is where `connect` goes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: Transport, export: Export) -> None:
        self._loop = loop
        self._transport = transport
        self._export = export
        self.pairs: list[Pair] = []

    @property
    def versions(self) -> tuple[int, ...]:
        return self._transport.versions

    def listen(self, place: Address, events: Events, options: Options) -> Ear:
        return self._transport.listen(place, events, options)

    def connect(self, place: Address, events: Events, options: Options) -> Session:
        """events: a Teller, else TypeError."""
        if not isinstance(events, Teller):
            raise TypeError("who uses a pair must tell templates and records")
        primary = Collector(place, options.name, options.source)
        self.pairs = [pair for pair in self.pairs if not pair.exporter.is_over]
        pair = Pair(self._loop, self._transport, replace(self._export, primary=primary), events)
        self.pairs.append(pair)
        return pair

    def check(self, options: Options) -> None:
        self._transport.check(options)

    def close(self) -> None:
        for pair in self.pairs:
            pair.close(abort=True)
