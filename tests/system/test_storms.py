"""Nothing that arrives may multiply: receivers that are the relay itself, and broadcasts with many workers.

Every test has a kill switch: a packet filter in the relay's namespace lets so many copies out a second and no more, and
what is sent is counted in tens.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from support.lab import Lab, Metrics, Relay, run
from support.process import Process, command, wait_for

PORT = 2055
LIMIT = 20_000
"""Copies a second that the kill switch lets pass: plenty to see a storm, not enough to stop the machine."""


def kill_switch(lab: Lab, namespace: Any = None) -> None:
    rules = f"""table inet storm {{
    chain out {{
        type filter hook output priority -300; policy accept;
        udp dport {PORT} limit rate over {LIMIT}/second burst 2000 packets drop
    }}
}}
"""
    run("ip", "netns", "exec", (namespace or lab.relay).name, "nft", "-f", "-", stdin=rules)


def configuration(
    to: str, *, listen: str = f"0.0.0.0:{PORT}", extra: str = "", receiver: str = "", workers: int = 1
) -> str:
    return f"""[[listener]]
name = "in"
listen = ["{listen}"]
{extra}
[[receiver]]
name = "r"
to = "{to}"
{receiver}
[[receiver]]
name = "good"
to = "198.18.1.2:9000"
[[rule]]
to = ["r", "good"]
[datapath]
workers = {workers}
"""


def send(lab: Lab, to: str, count: int, *, stem: str = "x", port: int = PORT) -> None:
    with lab.exporter.socket(socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for number in range(count):
            sock.sendto(f"{stem} {number} {'.' * 80}".encode(), (to, port))


def state_of(relay: Relay, name: str = "r") -> tuple[str, str]:
    receiver = next(one for one in relay.api("receivers") if one["name"] == name)
    return receiver["state"], receiver["state_why"]


def wait_state(relay: Relay, wanted: str, seconds: float = 10.0) -> str:
    wait_for(lambda: state_of(relay)[0] == wanted, f"the receiver to be {wanted}, it is {state_of(relay)}", seconds)
    return state_of(relay)[1]


def loops(metrics: Metrics, receiver: str = "r") -> int:
    return metrics.value("send_failed_datagrams_total", receiver=receiver, reason="loop")


def test_an_address_that_moves_here_stops_the_receiver_and_its_leaving_brings_it_back(lab: Lab) -> None:
    kill_switch(lab)
    relay = lab.samplicator(configuration(f"198.18.1.77:{PORT}", receiver="spoof = true"))
    assert state_of(relay)[0] != "looping"
    lab.relay.ip("addr", "add", "198.18.1.77/32", "dev", "r1")
    why = wait_state(relay, "looping")
    assert "198.18.1.77 is this host" in why
    before = relay.metrics()
    send(lab, lab.relay4(), 20)
    metrics = wait_for(lambda: m if loops(m := relay.metrics()) >= 20 else None, "the copies to be counted")
    assert metrics.total("receive_datagrams_total") - before.total("receive_datagrams_total") == 20
    relay.check_laws()
    lab.relay.ip("addr", "del", "198.18.1.77/32", "dev", "r1")
    wait_for(lambda: state_of(relay)[0] != "looping", "the receiver to come back")
    at = loops(relay.metrics())
    send(lab, lab.relay4(), 5)
    wait_for(lambda: relay.metrics().value("send_datagrams_total", receiver="good") >= 25, "the next copies")
    assert loops(relay.check_laws()) == at
    assert relay.stderr().count("receiver 'r' is looping") == 1


@pytest.fixture(autouse=True)
def _collectors(lab: Lab) -> None:
    """Nobody refuses a copy."""
    for link in (1, 2):
        lab.collector_socket(link, 9000)


@pytest.mark.parametrize(
    ("to", "extra"),
    [
        ("198.18.1.1", ""),
        ("198.18.1.255", ""),
        ("198.18.0.255", ""),
    ],
)
def test_an_address_of_this_host_is_a_state_from_the_start(lab: Lab, to: str, extra: str) -> None:
    kill_switch(lab)
    relay = lab.samplicator(configuration(f"{to}:{PORT}", extra=extra))
    wait_state(relay, "looping")
    send(lab, lab.relay4(), 10)
    wait_for(lambda: relay.metrics().value("send_datagrams_total", receiver="good") >= 10, "the copies")
    metrics = relay.check_laws()
    assert (metrics.total("receive_datagrams_total"), loops(metrics)) == (10, 10)


def test_broadcast_of_another_interface_than_the_listener_has_is_none(lab: Lab) -> None:
    lab.collector_socket(1, PORT)
    relay = lab.samplicator(configuration(f"198.18.1.255:{PORT}", extra='interface = "r0"'))
    send(lab, lab.relay4(), 10)
    wait_for(lambda: relay.metrics().value("send_datagrams_total", receiver="r") >= 10, "the copies")
    metrics = relay.check_laws()
    assert (metrics.total("receive_datagrams_total"), loops(metrics)) == (10, 0)
    assert state_of(relay)[0] != "looping"


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("to", ["198.18.0.255", "255.255.255.255"])
@pytest.mark.parametrize("receive", ["recvmmsg", "ring"])
def test_a_broadcast_is_taken_once_whatever_the_workers(lab: Lab, workers: int, to: str, receive: str) -> None:
    text = configuration("198.18.2.2:9000", workers=workers, extra=f'receive = "{receive}"', listen=f"0.0.0.0:{PORT}")
    relay = lab.samplicator(text)
    taken = 0
    for count in (10, 7):
        send(lab, to, count)
        taken += count
        expect(relay, taken)
    for other in (5 - workers, 2, 3):  # fewer, more
        relay.hangup(text.replace(f"workers = {workers}", f"workers = {other}"))
        send(lab, to, 10)
        taken += 10
        expect(relay, taken)
        send(lab, lab.relay4(), 10)
        taken += 10
        expect(relay, taken)


def expect(relay: Relay, taken: int) -> None:
    wait_for(lambda: relay.metrics().total("receive_datagrams_total") >= taken, f"{taken} datagrams")
    time.sleep(0.05)
    metrics = relay.check_laws()
    assert metrics.total("receive_datagrams_total") == taken
    assert metrics.value("send_datagrams_total", receiver="good") == taken


def test_listeners_that_overlap_take_a_broadcast_once_and_the_more_exact_one_has_it(lab: Lab) -> None:
    text = f"""[[listener]]
name = "wide"
listen = ["0.0.0.0:{PORT}"]
multicast = ["239.1.1.1"]
[[listener]]
name = "port"
listen = ["0.0.0.0:{PORT}"]
interface = "r0"
multicast = ["239.1.1.1"]
[[listener]]
name = "group"
listen = ["198.18.1.255:{PORT}"]
[[receiver]]
name = "good"
to = "198.18.1.2:9000"
[[rule]]
to = ["good"]
[datapath]
workers = 3
"""
    lab.relay.ip("route", "add", "224.0.0.0/4", "dev", "r0")
    lab.exporter.ip("route", "add", "224.0.0.0/4", "dev", "e0")
    relay = lab.samplicator(text)

    def taken() -> dict[str, int]:
        metrics = relay.check_laws()
        return {n: metrics.value("receive_datagrams_total", listener=n) for n in ("wide", "port", "group")}

    for to in ("198.18.0.255", "255.255.255.255", "239.1.1.1"):
        before = taken()["port"]
        send(lab, to, 10)
        wait_for(lambda b=before: taken()["port"] >= b + 10, f"datagrams to {to}")
    assert taken() == {"wide": 0, "port": 30, "group": 0}
    with lab.collectors[0].socket(socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for number in range(10):
            sock.sendto(b"at the address %d" % number, ("198.18.1.255", PORT))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"e0")
            sock.sendto(b"at all %d" % number, ("255.255.255.255", PORT))
    wait_for(lambda: sum(taken().values()) >= 50, "the broadcasts of the other link")
    assert taken() == {"wide": 10, "port": 30, "group": 10}
    relay.hangup(text.replace('interface = "r0"', 'interface = "r1"'))
    send(lab, "198.18.0.255", 10)
    wait_for(lambda: sum(taken().values()) >= 60, "the broadcasts after the reload")
    assert taken() == {"wide": 20, "port": 30, "group": 10}


def test_a_group_that_the_listener_joined_is_refused_with_the_file(lab: Lab) -> None:
    lab.relay.ip("route", "add", "224.0.0.0/4", "dev", "r1")
    text = configuration(f"239.1.1.1:{PORT}", extra='interface = "r1"\nmulticast = ["239.1.1.1"]')
    path = lab.directory / "loop.toml"
    path.write_text(text)
    process = lab.start([command("samplicator"), "run", "-c", str(path)], lab.relay, "refused")
    assert process.popen.wait(20) == 2
    assert "of this host" in process.stderr()


# ---------------------------------------------------------------------------------------------------- through others


def to_all(receivers: Sequence[str], *, spoof: bool, workers: int, extra: str = "") -> str:
    """A relay that sends all it gets to these addresses, and to a collector."""
    text = f'[[listener]]\nname = "in"\nlisten = ["0.0.0.0:{PORT}"]\n{extra}\n'
    for number, to in enumerate(receivers):
        text += f'[[receiver]]\nname = "r{number or ""}"\nto = "{to}:{PORT}"\nspoof = {str(spoof).lower()}\n'
    text += '[[receiver]]\nname = "good"\nto = "198.18.1.2:9000"\n[[rule]]\nto = ["good"'
    return text + "".join(f', "r{n or ""}"' for n in range(len(receivers))) + f"]\n[datapath]\nworkers = {workers}\n"


def relays(lab: Lab, names: Sequence[Sequence[str]], **options: Any) -> tuple[Relay, list[Process]]:
    """Our relay and others in the collectors' namespaces, each with its receivers."""
    others = []
    for link, receivers in enumerate(names):
        kill_switch(lab, lab.collectors[link - 1] if link else lab.relay)
        if link:
            path = lab.directory / f"other{link}.toml"
            path.write_text('[service]\nhttp = ""\ncontrol = ""\n' + to_all(receivers, **options))
            command_line = [command("samplicator"), "run", "-c", str(path)]
            others.append(lab.start(command_line, lab.collectors[link - 1], f"other{link}"))
    for other in others:
        wait_for(lambda o=other: "listener in" in o.stderr(), "the other relay")
    return lab.samplicator(to_all(names[0], **options)), others


def pair(lab: Lab, *, spoof: bool, workers: int) -> tuple[Relay, Process]:
    """Our relay, and another in the first collector's namespace; each names the other."""
    relay, others = relays(lab, [[lab.peer4(1)], [lab.relay4(1)]], spoof=spoof, workers=workers)
    return relay, others[0]


def looping(relay: Relay, other: Process) -> bool:
    """Either of them has found it; that is enough."""
    return state_of(relay)[0] == "looping" or "is looping" in other.stderr()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("spoof", [False, True], ids=["own", "spoofed"])
def test_two_relays_that_name_each_other_are_found(lab: Lab, spoof: bool, workers: int) -> None:
    relay, other = pair(lab, spoof=spoof, workers=workers)
    send(lab, lab.relay4(), 3)
    wait_for(lambda: looping(relay, other), "one of the two to find the loop", 20)
    rest = relay.check_laws().total("receive_datagrams_total")
    assert rest < LIMIT


@pytest.mark.alone
def test_a_loop_under_load_is_found(lab: Lab) -> None:
    """Thousands of different datagrams go round at once."""
    relay, other = pair(lab, spoof=False, workers=1)
    load = lab.load(
        "--to", f"{lab.relay4()}:{PORT}", "--source-base", "198.18.64.0", "--exporters", 20, "--source-port", 50_000,
        "--seconds", 4, "--rate", 5000, "--size", "100-300",
    )  # fmt: skip
    wait_for(
        lambda: looping(relay, other), "one of the two to find the loop", 180
    )  # where a round takes a second, a test takes about 40
    load.result(30)
    relay.check_laws()


@pytest.mark.parametrize("kind", ["bursts", "steady", "hosts", "random", "twice"])
def test_exporters_that_repeat_themselves_lose_nothing(lab: Lab, kind: str) -> None:
    """Equal datagrams in bursts, at a steady pace, from many hosts, at random, and each twice (sampled twice)."""
    relay = lab.samplicator(configuration(f"{lab.peer4(1)}:9001"))
    sinks = [lab.collector_socket(1, 9001)]
    lot = random.Random(7)
    sent: Counter[bytes] = Counter()
    hosts = 200 if kind == "hosts" else 1
    socks = []
    for number in range(hosts):
        sock = lab.exporter.socket(socket.AF_INET)
        sock.bind((f"198.18.64.{number + 1}", 5000))
        socks.append(sock)
    end = time.monotonic() + 3
    turn = 0
    while time.monotonic() < end:
        turn += 1
        text = b"<13>the same line again" if kind != "twice" else b"<13>line %d" % turn
        for _ in range({"bursts": lot.randrange(1, 60), "twice": 2}.get(kind, 1)):
            lot.choice(socks).sendto(text, (lab.relay4(), PORT))
            sent[text] += 1
        if kind == "random":
            time.sleep(lot.expovariate(500))
        else:
            time.sleep({"bursts": lot.choice([0.001, 0.004, 0.01, 0.03]), "steady": 0.001}.get(kind, 0.0005))
    got: Counter[bytes] = Counter()
    sinks[0].settimeout(2)
    with contextlib.suppress(TimeoutError):
        while got.total() < sent.total():
            got[sinks[0].recv(100)] += 1
    assert got == sent
    assert loops(relay.check_laws()) == 0
    for sock in socks:
        sock.close()


@pytest.mark.parametrize(
    ("shape", "spoof"), [("ring", False), ("ring", True), ("mesh", False)], ids=["ring-own", "ring-spoofed", "mesh-own"]
)
def test_three_relays_are_found_and_the_storm_ends(lab: Lab, shape: str, spoof: bool) -> None:
    """In a ring, and each to both others."""
    a, b, c = lab.relay4(1), lab.peer4(1), lab.peer4(2)
    names = {"ring": [[b], [c], [a]], "mesh": [[b, c], [a, c], [a, b]]}[shape]
    relay, others = relays(lab, names, spoof=spoof, workers=1)
    begun = time.monotonic()
    send(lab, lab.relay4(), 3)
    still = {"since": begun, "at": -1}

    def at_rest() -> bool:
        now, moment = relay.metrics().total("receive_datagrams_total"), time.monotonic()
        if now != still["at"]:
            still.update(since=moment, at=now)
        return moment - still["since"] > 1

    wait_for(at_rest, "the storm to end", 30)
    assert any("is looping" in process.stderr() for process in (relay, *others))
    relay.check_laws()
