"""SCTP between namespaces: a relay, a primary collector and its backup, with nftables for what fails between them.

The same tests run with the kernel's SCTP where there is one (`SCTP_BACKEND`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from samplicator.gateways.sctp import association, choice, kernelsession, linux
from samplicator.gateways.sctp.backup import Mode, Status, Which
from samplicator.gateways.sctp.exporting import Exporter
from samplicator.gateways.transport import Options, Reliability
from support.associations import PORT, RECORDS, TEMPLATES, Stand, backend, place, states, transport_in
from support.lab import Lab

pytestmark = pytest.mark.deploy_heavy  # by `make verify-sctp`; tests/unit has the same scenarios without a network


@pytest.fixture
def stand(lab: Lab) -> Iterator[Stand]:
    made = Stand(lab)
    made.listen()
    yield made
    made.close()


def balance(stand: Stand, exporter: Exporter) -> None:
    exported = sum(one.counters.flows for one in exporter.shown())
    dropped = exporter.dropped_resources.records + exporter.dropped_failure.records
    assert exported + dropped + exporter.backlog.records == stand.sent * RECORDS


def test_messages_of_all_sizes_both_families_and_no_threads(stand: Stand) -> None:
    before = threading.active_count()
    for family, target in enumerate((stand.lab.peer4(1), stand.lab.peer6(1))):
        if family:
            stand.hosts[0].listen(place("::", PORT), stand.logs[0], Options(streams=8))
        already = len(stand.logs[0].messages)
        here = type(stand.logs[0])()
        session = stand.relay.connect(place(target, PORT), here, Options(streams=4))
        stand.until(lambda: bool(here.sessions))  # noqa: B023
        sizes = (16, 1400, 1500, 9000, 65535)
        for number, size in enumerate(sizes):
            stand.until(lambda: session.send(bytes([number]) * size, number % 4))  # noqa: B023
        stand.until(lambda: len(stand.logs[0].messages) == already + len(sizes))  # noqa: B023
        assert sorted(len(one) for _, _, one in stand.logs[0].messages[already:]) == list(sizes)
        assert (
            stand.logs[0].sessions[-1].peer.address
            == place(stand.lab.relay6(1) if family else stand.lab.relay4(1), PORT).address
        )
    assert threading.active_count() == before


def test_redundant(stand: Stand) -> None:
    """2: templates at the backup before any fault, no data; after the cut data there within 150 ms; nothing is lost."""
    exporter = stand.export(mode=Mode.REDUNDANT, restore_s=2.0)
    stand.until(lambda: stand.templates(1) == len(TEMPLATES))
    stand.run(0.5, exporter)
    assert stand.got(1) == []
    assert states(exporter) == [Status.CONNECTED, Status.CONNECTED]
    stand.cut(0)
    assert stand.until(lambda: bool(stand.got(1)), 10, exporter) < 0.15
    assert states(exporter) == [Status.RE_ESTABLISHING, Status.FAIL_OVER]
    stand.run(1.0, exporter)
    stand.heal(0)
    stand.until(lambda: states(exporter)[1] is Status.CONNECTED, 10, exporter)
    stand.run(0.5, exporter)
    stand.until(lambda: len(stand.got(0) + stand.got(1)) == stand.sent)
    assert sorted(stand.got(0) + stand.got(1)) == list(range(stand.sent))
    assert exporter.fail_overs == 1
    assert exporter.dropped_resources.records == exporter.dropped_failure.records == 0
    balance(stand, exporter)


def test_fail_over(stand: Stand) -> None:
    """3: no association to the backup before; then templates first, on stream 0, and data within 250 ms."""
    exporter = stand.export(mode=Mode.FAIL_OVER, restore_s=1.0)
    stand.run(0.5, exporter)
    assert stand.logs[1].sessions == []
    assert states(exporter) == [Status.CONNECTED, Status.NOT_CONNECTED]
    stand.cut(0)
    assert stand.until(lambda: bool(stand.got(1)), 10, exporter) < 0.25
    assert [(stream, one) for _, stream, one in stand.logs[1].messages[:3]] == [(0, one) for one in TEMPLATES]
    stand.heal(0)
    stand.until(lambda: exporter.logic.target is Which.PRIMARY, 10, exporter)
    stand.until(lambda: len(stand.logs[1].closed_) == 1, 10, exporter)
    assert states(exporter) == [Status.CONNECTED, Status.NOT_CONNECTED]
    balance(stand, exporter)


def test_back_after_the_restore_time(stand: Stand) -> None:
    """4: 5.0 to 5.3 s after the first answer; a cut within begins the time anew."""
    exporter = stand.export(mode=Mode.REDUNDANT, restore_s=5.0)
    stand.run(0.3, exporter)
    for _ in range(2):
        stand.cut(0)
        stand.until(lambda: states(exporter)[0] is Status.RE_ESTABLISHING, 10, exporter)
        stand.heal(0)
        stand.until(lambda: states(exporter)[0] is Status.CONNECTED, 10, exporter)
        answered = time.monotonic()
        stand.run(1.0, exporter)
    stand.until(lambda: exporter.logic.target is Which.PRIMARY, 10, exporter)
    assert 4.98 <= time.monotonic() - answered <= 5.3
    assert exporter.fail_overs == 1


def test_both_down(stand: Stand) -> None:
    """5: what does not fit into the queue is counted as due to the failure of both."""
    exporter = stand.export(mode=Mode.FAIL_OVER, buffer_limit=200)
    stand.run(0.3, exporter)
    stand.cut(0)
    stand.cut(1)
    stand.until(lambda: states(exporter)[0] is Status.RE_ESTABLISHING, 10)
    before = stand.sent
    stand.until(lambda: stand.sent >= before + 200, 10, exporter)
    assert states(exporter) == [Status.RE_ESTABLISHING, Status.INITIALISING]
    assert exporter.dropped_failure.records == (stand.sent - before) * RECORDS - 200
    assert exporter.dropped_resources.records == 0
    balance(stand, exporter)
    stand.heal(0)
    stand.until(lambda: exporter.logic.target is Which.PRIMARY, 20)
    stand.until(lambda: stand.sent - 1 in stand.got(0))
    assert len(stand.got(0)) * RECORDS + exporter.dropped_failure.records == stand.sent * RECORDS


def test_data_that_is_not_acknowledged_while_heartbeats_are(stand: Stand) -> None:
    """6: three transmissions, and the switch."""
    if stand.backend == choice.UDP:
        pytest.skip("nftables sees no chunks within UDP")
    exporter = stand.export(mode=Mode.REDUNDANT)
    stand.run(0.3, exporter)
    stand.filter(0, "sctp chunk data exists drop")
    took = stand.until(lambda: bool(stand.got(1)), 10, exporter)
    assert 0.5 < took < 5
    assert exporter.fail_overs == 1
    stand.heal(0)
    stand.until(lambda: stand.got(0) + stand.got(1) != [] and states(exporter)[0] is Status.CONNECTED, 10, exporter)
    stand.until(lambda: sorted(stand.got(0) + stand.got(1)) == list(range(stand.sent)), 10)


@pytest.mark.parametrize("size", [1000, 20_000])
def test_a_collector_that_stops_reading(lab: Lab, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """7: templates complete; the newest records and what the stack held; the counter is exact; FORWARD TSN was seen."""
    monkeypatch.setattr(association, "LIFETIME_MS", 700)
    monkeypatch.setattr(kernelsession, "LIFETIME_MS", 3000)
    for module in (association, linux):
        monkeypatch.setattr(module, "RECEIVE_BYTES", 100_000)
    stand = Stand(lab)
    stand.listen()
    try:
        exporter = stand.export(backup=None, reliability=Reliability.PARTIAL, buffer_limit=128)
        stand.until(lambda: stand.templates(0) == len(TEMPLATES))
        seen = stand.watch(0, "ip proto 132 and ip[32] == 192")
        session = stand.logs[0].sessions[0]
        session.pause()
        while exporter.dropped_resources.records < 2000:
            for _ in range(20):
                stand.send(exporter, size)
            stand.run(0.005)
        last, queued = stand.sent, exporter.backlog.records // RECORDS
        assert 128 - RECORDS < exporter.backlog.records <= 128
        stand.until(lambda: seen.poll() is not None, 60)
        assert "FORWARD_TSN" in seen.communicate()[0]
        session.resume()
        stand.until(lambda: last - 1 in stand.got(0))
        stand.run(0.5)
        got = stand.got(0)
        assert len(got) == len(set(got))
        assert set(range(last - queued, last)) <= set(got)
        given_up = exporter.shown()[0].counters.given_up
        assert given_up > 0
        assert len(got) * RECORDS + exporter.dropped_resources.records + given_up == stand.sent * RECORDS
        assert stand.templates(0) == len(TEMPLATES)
    finally:
        stand.close()


@pytest.mark.parametrize("reliability", [Reliability.NONE, Reliability.FULL])
def test_thirty_percent_loss(stand: Stand, reliability: Reliability, monkeypatch: pytest.MonkeyPatch) -> None:
    """8: none: nothing is sent again, and what was lost is counted; full: all, in order in each stream."""
    if reliability is Reliability.FULL:
        monkeypatch.setattr(association, "RTO_MS", (20, 10, 40))
    here = type(stand.logs[0])()
    session = stand.relay.connect(place(stand.lab.peer4(1), PORT), here, Options(streams=4, heartbeat_ms=50))
    stand.until(lambda: bool(here.sessions))
    stand.filter(0, "meta l4proto { sctp, udp } numgen random mod 100 < 30 drop")
    for number in range(200):
        message = number.to_bytes(4, "big") + bytes(700)
        stand.until(lambda: session.send(message, 1 + number % 2, reliability))  # noqa: B023
        stand.run(0.005)
    if reliability is Reliability.FULL:
        stand.until(lambda: len(stand.got(0)) == 200)
        for stream in (1, 2):
            numbers = [int.from_bytes(one[:4], "big") for _, sid, one in stand.logs[0].messages if sid == stream]
            assert numbers == [number for number in range(200) if 1 + number % 2 == stream]
        return
    stand.until(lambda: session.unsent_bytes == 0)
    stand.heal(0)
    stand.run(0.5)
    got = set(stand.got(0))
    assert 80 < len(got) == len(stand.got(0)) < 180
    if stand.backend != choice.KERNEL:  # which does not say what it gave up
        lost = {int.from_bytes(one[:4], "big") for one in here.failed}
        assert lost | got == set(range(200))
        assert not lost & got


def test_ends_of_associations(stand: Stand) -> None:
    """10: SHUTDOWN, ABORT and a restart, as the collector sees them."""
    here = type(stand.logs[0])()
    there = stand.logs[0]
    for abort in (False, True):
        session = stand.relay.connect(place(stand.lab.peer4(1), PORT), here, Options())
        stand.until(lambda: session in here.sessions)  # noqa: B023
        stand.until(lambda: len(there.sessions) == len(here.sessions))
        session.close(abort=abort)
        stand.until(lambda: len(here.closed_) == len(there.closed_) == len(here.sessions))
    assert [why for _, why in there.closed_] == ["", "aborted by the peer"]
    source = place(stand.lab.relay4(1), 40_000)
    stand.relay.connect(place(stand.lab.peer4(1), PORT), here, Options(source=source))
    stand.until(lambda: len(there.sessions) == 3)
    stand.cut(0)
    stand.relay.close()
    stand.run(0.2)
    stand.heal(0)
    stand.relay = transport_in(stand.lab.relay, stand.loop, stand.backend)
    stand.relay.connect(place(stand.lab.peer4(1), PORT), here, Options(source=source))
    stand.until(lambda: len(there.sessions) == 4)
    assert there.closed_[2] == (there.sessions[2], "restarted by the peer")


def test_the_relay_that_restarts_is_known_again_at_once(stand: Stand) -> None:
    """10: the exporter is told by an ABORT, and comes again with templates first."""
    exporter = stand.export(backup=None, buffer_limit=65535)
    stand.run(0.3, exporter)
    stand.cut(0)
    stand.hosts[0].close()
    stand.run(0.1)
    stand.hosts[0] = transport_in(stand.lab.collectors[0], stand.loop, stand.backend)
    stand.hosts[0].listen(place("0.0.0.0", PORT), stand.logs[0], Options(streams=8))
    stand.heal(0)
    stand.until(lambda: len(stand.logs[0].sessions) == 2, 10, exporter)
    stand.until(lambda: stand.sent - 1 in stand.got(0), 10)
    second = [(stream, one) for session, stream, one in stand.logs[0].messages if session is stand.logs[0].sessions[1]]
    assert second[:3] == [(0, one) for one in TEMPLATES]
    assert sorted(set(stand.got(0))) == list(range(stand.sent))


def test_a_peer_that_is_not_allowed(stand: Stand) -> None:
    """12: no association; with libusrsctp not even an answer."""
    stand.logs[0].allows = lambda peer: "not in `allow`"
    here = type(stand.logs[0])()
    stand.relay.connect(place(stand.lab.peer4(1), PORT), here, Options())
    stand.until(lambda: bool(here.closed_))
    assert stand.logs[0].sessions == []


def test_over_udp(lab: Lab) -> None:
    """RFC 6951, port 9899: for ways that do not carry SCTP."""
    if backend() == choice.KERNEL:
        pytest.skip("the kernel's own encapsulation is not used")
    stand = Stand(lab, choice.UDP)
    stand.listen()
    try:
        exporter = stand.export(mode=Mode.REDUNDANT, restore_s=1.0)
        seen = stand.watch(0, "udp port 9899 and udp[20] == 0")
        stand.run(0.3, exporter)
        stand.cut(0)
        assert stand.until(lambda: bool(stand.got(1)), 10, exporter) < 0.15
        stand.heal(0)
        stand.until(lambda: states(exporter)[1] is Status.CONNECTED, 10, exporter)
        stand.until(lambda: sorted(stand.got(0) + stand.got(1)) == list(range(stand.sent)), 10)
        stand.until(lambda: seen.poll() is not None, 60)
        assert "DATA" in seen.communicate()[0]
    finally:
        stand.close()


def test_the_longest_packets_fill_the_mtu_and_are_not_cut_again(stand: Stand) -> None:
    seen, cut = stand.watch(0, "ip[2:2] == 1500 and ip proto 132"), stand.watch(0, "ip[6] & 0x20 != 0", seconds=5)
    here = type(stand.logs[0])()
    session = stand.relay.connect(place(stand.lab.peer4(1), PORT), here, Options())
    stand.until(lambda: bool(here.sessions))

    def was_seen() -> bool:
        if session.unsent_bytes == 0:
            session.send(bytes(60_000), 0)
        return seen.poll() is not None

    stand.until(was_seen)
    assert "DATA" in seen.communicate()[0]
    stand.until(lambda: cut.poll() is not None)
    assert cut.communicate()[0] == ""
