"""Reading a ring of crafted blocks: what the kernel may show at any moment, and what it never would. Nothing outside a
slot is read, nothing comes twice, and what is late is not lost. Blocks in, datagrams out.

The kernel's part is played here as net/packet/af_packet.c has it (prb_fill_curr_block, tpacket_rcv, prb_close_block).
"""

from __future__ import annotations

import random
import struct
import sys
import time
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
from samplicator import _inside
from samplicator._inside import RxCounters, RxSocket
from samplicator.host.ring import READS_OPEN

BLOCK = 1 << 14
HEADER = 48
LINK, NETWORK = 92, 106
USER, CSUM_VALID = 1, 1 << 7
UDP_L4 = 5
NOTHING, LATER, NOW = 0, 1, 2
DICE = random.Random(7)
FIELDS = {"next": 0, "sec": 4, "nsec": 8, "snaplen": 12, "length": 16, "status": 20, "mac": 24, "net": 26}
"""Of struct tpacket3_hdr; mac and net have two bytes."""

if sys.byteorder != "little":
    pytest.skip("the crafted blocks are of a little-endian machine", allow_module_level=True)
needs_open = pytest.mark.skipif(not READS_OPEN, reason="open blocks are read on x86-64 only")


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def frame(payload: bytes, *, source: str = "198.18.0.7", port: int = 5000, size: int | None = None) -> bytes:
    """An Ethernet frame with a UDP datagram, no UDP checksum. size: what the headers say if not the truth."""
    udp = 8 + (len(payload) if size is None else size)
    if ":" in source:
        ip = struct.pack("!IHBB", 6 << 28, udp, 17, 61) + ip_address(source).packed + bytes(15) + b"\1"
        return bytes(12) + b"\x86\xdd" + ip + struct.pack("!HHHH", port, 2055, udp, 0) + payload
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0x20, 20 + udp, 0, 0, 61, 17, 0, ip_address(source).packed, b"\xc6\x12\0\1")
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return bytes(12) + b"\x08\0" + ip + struct.pack("!HHHH", port, 2055, udp, 0) + payload


@dataclass
class Kernel:
    """A ring and who fills it. place: of the next slot in the block that is filled; last: of the one before it."""

    blocks: int = 4
    opened: bool = READS_OPEN
    block: int = 0
    place: int = HEADER
    last: int = 0
    counters: RxCounters = field(default_factory=RxCounters)

    def __post_init__(self) -> None:
        self.map = bytearray(self.blocks * BLOCK)
        self.bell = bytearray(4)
        bell = {"bell": self.bell} if self.opened else {}
        self.rx = RxSocket(-1, self.counters, 0, ring=self.map, block_bytes=BLOCK, **bell)

    @property
    def base(self) -> int:
        return self.block * BLOCK

    def word(self, place: int, value: int | None = None, size: str = "I") -> int:
        if value is not None:
            struct.pack_into(f"={size}", self.map, place, value)
        return int(struct.unpack_from(f"={size}", self.map, place)[0])

    def set(self, slot: int, **values: int) -> None:
        """Fields of the header of the slot at this offset in the ring."""
        for name, value in values.items():
            self.word(slot + FIELDS[name], value, "H" if name in ("mac", "net") else "I")

    def begin(self, at: int = 1_000_000_000) -> None:
        """Opens the block."""
        struct.pack_into("=IIIIQII", self.map, self.base + 8, 0, 0, HEADER, HEADER, 0, at, 0)
        self.place = HEADER

    def reserve(self, data: bytes, gso: tuple[int, int] | None = (0, 0)) -> int:
        """What happens under the lock: the slot, the count, the virtio-net header (gso: type and size; None: cannot be
        said). Returns the slot's offset in the ring.
        """
        slot, step = self.base + self.place, (LINK + len(data) + 7) & ~7
        if self.place + step >= BLOCK:
            raise BufferError
        self.set(slot, next=step, status=0)
        self.word(self.base + 12, self.word(self.base + 12) + 1)
        self.word(self.base + 20, self.place + step)
        if gso is not None:
            struct.pack_into("=BBHHHH", self.map, slot + LINK - 10, 1 if gso[0] else 0, gso[0], 42, gso[1], 0, 0)
        self.last, self.place = slot, self.place + step
        return slot

    def fill(self, slot: int, data: bytes, *, at: int = 1_000_000_001, header: bool = True) -> None:
        """What happens without it. header: the fields after the status too."""
        self.map[slot + LINK : slot + LINK + len(data)] = data
        self.set(slot, status=USER)
        if header:
            self.set(slot, snaplen=len(data), length=len(data), mac=LINK, net=NETWORK, sec=at, nsec=0)

    def put(self, data: bytes, gso: tuple[int, int] = (0, 0)) -> int:
        slot = self.reserve(data, gso)
        self.fill(slot, data)
        return slot

    def close(self) -> None:
        """Closes the block and opens the next one, if it was given back."""
        self.set(self.last, next=0)
        self.word(self.base + 8, USER)
        self.block = (self.block + 1) % self.blocks
        if not self.word(self.base + 8):
            self.begin()

    def read(self, most: int = 512, **options: int) -> list[bytes]:
        return [found[-1] for found in _inside.ring_read(self.rx, most, **options)]

    def count(self, name: str) -> int:
        return self.counters.read()[_inside.RX_FIELDS.index(name)]


def begun() -> Kernel:
    made = Kernel()
    made.begin()
    return made


@pytest.fixture
def kernel() -> Kernel:
    return begun()


def number(i: int, size: int = 40) -> bytes:
    return i.to_bytes(4) + bytes(size - 4)


def test_a_datagram_as_it_came(kernel: Kernel) -> None:
    kernel.put(frame(b"four"))
    kernel.put(frame(b"six", source="2001:db8::7", port=6000), (UDP_L4, 3))
    kernel.close()
    four, six = _inside.ring_read(kernel.rx, 512)
    assert four[:5] == (bytes(10) + b"\xff\xff\xc6\x12\0\7", 5000, 61, 0x20, 1_000_000_001 * 10**9)
    assert six[:4] == (ip_address("2001:db8::7").packed, 6000, 61, 0)
    assert (four[-1], six[-1]) == (b"four", b"six")


@pytest.mark.parametrize("opened", [False, pytest.param(True, marks=needs_open)])
@pytest.mark.parametrize("most", [1, 3, 512])
def test_round_and_round(opened: bool, most: int) -> None:
    """Datagrams of all sizes, each once and in order, whenever the reader comes and wherever a block ends."""
    kernel = Kernel(opened=opened)
    kernel.begin()
    dice = random.Random(most)
    sent, got = 0, []
    while len(got) < 3000:
        for _ in range(dice.randrange(8)):
            data = frame(number(sent, dice.choice((4, 40, 41, 47, 1400, 3000))))
            try:
                kernel.put(data)
            except BufferError:
                if kernel.word((kernel.block + 1) % kernel.blocks * BLOCK + 8):
                    break  # full
                kernel.close()
                kernel.put(data)
            sent += 1
        got += kernel.read(most)
    assert [int.from_bytes(payload[:4]) for payload in got] == list(range(len(got)))
    assert opened is False or most < 512 or len(got) == sent
    assert kernel.count("errors_other") == 0


def test_segments_of_a_run(kernel: Kernel) -> None:
    run = b"".join(number(i, 100) for i in range(20)) + b"short"
    kernel.put(frame(run), (UDP_L4, 100))
    kernel.close()
    got = kernel.read(7)
    assert len(got) == 7
    got += kernel.read()
    assert b"".join(got) == run
    assert [len(payload) for payload in got] == [100] * 20 + [5]


def test_a_segment_size_that_lies(kernel: Kernel) -> None:
    kernel.put(frame(b"none"), (UDP_L4, 0))
    kernel.put(frame(b"larger"), (UDP_L4, 65535))
    kernel.put(frame(b"beyond", size=900), (UDP_L4, 100))
    kernel.put(frame(b"beyond", size=900), (0, 0))
    kernel.close()
    assert kernel.read() == [b"larger"]
    assert kernel.count("errors_other") == 3


def test_what_the_kernel_never_filled_is_left_out(kernel: Kernel) -> None:
    """Old datagrams at the same places are not taken again, and not counted: the kernel did."""
    for _ in range(kernel.blocks):
        for i in range(20):
            kernel.put(frame(number(i)))
        kernel.close()
        assert len(kernel.read()) == 20
    for i in range(20):
        if i % 3:
            kernel.reserve(frame(number(i)), None)
        else:
            kernel.put(frame(number(100 + i)))
    kernel.close()
    assert [int.from_bytes(payload[:4]) for payload in kernel.read()] == [100 + i for i in range(0, 20, 3)]
    assert kernel.count("errors_other") == 0


@needs_open
def test_an_open_block_is_read_as_it_grows(kernel: Kernel) -> None:
    assert (kernel.read(), _inside.ring_wait(kernel.rx)) == ([], NOTHING)
    kernel.put(frame(b"1"))
    assert _inside.ring_wait(kernel.rx) == NOW
    assert (kernel.read(), _inside.ring_wait(kernel.rx)) == ([b"1"], NOTHING)
    kernel.put(frame(b"2"))
    kernel.put(frame(b"3"))
    assert kernel.read() == [b"2", b"3"]
    kernel.close()
    assert (kernel.read(), _inside.ring_wait(kernel.rx)) == ([], NOTHING)
    kernel.put(frame(b"4"))
    assert kernel.read() == [b"4"]
    assert kernel.rx.mark == (1, kernel.place)


@needs_open
def test_without_a_doorbell_it_is_not() -> None:
    kernel = Kernel(opened=False)
    kernel.begin()
    kernel.put(frame(b"1"))
    assert kernel.read() == []
    kernel.close()
    assert kernel.read() == [b"1"]


PATIENCE_SECONDS = 0.001
"""RING_PATIENCE_NS: how long a slot is waited for."""


@needs_open
def test_what_is_on_its_way_is_waited_for() -> None:
    """The status is cleared before, and stored before the rest of the header, which may be that of another packet."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        kernel = begun()
        for _ in range(kernel.blocks):
            kernel.put(frame(b"old old old old"))
            kernel.put(frame(b"another"))
            kernel.close()
            assert len(kernel.read()) == 2
        data = frame(b"new")
        slot = kernel.reserve(data)
        begin = time.monotonic()
        found = [(kernel.read(), _inside.ring_wait(kernel.rx))]
        kernel.fill(slot, data, header=False)
        found.append((kernel.read(), _inside.ring_wait(kernel.rx)))
        kernel.set(slot, length=len(data), snaplen=len(data))
        kernel.set(slot, mac=0)
        found.append((kernel.read(), _inside.ring_wait(kernel.rx)))
        kernel.set(slot, mac=LINK)
        found.append((kernel.read(), _inside.ring_wait(kernel.rx)))
        if time.monotonic() - begin < PATIENCE_SECONDS:  # else the CPU was with others, and the slot is passed over
            assert found == [([], LATER), ([], LATER), ([], LATER), ([b"new"], NOTHING)]
            return
    pytest.fail("this machine never gives a millisecond in a row")


@needs_open
@pytest.mark.parametrize("more", [False, True])
def test_where_two_ways_overlap_the_time_of_arrival_is_taken_as_it_is(more: bool) -> None:
    """A datagram may have arrived before its block was begun, and the socket tells that time too."""
    kernel = Kernel()
    kernel.begin(at=1_000_000_005)
    kernel.put(frame(b"one"))
    assert _inside.ring_wait(kernel.rx) == NOW  # the worker has looked, and is told to rest before it reads
    kernel.rx.rest()
    kernel.rx.set_overlap(_inside.Overlap())
    if more:
        kernel.put(frame(b"two"))
    assert {found[4] for found in _inside.ring_read(kernel.rx, 512)} == {1_000_000_001 * 10**9}
    assert kernel.rx.overlapping
    assert kernel.read() == []
    assert not kernel.rx.overlapping


@needs_open
def test_an_old_time_of_arrival_is_not_believed(kernel: Kernel) -> None:
    slot = kernel.put(frame(b"x"))
    kernel.set(slot, sec=5)
    assert _inside.ring_read(kernel.rx, 512)[0][4] == 1_000_000_000 * 10**9


def read_late(kernel: Kernel) -> list[bytes]:
    """Reads until the slot that is waited for is passed over."""
    got: list[bytes] = []
    end = time.monotonic() + 10
    while not got and time.monotonic() < end:
        got = kernel.read()
    return got


@needs_open
@pytest.mark.parametrize("late", [False, True])
def test_a_slot_that_is_late_and_one_that_never_comes(kernel: Kernel, late: bool) -> None:
    """After a millisecond those behind it are read; when the block is closed the late one is, and no other again."""
    kernel.put(frame(b"1"))
    data = frame(b"late")
    hole = kernel.reserve(data, None)
    kernel.put(frame(b"2"))
    kernel.put(frame(b"3"))
    assert kernel.read() == [b"1"]
    assert read_late(kernel) == [b"2", b"3"]
    kernel.put(frame(b"4"))
    assert kernel.read() == [b"4"]
    if late:
        kernel.fill(hole, data)
    kernel.put(frame(b"5"))
    kernel.close()
    kernel.put(frame(b"6"))
    assert kernel.read() == [b"late", b"5", b"6"] if late else [b"5", b"6"]
    assert kernel.count("errors_other") == 0


@needs_open
def test_another_link_header_is_learnt(kernel: Kernel) -> None:
    """A tunnel device has none: its first datagram waits a millisecond, the next ones do not."""
    for text in (b"first", b"second"):
        data = frame(text)[14:]
        slot = kernel.reserve(data + bytes(14))
        kernel.map[slot + NETWORK : slot + NETWORK + len(data)] = data
        kernel.set(slot, status=USER, snaplen=len(data), length=len(data), mac=NETWORK, net=NETWORK, sec=1, nsec=0)
        struct.pack_into("=BBHHHH", kernel.map, slot + NETWORK - 10, 0, 0, 0, 0, 0, 0)
        if text == b"first":
            assert kernel.read() == []
            assert read_late(kernel) == [text]
        else:
            assert kernel.read() == [text]


@needs_open
def test_a_block_that_the_kernel_has_not_begun_shows_nothing(kernel: Kernel) -> None:
    """It was full of datagrams a turn before, and it is given back."""
    for _ in range(kernel.blocks):
        kernel.put(frame(b"old"))
        kernel.close()
    assert kernel.word(kernel.base + 8) & USER  # still full when the kernel came round: the queue is frozen
    assert kernel.read() + kernel.read() == [b"old"] * kernel.blocks
    assert (kernel.read(), _inside.ring_wait(kernel.rx)) == ([], NOTHING)


EXTREMES = (
    0,
    1,
    7,
    8,
    10,
    47,
    48,
    67,
    68,
    77,
    78,
    79,
    91,
    92,
    93,
    106,
    107,
    120,
    1500,
    BLOCK - 1,
    BLOCK,
    0x7FFF,
    0xFFFF,
)
WIDE = (*EXTREMES, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF)


def spoil(kernel: Kernel, slots: list[int], dice: random.Random) -> None:
    """One thing that cannot be."""
    slot = dice.choice(slots)
    where = dice.randrange(12)
    if where < 8:
        name = list(FIELDS)[where]
        kernel.set(slot, **{name: dice.choice(EXTREMES if name in ("mac", "net") else WIDE)})
    elif where == 8:
        kernel.word(kernel.base + 12, dice.choice((*WIDE, len(slots) + 1, len(slots) - 1)))
    elif where == 9:
        kernel.map[slot + LINK - 10 : slot + LINK] = dice.randbytes(10)
    elif where == 10:
        kernel.word(slot + NETWORK + dice.choice((0, 2, 4, 24)), dice.getrandbits(16), "H")
    else:
        at = kernel.base + dice.randrange(BLOCK - 64)
        kernel.map[at : at + 64] = dice.randbytes(64)


@pytest.mark.parametrize("closed", [True, pytest.param(False, marks=needs_open)])
@pytest.mark.parametrize("seed", range(20))
def test_nothing_outside_a_block_is_read_whatever_it_says(seed: int, closed: bool) -> None:
    """Also under ASan, where the ring's end is the end of its memory."""
    dice = random.Random(seed)
    for turn in range(150):
        kernel = Kernel(blocks=2)
        kernel.block = turn % 2
        if kernel.block:  # the last block of the ring, after one that is empty
            kernel.word(8, USER)
        kernel.begin()
        slots = []
        kinds = [frame(dice.randbytes(dice.choice((0, 1, 60, 1400)))) for _ in range(4)]
        while len(slots) < 12:
            try:
                slots.append(kernel.put(dice.choice(kinds), dice.choice(((0, 0), (UDP_L4, 50), (UDP_L4, 1)))))
            except BufferError:
                break
        if closed:
            kernel.set(kernel.last, next=0)
            kernel.word(kernel.base + 8, USER)
        for _ in range(dice.choice((1, 1, 2, 5))):
            spoil(kernel, slots, dice)
        low, high = kernel.base + HEADER, kernel.base + BLOCK
        octets = 0
        for _ in range(200):
            found = _inside.ring_read(kernel.rx, 512, release=False)
            for *_, place, payload in found:
                assert low < place
                assert place + len(payload) <= high
                octets += len(payload)
            if not found:
                break
        else:
            pytest.fail("it never ends")
        assert octets <= BLOCK
        assert kernel.count("errors_other") <= BLOCK // 68


def test_a_ring_without_whole_blocks_is_refused() -> None:
    for size, block in ((BLOCK, 0), (BLOCK, 4095), (BLOCK + 1, BLOCK), (0, BLOCK), (3 * 4100, 4100)):
        with pytest.raises(ValueError, match="no whole blocks"):
            RxSocket(-1, RxCounters(), 0, ring=bytearray(size), block_bytes=block)
    with pytest.raises(ValueError, match="a doorbell"):
        RxSocket(-1, RxCounters(), 0, bell=bytearray(4))
    if READS_OPEN:
        with pytest.raises(ValueError, match="a doorbell"):
            RxSocket(-1, RxCounters(), 0, ring=bytearray(BLOCK), block_bytes=BLOCK, bell=bytearray(3))
