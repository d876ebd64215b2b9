"""The BPF program of the copier, run by the kernel for a test (BPF_PROG_TEST_RUN): whatever frame it gets, it ends,
copies only what is ours, counts each copy, and leaves the packet as the last receiver was to have it. By Hypothesis,
and over the corpus of the other fuzz targets.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samplicator.host import copier
from samplicator.host.libbpf import Objects

TOKEN = 0x51C0FFEF
KIND, MOST, WORKERS = 0x88B5, 64, 256
RECEIVER, CALL = struct.Struct("=I16s2sBBB14sx"), struct.Struct("=IHHHBB2s")  # as in bpf/copies.h
UNSPEC, REDIRECT = 0xFFFFFFFF, 7
NO_DEVICE = 0x7FFFFFFF
CORPUS = sorted(path for path in (Path(__file__).parent / "corpus").rglob("*") if path.is_file())

pytestmark = pytest.mark.netns


class Receiver:
    """What a receiver has of its own: all of it follows from a number."""

    def __init__(self, number: int) -> None:
        self.address = bytes((number * 7 + n * 31) & 255 for n in range(16))
        self.port = struct.pack("!H", 1000 + number % 5000)
        self.ttl = (0, 1, 64, 255)[number % 4]
        self.tos = (None, 0, 0xB8)[number % 3]
        self.link = bytes((number + n) & 255 for n in range(12))

    def value(self, six: bool) -> bytes:
        link = self.link + (b"\x86\xdd" if six else b"\x08\x00")
        return RECEIVER.pack(NO_DEVICE, self.address, self.port, self.ttl, self.tos is not None, self.tos or 0, link)


@pytest.fixture(scope="module")
def program() -> Iterator[Objects]:
    try:
        made = Objects(copier.OBJECT.read_bytes(), ["copy_frames"])
    except OSError as error:
        pytest.skip(f"no BPF here: {error}")
    made.maps["token"].put(bytes(4), struct.pack("=I", TOKEN))
    yield made
    made.close()


def folded(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def words(data: bytes) -> int:
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def dressed(packet: bytes, to: Receiver, six: bool, tos: int) -> bytes:
    """RFC 1624, equation 3, on a field that has a sum and not its complement; RFC 791, RFC 8200 section 3."""
    new = bytearray(packet)
    new[:14] = to.link + (b"\x86\xdd" if six else b"\x08\x00")
    tos = tos if to.tos is None else to.tos
    where = slice(38, 54) if six else slice(30, 34)
    udp = 54 if six else 34
    before, after = bytes(new[where]), to.address[: 16 if six else 4]
    new[where] = after
    new[udp + 2 : udp + 4] = to.port
    field = int.from_bytes(new[udp + 6 : udp + 8], "big")
    if six or field:
        field = folded(field + folded(words(after)) + (0xFFFF - folded(words(before))))
        new[udp + 6 : udp + 8] = field.to_bytes(2, "big")
    if six:
        first = int.from_bytes(new[14:18], "big") & ~0x0FF00000 | tos << 20
        new[14:18] = first.to_bytes(4, "big")
        new[21] = to.ttl or new[21]
    else:
        new[15], new[22] = tos, to.ttl or new[22]
        new[24:26] = bytes(2)
        new[24:26] = (0xFFFF - folded(words(bytes(new[14:34])))).to_bytes(2, "big")
    return bytes(new)


def counted(program: Objects, worker: int) -> list[tuple[int, ...]]:
    """Of each of the worker's slots: sent, sent bytes, no buffer, other."""
    found = []
    for slot in range(worker * MOST, (worker + 1) * MOST):
        found.append(struct.unpack("=4Q", program.maps["counters"].get(struct.pack("=I", slot)) or bytes(32)))
    return found


def check(program: Objects, call: tuple[int, int, int, int, bool, int], kind: int, body: bytes) -> None:
    token, worker, count, datagrams, six, tos = call
    frame = CALL.pack(token, worker, count, datagrams, six, tos, struct.pack("!H", kind)) + body
    everyone = [Receiver(worker + n) for n in range(MOST)]
    known = worker < WORKERS
    for n, receiver in enumerate(everyone if known else []):
        program.maps["receivers"].put(struct.pack("=I", worker * MOST + n), receiver.value(six))
    before = counted(program, worker) if known else []
    verdict, after = program.run("copy_frames", frame)
    if token != TOKEN or kind != KIND:
        assert (verdict, after) == (UNSPEC, frame)
        assert not known or counted(program, worker) == before
        return
    assert verdict == REDIRECT
    copies = min(count, MOST) if known and len(frame) >= (62 if six else 42) else 0
    wanted = frame
    for receiver in everyone[:copies]:
        wanted = dressed(wanted, receiver, six, tos)
    assert after == wanted
    if known:
        now = counted(program, worker)
        assert [(a[0], a[1], a[2]) for a in now] == [(b[0], b[1], b[2]) for b in before]
        assert [a[3] - b[3] for a, b in zip(now, before, strict=True)] == [datagrams] * copies + [0] * (MOST - copies)


bodies = st.binary(min_size=1, max_size=80) | st.binary(min_size=28, max_size=1500)
tokens = st.sampled_from((TOKEN, TOKEN, TOKEN, TOKEN, 0, TOKEN + 1))


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    tokens,
    st.integers(0, 3) | st.sampled_from((255, 256, 65535)),
    st.integers(0, 5) | st.sampled_from((63, 64, 65, 65535)),
    st.integers(0, 65535),
    st.booleans(),
    st.integers(0, 255),
    st.sampled_from((KIND, KIND, KIND, KIND + 1)),
    bodies,
)
@example(TOKEN, 0, 3, 1, False, 0, KIND, bytes(27))
@example(TOKEN, 0, 3, 1, True, 0, KIND, bytes(47))
@example(TOKEN, 255, 64, 64, True, 255, KIND, bytes(48))
def test_whatever_comes(
    program: Objects,
    token: int,
    worker: int,
    count: int,
    datagrams: int,
    six: bool,
    tos: int,
    kind: int,
    body: bytes,
) -> None:
    check(program, (token, worker, count, datagrams, six, tos), kind, body)


@pytest.mark.parametrize("six", [False, True])
def test_the_corpus_of_the_other_targets(program: Objects, six: bool) -> None:
    """As payloads behind headers, and as if they were the packet."""
    assert CORPUS
    for number, path in enumerate(CORPUS):
        for data in (path.read_bytes()[:1400], os.urandom(8)):
            udp = struct.pack("!HHHH", 2055, 9, 8 + len(data), number & 0xFFFF) + data
            if six:
                ip = struct.pack("!IHBB", 6 << 28, len(udp), socket.IPPROTO_UDP, 64) + bytes(32)
            else:
                ip = struct.pack("!BBHHHBBH8x", 0x45, 0, 20 + len(udp), number & 0xFFFF, 0, 64, socket.IPPROTO_UDP, 0)
            for body in (ip + udp, data or b"\0"):
                check(program, (TOKEN, number % 4, 1 + number % 5, 1, six, number & 255), KIND, body)
