"""Every payload size that matters, over both families and every engine: identical bytes, the right source, a right
checksum, in order.

The links have an MTU of 1500 bytes: the large ones arrive in fragments and must leave in fragments. Two witnesses
judge: our own dissector and tshark.
"""

from __future__ import annotations

import random
import time

import pytest
from support.lab import Lab

SIZES = (0, 1, 2, 1471, 1472, 1473, 8972, 9000, 65507)
REPEATS = 3


def configuration(lab: Lab, six: bool) -> tuple[str, dict[int, tuple[str, int] | None]]:
    """(TOML, port -> the source expected there: None = the relay's own address, ("", 0) = the exporter's)."""
    to = f"[{lab.peer6(1)}]" if six else lab.peer4(1)
    own = "[2001:db8:0:1::77]:4000" if six else "198.18.1.77:4000"
    rows = {
        9001: ('engine = "udp"', None),
        9002: ('engine = "raw"\nspoof = true', ("", 0)),
        9003: (f'engine = "raw"\nsource = "{own}"', (own.rpartition(":")[0].strip("[]"), 4000)),
        9004: ("spoof = true", ("", 0)),
    }
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "[::]:2055"]\n'
    for port, (extra, _) in rows.items():
        text += f'[[receiver]]\nname = "r{port}"\nto = "{to}:{port}"\n{extra}\n'
    names = ", ".join(f'"r{port}"' for port in rows)
    return text + f"[[rule]]\nto = [{names}]\n", {port: source for port, (_, source) in rows.items()}


@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_every_size_arrives_as_it_was_sent(make_lab, six: bool, mtu: int) -> None:
    lab: Lab = make_lab(mtu=mtu, collectors=1)
    text, sources = configuration(lab, six)
    relay = lab.samplicator(text)
    tap = lab.tap(1, lambda seen: seen.port in sources)
    shark = lab.tshark(1).on()
    for port in sources:
        lab.collector_socket(1, port, six=six)
    exporter = "2001:db8:8000::99" if six else "198.18.64.99"
    sender = lab.exporter_socket(exporter, 50_123)
    dice = random.Random(1)
    sizes = [size for size in (*SIZES, 65527 if six else 1) for _ in range(REPEATS)]
    payloads = [dice.randbytes(size) for size in sizes]
    for payload in payloads:
        sender.sendto(payload, (lab.relay6() if six else lab.relay4(), 2055))
        if len(payload) > 9000:
            time.sleep(0.005)  # pacing, not waiting: the kernel's fragment queues at every hop are small
    seen = tap.collect(len(payloads) * len(sources), 20)
    header = 48 if six else 28
    for port, wanted in sources.items():
        mine = [one for one in seen if one.port == port]
        assert [len(one.payload) for one in mine] == sizes, f"port {port}"
        assert [one.payload for one in mine] == payloads, f"port {port}"
        assert {one.checksum for one in mine} == {"good"}, f"port {port}"
        assert {one.ttl for one in mine} == {64}
        for one in mine:
            assert (one.fragments > 1) == (len(one.payload) + header > mtu), f"port {port}, {len(one.payload)} bytes"
            if wanted is None:
                assert one.source == (lab.relay6(1) if six else lab.relay4(1))
            else:
                assert one.exporter == ((exporter, 50_123) if wanted == ("", 0) else wanted)
    for port in sources:
        rows = [row for row in shark.rows() if row["udp.dstport"] == str(port)]
        assert [bytes.fromhex(row["udp.payload"]) for row in rows] == payloads, f"tshark, port {port}"
        assert {row["udp.checksum.status"] for row in rows} == {"1"}, f"tshark, port {port}"
    metrics = relay.check_laws()
    assert metrics.total("send_datagrams_total") == len(payloads) * len(sources)
    assert metrics.total("send_bytes_total") == sum(sizes) * len(sources)


def test_no_checksum_is_for_spoofed_ipv4_copies_only(lab: Lab) -> None:
    relay = lab.samplicate("-S", "-n", "-p", "2055", f"{lab.peer4(1)}/9001/1,7", f"{lab.peer4(1)}/9002")
    tap = lab.tap(1, lambda seen: seen.port in (9001, 9002))
    sender = lab.exporter_socket("198.18.64.5", 5000)
    for size in (0, 1, 1472, 1473, 9000):
        sender.sendto(b"n" * size, (lab.relay4(), 2055))
    seen = tap.collect(10)
    assert len(seen) == 10
    assert {one.checksum for one in seen} == {"zero"}
    assert {(one.port, one.ttl) for one in seen} == {(9001, 7), (9002, 64)}
    assert {one.exporter for one in seen} == {("198.18.64.5", 5000)}
    relay.check_laws()


def test_longer_than_max_datagram_is_counted_and_dropped_whole(lab: Lab) -> None:
    relay = lab.samplicate("-u", "1000", "-p", "2055", f"{lab.peer4(1)}/9001")
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    sender = lab.exporter_socket("198.18.64.5", 5000)
    for size in (999, 1000, 1001, 4000, 10):
        sender.sendto(b"t" * size, (lab.relay4(), 2055))
    assert [len(one.payload) for one in tap.collect(3)] == [999, 1000, 10]
    metrics = relay.check_laws()
    assert metrics.total("receive_truncated_datagrams_total") == 2
    assert metrics.total("receive_datagrams_total") == 5


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_ttl_and_tos_kept_or_set(lab: Lab, six: bool) -> None:
    to = f"[{lab.peer6(1)}]" if six else lab.peer4(1)
    rows = {
        9001: ("", 64, 0),
        9002: ('ttl = "keep"', None, 0),
        9003: ("ttl = 9\ntos = 184", 9, 184),
        9004: ('spoof = true\nttl = "keep"\ntos = "keep"', None, None),
        9005: ("spoof = true\nttl = 200", 200, 0),
        9006: ('ttl = "keep"\ntos = 40', None, 40),
        9007: ('spoof = true\nttl = 3\ntos = "keep"', 3, None),
        9008: ('tos = "keep"', 64, None),
    }
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "[::]:2055"]\n'
    for port, (extra, _, _) in rows.items():
        text += f'[[receiver]]\nname = "r{port}"\nto = "{to}:{port}"\n{extra}\n'
    text += "[[rule]]\nto = [" + ", ".join(f'"r{port}"' for port in rows) + "]\n"
    lab.samplicator(text)
    tap = lab.tap(1, lambda seen: seen.port in rows)
    for port in rows:
        lab.collector_socket(1, port, six=six)
    sent = []
    for ttl, tos in ((17, 0), (255, 8), (64, 184), (2, 44), (17, 0)):
        sender = lab.exporter_socket("2001:db8:8000::5" if six else "198.18.64.5", 6000 + len(sent), ttl=ttl, tos=tos)
        sender.sendto(b"k" * (30 + len(sent)), (lab.relay6() if six else lab.relay4(), 2055))
        sent.append((ttl, tos))
    seen = tap.collect(len(rows) * len(sent))
    for port, (_, ttl, tos) in rows.items():
        got = [(one.ttl, one.tos) for one in sorted(seen, key=lambda one: len(one.payload)) if one.port == port]
        want = [(t if ttl is None else ttl, o if tos is None else tos) for t, o in sent]
        assert got == want, f"port {port}: {rows[port][0]!r}"


@pytest.mark.parametrize("gro", ["off", "on"])
@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_with_the_offloads_of_a_real_host(make_lab, six: bool, gro: str) -> None:
    """Segmentation and checksum offload on, runs of equal and of mixed sizes: every byte right, sessions in order."""
    lab: Lab = make_lab(offload=True)
    lab.relay.run("ethtool", "-K", "r0", "gro", gro)
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "[::]:2055"]\n'
    to = {link: f"[{lab.peer6(link)}]" if six else lab.peer4(link) for link in (1, 2)}
    for link, spoof in ((1, "false"), (2, "true")):
        text += f'[[receiver]]\nname = "r{link}"\nto = "{to[link]}:{9000 + link}"\nspoof = {spoof}\n'
    relay = lab.samplicator(text + '[[rule]]\nto = ["r1", "r2"]\n')
    listener = f"[{lab.relay6()}]:2055" if six else f"{lab.relay4()}:2055"
    base = lab.EXPORTERS6 if six else lab.EXPORTERS4
    sent = 0
    for size, run_length, segment in (("1400", 46, ["--segment"]), ("20-3000", 5, []), ("200", 1, [])):
        sinks = [lab.sink(link, f"{to[link]}:{9000 + link}") for link in (1, 2)]
        words = ["--to", listener, "--source-base", base, "--exporters", 10, "--source-port", 40_000]
        words += ["--count", 6000, "--rate", 20_000, "--size", size, "--run", run_length, *segment]
        count = lab.load(*words).result()["sent"]
        for sink in sinks:
            got = lab.tally(sink)
            tally = (got["received"], got["lost"], got["repeated"], got["reordered"], got["corrupt"])
            assert tally == (count, 0, 0, 0, 0), f"{size} bytes, runs of {run_length}: {got}"
        sent += count
    assert relay.check_laws().total("receive_datagrams_total") == sent
