"""Who the exporters are: IPv4-mapped on an IPv6 listener, matched by an IPv6 /48, many thousand forged ones,
multicast.
"""

from __future__ import annotations

import socket
import struct

import pytest
from support.lab import Lab


def test_ipv4_mapped_exporter_on_an_ipv6_listener(lab: Lab) -> None:
    text = f"""
[[listener]]
name = "six"
listen = ["[::]:2055"]
[[receiver]]
name = "spoofed"
to = "{lab.peer4(1)}:9001"
spoof = true
[[receiver]]
name = "plain"
to = "{lab.peer4(1)}:9002"
[[receiver]]
name = "cross"
to = "[{lab.peer6(1)}]:9003"
spoof = true
[[rule]]
from = ["198.18.64.0/24"]
to = ["spoofed", "plain", "cross"]
[[rule]]
from = ["::/0"]
to = ["plain"]
"""
    relay = lab.samplicator(text)
    tap = lab.tap(1, lambda seen: seen.port in (9001, 9002, 9003))
    for port, six in ((9001, False), (9002, False), (9003, True)):
        lab.collector_socket(1, port, six=six)
    sender = lab.exporter_socket("198.18.64.8", 50_008)
    for size in (1, 1473, 9000):
        sender.sendto(b"m" * size, (lab.relay4(), 2055))
    lab.exporter_socket("198.18.65.8", 50_008).sendto(b"not in the rule", (lab.relay4(), 2055))
    seen = tap.collect(9)
    assert len(seen) == 9
    assert [one.exporter for one in seen if one.port == 9001] == [("198.18.64.8", 50_008)] * 3
    assert {one.source for one in seen if one.port == 9002} == {lab.relay4(1)}
    assert {one.source for one in seen if one.port == 9003} == {lab.relay6(1)}, "another family cannot be spoofed"
    assert {one.checksum for one in seen} == {"good"}
    metrics = relay.check_laws()
    assert metrics.value("receive_rejected_datagrams_total", listener="six", reason="no_route_rule") == 1


def test_ipv6_exporter_matched_by_a_48_and_spoofed(lab: Lab) -> None:
    rules = lab.directory / "rules"
    rules.write_text(
        f"[2001:db8:8000::]/48: [{lab.peer6(1)}]/9001\n[2001:db8:8001::]/48: [{lab.peer6(1)}]/9002\n"
        f"[2001:db8::]/32: [{lab.peer6(1)}]/9003\n"
    )
    lab.samplicate("-S", "-s", "::", "-p", "2055", "-c", str(rules))
    tap = lab.tap(1, lambda seen: seen.port in (9001, 9002, 9003))
    for port in (9001, 9002, 9003):
        lab.collector_socket(1, port, six=True)
    exporters = ["2001:db8:8000::1", "2001:db8:8000:ffff:1::", "2001:db8:8001::1", "2001:db8:8000:0:8000::2"]
    for exporter in exporters:
        sender = lab.exporter_socket(exporter, 50_009)
        for size in (0, 1452, 1453, 5000):
            sender.sendto(exporter.encode()[:1] * size, (lab.relay6(), 2055))
    seen = tap.collect(8 * 4)
    assert len(seen) == 8 * 4

    def came(port: int) -> list[str]:
        return sorted({one.source for one in seen if one.port == port})

    assert came(9001) == sorted(exporters[:2] + exporters[3:])
    assert came(9002) == [exporters[2]]
    assert came(9003) == sorted(exporters)
    assert {one.source_port for one in seen} == {50_009}
    assert {one.checksum for one in seen} == {"good"}


FORGED = 100_000


@pytest.mark.slow
@pytest.mark.alone  # bursts of 20,000 datagrams a second, and none may be lost
def test_100_000_forged_exporters_cost_no_memory_and_no_loss(lab: Lab) -> None:
    text = f"""
[[listener]]
name = "in"
listen = ["0.0.0.0:2055", "[::]:2055"]
[[receiver]]
name = "legitimate"
to = "{lab.peer4(1)}:9001"
spoof = true
[[receiver]]
name = "everything"
to = "{lab.peer4(2)}:9002"
spoof = true
[[rule]]
from = ["198.18.64.0/24"]
to = ["legitimate"]
[[rule]]
to = ["everything"]
"""
    relay = lab.samplicator(text)
    legitimate = lab.sink(1, f"{lab.peer4(1)}:9001")
    lab.collector_socket(2, 9002)
    to4, to6 = f"{lab.relay4()}:2055", f"[{lab.relay6()}]:2055"
    warm = lab.load("--to", to4, "--source-base", "198.18.64.0", "--exporters", 50, "--source-port", 4000,
                    "--count", 500, "--size", 200, label="loadgen-warm")  # fmt: skip
    assert warm.result()["sent"] == 500
    relay.at_rest()
    memory = [relay.rss()]
    steady = lab.load("--to", to4, "--source-base", "198.18.64.64", "--exporters", 50, "--source-port", 5000,
                      "--seconds", 40, "--rate", 2000, "--size", 200, label="loadgen-steady")  # fmt: skip
    forged = 0
    for to, base, seed in ((to4, "198.18.66.0", 1), (to6, "2001:db8:8000::", 2), (to4, "198.18.66.0", 3)):
        wave = lab.load("--to", to, "--source-base", base, "--exporters", FORGED, "--source-port", 6000 + seed,
                        "--count", FORGED, "--rate", 20_000, "--size", 40, label=f"loadgen-forged{seed}")  # fmt: skip
        forged += wave.result(60)["sent"]
        memory.append(relay.rss())
    steady.send_signal(2)
    sent = steady.result()["sent"]
    metrics = relay.check_laws()
    assert forged == 3 * FORGED
    assert metrics.total("receive_kernel_drops_total") == 0
    got = lab.tally(legitimate)
    assert (got["received"], got["lost"], got["repeated"]) == (sent + 500, 0, 0)
    assert metrics.value("send_datagrams_total", receiver="legitimate") == sent + 500
    growth = [later - memory[0] for later in memory[1:]]
    assert growth[0] < 64 << 20, f"resident memory grew by {growth} bytes from {memory[0]}"
    assert growth[2] - growth[0] < 8 << 20, f"resident memory keeps growing: {growth}"


def test_multicast_listener_joins_its_groups(lab: Lab) -> None:
    text = f"""
[[listener]]
name = "groups"
listen = ["0.0.0.0:2055", "[::]:2055"]
interface = "r0"
multicast = ["239.1.1.1", "ff05::4711"]
[[receiver]]
name = "one"
to = "{lab.peer4(1)}:9001"
spoof = true
[[receiver]]
name = "six"
to = "[{lab.peer6(1)}]:9001"
spoof = true
[[rule]]
from = ["0.0.0.0/0"]
to = ["one"]
[[rule]]
from = ["::/0"]
to = ["six"]
"""
    relay = lab.samplicator(text)
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    lab.collector_socket(1, 9001)
    lab.collector_socket(1, 9001, six=True)
    index = lab.exporter.call(lambda: socket.if_nametoindex("e0"))
    four = lab.exporter_socket(lab.peer4(0), 50_001)
    request = struct.pack("=4s4si", bytes(4), bytes(4), index)
    four.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
    four.sendto(b"four", ("239.1.1.1", 2055))
    four.sendto(b"not joined", ("239.1.1.2", 2055))
    four.sendto(b"unicast", (lab.relay4(), 2055))
    six = lab.exporter_socket(lab.peer6(0), 50_002)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    six.sendto(b"six", ("ff05::4711", 2055))
    six.sendto(b"not joined", ("ff05::4712", 2055))
    seen = tap.collect(3)
    assert sorted((one.source, one.source_port, one.payload) for one in seen) == [
        ("198.18.0.2", 50_001, b"four"), ("198.18.0.2", 50_001, b"unicast"), (lab.peer6(0), 50_002, b"six"),
    ]  # fmt: skip
    assert relay.check_laws().total("receive_datagrams_total") == 3


def test_port_ranges_of_listener_and_receivers(lab: Lab) -> None:
    text = f"""
[[listener]]
name = "range"
listen = ["0.0.0.0:9990-9999"]
[[receiver]]
name = "one"
to = "{lab.peer4(1)}:9001"
[[rule]]
listener = ["range"]
to = ["one"]
"""
    relay = lab.samplicator(text)
    tap = lab.tap(1, lambda seen: 9001 <= seen.port <= 9099)
    lab.collector_socket(1, 9001)
    sender = lab.exporter_socket("198.18.64.1", 50_000)
    for port in range(9990, 10_000):
        sender.sendto(str(port).encode(), (lab.relay4(), port))
    assert [one.payload for one in tap.collect(10)] == [str(port).encode() for port in range(9990, 10_000)]
    assert relay.check_laws().value("receive_datagrams_total", listener="range") == 10
    relay.end()
    tap.clear()
    lab.samplicate("-p", "2055", f"{lab.peer4(1)}/9010-9014", f"{lab.peer4(1)}/9020+3/2")
    for port in (*range(9010, 9015), *range(9020, 9023)):
        lab.collector_socket(1, port)
    for number in range(4):
        sender.sendto(bytes([number]), (lab.relay4(), 2055))
    seen = tap.collect(5 * 4 + 3 * 2)
    assert sorted((one.port, one.payload[0]) for one in seen) == sorted(
        [(port, number) for port in range(9010, 9015) for number in range(4)]
        + [(port, number) for port in range(9020, 9023) for number in (0, 2)]
    )
