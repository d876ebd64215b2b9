"""A daemon that is played: the real HTTP interface on a control socket or a port, over readings that the test sets.

Its counters rise at rates that the test names, so that what is shown can be foretold. It runs in a thread, and can be
stopped and started again. Used by the tests of `samplicator top`.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from samplicator import _fastpath
from samplicator.gateways.tally import OutTally, counts
from samplicator.http.app import make_app
from samplicator.http.endpoints import open_control
from samplicator.http.front import Front
from samplicator.readings import Activity, FlowTemplate, GatewayReading, Readings, TransportSessionReading
from samplicator.views.history import History

from support.state import FakeView, make_readings, make_state, make_templates

BASE = make_readings(zero=True)


class Play(FakeView):
    """receivers, listeners, exporters: datagrams per second, by name or address. down: receivers that are, and why.
    hangs: while it is not set, nothing is answered.
    lost: units per second that exporters lose. sessions: messages per second of sessions of gateways.
    """

    def __init__(self) -> None:
        super().__init__(BASE)
        self.receivers: dict[str, float] = {"nfdump": 400.0, "six": 100.0}
        self.listeners: dict[str, float] = {"netflow": 500.0}
        self.exporters: dict[str, float] = {f"192.0.2.{n}": 10.0 * n for n in range(1, 8)}
        self.lost: dict[str, float] = {}
        self.down: dict[str, str] = {}
        self.sessions: dict[TransportSessionReading, float] = {}
        self.failing: dict[str, float] = {}
        self.begin_ns = time.monotonic_ns()
        self.asked = 0
        self.hangs = threading.Event()
        self.hangs.set()

    def _grown(self, rate: float) -> int:
        return int(rate * (time.monotonic_ns() - self.begin_ns) / 1e9)

    def restart(self) -> None:
        """All counters begin at zero."""
        self.begin_ns = time.monotonic_ns()

    def readings(self) -> Readings:
        self.hangs.wait(60)
        receiver, listener = BASE.receivers[0], BASE.listeners[0]
        latency = list(BASE.latency_counts)
        latency[3] = self._grown(sum(self.listeners.values()))
        return replace(
            BASE,
            receivers=tuple(
                self._receiver(replace(receiver, name=name), rate) for name, rate in self.receivers.items()
            ),
            listeners=tuple(
                replace(
                    listener,
                    name=name,
                    counters={**listener.counters, **dict.fromkeys(("datagrams", "matched"), self._grown(rate))},
                )
                for name, rate in self.listeners.items()
            ),
            latency_counts=tuple(latency),
            latency_sum_ns=latency[3] * 70_000,
            latency_bounds_ns=_fastpath.LATENCY_BOUNDS_NS,
        )

    def _receiver(self, item: Any, rate: float) -> Any:
        failed, sent = self._grown(self.failing.get(item.name, 0.0)), self._grown(rate)
        counters = {**item.counters, "offered": sent + failed, "sent": sent, "sent_bytes": 100 * sent}
        counters["failed_refused"] = failed
        why = self.down.get(item.name, "")
        state = (
            {"up": False, "state": "refusing", "state_why": why, "state_since_unix": time.time() - 61} if why else {}
        )
        return replace(item, counters=counters, **state)

    def session_readings(self) -> list[TransportSessionReading]:
        return [
            replace(item, messages=self._grown(rate), octets=100 * self._grown(rate))
            for item, rate in self.sessions.items()
        ]

    def gateways(self) -> list[GatewayReading]:
        """As gateways.hub makes them of their sessions."""
        found: dict[tuple[str, str, str], list[TransportSessionReading]] = {}
        for item in self.sessions:
            found.setdefault((item.gateway, item.side, item.name), []).append(item)
        return [
            GatewayReading(
                *key,
                place=items[0].peer,
                why="",
                sessions=Counter(item.state for item in items),
                counters=counts(OutTally()),
                backups_in_use=sum(item.backup_in_use for item in items),
            )
            for key, items in found.items()
        ]

    def flow_extent(self) -> dict[int, int]:
        return {0: len(self.exporters)}

    def flow_activity(self, worker: int, numbers: Iterable[int]) -> list[Activity]:
        self.asked += 1
        now, rows = time.monotonic_ns(), list(self.exporters.items())
        found = []
        for number in numbers:
            if number > len(rows):
                continue
            address, rate = rows[number - 1]
            came = 1 + self._grown(rate)
            packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
            lost = self._grown(self.lost.get(address, 0.0))
            found.append(
                Activity(number, packed, "netflow9", "", self.begin_ns, came, 100 * came, lost, 0, now, 2055, 7, 4,
                         templates=1, options_templates=1)
            )  # fmt: skip
        return found

    def flow_templates(self, worker: int, number: int, after: int = -1) -> Iterator[FlowTemplate]:
        return (item for item in make_templates() if item.kind != "options_data" and item.id > after)


class Stage:
    """See above. step: seconds between two steps of its history."""

    def __init__(self, where: Path | tuple[str, int], play: Play | None = None, step: float = 0.5) -> None:
        self.play = play or Play()
        self.where = where
        self.step = step
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()

    def __enter__(self) -> Stage:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        self._started.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        assert self._started.wait(60)

    def stop(self) -> None:
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(60)
            self._thread = None
            if isinstance(self.where, Path):
                self.where.unlink(missing_ok=True)

    async def _run(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        state = make_state(view=self.play, gateways=self.play.gateways, sessions=self.play.session_readings)
        front = Front(make_app(state))
        if isinstance(self.where, Path):
            sock = open_control(str(self.where))
        else:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(self.where)
            sock.setblocking(False)
            sock.listen()
            self.where = sock.getsockname()[:2]
        await front.start([sock])
        sampler = asyncio.create_task(self._sample(state.history))
        self._started.set()
        await self._end.wait()
        sampler.cancel()
        left = [connection.transport for connection in front._open]  # type: ignore[attr-defined]
        await front.stop()
        for transport in filter(None, left):  # as when the process ends
            transport.abort()
        await asyncio.sleep(0.05)

    async def _sample(self, history: History) -> None:
        while True:
            history.sample()
            await asyncio.sleep(self.step)
