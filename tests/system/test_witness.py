"""Where datagrams were lost, as the witness at the collector says, against those who took them away."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.lab import Lab, Relay
from support.process import wait_for
from support.truth import FAR4, FAR6, PORT, STAGES, Collector, Device, Remover, Watching, far_away, rows

KINDS = {
    "198.18.64.5": ("v5", (24,)),
    "198.18.64.9": ("v9", (5, 11)),
    "198.18.64.10": ("ipfix", (17,)),
    "2001:db8:8000::6": ("sflow", (3,)),
}


def configuration(buffer: str = "8MiB", *, spoof: bool = True) -> str:
    return f"""[datapath]
workers = 1
receive_buffer = "{buffer}"
[[listener]]
name = "in"
listen = ["0.0.0.0:2055", "[::]:2055"]
[[receiver]]
name = "far"
to = "{FAR4}:{PORT}"
spoof = {str(spoof).lower()}
probe = "off"
[[receiver]]
name = "far six"
to = "[{FAR6}]:{PORT}"
spoof = {str(spoof).lower()}
probe = "off"
[[rule]]
from = ["0.0.0.0/0"]
to = ["far"]
[[rule]]
from = ["::/0"]
to = ["far six"]
"""


ALIKE = (("v5", 24), ("v5", 24), ("v5", 7), ("v9", 5), ("v9", 5), ("ipfix", 17), ("ipfix", 3))
"""Exporters that begin to count at the same time, and are not told apart by what they write."""


class Scene:
    """A lab, its relay, its collector and its exporters."""

    def __init__(
        self, lab: Lab, text: str, *, kinds: dict[str, tuple[str, tuple[int, ...]]] | None = None, sockets: int = 1
    ) -> None:
        self.lab = lab
        far_away(lab)
        self.collector = Collector(lab, sockets=sockets)
        self.relay: Relay = lab.samplicator(text)
        self.devices = [Device(lab, address, kind, sizes) for address, (kind, sizes) in (kinds or KINDS).items()]
        self.send(20)

    @property
    def addresses(self) -> list[str]:
        return [device.address for device in self.devices]

    def send(self, count: int, pause: float = 0.001) -> None:
        for _ in range(count):
            for device in self.devices:
                device.send()
            time.sleep(pause)

    def watch(self, *words: str, seconds: float = 100.0, prefix: tuple[str, ...] = ()) -> Watching:
        return Watching(self.lab, self.relay.control_path, *words, seconds=seconds, prefix=prefix)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """All exporters send all the time."""
        stop = threading.Event()

        def go() -> None:
            while not stop.is_set():
                self.send(1, 0.0005)

        thread = threading.Thread(target=go, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def near(value: dict[str, Any], stage: str, wanted: dict[str, int]) -> None:
    """Exactly this, but for drops that the witness itself says it has told apart by their order alone: on a host that
    has no time for it they are some, and may be another exporter's.
    """
    unsure = sum(int(note.split()[0]) for note in value["notes"] if "told apart by their order" in note)
    found = rows(value, stage)
    wrong = {name: found.get(name, 0) - count for name, count in wanted.items() if found.get(name, 0) != count}
    assert sum(map(abs, wrong.values())) <= 2 * unsure, (stage, wrong, unsure)
    assert sum(wrong.values()) == 0, (stage, wrong)


@pytest.fixture
def scene(lab: Lab) -> Callable[..., Scene]:
    return lambda text, **options: Scene(lab, text, **options)


def only(value: dict[str, Any], stage: str, wanted: dict[str, int]) -> None:
    """Exactly this at one stage, and nothing at any other."""
    print(json.dumps(value, indent=1))
    assert {name: rows(value, name) for name in STAGES} == {name: wanted if name == stage else {} for name in STAGES}
    assert value["sums"] == []


FOUR = {address: facts for address, facts in KINDS.items() if ":" not in address} | {"198.18.64.6": ("sflow", (3,))}


def test_each_stage_is_told(scene: Callable[..., Scene]) -> None:
    here = scene(configuration(), kinds=FOUR)
    names = here.addresses

    watching = here.watch("--receiver", "far")
    here.send(300)
    value = watching.result(0)
    only(value, "lost_before", {})
    assert value["receiver"] == "far"
    assert rows(value, "taken") == dict.fromkeys(names, 300), value

    remover = Remover(here.lab, 0, "prerouting", 2055, names, 7)
    watching = here.watch()
    here.send(300)
    removed = remover.end()
    here.send(3)
    only(watching.result(1), "lost_before", removed)
    assert all(count > 20 for count in removed.values())

    remover = Remover(here.lab, 2, "forward", PORT, names, 7)
    watching = here.watch()
    here.send(300)
    only(watching.result(1), "lost_on_way", remover.end())

    read = dict(here.collector.read)
    remover = Remover(here.lab, 0, "output", PORT, names, 7)  # a refused copy is tried again, and counted there twice
    watching = here.watch()
    here.send(300)
    remover.end()
    value = watching.result(1)
    failed = {name: 300 - (here.collector.read[name] - read[name]) for name in names}
    assert all(failed.values())
    only(value, "failed", failed)
    assert value["failed_by_reason"] == {"permission": sum(failed.values())}

    here.relay.hangup(here.lab.with_service(configuration("32KiB")))
    before = {row["exporter"]: row["datagrams"] for row in here.relay.api("exporters")["exporters"]}
    watching = here.watch()
    here.relay.send_signal(signal.SIGSTOP)
    here.send(200)
    here.relay.send_signal(signal.SIGCONT)
    wait_for(lambda: here.relay.api("listeners")[0]["queue_bytes"] == 0, "the relay to read what it has", 10)
    here.send(5)
    value = watching.result(1)
    after = {row["exporter"]: row["datagrams"] for row in here.relay.api("exporters")["exporters"]}
    only(value, "lost_at_socket", {name: 205 - (after[name] - before[name]) for name in names})

    here.relay.hangup(here.lab.with_service(configuration()))
    watching = here.watch()
    read = dict(here.collector.read)
    here.collector.shrink(60_000)
    here.collector.held = True
    here.send(200)
    here.relay.at_rest()
    here.collector.held = False
    here.send(10)
    here.relay.at_rest()
    wait_for(lambda: here.collector.idle, "the collector to read what it has")
    value = watching.result(1)
    taken = {name: here.collector.read[name] - read[name] for name in names}
    assert {stage: rows(value, stage) for stage in STAGES[:4]} == {stage: {} for stage in STAGES[:4]}
    near(value, "dropped_by_collector", {name: 210 - taken[name] for name in names})
    near(value, "taken", taken)


@pytest.mark.deploy_heavy
def test_stages_at_the_same_time(scene: Callable[..., Scene]) -> None:
    """Before the relay, on the way and at the collector at once, with flows in varying numbers."""
    kinds = {**FOUR, "198.18.64.5": ("v5", (30, 30, 4, 30, 11))}
    here = scene(configuration(), kinds=kinds)
    names = here.addresses
    before, way = Remover(here.lab, 0, "prerouting", 2055, names, 13), Remover(here.lab, 2, "forward", PORT, names, 17)
    watching = here.watch()
    read = dict(here.collector.read)
    here.send(200)
    here.collector.shrink(60_000)
    here.collector.held = True
    here.send(150)
    time.sleep(0.2)
    here.collector.held = False
    here.send(50)
    removed_before, removed_way = before.end(), way.end()
    here.send(2)
    value = watching.result(1)
    print(json.dumps(value, indent=1))
    assert rows(value, "lost_before") == removed_before
    assert rows(value, "lost_on_way") == removed_way
    taken = {name: here.collector.read[name] - read[name] for name in names}
    near(value, "taken", taken)
    came = {name: 402 - removed_before[name] - removed_way[name] for name in names}
    near(value, "dropped_by_collector", {name: came[name] - taken[name] for name in names})
    assert value["sums"] == []


def test_what_is_on_its_way_is_not_lost(make_lab: Callable[..., Lab]) -> None:
    """Traffic never rests, runs of datagrams come as one packet, two workers send, and CAP_NET_RAW is all there is."""
    here = Scene(make_lab(offload=True), configuration().replace("workers = 1", "workers = 2"), sockets=2)
    prefix = ("setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all")
    with here.running():
        time.sleep(0.3)
        watching = here.watch(prefix=prefix)
        time.sleep(2.0)
        value = watching.result(0)
        only(value, "lost_on_way", {})
        assert value["total"]["taken"] > 1000
        assert {row["exporter"] for row in value["exporters"]} == set(here.addresses)

        remover = Remover(here.lab, 0, "prerouting", 2055, here.addresses, 50)
        watching = here.watch()
        time.sleep(3.0)
        value = watching.result(1)
        assert not any(rows(value, name) for name in STAGES[1:]), value
        before = rows(value, "lost_before")
        assert before.keys() == set(here.addresses)
        removed = remover.end()
        assert all(0 < before[name] <= removed[name] for name in before)


def test_copies_from_our_own_address(scene: Callable[..., Scene]) -> None:
    """Exporters are told apart by what they write, even where two write the same domain."""
    kinds = {
        "198.18.64.5": ("v5", (1, 30, 7)),
        "198.18.64.9": ("v9", (5,)),
        "198.18.64.10": ("ipfix", (17,)),
        "198.18.64.19": ("v9", (6,)),
    }
    here = scene(configuration(spoof=False), kinds=kinds)
    here.devices[3].sequence = 5_000_000
    here.send(5)
    remover = Remover(here.lab, 0, "prerouting", 2055, here.addresses, 9)
    watching = here.watch("--receiver", "far")
    here.send(200)
    removed = remover.end()
    here.send(3)
    value = watching.result(1)
    only(value, "lost_before", removed)
    assert rows(value, "taken") == {name: 203 - count for name, count in removed.items()}


def test_exporters_that_cannot_be_told_apart(scene: Callable[..., Scene]) -> None:
    """The same numbers in the same domain, and copies from the relay's own address: of what is lost on the way only the
    sum is known, and nothing is made up when nothing is lost.
    """
    kinds = {f"198.18.64.{last}": (kind, (rows,)) for last, (kind, rows) in enumerate(ALIKE, 30)}
    here = scene(configuration(spoof=False), kinds=kinds)
    for count in (40, 100):
        watching = here.watch("--receiver", "far")
        here.send(count)
        value = watching.result(0)
        assert rows(value, "taken") == dict.fromkeys(here.addresses, count)
        assert value["sums"] == []
    watching = here.watch("--receiver", "far")
    remover = Remover(here.lab, 2, "prerouting", PORT, [Lab.relay4(2)], 11)
    here.send(60)
    removed = sum(remover.end().values())
    here.send(3)
    value = watching.result(1)
    print(json.dumps(value, indent=1))
    summed = sum(item["datagrams"] for item in value["sums"] if item["stages"] == ["lost_on_way"])
    assert summed > 0
    assert summed + value["total"]["lost_on_way"] == removed
    assert {name for name in here.addresses[:5] if rows(value, "lost_on_way").get(name)} == set()
    assert sum(value["total"].values()) + summed == 63 * len(here.devices)


def test_without_sequence_numbers(scene: Callable[..., Scene]) -> None:
    """Exporters of syslog, and a receiver that gets every third datagram: of that, only the sum is known."""
    here = scene(configuration().replace('name = "far six"', 'name = "far six"\nfreq = 3'))
    plain = here.lab.exporter_socket("198.18.64.99", 50000)
    plain.sendto(b"<13>hello", (here.lab.relay4(), 2055))
    syslog, six = "198.18.64.99", "2001:db8:8000::6"
    wait_for(lambda: here.collector.read.get(syslog), "the first datagram to be through", 20)
    remover = Remover(here.lab, 2, "forward", PORT, [syslog, six], 5)
    for receiver, name in (("far", syslog), ("far six", six)):
        before = remover.removed()[name]
        watching = here.watch("--receiver", receiver)
        for _ in range(60):
            plain.sendto(b"<13>hello", (here.lab.relay4(), 2055))
        here.send(90)
        value = watching.result(1)
        removed = remover.removed()[name] - before
        assert removed > 0
        if name == syslog:
            only(value, "lost_on_way", {name: removed})
        else:
            assert not any(value["total"][stage] for stage in STAGES), value
            assert [(item["stages"], item["datagrams"]) for item in value["sums"]] == [(["lost_on_way"], removed)]


def test_a_witness_that_stays_on(scene: Callable[..., Scene]) -> None:
    """A line of JSON for each round, and metrics, until Ctrl-C."""
    here = scene(configuration(), kinds=FOUR)
    watching = here.watch("--watch", "--http", "127.0.0.1:9421", seconds=1.0)
    here.send(100)

    def scrape() -> str:
        sock = here.lab.collectors[0].socket(socket.AF_INET, socket.SOCK_STREAM)
        with sock:
            sock.settimeout(10)
            sock.connect(("127.0.0.1", 9421))
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            return sock.makefile().read()

    wanted = [f'wire_datagrams_total{{receiver="far, far six",exporter="{name}"}} 100\n' for name in here.addresses]
    wait_for(lambda: all(line in scrape() for line in wanted), "the metrics", 20)
    wait_for(lambda: watching.process.stdout().count("\n") >= 3, "three rounds", 20)
    watching.process.send_signal(signal.SIGINT)
    assert watching.process.wait(20) == 0
    rounds = [json.loads(line) for line in watching.process.stdout().splitlines()]
    assert sum(each["total"]["taken"] for each in rounds) == 400
    assert not any(each["total"][stage] for each in rounds for stage in STAGES)


@pytest.mark.deploy_heavy
def test_a_pool_and_two_receivers_at_one_address(lab: Lab) -> None:
    """Nothing is lost, and nothing is said to be: of a pool each member gets a part."""
    for balance in ("round-robin", "exporter-hash"):
        text = configuration().split("[[rule]]")[0]
        text += f'''[[receiver]]
name = "again"
to = "{FAR4}:{PORT}"
spoof = true
probe = "off"
[[receiver]]
name = "elsewhere"
to = "{lab.peer4(1)}:9999"
spoof = true
probe = "off"
[[pool]]
name = "pool"
members = ["far", "elsewhere"]
balance = "{balance}"
[[rule]]
to = ["pool", "again"]
'''
        if balance == "round-robin":
            here = Scene(lab, text)
        else:
            here.relay.hangup(lab.with_service(text))
        watching = here.watch("--receiver", "again")
        here.send(200)
        watching.result(0)
