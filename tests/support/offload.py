"""Ingress offload and XDP: a relay whose sessions the kernel copies where they come in, and what came so.

Used by tests/system and tests/deploy.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest
from samplicator.host import offload

from support.lab import Lab
from support.process import wait_for
from support.relay import Relay
from support.runs import acquaint, config, payloads, wait_link


def skip_without(lab: Lab, *, express: bool = False) -> None:
    """Skips the test where the kernel cannot do it; express: XDP, too."""
    assert offload.OBJECT.exists()  # the tests' set-up installs clang

    def try_it() -> tuple[str, ...]:
        made = offload.Offload(1, 4096, express=express)
        made.close()
        return made.no_express

    try:
        why = lab.relay.call(try_it)
    except OSError as error:
        pytest.skip(f"no ingress offload here: {error}")
    if express and why:
        pytest.skip(f"no XDP here: {why}")


def give_way(lab: Lab) -> None:
    """The collectors' interfaces take what XDP sends: veth(4) does when they have GRO."""
    for collector in lab.collectors:
        collector.run("ethtool", "-K", "e0", "gro", "on")


def lone(lab: Lab, mode: str, extra: str = "") -> Relay:
    """A relay with two receivers, r0 and r1, whose links are known; mode, extra: the beginning of its configuration."""
    relay = lab.samplicator(mode + extra + config("auto", f"{lab.peer4(1)}:9001", f"{lab.peer4(2)}:9001"))
    acquaint(lab, lab.relay4())
    for name in ("r0", "r1"):
        wait_link(relay, "^r[12], ", name)
    return relay


def offloaded(relay: Relay) -> int:
    return int(relay.metrics().value("receive_offloaded_datagrams_total"))


def pour(relay: Relay, exporters: Sequence[socket.socket], to: tuple[str, int], start: int, count: int) -> None:
    """Datagrams start to start + count of each exporter; each is counted before the next."""
    for number in range(start, start + count):
        for index, exporter in enumerate(exporters):
            exporter.sendto(payloads(index, number, 1)[0], to)
        total = len(exporters) * (number + 1)
        wait_for(lambda n=total: relay.metrics().value("receive_datagrams_total") == n, "them")
