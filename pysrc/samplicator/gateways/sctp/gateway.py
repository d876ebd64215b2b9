"""SCTP as gateways use it: `Transport` of gateways.transport over the backend that the configuration names.

Purpose: one transport for all listeners and receivers, whatever backend each of them has. Invariants: a backend is made
when it is first used, and again when that did not work; so what the host lacks (a kernel with SCTP, a library, a right)
is the state of a place or of a session, and is tried again. Who connects gets a pair: a collector and its backup, or a
collector alone, with the queue, the switch and the counters of Cisco's exporters. Called by hub, in the thread of the
loop, but for check().
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from dataclasses import replace

from samplicator.gateways.budget import QUEUE_BYTES, Budget
from samplicator.gateways.sctp import choice
from samplicator.gateways.sctp.backup import Mode
from samplicator.gateways.sctp.export import Collector, Export
from samplicator.gateways.sctp.paired import Pair, Teller
from samplicator.gateways.sctp.rounds import Rounds
from samplicator.gateways.transport import Address, Ear, Events, Options, Reliability, Session, Transport
from samplicator.plan.sessions import Sctp

Make = Callable[[asyncio.AbstractEventLoop, Sctp], Transport]


def make(loop: asyncio.AbstractEventLoop, wanted: Sctp) -> Transport:
    """The backend. Raises OSError with the reasons when it cannot be had."""
    return choice.transport(loop, wanted.backend, udp_port=wanted.udp_port)


def export_of(place: Address, options: Options, wanted: Sctp) -> Export:
    """What to do for a collector at this place."""
    alone = Export(
        primary=Collector(place, options.name, options.source),
        reliability=Reliability(wanted.reliability),
        buffer_limit=wanted.buffer_limit,
        streams=wanted.streams,
        mtu=wanted.mtu,
    )
    backup = wanted.backup
    if backup is None or not backup.address:
        return alone
    return replace(
        alone,
        backup=Collector(Address(backup.address, backup.port, backup.scope_id), backup.host),
        mode=Mode(backup.mode),
        fail_over_ms=backup.fail_over_ms,
        restore_s=float(backup.restore_s),
    )


class Gateway:
    """See above."""

    versions = (9, 10)

    def __init__(self, loop: asyncio.AbstractEventLoop, make: Make = make) -> None:
        self._loop = loop
        self._make = make
        self._made: dict[tuple[str, int], Transport] = {}
        self._pairs: set[Pair] = set()
        self._rounds = Rounds()
        self._budget = Budget(QUEUE_BYTES)

    def _backend(self, wanted: Sctp) -> Transport:
        key = wanted.backend, wanted.udp_port if wanted.backend == choice.UDP else 0
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(self._loop, wanted)
        return found

    def listen(self, place: Address, events: Events, options: Options) -> Ear:
        wanted = options.sctp or Sctp()
        return self._backend(wanted).listen(place, events, options._replace(mtu=wanted.mtu))

    def connect(self, place: Address, events: Events, options: Options) -> Session:
        """events: a Teller, else TypeError."""
        if not isinstance(events, Teller):
            raise TypeError("who connects by SCTP must tell templates and records")
        wanted = options.sctp or Sctp()
        export = export_of(place, options, wanted)
        self._pairs = {pair for pair in self._pairs if not pair.exporter.is_over}
        pair = Pair(self._loop, self._backend(wanted), export, events, self._rounds, self._budget)
        self._pairs.add(pair)
        return pair

    def check(self, options: Options) -> None:
        if options.tls is not None:
            raise OSError(errno.EPROTONOSUPPORT, "SCTP has no TLS")

    def close(self) -> None:
        for pair in self._pairs:
            pair.close(abort=True)
        for transport in self._made.values():
            transport.close()
