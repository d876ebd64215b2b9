"""What the kernel refuses is counted by reason, hurts nobody else, and ends when its cause ends."""

from __future__ import annotations

import signal
import socket
import struct

import pytest
from support.lab import Lab, Relay
from support.process import wait_for
from support.runs import wait_link
from support.witness import ones_complement_sum

ENGINES = pytest.mark.parametrize("spoof", [False, True], ids=["udp", "raw-spoofed"])


def configuration(troubled: str, fine: str, spoof: bool, extra: str = "") -> str:
    text = f'{extra}\n[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055", "[::]:2055"]\n'
    for name, to in (("troubled", troubled), ("fine", fine)):
        text += f'[[receiver]]\nname = "{name}"\nto = "{to}"\nspoof = {str(spoof).lower()}\n'
    return text + '[[rule]]\nto = ["troubled", "fine"]\n'


class Sender:
    """Sends numbered datagrams and waits until the relay has dealt with them."""

    def __init__(self, lab: Lab, relay: Relay, *, six: bool = False) -> None:
        self.relay = relay
        self.to = (lab.relay6() if six else lab.relay4(), 2055)
        self.socket = lab.exporter_socket("2001:db8:8000::1" if six else "198.18.64.1", 50_000)

    def send(self, count: int, size: int = 100) -> None:
        base = self.relay.metrics().total("receive_datagrams_total")
        for _ in range(count):
            self.socket.sendto(bytes(size), self.to)
        wait_for(lambda: self.relay.metrics().total("receive_datagrams_total") == base + count, "all to be received")

    def tally(self, name: str) -> tuple[int, dict[str, int]]:
        """(sent, errors by reason) of a receiver, at rest."""
        metrics = self.relay.check_laws()
        rows = metrics.select("send_failed_datagrams_total", receiver=name)
        errors = {labels["reason"]: int(value) for labels, value in rows if value}
        return metrics.value("send_datagrams_total", receiver=name), errors


@pytest.mark.parametrize(("spoof", "six"), [(False, False), (True, True)], ids=["udp-ipv4", "raw-spoofed-ipv6"])
def test_no_route_at_the_start_and_a_route_later(lab: Lab, spoof: bool, six: bool) -> None:
    troubled = "[2001:db8:7::7]:9001" if six else "198.18.50.50:9001"
    fine = f"[{lab.peer6(2)}]:9002" if six else f"{lab.peer4(2)}:9002"
    relay = lab.samplicator(configuration(troubled, fine, spoof))
    lab.collector_socket(2, 9002, six=six)
    sender = Sender(lab, relay, six=six)
    sender.send(10)
    sent, errors = sender.tally("troubled")
    assert (sent, errors) == (0, {"no_route": 10})
    assert sender.tally("fine") == (10, {})
    prefix, via = ("2001:db8:7::/48", lab.peer6(1)) if six else ("198.18.50.0/24", lab.peer4(1))
    lab.relay.ip(*(["-6"] if six else []), "route", "add", prefix, "via", via)
    lab.collectors[0].ip("addr", "add", "2001:db8:7::7/128" if six else "198.18.50.50/32", "dev", "lo")
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    receiver = lab.collectors[0].socket(socket.AF_INET6 if six else socket.AF_INET)
    receiver.bind(("::" if six else "0.0.0.0", 9001))

    def arrives() -> bool:
        sender.send(1)
        return bool(tap.drain())

    wait_for(arrives, "copies over the new route", 10, 0.1)
    receiver.close()


@ENGINES
def test_a_packet_filter_that_drops_is_counted_as_permission(lab: Lab, spoof: bool) -> None:
    relay = lab.samplicator(configuration(f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9002", spoof))
    for link in (1, 2):
        lab.collector_socket(link, 9000 + link)
    sender = Sender(lab, relay)
    sender.send(5)
    lab.relay.run("nft", "add table inet t; add chain inet t out { type filter hook output priority 0; }")
    lab.relay.run("nft", "add rule inet t out udp dport 9001 drop")
    if spoof:  # frames pass no such rule, so there are none from the moment on that the kernel tells of it
        wait_link(relay, "would bypass chain inet t out", "troubled")
    sender.send(20)
    sent, errors = sender.tally("troubled")
    assert (sent, errors) == (5, {"permission": 20})
    assert sender.tally("fine") == (25, {})
    lab.relay.run("nft", "delete table inet t")
    sender.send(7)
    assert sender.tally("troubled")[0] == 12


@ENGINES
def test_a_link_that_goes_down_and_comes_back(lab: Lab, spoof: bool) -> None:
    relay = lab.samplicator(configuration(f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9002", spoof))
    for link in (1, 2):
        lab.collector_socket(link, 9000 + link)
    sender = Sender(lab, relay)
    sender.send(5)
    lab.relay.ip("link", "set", "r1", "down")
    sender.send(20)
    sent, errors = sender.tally("troubled")
    assert sent + sum(errors.values()) == 25
    assert errors.get("no_route", 0) >= 19, errors
    assert sender.tally("fine") == (25, {})
    lab.relay.ip("link", "set", "r1", "up")
    tap = lab.tap(1, lambda seen: seen.port == 9001)

    def arrives() -> bool:
        sender.send(1)
        return bool(tap.drain())

    wait_for(arrives, "copies over the link", 10, 0.1)


def test_a_shrinking_mtu_is_learnt(make_lab) -> None:
    """Raw copies are cut to the MTU by us: when the device's shrinks, EMSGSIZE is counted until the new one is
    known.
    """
    lab: Lab = make_lab(mtu=9000)
    relay = lab.samplicator(configuration(f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9002", True))
    taps = [lab.tap(link, lambda seen: seen.port in (9001, 9002)) for link in (1, 2)]
    for link in (1, 2):
        lab.collector_socket(link, 9000 + link)
    sender = Sender(lab, relay)
    sender.send(3, 8000)
    assert [one.fragments for one in taps[0].collect(3)] == [1, 1, 1]
    lab.relay.ip("link", "set", "r1", "mtu", "1400")
    taps[0].clear()

    def arrives() -> bool:
        sender.send(1, 8000)
        return bool(taps[0].collect(1, 0.2, 0.05))

    wait_for(arrives, "copies that fit", 15, 0.2)
    assert taps[0].seen[0].fragments == 6
    assert taps[0].seen[0].checksum == "good"
    _, errors = sender.tally("troubled")
    assert set(errors) <= {"message_too_long"}, errors
    assert sender.tally("fine")[1] == {}


def test_what_the_kernel_drops_at_a_small_buffer_is_counted(lab: Lab) -> None:
    extra = '[datapath]\nreceive_buffer = "64KiB"'
    relay = lab.samplicator(configuration(f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9002", False, extra))
    for link in (1, 2):
        lab.collector_socket(link, 9000 + link)
    relay.send_signal(signal.SIGSTOP)
    load = lab.load("--to", f"{lab.relay4()}:2055", "--count", 5000, "--size", 400, "--rate", 50_000)
    sent = load.result()["sent"]
    relay.send_signal(signal.SIGCONT)
    metrics = relay.check_laws()
    received = metrics.value("receive_datagrams_total", listener="in")
    drops = metrics.value("receive_kernel_drops_total", listener="in")
    assert drops > 1000
    assert received + drops == sent


def udp_packet(source: str, source_port: int, destination: str, port: int, payload: bytes) -> bytes:
    """An IPv4 packet, header and all; the kernel fills the header checksum."""
    src, dst = socket.inet_aton(source), socket.inet_aton(destination)
    length = 8 + len(payload)
    datagram = struct.pack("!HHHH", source_port, port, length, 0) + payload
    total = ones_complement_sum(src + dst + struct.pack("!BBH", 0, 17, length) + datagram)
    datagram = datagram[:6] + struct.pack("!H", (~total & 0xFFFF) or 0xFFFF) + datagram[8:]
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 0, 0, 64, 17, 0, src, dst) + datagram


def test_odd_but_legal_exporters(lab: Lab) -> None:
    """Source port 0, no checksum, every byte value as payload, addresses at the ends of prefixes."""
    relay = lab.samplicate("-S", "-p", "2055", f"{lab.peer4(1)}/9001")
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    lab.collector_socket(1, 9001)
    raw = lab.exporter.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    lab.closers.append(raw.close)
    odd = [
        ("198.18.64.1", 0, b"port 0"),
        ("198.18.255.255", 65535, bytes(range(256))),
        ("198.19.255.255", 1, b"\xff" * 1400),
        ("1.0.0.1", 9001, b""),
        ("223.255.255.254", 2055, b"\0" * 3),
    ]
    for source, port, payload in odd:
        raw.sendto(udp_packet(source, port, lab.relay4(), 2055, payload), (lab.relay4(), 0))
    plain = lab.exporter_socket("198.18.64.2", 7000)
    plain.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
    plain.sendto(b"without checksum", (lab.relay4(), 2055))
    wanted = [*odd, ("198.18.64.2", 7000, b"without checksum")]
    seen = tap.collect(len(wanted))
    assert sorted((one.source, one.source_port, one.payload) for one in seen) == sorted(wanted)
    assert {one.checksum for one in seen} == {"good"}
    relay.check_laws()


def test_checksums_that_come_out_as_zero_are_sent_as_ffff(lab: Lab) -> None:
    """RFC 768: a computed sum of 0 is sent as all ones. Sweeps two payload bytes so that every sum comes up."""
    relay = lab.samplicate("-S", "-p", "2055", f"{lab.peer4(1)}/9001")
    tap = lab.tap(1, lambda seen: seen.port == 9001)
    lab.collector_socket(1, 9001)
    sender = lab.exporter_socket("198.18.64.3", 7000)
    src, dst = socket.inet_aton("198.18.64.3"), socket.inet_aton(lab.peer4(1))
    pseudo = src + dst + struct.pack("!BBHHHHH", 0, 17, 10, 7000, 9001, 10, 0)
    rest = ones_complement_sum(pseudo)
    makes_zero = (0xFFFF - rest) & 0xFFFF
    for value in (makes_zero - 1, makes_zero, makes_zero + 1):
        sender.sendto(struct.pack("!H", value & 0xFFFF), (lab.relay4(), 2055))
    assert [one.checksum for one in tap.collect(3)] == ["good"] * 3
    relay.check_laws()


def test_rule_files_are_read_again_on_hangup(lab: Lab) -> None:
    rules = lab.directory / "rules"
    rules.write_text(f"0.0.0.0/0: {lab.peer4(1)}/9001\n")
    relay = lab.samplicate("-S", "-p", "2055", "-c", str(rules))
    tap = lab.tap(1, lambda seen: seen.port in (9001, 9002))
    for port in (9001, 9002):
        lab.collector_socket(1, port)
    sender = Sender(lab, relay)
    sender.send(1)
    rules.write_text(f"0.0.0.0/0: {lab.peer4(1)}/9002\n")
    relay.hangup()
    sender.send(1)
    assert [(one.port, one.source) for one in tap.collect(2)] == [(9001, "198.18.64.1"), (9002, "198.18.64.1")]
    rules.write_text("this is no rule\n")
    relay.hangup(broken=True)
    sender.send(1)
    assert [one.port for one in tap.collect(3)] == [9001, 9002, 9002]


def test_debug_text_names_every_datagram_and_copy(lab: Lab) -> None:
    relay = lab.samplicate("-d", "1", "-p", "2055", f"{lab.peer4(1)}/9001", f"{lab.peer4(2)}/9002")
    lab.exporter_socket("198.18.64.1", 7000).sendto(b"12345", (lab.relay4(), 2055))
    wait_for(lambda: relay.said("received 5 bytes from 198.18.64.1:7000"), "the line of the datagram")
    wait_for(lambda: relay.said(f"sent to {lab.peer4(2)}:9002"), "the lines of its copies")
    assert f"  sent to {lab.peer4(1)}:9001" in relay.stderr()


def test_four_workers_together_do_what_one_does(lab: Lab) -> None:
    """Many sessions over four workers: every copy once, each session's order kept, the counters are their sum."""
    text = configuration(f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9002", True, "[datapath]\nworkers = 4")
    relay = lab.samplicator(text)
    sinks = [lab.sink(link, f"{lab.peer4(link)}:{9000 + link}") for link in (1, 2)]
    load = lab.load("--to", f"{lab.relay4()}:2055", "--source-base", "198.18.64.0", "--exporters", 200, "--source-port",
                    50_000, "--count", 40_000, "--rate", 20_000, "--size", "20-1500", "--run", 3)  # fmt: skip
    sent = load.result()["sent"]
    metrics = relay.check_laws()
    assert metrics.total("receive_datagrams_total") == sent
    assert sum(value > 0 for _, value in metrics.select("worker_sessions")) == 4
    for sink in sinks:
        got = lab.tally(sink)
        assert (got["received"], got["lost"], got["repeated"], got["reordered"], got["corrupt"]) == (sent, 0, 0, 0, 0)
