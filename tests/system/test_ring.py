"""Receiving by ring: every datagram comes in once, by the ring or by the socket, and nothing outlives the process.

A generator and a verifying sink (sequence numbers per exporter) see to it that none is lost, repeated or reordered.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import struct
from pathlib import Path

import pytest
from support.lab import Lab, Relay, run
from support.process import Process, bench_tool, command, tool, wait_for


def config(lab: Lab, receive: str = "ring", *, workers: int = 1, listen: str = "", extra: str = "") -> str:
    listen = listen or '"0.0.0.0:2055", "[::]:2055"'
    return f"""[datapath]
workers = {workers}
[[listener]]
name = "in"
listen = [{listen}]
receive = "{receive}"
{extra}
[[receiver]]
name = "one"
to = "{lab.peer4(1)}:9001"
spoof = true
[[receiver]]
name = "six"
to = "[{lab.peer6(2)}]:9001"
spoof = true
[[rule]]
to = ["one", "six"]
"""


def by_socket(lab: Lab) -> int:
    """Datagrams that the UDP stack of the relay has handed to sockets."""

    def read() -> int:
        with open("/proc/thread-self/net/snmp") as file:
            four = int(re.findall(r"^Udp: (\d+)", file.read(), re.M)[0])
        with open("/proc/thread-self/net/snmp6") as file:
            return four + int(re.findall(r"^Udp6InDatagrams\s+(\d+)", file.read(), re.M)[0])

    return lab.relay.call(read)


def ruleset(lab: Lab) -> str:
    return lab.relay.run("nft", "list", "ruleset")


def counts(relay: Relay) -> dict[str, int]:
    metrics = relay.check_laws()
    names = ("receive_datagrams_total", "receive_matched_datagrams_total", "receive_kernel_drops_total")
    return {name: metrics.value(name, listener="in") for name in names}


@pytest.mark.parametrize("six", [False, True])
def test_whole_datagrams_by_the_ring_fragments_by_the_socket(lab: Lab, six: bool) -> None:
    relay = lab.samplicator(config(lab))
    listener = relay.api("listeners")[0]
    assert listener["receive"] == "ring"
    assert listener["rings"] == ["r0", "r1", "r2"]
    link = 2 if six else 1
    tap = lab.tap(link, lambda seen: seen.port == 9001)
    exporter = lab.exporter_socket("2001:db8:8000::1" if six else "198.18.64.1", 5000)
    to = (lab.relay6() if six else lab.relay4(), 2055)
    sizes = [0, 1, 17, 1452, 3000, 600, 20000]
    before = by_socket(lab)
    for number, size in enumerate(sizes):
        exporter.sendto(bytes([number]) * size, to)
        tap.collect(number + 1, settle=0)
    seen = tap.collect(len(sizes))
    assert [one.payload for one in seen] == [bytes([number]) * size for number, size in enumerate(sizes)]
    assert {one.exporter for one in seen} == {exporter.getsockname()[:2]}
    assert counts(relay)["receive_datagrams_total"] == len(sizes)
    assert by_socket(lab) - before == 2
    assert "ring" in relay.api("status")["startup"] or relay.tail()


def test_what_is_not_for_the_listener_is_left_alone(lab: Lab) -> None:
    """Another port, another address, another host's traffic that is forwarded, IP options, a tagged frame."""
    relay = lab.samplicator(config(lab, listen=f'"{lab.relay4()}:2055"'))
    assert relay.api("listeners")[0]["rings"] == ["r0"]
    other = lab.relay.socket(socket.AF_INET)
    lab.closers.append(other.close)
    other.bind((lab.relay4(), 2056))
    other.settimeout(5)
    elsewhere = lab.relay.socket(socket.AF_INET)
    lab.closers.append(elsewhere.close)
    elsewhere.bind((lab.relay4(1), 2055))
    elsewhere.settimeout(5)
    forwarded = lab.collector_socket(2, 2055)
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    exporter.sendto(b"port", (lab.relay4(), 2056))
    exporter.sendto(b"address", (lab.relay4(1), 2055))
    exporter.sendto(b"host", (lab.peer4(2), 2055))
    assert [sock.recv(100) for sock in (other, elsewhere, forwarded)] == [b"port", b"address", b"host"]
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    before = by_socket(lab)
    exporter.setsockopt(socket.IPPROTO_IP, 4, b"\x01\x01\x01\x00")  # IP_OPTIONS: no operation, end
    exporter.sendto(b"options", (lab.relay4(), 2055))
    exporter.setsockopt(socket.IPPROTO_IP, 4, b"")
    exporter.sendto(b"plain", (lab.relay4(), 2055))
    assert {one.payload for one in tap.collect(2)} == {b"options", b"plain"}
    assert by_socket(lab) - before == 1
    assert counts(relay)["receive_datagrams_total"] == 2


def test_broken_packets_are_counted_and_not_forwarded(lab: Lab) -> None:
    relay = lab.samplicator(config(lab))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    raw = lab.exporter.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    lab.closers.append(raw.close)

    def packet(udp_length: int, checksum: int, payload: bytes) -> bytes:
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, b"\xc6\x12\x40\x01", socket.inet_aton(lab.relay4())
        )
        return head + struct.pack("!HHHH", 5000, 2055, udp_length, checksum) + payload

    for broken in (packet(12, 0xBEEF, b"1234"), packet(3, 0, b"1234"), packet(200, 0, b"1234"), packet(12, 0, b"good")):
        raw.sendto(broken, (lab.relay4(), 0))
    assert [one.payload for one in tap.collect(1)] == [b"good"]
    metrics = relay.check_laws()
    assert metrics.value("receive_datagrams_total", listener="in") == 1
    assert metrics.value("receive_errors_total", listener="in", reason="other") == 3


def flood(
    lab: Lab, *, rate: int = 4000, seconds: float = 6, exporters: int = 20, run_length: int = 4, join: bool = False
) -> tuple[Process, Process]:
    sink = lab.sink(1, f"{lab.peer4(1)}:9001", join=join)
    load = lab.load(
        "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.64.1", "--exporters", exporters, "--source-port", 5000,
        "--rate", rate, "--seconds", seconds, "--size", 400, "--run", run_length,
    )  # fmt: skip
    return sink, load


def arrived(lab: Lab) -> int:
    """Packets that the exporters' device of the relay has received."""
    text = lab.relay.call(lambda: Path("/proc/thread-self/net/dev").read_text())
    return int(re.findall(r"^ *r0: *\d+ +(\d+)", text, re.M)[0])


def more(relay: Relay, load: Process, datagrams: int = 2000) -> None:
    """Waits until so many more have been received, or the generator has ended."""
    before = relay.metrics().value("receive_datagrams_total", listener="in")
    wait_for(
        lambda: not load.alive or relay.metrics().value("receive_datagrams_total", listener="in") - before > datagrams,
        "datagrams",
        30,
    )


def verdict(lab: Lab, sink: Process, load: Process) -> tuple[dict[str, int], dict[str, int]]:
    """What the generator sent and what the sink makes of it."""
    return load.result(30), lab.tally(sink)


def test_start_under_load_loses_and_repeats_nothing(lab: Lab) -> None:
    """From the first datagram that is forwarded on there is no gap and no repetition."""
    sink, load = flood(lab, join=True, seconds=120)
    wait_for(lambda: arrived(lab) > 1000, "a load that runs")
    relay = lab.samplicator(config(lab, workers=2))
    more(relay, load, 6000)
    assert load.alive
    load.kill()
    got = lab.tally(sink)
    assert got["received"] > 6000
    assert (got["lost"], got["repeated"], got["reordered"], got["corrupt"]) == (0, 0, 0, 0)
    assert counts(relay)["receive_datagrams_total"] == got["received"]


def test_two_workers_share_and_keep_order(lab: Lab) -> None:
    relay = lab.samplicator(config(lab, workers=2))
    sink, load = flood(lab, exporters=64, seconds=3, rate=8000)
    sent, got = verdict(lab, sink, load)
    assert got["received"] == sent["sent"]
    assert (got["lost"], got["repeated"], got["reordered"], got["corrupt"]) == (0, 0, 0, 0)
    metrics = relay.check_laws()
    assert min(metrics.value("worker_sessions", worker=str(n)) for n in (0, 1)) > 8
    assert counts(relay) == {
        "receive_datagrams_total": sent["sent"],
        "receive_matched_datagrams_total": sent["sent"],
        "receive_kernel_drops_total": 0,
    }


def test_workers_come_and_go_without_a_gap(lab: Lab) -> None:
    relay = lab.samplicator(config(lab))
    sink, load = flood(lab, seconds=7)
    for workers in (2, 3, 1, 2):
        more(relay, load)
        relay.hangup(lab.with_service(config(lab, workers=workers), "samplicator"))
    sent, got = verdict(lab, sink, load)
    assert got["received"] == sent["sent"]
    assert (got["lost"], got["repeated"], got["corrupt"]) == (0, 0, 0)
    assert counts(relay)["receive_datagrams_total"] == sent["sent"]


def test_the_way_in_changes_live_and_nothing_is_lost(lab: Lab) -> None:
    relay = lab.samplicator(config(lab, "recvmmsg"))
    assert ruleset(lab) == ""
    sink, load = flood(lab, seconds=6)
    for receive in ("ring", "recvmmsg", "auto"):
        more(relay, load)
        relay.hangup(lab.with_service(config(lab, receive), "samplicator"))
        assert ("chain" in ruleset(lab)) == (receive != "recvmmsg")
    sent, got = verdict(lab, sink, load)
    assert (got["lost"], got["repeated"], got["reordered"], got["corrupt"]) == (0, 0, 0, 0)
    assert got["received"] == counts(relay)["receive_datagrams_total"] == sent["sent"]
    assert relay.api("listeners")[0]["receive_why"].startswith("auto: a packet ring")


def test_end_forwards_what_is_in_the_ring(lab: Lab) -> None:
    relay = lab.samplicator(config(lab))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    relay.send_signal(signal.SIGSTOP)
    for number in range(200):
        exporter.sendto(str(number).encode(), (lab.relay4(), 2055))
    relay.send_signal(signal.SIGTERM)
    relay.send_signal(signal.SIGCONT)
    relay.popen.wait(10)
    assert [one.payload for one in tap.collect(200)] == [str(number).encode() for number in range(200)]
    assert ruleset(lab) == ""


def test_nothing_outlives_a_crash(lab: Lab) -> None:
    relay = lab.samplicator(config(lab), expected=(-signal.SIGKILL,))
    assert "flags owner" in ruleset(lab)
    relay.send_signal(signal.SIGKILL)
    relay.popen.wait(10)
    wait_for(lambda: ruleset(lab) == "", "the table to go", 20)
    again = lab.samplicator(config(lab))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    lab.exporter_socket("198.18.64.1", 5000).sendto(b"x", (lab.relay4(), 2055))
    assert len(tap.collect(1)) == 1
    assert counts(again)["receive_datagrams_total"] == 1


@pytest.mark.parametrize(
    ("rate", "seconds", "size", "run_length", "ring", "workers"),
    [
        (20000, 3, 200, 4, "64MiB", 1),
        (1000, 6, 300, 1, "4MiB", 2),
        (5000, 4, "64-1200", 2, "32MiB", 1),
        (18000, 2, 1400, 46, "64MiB", 2),
    ],
)
def test_a_stopped_relay_loses_nothing_that_the_ring_can_hold(
    lab: Lab, rate: int, seconds: int, size: int | str, run_length: int, ring: str, workers: int
) -> None:
    """The ring holds bytes, not milliseconds. Runs of 46 are segmented sends: the largest packets there are."""
    text = config(lab, workers=workers).replace("[datapath]", f'[datapath]\nring_buffer = "{ring}"')
    relay = lab.samplicator(text)
    sink = lab.sink(1, f"{lab.peer4(1)}:9001")
    relay.send_signal(signal.SIGSTOP)
    load = lab.load(
        "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.64.1", "--exporters", 12, "--source-port", 5000,
        "--rate", rate, "--seconds", seconds, "--size", size, "--run", run_length,
        *(["--segment"] if run_length > 40 else []),
    )  # fmt: skip
    sent = load.result(60)["sent"]
    relay.send_signal(signal.SIGCONT)
    assert sent >= min(20000, rate * seconds) // 2
    wait_for(lambda: sum(list(counts(relay).values())[::2]) >= sent, "all of it to be received or dropped", 30)
    assert counts(relay) == {
        "receive_datagrams_total": sent,
        "receive_matched_datagrams_total": sent,
        "receive_kernel_drops_total": 0,
    }
    wait_for(lambda: relay.metrics().value("send_datagrams_total", receiver="one") >= sent, "copies")
    got = lab.tally(sink)
    assert got["received"] == sent
    assert (got["lost"], got["repeated"], got["reordered"], got["corrupt"]) == (0, 0, 0, 0)


def test_latency_at_a_low_rate(lab: Lab) -> None:
    """What comes alone is forwarded at once, in the best of a few rounds: the machine may have other things to do."""
    lab.samplicator(config(lab))
    medians = []
    while len(medians) < 6 and not (medians and min(medians) < 600_000):
        sink = lab.start(
            [bench_tool("sink"), "--listen", f"{lab.peer4(1)}:9001", "--latency", "--join", "--expect", "100"],
            lab.collectors[0],
            f"sink-{len(medians)}",
        )
        lab.wait_bound(lab.collectors[0], {9001}, sink)
        load = lab.load(
            "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.64.1", "--exporters", 3, "--source-port", 5000,
            "--rate", 80, "--count", 100, "--size", 200, "--timed", label=f"loadgen-{len(medians)}",
        )  # fmt: skip
        assert load.result(30)["sent"] == 100
        medians.append(sink.result(30)["latency_ns"]["p50"])
    assert min(medians) < 600_000, medians


TUNSETIFF, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 2, 0x1000, 0x4000
GSO_UDP = 3
"""A datagram to be cut into fragments: what a virtual machine may send, and what no virtio-net header can say again."""


def open_tap(lab: Lab, name: str) -> int:
    """A tap device of the relay whose frames begin with a virtio-net header; returns its descriptor."""

    def make() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", 10))
        return fd

    fd = lab.relay.call(make)
    lab.closers.append(lambda: os.close(fd))
    return fd


def test_what_the_kernel_cannot_describe_is_dropped_and_nothing_comes_again(lab: Lab) -> None:
    """Slots of the ring that are counted and never filled, where other datagrams were before, and good ones between."""
    tap = open_tap(lab, "vm")
    lab.relay.ip("addr", "add", "198.18.60.1/24", "dev", "vm")
    lab.relay.ip("link", "set", "vm", "up")
    hardware = bytes.fromhex(re.findall(r"link/ether (\S+)", lab.relay.ip("link", "show", "vm"))[0].replace(":", ""))
    text = config(lab, extra='interface = "vm"').replace("[datapath]", '[datapath]\nring_buffer = "2MiB"')
    relay = lab.samplicator(text)
    seen = lab.tap(1, lambda one: one.port == 9001)

    def send(number: int, gso: int = 0) -> None:
        payload = number.to_bytes(4) + bytes(1396)
        udp = struct.pack("!HHHH", 5000, 2055, 8 + len(payload), 0) + payload
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\xc6\x12\x3c\x02", b"\xc6\x12\x3c\x01"
        )
        total = sum(struct.unpack("!10H", head))
        total = (total & 0xFFFF) + (total >> 16)
        head = head[:10] + struct.pack("!H", (total & 0xFFFF) + (total >> 16) ^ 0xFFFF) + head[12:]
        vnet = struct.pack("=BBHHHH", 1, gso, 42, 500, 34, 6) if gso else bytes(10)
        os.write(tap, vnet + hardware + b"\2\0\0\0\0\2\x08\0" + head + udp)

    def wait_until_received(good: int) -> None:
        wait_for(lambda: relay.metrics().value("receive_datagrams_total", listener="in") == good, f"{good} datagrams")

    good = 0
    for start in range(0, 3000, 100):  # twice round the ring
        for number in range(start, start + 100):
            send(number)
        good += 100
        wait_until_received(good)
    for number in range(3000, 3080):
        send(number, GSO_UDP)
        if number % 4 == 0:
            send(number)
            good += 1
    wait_until_received(good)
    numbers = [int.from_bytes(one.payload[:4]) for one in seen.collect(good)]
    assert numbers == [*range(3000), *range(3000, 3080, 4)]
    assert counts(relay) == {
        "receive_datagrams_total": good,
        "receive_matched_datagrams_total": good,
        "receive_kernel_drops_total": 80,
    }
    assert relay.metrics().value("receive_errors_total", listener="in", reason="other") == 0


def test_full_ring_is_counted(lab: Lab) -> None:
    relay = lab.samplicator(config(lab).replace("[datapath]", '[datapath]\nring_buffer = "2MiB"'))
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    relay.send_signal(signal.SIGSTOP)
    for _ in range(4000):
        exporter.sendto(bytes(1400), (lab.relay4(), 2055))
    relay.send_signal(signal.SIGCONT)
    found = counts(relay)
    assert found["receive_kernel_drops_total"] > 0
    assert found["receive_datagrams_total"] + found["receive_kernel_drops_total"] == 4000


def test_interface_down_and_up(lab: Lab) -> None:
    """A ring on a device that is down does not spin, and works again when the device is back."""
    relay = lab.samplicator(config(lab, extra='interface = "r0"'))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    lab.relay.ip("link", "set", "r0", "down")
    wait_for(lambda: "state DOWN" in lab.relay.ip("link", "show", "r0"), "the device to be down")

    def beats_and_wakeups() -> tuple[float, int]:
        metrics = relay.metrics()
        beat = re.findall(r"^samplicator_worker_heartbeat_timestamp_seconds\S* (\S+)", metrics.text, re.M)[0]
        return float(beat), metrics.value("worker_wakeups_total", worker="0")

    beat, wakeups = beats_and_wakeups()
    wait_for(lambda: beats_and_wakeups()[0] > beat + 2, "two seconds of the worker's life")
    assert beats_and_wakeups()[1] - wakeups < 200
    lab.relay.ip("link", "set", "r0", "up")
    lab.relay.ip("route", "replace", "198.18.64.0/18", "via", lab.peer4(0))
    exporter = lab.exporter_socket("198.18.64.1", 5000)

    def comes() -> bool:
        exporter.sendto(b"again", (lab.relay4(), 2055))
        return len(tap.collect(1, timeout=0.3, settle=0)) > 0

    wait_for(comes, "datagrams after the interface came back", 10)
    relay.check_laws()


def test_new_address_and_new_interface_are_followed(lab: Lab) -> None:
    relay = lab.samplicator(config(lab))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    lab.relay.ip("addr", "add", "198.18.0.77/24", "dev", "r0")
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    exporter.sendto(b"early", ("198.18.0.77", 2055))
    assert [one.payload for one in tap.collect(1)] == [b"early"]
    wait_for(lambda: "0xc612004d" in ruleset(lab), "the new address in the rule", 15)
    before = by_socket(lab)
    exporter.sendto(b"late", ("198.18.0.77", 2055))
    assert [one.payload for one in tap.collect(2)] == [b"early", b"late"]
    assert by_socket(lab) == before
    run(
        "ip",
        "-n",
        lab.relay.name,
        "link",
        "add",
        "extra",
        "type",
        "veth",
        "peer",
        "name",
        "e9",
        "netns",
        lab.exporter.name,
    )
    for namespace, device, last in ((lab.relay, "extra", 1), (lab.exporter, "e9", 2)):
        namespace.ip("addr", "add", f"198.18.50.{last}/24", "dev", device)
        namespace.ip("link", "set", device, "up")
    wait_for(lambda: 'device "extra"' in ruleset(lab), "a ring on the new interface", 15)
    exporter.sendto(b"new", ("198.18.50.1", 2055))
    assert [one.payload for one in tap.collect(3)] == [b"early", b"late", b"new"]
    lab.relay.ip("link", "del", "extra")
    wait_for(lambda: relay.api("listeners")[0]["rings"] == ["r0", "r1", "r2"], "the ring to go with its interface", 15)
    assert counts(relay)["receive_datagrams_total"] == 3


def test_a_more_specific_listener_keeps_its_datagrams(lab: Lab) -> None:
    text = config(lab) + f'[[listener]]\nname = "special"\nlisten = ["{lab.relay4(1)}:2055"]\n'
    relay = lab.samplicator(text)
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    for n in range(3):
        exporter.sendto(b"x", (lab.relay4(n), 2055))
    tap = wait_for(lambda: relay.metrics().total("receive_datagrams_total") == 3, "three datagrams")
    assert tap
    metrics = relay.check_laws()
    assert metrics.value("receive_datagrams_total", listener="in") == 2
    assert metrics.value("receive_datagrams_total", listener="special") == 1


@pytest.mark.parametrize(("receive", "ends"), [("ring", True), ("auto", False)])
def test_without_net_admin(lab: Lab, receive: str, ends: bool) -> None:
    """The ring that was asked for is refused with file and line; "auto" does without it and says so."""
    path = lab.directory / "less.toml"
    path.write_text(lab.with_service(config(lab, receive), "samplicator"))
    less = ["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
    relay = Relay(
        lab, [tool("setpriv"), *less, command("samplicator"), "run", "-c", str(path)], "samplicator", expected=(0, 2)
    )  # fmt: skip
    lab.relays.append(relay)
    if ends:
        assert relay.popen.wait(20) == 2
        assert re.search(r"less.toml:\d+: listener\[0\].receive: .*CAP_NET_ADMIN", relay.tail())
    else:
        relay.wait_ready()
        listener = relay.api("listeners")[0]
        assert (listener["receive"], listener["rings"]) == ("recvmmsg", [])
        assert "CAP_NET_ADMIN" in listener["receive_why"]
