"""Exporting to a primary and a backup: what arrives where, in which order, and what the counters say. No network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from samplicator.gateways.sctp import association
from samplicator.gateways.sctp import packet as sctp
from samplicator.gateways.sctp.backup import Mode, Status, Which
from samplicator.gateways.sctp.export import Collector, Export
from samplicator.gateways.sctp.exporting import Exporter
from samplicator.gateways.transport import Options, Reliability
from support.sctp import Log, Time, Wires, host, place

FIRST, SECOND = "192.0.2.9", "192.0.2.10"
TEMPLATES = [b"template %d........" % n for n in range(3)]
RECORDS = 10
FORWARD_TSN = 192


class Stand:
    """A relay, a primary and a backup collector. One message carries RECORDS records."""

    def __init__(self) -> None:
        self.time = Time()
        self.wires = Wires(self.time)
        self.relay = host(self.wires, "192.0.2.1")
        self.hosts = {FIRST: host(self.wires, FIRST), SECOND: host(self.wires, SECOND)}
        self.logs = {FIRST: Log(), SECOND: Log()}
        for port, (address, one) in enumerate(self.hosts.items(), 9000):
            one.listen(place("0.0.0.0", port), self.logs[address], Options(streams=8))
        self.exporters: list[Exporter] = []
        self.sent = 0

    def export(self, **options: Any) -> Exporter:
        primary, backup = Collector(place(FIRST, 9000)), Collector(place(SECOND, 9001))
        loop: Any = self.time
        export = Export(**{"primary": primary, "backup": backup, "fail_over_ms": 50, "restore_s": 5.0, **options})
        self.exporters.append(Exporter(loop, self.relay, export, lambda: TEMPLATES, self.time.clock))
        return self.exporters[-1]

    def flow(self, exporter: Exporter, seconds: float, size: int = 200) -> None:
        """A message every 5 ms."""
        for _ in range(round(seconds / 0.005)):
            exporter.send(self.sent.to_bytes(4, "big") + bytes(size), 1 + self.sent % 2, RECORDS)
            self.sent += 1
            self.time.run(0.005)

    def got(self, address: str) -> list[int]:
        return [
            int.from_bytes(message[:4], "big") for message in self.logs[address].payloads() if message not in TEMPLATES
        ]

    def kinds(self) -> list[int]:
        """Of the chunks that went over the wires."""
        return [chunk.kind for _, packet in self.wires.seen for chunk in packet.chunks]

    def templates(self, address: str) -> int:
        return sum(stream == 0 for _, stream, _ in self.logs[address].messages)

    def balance(self, exporter: Exporter) -> None:
        """Each record is counted once."""
        shown = exporter.shown()
        exported = sum(one.counters.flows for one in shown)
        dropped = exporter.dropped_resources.records + exporter.dropped_failure.records
        assert exported + dropped + exporter.backlog.records == self.sent * RECORDS

    def close(self) -> None:
        for exporter in self.exporters:
            exporter.close(abort=True)
        for one in (self.relay, *self.hosts.values()):
            one.close()
        self.time.run(1)


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.close()


def states(exporter: Exporter) -> list[Status]:
    return [one.status for one in exporter.shown()]


def test_redundant(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates at the backup before any fault and no data; after the cut data there, and back after the restore time;
    what the primary had not acknowledged arrives there later.
    """
    monkeypatch.setattr(association, "RTO_MS", (20, 10, 40))
    stand.time.real = True
    exporter = stand.export(mode=Mode.REDUNDANT, restore_s=1.0)
    stand.time.until(lambda: stand.templates(SECOND) == 3)
    stand.flow(exporter, 0.3)
    assert stand.got(SECOND) == []
    assert states(exporter) == [Status.CONNECTED, Status.CONNECTED]
    stand.wires.dead.add(FIRST)
    cut, before = stand.time.now, stand.sent
    stand.time.until(lambda: stand.flow(exporter, 0.005) or bool(stand.got(SECOND)))  # type: ignore[func-returns-value]
    assert stand.time.now - cut < 0.15
    assert states(exporter) == [Status.RE_ESTABLISHING, Status.FAIL_OVER]
    assert stand.templates(SECOND) == 6
    stand.flow(exporter, 0.4)
    stand.wires.dead.clear()
    healed = stand.time.now
    stand.time.until(lambda: stand.flow(exporter, 0.005) or states(exporter)[1] is Status.CONNECTED)  # type: ignore[func-returns-value]
    assert 0.9 < stand.time.now - healed < 1.3
    stand.flow(exporter, 0.3)
    stand.time.run(1.0)
    assert exporter.fail_overs == 1
    assert sorted(stand.got(FIRST) + stand.got(SECOND)) == list(range(stand.sent))
    assert before in range(stand.sent)
    stand.balance(exporter)
    assert exporter.dropped_resources.records == exporter.dropped_failure.records == 0


def test_fail_over(stand: Stand) -> None:
    """No association to the backup before; then templates first, on stream 0."""
    exporter = stand.export(mode=Mode.FAIL_OVER)
    stand.flow(exporter, 0.5)
    assert stand.logs[SECOND].sessions == []
    assert states(exporter) == [Status.CONNECTED, Status.NOT_CONNECTED]
    stand.wires.dead.add(FIRST)
    cut = stand.time.now
    stand.time.until(lambda: stand.flow(exporter, 0.005) or bool(stand.got(SECOND)))  # type: ignore[func-returns-value]
    assert stand.time.now - cut < 0.25
    first = [(stream, message) for _, stream, message in stand.logs[SECOND].messages[:3]]
    assert first == [(0, message) for message in TEMPLATES]
    stand.flow(exporter, 0.2)
    stand.wires.dead.clear()
    stand.time.until(lambda: stand.flow(exporter, 0.005) or states(exporter)[0] is Status.CONNECTED)  # type: ignore[func-returns-value]
    answered = stand.time.now
    stand.time.until(lambda: stand.flow(exporter, 0.005) or exporter.logic.target is Which.PRIMARY)  # type: ignore[func-returns-value]
    assert 4.9 < stand.time.now - answered < 5.4
    stand.time.until(lambda: len(stand.logs[SECOND].closed_) == 1)
    assert exporter.fail_overs == 1
    stand.balance(exporter)


def test_a_cut_within_the_restore_time_begins_it_anew(stand: Stand) -> None:
    exporter = stand.export(mode=Mode.REDUNDANT)
    stand.flow(exporter, 0.2)
    for _ in range(2):
        stand.wires.dead.add(FIRST)
        stand.time.until(lambda: states(exporter)[0] is Status.RE_ESTABLISHING)
        stand.time.run(0.5)
        stand.wires.dead.clear()
        stand.time.until(lambda: states(exporter)[0] is Status.CONNECTED)
        answered = stand.time.now
        stand.time.run(4.8)
    assert states(exporter)[1] is Status.FAIL_OVER
    stand.time.until(lambda: states(exporter)[1] is Status.CONNECTED)
    assert 5.0 <= stand.time.now - answered <= 5.3
    assert exporter.fail_overs == 1


@pytest.mark.parametrize("reliability", list(Reliability))
def test_both_down(stand: Stand, reliability: Reliability) -> None:
    exporter = stand.export(mode=Mode.FAIL_OVER, reliability=reliability, buffer_limit=100)
    stand.flow(exporter, 0.2)
    stand.wires.dead |= {FIRST, SECOND}
    stand.time.until(lambda: states(exporter)[0] is Status.RE_ESTABLISHING)
    before, at_first = stand.sent, exporter.dropped_failure.records
    stand.flow(exporter, 1.0)
    assert states(exporter) == [Status.RE_ESTABLISHING, Status.INITIALISING]
    lost = (stand.sent - before) * RECORDS
    queued = 0 if reliability is Reliability.NONE else 100
    assert exporter.dropped_failure.records - at_first == lost - queued
    assert exporter.dropped_resources.records == 0
    assert exporter.backlog.records == queued
    stand.balance(exporter)


def test_data_that_is_not_acknowledged_while_heartbeats_are(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(association, "RTO_MS", (20, 10, 40))
    stand.time.real = True
    exporter = stand.export(mode=Mode.REDUNDANT)
    stand.flow(exporter, 0.2)
    port = next(iter(stand.relay.sessions())).other.port

    def data_to_the_primary(packet: sctp.Packet) -> bool:
        return packet.destination_port == port == 9000 and any(chunk.kind == sctp.DATA for chunk in packet.chunks)

    stand.wires.loses = data_to_the_primary
    stand.time.until(lambda: stand.flow(exporter, 0.005) or bool(stand.got(SECOND)), 10)  # type: ignore[func-returns-value]
    assert exporter.fail_overs == 1
    assert states(exporter) == [Status.RE_ESTABLISHING, Status.FAIL_OVER]


@pytest.mark.parametrize("size", [1000, 20_000])
@pytest.mark.parametrize("reliability", [Reliability.PARTIAL, Reliability.FULL])
def test_a_collector_that_stops_reading(reliability: Reliability, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest records wait, the oldest are dropped and counted; then it reads again, and each is accounted for.
    With PARTIAL the collector is told what was given up (FORWARD TSN), with FULL nothing is.
    """
    monkeypatch.setattr(association, "LIFETIME_MS", 700)
    monkeypatch.setattr(association, "RECEIVE_BYTES", 100_000)
    stand = Stand()
    stand.time.real = True
    exporter = stand.export(backup=None, reliability=reliability, buffer_limit=128)
    stand.time.until(lambda: bool(stand.logs[FIRST].sessions) and stand.templates(FIRST) == 3)
    session = stand.logs[FIRST].sessions[0]
    session.pause()
    stand.wires.keeps = True
    while exporter.dropped_resources.records < 2000:
        stand.flow(exporter, 0.005, size)
    stand.balance(exporter)
    assert 128 - RECORDS < exporter.backlog.records <= 128
    queued, last = exporter.backlog.records // RECORDS, stand.sent
    told = [FORWARD_TSN] if reliability is Reliability.PARTIAL else []
    if told:
        stand.time.until(lambda: FORWARD_TSN in stand.kinds(), 30)
        stand.time.run(2.0)  # the newest are not given up, too, though it still does not read
    session.resume()
    stand.time.until(lambda: last - 1 in stand.got(FIRST), 60)
    stand.time.run(1.0)
    got = stand.got(FIRST)
    assert len(got) == len(set(got))
    for stream in (1, 2):
        numbers = [number for number in got if 1 + number % 2 == stream]
        assert numbers == sorted(numbers)
    assert set(range(last - queued, last)) <= set(got)
    given_up = exporter.shown()[0].counters.given_up
    assert (given_up > 0) == bool(told)
    assert [kind for kind in stand.kinds() if kind == FORWARD_TSN][:1] == told
    assert exporter.dropped_failure.records == 0
    assert len(got) * RECORDS + given_up + exporter.dropped_resources.records == stand.sent * RECORDS
    assert stand.templates(FIRST) == 3
    stand.close()


def test_what_an_association_could_not_deliver_goes_to_the_backup(stand: Stand) -> None:
    """The primary never comes back: after the abort what it had not acknowledged is sent to the backup, once."""
    exporter = stand.export(mode=Mode.REDUNDANT)
    stand.flow(exporter, 0.5)
    stand.wires.dead.add(FIRST)
    stand.flow(exporter, 0.5)
    stand.time.until(lambda: len(set(stand.got(FIRST) + stand.got(SECOND))) == stand.sent, 30)
    assert len(stand.got(SECOND)) == len(set(stand.got(SECOND)))
    stand.balance(exporter)
    assert exporter.shown()[0].which is Which.PRIMARY
    assert exporter.shown()[0].last_error == "closed here"


def test_a_collector_that_restarts_gets_templates_first(stand: Stand) -> None:
    exporter = stand.export(backup=None)
    stand.flow(exporter, 0.2)
    stand.logs[FIRST].sessions[0].close(abort=True)
    stand.time.until(lambda: states(exporter)[0] is Status.RE_ESTABLISHING)
    stand.time.until(lambda: stand.flow(exporter, 0.005) or len(stand.logs[FIRST].sessions) == 2)  # type: ignore[func-returns-value]
    stand.flow(exporter, 0.2)
    again = [
        (stream, message)
        for session, stream, message in stand.logs[FIRST].messages
        if session is stand.logs[FIRST].sessions[1]
    ]
    assert again[:3] == [(0, message) for message in TEMPLATES]
    stand.balance(exporter)


def test_new_templates_go_to_all_that_are_connected(stand: Stand) -> None:
    exporter = stand.export(mode=Mode.REDUNDANT)
    stand.time.until(lambda: stand.templates(FIRST) == stand.templates(SECOND) == 3)
    exporter.send(b"template new.....", 0, 0)
    stand.time.until(lambda: stand.templates(FIRST) == stand.templates(SECOND) == 4)


def test_a_collector_with_one_stream_gets_all_on_it(stand: Stand) -> None:
    exporter = stand.export(backup=None, streams=1)
    stand.time.until(lambda: states(exporter)[0] is Status.CONNECTED)
    stand.flow(exporter, 0.1)
    stand.time.run(0.5)
    assert {stream for _, stream, _ in stand.logs[FIRST].messages} == {0}
    assert len(stand.got(FIRST)) == stand.sent


def test_fewer_streams_than_wanted_are_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(association, "STREAMS_IN", 2)
    stand = Stand()
    try:
        exporter = stand.export(backup=None, streams=3)
        stand.time.until(lambda: states(exporter)[0] is Status.CONNECTED)
        stand.flow(exporter, 0.1)
        stand.time.run(0.5)
        assert {stream for _, stream, _ in stand.logs[FIRST].messages} == {0, 1}
        assert len(stand.got(FIRST)) == stand.sent
        assert [record.getMessage() for record in caplog.records] == [
            f"the collector {FIRST}:9000 accepts 2 of 3 streams; messages of several streams share one, in which an "
            "IPFIX collector then sees wrong sequence numbers; write streams = 2, or have it accept more"
        ]
    finally:
        stand.close()
