"""Pools and standbys with real collectors: who gets an exporter, who takes over, and that nobody meets data before its
templates. The collectors' hosts limit their ICMP errors as hosts do (icmp_ratelimit 1000, bursts of 50).
"""

from __future__ import annotations

import select
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

import pytest
from support import flows as model
from support.decoders import Nfcapd
from support.flows import V9
from support.lab import Lab
from support.process import wait_for
from support.relay import Relay
from support.telemetry import ROWS, Exporter, as_hosts_are, domain, flock, sets
from support.witness import Seen, Tap

PORTS = (9001, 9002, 9003, 9004)


class Traffic:
    """Exporters that go on sending, and what arrives of it: (seconds, datagram) in order of arrival."""

    def __init__(self, exporters: list[Exporter], taps: list[Tap], pause: float) -> None:
        self.exporters = exporters
        self.taps = taps
        self.pause = pause
        self.seen: list[tuple[float, Seen]] = []

    def round(self) -> None:
        """One datagram of each exporter."""
        for place, exporter in enumerate(self.exporters):
            exporter.send()
            if place % 8 == 7 or len(self.exporters) < 8:
                time.sleep(self.pause)
                self.take()

    def take(self) -> None:
        for tap in self.taps:
            if select.select([tap.socket], [], [], 0)[0]:
                tap.drain()
                now = time.monotonic()
                self.seen += [(now, seen) for seen in tap.seen]
                tap.seen.clear()

    def rounds(self, count: int) -> None:
        for _ in range(count):
            self.round()

    def until(self, done: Callable[[], bool], seconds: float) -> float:
        """Rounds until done; the seconds that took."""
        begun = time.monotonic()
        while not done():
            assert time.monotonic() - begun < seconds, "waited in vain"
            self.round()
        return time.monotonic() - begun

    def since(self, start: float) -> Iterator[tuple[float, Seen]]:
        return ((at, seen) for at, seen in self.seen if at >= start)


def owners(rows: Iterator[tuple[float, Seen]]) -> dict[int, set[int]]:
    """Observation domain -> ports that got data of it."""
    found: dict[int, set[int]] = defaultdict(set)
    for _, seen in rows:
        if "data" in sets(seen):
            found[domain(seen)].add(seen.port)
    return found


def check_templates_first(traffic: Traffic, born: dict[int, float]) -> None:
    """At each collector, since it was born, each domain's templates came before its data."""
    known: set[tuple[int, int]] = set()
    for at, seen in traffic.seen:
        if at < born.get(seen.port, 0.0):
            continue
        what, key = sets(seen), (seen.port, domain(seen))
        if "template" in what:
            known.add(key)
        if "data" in what:
            assert key in known, f"data of domain {key[1]} before its templates at port {key[0]}"


def holes(traffic: Traffic, port: int, start: float = 0.0) -> list[str]:
    """Where the sequence numbers that a collector gets do not go on, domain by domain."""
    following: dict[int, int] = {}
    found = []
    for at, seen in traffic.since(start):
        if seen.port != port:
            continue
        message = model.parse(seen.payload)
        assert message is not None
        want = following.get(message.domain, message.sequence)
        if want != message.sequence:
            found.append(f"domain {message.domain} at {at - start:.3f}: {message.sequence}, not {want}, {sets(seen)}")
        units = 1 if message.kind == V9 else ROWS * ("data" in sets(seen))
        following[message.domain] = message.sequence + units
    return found


def flows_at(traffic: Traffic, port: int, start: float = 0.0) -> int:
    return sum(ROWS for _, seen in traffic.since(start) if seen.port == port and "data" in sets(seen))


def shares(relay: Relay) -> dict[str, int]:
    rows = relay.metrics().select("pool_exporters", pool="p")
    return {labels["receiver"]: int(value) for labels, value in rows}


@pytest.mark.parametrize("spoof", ["true", "false"], ids=["spoofed", "own-address"])
def test_one_of_four_dies_and_comes_back(lab: Lab, spoof: str) -> None:
    as_hosts_are(lab)
    collectors = {port: Nfcapd(lab, port, str(port)) for port in PORTS}
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
    for port in PORTS:
        text += f'[[receiver]]\nname = "n{port}"\nto = "{lab.peer4(1)}:{port}"\nspoof = {spoof}\n'
    names = ", ".join(f'"n{port}"' for port in PORTS)
    relay = lab.samplicator(f'{text}[[pool]]\nname = "p"\nmembers = [{names}]\n[[rule]]\nto = ["p"]\n')
    tap = lab.tap(1, lambda seen: seen.port in PORTS and len(seen.payload) > 16)
    traffic = Traffic(flock(lab, 400), [tap], 0.004)
    traffic.rounds(4)
    time.sleep(0.1)
    traffic.take()

    before = owners(traffic.since(0.0))
    assert len(before) == 400
    assert all(len(ports) == 1 for ports in before.values())
    home = {number: next(iter(ports)) for number, ports in before.items()}
    loads = Counter(home.values())
    assert max(loads.values()) / min(loads.values()) < 1.25, loads
    assert shares(relay) == {f"n{port}": loads[port] for port in PORTS}

    dead = PORTS[1]
    collectors[dead].process.kill()
    killed = time.monotonic()
    took = traffic.until(lambda: relay.metrics().value("pool_member_up", pool="p", receiver=f"n{dead}") == 0, 5)
    settled = time.monotonic() + 0.05
    assert settled - killed < 2.0, took
    traffic.rounds(6)
    moved = owners(traffic.since(settled))
    assert len(moved) == 400
    for number, ports in moved.items():
        if home[number] == dead:
            assert len(ports) == 1
            assert dead not in ports
        else:
            assert ports == {home[number]}
    last = max(at for at, seen in traffic.since(killed) if seen.port == dead and "data" in sets(seen))
    assert last - killed < 2.0, last - killed
    assert relay.metrics().value("receiver_state", receiver=f"n{dead}", state="refusing") == 1
    during = Counter(next(iter(ports)) for ports in moved.values())
    assert max(during.values()) / min(during.values()) < 1.25, during

    again = Nfcapd(lab, dead, "again")
    born = time.monotonic()
    back = traffic.until(lambda: relay.metrics().value("pool_member_up", pool="p", receiver=f"n{dead}") == 1, 10)
    returned = time.monotonic() + 0.05
    traffic.rounds(5)
    time.sleep(0.2)
    traffic.take()
    assert {number: next(iter(ports)) for number, ports in owners(traffic.since(returned)).items()} == home
    assert all(len(ports) == 1 for ports in owners(traffic.since(returned)).values())
    check_templates_first(traffic, {dead: born})
    pools = relay.api("pools")
    assert [member["up"] for member in pools[0]["members"]] == [True] * 4
    print(f"moved {last - killed:.2f} s after the kill, back {back:.2f} s after the return; {loads} {during}")

    for port in PORTS:
        assert holes(traffic, port, born if port == dead else 0.0) == []
        if port != dead:
            assert collectors[port].end() == (flows_at(traffic, port), 0)
    assert again.end() == (flows_at(traffic, dead, born), 0)


@pytest.mark.parametrize("spoof", ["true", "false"], ids=["spoofed", "own-address"])
def test_a_standby_takes_over_with_templates_first(lab: Lab, spoof: str) -> None:
    as_hosts_are(lab)
    first, second = Nfcapd(lab, 9995, "first"), Nfcapd(lab, 9996, "second")
    relay = lab.samplicator(
        '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
        f'[[receiver]]\nname = "one"\nto = "{lab.peer4(1)}:9995"\nspoof = {spoof}\n'
        f'[[receiver]]\nname = "two"\nto = "{lab.peer4(1)}:9996"\nspoof = {spoof}\nstandby_for = "one"\n'
        '[[rule]]\nto = ["one"]\n'
    )
    tap = lab.tap(1, lambda seen: seen.port in (9995, 9996) and len(seen.payload) > 16)
    traffic = Traffic(flock(lab, 6), [tap], 0.002)
    traffic.rounds(50)
    time.sleep(0.1)
    traffic.take()
    assert {seen.port for _, seen in traffic.seen} == {9995}
    assert relay.metrics().value("receiver_waiting", receiver="two") == 1
    assert relay.metrics().value("send_offered_datagrams_total", receiver="two") == 0

    first.process.kill()
    killed = time.monotonic()
    took = traffic.until(lambda: any(seen.port == 9996 for _, seen in traffic.since(killed)), 5)
    arrived = min(at for at, seen in traffic.since(killed) if seen.port == 9996)
    assert arrived - killed < 1.0, took
    traffic.rounds(100)
    rows = [seen for _, seen in traffic.seen if seen.port == 9996]
    assert {domain(seen) for seen in rows if "template" in sets(seen)} == set(range(1, 7))
    check_templates_first(traffic, {9995: time.monotonic()})
    metrics = relay.metrics()
    assert metrics.value("receiver_takeovers_total", receiver="two") == 1
    assert metrics.value("receiver_state", receiver="one", state="refusing") == 1
    assert metrics.value("send_failed_datagrams_total", receiver="one", reason="refused") > (
        100 if spoof == "true" else 5
    )
    (two,) = [row for row in relay.api("receivers") if row["name"] == "two"]
    assert (two["standby_for"], two["waiting"], two["takeovers"]) == ("one", False, 1)

    again = Nfcapd(lab, 9995, "again")
    born = time.monotonic()
    back = traffic.until(lambda: relay.metrics().value("receiver_waiting", receiver="two") == 1, 10)
    stopped = time.monotonic() + 0.1
    traffic.rounds(60)
    time.sleep(0.2)
    traffic.take()
    assert [at for at, seen in traffic.since(stopped) if seen.port == 9996] == []
    print(f"taken over {arrived - killed:.2f} s after the kill, given back {back:.2f} s after the return")
    assert holes(traffic, 9996) == []
    assert second.end() == (flows_at(traffic, 9996), 0)
    flows, _ = again.end()
    assert flows >= flows_at(traffic, 9995, stopped) > 0
    assert flows <= flows_at(traffic, 9995, born)
    said = relay.stdout() + relay.stderr()
    assert (
        "receiver 'one' is refusing (the receiver's port is closed); standby 'two' takes over, templates first" in said
    )
    assert "receiver 'one' is up; standby 'two' gets no more copies" in said
    wait_for(lambda: relay.metrics().value("receiver_up", receiver="one") == 1, "it to be up", 20)


def test_a_member_whose_host_is_gone(lab: Lab) -> None:
    """unreachable by the neighbor table. It gets no copies then, so only probes have the kernel ask for it again."""
    lab.collectors[0].ip("addr", "add", "198.18.1.77/24", "dev", "e0")
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
    for name, to in (("gone", "198.18.1.77:9001"), ("stays", f"{lab.peer4(2)}:9002")):
        text += f'[[receiver]]\nname = "{name}"\nto = "{to}"\nspoof = true\n'
    sinks = [lab.collectors[0].socket(2), lab.collectors[1].socket(2)]
    for sink, port in zip(sinks, (9001, 9002), strict=True):
        sink.bind(("0.0.0.0", port))
    relay = lab.samplicator(f'{text}[[pool]]\nname = "p"\nmembers = ["gone", "stays"]\n[[rule]]\nto = ["p"]\n')
    taps = [lab.tap(1, lambda seen: seen.port == 9001), lab.tap(2, lambda seen: seen.port == 9002)]
    traffic = Traffic(flock(lab, 40), taps, 0.004)
    traffic.rounds(3)
    assert {port for ports in owners(traffic.since(0.0)).values() for port in ports} == {9001, 9002}

    lab.collectors[0].ip("addr", "del", "198.18.1.77/24", "dev", "e0")
    lab.relay.ip("neigh", "del", "198.18.1.77", "dev", "r1")
    took = traffic.until(lambda: relay.metrics().value("pool_member_up", pool="p", receiver="gone") == 0, 6)
    assert relay.metrics().value("receiver_state", receiver="gone", state="unreachable") == 1
    moved = time.monotonic() + 0.05
    traffic.rounds(40)
    assert {port for ports in owners(traffic.since(moved)).values() for port in ports} == {9002}
    assert relay.metrics().value("pool_member_up", pool="p", receiver="gone") == 0

    lab.collectors[0].ip("addr", "add", "198.18.1.77/24", "dev", "e0")
    back = traffic.until(lambda: relay.metrics().value("pool_member_up", pool="p", receiver="gone") == 1, 10)
    returned = time.monotonic() + 0.05
    traffic.rounds(5)
    assert {port for ports in owners(traffic.since(returned)).values() for port in ports} == {9001, 9002}
    print(f"out {took:.2f} s after its neighbor was gone, back {back:.2f} s after it answered")
    for sink in sinks:
        sink.close()
