"""Runs of copies from a few exporters: sent while the relay stands still, told apart when they arrive. And the packet
engine's link.

Used by tests/system.
"""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Sequence

import pytest

from support.lab import Lab, Relay
from support.process import wait_for
from support.witness import Seen

SIZE = 300


def config(engine: str, *receivers: str, extra: str = "", listen: str = '"0.0.0.0:2055", "[::]:2055"') -> str:
    text = f'[[listener]]\nname = "in"\nlisten = [{listen}]\n'
    for number, to in enumerate(receivers):
        text += f'[[receiver]]\nname = "r{number}"\nto = "{to}"\nspoof = true\nengine = "{engine}"\n{extra}\n'
    names = ", ".join(f'"r{number}"' for number in range(len(receivers)))
    return text + f"[[rule]]\nto = [{names}]\n"


def payloads(exporter: int, start: int, count: int) -> list[bytes]:
    """Of one size, each one different."""
    return [f"{exporter}:{start + i}:".encode().ljust(SIZE, b"x") for i in range(count)]


def held(relay: Relay, exporters: Sequence[socket.socket], to: tuple[str, int], start: int, count: int) -> None:
    """Every exporter sends `count` datagrams while the relay stands still: they are one batch, in runs."""
    relay.send_signal(signal.SIGSTOP)
    for number, exporter in enumerate(exporters):
        for payload in payloads(number, start, count):
            exporter.sendto(payload, to)
    relay.send_signal(signal.SIGCONT)


def acquaint(lab: Lab, address: str) -> None:
    """Exporter and relay know each other's link address: a burst would not fit into the queue of an unknown one."""
    with lab.exporter.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.settimeout(5)
        sock.connect((address, 9))
        sock.send(b"")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)


def in_order(seen: Sequence[Seen], exporters: Sequence[socket.socket], count: int) -> None:
    """Each exporter's datagrams, all of them, once, in order, from its own address and port, with a right checksum."""
    for number, exporter in enumerate(exporters):
        mine = [one for one in seen if one.exporter == exporter.getsockname()[:2]]
        assert [one.payload for one in mine] == payloads(number, 0, count)
        assert {one.checksum for one in mine} == {"good"}
    assert len(seen) == count * len(exporters)


def link(relay: Relay, receiver: str = "r0") -> str:
    return str(next(item["link"] for item in relay.api("receivers") if item["name"] == receiver))


def wait_link(relay: Relay, pattern: str, receiver: str = "r0", timeout: float = 15) -> None:
    wait_for(lambda: re.search(pattern, link(relay, receiver)), f"link {pattern!r} of {receiver}", timeout, 0.05)
