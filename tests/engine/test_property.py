"""Every engine delivers what the oracle says: random traffic, rules and sizes, all engines and both families at once.

stand.py plays a case and compares. Evidence that the engines under test really carried the copies:
test_the_way_out, and the totals at the end of the property.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from samplicator.host.copier import Copier
from support.stand import (
    DOOR,
    LISTENERS,
    PACKET,
    RAW,
    RUN_MOST,
    SESSIONS,
    TRANSPARENT,
    UDP,
    Block,
    Burst,
    Case,
    ReceiverCase,
    RuleCase,
    Stand,
)
from support.wire import EXPORTERS, Wire, on_a_wire
from support.worker import Relay

pytestmark = pytest.mark.netns

# ---- what is drawn

SOURCES = (
    "", "0.0.0.0/0", "::/0", "198.18.1.0/24", "198.18.1.1", "198.18.2.1", "198.18.0.1/255.255.0.255", "2001:db8:1::/48",
    "2001:db8:1::2", "2001:db8::1/ffff:ffff::ffff", "192.0.2.0/24",
)  # fmt: skip
EDGES = (
    0, 1, 2, 17, 60, 512, 1400, 1451, 1452, 1453, 1471, 1472, 1473, 1480, 1500, 2944, 2960, 9000, 32768, 65000, 65506,
    65507,
)  # fmt: skip
families = st.sampled_from((4, 6))
COPIES_OF_CALL, COPIES_COUNTERS = 64, 32


@st.composite
def receivers(draw: st.DrawFn, engine: int) -> ReceiverCase:
    family = draw(families)
    if engine == DOOR:
        return ReceiverCase(engine, family, freq=draw(st.sampled_from((1, 1, 2, 3, 7))))
    if draw(st.integers(0, 2)):
        return ReceiverCase(engine, family)
    return ReceiverCase(
        engine,
        family,
        ttl=draw(st.sampled_from((64, 0, 1, 33, 255))),
        tos=draw(st.sampled_from((-1, 0, 0xB8, 3))),
        freq=draw(st.sampled_from((1, 1, 2, 3, 7))),
        checksum=family == 6 or engine == UDP or draw(st.integers(0, 3)) > 0,
        fixed=engine == RAW and draw(st.booleans()),
        pause_us=draw(st.sampled_from((0, 0, 0, 0, 1))),
    )


def rules(count: int) -> st.SearchStrategy[RuleCase]:
    names = st.lists(st.integers(0, count - 1), max_size=count, unique=True).map(tuple)
    everyone = st.just(tuple(range(count)))
    return st.builds(
        RuleCase,
        st.lists(st.sampled_from(SOURCES), min_size=1, max_size=3, unique=True).map(tuple),
        st.none() | st.lists(st.integers(0, len(LISTENERS) - 1), min_size=1, unique=True).map(tuple),
        everyone | names,
        st.integers(0, 4).map(lambda n: n == 0),
    )


@st.composite
def blocks(draw: st.DrawFn, listener: int, among: tuple[int, ...]) -> Block:
    family = (4, 6)[listener] if listener < 2 else draw(st.sampled_from(among))
    most = RUN_MOST[family] if LISTENERS[listener] == "ring" else 65507
    size = min(most, draw(st.sampled_from(EDGES) | st.integers(0, 1472) | st.integers(0, 65507)))
    count = draw(st.integers(1, 40 if size <= 1500 else 3))
    last = draw(st.one_of(st.just(size), st.integers(0, size)))
    tos = draw(st.just((0,)) | st.lists(st.sampled_from((0, 0x10, 0xB8, 1, 0xFF)), min_size=1, max_size=3).map(tuple))
    exporter = draw(st.integers(0, 3) | st.integers(0, SESSIONS - 1))
    return Block(exporter, family, size, count, last, tos, draw(st.booleans()))


@st.composite
def bursts(draw: st.DrawFn) -> Burst:
    listener = draw(st.integers(0, len(LISTENERS) - 1))
    among = draw(st.sampled_from(((4,), (6,), (4, 6))))
    listed = draw(st.lists(blocks(listener, among), min_size=1, max_size=8))
    return Burst(listener, tuple(listed), draw(st.integers(0, 2)) == 0)


@st.composite
def cases(draw: st.DrawFn, packets: int = 1) -> Case:
    """Every case has all five engines, one of them twice. packets: how many receivers have frames at least."""
    more = draw(st.sampled_from((UDP, RAW, TRANSPARENT, PACKET, DOOR)))
    engines = (UDP, RAW, TRANSPARENT, *packets * (PACKET,), DOOR, more)
    ways = tuple(draw(receivers(engine)) for engine in engines)
    return Case(
        ways,
        tuple(draw(st.lists(rules(len(ways)), max_size=3)))
        + ((RuleCase(("",), None, tuple(range(len(ways))), False),) if draw(st.integers(0, 3)) else ()),
        tuple(draw(st.lists(bursts(), min_size=2, max_size=8))),
        draw(st.sampled_from((3, 16, 64, 512))),
        draw(st.sampled_from((8, 1024))),
        draw(st.sampled_from((65535, 65535, 65535, 65507, 1452, 40))),
        draw(st.booleans()),
    )


# ---- the property


def play(wire: Wire, case: Case, seen: Counter[str | int], copier: Copier | None = None) -> None:
    """One case from start to end. First some exporters' ports earn their sockets: four batches with a run each."""
    wire.tap.frames.clear()
    with Relay(
        batch=case.batch, sessions=case.sessions, max_datagram=case.max_datagram, packet_fd=wire.packet.fileno()
    ) as relay:
        if copier is not None:
            relay.workers[0].copy_in_kernel(copier.receivers, copier.counters, 0, copier.device, copier.token)
        stand = Stand(wire, case, relay)
        stand.make()
        for _ in range(4):
            for family in (4, 6):
                for exporter in range(4):
                    stand.play(Burst(family == 6, (plain(exporter, family, 30, 3),)))
        for burst in case.bursts:
            stand.play(burst)
        stand.check()
        seen["cases"] += 1
        for receiver, sink in zip(case.receivers, stand.sinks, strict=True):
            # the fallback has our own source: not counted
            seen[receiver.engine] += wire.tap.frames[sink.port, receiver.engine == UDP].segmented


def plain(exporter: int, family: int, size: int, count: int = 1) -> Block:
    return Block(exporter, family, size, count, size)


@pytest.mark.parametrize("offload", [True, False])
def test_every_engine_delivers_what_the_oracle_says(offload: bool) -> None:
    seen: Counter[str | int] = Counter()

    @settings(
        max_examples=70,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),  # a case is its own explanation; making it smaller takes minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases())
    def all_cases(wire: Wire, case: Case) -> None:
        play(wire, case, seen)

    on_a_wire(lambda wire: all_cases(wire), offload=offload)
    for engine in (UDP, TRANSPARENT, PACKET):
        assert (seen[engine] > seen["cases"]) == offload, seen
    assert seen[RAW] == seen[DOOR] == 0


def copied(copier: Copier) -> int:
    """Datagrams that the first worker has had copied: the first number of each of its slots (bpf/copies.h)."""
    with mmap.mmap(copier.counters, COPIES_OF_CALL * COPIES_COUNTERS, prot=mmap.PROT_READ) as counters:
        return sum(sent for sent, *_ in struct.iter_unpack("=4Q", counters.read()))


@pytest.mark.parametrize("offload", [True, False])
def test_copies_made_in_the_kernel_are_what_the_oracle_says(offload: bool) -> None:
    """Three receivers at least have frames, each with settings of its own; what the program cannot do, others do."""
    seen: Counter[str | int] = Counter()

    @settings(
        max_examples=50,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(packets=3))
    def all_cases(wire: Wire, copier: Copier, case: Case) -> None:
        before = copied(copier)
        play(wire, case, seen, copier)
        seen["with copies"] += copied(copier) > before

    def run(wire: Wire) -> None:
        try:
            copier = Copier()
        except OSError as error:
            pytest.skip(f"no copier here: {error}")
        try:
            all_cases(wire, copier)
        finally:
            copier.close()

    on_a_wire(run, offload=offload)
    assert seen["with copies"] > 20, seen
    assert (seen[PACKET] > seen["cases"]) == offload, seen


# ---- by hand

EVERYTHING = (RuleCase(("",), None, (0,), False),)


def one_way(engine: int, family: int, *listed: Burst, sessions: int = 1024) -> Case:
    return Case((ReceiverCase(engine, family),), EVERYTHING, listed, batch=64, sessions=sessions)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (UDP, (10, 10)),
        (RAW, (0, 160)),
        (TRANSPARENT, (10, 10)),  # a run that saves so much opens the socket
        (PACKET, (0, 10)),
        (DOOR, (0, 0)),
    ],
)
def test_the_way_out(engine: int, family: int, expected: tuple[int, int]) -> None:
    """Ten batches of one run of 16: messages of UDP sockets and frames on the wire tell which engine carried them."""

    def run(wire: Wire) -> None:
        with Relay(packet_fd=wire.packet.fileno()) as relay:
            stand = Stand(wire, one_way(engine, family), relay)
            stand.make()
            before = wire.messages()
            for _ in range(10):
                stand.play(Burst(family == 6, (plain(0, family, 1400, 16),)))
            stand.check()
            assert (wire.messages() - before, wire.tap.frames[stand.sinks[0].port, engine == UDP].total) == expected

    on_a_wire(run, offload=True)


@pytest.mark.parametrize("engine", [TRANSPARENT, PACKET])
def test_order_holds_when_the_exporter_cache_overflows_within_a_batch(engine: int) -> None:
    """Datagrams of one exporter on both sides of many others': they are two groups of the batch, and the first has
    something that the shared socket does not take.
    """
    torn = SESSIONS - 1  # play() does not earn it a socket
    others = tuple(plain(n, 4, 100) for n in range(torn))
    long_first = Burst(0, (plain(torn, 4, 2000), *others, plain(torn, 4, 100, 2)))
    earns_late = Burst(0, (plain(torn, 4, 100), *others, plain(torn, 4, 100, 2)))
    case = one_way(engine, 4, *(long_first, earns_late) * 8, sessions=8)
    on_a_wire(lambda wire: play(wire, case, Counter()), offload=True)


@pytest.mark.parametrize("engine", [RAW, TRANSPARENT, PACKET])
@pytest.mark.parametrize("family", [4, 6])
def test_a_spoofing_way_without_a_fallback_drops_the_other_family(engine: int, family: int) -> None:
    def run(wire: Wire) -> None:
        with Relay(packet_fd=wire.packet.fileno()) as relay:
            case = one_way(engine, family)
            stand = Stand(wire, case, relay)
            stand.make(fallbacks=False)
            stand.expected[0] = []
            for sender in (4, 6):
                for _ in range(6):
                    sends = stand.sends(Burst(2, (plain(0, sender, 100, 3),)))
                    for send in sends:
                        send.to(stand.ports[2])
                    stand.received["both"] += 3
                    stand.run_worker("both")
            stand.sinks[0].expect(18)
            assert {arrival.source[0] for arrival in stand.sinks[0].arrivals} == {EXPORTERS[family][0]}
            values = stand.ways[0].values()
            assert [values[f] for f in ("offered", "sent", "failed_other")] == [36, 18, 18]

    on_a_wire(run, offload=True)
