"""A closed port behind a host that limits its ICMP errors, as hosts do: it is down until somebody opens it, said once,
and its templates are replayed once.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from support import flows as model
from support.lab import Lab, Relay
from support.process import wait_for
from support.telemetry import as_hosts_are

TEMPLATE = model.a_set(0, model.template(300, [(8, 4), (12, 4)]))


def start(lab: Lab, ports: list[int], to: str, engine: str = "raw") -> Relay:
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
    for port in ports:
        text += f'[[receiver]]\nname = "r{port}"\nto = "{to}:{port}"\nspoof = {str(engine != "udp").lower()}\n'
        text += f'engine = "{engine}"\n'
    return lab.samplicator(text + "[[rule]]\nto = [" + ", ".join(f'"r{port}"' for port in ports) + "]\n")


@contextmanager
def traffic(lab: Lab, rate: int, exporters: int = 5) -> Iterator[None]:
    """NetFlow v9 of some exporters, with their templates first, until the end of the block."""
    socks = [lab.exporter_socket(f"198.18.64.{10 + n}", 5000) for n in range(exporters)]
    end = threading.Event()

    def run() -> None:
        sequence = 0
        for sock in socks:
            sock.sendto(model.v9(0, 7, TEMPLATE), (lab.relay4(), 2055))
        while not end.wait(0.02):
            for _ in range(max(rate // 50 // exporters, 1)):
                sequence += 1
                payload = model.v9(sequence, 7, model.a_set(300, struct.pack("!II", sequence, 1)))
                for sock in socks:
                    sock.sendto(payload, (lab.relay4(), 2055))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def down(relay: Relay, name: str) -> bool:
    return relay.metrics().value("receiver_up", receiver=name) == 0


def said(relay: Relay, words: str) -> int:
    return (relay.stdout() + relay.stderr()).count(words)


CASES = ((100, "raw", 1), (100, "udp", 1), (5000, "raw", 1), (500, "transparent", 3))
"""Datagrams a second, engine, closed ports."""


@pytest.mark.slow
@pytest.mark.deploy_heavy
def test_a_closed_port_stays_closed(make_lab: Callable[..., Lab]) -> None:
    """All cases at once, each in a laboratory of its own: each takes half a minute in which little happens."""
    started = []
    for rate, engine, count in CASES:
        lab = make_lab()
        as_hosts_are(lab)
        ports = [9000 + n for n in range(count)]
        started.append((lab, rate, ports, start(lab, ports, lab.peer4(1), engine)))
    with ThreadPoolExecutor(len(started)) as pool:
        for watched in [pool.submit(stays_closed_until_it_opens, *words) for words in started]:
            watched.result()


def stays_closed_until_it_opens(lab: Lab, rate: int, ports: list[int], relay: Relay) -> None:
    names = [f"r{port}" for port in ports]
    with traffic(lab, rate):
        wait_for(lambda: all(down(relay, name) for name in names), "all to be found closed", 40)
        until = time.monotonic() + 12
        while time.monotonic() < until:
            assert all(down(relay, name) for name in names)
            time.sleep(0.2)
        sink = lab.collector_socket(1, 9000)
        patience = 10 * len(ports) + (40 if rate > 1000 else 10)
        wait_for(lambda: not down(relay, "r9000"), "the one that opened to be up", patience)
        templates = 0
        sink.settimeout(1.0)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            templates += TEMPLATE in sink.recv(2000)
        assert templates == 5
        assert all(down(relay, name) for name in names[1:])
    for name in names:
        assert said(relay, f"receiver '{name}' is refusing: the receiver's port is closed") == 1
        assert said(relay, f"receiver '{name}' is back") == (name == "r9000")
    lines = [line for line in (relay.stdout() + relay.stderr()).splitlines() if "is refusing" in line]
    assert all(" warning " in line for line in lines)
