"""The witness without a network: the filter, the packets, the arithmetic. With one: tests/system/test_witness.py."""

from __future__ import annotations

import os
import socket
import struct
import urllib.request
from collections import Counter
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from samplicator.cli import witness as shown
from samplicator.cli.main import main
from samplicator.errors import Unreachable
from samplicator.host import bpf
from samplicator.views.witness_metrics import WITNESS_METRICS
from samplicator.witness import exposition, program, sockets
from samplicator.witness.balance import Account, balance, lost
from samplicator.witness.cuts import Cuts
from samplicator.witness.memory import Memory
from samplicator.witness.relay import Relay, Snapshot
from samplicator.witness.split import Split
from samplicator.witness.streams import Streams
from samplicator.witness.units import Sizes, ahead
from support import flows as model

SOURCE, HERE = bytes((198, 18, 64, 5)), bytes((198, 18, 40, 2))


def ipv4(body: bytes, *, fragment: int = 0, identity: int = 1, options: bytes = b"") -> bytes:
    size = 20 + len(options)
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | size // 4, 0, size + len(body), identity, fragment, 9, 17, 0, SOURCE, HERE
    )
    return head + options + body


def ipv6(body: bytes, following: int = 17) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(body), following, 9) + bytes(15) + b"\1" + bytes(15) + b"\2" + body


def udp(payload: bytes, port: int = 9995) -> bytes:
    return struct.pack("!HHHH", 50000, port, 8 + len(payload), 0) + payload


# ---- the filter, as the kernel runs it


def accepted(packet: bytes, ethertype: int) -> bool:
    """Whether a packet socket with the program gets a frame on loopback."""
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as reader,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
    ):
        bpf.attach(reader, program.program(9995, (4711,)))
        while True:  # what came before the program
            try:
                reader.recv(65535, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
        sender.bind(("lo", ethertype))
        sender.send(bytes(12) + ethertype.to_bytes(2, "big") + packet)
        reader.settimeout(0.05)
        try:
            return reader.recv(65535)[14:] == packet
        except TimeoutError:
            return False


@pytest.mark.netns
def test_the_filter() -> None:
    four, six = 0x0800, 0x86DD
    assert accepted(ipv4(udp(b"x")), four)
    assert accepted(ipv4(udp(b"x"), options=bytes(8)), four)
    assert not accepted(ipv4(udp(b"x", 9996)), four)
    assert not accepted(ipv4(udp(b"x", 9996), options=bytes(8)), four)
    assert accepted(ipv4(udp(b"x" * 16), fragment=0x2000), four)
    assert not accepted(ipv4(udp(b"x" * 16, 9996), fragment=0x2000), four)
    assert accepted(ipv4(b"y" * 16, fragment=3), four)
    assert accepted(ipv6(udp(b"x")), six)
    assert not accepted(ipv6(udp(b"x", 9996)), six)
    assert not accepted(ipv6(udp(b"x"), following=6), six)
    assert accepted(ipv6(b"\x11\0\0\1" + bytes(4) + udp(b"x" * 8), following=44), six)
    assert not accepted(ipv6(b"\x11\0\0\1" + bytes(4) + udp(b"x" * 8, 9996), following=44), six)
    assert accepted(ipv6(b"\x11\0\0\x18" + bytes(4) + b"y" * 8, following=44), six)


# ---- packets


def test_packets_become_streams() -> None:
    streams = Streams()
    one, two = model.v9(7, 3), model.v9(8, 3)
    streams.packet(ipv4(udp(one)), 0)
    streams.packet(ipv4(udp(one + two)), len(one))
    streams.packet(ipv6(udp(model.sflow(1))), 0)
    streams.packet(ipv4(udp(b"<13>hello")), 0)
    streams.packet(b"\0" * 20, 0)
    assert [(key[2], stream.count) for key, stream in streams.by_key.items()] == [
        ("netflow9", 3),
        ("sflow5", 1),
        ("other", 1),
    ]
    assert next(iter(streams.by_key.values())).log == [one[:20], one[:20], two[:20]]
    assert (streams.count, streams.broken, len(streams.arrivals)) == (5, 1, 5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2, 1)])
def test_fragments_are_one_datagram(order: tuple[int, ...]) -> None:
    streams = Streams()
    whole = udp(model.v5(1, 30))
    parts = [(0, 512, 0x2000), (512, 1024, 0x2000 | 64), (1024, len(whole), 128)]
    for number in order:
        start, end, fragment = parts[number]
        streams.packet(ipv4(whole[start:end], fragment=fragment)[:128], 0)
    assert [(key[2], stream.count) for key, stream in streams.by_key.items()] == [("netflow5", 1)]
    streams.packet(ipv4(whole[:512], fragment=0x2000, identity=2), 0)
    streams.packet(ipv4(whole[512:1024], fragment=0x2040, identity=3), 0)
    streams.expire(float("inf"))
    assert (streams.reassembled, streams.incomplete) == (1, 1)


def test_other_destinations_are_left_out() -> None:
    streams = Streams()
    streams.only = frozenset({bytes((10, 0, 0, 1))})
    streams.packet(ipv4(udp(model.v9(7, 3))), 0)
    assert (streams.count, streams.arrivals) == (0, [streams.other])


# ---- units


def test_gaps_in_flows_and_records() -> None:
    sizes = Sizes("netflow5")
    counts = (30, 30, 7, 30, 1)
    came, number = [], 0
    for i, count in enumerate(counts * 20):
        if i % 9:
            came.append(model.v5(number, count)[:24])
        number += count
    sizes.learn(came)
    sizes.at(model.v5(0, 30)[:24])
    gaps = sizes.gaps(came)
    assert sizes.datagrams(sum(gaps), gaps) == (10, 0)
    sizes = Sizes("ipfix")
    sizes.learn([model.ipfix(20 * i, 1, bytes(100)) for i in range(100) if i % 7])
    assert sizes.datagrams(60, []) == (3, 0)
    assert sizes.datagrams(50, [])[1] > 0
    assert [ahead(5, 0xFFFFFFF0), ahead(5, 5), ahead(4, 5)] == [True, False, False]


# ---- splitting


def test_one_stage_alone_is_told_per_exporter() -> None:
    split = Split()
    split.add(0, {"a": 3})
    split.add(7, {"a": 2})
    split.add(0, {"b": 5})
    split.add(0, {"b": 1})
    assert (split.first, split.second, split.mixed) == ({"a": 2, "b": 5}, {"a": 3, "b": 1}, 0)


def test_two_stages_at_once_are_a_sum() -> None:
    split = Split()
    split.add(10, {"a": 3, "b": 12})
    assert split.first == {"a": 0, "b": 7}
    assert split.second == {"a": 0, "b": 2}
    assert (split.mixed, split.mixed_first) == (6, 3)
    split.add(4, {"c": 9})  # one exporter: exact
    assert (split.first["c"], split.second["c"], split.mixed) == (4, 5, 6)
    split.add(4, {"c": 1})
    split.close()
    assert (split.first["c"], split.beyond) == (5, 3)


def test_an_exact_sum_makes_an_estimate_exact() -> None:
    split = Split()
    split.add(10, {"a": 3, "b": 9}, {"b": 4})
    split.add(0, {})
    assert (split.first, split.second, split.estimated) == ({"a": 3, "b": 7}, {"a": 0, "b": 0}, 0)
    split.add(10, {"a": 3, "b": 9}, {"a": 2, "b": 2})
    split.close()
    assert sum(split.first.values()) == 20
    assert split.estimated == 10


# ---- cuts


def row(sequence: int, datagrams: int, **changes: Any) -> dict[str, Any]:
    return {
        "place": "0.1",
        "exporter": "198.18.64.5",
        "port": 50000,
        "protocol": "netflow9",
        "domain": 3,
        "agent": None,
        "listener": "in",
        "pool": "",
        "unit": "packets",
        "datagrams": datagrams,
        "units": datagrams,
        "missing": 0,
        "numbered": True,
        "header": model.v9(sequence, 3)[:20].hex(),
        "copies": 1,
        **changes,
    }


def snapshot(*rows: dict[str, Any]) -> Snapshot:
    return Snapshot({each["place"]: each for each in rows}, {"failed": {}, "skipped": 0})


def test_what_is_on_its_way_belongs_to_the_next_cut() -> None:
    streams = Streams()
    cuts = Cuts(streams, "spoof")

    def come(*numbers: int) -> None:
        for number in numbers:
            streams.datagram(SOURCE, 50000, model.v9(number, 3))

    come(10, 11, 12)
    assert not cuts.waits(snapshot(row(11, 100)))
    cuts.cut(snapshot(row(11, 100)))  # 12 came after the relay's answer
    come(13, 14)
    assert cuts.waits(snapshot(row(15, 104)))
    come(15, 16)
    assert not cuts.waits(snapshot(row(15, 104)))
    step = cuts.cut(snapshot(row(15, 104)))
    assert (step.wire, step.after, step.before) == ({"198.18.64.5": 4}, {}, {})
    come(18)  # 17 was lost on the way, 19 too
    step = cuts.cut(snapshot(row(19, 108, missing=2)))
    assert (step.wire, step.after) == ({"198.18.64.5": 2}, {"198.18.64.5": 2})
    assert step.before == {"in": {"198.18.64.5": 2}}
    assert streams.logged == 0


# ---- sockets


def test_drops_of_a_socket_are_seen() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.bind(("127.0.0.1", 0))
        queues = sockets.Queues(sock.getsockname()[1])
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for _ in range(100):
            sender.sendto(bytes(1000), sock.getsockname())
        sender.close()
        dropped = queues.sample()
        sock.setblocking(False)
        read = 0
        while True:
            try:
                sock.recv(2000)
                read += 1
            except BlockingIOError:
                break
        assert dropped == queues.dropped == 100 - read > 0
        assert [queue.address for queue in queues.known.values()] == ["127.0.0.1"]
        assert queues.sample() == 0
        queues.close()


def test_the_memory_of_a_queue_tells_what_did_not_fit() -> None:
    memory = Memory()
    assert memory.dropped([100, 1500], 0, 768, 3000, 1) == [1]
    for _ in range(3):
        memory.learn([100, 1500], 832 + 2304)
        memory.learn([1500, 500, 100], 832 + 1280 + 2304)
    memory.learn([100, 1500], 2304)  # somebody read
    assert memory.dropped([1500, 100, 500, 100], 8_000, 9_664, 10_000, 2) == [0, 2]
    assert memory.dropped([100, 1500, 100], 9_000, 12_136, 10_000, 1) == [2]  # an older kernel
    assert memory.dropped([100, 1500], 8_000, 8_000, 10_000, 1) is None


# ---- what is shown


def account() -> Account:
    return Account(
        lost_before=Counter({"192.0.2.1": 3}),
        lost_on_way=Counter({"2001:db8::1": 2, "192.0.2.1": -1}),
        dropped_by_collector=Counter({"192.0.2.1": 4}),
        wire=Counter({"192.0.2.1": 100, "2001:db8::1": 50}),
        sums={("failed", "lost_on_way"): (5, "because")},
        failed_by_reason={"no_route": 5},
    )


def test_a_balance() -> None:
    value = balance('si"em', 9995, 10.0, account(), Account(), [], ["a note"])
    assert [list(each.values()) for each in value["exporters"]] == [
        ["192.0.2.1", 3, 0, 0, 0, 4, 96],
        ["2001:db8::1", 0, 0, 0, 2, 0, 50],
    ]
    assert lost(value) == 3 + 2 + 4 + 5
    text = "\n".join(shown.lines(value))
    assert "5 lost (failed or on the way), known as a sum only: because" in text
    assert "5 copies failed: no_route" in text
    assert text.splitlines()[-1].split() == ["all", "3", "0", "0", "2", "4", "146"]
    same = balance("siem", 9995, 10.0, account(), account(), [], [])
    assert (same["exporters"], same["sums"], lost(same)) == ([], [], 0)


def test_the_metrics() -> None:
    place = exposition.serve("127.0.0.1:0")
    place.update('si"em', account())
    url = f"http://127.0.0.1:{place.address[1]}"
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {
        (sample.name, sample.labels.get("exporter")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert {name for name, _ in found} == {metric.full_name for metric in WITNESS_METRICS}
    assert found["samplicator_witness_lost_on_way_datagrams_total", "192.0.2.1"] == 0
    assert found["samplicator_witness_wire_datagrams_total", "2001:db8::1"] == 50
    assert found["samplicator_witness_unattributed_datagrams_total", None] == 5
    many = Account(wire=Counter({f"10.0.{i >> 8}.{i & 255}": 1 for i in range(1500)}))
    assert exposition.text("x", many).count("samplicator_witness_wire_datagrams_total{") == 1001
    assert 'exporter="_other"} 500' in exposition.text("x", many)


class _Answers:
    """A relay that answers with this to everything."""

    name = "there"

    def __init__(self, value: object) -> None:
        self._value = value

    def get(self, page: str) -> object:
        return self._value


@pytest.mark.parametrize("value", [None, 7, [7], {"shares": []}, {"shares": [{}], "after": ""}, [{"name": "x"}]])
def test_another_program_than_a_relay(value: object) -> None:
    relay = Relay(_Answers(value))
    with pytest.raises(Unreachable, match="there: the answer is not that of a relay"):
        relay.snapshot(["x"])
    with pytest.raises(Unreachable, match=r"there: (the answer is not|no receiver has port)"):
        relay.receivers_of(9995, frozenset())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_NET_RAW")
@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (["--relay", "relay:9420"], 2, "must be http"),
        (["--relay", "http://me:secret@a:1"], 2, "must not have a user"),
        (["--relay", "http://a:1", "--control", "/x"], 2, "cannot be combined"),
        (["--auth-file", "/x"], 2, "need --url"),
        (["--url", "http://127.0.0.1:1"], 3, "127.0.0.1:1: connection refused"),
        (["--control", "/nowhere\033[2J"], 3, "/nowhere\\x1b[2J: the socket does not exist"),
    ],
)
def test_a_relay_that_cannot_be_asked(
    words: list[str], status: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["witness", "--port", "9995", *words]) == status
    assert why in capsys.readouterr().err
