"""A gateway's line to a collector that has a backup: numbers, templates and withdrawals as both collectors see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from samplicator.gateways.budget import Budget
from samplicator.gateways.line import Line
from samplicator.gateways.sctp import exporting, rounds
from samplicator.gateways.sctp.backup import Status
from samplicator.gateways.sctp.gateway import Gateway
from samplicator.gateways.sctp.paired import Pair
from samplicator.gateways.tally import OutTally
from samplicator.gateways.transport import Options
from samplicator.plan.sessions import Backup, Sctp
from samplicator.readings import AssociationReading
from support import flows as model
from support.flows import a_set, template
from support.sctp import Log, Time, Wires, host, place

FIRST, SECOND = "192.0.2.9", "192.0.2.10"
TEACH = model.ipfix(0, 1, a_set(2, template(256, [(8, 4), (12, 4)])))
OTHER = [(1, 8)]


def data(sequence: int) -> bytes:
    return model.ipfix(sequence, 1, a_set(256, sequence.to_bytes(8, "big")))


class Stand:
    def __init__(self) -> None:
        self.time = Time()
        self.wires = Wires(self.time)
        self.relay = host(self.wires, "192.0.2.1")
        self.logs = {FIRST: Log(), SECOND: Log()}
        self.hosts = [host(self.wires, address) for address in self.logs]
        for port, (one, log) in enumerate(zip(self.hosts, self.logs.values(), strict=True), 9000):
            one.listen(place("0.0.0.0", port), log, Options(streams=8))
        loop: Any = self.time
        backup = Backup(place(SECOND, 9001).address, 9001, 0, SECOND, "redundant", 50, 2)
        self.options = Options(sctp=Sctp(backup=backup))
        self.gateway = Gateway(loop, lambda loop, wanted: self.relay)
        self.tally = OutTally()
        exporter, target = place("198.51.100.7", 2055), place(FIRST, 9000)
        more = self.tally, Budget(), lambda count: None, lambda: None
        self.line = Line(loop, self.gateway, exporter, target, self.options, *more)
        self.sent = 0

    def flow(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.005)):
            self.line.take(data(self.sent))
            self.sent += 1
            self.time.run(0.005)

    def sets(self, address: str) -> list[tuple[int, int, int]]:
        """(stream, sequence, identity of the first set) of what arrived."""
        found = []
        for _, stream, message in self.logs[address].messages:
            parsed = model.parse(message)
            assert parsed is not None
            found.append((stream, parsed.sequence, parsed.sets[0].identity))
        return found

    def association(self) -> AssociationReading:
        found = self.line.association
        assert found is not None
        return found

    def states(self) -> list[Status]:
        return [Status(one.state) for one in self.association().collectors]

    def close(self) -> None:
        self.line.end(abort=True)
        self.time.run(0.5)
        assert self.line.ended
        for one in (self.relay, *self.hosts):
            one.close()
        self.time.run(0.5)


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.close()


def test_both_know_the_templates_and_numbers_go_on(stand: Stand) -> None:
    stand.line.take(TEACH)
    stand.line.take(TEACH)  # by UDP they come again and again
    stand.flow(0.3)
    assert stand.sets(SECOND) == [(0, 0, 2)]
    first = stand.sets(FIRST)
    assert first[0] == (0, 0, 2)
    assert first[1:] == [(1, n, 256) for n in range(stand.sent)]
    stand.wires.dead.add(FIRST)
    stand.time.until(lambda: stand.flow(0.005) or len(stand.sets(SECOND)) > 2)  # type: ignore[func-returns-value]
    second = stand.sets(SECOND)
    assert [one for one in second if one[0] == 0] == [(0, 0, 2), (0, 0, 2)]
    numbers = [sequence for stream, sequence, _ in second if stream == 1]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert stand.states() == [Status.RE_ESTABLISHING, Status.FAIL_OVER]
    assert stand.association().fail_overs == stand.tally.fail_overs == 1
    assert stand.line.delivers
    assert stand.tally.opened == 2


def test_a_changed_template_is_withdrawn_at_both(stand: Stand) -> None:
    stand.line.take(TEACH)
    stand.flow(0.2)
    stand.line.take(model.ipfix(stand.sent, 1, a_set(2, template(256, OTHER))))
    stand.time.run(0.2)
    for address in (FIRST, SECOND):
        control = [message for _, stream, message in stand.logs[address].messages if stream == 0]
        assert len(control) == 3
        assert control[0] == TEACH
        assert control[1][16:] == bytes.fromhex("0002000801000000")


def test_records_are_counted_and_what_waits_is_bounded(stand: Stand) -> None:
    stand.line.take(TEACH)
    stand.flow(0.2)
    stand.wires.dead |= {FIRST, SECOND}
    stand.time.until(lambda: stand.states() == [Status.RE_ESTABLISHING, Status.RE_ESTABLISHING])
    sent = stand.sent
    stand.flow(7.0)
    found = stand.association()
    assert found.waiting_flows == 1024
    assert found.dropped_failure == stand.tally.no_collector == stand.sent - sent - 1024
    assert stand.tally.no_collector_flows == found.dropped_failure  # one record in each
    assert found.dropped_resources == stand.tally.no_resources == 0
    assert sum(one.flows for one in found.collectors) == sent


def test_the_line_ends_with_both_associations(stand: Stand) -> None:
    stand.line.take(TEACH)
    stand.flow(0.2)
    stand.line.end()
    stand.time.until(lambda: stand.line.ended)
    stand.time.until(lambda: all(len(log.closed_) == 1 for log in stand.logs.values()))
    assert [why for log in stand.logs.values() for _, why in log.closed_] == ["", ""]
    assert len(stand.sets(FIRST)) == stand.sent + 1


def changes(stand: Stand, rounds: int) -> None:
    """Data by one template, then by another with the same number, and so on. Records are 8 or 16 bytes long."""
    for n in range(rounds):
        long = n % 2
        fields = [(1, 8), (2, 8)] if long else [(8, 4), (12, 4)]
        stand.line.take(model.ipfix(stand.sent, 1, a_set(2, template(256, list(fields)))))
        for _ in range(10):
            stand.line.take(model.ipfix(stand.sent, 1, a_set(256, stand.sent.to_bytes(8, "big") + bytes(8 * long))))
            stand.sent += 1


def whole(log: Log, sizes: dict[int, int], least: int = 0) -> list[int]:
    """Numbers of the data that came, from the least on; each has the size that its template says."""
    known, found = 0, []
    for _, stream, message in log.messages:
        if stream == 0:
            body = message[16:]
            known = {a_set(2, template(256, [(1, 8), (2, 8)])): 16, a_set(2, template(256, [(8, 4), (12, 4)])): 8}.get(
                body, known
            )
        else:
            number = int.from_bytes(message[20:28], "big")
            if number >= least:
                assert known == sizes[number // 10 % 2], number
                found.append(number)
    return found


@pytest.mark.parametrize("lost", [0.0, 0.2])
def test_data_goes_by_the_template_that_it_was_made_with(stand: Stand, lost: float) -> None:
    """Streams keep no order among each other, and what waits is older than what a collector is told at first."""
    stand.wires.loses = lambda packet: stand.wires.random.random() < lost
    stand.time.real = True
    changes(stand, 6)

    def arrived() -> list[int]:
        return [number for log in stand.logs.values() for number in whole(log, {0: 8, 1: 16})]

    # What a collector had not acknowledged when it failed may be too old for the templates that came since.
    stand.time.until(lambda: len(arrived()) + stand.association().dropped_resources == 60, 120)
    assert len(set(arrived())) == len(arrived())
    assert lost or whole(stand.logs[FIRST], {0: 8, 1: 16}) == list(range(60))


def test_what_waits_while_nobody_is_there_goes_by_its_templates(stand: Stand) -> None:
    stand.line.take(TEACH)
    stand.flow(0.1)
    stand.wires.dead |= {FIRST, SECOND}
    stand.time.until(lambda: stand.states() == [Status.RE_ESTABLISHING, Status.RE_ESTABLISHING])
    stand.sent = 1000
    changes(stand, 6)
    stand.time.run(15.0)  # the associations are given up
    for log in stand.logs.values():
        log.messages.clear()
    stand.wires.dead.clear()
    found: list[int] = []

    def all_there() -> bool:
        nonlocal found
        found = [n for log in stand.logs.values() for n in whole(log, {0: 8, 1: 16}, 1000)]
        return len(found) == 60

    stand.time.until(all_there, 60)
    assert sorted(found) == list(range(1000, 1060))


def test_templates_that_change_without_end_cost_a_bounded_memory(stand: Stand) -> None:
    """Then the associations begin anew, with what is valid now; what waited is counted as dropped."""
    stand.line.take(TEACH)
    stand.flow(0.1)
    stand.wires.dead |= {FIRST, SECOND}
    stand.time.until(lambda: stand.states() == [Status.RE_ESTABLISHING, Status.RE_ESTABLISHING])
    before = stand.sent
    stand.sent = 1000
    changes(stand, 71)
    found = stand.association()
    assert found.dropped_failure + found.waiting_flows == 710
    assert found.dropped_failure >= 300
    stand.time.run(1.0)
    for log in stand.logs.values():
        log.messages.clear()
    stand.wires.dead.clear()
    stand.time.until(lambda: stand.association().waiting_flows == 0, 60)
    stand.time.run(1.0)
    arrived = [n for log in stand.logs.values() for n in whole(log, {0: 8, 1: 16}, 1000)]
    assert len(arrived) == 710 - found.dropped_failure
    assert before > 0


def test_what_has_no_records_is_bounded_too(stand: Stand) -> None:
    """A header that says 0 records, or a message without sets, costs the same memory as others."""
    stand.line.take(TEACH)
    stand.flow(0.1)
    stand.wires.dead |= {FIRST, SECOND}
    stand.time.until(lambda: stand.states() == [Status.RE_ESTABLISHING, Status.RE_ESTABLISHING])
    for n in range(5000):
        stand.line.take(model.v9(n, 7, a_set(300, bytes(1000)), count=0))
        stand.line.take(model.ipfix(0, 9))
    session = stand.line._session
    assert isinstance(session, Pair)
    assert len(session.exporter.backlog) <= 1025
    assert session.exporter.backlog.octets <= 8 << 20
    assert stand.tally.no_collector > 8000


def test_a_template_that_is_replaced_while_the_primary_is_silent(stand: Stand) -> None:
    """Data that the primary had not acknowledged comes back later than the new template went to the backup: it is
    counted as dropped, because nobody could decode it.
    """
    changes(stand, 1)
    stand.time.until(lambda: len(whole(stand.logs[FIRST], {0: 8, 1: 16})) == 10)
    stand.wires.dead.add(FIRST)
    for _ in range(5):  # in flight
        stand.line.take(model.ipfix(stand.sent, 1, a_set(256, (stand.sent % 10).to_bytes(8, "big"))))
        stand.sent += 1
    stand.time.until(lambda: stand.states()[1] is Status.FAIL_OVER)
    stand.sent = 10
    stand.line.take(model.ipfix(15, 1, a_set(2, template(256, [(1, 8), (2, 8)]))))
    for _ in range(10):
        stand.line.take(model.ipfix(stand.sent + 5, 1, a_set(256, stand.sent.to_bytes(8, "big") + bytes(8))))
        stand.sent += 1
    stand.time.until(lambda: len(whole(stand.logs[SECOND], {0: 8, 1: 16})) >= 10)
    stand.time.run(30.0)  # the primary's association is given up
    found = whole(stand.logs[SECOND], {0: 8, 1: 16})
    assert [n for n in found if n >= 10] == list(range(10, 20))
    assert len(found) + stand.association().dropped_resources == 15


def test_options_data_do_not_keep_data_waiting(stand: Stand) -> None:
    """Data wait until new templates are acknowledged; what goes on beside them on stream 0 must not prolong that."""
    stand.wires.latency = 0.05
    options = model.options_template(model.IPFIX, 258, [(10, 4)], [(41, 4)])
    stand.line.take(model.ipfix(0, 1, a_set(2, template(256, [(8, 4), (12, 4)])), a_set(3, options)))
    for n in range(100):
        stand.line.take(model.ipfix(2 * n, 1, a_set(258, n.to_bytes(8, "big"))))
        stand.line.take(model.ipfix(2 * n + 1, 1, a_set(256, n.to_bytes(8, "big"))))
        stand.time.run(0.05)
    stand.time.run(2.0)
    data = [message for _, stream, message in stand.logs[FIRST].messages if stream]
    assert len(data) == 100


def test_options_data_that_came_too_early_are_asked_for(stand: Stand) -> None:
    asked = []
    stand.line._was_again = lambda: asked.append(stand.time.now)
    options = model.options_template(model.IPFIX, 258, [(10, 4)], [(41, 4)])
    stand.line.take(model.ipfix(0, 1, a_set(3, options)))
    stand.line.take(model.ipfix(0, 1, a_set(258, bytes(8))))
    stand.time.until(lambda: stand.states() == [Status.CONNECTED, Status.CONNECTED])
    assert asked


def test_a_message_that_would_be_too_long_is_left_out(stand: Stand) -> None:
    """Of thousands of short sets, which NetFlow v9 pads to four bytes; those that follow go on."""
    options = (300).to_bytes(2, "big") + bytes([0, 4, 0, 4, 0, 1, 0, 1, 0, 41, 0, 0])
    stand.line.take(model.v9(0, 7, a_set(1, options), a_set(0, template(256, [(8, 4), (12, 4)])), count=2))
    stand.time.until(lambda: stand.states()[0] is Status.CONNECTED)
    sets = b"".join((300).to_bytes(2, "big") + b"\0\5x" for _ in range(13_000))
    stand.line.take(model.v9(1, 7, sets, a_set(256, bytes(8)), count=13_001))
    for n in range(2, 12):
        stand.line.take(model.v9(n, 7, a_set(256, n.to_bytes(8, "big")), count=1))
    stand.time.until(lambda: len([one for one in stand.logs[FIRST].messages if one[1]]) >= 10)
    assert stand.tally.not_ipfix == 1


def test_one_that_finds_a_failure_calls_the_others_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many exporters to one collector: all switch as fast as one would, without each of them calling all others."""
    called = []
    real = exporting.Exporter.look

    def look(self: exporting.Exporter, alarm: bool = True) -> None:
        called.append(alarm)
        real(self, alarm)

    monkeypatch.setattr(exporting.Exporter, "look", look)
    monkeypatch.setattr(rounds, "MOST_PER_SECOND", 400)
    stand, lines = Stand(), []
    try:
        for n in range(40):
            place_of = place(f"198.51.100.{n + 1}", 2055)
            more = stand.tally, Budget(), lambda count: None, lambda: None
            loop: Any = stand.time
            lines.append(Line(loop, stand.gateway, place_of, place(FIRST, 9000), stand.options, *more))
            lines[-1].take(TEACH)
        whole_lot = [stand.line, *lines]

        def backup(state: str) -> bool:
            return all(one.association and one.association.collectors[1].state == state for one in whole_lot)

        stand.time.until(lambda: backup("connected"))
        stand.time.run(1.0)
        called.clear()
        stand.wires.dead.add(FIRST)
        took = stand.time.until(lambda: backup("fail-over"))
        assert took < 0.15
        assert 40 <= called.count(False) <= 3 * 40
    finally:
        for one in lines:
            one.end(abort=True)
        stand.close()
