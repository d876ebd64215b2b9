"""Loops that take long: what comes back after a second is found, and exporters that repeat themselves are not blamed.

The host at the other end keeps what it gets for a while and sends it back, as one does whose receive buffer is full.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from support.worker import Relay, Way, wait_until

PAYLOADS = 600
"""Enough for nearly all of the subjects of a trial, drawn by hash."""


class Mirror:
    """Sends back what it gets, `delay` seconds later; loses one in `lossy` on purpose, 0 = none."""

    def __init__(self, relay: Relay, port: int, delay: float, lossy: int = 0) -> None:
        self.sock = relay.exporter()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        self.address, self.port = self.sock.getsockname()
        self._to = ("127.0.0.1", port)
        self._delay, self._lossy = delay, lossy
        self._lot = random.Random(11)
        self._kept: deque[tuple[float, bytes]] = deque()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.002):
            now = time.monotonic()
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while True:
                    payload = self.sock.recv(4096)
                    if not self._lossy or self._lot.randrange(self._lossy):
                        self._kept.append((now + self._delay, payload))
            while self._kept and self._kept[0][0] <= now:
                self.sock.sendto(self._kept.popleft()[1], self._to)


def lines(count: int = PAYLOADS) -> list[bytes]:
    return [b"export packet %d, which is unlike all others" % n for n in range(count)]


def looped(way: Way) -> bool:
    return bool(way.tx.looped)


def at_once(function: Callable[..., None], *cases: tuple[Any, ...]) -> None:
    """Runs the cases beside each other, for most of their time is waiting."""
    with ThreadPoolExecutor(len(cases)) as pool:
        for done in [pool.submit(function, *case) for case in cases]:
            done.result()


def test_copies_that_come_back_late_are_found() -> None:
    """Soon, late, and where some are lost on the way."""
    at_once(_found, (0.15, 0), (0.7, 0), (0.7, 60))


def _found(delay: float, lossy: int) -> None:
    with Relay() as relay:
        listener = relay.listen()
        other = relay.udp("127.0.0.1", relay.sink().port)
        with Mirror(relay, listener.port, delay, lossy) as mirror:
            way = relay.udp("127.0.0.1", mirror.port)
            relay.go()
            exporter = relay.exporter()
            fresh = iter(lines(1_000_000))
            for _ in range(PAYLOADS):
                exporter.sendto(next(fresh), ("127.0.0.1", listener.port))

            def found() -> bool:
                for _ in range(2 if lossy else 0):  # what is lost is replaced
                    exporter.sendto(next(fresh), ("127.0.0.1", listener.port))
                time.sleep(0.05)
                return looped(way)

            wait_until(found, f"the way to be stopped, {delay} s and {lossy}", 120)
            assert not looped(other)


def test_exporters_that_repeat_themselves_slowly_are_not_stopped() -> None:
    """Each line by its own clock; all at once, with pauses between; and each a number of times, then never again."""
    at_once(_not_stopped, ("clock",), ("bursts",), ("rounds",))


def _not_stopped(kind: str) -> None:
    with Relay() as relay:
        to = ("127.0.0.1", relay.listen().port)
        way = relay.udp("127.0.0.1", relay.sink().port)
        relay.go()
        exporter = relay.exporter()
        lot = random.Random(3)
        sent: Counter[bytes] = Counter()
        end = time.monotonic() + 12
        all_lines = lines()
        turn = 0
        while time.monotonic() < end:
            turn += 1
            chosen, pause = all_lines, 0.4
            if kind == "bursts":
                chosen, pause = lot.sample(all_lines, 500), lot.choice([0.05, 0.2, 1.0, 2.0])
            elif kind == "rounds":
                chosen, pause = [b"%d %s" % (turn // 6, line) for line in all_lines], 0.2
            for line in chosen:
                exporter.sendto(line, to)
                sent[line] += 1
            time.sleep(pause)
        total = sent.total()
        wait_until(lambda: relay.received() == total, "the relay to have read all", 30)
        wait_until(lambda: way.values()["sent"] == total, "all copies to have left", 30)
        relay.sinks[0].expect(total)
        assert Counter(relay.sinks[0].payloads) == sent
        assert not looped(way)


def test_what_is_held_back_leaves_when_the_worker_stops() -> None:
    with Relay() as relay:
        to = ("127.0.0.1", relay.listen().port)
        way = relay.udp("127.0.0.1", relay.sink().port)
        relay.go()
        exporter = relay.exporter()
        sent = 0

        def held() -> bool:
            nonlocal sent
            for line in lines():
                exporter.sendto(line, to)
                sent += 1
            wait_until(lambda: relay.received() == sent, "the relay to have read all", 30)
            time.sleep(0.1)
            return bool(way.values()["sent"] < sent)

        wait_until(held, "a trial to begin", 30)
        relay.stop(2000)
        assert way.values()["sent"] == sent
        relay.sinks[0].expect(sent)
