"""Doors: what a worker and a gateway read of each other, and that nothing in a message can hurt either.

The worker runs in the test's own thread: stop() has it read what is there and end. Layout written here a second time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samplicator import _fastpath
from samplicator._fastpath import Plan, RxCounters, RxSocket, Tx, TxCounters, Worker
from samplicator.gateways.door import Datagram, Door, pair

HEADER = struct.Struct("=IBBBBQ16sHHI")
"""bytes, version, family, ttl, tos, arrival, address, port (network order), listener, receiver"""
MAPPED = bytes(10) + b"\xff\xff"
EVERYTHING = [([(0, bytes(16), bytes(16))], None, [0], False)]
SLOT = 65600


def record(
    payload: bytes,
    *,
    version: int = 1,
    family: int = 4,
    address: bytes = MAPPED + b"\xc6\x12\0\1",
    octets: int = -1,
) -> bytes:
    octets = len(payload) if octets < 0 else octets
    return HEADER.pack(octets, version, family, 64, 0, 0, address, socket.htons(2055), 0, 0) + payload


@dataclass
class Stand:
    """A worker between two doors. way_in: raw, as a gateway that is not ours would write; out: what comes out."""

    batch: int = 64
    max_datagram: int = 65535
    queue: int = 1 << 22
    rx: RxCounters = field(default_factory=RxCounters)
    tx: TxCounters = field(default_factory=TxCounters)

    def __post_init__(self) -> None:
        self.inner_in, self.way_in = pair(self.queue)
        self.inner_out, outer = pair(self.queue)
        self.out = Door(outer)
        self.socket = RxSocket(self.inner_in.fileno(), self.rx, 0, door=True)
        self.way = Tx(_fastpath.ENGINE_DOOR, self.inner_out.fileno(), self.tx, b"gateway of a test"[:16], 1)
        self.worker = Worker(batch=self.batch, max_datagram=self.max_datagram, sessions=1024)
        self.worker.publish(Plan(1, [self.socket], [self.way], EVERYTHING))

    def run(self) -> None:
        self.worker.stop(5000)
        self.worker.run()

    def read(self) -> list[Datagram]:
        got: list[Datagram] = []
        while more := self.out.read():
            got += more
        return got

    def received(self) -> dict[str, int]:
        values = dict(zip(_fastpath.RX_FIELDS, self.rx.read(), strict=True))
        assert values["datagrams"] == sum(values[name] for name in ("truncated", "unmatched", "denied", "matched"))
        return values

    def sent(self) -> dict[str, int]:
        values = dict(zip(_fastpath.TX_FIELDS, self.tx.read(), strict=True))
        dropped = sum(value for name, value in values.items() if name.startswith("failed_"))
        assert values["offered"] == values["skipped"] + values["sent"] + dropped
        return values

    def close(self) -> None:
        for sock in (self.inner_in, self.way_in, self.inner_out):
            sock.close()
        self.out.close()


@contextmanager
def stand(**options: int) -> Iterator[Stand]:
    with closing(Stand(**options)) as made:
        yield made


# ---- what is sound

addresses = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16).filter(lambda a: a[:12] != MAPPED)
datagrams = st.builds(
    Datagram,
    addresses,
    st.integers(0, 65535),
    st.binary(max_size=200) | st.integers(0, 65535).map(bytes),
    st.integers(0, 2**64 - 1),
    st.integers(0, 255),
    st.integers(0, 255),
    st.just(0),
    st.just(0),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(datagrams, max_size=150), st.sampled_from((1, 7, 64, 512)))
def test_what_goes_in_comes_out(given_in: list[Datagram], batch: int) -> None:
    with stand(batch=batch) as s:
        door = Door(s.way_in)
        came: list[Datagram] = []
        done = 0
        while done < len(given_in):  # what does not fit at once
            done += door.write(given_in[done:])
            s.run()
            came += s.read()
        assert [one[:6] for one in came] == [one[:6] for one in given_in]
        assert {(one.listener, one.receiver) for one in came} <= {(0, s.tx.id)}
        assert s.received()["matched"] == s.sent()["sent"] == len(given_in)
        assert s.received()["bytes"] == s.sent()["sent_bytes"] == sum(len(one.payload) for one in given_in)
        assert s.received()["errors_other"] == s.out.malformed == 0


def test_the_layout_is_the_documented_one() -> None:
    with stand() as s:
        s.way_in.send(record(b"one") + record(b"", family=6, address=bytes(15) + b"\7"))
        s.run()
        message = s.out._sock.recv(SLOT)
        first, second = message[: HEADER.size + 3], message[HEADER.size + 3 :]
        port = socket.htons(2055)
        assert HEADER.unpack(first[:40]) == (3, 1, 4, 64, 0, 0, MAPPED + b"\xc6\x12\0\1", port, 0, s.tx.id)
        assert HEADER.unpack(second) == (0, 1, 6, 64, 0, 0, bytes(15) + b"\7", port, 0, s.tx.id)


def test_a_mapped_exporter_is_ipv4_whatever_the_record_says() -> None:
    with stand() as s:
        s.way_in.send(record(b"x", family=6))
        s.run()
        assert [one.address for one in s.read()] == [b"\xc6\x12\0\1"]


def test_the_largest_datagram_has_room() -> None:
    with stand(max_datagram=65507) as s:
        door = Door(s.way_in)
        assert door.write([Datagram(b"\1\2\3\4", 1, bytes(size)) for size in (65507, 65508, 65535)]) == 3
        s.run()
        assert [len(one.payload) for one in s.read()] == [65507]
        values = s.received()
        assert (values["truncated"], values["truncated_bytes"], values["errors_other"]) == (2, 65508 + 65535, 0)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("address", b"12345", ValueError),
        ("port", 65536, ValueError),
        ("port", -1, ValueError),
        ("payload", bytes(65536), ValueError),
        ("ttl", 256, ValueError),
        ("tos", -1, ValueError),
        ("listener", 65536, ValueError),
        ("receiver", 1 << 32, OverflowError),
        ("arrival_ns", -1, OverflowError),
        ("payload", "text", TypeError),
    ],
)
def test_what_cannot_be_is_refused_at_the_gateway(field: str, value: object, error: type[Exception]) -> None:
    ours, theirs = pair(1 << 20)
    door = Door(theirs)
    with closing(ours), closing(door), pytest.raises(error):
        door.write([Datagram(b"\1\2\3\4", 1, b"x")._replace(**{field: value})])


# ---- what is not


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Noise, records with a field of noise, sound records cut short or with something behind them."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(min_size=1, max_size=200))
    parts = [record(draw(st.binary(max_size=60))) for _ in range(draw(st.integers(1, 6)))]
    whole = bytearray(b"".join(parts))
    for _ in range(draw(st.integers(0, 3))):
        whole[draw(st.integers(0, len(whole) - 1))] = draw(st.integers(0, 255))
    end = draw(st.integers(1, len(whole)))
    return bytes(whole[:end]) + draw(st.binary(max_size=45))


def understood(message: bytes) -> tuple[list[bytes], int]:
    """Payloads of a message, and how many records are not sound: the reader's rules, said once more."""
    sound, strange, at = [], 0, 0
    while at < len(message):
        if len(message) - at < HEADER.size:
            return sound, strange + 1
        octets, version, family, _, _, _, address, *_ = HEADER.unpack_from(message, at)
        if version != 1 or octets > len(message) - at - HEADER.size:
            return sound, strange + 1
        if family == 6 or (family == 4 and address[:12] == MAPPED):
            sound.append(message[at + HEADER.size : at + HEADER.size + octets])
        else:
            strange += 1
        at += HEADER.size + octets
    return sound, strange


NOISE = (
    [record(b"x", octets=0xFFFFFFFF), record(b"y")],
    [record(b"x", octets=0xFFFFFFD8), record(b"y")],
    [record(b"x", family=0) + record(b"y")],
    [HEADER.pack(0, 1, 4, 0, 0, 0, bytes(16), 0, 0, 0) * 1600],
)


@pytest.mark.parametrize("batch", [1, 3, 512])
def test_noise_is_counted_and_hurts_no_worker(batch: int) -> None:
    with stand(batch=batch) as s:

        @settings(max_examples=200, deadline=None)
        @given(st.lists(messages(), min_size=1, max_size=12))
        @example(NOISE[0])
        @example(NOISE[1])
        @example(NOISE[2])
        @example(NOISE[3])
        def any_noise(listed: list[bytes]) -> None:
            wanted = [understood(message) for message in listed]
            payloads = [payload for sound, _ in wanted for payload in sound]
            strange = sum(count for _, count in wanted)
            before = s.received()
            for message in listed:
                s.way_in.send(message)
            s.run()
            new = {name: value - before[name] for name, value in s.received().items()}
            assert (new["datagrams"], new["matched"]) == (len(payloads) + strange, len(payloads))
            assert (new["truncated"], new["errors_other"]) == (strange, strange)
            # one that comes again and again is held for a while (fastpath/route/echo.pxd): it may come behind others
            assert sorted(one.payload for one in s.read()) == sorted(payloads)
            assert not s.socket.shut

        any_noise()


@settings(max_examples=200, deadline=None)
@given(st.lists(messages(), min_size=1, max_size=12))
@example(NOISE[0])
@example(NOISE[1])
@example(NOISE[2])
@example(NOISE[3])
def test_a_gateway_reads_by_the_same_rules(listed: list[bytes]) -> None:
    wanted = [understood(message) for message in listed]
    ours, theirs = pair(1 << 20)
    with closing(ours), closing(Door(theirs)) as door:
        for message in listed:
            ours.send(message)
        got: list[Datagram] = []
        while more := door.read():
            got += more
        assert [one.payload for one in got] == [payload for sound, _ in wanted for payload in sound]
        assert door.malformed == sum(count for _, count in wanted)


def test_a_message_longer_than_any_of_ours_is_one_datagram_that_was_cut() -> None:
    with stand() as s:
        s.way_in.send(record(bytes(60000)) + record(bytes(60000)))
        s.way_in.send(record(b"after"))
        s.run()
        assert [one.payload for one in s.read()] == [b"after"]
        assert (s.received()["datagrams"], s.received()["truncated"]) == (2, 1)


def test_descriptors_that_come_along_are_not_taken() -> None:
    """SCM_RIGHTS (unix(7)): what is not asked for, the kernel closes."""
    with stand() as s, open("/dev/null") as null:
        before = sorted(os.listdir("/proc/self/fd"))
        socket.send_fds(s.way_in, [record(b"x")], [null.fileno()] * 3)
        s.run()
        assert s.received()["matched"] == 1
        assert sorted(os.listdir("/proc/self/fd")) == before


# ---- ends


def test_what_was_written_before_the_end_comes_in() -> None:
    with stand() as s:
        s.inner_in.send(b"never read by the gateway")  # so that its end is a reset (unix(7), ECONNRESET), said once
        s.way_in.send(record(b"last words"))
        s.way_in.close()
        s.run()
        assert [one.payload for one in s.read()] == [b"last words"]
        assert s.socket.shut
        assert s.received()["errors_other"] == 0


def test_a_door_that_is_shut_does_not_keep_the_worker_awake() -> None:
    with stand() as s:
        thread = threading.Thread(target=s.worker.run)
        thread.start()
        s.way_in.close()
        wakeups = _fastpath.WORKER_FIELDS.index("wakeups")
        while not s.socket.shut:
            pass
        before = s.worker.read()[wakeups]
        thread.join(0.3)
        assert s.worker.read()[wakeups] - before < 20
        s.worker.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_the_gateway_learns_of_the_workers_end() -> None:
    ours, theirs = pair(1 << 20)
    with closing(Door(theirs)) as door:
        assert door.read() == []
        ours.send(record(b"last words"))
        ours.close()
        assert [one.payload for one in door.read()] == [b"last words"]
        with pytest.raises(EOFError):
            door.read()
        with pytest.raises(BrokenPipeError):
            door.write([Datagram(b"\1\2\3\4", 1, b"x")])


# ---- a full door


def test_a_gateway_that_does_not_read_loses_copies_and_they_are_counted() -> None:
    """The worker goes on: it waits for nothing, and what the queue took is there when it is read again."""
    with stand(queue=1 << 18) as s:
        door = Door(s.way_in)
        offered = 0
        for _ in range(40):
            listed = [Datagram(b"\1\2\3\4", 1, struct.pack("=I", offered + n) + bytes(996)) for n in range(64)]
            offered += door.write(listed)
            s.run()
        values = s.sent()
        assert values["offered"] == offered == s.received()["matched"]
        assert 0 < values["sent"] < offered
        assert values["failed_no_buffer_space"] == offered - values["sent"]
        assert dict(zip(_fastpath.WORKER_FIELDS, s.worker.read(), strict=True))["stalls"] == 0
        kept = s.read()
        assert [struct.unpack_from("=I", one.payload)[0] for one in kept] == list(range(values["sent"]))
        door.write([Datagram(b"\1\2\3\4", 1, b"again")])
        s.run()
        assert [one.payload for one in s.read()] == [b"again"]


def test_a_gateway_that_is_gone_loses_copies_and_they_are_counted() -> None:
    with stand() as s:
        s.out.close()
        assert Door(s.way_in).write([Datagram(b"\1\2\3\4", 1, b"x")] * 300) == 300
        s.run()
        assert (s.sent()["sent"], s.sent()["failed_no_buffer_space"]) == (0, 300)


def test_a_gateway_may_write_until_the_queue_is_full() -> None:
    with stand(queue=1 << 18) as s:
        door = Door(s.way_in)
        listed = [Datagram(b"\1\2\3\4", 1, struct.pack("=I", n) + bytes(1000)) for n in range(2000)]
        taken = door.write(listed)
        assert 0 < taken < 2000
        assert door.write(listed[taken:]) == 0
        s.run()
        assert [one.payload for one in s.read()] == [one.payload for one in listed[: s.received()["matched"]]]
        assert s.received()["matched"] == taken


@pytest.mark.parametrize("options", [{"pause_us": 1}, {"source": (b"\1\2\3\4", 1)}, {"per_session": True}])
def test_a_door_has_nothing_of_a_socket(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Tx(_fastpath.ENGINE_DOOR, 0, TxCounters(), bytes(16), 1, **options)  # type: ignore[arg-type]


# ---- an event loop


def test_a_gateway_in_an_event_loop_is_woken_and_waits_for_room() -> None:
    """add_reader tells of what comes and of the end; add_writer of room in a full queue."""

    async def gateway(door: Door) -> list[Datagram]:
        loop, got, ended = asyncio.get_running_loop(), list[Datagram](), asyncio.Event()

        def read() -> None:
            try:
                got.extend(door.read())
            except EOFError:
                loop.remove_reader(door)
                ended.set()

        loop.add_reader(door, read)
        await asyncio.wait_for(ended.wait(), 20)
        return got

    async def feed(sock: socket.socket, listed: list[Datagram]) -> None:
        loop, door, done = asyncio.get_running_loop(), Door(sock), 0
        while done < len(listed):
            done += door.write(listed[done:])
            room = loop.create_future()
            loop.add_writer(door, lambda room=room: room.done() or room.set_result(None))  # type: ignore[misc]
            await asyncio.wait_for(room, 20)
            loop.remove_writer(door)
        door.close()

    async def both() -> list[Datagram]:
        ours, theirs = pair(1 << 18)
        with closing(Door(theirs)) as door:
            got, _ = await asyncio.gather(gateway(door), feed(ours, listed))
            return got

    listed = [Datagram(b"\1\2\3\4", 1, struct.pack("=I", n) + bytes(996)) for n in range(3000)]
    assert asyncio.run(both()) == listed
