"""/api/v1/tap of a real daemon: what it shows is what the wire and the counters say, for every way a copy can leave."""

from __future__ import annotations

import struct
import time
from collections import Counter
from typing import Any

import pytest
from support.lab import Lab, Relay
from support.process import wait_for
from support.taps import tap

EXPORTERS = ("198.18.70.1", "198.18.70.2")
DENIED, UNMATCHED = "198.18.71.1", "198.18.72.1"
ENGINES = ("auto", "raw", "packet", "transparent")


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


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("receive", ["recvmmsg", "ring"])
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
