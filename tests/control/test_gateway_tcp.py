"""IPFIX over TCP through a gateway, in and out, with the workers' ends of its doors in the test's hands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import uvloop
from samplicator.config.address import parse_source
from samplicator.gateways import hub, line, outlet, place, stream
from samplicator.gateways.door import Datagram, Door
from samplicator.gateways.transport import Address, Ear, Events, Options, Reliability, Session
from samplicator.plan.sessions import Door as Delivery
from samplicator.plan.sessions import DoorSpec
from support import flows as model
from support.flows import a_set, template
from support.peers import LOCALHOST, Collector, Stage, connect, ended, read, tcp_port, turned_away
from support.worker import wait_until

FIELDS: list[tuple[int, ...]] = [(8, 4), (12, 4)]
TEACH = model.ipfix(0, 1, a_set(2, template(256, FIELDS)))
EXPORTER = b"\xc6\x12\0\1"


def data(sequence: int, count: int = 1, domain: int = 1) -> bytes:
    return model.ipfix(sequence, domain, a_set(256, *[(sequence + n).to_bytes(8, "big") for n in range(count)]))


@pytest.fixture(params=["uvloop", "asyncio"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "uvloop": uvloop.new_event_loop,
        "asyncio": asyncio.new_event_loop,
    }
    made = Stage("tcp", loops[request.param])
    yield made
    made.close()


def at(port: int, **settings: object) -> DoorSpec:
    return DoorSpec("tcp", ((LOCALHOST, port, 0),), message_bytes=1452, **settings)  # type: ignore[arg-type]


def to(port: int) -> Delivery:
    return Delivery("tcp", LOCALHOST, port, 0, "127.0.0.1")


# ---- in


def test_however_the_bytes_come_messages_are_whole(stage: Stage) -> None:
    port, r = tcp_port(), random.Random(1)
    door = stage.listener("in", at(port))
    stage.listening()
    exporter = connect(port)
    sent = [TEACH, *(data(n) for n in range(300))]
    stream = b"".join(sent)
    while stream:
        size = r.choice((1, 2, 3, 15, 17, 1000, 5000))
        exporter.sendall(stream[:size])
        stream = stream[size:]
    found = read(door, len(sent))
    assert [one.payload for one in found] == sent
    assert {(one.address, one.port) for one in found} == {(LOCALHOST, exporter.getsockname()[1])}
    assert all(one.arrival_ns > 0 for one in found)
    (session,) = stage.hub.sessions()
    assert (session.side, session.name, session.messages, session.octets) == ("in", "in", 301, sum(map(len, sent)))


def test_a_long_message_becomes_datagrams(stage: Stage) -> None:
    port = tcp_port()
    door = stage.listener("in", at(port))
    stage.listening()
    connect(port).sendall(TEACH + data(0, 8000) + data(8000))
    collector = model.Collector()
    found = read(door, 2 + -(-8000 // 179))
    for one in found:
        collector.take(0, one.payload)
        assert len(one.payload) <= 1452
    assert (collector.records, collector.sequence_errors, collector.unknown_sets) == (8001, 0, 0)
    assert stage.counters("in")["split"] == 1


@pytest.mark.parametrize("junk", [b"\0\x09\0\x20" + bytes(28), b"\0\x0a\0\x0f" + bytes(12), b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_message_ends_that_session_alone(stage: Stage, junk: bytes) -> None:
    port = tcp_port()
    door = stage.listener("in", at(port))
    stage.listening()
    good, bad = connect(port), connect(port)
    bad.sendall(TEACH + junk)
    assert ended(bad)
    good.sendall(TEACH)
    assert [one.payload for one in read(door, 2)] == [TEACH, TEACH]
    wait_until(lambda: stage.counters("in")["broken"] == 1, "the count")
    assert len(stage.hub.sessions()) == 1


def test_who_is_not_allowed_is_refused(stage: Stage) -> None:
    port = tcp_port()
    door = stage.listener("in", at(port, allow=(parse_source("127.0.0.2/32"), parse_source("2001:db8::/32"))))
    stage.listening()
    assert turned_away(port)
    admitted = connect(port, source_address=("127.0.0.2", 0))
    admitted.sendall(TEACH)
    (one,) = read(door, 1)
    assert one.address == b"\x7f\0\0\2"
    assert stage.counters("in")["refused_prefix"] == 1


def test_sessions_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "MAX_SESSIONS", 3)
    port = tcp_port()
    stage.listener("in", at(port))
    stage.listening()
    peers = [connect(port) for _ in range(3)]
    wait_until(lambda: len(stage.hub.sessions()) == 3, "three sessions")
    assert turned_away(port)
    assert stage.counters("in")["refused_limit"] == 1
    peers.pop().close()
    wait_until(lambda: len(stage.hub.sessions()) == 2, "one to end")
    connect(port).sendall(TEACH)
    wait_until(lambda: stage.counters("in")["messages"] == 1, "another one")


def test_an_exporter_waits_for_a_worker_that_does_not_read(stage: Stage) -> None:
    port = tcp_port()
    door = stage.listener("in", at(port), queue_bytes=1 << 18)
    stage.listening()
    exporter = connect(port)
    exporter.settimeout(0.5)
    stream = TEACH + b"".join(data(n * 100, 100) for n in range(15_000))
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < len(stream):
            sent += exporter.send(stream[sent : sent + 65536])
    assert sent < len(stream)
    assert stage.counters("in")["waits"] > 0
    exporter.settimeout(0)
    collector = model.Collector()

    def all_read() -> bool:
        nonlocal sent
        for one in door.read():
            collector.take(0, one.payload)
        with contextlib.suppress(BlockingIOError):
            sent += exporter.send(stream[sent : sent + 65536])
        return collector.records == 1_500_000

    wait_until(all_read, "all of them", 60)
    assert (collector.records, collector.sequence_errors) == (1_500_000, 0)
    assert stage.counters("in")["lost"] == 0


def test_a_new_plan_keeps_sessions_and_a_new_door_has_templates_first(stage: Stage) -> None:
    """Another `allow` is another spec, with doors of its own; the place and who may stay, stay."""
    port = tcp_port()
    old = stage.listener("in", at(port))
    stage.listening()
    stays, goes = connect(port), connect(port, source_address=("127.0.0.2", 0))
    for sock in (stays, goes):
        sock.sendall(TEACH)
    read(old, 2)
    other = at(port, allow=(parse_source("127.0.0.1"),))
    new = stage.listener("in", other)
    for sock in (stays, goes):
        sock.sendall(data(0))
    assert [one.payload for one in read(old, 2)] == [data(0), data(0)]  # the new plan may yet fail
    stage.hub.runs("in", other)
    assert ended(goes)
    stays.sendall(data(1))
    assert [one.payload for one in read(new, 2)] == [model.ipfix(1, 1, a_set(2, template(256, FIELDS))), data(1)]
    old.close()
    failed = stage.listener("in", at(port, allow=(parse_source("203.0.113.1"),)))
    failed.close()
    stays.sendall(data(2))
    assert [one.payload for one in read(new, 1)] == [data(2)]
    new.close()
    assert ended(stays)
    wait_until(lambda: not stage.hub.readings(), "the listener to be gone")
    with pytest.raises(ConnectionRefusedError):
        connect(port)


def test_workers_share_sessions_and_one_that_ends_gives_them_back(stage: Stage) -> None:
    port = tcp_port()
    doors = [stage.listener("in", at(port), worker) for worker in range(2)]
    stage.listening()
    exporters = [connect(port) for _ in range(20)]
    for exporter in exporters:
        exporter.sendall(TEACH)
    shares: list[list[Datagram]] = [[], []]

    def all_read() -> bool:
        for share, door in zip(shares, doors, strict=True):
            share += door.read()
        return sum(map(len, shares)) == 20

    wait_until(all_read, "all of them")
    assert all(shares)
    doors[1].close()
    moved = len(shares[1])
    for exporter in exporters:
        exporter.sendall(data(0))
    found = read(doors[0], 20 + moved)
    taught = {(one.address, one.port) for one in shares[0]}
    for one in found:
        key = one.address, one.port
        assert one.payload == (data(0) if key in taught else TEACH)
        taught.add(key)


def test_templates_are_repeated(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "REPEAT_SECONDS", 0.1)
    port = tcp_port()
    door = stage.listener("in", at(port))
    stage.listening()
    exporter = connect(port)
    exporter.sendall(TEACH + data(0))
    found = read(door, 3)
    assert [one.payload for one in found] == [TEACH, data(0), model.ipfix(1, 1, a_set(2, template(256, FIELDS)))]


def test_accepting_goes_on_after_descriptors_were_short(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    port = tcp_port()
    door = stage.listener("in", at(port))
    stage.listening()
    monkeypatch.setattr(stream, "AGAIN_SECONDS", 0.2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    exporter = socket.socket()
    resource.setrlimit(resource.RLIMIT_NOFILE, (exporter.fileno() + 1, hard))
    holes: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                holes.append(os.dup(exporter.fileno()))
        exporter.connect(("127.0.0.1", port))
        exporter.sendall(TEACH)
        wait_until(lambda: stage.counters("in")["refused_handshake"] > 0, "the shortage")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for hole in holes:
            os.close(hole)
    assert [one.payload for one in read(door, 1)] == [TEACH]


def test_a_place_that_is_taken_is_tried_again(stage: Stage) -> None:
    other = socket.socket()
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    door = stage.listener("in", at(port))
    wait_until(lambda: stage.hub.down("in") == f"tcp://127.0.0.1:{port}: Address already in use", "the reason")
    other.close()
    wait_until(lambda: not stage.hub.down("in"), "the place to be free")
    connect(port).sendall(TEACH)
    read(door, 1)


def test_both_families_come_by_one_place(stage: Stage) -> None:
    port = tcp_port()
    door = stage.listener("in", DoorSpec("tcp", ((bytes(16), port, 0),)))
    stage.listening()
    with connect(port) as four, socket.create_connection(("::1", port), 10) as six:
        four.sendall(TEACH)
        six.sendall(TEACH)
        found = {(one.address, one.port) for one in read(door, 2)}
        assert found == {(LOCALHOST, four.getsockname()[1]), (bytes(15) + b"\1", six.getsockname()[1])}


# ---- out


def put(door: Door, *payloads: bytes, port: int = 2055) -> None:
    datagrams = [Datagram(EXPORTER, port, payload) for payload in payloads]
    done = 0

    def written() -> bool:
        nonlocal done
        done += door.write(datagrams[done:])
        return done == len(datagrams)

    wait_until(written, "room in the door")


def test_each_exporter_has_a_session(stage: Stage) -> None:
    collector = Collector()
    door = stage.receiver("out", to(collector.port))
    for n in range(3):
        put(door, TEACH, data(n), port=2000 + n)
    wait_until(lambda: len(collector.messages()) == 6, "six messages")
    assert sorted(c.messages for c in collector.connections) == [[TEACH, data(n)] for n in range(3)]
    assert sorted(one.exporter for one in stage.hub.sessions()) == [f"198.18.0.1:{2000 + n}" for n in range(3)]
    assert {one.state for one in stage.hub.sessions()} == {"connected"}
    collector.close()


def test_templates_come_first_after_every_connect(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "LONGEST_SECONDS", 0.2)
    collector = Collector()
    door = stage.receiver("out", to(collector.port))
    put(door, TEACH, data(0), TEACH, data(1))  # by UDP templates come again and again
    wait_until(lambda: len(collector.messages()) == 3, "the first")
    assert collector.messages() == [TEACH, data(0), data(1)]
    assert stage.hub.fault("out") == ""
    collector.close()
    wait_until(lambda: stage.hub.fault("out").startswith("not connected: "), "the loss to be seen")
    wait_until(lambda: stage.hub.fault("out") == "not connected: Connection refused", "the reason")
    put(door, data(2), TEACH, data(3))
    assert stage.hub.sessions()[0].state == "re-establishing"
    again = Collector(collector.port)
    wait_until(lambda: len(again.messages()) == 3, "the rest")
    found = model.parse(again.messages()[0])
    assert found is not None
    assert [one.identity for one in found.sets] == [2]
    assert again.messages()[1:] == [data(2), data(3)]
    wait_until(lambda: stage.replayed == ["out"], "options data to be asked for")
    assert stage.counters("out")["templates_left_out"] == 2
    again.close()


def test_a_changed_template_is_withdrawn_before(stage: Stage) -> None:
    collector = Collector()
    door = stage.receiver("out", to(collector.port))
    other = model.ipfix(5, 1, a_set(2, template(256, [(1, 8)])))
    put(door, TEACH, data(0), other)
    wait_until(lambda: len(collector.messages()) == 4, "four messages")
    withdrawn = model.ipfix(5, 1, a_set(2, model.withdrawal(256)))
    assert collector.messages() == [TEACH, data(0), withdrawn, other]
    collector.close()


def test_what_is_no_ipfix_is_counted(stage: Stage) -> None:
    collector = Collector()
    door = stage.receiver("out", to(collector.port))
    put(door, TEACH, model.v9(0, 1), b"x", data(0), TEACH[:-1], b"")
    wait_until(lambda: stage.counters("out")["not_ipfix"] == 4, "the count")
    wait_until(lambda: len(collector.messages()) == 2, "the rest")
    assert collector.messages() == [TEACH, data(0)]
    collector.close()


def test_a_collector_that_does_not_read_stops_the_door(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much waits in the door, where the worker counts; when the collector reads, all comes, in order."""
    monkeypatch.setattr(outlet, "QUEUE_BYTES", 1 << 18)
    collector = Collector()
    door = stage.receiver("out", to(collector.port), queue_bytes=1 << 18)
    put(door, TEACH)
    wait_until(lambda: bool(collector.messages()), "the first")
    collector.connections[0].held.clear()
    taken = 0
    quiet = 0
    while quiet < 50:
        took = door.write([Datagram(EXPORTER, 2055, data((taken + n) * 100, 100)) for n in range(50)])
        taken += took
        quiet = 0 if took else quiet + 1
        if not took:
            wait_until(lambda: True, "a moment")
            stage.thread.wait(lambda: None)
    assert stage.counters("out")["waits"] > 0
    collector.connections[0].held.set()
    wait_until(lambda: len(collector.messages()) == taken + 1, "all of them", 30)
    assert collector.messages()[1:] == [data(n * 100, 100) for n in range(taken)]
    collector.close()


def test_before_it_goes_a_receiver_sends_what_waits(stage: Stage) -> None:
    collector = Collector()
    door = stage.receiver("out", to(collector.port))
    put(door, TEACH, *(data(n * 100, 100) for n in range(2000)))
    wait_until(lambda: len(stage.hub.sessions()) == 1 and stage.hub.sessions()[0].state == "connected", "a session")
    door.close()
    wait_until(lambda: len(collector.messages()) == 2001, "all of them")
    wait_until(lambda: collector.connections[0].over, "the end")
    wait_until(lambda: not stage.hub.readings(), "the receiver to be gone")
    collector.close()


def test_a_new_door_of_a_worker_waits_for_the_old_one(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a reload what the old door holds goes first."""
    collector = Collector()
    old = stage.receiver("out", to(collector.port))
    put(old, TEACH)
    wait_until(lambda: len(collector.messages()) == 1, "the first")
    stop, go_on = threading.Event(), threading.Event()
    stage.thread.call(lambda: (stop.set(), go_on.wait(10)))
    assert stop.wait(10)
    new = stage.receiver("out", to(collector.port))
    put(new, data(100))
    put(old, *(data(n) for n in range(100)))
    go_on.set()
    old.close()
    wait_until(lambda: len(collector.messages()) == 102, "all of them")
    assert collector.messages() == [TEACH, *(data(n) for n in range(101))]
    assert len(collector.connections) == 1
    new.close()
    wait_until(lambda: not stage.hub.readings(), "the end")
    again = stage.receiver("out", to(collector.port))
    put(again, TEACH)
    wait_until(lambda: len(collector.connections) == 2, "a session of its own")
    collector.close()


def test_while_the_loop_is_busy_what_is_shown_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters do not end and begin again, and that no sessions were listed does not mean that there are none."""
    collector = Collector()
    door = stage.receiver("out", to(collector.port))
    put(door, TEACH)
    wait_until(lambda: len(collector.messages()) == 1, "the first")
    before = stage.hub.readings()
    assert [(reading.name, reading.counters["messages"]) for reading in before] == [("out", 1)]
    monkeypatch.setattr(hub, "SHOWN_SECONDS", 0.05)
    monkeypatch.setattr(hub, "SESSIONS_SECONDS", 0.05)
    stop, go_on = threading.Event(), threading.Event()
    stage.thread.call(lambda: (stop.set(), go_on.wait(30)))
    assert stop.wait(10)
    assert stage.hub.readings() == before
    with pytest.raises(TimeoutError, match="gateway tcp did not say"):
        stage.hub.sessions()
    go_on.set()
    monkeypatch.undo()
    assert len(stage.hub.sessions()) == 1
    put(door, data(0))
    wait_until(lambda: stage.counters("out")["messages"] == 2, "the next to be shown")
    door.close()
    wait_until(lambda: not stage.hub.readings(), "the end")
    collector.close()


def test_sessions_to_a_collector_are_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "MAX_LINES", 4)
    collector = Collector()
    door = stage.receiver("out", to(collector.port))
    for n in range(6):
        put(door, TEACH, port=2000 + n)
    wait_until(lambda: stage.counters("out")["limit"] == 2, "the count")
    wait_until(lambda: len(collector.messages()) == 4, "four of them")
    collector.close()


# ---- a transport with several streams


class ManyStreams:
    """A transport whose one session has three streams, and keeps what is sent. room: messages that it still takes."""

    versions = (9, 10)

    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.streams = 3
        self.room = 1000
        self.peer = Address(LOCALHOST, 1)
        self.unsent_bytes, self.silent_since, self.transmissions = 0, 0.0, 0
        self.events: list[Events] = []
        self.closed = 0
        self.association = None

    def check(self, options: Options) -> None: ...

    def connect(self, place: Address, events: Events, options: Options) -> Session:
        self.events.append(events)
        asyncio.get_running_loop().call_soon(events.opened, self)
        return self

    def send(self, message: bytes, stream: int = 0, reliability: Reliability = Reliability.FULL) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.sent.append((stream, message))
        return True

    def pause(self) -> None: ...
    def resume(self) -> None: ...

    def listen(self, place: Address, events: Events, options: Options) -> Ear:
        raise OSError("not here")

    def close(self, *, abort: bool = False) -> None:
        self.closed += 1
        if self.events:
            asyncio.get_running_loop().call_soon(self.events.pop().closed, self, "")


def test_templates_go_on_stream_0_and_data_on_another() -> None:
    transport = ManyStreams()
    stage = Stage("sctp", asyncio.new_event_loop, lambda loop: transport)
    try:
        door = stage.receiver("out", Delivery("sctp", LOCALHOST, 4739, 0, "127.0.0.1"))
        both = model.ipfix(0, 1, a_set(2, template(256, FIELDS)), a_set(256, bytes(8)))
        v9 = model.v9(0, 1, a_set(0, template(256, FIELDS))), model.v9(1, 1, a_set(256, bytes(8)))
        put(door, both, data(1), *v9)
        wait_until(lambda: len(transport.sent) == 5, "five messages")
        assert transport.sent == [
            (0, model.ipfix(0, 1, a_set(2, template(256, FIELDS)))),
            (2, model.ipfix(0, 1, a_set(256, bytes(8)))),
            (2, data(1)),
            (0, v9[0]),
            (2, v9[1]),
        ]
        transport.sent.clear()
        transport.room = 3
        stage.thread.call(lambda: transport.events.pop(0).closed(transport, "gone"))
        wait_until(lambda: len(transport.sent) == 2, "both templates")
        put(door, data(2), data(3))
        wait_until(lambda: len(transport.sent) == 3, "one of two")
        transport.room = 10
        stage.thread.call(lambda: transport.events[0].writable(transport))
        wait_until(lambda: len(transport.sent) == 4, "the other")
        assert [(stream, message[1]) for stream, message in transport.sent] == [(0, 10), (0, 9), (2, 10), (2, 10)]
    finally:
        stage.close()
