"""SCTP in a laboratory: transports whose sockets are in its namespaces, in one event loop, over real IP.

`SCTP_BACKEND` says which (kernel | usrsctp | usrsctp-udp); by default what this host has. All libusrsctp stacks share
the library of this process, as they would in the product; nothing else is shared but the wires. Used by tests/system.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from samplicator.gateways.sctp import choice
from samplicator.gateways.sctp.backup import Status
from samplicator.gateways.sctp.export import Collector, Export
from samplicator.gateways.sctp.exporting import Exporter
from samplicator.gateways.transport import Address, Options, Transport

from support.lab import Lab
from support.namespace import Namespace, run
from support.process import PATIENCE, tool
from support.sctp import Log

PORT = 9000
TEMPLATES = [b"template %d........" % n for n in range(3)]
RECORDS = 10


def backend() -> str:
    """Fails where there is none: the error names what is missing."""
    wanted = os.environ.get("SCTP_BACKEND") or choice.AUTO
    return choice.choose(wanted)[0]


def transport_in(namespace: Namespace, loop: asyncio.AbstractEventLoop, name: str, **options: Any) -> Transport:
    """Of this backend, with its sockets in the namespace."""
    if name == choice.KERNEL:
        from samplicator.gateways.sctp import linux
        from samplicator.gateways.sctp.kernel import Kernel

        return Kernel(loop, lambda family, wanted: namespace.call(lambda: linux.opened(family, wanted)))
    from samplicator.gateways.sctp.carrier import RawCarrier, UdpCarrier
    from samplicator.gateways.sctp.userland import Userland

    if name == choice.UDP:
        return Userland(loop, lambda family: namespace.call(lambda: UdpCarrier(family)), udp_port=9899, **options)
    return Userland(loop, lambda family: namespace.call(lambda: RawCarrier(family)), **options)


def place(text: str, port: int) -> Address:
    return Address(socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text), port)


class Stand:
    """A relay and two collectors. nft: what is cut where."""

    def __init__(self, lab: Lab, name: str = "") -> None:
        self.lab = lab
        self.backend = name or backend()
        self.loop = asyncio.new_event_loop()
        self.relay = transport_in(lab.relay, self.loop, self.backend)
        self.hosts = [transport_in(one, self.loop, self.backend) for one in lab.collectors]
        self.logs = [Log() for _ in self.hosts]
        self.exporters: list[Exporter] = []
        self.sent = 0
        self._next = 0.0

    def listen(self) -> None:
        """Both collectors; their ports differ, since they may share a library."""
        for number, (one, log) in enumerate(zip(self.hosts, self.logs, strict=True)):
            one.listen(place("0.0.0.0", PORT + number), log, Options(streams=8))

    def export(self, **options: Any) -> Exporter:
        primary, backup = (Collector(place(self.lab.peer4(link), PORT + link - 1)) for link in (1, 2))
        export = Export(**{"primary": primary, "backup": backup, "fail_over_ms": 50, **options})
        self.exporters.append(Exporter(self.loop, self.relay, export, lambda: TEMPLATES))
        return self.exporters[-1]

    # ---- time

    def until(
        self, condition: Callable[[], bool], seconds: float = 60.0 * PATIENCE, exporter: Exporter | None = None
    ) -> float:
        """Runs the loop until the condition holds; exporter: gets a message every 5 ms meanwhile. Returns how long it
        took.
        """
        begun = time.monotonic()

        async def wait() -> None:
            while not condition():
                assert time.monotonic() - begun < seconds, f"not within {seconds} s"
                if exporter is not None:
                    self._flow(exporter)
                await asyncio.sleep(0.001)

        self.loop.run_until_complete(wait())
        return time.monotonic() - begun

    def run(self, seconds: float, exporter: Exporter | None = None) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, seconds + 60, exporter)

    def _flow(self, exporter: Exporter) -> None:
        now = time.monotonic()
        if now - self._next > 0.5:
            self._next = now
        while self._next <= now:
            self.send(exporter)
            self._next += 0.005

    def send(self, exporter: Exporter, size: int = 200) -> None:
        exporter.send(self.sent.to_bytes(4, "big") + bytes(size), 1 + self.sent % 2, RECORDS)
        self.sent += 1

    # ---- what happened

    def got(self, number: int) -> list[int]:
        return [int.from_bytes(one[:4], "big") for _, stream, one in self.logs[number].messages if stream]

    def templates(self, number: int) -> int:
        return sum(stream == 0 for _, stream, _ in self.logs[number].messages)

    # ---- faults

    def filter(self, number: int, *rules: str, hook: str = "prerouting") -> None:
        """nftables rules at a collector, for what comes to it; none: the table goes."""
        name = self.lab.collectors[number].name
        text = "table ip sctptest\ndelete table ip sctptest\n"
        if rules:
            text += f"table ip sctptest {{ chain c {{ type filter hook {hook} priority -300; "
            text += "; ".join(rules) + "; }\n}\n"
        run("ip", "netns", "exec", name, "nft", "-f", "-", stdin=text)

    def cut(self, number: int) -> None:
        self.filter(number, "meta l4proto { sctp, udp } drop")

    def heal(self, number: int) -> None:
        self.filter(number)

    def watch(self, number: int, condition: str, seconds: int = 60) -> subprocess.Popen[str]:
        """tshark, which ends after one packet at a collector that meets its capture filter."""
        argv = ["ip", "netns", "exec", self.lab.collectors[number].name, tool("tshark"), "-i", "e0", "-l", "-n"]
        argv += ["-c", "1", "-a", f"duration:{seconds}", "-f", condition]
        started = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert started.stderr is not None
        while "Capturing" not in started.stderr.readline():
            assert started.poll() is None
        return started

    def close(self) -> None:
        for exporter in self.exporters:
            exporter.close(abort=True)
        for one in (self.relay, *self.hosts):
            one.close()
        self.loop.run_until_complete(asyncio.sleep(0.05))
        self.loop.close()


def states(exporter: Exporter) -> list[Status]:
    return [one.status for one in exporter.shown()]
