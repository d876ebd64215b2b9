"""Random configurations and random datagrams through the running daemon, against the oracle of tests/model.py.

Invariant: the very text the daemon reads is what the oracle reads. Compared are the copies on the wire (source,
destination, TTL, TOS, checksum, bytes; order per receiver and exporter session) and the counters in /metrics.
"""

from __future__ import annotations

import random
import socket
from collections import defaultdict

import pytest
from model import KEEP, Copy, Datagram, Model, from_rule_file, from_toml
from support.lab import Lab, Metrics, Relay
from support.process import wait_for
from support.witness import Seen, Tap

LISTENERS = {"netflow": (2055,), "sflow": (6343,), "range": (9990, 9991, 9992)}
EXPORTERS = (
    "198.18.64.1", "198.18.64.2", "198.18.65.1", "198.18.129.9", "198.19.5.1", "198.19.7.5", "198.19.255.254",
    "2001:db8:8000::1", "2001:db8:8000:1::1", "2001:db8:9000::1", "2001:db8:ffff::ffff",
)  # fmt: skip
SOURCES = (
    "198.18.64.0/18", "198.18.64.1", "198.18.64.0/24", "198.19.0.0/16", "198.19.5.0/24", "198.19.0.1/255.255.0.255",
    "0.0.0.0/0", "::/0", "2001:db8:8000::/33", "2001:db8:8000:1::/64", "2001:db8:9000::/36", "2001:db8:ffff::ffff",
    "198.0.0.0/255.0.0.0", "2001:db8:8000::/48", "198.18.129.9/32",
)  # fmt: skip


def some(dice: random.Random, choices, low: int, high: int) -> list:
    return dice.sample(list(choices), dice.randint(low, min(high, len(choices))))


def random_toml(lab: Lab, dice: random.Random, tag: str) -> str:
    text = ""
    for name, ports in LISTENERS.items():
        low, high = ports[0], ports[-1]
        ranges = f"{low}-{high}" if high > low else f"{low}"
        text += f'[[listener]]\nname = "{name}"\nlisten = ["0.0.0.0:{ranges}", "[::]:{ranges}"]\n'
    names = [f"{tag}-{number}" for number in range(dice.randint(1, 8))]
    for number, name in enumerate(names):
        link = dice.randint(1, 2)
        to = dice.choice((lab.peer4(link), f"[{lab.peer6(link)}]"))
        text += f'[[receiver]]\nname = "{name}"\nto = "{to}:{9100 + number}"\n'
        if dice.random() < 0.5:
            text += "spoof = true\n"
        if dice.random() < 0.2 and not to.startswith("["):
            text += "checksum = false\n"
        if dice.random() < 0.3:
            text += f"freq = {dice.randint(2, 5)}\n"
        if dice.random() < 0.5:
            text += f"ttl = {dice.choice((1, 20, 255))}\n"
        elif dice.random() < 0.5:
            text += 'ttl = "keep"\n'
        if dice.random() < 0.6:
            text += f"tos = {dice.choice((0, 32, 184, KEEP, KEEP))!r}\n"
    for _ in range(dice.randint(1, 6)):
        text += "[[rule]]\n"
        if dice.random() < 0.8:
            text += "from = [" + ", ".join(f'"{source}"' for source in some(dice, SOURCES, 1, 4)) + "]\n"
        if dice.random() < 0.3:
            text += "listener = [" + ", ".join(f'"{name}"' for name in some(dice, LISTENERS, 1, 2)) + "]\n"
        stop = dice.random() < 0.3
        to = some(dice, names, 0 if stop else 1, 4)
        text += "to = [" + ", ".join(f'"{name}"' for name in to) + f"]\nstop = {str(stop).lower()}\n"
    return text


def random_rule_file(lab: Lab, dice: random.Random) -> str:
    text = "# made by the system tests\n\n"
    port = 9100
    for _ in range(dice.randint(1, 6)):
        source = dice.choice([*SOURCES, "0.0.0.0", "0.0.0.0/32"])
        if ":" in source:
            host, _, length = source.partition("/")
            source = f"[{host}]" + (f"/{length}" if length else "")
        words = []
        for _ in range(dice.randint(0, 4)):
            link = dice.randint(1, 2)
            to = dice.choice((lab.peer4(link), f"[{lab.peer6(link)}]"))
            span = dice.choice((str(port), f"{port}-{port + 2}", f"{port}+2", str(9100)))
            options = dice.choice(("", "", "/3", "/1,7", "/,9", "/2,200"))
            port += 3
            words.append(f"{to}/{span}{options}")
        text += f"{source}:{dice.choice(('', ' '))}{' '.join(words)}{dice.choice(('', '  # why not'))}\n"
    return text


def send(lab: Lab, relay: Relay, dice: random.Random, count: int) -> list[Datagram]:
    """Sends in bursts, each from random exporters of one family to one socket of a random listener, and tells what was
    sent. The next burst begins when the relay has read the one before: between sockets there is no order to rely on.
    """
    sockets: dict[tuple[str, int], socket.socket] = {}
    sent: list[Datagram] = []
    base = relay.metrics().total("receive_datagrams_total")
    while len(sent) < count:
        six = dice.random() < 0.4
        name = dice.choice(list(LISTENERS))
        port = dice.choice(LISTENERS[name])
        for _ in range(dice.randint(1, 20)):
            exporter = dice.choice([one for one in EXPORTERS if (":" in one) == six])
            key = (exporter, dice.randint(40_000, 40_003))
            if key not in sockets:
                sockets[key] = lab.exporter_socket(*key)
                lab.closers.pop()
            ttl, tos = dice.choice((5, 64, 255)), dice.choice((0, 0, 40, 184))
            level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
            sockets[key].setsockopt(level, socket.IPV6_UNICAST_HOPS if six else socket.IP_TTL, ttl)
            sockets[key].setsockopt(level, socket.IPV6_TCLASS if six else socket.IP_TOS, tos)
            payload = len(sent).to_bytes(4, "big") + dice.randbytes(dice.choice((0, 1, 7, 100, 1468, 1469, 3000)))
            sockets[key].sendto(payload, (lab.relay6() if six else lab.relay4(), port))
            sent.append(Datagram(exporter, key[1], payload, name, ttl, tos))
        wanted = base + len(sent)
        wait_for(lambda: relay.metrics().total("receive_datagrams_total") >= wanted, "the relay to read", 5, 0.002)  # noqa: B023
    for one in sockets.values():
        one.close()
    return sent


def number_of(payload: bytes) -> int:
    return int.from_bytes(payload[:4], "big")


def compare(lab: Lab, sent: list[Datagram], wanted: list[Copy], seen: list[Seen]) -> None:
    """Same copies at every (destination, port); those of one exporter session in the order they were sent in."""
    want, got = defaultdict(list), defaultdict(list)
    for copy in wanted:
        want[copy.destination, copy.port].append(copy)
    for one in seen:
        got[one.destination, one.port].append(one)
    own = {lab.relay4(1), lab.relay4(2), lab.relay6(1), lab.relay6(2)}
    assert {key: len(rows) for key, rows in got.items()} == {key: len(rows) for key, rows in want.items()}
    for key, copies in want.items():
        wanted_rows = sorted(
            (number_of(copy.payload), copy.ttl, copy.tos, copy.zero, copy.source or ("own", 0)) for copy in copies
        )
        got_rows = sorted(
            (
                number_of(one.payload),
                one.ttl,
                one.tos,
                one.checksum == "zero",
                ("own", 0) if one.source in own else one.exporter,
            )
            for one in got[key]
        )
        different = [pair for pair in zip(wanted_rows, got_rows, strict=True) if pair[0] != pair[1]]
        assert not different, f"{key}: (wanted, got): {different[:6]}"
        assert all(one.payload == sent[number_of(one.payload)].payload for one in got[key]), "other bytes"
        assert all(one.checksum in ("good", "zero") for one in got[key])
        if len({copy.receiver for copy in copies}) > 1:
            continue  # receivers that share an address and port: no order between them
        sessions = defaultdict(list)
        for one in got[key]:
            origin = sent[number_of(one.payload)]
            sessions[origin.exporter, origin.port].append(number_of(one.payload))
        assert all(numbers == sorted(numbers) for numbers in sessions.values()), f"order at {key}: {sessions}"


def listening(lab: Lab, model: Model) -> list:
    """Sockets at the collectors for all receivers, so that no refusal disturbs the run."""
    sockets = []
    for address, port in {(str(receiver.address), receiver.port) for receiver in model.receivers.values()}:
        link = next(link for link in (1, 2) if address in (lab.peer4(link), lab.peer6(link)))
        sockets.append(lab.collector_socket(link, port, six=":" in address))
        lab.closers.pop()
    return sockets


def exchange(lab: Lab, relay: Relay, model: Model, taps: list[Tap], dice: random.Random, count: int) -> None:
    sockets = listening(lab, model)
    try:
        sent = send(lab, relay, dice, count)
        wanted = [copy for datagram in sent for copy in model.offer(datagram)]
        seen = []
        for link, tap in enumerate(taps, 1):
            mine = sum(copy.destination in (lab.peer4(link), lab.peer6(link)) for copy in wanted)
            seen += tap.collect(mine, 10, 0.05)
        compare(lab, sent, wanted, seen)
    finally:
        for one in sockets:
            one.close()
        for tap in taps:
            tap.clear()


def same_counters(model: Model, now: Metrics, before: Metrics) -> None:
    def delta(name: str, **labels: str) -> int:
        return now.total(name, **labels) - before.total(name, **labels)

    assert delta("receive_datagrams_total") == model.counts["received"]
    assert delta("receive_matched_datagrams_total") == model.counts["matched"]
    assert delta("receive_rejected_datagrams_total", reason="acl") == model.counts["acl"]
    assert delta("receive_rejected_datagrams_total", reason="no_route_rule") == model.counts["no_route_rule"]
    for name in model.receivers:
        counted = tuple(
            now.total(f"send_{what}datagrams_total", receiver=name) for what in ("offered_", "skipped_", "")
        )
        assert counted == tuple(model.counts[f"{what} {name}"] for what in ("offered", "skipped", "sent")), name


def test_random_configurations_do_what_the_oracle_says(lab: Lab) -> None:
    dice = random.Random(20)
    taps = [lab.tap(link, lambda seen: seen.port >= 9100 and seen.port < 9300) for link in (1, 2)]
    relay: Relay | None = None
    for turn in range(16):
        text = random_toml(lab, dice, f"t{turn}")
        model = from_toml(text)
        if relay is None:
            relay = lab.samplicator(text)
        else:
            relay.hangup(lab.with_service(text))
        before = relay.metrics()
        try:
            exchange(lab, relay, model, taps, dice, 60)
            same_counters(model, relay.at_rest(), before)
        except AssertionError as error:
            raise AssertionError(f"turn {turn}: {error}\n{text}") from error


@pytest.mark.parametrize("seed", range(5))
def test_random_rule_files_do_what_the_oracle_says(lab: Lab, seed: int) -> None:
    dice = random.Random(seed)
    text = random_rule_file(lab, dice)
    rules = lab.directory / "rules"
    rules.write_text(text)
    taps = [lab.tap(link, lambda seen: seen.port >= 9100 and seen.port < 9300) for link in (1, 2)]
    spoof, checksum = dice.random() < 0.5, dice.random() < 0.7
    extra = (f"{lab.peer4(1)}/9290", f"[{lab.peer6(2)}]/9291/2")
    words = [*(["-S"] if spoof else []), *([] if checksum else ["-n"]), "-s", "::", "-p", "2055", "-c", str(rules)]
    relay = lab.samplicate(*words, *extra)
    model = from_rule_file(text, spoof=spoof, checksum=checksum, command_line=extra)
    only = {"netflow": (2055,)}
    saved = dict(LISTENERS)
    LISTENERS.clear()
    LISTENERS.update(only)
    try:
        exchange(lab, relay, model, taps, dice, 120)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{words}\n{text}") from error
    finally:
        LISTENERS.clear()
        LISTENERS.update(saved)


def test_freq_of_a_rule_file_counts_per_occurrence(lab: Lab) -> None:
    rules = lab.directory / "rules"
    rules.write_text(
        f"198.18.64.0/18: {lab.peer4(1)}/9001/3,20 {lab.peer4(1)}/9002\n198.18.64.1: {lab.peer4(1)}/9001/2,21\n"
    )
    lab.samplicate("-S", "-p", "2055", "-c", str(rules))
    tap = lab.tap(1, lambda seen: seen.port in (9001, 9002))
    lab.collector_socket(1, 9001)
    lab.collector_socket(1, 9002)
    sender = lab.exporter_socket("198.18.64.1", 7000)
    for number in range(12):
        sender.sendto(bytes([number]), (lab.relay4(), 2055))
    seen = tap.collect(4 + 6 + 12)
    assert [one.payload[0] for one in seen if (one.port, one.ttl) == (9001, 20)] == [0, 3, 6, 9]
    assert [one.payload[0] for one in seen if (one.port, one.ttl) == (9001, 21)] == [0, 2, 4, 6, 8, 10]
    assert [one.payload[0] for one in seen if one.port == 9002] == list(range(12))
    assert len(seen) == 22


def test_deny_and_stop_are_told_apart_from_no_rule(lab: Lab) -> None:
    text = f"""
[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
[[receiver]]
name = "one"
to = "{lab.peer4(1)}:9001"
[[receiver]]
name = "two"
to = "{lab.peer4(1)}:9002"
[[rule]]
from = ["198.18.64.66"]
to = []
stop = true
[[rule]]
from = ["198.18.64.0/24"]
to = ["one"]
stop = true
[[rule]]
from = ["198.18.64.0/18"]
to = ["one", "two"]
"""
    relay = lab.samplicator(text)
    tap = lab.tap(1, lambda seen: seen.port in (9001, 9002))
    for port in (9001, 9002):
        lab.collector_socket(1, port)
    for exporter, times in (("198.18.64.66", 3), ("198.18.64.1", 2), ("198.18.65.1", 1), ("198.19.1.1", 4)):
        sender = lab.exporter_socket(exporter, 7000)
        for _ in range(times):
            sender.sendto(exporter.encode(), (lab.relay4(), 2055))
    seen = tap.collect(4)
    assert sorted((one.port, one.payload.decode()) for one in seen) == [
        (9001, "198.18.64.1"), (9001, "198.18.64.1"), (9001, "198.18.65.1"), (9002, "198.18.65.1"),
    ]  # fmt: skip
    metrics = relay.check_laws()
    assert metrics.value("receive_rejected_datagrams_total", listener="in", reason="acl") == 3
    assert metrics.value("receive_rejected_datagrams_total", listener="in", reason="no_route_rule") == 4
    assert metrics.value("receive_matched_datagrams_total", listener="in") == 3
