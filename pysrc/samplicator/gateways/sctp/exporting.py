"""Messages out to a collector and its backup, over any transport: associations, queue, switch and counters.

Purpose: what `Backup` decides and `Backlog` holds, put to work. Invariants: every record that was handed in is counted
once, as exported, dropped (with the reason), or still queued; a record that was exported may afterwards be counted as
given up; templates go before data after every switch; nothing waits and nothing is unbounded. All happens in the event
loop of the transport. Called by the gateway. Must never look into a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from samplicator.gateways.budget import Budget
from samplicator.gateways.sctp.backlog import Backlog, Before, Item
from samplicator.gateways.sctp.backup import Backup, Do, Which
from samplicator.gateways.sctp.export import Dropped, Export, Shown
from samplicator.gateways.sctp.rounds import Rounds
from samplicator.gateways.sctp.side import Side
from samplicator.gateways.tally import OutTally
from samplicator.gateways.transport import Options, Reliability, Transport

LEAST_FAIL_OVER_MS: Final = 10
"""An event loop in Python cannot tell less from its own delays."""
TICK_SECONDS: Final = 0.01
MOST_CONTROL: Final = 4096
"""Messages of stream 0 that wait for one collector; with more it is connected anew."""
MOST_TURNS: Final = 64
MOST_TURN_BYTES: Final = 8 << 20
"""Messages that wait for their turn because a template was replaced before; beyond that all begins anew."""
MOST_AT_ONCE: Final = 512
"""Messages that leave the queue before others get their turn."""


class Exporter:
    """templates: what a collector must know before it gets data, as messages for stream 0. ended: told once, after
    close(), when no association is left. again: told when a collector has opened a session, but for the first time that
    one does.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Transport,
        export: Export,
        templates: Callable[[], Sequence[bytes]],
        clock: Callable[[], float] = time.monotonic,
        ended: Callable[[], None] = lambda: None,
        again: Callable[[], None] = lambda: None,
        tally: OutTally | None = None,
        rounds: Rounds | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.export = export
        self.dropped_resources = Dropped()
        self.dropped_failure = Dropped()
        self.backlog = Backlog(export.buffer_limit, budget)
        self._loop = loop
        self._transport = transport
        self._templates = templates
        self._clock = clock
        self._told_ended = ended
        self._again = again
        self._tally = tally or OutTally()
        self._was_open = False
        self._missed = False  # stream 0 had something when a collector was not connected
        self._epoch = 0
        self._passed = 0  # the epoch of the last turn
        self._anew = False
        fail_over_ms = max(export.fail_over_ms, LEAST_FAIL_OVER_MS)
        self._heartbeat_ms = max(fail_over_ms // 4, 3)
        self._tick_seconds = min(TICK_SECONDS, self._heartbeat_ms / 1000)
        mode = export.mode if export.backup is not None else None
        self.logic = Backup(clock(), mode, fail_over_ms / 1000, export.restore_s)
        self._sides = {Which.PRIMARY: Side(self, Which.PRIMARY, export.primary)}
        if export.backup is not None:
            self._sides[Which.BACKUP] = Side(self, Which.BACKUP, export.backup)
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._late = False
        self._looked = clock()
        self._pause = self._tick_seconds
        self._rounds = rounds or Rounds()
        self._rounds.join(self.look, tuple(side.collector.place for side in self._sides.values()))
        self._tick()

    # ---- what the gateway does

    def send(
        self,
        message: bytes,
        stream: int,
        records: int,
        before: Before | None = None,
        teaches: bool = False,
    ) -> None:
        """stream: 0 = templates and options, which all collectors that are connected get; else data. records: flow
        records in it. before, teaches: see Item.
        """
        self._epoch += before is not None
        item = Item(message, stream, records, before, teaches, self._epoch)
        if not stream:
            self._missed = self._missed or not all(side.open for side in self._sides.values())
            if before is not None or self.backlog.turns:  # data of the old template goes first
                self._drop(self.backlog.put(item))
                if self.backlog.turns > MOST_TURNS or self.backlog.control_octets > MOST_TURN_BYTES:
                    self._begin_anew()
                self.pump()
                return
            self._to_all(item)
            self.pump()
            return
        if self.export.reliability is Reliability.NONE and not len(self.backlog):
            target = self._target()
            if target is None or target.control or not target.send(item):
                self._drop([item])
            return
        self._drop(self.backlog.put(item))
        self.pump()

    def shown(self) -> list[Shown]:
        return [
            Shown(which, side.collector.place, self.logic.status(which), replace(side.counters), side.last_error)
            for which, side in self._sides.items()
        ]

    @property
    def fail_overs(self) -> int:
        return self.logic.fail_overs

    @property
    def is_over(self) -> bool:
        """It was closed, and no association is left."""
        return self._ended and all(side.session is None for side in self._sides.values())

    @property
    def waiting_bytes(self) -> int:
        """What has not been sent, or is not acknowledged."""
        return self.backlog.octets + sum(side.session.unsent_bytes for side in self._sides.values() if side.session)

    def close(self, *, abort: bool = False) -> None:
        """Sends what can be sent now and ends; abort: without that."""
        before = -1
        while not abort and len(self.backlog) != before:
            before = len(self.backlog)
            self.pump()
        self._ended = True
        self._rounds.leave(self.look)
        if self._timer is not None:
            self._timer.cancel()
        for side in self._sides.values():
            if side.session is not None:
                side.session.close(abort=abort)
        if self.is_over:
            self._loop.call_soon(self._over)

    def _over(self) -> None:
        self._tally.unsent += len(self.backlog.clear())
        told, self._told_ended = self._told_ended, lambda: None
        told()

    # ---- what happens

    def side_opened(self, side: Side) -> None:
        self.logic.opened(side.which, self._clock())
        self._tally.opened += 1
        self._refresh(side)
        self._act()
        if (self._was_open or self._missed) and not self._anew:
            self._again()
        self._was_open = True
        self._missed = False
        self._anew = self._anew and not all(one.open for one in self._sides.values())

    def side_closed(self, side: Side) -> None:
        side.sent.clear()
        side.sent_bytes = 0
        side.control.clear()
        side.stalled = side.probed = side.settling = False
        returned, side.returned = side.returned, []
        side.counters.flows -= sum(item.records for item in returned)
        side.counters.messages -= len(returned)
        self.logic.closed(side.which, self._clock())
        # What was made with a template that has been replaced since cannot be decoded any more.
        data = [item for item in returned if item.stream]
        self._drop([item for item in data if item.epoch < self._passed])
        self._drop(self.backlog.put_back([item for item in data if item.epoch >= self._passed]))
        if self.is_over:
            self._over()
        self._act()

    def failed(self) -> None:
        """An association did not come to open."""
        self._tally.failed += 1

    def gave_up(self, records: int) -> None:
        """Flow records will not be delivered."""
        self._tally.given_up_flows += records

    def _refresh(self, side: Side) -> None:
        """Templates, before all else."""
        before = self.backlog.before
        side.control.clear()
        side.control.extend(
            Item(message, 0, 0, teaches=True) for message in (self._templates() if before is None else before())
        )

    def _begin_anew(self) -> None:
        """What waits is dropped, and collectors that do not know what they missed are connected anew."""
        self._drop(self.backlog.clear())
        self._passed, self._anew = self._epoch, True
        for side in self._sides.values():
            if side.session is not None and side.open:
                side.session.close(abort=True)

    def _target(self) -> Side | None:
        which = self.logic.target
        return self._sides[which] if which is not None else None

    def _drop(self, items: Sequence[Item]) -> None:
        if not items:
            return
        records = sum(item.records for item in items)
        if self.logic.any_well:
            self.dropped_resources.add(items)
            self._tally.no_resources += len(items)
            self._tally.no_resources_flows += records
        else:
            self.dropped_failure.add(items)
            self._tally.no_collector += len(items)
            self._tally.no_collector_flows += records

    def pump(self) -> None:
        """Sends what can be sent now."""
        self._send_control()
        target = self._target()
        if target is None:
            return
        for _ in range(MOST_AT_ONCE):
            item = self.backlog.first()
            if item is None or target.control or (item.stream and not target.send(item)):
                return
            if item.before is not None and target.session is not None and target.session.unsent_bytes:
                return  # if this collector fails now, another one can still get what is before it
            self.backlog.take()
            if not item.stream:
                self._passed = max(self._passed, item.epoch)
                self._to_all(item)
                self._send_control()

    def _send_control(self) -> None:
        for side in self._sides.values():
            while side.control and side.send(side.control[0]):
                side.control.popleft()

    def _to_all(self, item: Item) -> None:
        """A message for stream 0, to those that are connected."""
        for side in self._sides.values():
            if not side.open:
                continue
            side.control.append(item)
            if len(side.control) > MOST_CONTROL and side.session is not None:
                side.session.close(abort=True)

    def _act(self) -> None:
        if self._ended:
            return
        before = self.logic.fail_overs
        steps = self.logic.advance(self._clock())
        self._tally.fail_overs += self.logic.fail_overs - before
        for do, which in steps:
            side = self._sides[which]
            if do is Do.OPEN:
                self._open(side)
            elif do is Do.USE and not side.control:
                self._refresh(side)
            elif side.session is not None and do in (Do.CLOSE, Do.ABORT):
                side.session.close(abort=do is Do.ABORT)
        self.pump()

    def _open(self, side: Side) -> None:
        collector = side.collector
        options = Options(
            name=collector.name,
            source=collector.source,
            streams=self.export.streams,
            heartbeat_ms=self._heartbeat_ms,
            mtu=self.export.mtu,
        )
        try:
            side.session = self._transport.connect(collector.place, side, options)
        except OSError as error:
            side.last_error = error.strerror or str(error)
            self.logic.closed(side.which, self._clock())

    def _tick(self) -> None:
        now = self._clock()
        # After a delay of our own, what came meanwhile is read first; then silence is the peer's.
        self._late = not self._late and now - self._looked > self._pause + 3 * self._tick_seconds
        self._looked = now
        try:
            if not self._late:
                self.look()
            self._act()
        finally:  # whatever the user's templates do, time goes on
            if not self._ended:
                self._pause = max(self._tick_seconds, self._rounds.least_seconds)
                self._timer = self._loop.call_later(self._pause, self._tick)

    def look(self, alarm: bool = True) -> None:
        """At the collectors; alarm: others that have the same one look at once when it does not answer any more."""
        now, failed = self._clock(), []
        for side in self._sides.values():
            if side.session is None or not side.open or self._ended:
                continue
            before = self.logic.well(side.which)
            self.logic.looked_at(side.which, now, side.session.silent_since, side.session.transmissions)
            side.forget_delivered()
            if before and not self.logic.well(side.which):
                failed.append(side.collector.place)
        if failed:
            self._act()
        for place in failed if alarm else ():
            for other in self._rounds.others(self.look, place):
                self._loop.call_soon(other, False)
