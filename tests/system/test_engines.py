"""The spoofing engines over real wires: copies in runs keep source, order and bytes; what an engine cannot send leaves
by the raw socket; the packet engine follows its next hop.

A table with a counter at the relay's output hook tells the ways apart: frames of the packet engine do not pass there.
"""

from __future__ import annotations

import re
import socket
import struct
import time

import pytest
from support.lab import Lab, Namespace, Relay
from support.process import command, tool, wait_for
from support.runs import acquaint, config, held, in_order, payloads, wait_link


def sent(relay: Relay, receiver: str = "r0") -> tuple[int, int]:
    """(copies sent, calls made) at rest."""
    metrics = relay.check_laws()
    return metrics.value("send_datagrams_total", receiver=receiver), metrics.value(
        "send_calls_total", receiver=receiver
    )


class OutputHook:
    """Counts the packets to a port that pass the relay's output hook."""

    def __init__(self, namespace: Namespace, port: int, only: str = "") -> None:
        self.namespace = namespace
        namespace.run(
            "nft", f"add table inet t{port}; add chain inet t{port} out {{ type filter hook output priority 0; }}; "
            f"add rule inet t{port} out {only} udp dport {port} counter"
        )  # fmt: skip
        self.port = port

    def count(self) -> int:
        text = self.namespace.run("nft", "list", "table", "inet", f"t{self.port}")
        return int(re.findall(r"packets (\d+)", text)[0])


# ---- transparent


@pytest.mark.parametrize("six", [False, True])
def test_transparent_runs_keep_source_order_and_bytes(lab: Lab, six: bool) -> None:
    to = (lab.relay6() if six else lab.relay4(), 2055)
    places = [f"[{lab.peer6(1)}]:9001", f"[{lab.peer6(2)}]:9001"] if six else [f"{lab.peer4(n)}:9001" for n in (1, 2)]
    pool = "2001:db8:8000::" if six else "198.18.64."
    relay = lab.samplicator(config("transparent", *places))
    assert relay.api("receivers")[0]["engine"] == "transparent"
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporters = [lab.exporter_socket(f"{pool}{n + 1}", 5000 + n) for n in range(3)]
    acquaint(lab, to[0])
    for step in range(12):
        held(relay, exporters, to, step * 20, 20)
        wait_for(lambda done=(step + 1) * 60: relay.metrics().value("receive_datagrams_total") == done, "them")
    for tap in taps:
        in_order(tap.collect(720), exporters, 240)
    copies, calls = sent(relay)
    assert copies == 720
    assert calls < 500  # the first batches went out one by one: a session earns its socket
    assert relay.api("receivers")[0]["gave_up"] == []
    assert relay.metrics().value("receiver_features_given_up", receiver="r0", feature="segment") == 0


def test_transparent_never_takes_a_local_exporters_port(lab: Lab) -> None:
    """An exporter on the relay's own host keeps its traffic: no socket of ours is ever bound to its address, or to all;
    those for its port are bound to nobody's (192.0.0.8, RFC 7600).
    """
    relay = lab.samplicator(config("transparent", f"{lab.peer4(1)}:9001"))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    local = lab.relay.socket(socket.AF_INET)
    local.bind((lab.relay4(), 5555))
    local.settimeout(5)
    for step in range(12):
        held(relay, [local], (lab.relay4(), 2055), step * 20, 20)
        time.sleep(0.02)
    in_order(tap.collect(240), [local], 240)
    table = lab.relay.call(lambda: open("/proc/thread-self/net/udp").read())  # noqa: SIM115
    here = struct.pack("=I", struct.unpack("!I", socket.inet_aton(lab.relay4()))[0]).hex().upper()
    assert sorted(re.findall(r": ([0-9A-F]{8}):15B3 ", table)) == sorted([here, "080000C0"])
    stranger = lab.exporter_socket("198.18.64.9", 7)
    stranger.sendto(b"for the exporter itself", (lab.relay4(), 5555))
    assert local.recv(100) == b"for the exporter itself"
    local.close()
    assert sent(relay)[0] == 240


def test_transparent_serves_all_exporters_of_a_port_by_one_socket(lab: Lab) -> None:
    relay = lab.samplicator(config("transparent", f"{lab.peer4(1)}:9001"))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    exporters = [lab.exporter_socket(f"198.18.64.{n + 1}", 5000) for n in range(20)]
    acquaint(lab, lab.relay4())
    for step in range(4):
        held(relay, exporters, (lab.relay4(), 2055), step * 10, 10)
        wait_for(lambda done=(step + 1) * 200: relay.metrics().value("receive_datagrams_total") == done, "them")
    in_order(tap.collect(800), exporters, 40)
    copies, calls = sent(relay)
    assert copies == 800
    assert calls < 100
    table = lab.relay.call(lambda: open("/proc/thread-self/net/udp").read())  # noqa: SIM115
    assert re.findall(r": ([0-9A-F]{8}):1388 ", table) == ["080000C0"]


def test_other_family_leaves_unspoofed(lab: Lab) -> None:
    relay = lab.samplicator(config("auto", f"{lab.peer4(1)}:9001"))
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    exporter = lab.exporter_socket("2001:db8:8000::7", 5000)
    held(relay, [exporter], (lab.relay6(), 2055), 0, 20)
    seen = tap.collect(20)
    assert [one.payload for one in seen] == payloads(0, 0, 20)
    assert {one.source for one in seen} == {lab.relay4(1)}


# ---- packet


@pytest.mark.parametrize("six", [False, True])
def test_packet_frames_keep_source_order_and_bytes(lab: Lab, six: bool) -> None:
    to = (lab.relay6() if six else lab.relay4(), 2055)
    place = f"[{lab.peer6(1)}]:9001" if six else f"{lab.peer4(1)}:9001"
    relay = lab.samplicator(config("packet", place))
    hook = OutputHook(lab.relay, 9001)
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    wait_link(relay, "^r1, ")
    pool = "2001:db8:8000::" if six else "198.18.64."
    exporters = [lab.exporter_socket(f"{pool}{n + 1}", 5000 + n) for n in range(3)]
    acquaint(lab, to[0])
    held(relay, exporters, to, 0, 60)
    in_order(tap.collect(180), exporters, 60)
    assert hook.count() == 0
    assert sent(relay)[0] == 180


def test_packet_steps_down_while_the_neighbor_is_gone(lab: Lab) -> None:
    relay = lab.samplicator(config("packet", f"{lab.peer4(1)}:9001"))
    hook = OutputHook(lab.relay, 9001)
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    wait_link(relay, "^r1, ")
    lab.collectors[0].ip("link", "set", "e0", "arp", "off")
    lab.relay.ip("neigh", "del", lab.peer4(1), "dev", "r1")  # the laboratory has set it
    wait_link(relay, "does not answer", timeout=30)
    held(relay, [exporter], (lab.relay4(), 2055), 0, 5)
    assert wait_for(hook.count, "copies by the raw socket")
    lab.collectors[0].ip("link", "set", "e0", "arp", "on")
    wait_link(relay, "^r1, ")

    def flows() -> bool:
        """While the next hop is not known to answer again, one copy in 100 ms leaves."""
        tap.clear()
        for number in range(4):
            exporter.sendto(b"does it flow? %d" % number, (lab.relay4(), 2055))
        return len(tap.collect(4, timeout=0.3, settle=0)) == 4

    wait_for(flows, "copies to flow again", 20)
    tap.clear()
    before = hook.count()
    held(relay, [exporter], (lab.relay4(), 2055), 5, 20)
    seen = [one.payload for one in tap.collect(20)]
    assert seen[-20:] == payloads(0, 5, 20)
    assert hook.count() == before
    relay.check_laws()


def test_packet_follows_interface_and_gateway(lab: Lab) -> None:
    """The receiver is behind a gateway, which changes; then the interface goes down and comes back."""
    for collector in lab.collectors:
        collector.ip("addr", "add", "203.0.113.1/32", "dev", "lo")
    lab.relay.ip("route", "add", "203.0.113.0/24", "via", lab.peer4(1))
    relay = lab.samplicator(config("packet", "203.0.113.1:9001"))
    hook = OutputHook(lab.relay, 9001)
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    wait_link(relay, "^r1, ")
    held(relay, [exporter], (lab.relay4(), 2055), 0, 10)
    in_order(taps[0].collect(10), [exporter], 10)
    lab.relay.ip("route", "replace", "203.0.113.0/24", "via", lab.peer4(2))
    wait_link(relay, "^r2, ")
    held(relay, [exporter], (lab.relay4(), 2055), 0, 10)
    in_order(taps[1].collect(10), [exporter], 10)
    lab.relay.ip("link", "set", "r2", "down")
    wait_link(relay, "no route|down")
    held(relay, [exporter], (lab.relay4(), 2055), 10, 10)
    lab.relay.ip("link", "set", "r2", "up")
    lab.relay.ip("route", "replace", "203.0.113.0/24", "via", lab.peer4(2))
    wait_link(relay, "^r2, ")
    relay.check_laws()
    taps[1].clear()
    before = hook.count()
    held(relay, [exporter], (lab.relay4(), 2055), 0, 10)
    in_order(taps[1].collect(10), [exporter], 10)
    assert hook.count() == before
    assert taps[0].collect(10, timeout=0.1, settle=0.05) == taps[0].seen[:10]


@pytest.mark.parametrize("kind", ["bridge", "vlan"])
def test_packet_sends_on_the_device_the_route_names(lab: Lab, kind: str) -> None:
    """A bridge over the wire, a VLAN device on it: the frame is handed to that device, which does the rest."""
    far, near = lab.collectors[0], lab.relay
    near.ip("addr", "flush", "dev", "r1")
    if kind == "bridge":
        near.ip("link", "add", "top", "type", "bridge")
        near.ip("link", "set", "r1", "master", "top")
        device = "e0"
    else:
        try:
            near.ip("link", "add", "link", "r1", "name", "top", "type", "vlan", "id", "7")
        except AssertionError:
            pytest.skip("this kernel has no VLAN devices (8021q)")
        far.ip("link", "add", "link", "e0", "name", "e0.7", "type", "vlan", "id", "7")
        far.ip("addr", "add", "198.18.57.2/24", "dev", "e0.7")
        far.ip("link", "set", "e0.7", "up")
        device = "e0.7"
    near.ip("addr", "add", "198.18.57.1/24", "dev", "top")
    near.ip("link", "set", "top", "up")
    if kind == "bridge":
        far.ip("addr", "add", "198.18.57.2/24", "dev", device)
    relay = lab.samplicator(config("packet", "198.18.57.2:9001"))
    hook = OutputHook(near, 9001)
    sink = far.socket(socket.AF_INET)
    lab.closers.append(sink.close)
    sink.bind(("198.18.57.2", 9001))
    sink.settimeout(5)
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    far.ip("route", "replace", "198.18.64.0/24", "dev", device)
    wait_link(relay, "^top, ")
    held(relay, [exporter], (lab.relay4(), 2055), 0, 10)
    got = [sink.recvfrom(2000) for _ in range(10)]
    assert [payload for payload, _ in got] == payloads(0, 0, 10)
    assert {source for _, source in got} == {exporter.getsockname()}
    assert hook.count() == 0


def test_packet_without_net_admin(lab: Lab) -> None:
    """It may not tell the kernel that a neighbor is used: the raw socket does, and frames follow."""
    text = config("packet", f"{lab.peer4(1)}:9001", f"[{lab.peer6(2)}]:9001")
    path = lab.directory / "less.toml"
    path.write_text(lab.with_service(text))
    words = [tool("setpriv"), "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
    relay = Relay(lab, [*words, command("samplicator"), "run", "-c", str(path)], "samplicator")
    lab.relays.append(relay)
    relay.wait_ready()
    hook = OutputHook(lab.relay, 9001, "meta nfproto ipv4")
    taps = [lab.tap(n, lambda seen: seen.port == 9001) for n in (1, 2)]
    exporters = [lab.exporter_socket("198.18.64.1", 5000), lab.exporter_socket("2001:db8:8000::1", 5000)]
    for number, to in enumerate((lab.relay4(), lab.relay6())):
        acquaint(lab, to)
        held(relay, [exporters[number]], (to, 2055), 0, 1)
    wait_link(relay, "^r1, ", "r0")
    wait_link(relay, "^r2, ", "r1")
    before = hook.count()
    for tap in taps:
        tap.collect(2)
        tap.clear()
    held(relay, exporters[:1], (lab.relay4(), 2055), 0, 20)
    in_order(taps[0].collect(20), exporters[:1], 20)
    taps[1].collect(20)
    assert hook.count() == before  # nothing to the IPv4 receiver
    relay.check_laws()


def test_packet_to_this_host_itself_leaves_by_the_raw_socket(lab: Lab) -> None:
    relay = lab.samplicator(config("packet", f"{lab.relay4(1)}:9001"))
    assert "this host" in relay.api("receivers")[0]["engine_why"]
    sink = lab.relay.socket(socket.AF_INET)
    lab.closers.append(sink.close)
    sink.bind((lab.relay4(1), 9001))
    sink.settimeout(5)
    wait_link(relay, "is this host")
    exporter = lab.exporter_socket("198.18.64.1", 5000)
    held(relay, [exporter], (lab.relay4(), 2055), 0, 10)
    got = [sink.recvfrom(2000) for _ in range(10)]
    assert [payload for payload, _ in got] == payloads(0, 0, 10)
    assert {source for _, source in got} == {exporter.getsockname()}
    assert sent(relay)[0] == 10
