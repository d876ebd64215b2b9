"""Where datagrams were lost, as the witness at the collector says, against those who took them away."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
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


class Scene:
    def __init__(self, lab: Lab, text: str, *, kinds: dict[str, tuple[str, tuple[int, ...]]] | None = None) -> None:
        self.lab = lab
        far_away(lab)
        self.collector = Collector(lab)
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

    def watch(self, *words: str, seconds: float = 3.0) -> Watching:
        return Watching(self.lab, self.relay.control_path, *words, seconds=seconds)


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
    here = scene(configuration("32KiB"), kinds=FOUR)
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

    before = {row["exporter"]: row["datagrams"] for row in here.relay.api("exporters")["exporters"]}
    watching = here.watch(seconds=4.0)
    here.relay.send_signal(signal.SIGSTOP)
    here.send(200)
    here.relay.send_signal(signal.SIGCONT)
    wait_for(lambda: here.relay.api("listeners")[0]["queue_bytes"] == 0, "the relay to read what it has", 10)
    here.send(5)
    value = watching.result(1)
    after = {row["exporter"]: row["datagrams"] for row in here.relay.api("exporters")["exporters"]}
    only(value, "lost_at_socket", {name: 205 - (after[name] - before[name]) for name in names})

    watching = here.watch()
    read = dict(here.collector.read)
    here.collector.shrink(60_000)
    here.collector.held = True
    here.send(200)
    time.sleep(0.2)
    here.collector.held = False
    here.send(10)
    value = watching.result(1)
    taken = {name: here.collector.read[name] - read[name] for name in names}
    only(value, "dropped_by_collector", {name: 210 - taken[name] for name in names})
    assert rows(value, "taken") == taken
