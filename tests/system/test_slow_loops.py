"""Loops whose rounds take long, as where datagrams wait in full receive buffers: found, and without a false alarm.

A host at the address of a receiver keeps what it gets for a while and sends it back.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

import pytest
from support.lab import Lab, Relay
from support.process import wait_for

PORT = 2055
PAYLOADS = 2000
"""Different ones: enough for each of the places in which payloads from receivers are remembered for long."""


class Mirror:
    """The other relay: sends back what it gets, `delay` seconds later, from the address that it got it at."""

    def __init__(self, lab: Lab, delay: float, *, link: int = 1, port: int = PORT) -> None:
        self._sock = lab.collectors[link - 1].socket(socket.AF_INET)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._sock.bind((lab.peer4(link), port))
        self._sock.settimeout(0.005)
        self._to = (lab.relay4(link), PORT)
        self._delay = delay
        self._kept: deque[tuple[float, bytes]] = deque()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(TimeoutError):
                while not self._due():
                    self._kept.append((time.monotonic() + self._delay, self._sock.recv(4096)))
            while self._due():
                self._sock.sendto(self._kept.popleft()[1], self._to)

    def _due(self) -> bool:
        return bool(self._kept) and self._kept[0][0] <= time.monotonic()


def relay_to(lab: Lab) -> Relay:
    text = f'[[listener]]\nname = "in"\nlisten = ["0.0.0.0:{PORT}"]\n'
    text += "".join(f'[[receiver]]\nname = "{n}"\nto = "{to}"\n' for n, to in receivers(lab).items())
    return lab.samplicator(text + '[[rule]]\nto = ["r", "good"]\n[datapath]\nworkers = 1\n')


def receivers(lab: Lab) -> dict[str, str]:
    return {"r": f"{lab.peer4(1)}:{PORT}", "good": "198.18.2.2:9000"}


def looping(relay: Relay) -> set[str]:
    return {one["name"] for one in relay.api("receivers") if one["state"] == "looping"}


@pytest.mark.parametrize("delay", [0.1, pytest.param(0.5, marks=pytest.mark.deploy_heavy)])
def test_copies_that_come_back_late_are_found(lab: Lab, delay: float) -> None:
    relay = relay_to(lab)
    with Mirror(lab, delay), lab.exporter.socket(socket.AF_INET) as sock:
        for number in range(PAYLOADS):
            sock.sendto(b"export packet %d, which is unlike all others" % number, (lab.relay4(), PORT))
        wait_for(lambda: looping(relay) == {"r"}, "the receiver to be looping", 120)
    relay.check_laws()


def by_clock(number: int, _: random.Random) -> float:
    return 0.2 + number % 7 / 7


def at_random(_: int, lot: random.Random) -> float:
    return lot.expovariate(2)


@pytest.mark.parametrize("pause", [by_clock, at_random])
def test_an_exporter_at_the_address_of_a_receiver_repeats_itself(
    lab: Lab, pause: Callable[[int, random.Random], float]
) -> None:
    """Heartbeats of a collector's host: nobody is blamed, all arrives, and other receivers wait for nothing."""
    relay = relay_to(lab)
    lot = random.Random(5)
    lines = [b"<13>collector: heartbeat of service %d" % n for n in range(200)]
    due = [(time.monotonic() + pause(n, lot), n) for n in range(len(lines))]
    sent: Counter[bytes] = Counter()
    with (
        lab.collectors[0].socket(socket.AF_INET) as sock,
        lab.collectors[1].socket(socket.AF_INET) as good,
        lab.collectors[0].socket(socket.AF_INET) as sink,
    ):
        sock.bind((lab.peer4(1), 5000))
        good.bind(("198.18.2.2", 9000))
        sink.bind((lab.peer4(1), PORT))
        for one in (good, sink):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        end = time.monotonic() + 8
        while time.monotonic() < end:
            moment, number = min(due)
            time.sleep(max(0.0, moment - time.monotonic()))
            sock.sendto(lines[number], (lab.relay4(1), PORT))
            sent[lines[number]] += 1
            due[number] = (moment + pause(number, lot), number)
        took: Counter[bytes] = Counter()
        for one, seconds in ((good, 5.0), (sink, 30.0)):
            took.clear()
            one.settimeout(seconds)
            with contextlib.suppress(TimeoutError):
                while took.total() < sent.total():
                    took[one.recv(200)] += 1
            assert took == sent
    assert looping(relay) == set()
    relay.check_laws()


def test_a_slow_test_gives_way_to_a_fast_one(lab: Lab) -> None:
    """While the lines of a collector's host are tested one after the other, a fast loop by another host is found."""
    relay = relay_to(lab)
    lines = [b"<13>collector: heartbeat of service %d" % n for n in range(20)]
    end = time.monotonic() + 4
    with lab.collectors[0].socket(socket.AF_INET) as sock, lab.exporter.socket(socket.AF_INET) as exporter:
        sock.bind((lab.peer4(1), 5000))

        def beat() -> float:
            for line in lines:
                sock.sendto(line, (lab.relay4(1), PORT))
            time.sleep(0.2)
            return time.monotonic()

        while beat() < end:
            pass
        with Mirror(lab, 0, link=2, port=9000):
            for number in range(50):  # where the machine is slow, so is this loop
                exporter.sendto(b"datagram %d, which goes round" % number, (lab.relay4(), PORT))
            wait_for(lambda: beat() and looping(relay) == {"good"}, "the other receiver to be looping", 120)
    relay.check_laws()
