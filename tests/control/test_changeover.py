"""A supervisor with packet rings pauses, goes on, and hands over to the next, while exporters send without a pause."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from samplicator.datapath import changeover
from samplicator.datapath.intakes import RingGroup
from samplicator.host import ring
from samplicator.host.sources import HandedIn
from samplicator.supervisor.supervisor import Supervisor
from support.hosts import Load, free_port
from support.numbered import Collector, Exporters, in_order, spec, until
from support.process import wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: packet sockets and ingress rules")
RING = 'receive = "ring"'


def received(supervisor: Supervisor) -> int:
    """By this supervisor and those before it."""
    return supervisor.view.readings().listeners[0].counters["datagrams"]


class Traffic(threading.Thread):
    """Exporters that send until they are stopped, about 10,000 datagrams per second, and what came of it."""

    def __init__(self, port: int, collector: Collector) -> None:
        super().__init__()
        self.exporters = Exporters(16, port)
        self.collector = collector
        self._stop_it = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stop_it.is_set():
            self.exporters.send(2)
            time.sleep(0.003)

    def flow(self, datagrams: int = 1000) -> None:
        """Waits until so many more were sent."""
        wanted = self.exporters.sent + datagrams
        while self.exporters.sent < wanted:
            time.sleep(0.002)

    def judge(self, supervisor: Supervisor) -> None:
        """All that was sent has come once, and in order."""
        self.end()
        wait_for(lambda: received(supervisor) >= self.exporters.sent, "the rest to come")
        got = self.collector.take()
        assert len(got) == len(set(got)) == self.exporters.sent
        assert in_order(got)
        assert received(supervisor) == self.exporters.sent

    def end(self) -> None:
        self._stop_it.set()
        self.join()


@pytest.fixture
def made() -> Iterator[list[Any]]:
    """Supervisors and traffic, ended in the end."""
    things: list[Any] = []
    yield things
    for each in things:
        each.end() if isinstance(each, Traffic) else each.drain_and_stop(1.0)


@pytest.mark.parametrize("reads_open", [True, False])
def test_pause_and_resume(
    load: Load, made: list[Any], collector: Collector, monkeypatch: pytest.MonkeyPatch, reads_open: bool
) -> None:
    """reads_open: whether the block that the kernel fills is read, or closed ones only, as on other processors."""
    if not reads_open:
        monkeypatch.setattr(ring, "READS_OPEN", False)
        monkeypatch.setattr(ring, "RETIRE_MS", 1)
    port = free_port()
    supervisor = Supervisor()
    made.append(supervisor)
    supervisor.apply(spec(load, port, collector.port, workers=2, listener=RING))
    traffic = Traffic(port, collector)
    made.insert(0, traffic)
    for _ in range(5):
        traffic.flow()
        supervisor.pause()
        before = received(supervisor)
        traffic.flow()
        assert received(supervisor) == before
        assert supervisor.view.readings().listeners[0].queue_bytes > 0
        supervisor.resume()
    traffic.flow()
    traffic.judge(supervisor)


@pytest.mark.parametrize(("before", "after"), [((1, RING), (3, RING)), ((2, RING), (2, "")), ((2, ""), (2, RING))])
def test_one_supervisor_hands_over_to_the_next(
    load: Load, made: list[Any], collector: Collector, before: tuple[int, str], after: tuple[int, str]
) -> None:
    port = free_port()
    plans = [spec(load, port, collector.port, workers=workers, listener=how) for workers, how in (before, after)]
    old = Supervisor()
    made.append(old)
    old.apply(plans[0])
    traffic = Traffic(port, collector)
    made.insert(0, traffic)
    for turn in range(4):
        traffic.flow()
        old.pause()
        traffic.flow(200)
        handed = [(label, sock.dup()) for label, sock in old.sockets()]
        new = Supervisor(source=HandedIn(handed), state=old.final_state())
        made.append(new)
        new.apply(plans[(turn + 1) % 2])
        old.leave()
        old = new
    traffic.flow()
    traffic.judge(old)


def test_a_rule_that_is_refused_leaves_the_sockets_theirs(
    load: Load, made: list[Any], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    supervisor = Supervisor()
    made.append(supervisor)
    supervisor.apply(spec(load, port, collector.port, workers=2))
    traffic = Traffic(port, collector)
    made.insert(0, traffic)
    traffic.flow()

    def refuse(group: RingGroup) -> None:
        raise OSError(12, "no memory")

    with monkeypatch.context() as patch:
        patch.setattr(RingGroup, "take", refuse)
        supervisor.apply(spec(load, port, collector.port, workers=2, listener=RING))
        traffic.flow()
    supervisor.apply(spec(load, port, collector.port, workers=2, listener=RING))  # now it can
    (state,) = supervisor._running.listeners.values()
    assert all(group.taking for group in state.rings.values())
    traffic.flow()
    traffic.judge(supervisor)


def test_a_worker_that_hangs_does_not_stop_the_change(
    load: Load, made: list[Any], collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rings are given back, and what was asked for is done as soon as the worker answers."""
    port = free_port()
    supervisor = Supervisor()
    made.append(supervisor)
    supervisor.apply(spec(load, port, collector.port, workers=2, listener=RING))
    exporters = Exporters(8, port)
    exporters.send(50)
    until(supervisor, exporters.sent)
    with monkeypatch.context() as patch:
        patch.setattr(changeover, "ANSWER_SECONDS", -1.0)
        supervisor.apply(spec(load, port, collector.port, workers=2))
    assert "workers hang" in caplog.text
    exporters.send(50)
    until(supervisor, exporters.sent)
    assert len(set(collector.take())) == exporters.sent
