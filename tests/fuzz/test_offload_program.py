"""The BPF program of ingress offload, run by the kernel for a test (BPF_PROG_TEST_RUN): whatever frame comes, it ends;
it copies and drops only whole datagrams of a session that is on, shows each of them, counts every copy; a session that
is off learns when its datagrams pass, and what cannot be copied turns it off. By Hypothesis, and over the corpus of the
other fuzz targets.
"""

from __future__ import annotations

import mmap
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samplicator.host import offload
from samplicator.host.libbpf import Objects, ring_buffer

SESSION, SET = struct.Struct("=Q8x"), struct.Struct("=4Q4I8x")  # as in bpf/offload.h
RECEIVER, COUNTERS = struct.Struct("=I16s2sBBB14sx"), struct.Struct("=4Q")  # as in bpf/copies.h
RECORD = struct.Struct("=16s2sHBBBxIIIIQ")
PLACE, KEY = struct.Struct("=I16s2sxx"), struct.Struct("=16s2sH")
UNSPEC, SHOT = 0xFFFFFFFF, 2
NO_DEVICE, LO = 0x7FFFFFFF, 1
RING_BYTES = 1 << 20
LISTENER, NUMBER, CHOSEN, LIMIT = 3, 77, 5, 1400
HERE, MADE = 4095, (1 << 37) - 2
ON, OFF = MADE << 27 | CHOSEN << 13 | HERE << 1 | 1, 5000 << 13
PASSED = HERE << 1
"""Of a run for a test nobody knows when the packet came."""
PORT, SOURCE = b"\x08\x07", b"\x13\x88"
FROM = {4: socket.inet_aton("198.18.1.1"), 6: socket.inet_pton(socket.AF_INET6, "2001:db8:1::1")}
TO = {4: socket.inet_aton("198.18.0.1"), 6: socket.inet_pton(socket.AF_INET6, "2001:db8::1")}
CORPUS = sorted(path for path in (Path(__file__).parent / "corpus").rglob("*") if path.is_file())

pytestmark = pytest.mark.netns


def full(address: bytes) -> bytes:
    return address if len(address) == 16 else b"\0" * 10 + b"\xff\xff" + address


def word(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


class Program:
    """The program with one worker, a listener at one address of each family, and one session of each."""

    def __init__(self) -> None:
        self.made = Objects(offload.OBJECT.read_bytes(), [offload.PROGRAM])
        ring = ring_buffer(RING_BYTES)
        self.maps = self.made.maps
        self.maps["rings"].put(word(0), word(ring))
        self.consumer = mmap.mmap(ring, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self.shared = mmap.mmap(ring, 4096 + 2 * RING_BYTES, prot=mmap.PROT_READ, offset=4096)
        for family in (4, 6):
            self.maps["places"].put(PLACE.pack(LO, full(TO[family]), PORT), struct.pack("=HH", LISTENER, HERE))
            self.maps["keys"].put(KEY.pack(full(FROM[family]), SOURCE, LISTENER), word(NUMBER))

    def close(self) -> None:
        self.consumer.close()
        self.shared.close()
        self.made.close()

    def shown(self) -> list[bytes]:
        """Records since the last call."""
        (position,) = struct.unpack_from("=Q", self.consumer)
        (end,) = struct.unpack_from("=Q", self.shared)
        found = []
        while position < end:
            at = 4096 + position % RING_BYTES
            (head,) = struct.unpack_from("=I", self.shared, at)
            length = head & 0x3FFFFFFF
            if not head & 0x40000000:
                found.append(bytes(self.shared[at + 8 : at + 8 + length]))
            position += (length + 15) // 8 * 8
        struct.pack_into("=Q", self.consumer, 0, position)
        return found

    def set(self, state: int, *, live: bool = True, many: int = 1, made: int = MADE) -> None:
        """The session's word, and its set."""
        self.maps["sets"].put(word(CHOSEN), SET.pack(*self.taken(), made, live, many, LIMIT, 0))
        self.maps["sessions"].put(word(NUMBER), SESSION.pack(state))

    def state(self) -> int:
        return int(SESSION.unpack(self.maps["sessions"].get(word(NUMBER)) or b"")[0])

    def live(self) -> bool:
        return bool(SET.unpack(self.maps["sets"].get(word(CHOSEN)) or b"")[4])

    def taken(self) -> tuple[int, ...]:
        return SET.unpack(self.maps["sets"].get(word(CHOSEN)) or b"")[:3]

    def counted(self) -> list[tuple[int, ...]]:
        first = CHOSEN * offload.RECEIVERS
        return [COUNTERS.unpack(self.maps["counters"].get(word(first + n)) or b"") for n in range(4)]


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    try:
        made = Program()
    except OSError as error:
        pytest.skip(f"no BPF here: {error}")
    yield made
    made.close()


class Receiver:
    """What a receiver has of its own: all of it follows from a number."""

    def __init__(self, number: int, six: bool) -> None:
        self.address = bytes((number * 7 + n * 31 + 1) & 255 for n in range(16))
        self.port = struct.pack("!H", 1000 + number)
        self.ttl = (0, 1, 64, 255)[number % 4]
        self.tos = (None, 0, 0xB8)[number % 3]
        self.link = bytes((number + n) & 255 for n in range(12)) + (b"\x86\xdd" if six else b"\x08\x00")

    def value(self) -> bytes:
        return RECEIVER.pack(
            NO_DEVICE, self.address, self.port, self.ttl, self.tos is not None, self.tos or 0, self.link
        )


def folded(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def words(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def datagram(family: int, payload: bytes, ttl: int, tos: int, *, checksum: bool = True) -> bytes:
    """A whole frame of the session, to the listener."""
    udp = SOURCE + PORT + struct.pack("!HH", 8 + len(payload), 0) + payload
    total = words(FROM[family]) + words(TO[family]) + socket.IPPROTO_UDP + len(udp) + words(udp)
    if checksum or family == 6:
        udp = udp[:6] + struct.pack("!H", 0xFFFF - folded(total) or 0xFFFF) + udp[8:]
    if family == 6:
        head = struct.pack("!IHBB", 6 << 28 | tos << 20 | 0x12345, len(udp), socket.IPPROTO_UDP, ttl) + FROM[6] + TO[6]
        return bytes(12) + b"\x86\xdd" + head + udp
    head = struct.pack("!BBHHHBBH", 0x45, tos, 20 + len(udp), 7, 0x4000, ttl, socket.IPPROTO_UDP, 0) + FROM[4] + TO[4]
    head = head[:10] + struct.pack("!H", 0xFFFF - folded(words(head))) + head[12:]
    return bytes(12) + b"\x08\x00" + head + udp


def judge(frame: bytes, to: Receiver, payload: bytes, ttl: int, tos: int) -> None:
    """The frame is the datagram as this receiver gets it."""
    six = frame[12:14] == b"\x86\xdd"
    family, udp = (6, frame[54:]) if six else (4, frame[34:])
    address = to.address[: 16 if six else 4]
    assert frame[:14] == to.link
    if six:
        first, length, protocol, hops = struct.unpack("!IHBB", frame[14:22])
        assert (first, length, protocol) == (6 << 28 | (tos if to.tos is None else to.tos) << 20, len(udp), 17)
        assert (frame[22:38], frame[38:54]) == (FROM[6], address)
    else:
        hops = frame[22]
        assert folded(words(frame[14:34])) == 0xFFFF
        assert (frame[15], frame[20:22]) == (tos if to.tos is None else to.tos, b"\0\0")
        assert (frame[26:30], frame[30:34]) == (FROM[4], address)
    assert hops == (to.ttl or ttl)
    assert (udp[:2], udp[2:4], udp[8:]) == (SOURCE, to.port, payload)
    if udp[6:8] != b"\0\0":
        assert folded(words(FROM[family]) + words(address) + 17 + len(udp) + words(udp)) == 0xFFFF


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from((4, 6)),
    st.binary(max_size=60) | st.binary(min_size=900, max_size=1480),
    st.integers(0, 255),
    st.integers(0, 255),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(1, 4),
)
@example(4, b"", 1, 0, True, True, True, 4)
@example(4, bytes(LIMIT - 28), 1, 0, True, True, True, 1)
@example(4, bytes(LIMIT - 27), 1, 0, True, True, True, 1)
@example(6, bytes(LIMIT - 48), 1, 0, True, True, True, 1)
@example(6, bytes(LIMIT - 47), 1, 0, True, True, True, 1)
def test_a_session(
    program: Program, family: int, payload: bytes, ttl: int, tos: int, checksum: bool, on: bool, live: bool, many: int
) -> None:
    """on: the session, live: its set."""
    frame = datagram(family, payload, ttl, tos, checksum=checksum)
    everyone = [Receiver(n, family == 6) for n in range(many)]
    for n, receiver in enumerate(everyone):
        program.maps["receivers"].put(word(CHOSEN * offload.RECEIVERS + n), receiver.value())
    taken, counted = program.taken(), program.counted()
    program.set(ON if on else OFF, live=live, many=many)
    padded = frame + bytes(max(0, 60 - len(frame)))
    verdict, after = program.made.run(offload.PROGRAM, padded)
    copied = on and live and len(frame) - 14 <= LIMIT and (checksum or family == 6)
    now = program.counted()
    if not copied:
        assert (verdict, after) == (UNSPEC, padded)
        assert program.state() == PASSED
        assert (program.taken(), now, program.shown()) == (taken, counted, [])
        return
    assert verdict == SHOT
    assert (program.state(), program.live()) == (ON, False)  # the copies fail: there is no such interface
    assert program.taken() == (taken[0] + 1, taken[1] + len(payload), *taken[2:])
    assert [a[3] - b[3] for a, b in zip(now, counted, strict=True)] == [1] * many + [0] * (4 - many)
    judge(after, everyone[-1], payload, ttl, tos)
    (record,) = program.shown()
    head = RECORD.unpack_from(record)
    assert head == (
        full(FROM[family]), SOURCE, LISTENER, family == 6, ttl, tos, len(payload), 0, NUMBER, CHOSEN, 0,
    )  # fmt: skip
    assert record[RECORD.size : RECORD.size + len(payload)] == payload


def passes(program: Program, frame: bytes, state: int = ON) -> None:
    """It passes as it is; state: of the session then."""
    program.set(ON)
    before = program.taken(), program.counted()
    assert program.made.run(offload.PROGRAM, frame) == (UNSPEC, frame)
    assert program.state() == state
    assert ((program.taken(), program.counted()), program.shown()) == (before, [])


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(min_size=54, max_size=120))
def test_whatever_comes(program: Program, frame: bytes) -> None:
    for kind in (b"\x08\x00", b"\x86\xdd", b"\x81\x00"):
        passes(program, frame[:12] + kind + frame[14:])


@pytest.mark.parametrize("family", [4, 6])
def test_every_field_of_the_headers(program: Program, family: int) -> None:
    """One byte changed: the datagram is another session's, or none; or it is the session's, and is copied."""
    frame = datagram(family, b"payload", 64, 0)
    udp = 54 if family == 6 else 34
    free = {*range(udp + 6, udp + 8), *range(6, 12)}  # checksum, and whose link address it came from
    free |= {14, 15, 16, 17, 21} if family == 6 else {14, 15, 18, 19, 20, 21, 22, 24, 25}
    for place in range(udp + 8):
        if place not in free:
            state = PASSED if place == udp + 5 else ON  # a shorter UDP: the stack takes it
            passes(program, frame[:place] + bytes([frame[place] ^ 1]) + frame[place + 1 :], state)
    for version in (b"\x55", b"\x44", b"\x00"):
        passes(program, frame[:14] + version + frame[15:])
    for cut in range(udp, len(frame)):  # the kernel runs no test with less than an IP header
        passes(program, frame[:cut])


def fragment(family: int, offset: int, more: bool) -> bytes:
    """A part of a datagram of the session: its first has the ports. RFC 791; RFC 8200, section 4.5."""
    frame = datagram(family, b"payload" * 8, 64, 0)
    place = offset << (3 if family == 6 else 0) | more << (0 if family == 6 else 13)
    if family == 6:
        part = bytes([socket.IPPROTO_UDP, 0]) + struct.pack("!HI", place, 77) + frame[54:]
        return frame[:18] + struct.pack("!HB", len(part), 44) + frame[21:54] + part
    head = frame[14:20] + struct.pack("!H", place) + frame[22:24] + b"\0\0" + frame[26:34]
    head = head[:10] + struct.pack("!H", 0xFFFF - folded(words(head))) + head[12:]
    return frame[:14] + head + frame[34:]


@pytest.mark.parametrize("family", [4, 6])
def test_what_cannot_be_copied_turns_the_session_off(program: Program, family: int) -> None:
    """The first fragment, a header with options; not a fragment without ports, which is nobody's."""
    passes(program, fragment(family, 0, True), PASSED)
    passes(program, fragment(family, 3, True))
    passes(program, fragment(family, 3, False))
    frame = datagram(family, b"payload", 64, 0)
    if family == 6:
        for kind in (0, 43, 60):
            more = bytes([socket.IPPROTO_UDP, 1]) + bytes(14)
            length = struct.pack("!H", len(more) + len(frame) - 54)
            passes(program, frame[:18] + length + bytes([kind]) + frame[21:54] + more + frame[54:], PASSED)
        passes(program, frame[:20] + bytes([0]) + frame[21:54] + bytes([59, 0]) + bytes(6) + frame[54:])
    else:
        passes(program, frame[:14] + b"\x46" + frame[15:34] + b"\x01\x01\x01\x01" + frame[34:], PASSED)


def test_another_place_and_another_set(program: Program) -> None:
    """A session is on for one place; and only for the set that it was turned on with."""
    frame = datagram(4, b"payload", 64, 0)
    passes_by = ON ^ (HERE ^ 1) << 1
    program.set(passes_by)
    assert program.made.run(offload.PROGRAM, frame) == (UNSPEC, frame)
    assert program.state() == passes_by
    program.set(ON, made=MADE - 1)
    assert program.made.run(offload.PROGRAM, frame) == (UNSPEC, frame)
    assert program.state() == PASSED
    program.set(passes_by, made=MADE - 1)  # nor for ever for a place that is gone
    assert program.made.run(offload.PROGRAM, frame) == (UNSPEC, frame)
    assert program.state() == PASSED
    for moment in (0, 1, 2, 999):  # several of one moment: none of them is known to be the last
        program.set(moment << 13 | PASSED)
        assert program.made.run(offload.PROGRAM, frame) == (UNSPEC, frame)
        assert program.state() == (moment + 1) << 13 | PASSED
    assert program.shown() == []


@pytest.mark.parametrize("family", [4, 6])
def test_the_corpus_of_the_other_targets(program: Program, family: int) -> None:
    """As payloads of the session."""
    assert CORPUS
    for path in CORPUS:
        data = path.read_bytes()[: LIMIT - 48]
        program.maps["receivers"].put(word(CHOSEN * offload.RECEIVERS), Receiver(0, family == 6).value())
        program.set(ON)
        verdict, after = program.made.run(offload.PROGRAM, datagram(family, data, 9, 8))
        assert verdict == SHOT
        judge(after, Receiver(0, family == 6), data, 9, 8)
        (record,) = program.shown()
        assert record[RECORD.size : RECORD.size + len(data)] == data
