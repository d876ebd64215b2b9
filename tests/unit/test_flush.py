"""The triage of errors, against a scripted engine: every errno at every place with every partial count.

Whatever the kernel answers: each copy is counted exactly once, the order is kept, nothing is sent twice, and the law
`offered = skipped + sent + sum(failed)` holds exactly. Steps of a script: n > 0 = the kernel takes n messages,
-errno = it fails.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import struct
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplicator import _inside

WORKER = _inside.Worker(batch=1, sessions=8)
EXPORTER = bytes([198, 18, 0, 1])
RECEIVER = bytes([198, 18, 0, 2])
QUEUE_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
REASON = {
    errno.EAGAIN: "no_buffer_space",
    errno.ENOBUFS: "no_buffer_space",
    errno.ENOMEM: "no_buffer_space",
    errno.ENETUNREACH: "no_route",
    errno.EHOSTUNREACH: "no_route",
    errno.ENETDOWN: "no_route",
    errno.EDESTADDRREQ: "no_route",
    errno.EMSGSIZE: "message_too_long",
    errno.ECONNREFUSED: "refused",
    errno.EPERM: "permission",
    errno.EACCES: "permission",
    errno.EIO: "other",
    errno.EINVAL: "other",
    errno.EPROTO: "other",
    9999: "other",
}
Values = dict[str, int]


def sized(n: int) -> int:
    """Payload sizes that never make a run: each longer than the one before."""
    return 1 + n


def datagrams(count: int, size: int | None = None) -> list[tuple[bytes, int, int, int, bytes]]:
    """The first two bytes of a payload are its number."""
    return [
        (EXPORTER, 2055, 64, 0, n.to_bytes(2, "big") + bytes(sized(n) if size is None else size - 2))
        for n in range(count)
    ]


class Way:
    """A way out with the scripted engine behind it, and what came of it."""

    def __init__(self, engine: int = _inside.ENGINE_UDP, address: bytes = RECEIVER, **options: object) -> None:
        self.counters = _inside.TxCounters()
        self.tx = _inside.Tx(engine, -1, self.counters, address, 2055, **options)
        self.script = _inside.Script()
        self.raw = engine == _inside.ENGINE_RAW

    def play(self, steps: list[int], batch: list[tuple[bytes, int, int, int, bytes]]) -> Values:
        self.script = _inside.Script(steps)
        _inside.play(WORKER, self.tx, batch, self.script)
        return self.values()

    def values(self) -> Values:
        return dict(zip(_inside.TX_FIELDS, self.counters.read(), strict=True))

    def numbers(self) -> list[int]:
        """Numbers of the datagrams taken, whole ones, one message each."""
        skip = 28 if self.raw else 0
        return [int.from_bytes(message[skip : skip + 2], "big") for message, _ in self.script.accepted]


def dropped(values: Values) -> int:
    return sum(value for name, value in values.items() if name.startswith("failed_"))


def check_law(values: Values) -> None:
    assert values["offered"] == values["skipped"] + values["sent"] + dropped(values)


# ---- every errno, every place, every partial count


@pytest.mark.parametrize("engine", [_inside.ENGINE_UDP, _inside.ENGINE_RAW])
@pytest.mark.parametrize("error", sorted(REASON))
def test_error_at_every_place(engine: int, error: int) -> None:
    """The copy at the place fails for good: it alone is dropped, with its reason; all others leave once, in order."""
    count = 7
    tries = 3 if error in QUEUE_FULL else 1
    for place in range(count):
        for partial in range(1, place + 1):
            way = Way(engine)
            steps = [partial] * (place // partial) + [1] * (place % partial) + [-error] * tries
            values = way.play(steps, datagrams(count))
            assert way.numbers() == [n for n in range(count) if n != place], (place, partial)
            assert values["sent"] == count - 1
            assert values[f"failed_{REASON[error]}"] == dropped(values) == 1
            assert values["retries"] == tries - 1
            assert values["calls"] == len(way.script.calls)
            assert values["sent_bytes"] == sum(2 + sized(n) for n in range(count) if n != place)
            check_law(values)


@pytest.mark.parametrize("engine", [_inside.ENGINE_UDP, _inside.ENGINE_RAW])
@pytest.mark.parametrize("error", sorted(set(REASON) - set(QUEUE_FULL)))
def test_nothing_but_errors(engine: int, error: int) -> None:
    way = Way(engine)
    values = way.play([-error] * 1000, datagrams(100))
    assert way.numbers() == []
    assert values[f"failed_{REASON[error]}"] == 100
    assert values["calls"] == 100
    check_law(values)


@pytest.mark.parametrize("count", [1, 2, 3, 17, 512])
def test_partial_counts_only_advance(count: int) -> None:
    for partial in (1, 2, 3, 5, count):
        way = Way()
        values = way.play([partial] * count, datagrams(count))
        assert way.numbers() == list(range(count))
        assert (values["sent"], values["retries"], dropped(values)) == (count, 0, 0)
        assert [want for want, _ in way.script.calls] == list(range(count, 0, -partial))


@pytest.mark.parametrize("error", [errno.EINTR, *QUEUE_FULL])
def test_a_passing_error_loses_nothing(error: int) -> None:
    for place in range(5):
        way = Way()
        values = way.play([1] * place + [-error], datagrams(5))
        assert way.numbers() == [0, 1, 2, 3, 4]
        assert (values["sent"], values["retries"], dropped(values)) == (5, 1, 0)


def test_interrupted_for_ever_ends() -> None:
    way = Way()
    values = way.play([-errno.EINTR] * 100_000, datagrams(20))
    assert values["calls"] <= 20 * 16
    assert dropped(values) == 20
    check_law(values)


errors = st.sampled_from([*REASON, errno.EINTR])
steps_of = st.lists(st.one_of(st.integers(1, 8), errors.map(lambda e: -e)), max_size=40)


@settings(max_examples=250, deadline=None)
@given(steps=steps_of, count=st.integers(0, 24), engine=st.sampled_from([0, 1]), equal=st.booleans(), mtu=st.booleans())
def test_any_script(steps: list[int], count: int, engine: int, equal: bool, mtu: bool) -> None:
    """Runs, fragments and single messages under any mixture of answers."""
    way = Way(engine, mtu=68 if mtu else 1500)
    batch = datagrams(count, 100 if equal else None)
    values = way.play(steps, batch)
    check_law(values)
    assert values["offered"] == count
    numbers = complete(way, batch)
    assert len(numbers) == values["sent"]
    assert numbers == sorted(set(numbers)), "in order, nothing twice"
    assert values["sent_bytes"] == sum(len(batch[n][4]) for n in numbers)


def complete(way: Way, batch: list[tuple[bytes, int, int, int, bytes]]) -> list[int]:
    """Numbers of the datagrams that left whole, from runs, fragments and single messages."""
    found = []
    whole = b""
    for message, control in way.script.accepted:
        if way.raw:
            offset = int.from_bytes(message[6:8], "big")
            whole = (whole if offset & 0x1FFF else b"") + message[20:]
            length = int.from_bytes(whole[4:6], "big")
            if not offset & 0x2000 and len(whole) == length:
                found.append(whole[8:])
        elif segment := segment_size(control):
            found += [message[i : i + segment] for i in range(0, len(message), segment)]
        else:
            found.append(message)
    numbers = [int.from_bytes(payload[:2], "big") for payload in found]
    assert [batch[number][4] for number in numbers] == found
    return numbers


def segment_size(control: bytes) -> int:
    """Of a UDP_SEGMENT control message (level 17, type 103), 0 = none."""
    while control:
        length = int.from_bytes(control[:8], "little")
        if (control[8], control[12]) == (17, 103):
            return int.from_bytes(control[16:18], "little")
        control = control[(length + 7) // 8 * 8 :]
    return 0


# ---- runs


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
def test_refused_segments_are_given_up_for_a_while(error: int) -> None:
    """The run goes out datagram by datagram, in order, and no run is tried at once again."""
    way = Way()
    values = way.play([-error], datagrams(10, 50))
    assert way.numbers() == list(range(10))
    assert values["sent"] == 10
    assert way.tx.gave_up == _inside.GAVE_UP_SEGMENT
    assert all(not segment_size(control) for _, control in way.script.accepted)
    way.play([], datagrams(10, 50))
    assert [want for want, _ in way.script.calls] == [10]


def lone(way: Way) -> Callable[[list[int]], Values]:
    """Plays a script for a batch of ten datagrams of one size as the worker does it."""
    numbers = itertools.count()
    plan = _inside.Plan(1, [], [way.tx], [([(0, bytes(16), bytes(16))], None, (0,), False)])
    worker = _inside.Worker(batch=1, sessions=8)

    def play(steps: list[int]) -> Values:
        way.script = _inside.Script(steps)
        batch = [(*head, payload[:2] + next(numbers).to_bytes(8, "big") + payload[10:])  # none comes twice
                 for *head, payload in datagrams(10, 50)]  # fmt: skip
        _inside.play_batch(worker, plan, _inside.RxCounters(), batch, way.script)
        return way.values()

    return play


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_refused_feature_is_tried_again_ever_more_rarely(error: int) -> None:
    way = Way()
    play = lone(way)
    for pause in (60, 120, 240, 480, 900, 900, 900):
        values = play([-error])
        assert (way.tx.gave_up, _inside.given_up_for(way.tx)[0]) == (_inside.GAVE_UP_SEGMENT, pause)
        assert values["sent"] == values["offered"]
        _inside.later(way.tx, pause - 5)
        play([])
        assert len(way.script.accepted) == 10  # not yet
        _inside.later(way.tx, 6)
    play([])
    assert (len(way.script.accepted), way.tx.gave_up) == (1, 0)  # a run: the kernel takes them again
    _inside.later(way.tx, 1000)
    play([-error])
    assert _inside.given_up_for(way.tx)[0] == 60  # it worked for long: a new trouble
    check_law(way.values())


def test_runs_refused_in_one_flush_are_one_refusal() -> None:
    way = Way()
    script = [-errno.EIO, *[1] * 10, -errno.EIO]
    way.play(script, [*datagrams(10, 50), *datagrams(10, 90)])
    assert _inside.given_up_for(way.tx) == (60, 0, 0, 0)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES])
@pytest.mark.parametrize("engine", [_inside.ENGINE_UDP, _inside.ENGINE_RAW])
def test_what_a_firewall_refuses_is_offered_again_at_once(engine: int, error: int) -> None:
    """EPERM comes and goes with a rule or a full conntrack table: it costs the copies it hits and nothing more."""
    way = Way(engine)
    values = way.play([-error] * 10, datagrams(10))
    assert (values["failed_permission"], values["sent"], way.tx.gave_up) == (10, 0, 0)
    assert way.play([], datagrams(10))["sent"] == 10


def test_run_over_the_path_mtu_is_no_reason_to_give_up() -> None:
    way = Way()
    values = way.play([-errno.EMSGSIZE], datagrams(10, 50))
    assert way.numbers() == list(range(10))
    assert (values["sent"], way.tx.gave_up) == (10, 0)
    way.play([], datagrams(10, 50))
    assert len(way.script.accepted) == 1


@pytest.mark.parametrize("error", [errno.ECONNREFUSED, errno.ENETUNREACH, errno.EPERM])
def test_lost_run_is_counted_by_its_datagrams(error: int) -> None:
    way = Way()
    values = way.play([-error], [*datagrams(10, 50), *datagrams(3, 90)])
    assert (values["sent"], values[f"failed_{REASON[error]}"]) == (3, 10)
    check_law(values)


def test_plain_copies_of_a_refused_run_have_their_own_fates() -> None:
    way = Way()
    values = way.play([-errno.EIO, 1, -errno.EPERM, 1, -errno.EAGAIN, 1], datagrams(5, 50))
    assert way.numbers() == [0, 2, 3, 4]
    assert (values["sent"], values["failed_permission"], values["retries"]) == (4, 1, 1)
    check_law(values)


# ---- fragments


def fragments_of(count: int) -> list[tuple[bytes, int, int, int, bytes]]:
    """Each makes exactly three packets over an MTU of 68."""
    return datagrams(count, 100)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EMSGSIZE, errno.ENETUNREACH])
def test_lost_fragment_loses_its_copy_once(error: int) -> None:
    """Fragments before it may have left; the rest of the copy is not sent, and it counts as one."""
    for place in range(9):
        way = Way(_inside.ENGINE_RAW, mtu=68)
        values = way.play([1] * place + [-error], fragments_of(3))
        lost = place // 3
        assert complete(way, fragments_of(3)) == [n for n in range(3) if n != lost]
        assert len(way.script.accepted) == 6 + place % 3
        assert (values["sent"], values[f"failed_{REASON[error]}"]) == (2, 1)
        assert values["sent_bytes"] == 200
        check_law(values)


def test_partial_counts_within_fragments() -> None:
    for partial in range(1, 10):
        way = Way(_inside.ENGINE_RAW, mtu=68)
        values = way.play([partial] * 9, fragments_of(3))
        assert complete(way, fragments_of(3)) == [0, 1, 2]
        assert (values["sent"], dropped(values)) == (3, 0)


# ---- a receiver that stalls


def test_stalled_receiver_costs_two_waits_and_then_none() -> None:
    """A queue that stays full: the first flush waits, then the receiver has to be clean for a while before it may cost
    time again.
    """
    way = Way()
    before = _inside.stalls(WORKER)
    for flush in range(60):
        values = way.play([-errno.EAGAIN] * 100_000, datagrams(50))
        check_law(values)
        assert way.script.accepted == []
        assert _inside.stalls(WORKER) - before == 2, flush
        assert _inside.flushes_since_full(way.tx) == 0
    assert values["failed_no_buffer_space"] == 60 * 50


@pytest.mark.parametrize(("error", "most"), [(errno.EAGAIN, 2), (errno.ENOBUFS, 40), (errno.ENOMEM, 40)])
@pytest.mark.parametrize("full", [1, 2])
def test_trickling_receiver_is_bounded(error: int, most: int, full: int) -> None:
    """Each copy fails once or twice and then leaves: the waits of a flush are bounded in all, 2 ms, not by the copy."""
    way = Way()
    before = _inside.stalls(WORKER)
    values = way.play(([-error] * full + [1]) * 512, datagrams(512))
    check_law(values)
    assert _inside.stalls(WORKER) - before == most
    assert values["sent"] > 0
    assert values["failed_no_buffer_space"] > 0


def test_recovered_receiver_may_wait_again() -> None:
    way = Way()
    way.play([-errno.EAGAIN] * 1000, datagrams(1))
    for _ in range(64):
        assert way.play([], datagrams(1))["failed_no_buffer_space"] == 1
    before = _inside.stalls(WORKER)
    values = way.play([-errno.EAGAIN], datagrams(1))
    assert (_inside.stalls(WORKER) - before, values["failed_no_buffer_space"]) == (1, 1)


# ---- pause (the ancestor's -x)


def test_pause_sends_copy_by_copy() -> None:
    way = Way(pause_us=500)
    started = time.monotonic()
    values = way.play([], datagrams(10, 50))
    assert time.monotonic() - started >= 0.005
    assert way.numbers() == list(range(10))
    assert [want for want, _ in way.script.calls] == [1] * 10
    assert values["sent"] == 10


def test_pause_does_not_part_the_fragments_of_a_copy() -> None:
    way = Way(_inside.ENGINE_RAW, mtu=68, pause_us=1)
    values = way.play([], fragments_of(4))
    assert [want for want, _ in way.script.calls] == [3] * 4
    assert values["sent"] == 4


# ---- the whole batch, the sockets of exporters' ports among it


def everything() -> list[tuple[int, bytes, bytes]]:
    return [(0, bytes(16), bytes(16))]


def test_batch_to_many_ways() -> None:
    """Every way has its own fate; the listener's law holds too."""
    ways = [Way(), Way(_inside.ENGINE_RAW), Way(freq=3), Way(_inside.ENGINE_TRANSPARENT)]
    plan = _inside.Plan(1, [], [way.tx for way in ways], [(everything(), None, range(4), False)])
    counters = _inside.RxCounters()
    generator = random.Random(2)
    for _ in range(200):
        answers = [generator.choice((1, 2, 60, -errno.EPERM, -errno.EMSGSIZE)) for _ in range(30)]
        batch = [
            (bytes([198, 18, 0, generator.randrange(4)]), 7, 64, 0,
             generator.randbytes(12) + bytes(generator.choice((8, 8, 8, 1388, 1988))))
            for _ in range(generator.randrange(1, 100))
        ]  # fmt: skip
        _inside.play_batch(WORKER, plan, counters, batch, _inside.Script(answers))
    received = dict(zip(_inside.RX_FIELDS, counters.read(), strict=True))
    for way in ways:
        values = way.values()
        check_law(values)
        assert values["offered"] == received["matched"] > 5000
        assert values["sent"] > 0
    assert ways[2].values()["skipped"] == received["matched"] - -(-received["matched"] // 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="IP_TRANSPARENT needs root")
@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("198.18.0.7", True), ("1.0.0.0", True), ("223.255.255.255", True), ("2001:db8::7", True), ("fec0::1", True),
        ("0.0.0.7", False), ("127.0.0.1", False), ("224.0.0.7", False), ("240.0.0.1", False),
        ("255.255.255.255", False), ("::", False), ("::1", False), ("fe80::7", False), ("febf::7", False),
        ("ff02::7", False),
    ],
)  # fmt: skip
def test_a_ports_socket_serves_what_the_kernel_takes_for_a_source(text: str, served: bool) -> None:
    """Any other address would have the kernel refuse the send, and the receiver lose the engine for a while."""
    six = ":" in text
    address = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, text)
    way = Way(_inside.ENGINE_TRANSPARENT, address=bytes(15) + b"\1") if six else Way(_inside.ENGINE_TRANSPARENT)
    worker = _inside.Worker(batch=1, sessions=8)
    plan = _inside.Plan(1, [], [way.tx], [(everything(), None, (0,), False)])
    script = _inside.Script()
    _inside.play_batch(worker, plan, _inside.RxCounters(), [(address, 7, 64, 0, bytes(50))] * 20, script)
    assert way.values()["sent"] == 20
    if not served:
        assert len(script.accepted) == 20
        assert not any(control for _, control in script.accepted)
        return
    [(_, control)] = script.accepted
    assert segment_size(control) == 50
    level, kind = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) if six else (socket.IPPROTO_IP, 8)
    info = address + bytes(4) if six else bytes(4) + address + bytes(4)
    assert struct.pack("=QII", 16 + len(info), level, kind) + info in control


@pytest.mark.skipif(os.geteuid() != 0, reason="IP_TRANSPARENT needs root")
def test_port_zero_has_no_socket() -> None:
    """Bound to port 0 it would have any."""
    way = Way(_inside.ENGINE_TRANSPARENT)
    plan = _inside.Plan(1, [], [way.tx], [(everything(), None, (0,), False)])
    script = _inside.Script()
    batch = [(EXPORTER, 0, 64, 0, bytes(50))] * 20
    _inside.play_batch(_inside.Worker(batch=1, sessions=8), plan, _inside.RxCounters(), batch, script)
    assert [message[:1] for message, _ in script.accepted] == [b"\x45"] * 20


@pytest.mark.skipif(os.geteuid() != 0, reason="IP_TRANSPARENT needs root")
@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES, errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_refused_ports_socket_is_tried_again(error: int) -> None:
    way = Way(_inside.ENGINE_TRANSPARENT)
    play = lone(way)

    def in_runs(steps: list[int]) -> bool:
        play(steps)
        return any(segment_size(control) for _, control in way.script.accepted)

    while not in_runs([]):
        pass
    assert not in_runs([-error])
    assert not in_runs([])
    assert way.tx.gave_up == _inside.GAVE_UP_TRANSPARENT
    _inside.later(way.tx, 61)
    assert in_runs([])
    assert way.tx.gave_up == 0
    values = way.values()
    assert (values["sent"], dropped(values)) == (values["offered"], 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="IP_TRANSPARENT needs root")
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ENOBUFS, errno.EPERM, errno.EIO, errno.EHOSTUNREACH])
def test_a_ports_socket_fails_at_every_place(error: int) -> None:
    """What the shared socket does not take leaves by raw: nothing lost, nothing twice, order per receiver kept."""
    count = 9
    for place, partial in itertools.product(range(4), (1, 2)):
        ways = [Way(_inside.ENGINE_TRANSPARENT), Way(_inside.ENGINE_TRANSPARENT)]
        worker = _inside.Worker(batch=1, sessions=8)
        plan = _inside.Plan(1, [], [way.tx for way in ways], [(everything(), None, (0, 1), False)])
        batch = [(EXPORTER, 2055, 64, 0, bytes([1, n]) + bytes(80 if n < count else 60)) for n in range(2 * count)]
        for _ in range(6):  # the port earns its socket
            script = _inside.Script()
            _inside.play_batch(worker, plan, _inside.RxCounters(), batch, script)
        assert any(segment_size(control) for _, control in script.accepted), "no run left by the port's socket"
        before = [way.values()["sent"] for way in ways]
        script = _inside.Script([partial] * place + [-error])
        _inside.play_batch(worker, plan, _inside.RxCounters(), batch, script)
        assert [way.values()["sent"] for way in ways] == [sent + 2 * count for sent in before]
        for way in ways:
            check_law(way.values())
            assert dropped(way.values()) == 0
        payloads = []
        for message, control in script.accepted:
            segment = segment_size(control) or len(message)
            raw = message[0] == 0x45
            payloads += [message[28:]] if raw else [message[k : k + segment] for k in range(0, len(message), segment)]
        assert sorted(payloads) == sorted(2 * [payload for *_, payload in batch])
