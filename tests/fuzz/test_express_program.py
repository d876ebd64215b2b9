"""The XDP program at interfaces, run by the kernel for a test (BPF_PROG_TEST_RUN): whatever frame comes, it ends; it
takes only whole datagrams of a session that XDP has, shows each of them and marks it for the copies; all others pass as
they are, with a number while XDP waits for the session, and what cannot be copied turns it off.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator

import pytest
from fuzz.test_offload_program import (
    CHOSEN,
    CORPUS,
    FROM,
    HERE,
    LIMIT,
    LISTENER,
    LO,
    MADE,
    NUMBER,
    RECORD,
    SET,
    SOURCE,
    Program,
    datagram,
    fragment,
    full,
    word,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samplicator.host import express

SESSION, POLL = struct.Struct("=QQ"), struct.Struct("=4IQ")  # as in bpf/offload.h
PASS, REDIRECT = 2, 4
EXPRESS = 1 << 26
ON, UNKNOWN = MADE << 27 | EXPRESS | CHOSEN << 13 | HERE << 1 | 1, HERE << 1
COUNT = 40
"""Of frames that have passed; 1 more: XDP has the session."""

pytestmark = pytest.mark.netns


class Xdp:
    def __init__(self) -> None:
        self.tcx = Program()
        self.made = express.Express(self.tcx.maps, 32, 64)
        self.made.maps["devices"].put(word(LO), bytes(8))

    def set(self, state: int, count: int, *, live: bool = True) -> None:
        maps = self.tcx.maps
        maps["sets"].put(word(CHOSEN), SET.pack(*self.tcx.taken(), MADE, live, 1, LIMIT, 0))
        maps["sessions"].put(word(NUMBER), SESSION.pack(state, count))

    def state(self) -> tuple[int, ...]:
        return SESSION.unpack(self.tcx.maps["sessions"].get(word(NUMBER)) or b"")

    def run(self, frame: bytes) -> tuple[int, bytes]:
        return self.made.run(express.INGRESS, frame)

    def close(self) -> None:
        self.made.close()
        self.tcx.close()


@pytest.fixture(scope="module")
def xdp() -> Iterator[Xdp]:
    try:
        made = Xdp()
    except OSError as error:
        pytest.skip(f"no XDP here: {error}")
    yield made
    made.close()


def passes(xdp: Xdp, frame: bytes, state: int = ON, count: int = COUNT | 1) -> None:
    """It passes as it is; state, count: of the session then."""
    xdp.set(ON, COUNT | 1)
    before = xdp.tcx.taken(), xdp.tcx.counted()
    assert xdp.run(frame) == (PASS, frame)
    assert xdp.state() == (state, count)
    assert ((xdp.tcx.taken(), xdp.tcx.counted()), xdp.tcx.shown()) == (before, [])


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
    st.sampled_from(("express", "waits", "tcx", "off", "stopped", "another set")),
    st.booleans(),
    st.sampled_from((b"", b"trailer")),
)
@example(4, b"", 1, 0, "express", True, b"")
@example(4, bytes(LIMIT - 28), 1, 0, "express", True, b"")
@example(4, bytes(LIMIT - 27), 1, 0, "express", True, b"")
@example(6, bytes(LIMIT - 48), 1, 0, "express", True, b"")
@example(6, bytes(LIMIT - 47), 1, 0, "express", True, b"")
def test_a_session(
    xdp: Xdp, family: int, payload: bytes, ttl: int, tos: int, how: str, checksum: bool, trailer: bytes
) -> None:
    frame = datagram(family, payload, ttl, tos, checksum=checksum)
    words = {"tcx": ON & ~EXPRESS, "off": 5000 << 13, "another set": ON + (1 << 27)}
    count = COUNT | (how != "waits")
    begun = words.get(how, ON)
    taken = xdp.tcx.taken()
    xdp.set(begun, count, live=how != "stopped")
    padded = frame + bytes(max(0, 60 - len(frame)))  # and a trailer: such bytes go
    verdict, after = xdp.run(padded + trailer)
    fits = len(frame) - 14 <= LIMIT and (checksum or family == 6)
    if how == "express" and fits:
        assert verdict == REDIRECT
        assert after[8:12] + after[12:] == word(CHOSEN) + padded[12:]
        assert xdp.state() == (ON, count)
        assert xdp.tcx.taken() == (taken[0] + 1, taken[1] + len(payload), *taken[2:])
        (record,) = xdp.tcx.shown()
        head = RECORD.unpack_from(record)
        assert head == (
            full(FROM[family]), SOURCE, LISTENER, family == 6, ttl, tos, len(payload), 0, NUMBER, CHOSEN, 0,
        )  # fmt: skip
        assert record[RECORD.size : RECORD.size + len(payload)] == payload
        return
    tag = struct.pack("=Q", COUNT + 2) if how == "waits" else b""  # a test gives the metadata, too
    assert (verdict, after) == (PASS, tag + padded + trailer)
    assert (xdp.tcx.taken(), xdp.tcx.shown()) == (taken, [])
    if how == "waits":
        assert xdp.state() == (ON, COUNT + 2)
    elif how in ("tcx", "off"):
        assert xdp.state() == (begun, count)
    else:
        assert xdp.state() == (UNKNOWN, count)


def has_made(xdp: Xdp, copies: int) -> None:
    """So many were made in this poll, on each CPU; the set's receivers have room for three."""
    polls = xdp.tcx.maps["polls"]
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    polls.put(word(0), POLL.pack(copies, 0, 0, 0, now) * (polls.room // POLL.size))
    room = SET.pack(*xdp.tcx.taken(), MADE, 1, 1, LIMIT, 0)[:-8] + struct.pack("=II", 3, 0)
    xdp.tcx.maps["sets"].put(word(CHOSEN), room)


@pytest.mark.parametrize(
    ("copies", "fresh", "slow", "work", "left"),
    [
        (100, 1, 0, 64, 0),  # the poll that made them: a NIC takes them now ...
        (100, 1, 1, 5, 100),  # ... and veth later
        (100, 0, 1, 64, 36),  # its other end has taken a poll of them ...
        (100, 0, 1, 63, 0),  # ... or all
        (40, 0, 1, 64, 0),
    ],
)
def test_what_a_poll_gives_back(xdp: Xdp, copies: int, fresh: int, slow: int, work: int, left: int) -> None:
    polls = xdp.tcx.maps["polls"]
    mine = os.sched_getaffinity(0)
    cpu = min(mine)
    os.sched_setaffinity(0, {cpu})
    try:
        for _ in range(100):  # a device may be polled just then, and is told, too
            polls.put(word(0), POLL.pack(copies, fresh, slow, 0, 1) * (polls.room // POLL.size))
            xdp.made.tell(express.POLLED, 0, work, 64)
            found = POLL.unpack_from(polls.get(word(0)) or b"", cpu * POLL.size)
            if found == (left, 0, slow, 0, 1):
                break
        assert found == (left, 0, slow, 0, 1)
    finally:
        os.sched_setaffinity(0, mine)


def test_a_poll_makes_no_more_copies_than_there_is_room_for(xdp: Xdp) -> None:
    frame = datagram(4, bytes(100), 64, 0)
    for before in (0, 2):
        xdp.set(ON, COUNT | 1)
        has_made(xdp, before)
        assert xdp.run(frame)[0] == REDIRECT
        assert len(xdp.tcx.shown()) == 1
    for _ in range(100):  # another device may be polled just then, and a poll is over with that
        xdp.set(ON, COUNT | 1)
        has_made(xdp, 3)
        verdict, _after = xdp.run(frame)
        if verdict == PASS:
            break
        xdp.tcx.shown()
    assert (verdict, xdp.state()) == (PASS, (UNKNOWN, COUNT | 1))
    xdp.set(ON, COUNT | 1)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(min_size=54, max_size=120))
def test_whatever_comes(xdp: Xdp, frame: bytes) -> None:
    for kind in (b"\x08\x00", b"\x86\xdd", b"\x81\x00"):
        passes(xdp, bytes(6) + frame[6:12] + kind + frame[14:])


@pytest.mark.parametrize("family", [4, 6])
def test_every_field_of_the_headers(xdp: Xdp, family: int) -> None:
    """One bit changed: the datagram is another session's, or not for this host; or it is the session's."""
    frame = datagram(family, b"payload", 64, 0)
    udp = 54 if family == 6 else 34
    free = {*range(udp + 6, udp + 8), *range(6, 12)}  # checksum, and whose link address it came from
    free |= {14, 15, 16, 17, 21} if family == 6 else {14, 15, 18, 19, 20, 21, 22, 24, 25}
    for place in range(udp + 8):
        if place not in free:
            state = UNKNOWN if place == udp + 5 else ON  # a shorter UDP: the stack takes it
            passes(xdp, frame[:place] + bytes([frame[place] ^ 1]) + frame[place + 1 :], state)
    for cut in range(udp, len(frame)):
        passes(xdp, frame[:cut])


@pytest.mark.parametrize("family", [4, 6])
def test_what_cannot_be_copied_turns_the_session_off(xdp: Xdp, family: int) -> None:
    """The first fragment; a checksum that a device was to make: the sum of the pseudo header only."""
    passes(xdp, fragment(family, 0, True), UNKNOWN)
    passes(xdp, fragment(family, 3, True))
    frame = datagram(family, b"payload", 64, 0)
    udp = 54 if family == 6 else 34
    addresses = frame[22:54] if family == 6 else frame[26:34]
    data = addresses + struct.pack("!HH", 17, len(frame) - udp)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    passes(xdp, frame[: udp + 6] + struct.pack("!H", total) + frame[udp + 8 :], UNKNOWN)


def test_the_corpus(xdp: Xdp) -> None:
    """As payloads: each is shown as it is."""
    assert CORPUS
    for path in CORPUS:
        payload = path.read_bytes()[: LIMIT - 48]
        for family in (4, 6):
            xdp.set(ON, COUNT | 1)
            verdict, after = xdp.run(datagram(family, payload, 64, 0))
            start = 42 + 20 * (family == 6)
            assert (verdict, after[start : start + len(payload)]) == (REDIRECT, payload)
            (record,) = xdp.tcx.shown()
            assert record[RECORD.size : RECORD.size + len(payload)] == payload
