"""/api/v1/tap of a real daemon: what it shows is what the wire and the counters say, for every way a copy can leave."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from samplicator import demo
from samplicator.demo.traffic import payloads
from support.flows import without_times
from support.lab import Lab, Relay
from support.process import command, tool, wait_for
from support.taps import tap

EXPORTERS = ("198.18.70.1", "198.18.70.2")
DENIED, UNMATCHED = "198.18.71.1", "198.18.72.1"
ENGINES = ("auto", "raw", "packet", "transparent")
HEAVY = pytest.mark.deploy_heavy


def configuration(engine: str, receive: str = "recvmmsg", workers: int = 2) -> str:
    return f"""[datapath]
workers = {workers}
max_datagram = 2000
[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
receive = "{receive}"
[[receiver]]
name = "spoofed"
to = "{Lab.peer4(1)}:9000"
spoof = true
engine = "{engine}"
probe = "off"
[[receiver]]
name = "own"
to = "{Lab.peer4(2)}:9001"
probe = "off"
[[receiver]]
name = "third"
to = "{Lab.peer4(2)}:9002"
freq = 3
probe = "off"
[[receiver]]
name = "nowhere"
to = "203.0.113.9:9003"
probe = "off"
[[rule]]
from = ["198.18.70.0/24"]
to = ["spoofed", "own", "third", "nowhere"]
[[rule]]
from = ["198.18.71.0/24"]
to = []
stop = true
"""


class Scene:
    def __init__(self, lab: Lab, text: str) -> None:
        self.lab = lab
        self.relay: Relay = lab.samplicator(text)
        self.sockets = {
            "spoofed": lab.collector_socket(1, 9000),
            "own": lab.collector_socket(2, 9001),
            "third": lab.collector_socket(2, 9002),
        }
        self.exporters = {a: lab.exporter_socket(a, 50000) for a in (*EXPORTERS, DENIED, UNMATCHED)}
        self.sent: list[tuple[bytes, str]] = []  # those short enough
        self.number = 0

    def send(self, address: str, count: int, size: int = 60) -> None:
        for _ in range(count):
            payload = struct.pack("!I", self.number).ljust(size, b"x")
            self.exporters[address].sendto(payload, (Lab.relay4(0), 2055))
            self.number += 1
            if size <= 2000:
                self.sent.append((payload, address))

    def arrived(self, name: str, count: int) -> list[tuple[bytes, str]]:
        found = []
        self.sockets[name].settimeout(20)
        for _ in range(count):
            data, source = self.sockets[name].recvfrom(65535)
            found.append((data, source[0]))
        return found


def key(event: dict[str, Any]) -> tuple[bytes, str]:
    return event["payload"], event["exporter"]


@pytest.mark.parametrize(
    ("engine", "receive"),
    [
        *((engine, "recvmmsg") for engine in ENGINES),
        ("auto", "ring"),
        *(pytest.param(engine, "ring", marks=HEAVY) for engine in ENGINES[1:]),
    ],
)
def test_all_that_happens_is_shown(lab: Lab, engine: str, receive: str) -> None:
    scene = Scene(lab, configuration(engine, receive))
    control = scene.relay.control_path
    with tap(control, rate=10000) as every, tap(control, receiver="own") as own, tap(control, drops="true") as drops:
        for _ in range(3):
            for address in EXPORTERS:
                scene.send(address, 7)
            scene.send(DENIED, 2)
            scene.send(UNMATCHED, 1)
            scene.send(EXPORTERS[0], 1, size=2500)
            time.sleep(0.05)
        metrics = scene.relay.check_laws()
        every.wait(len(scene.sent), "in")
        own.wait(42)
        drops.wait(42 + 12)
        came = every.events("in")
        assert Counter(map(key, came)) == Counter(scene.sent)
        skipped = metrics.total("send_skipped_datagrams_total", receiver="third")
        every.wait(3 * 42 - skipped, "sent")
        every.wait(12, "dropped")
        arrived = {
            name: scene.arrived(name, int(metrics.value("send_datagrams_total", receiver=name)))
            for name in scene.sockets
        }
        sent = every.events("sent")
        for name, found in arrived.items():
            shown = [event for event in sent if event["receiver"] == name]
            assert Counter(event["payload"] for event in shown) == Counter(data for data, _ in found), name
            assert all(event["listener"] == "in" for event in shown)
        assert Counter(key(event) for event in sent if event["receiver"] == "spoofed") == Counter(arrived["spoofed"])
        assert {event["way"] for event in sent if event["receiver"] == "own"} == {"udp"}
        failed = every.events("failed")
        assert Counter((event["receiver"], event["reason"]) for event in failed) == {("nowhere", "no_route"): 42}
        assert Counter(event["reason"] for event in every.events("dropped")) == {
            "acl": 6,
            "no_route_rule": 3,
            "truncated": 3,
        }
        assert len(every.events("skipped")) == skipped
        of_one: dict[int, set[str]] = {}
        for event in every.events("in", "sent", "skipped", "failed"):
            of_one.setdefault(event["datagram"], set()).add(event["payload"])
        assert all(len(payloads) == 1 for payloads in of_one.values())
        assert Counter(event["event"] for event in own.events()) == {"sent": 42}
        assert Counter(event["event"] for event in drops.events()) == {"failed": 42, "dropped": 12}
        cut = [event for event in drops.events() if event["reason"] == "truncated"]
        assert [(event["length"], event["payload"], event["exporter"]) for event in cut] == [
            (2500, b"", EXPORTERS[0])
        ] * 3
        wait_for(lambda: every.ticks()[-1]["shown"] == len(every.events()), "the tick")
        assert every.ticks()[-1]["unshown"] == 0


CAPTURES = {
    "netflow5": (2055, "cflow"),
    "netflow9": (9995, "cflow"),
    "ipfix": (4739, "cflow"),
    "sflow": (6343, "sflow"),
}


def decoded(file: Path, port: int, protocol: str) -> list[Any]:
    """What tshark decodes of the datagrams of a file."""
    words = ["-d", f"udp.port=={port},{protocol}", "-T", "json", "-J", protocol, "--no-duplicate-keys"]
    rows = json.loads(tshark("-r", str(file), *words))
    return [without_times(row["_source"]["layers"][protocol]) for row in rows]


def of_interface(file: Path, name: str) -> Path:
    """A file with the packets of one interface only."""
    one = file.with_suffix(f".{name.replace(' ', '-')}.pcapng")
    tshark("-r", str(file), "-Y", f'frame.interface_name == "{name}"', "-w", str(one))
    return one


def tshark(*words: str) -> str:
    return subprocess.run(
        [tool("tshark"), "-n", *words], capture_output=True, text=True, check=True, timeout=120
    ).stdout


@pytest.mark.parametrize("name", CAPTURES)
def test_what_the_command_writes_is_what_was_sent(lab: Lab, name: str) -> None:
    """`samplicator tap --write`, of the daemon: tshark finds in it, in and sent, all flows of what was sent."""
    relay = lab.samplicator(configuration("auto", workers=1))
    exporter, sock = lab.exporter_socket(EXPORTERS[0], 50000), lab.collector_socket(1, 9000)
    port, protocol = CAPTURES[name]
    file = lab.directory / "tap.pcapng"
    argv = [command("samplicator"), "tap", "--control", str(relay.control_path), "--write", str(file)]
    tapping = lab.start([*argv, "--rate", "10000"], lab.relay, "tap")
    wait_for(lambda: tapping.said("events per second"), "the tap to be open")
    for payload in payloads(name):
        exporter.sendto(payload, (Lab.relay4(0), 2055))
    sock.settimeout(20)
    assert sorted(sock.recv(65535) for _ in payloads(name)) == sorted(payloads(name))
    relay.check_laws()
    tapping.send_signal(signal.SIGINT)
    assert tapping.popen.wait(30) == 0
    wanted = decoded(Path(demo.__file__).parents[1] / "captures" / f"{name}.pcap", port, protocol)
    assert len(wanted) == len(payloads(name))
    assert decoded(of_interface(file, "listener in"), 2055, protocol) == wanted
    assert decoded(of_interface(file, "receiver spoofed"), 9000, protocol) == wanted
