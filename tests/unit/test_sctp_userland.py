"""The glue around libusrsctp: associations in and out, identities, reliability, ends. No network, no time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
from samplicator.gateways.sctp import association
from samplicator.gateways.sctp import packet as sctp
from samplicator.gateways.sctp.library import instance
from samplicator.gateways.sctp.userland import Userland
from samplicator.gateways.transport import Options, Reliability, Session
from support.sctp import Log, Time, Wires, host, place

PORT = 4739


class Stand:
    def __init__(self) -> None:
        self.time = Time()
        self.wires = Wires(self.time)
        self.exporter = host(self.wires, "192.0.2.1", "198.51.100.1")
        self.collector = host(self.wires, "192.0.2.9")
        self.there, self.here = Log(), Log()
        self.ear = self.collector.listen(place("0.0.0.0", PORT), self.there, Options(streams=8))

    def connect(self, **options: object) -> Session:
        session = self.exporter.connect(place("192.0.2.9", PORT), self.here, Options(**{"streams": 8, **options}))  # type: ignore[arg-type]
        self.time.until(lambda: session in self.here.sessions)
        self.time.until(lambda: len(self.there.sessions) >= len(self.here.sessions))
        return session

    def close(self) -> None:
        self.exporter.close()
        self.collector.close()
        self.time.run(1)


@pytest.fixture
def soon(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """What is lost is sent again soon, in real time."""
    monkeypatch.setattr(association, "RTO_MS", (20, 10, 40))
    stand.time.real = True
    return stand


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.close()


def test_messages_of_all_sizes_on_several_streams(stand: Stand) -> None:
    session = stand.connect()
    assert session.streams == 8
    sent = [(stream, bytes([stream]) * size) for stream in range(4) for size in (16, 1400, 1500, 9000, 65535)]
    for stream, message in sent:
        stand.time.until(lambda: session.send(message, stream))  # noqa: B023
    stand.time.until(lambda: len(stand.there.messages) == len(sent))
    for stream in range(4):
        assert stand.there.payloads(stream) == [message for sid, message in sent if sid == stream]
    assert stand.there.messages[0][0].peer.address == bytes([192, 0, 2, 1])
    stand.time.until(lambda: session.unsent_bytes == 0)


def test_a_shutdown_delivers_first_and_is_told_on_both_sides(stand: Stand) -> None:
    session = stand.connect()
    for n in range(50):
        assert session.send(bytes([n]) * 1000, 1)
    session.close()
    assert not session.send(b"x" * 20, 1)
    assert stand.here.closed_ == []
    stand.time.until(lambda: bool(stand.here.closed_ and stand.there.closed_))
    assert stand.there.payloads() == [bytes([n]) * 1000 for n in range(50)]
    assert [why for _, why in stand.there.closed_] == [""]
    assert len(stand.collector.entrance.peers) == len(stand.exporter.entrance.peers) == 0


@pytest.mark.parametrize(("count", "size"), [(20, 3000), (1000, 100)])
def test_an_abort_is_told_with_what_was_not_delivered(stand: Stand, count: int, size: int) -> None:
    session = stand.connect()
    stand.wires.dead.add("192.0.2.9")
    messages = [n.to_bytes(2, "big") * (size // 2) for n in range(count)]
    for one in messages:
        assert session.send(one, 1)
    stand.time.run(0.1)
    session.close(abort=True)
    assert stand.here.closed_ == []
    stand.time.until(lambda: bool(stand.here.closed_))
    assert stand.here.failed == messages
    assert [why for _, why in stand.here.closed_] == ["closed here"]


def test_the_peer_aborts(stand: Stand) -> None:
    session = stand.connect()
    stand.there.sessions[0].close(abort=True)
    stand.time.until(lambda: bool(stand.here.closed_ and stand.there.closed_))
    assert stand.here.closed_ == [(session, "aborted by the peer")]


def test_nobody_listens_and_nobody_is_there(stand: Stand) -> None:
    first = stand.exporter.connect(place("192.0.2.77", PORT), stand.here, Options())
    stand.time.until(lambda: bool(stand.here.closed_))
    assert stand.here.closed_ == [(first, "no answer")]
    assert len(stand.exporter.entrance.peers) == 0


def test_who_is_not_admitted_hears_nothing(stand: Stand) -> None:
    stand.there.allows = lambda peer: "" if peer.address[0] == 198 else "not allowed"
    stand.exporter.connect(place("192.0.2.9", PORT), stand.here, Options())
    stand.time.until(lambda: bool(stand.here.closed_))
    assert stand.there.sessions == []
    assert stand.collector.entrance.refused > 0
    assert len(stand.collector.entrance.peers) == 0


def lists(address: bytes) -> Callable[[bytes], bytes]:
    """Adds an IPv4 address to each INIT, as the stack of a multihomed exporter does; libusrsctp has none to list."""

    def edit(data: bytes) -> bytes:
        if data[12] != sctp.INIT:
            return data
        length = struct.unpack_from("!H", data, 14)[0]
        data = data[:14] + struct.pack("!H", ((length + 3) & ~3) + 8) + data[16:] + struct.pack("!HH", 5, 8) + address
        data = data[:8] + bytes(4) + data[12:]
        return data[:8] + struct.pack("=I", instance().checksum(data)) + data[12:]

    return edit


def test_a_multihomed_peer_keeps_its_identity(stand: Stand) -> None:
    """It says in its INIT which addresses it has, then changes to the other one; answers follow it there."""
    stand.wires.edits = lists(bytes([198, 51, 100, 1]))
    session = stand.connect()
    session.send(b"a" * 20, 1)
    stand.time.until(lambda: len(stand.there.messages) == 1)
    stand.wires.via["192.0.2.1"] = "198.51.100.1"
    stand.wires.dead.add("192.0.2.1")
    stand.wires.keeps = True
    session.send(b"b" * 20, 1)
    stand.time.until(lambda: len(stand.there.messages) == 2)
    assert stand.there.messages[1][0] is stand.there.messages[0][0]
    assert stand.there.messages[1][0].peer.address == bytes([192, 0, 2, 1])
    stand.time.until(lambda: session.unsent_bytes == 0)
    assert "198.51.100.1" in {to for to, _ in stand.wires.seen}


def test_an_address_that_the_peer_did_not_list_is_not_heard(stand: Stand) -> None:
    session = stand.connect()
    stand.wires.via["192.0.2.1"] = "203.0.113.5"
    session.send(b"a" * 20, 1)
    stand.time.run(2)
    assert stand.there.messages == []


def test_a_restart_ends_one_session_and_begins_another(stand: Stand) -> None:
    """The exporter forgets everything and comes again from the same port."""
    source = place("192.0.2.1", 40_000)
    stand.connect(source=source)
    stand.wires.dead.add("192.0.2.1")
    stand.exporter.close()
    stand.time.run(1)
    stand.wires.dead.clear()
    stand.exporter = host(stand.wires, "192.0.2.1", "198.51.100.1")
    again = stand.exporter.connect(place("192.0.2.9", PORT), stand.here, Options(streams=8, source=source))
    stand.time.until(lambda: len(stand.there.sessions) == 2)
    first, second = stand.there.sessions
    assert stand.there.closed_ == [(first, "restarted by the peer")]
    stand.time.until(lambda: again.send(b"x" * 20, 1))
    stand.time.until(lambda: len(stand.there.messages) == 1)
    assert stand.there.messages[0][0] is second
    assert len(stand.collector.entrance.peers) == 1


def test_after_our_own_restart_exporters_know_at_once(stand: Stand) -> None:
    """The relay that has lost its state aborts what it does not know, so the exporter need not wait for its timers."""
    session = stand.connect()
    stand.wires.dead.add("192.0.2.9")
    stand.collector.close()
    stand.time.run(0.5)
    stand.wires.dead.clear()
    stand.collector = host(stand.wires, "192.0.2.9")
    stand.collector.listen(place("0.0.0.0", PORT), stand.there, Options(streams=8))
    session.send(b"x" * 20, 1)
    assert stand.time.until(lambda: bool(stand.here.closed_)) < 1.0
    assert stand.here.closed_ == [(session, "aborted by the peer")]


def test_full_under_loss_delivers_all_in_order(soon: Stand) -> None:
    session = soon.connect(heartbeat_ms=50)  # or ten losses in a row are the end
    soon.wires.loses = lambda packet: soon.wires.random.random() < 0.3
    sent = 0
    while sent < 100:
        soon.time.until(lambda: session.send(sent.to_bytes(4, "big") + bytes(500), 1 + sent % 3))  # noqa: B023
        sent += 1
    soon.time.until(lambda: len(soon.there.messages) == 100, 120)
    for stream in (1, 2, 3):
        numbers = [int.from_bytes(message[:4], "big") for message in soon.there.payloads(stream)]
        assert numbers == [n for n in range(100) if 1 + n % 3 == stream]


def test_none_under_loss_is_never_sent_again(stand: Stand) -> None:
    """With the retransmission time that is longer than a SACK may be delayed: what arrived is not taken for lost."""
    stand.time.real = True
    session = stand.connect()
    stand.wires.keeps = True
    stand.wires.loses = lambda packet: packet.chunks[0].kind == sctp.DATA and stand.wires.random.random() < 0.3
    for n in range(300):
        stand.time.until(lambda: session.send(n.to_bytes(4, "big") + bytes(900), 1, Reliability.NONE))  # noqa: B023
        stand.time.run(0.01)
    stand.time.until(lambda: session.unsent_bytes == 0)
    stand.time.run(2)
    tsns = [
        tsn
        for to, packet in stand.wires.seen
        if to == "192.0.2.9"
        for chunk in packet.chunks
        if (tsn := sctp.data_tsn(packet, chunk)) is not None
    ]
    assert len(tsns) == len(set(tsns)) == 300
    got = {int.from_bytes(message[:4], "big") for message in stand.there.payloads(1)}
    lost = {int.from_bytes(message[:4], "big") for message in stand.here.failed}
    assert 0 < len(lost) < 200
    assert got | lost == set(range(300))
    assert not got & lost


def test_silence_is_since_the_first_heartbeat_without_an_answer(stand: Stand) -> None:
    session = stand.connect(heartbeat_ms=6)
    stand.time.run(1)
    assert session.silent_since == 0.0 or stand.time.now - session.silent_since < 0.01
    stand.wires.dead.add("192.0.2.9")
    cut = stand.time.now
    stand.time.run(0.5)
    assert -0.001 < session.silent_since - cut < 0.02
    assert stand.here.closed_ == []
    stand.wires.dead.clear()
    assert stand.time.until(lambda: session.silent_since == 0.0) < 0.03


def test_one_association_asks_for_all_that_go_to_the_same_place(stand: Stand) -> None:
    first, second, third = (stand.connect(heartbeat_ms=6) for _ in range(3))
    stand.wires.keeps = True
    stand.time.run(1)
    asked = [one for to, one in stand.wires.seen if to == "192.0.2.9" and one.chunks[0].kind == sctp.HEARTBEAT]
    assert 90 < len(asked) < 180
    assert len({one.source_port for one in asked}) == 1
    stand.wires.dead.add("192.0.2.9")
    stand.time.run(0.1)
    assert first.silent_since == second.silent_since == third.silent_since > 0
    stand.wires.dead.clear()
    first.close(abort=True)
    stand.time.run(0.1)
    stand.wires.seen.clear()
    stand.time.run(1)
    asked = [one for to, one in stand.wires.seen if to == "192.0.2.9" and one.chunks[0].kind == sctp.HEARTBEAT]
    assert 90 < len(asked) < 180
    assert second.silent_since == 0.0 or stand.time.now - second.silent_since < 0.02


def test_data_that_is_not_acknowledged_is_counted_while_heartbeats_are(soon: Stand) -> None:
    session = soon.connect(heartbeat_ms=6)
    soon.wires.loses = lambda packet: any(chunk.kind == sctp.DATA for chunk in packet.chunks)
    session.send(b"x" * 100, 1)
    took = soon.time.until(lambda: session.transmissions >= 3)
    assert 0.02 < took < 0.5
    assert soon.time.now - session.silent_since < 0.05 or not session.silent_since
    soon.wires.loses = lambda packet: False
    soon.time.until(lambda: session.transmissions == 0)
    assert soon.there.payloads() == [b"x" * 100]


def test_a_reader_that_pauses_makes_the_peer_wait(stand: Stand) -> None:
    session = stand.connect()
    stand.there.sessions[0].pause()
    sent, full_for = 0, 0
    while full_for < 100:
        if session.send(sent.to_bytes(4, "big") + bytes(8000), 1):
            sent, full_for = sent + 1, 0
        else:
            full_for += 1
            stand.time.run(0.05)
    assert stand.there.messages == []
    assert sent * 8000 < 8 << 20
    stand.there.sessions[0].resume()
    stand.time.until(lambda: len(stand.there.messages) == sent, 600)
    assert [int.from_bytes(m[:4], "big") for m in stand.there.payloads()] == list(range(sent))


def test_an_ear_that_closes_keeps_its_sessions_and_gives_its_port_back(stand: Stand) -> None:
    session = stand.connect()
    stand.ear.close()
    stand.time.run(0.1)
    assert session.send(b"x" * 20, 1)
    stand.time.until(lambda: len(stand.there.messages) == 1)
    late = stand.exporter.connect(place("192.0.2.9", PORT), stand.here, Options())
    stand.time.until(lambda: bool(stand.here.closed_))
    assert stand.here.closed_ == [(late, "no answer")]
    again = Log()
    stand.collector.listen(place("192.0.2.9", PORT), again, Options(streams=8))
    stand.exporter.connect(place("192.0.2.9", PORT), stand.here, Options())
    stand.time.until(lambda: len(again.sessions) == 1)
    assert stand.there.closed_ == []


def test_a_thousand_associations(stand: Stand) -> None:
    sessions = []
    for n in range(1000):
        session = stand.exporter.connect(place("192.0.2.9", PORT), stand.here, Options(streams=2))
        sessions.append(session)
        stand.time.until(lambda: len(stand.here.sessions) == n + 1)  # noqa: B023
    stand.time.until(lambda: len(stand.there.sessions) == 1000)
    for n, session in enumerate(sessions):
        stand.time.until(lambda: session.send(n.to_bytes(4, "big") + bytes(100), 1))  # noqa: B023
    stand.time.until(lambda: len(stand.there.messages) == 1000)
    stand.time.run(1)
    assert len({id(session) for session, _, _ in stand.there.messages}) == 1000
    assert len({session.peer for session, _, _ in stand.there.messages}) == 1000


def test_the_most_peers(stand: Stand) -> None:
    small: Userland = host(stand.wires, "192.0.2.8", most=3)
    log = Log()
    small.listen(place("0.0.0.0", PORT + 1), log, Options())
    for _ in range(5):
        stand.exporter.connect(place("192.0.2.8", PORT + 1), stand.here, Options())
    stand.time.until(lambda: len(stand.here.closed_) == 2)
    assert len(log.sessions) == 3
    assert small.entrance.refused > 0
    small.close()
