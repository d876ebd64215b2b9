"""Listeners and receivers behind doors under the supervisor, with a gateway that gives back what it gets.

A chain: UDP in -> receiver `out`, behind a door -> the gateway -> listener `back`, a door -> receiver `one`, UDP again.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from samplicator.datapath.doors import GONE, STALLED
from samplicator.health.probes import UNREACHABLE, UP
from samplicator.plan.sessions import Door, DoorSpec
from samplicator.plan.spec import ListenerSpec, PlanSpec, PoolSpec, ProbeSpec, ReceiverSpec
from samplicator.readings import ListenerReading, ReceiverReading
from samplicator.supervisor.refusal import BuildError
from samplicator.supervisor.supervisor import Supervisor
from support.gateway import Loopback
from support.hosts import Load, free_port
from support.numbered import Collector, Exporters, descriptors, spec
from support.worker import wait_until

OFF = ProbeSpec("off")
BACK = ListenerSpec(1, "back", (DoorSpec("loop"),), receive="door", receive_why="from a gateway")


def chain(load: Load, port: int, to: int, *, workers: int = 1, **policy: object) -> PlanSpec:
    """policy: of the receiver behind the door."""
    made = spec(load, port, to, workers=workers)
    rule = made.rules[0]
    out = ReceiverSpec("out", Door("loop"), probe=OFF, **policy)  # type: ignore[arg-type]
    rules = (replace(rule, listeners=(0,), receivers=(1,)), replace(rule, listeners=(1,), receivers=(0,)))
    return replace(made, listeners=(*made.listeners, BACK), receivers=(*made.receivers, out), rules=rules)


class Bench:
    def __init__(self) -> None:
        self.loop = Loopback()
        self.supervisor = Supervisor(gateways={"loop": self.loop})

    def receiver(self, name: str) -> ReceiverReading:
        return next(item for item in self.supervisor.view.readings().receivers if item.name == name)

    def listener(self, name: str) -> ListenerReading:
        return next(item for item in self.supervisor.view.readings().listeners if item.name == name)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def looked() -> bool:
            self.supervisor.look()
            return condition()

        wait_until(looked, what, 20)

    def laws(self) -> None:
        readings = self.supervisor.view.readings()
        for listener in readings.listeners:
            c = listener.counters
            assert c["datagrams"] == c["truncated"] + c["unmatched"] + c["denied"] + c["matched"]
        for receiver in readings.receivers:
            c = receiver.counters
            dropped = sum(value for name, value in c.items() if name.startswith("failed_"))
            assert c["offered"] == c["skipped"] + c["sent"] + dropped


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.supervisor.drain_and_stop(0.5)
    made.loop.close()
    made.laws()


@pytest.mark.parametrize("workers", [1, 2])
def test_there_and_back(bench: Bench, load: Load, collector: Collector, workers: int) -> None:
    port = free_port()
    bench.supervisor.apply(chain(load, port, collector.port, workers=workers))
    exporters = Exporters(5, port)
    exporters.send(200)
    bench.until(lambda: bench.receiver("one").counters["sent"] == 1000, "a thousand copies")
    assert sorted(collector.take()) == sorted(session << 32 | n for session in range(5) for n in range(200))
    assert bench.loop.through == bench.listener("back").counters["matched"] == bench.receiver("out").counters["sent"]
    out, back = bench.receiver("out"), bench.listener("back")
    assert (out.engine, out.address, out.place, out.state) == ("door", "loop", "gateway loop", UP)
    assert (back.state, back.up, back.receive, back.kernel_drops) == ("up", True, "door", 0)
    assert back.buffer_bytes > 0


def test_freq_and_by_exporter_hold(bench: Bench, load: Load, collector: Collector) -> None:
    port = free_port()
    bench.supervisor.apply(chain(load, port, collector.port, freq=4))
    Exporters(3, port).send(100)
    bench.until(lambda: bench.receiver("out").counters["offered"] == 300, "all copies")
    counters = bench.receiver("out").counters
    assert (counters["sent"], counters["skipped"]) == (75, 225)
    bench.until(lambda: bench.loop.through == 75, "what is kept")


def test_what_stays_keeps_its_doors_over_a_reload(bench: Bench, load: Load, collector: Collector) -> None:
    port = free_port()
    bench.supervisor.apply(chain(load, port, collector.port, workers=2))
    exporters = Exporters(4, port)
    exporters.send(50)
    wait_until(lambda: bench.loop.doors == 4, "the doors to be taken over")
    before = list(bench.supervisor._running.receivers["out"].ways)
    bench.supervisor.apply(chain(load, port, collector.port, workers=2, needed=True))
    exporters.send(50)
    bench.until(lambda: bench.receiver("one").counters["sent"] == 400, "all copies")
    assert (bench.loop.doors, bench.supervisor._running.receivers["out"].ways) == (4, before)
    bench.supervisor.apply(chain(load, port, collector.port, workers=1))
    exporters.send(50)
    bench.until(lambda: bench.receiver("one").counters["sent"] == 600, "all copies with one worker")
    made = chain(load, port, collector.port)
    gone = replace(made, listeners=made.listeners[:1], receivers=made.receivers[:1], rules=made.rules[:0])
    bench.supervisor.apply(gone)
    bench.until(lambda: bench.loop.doors <= 2, "the gateway to learn that the receiver is gone")


def test_a_plan_that_fails_leaves_no_door(bench: Bench, load: Load, collector: Collector) -> None:
    port = free_port()
    made = chain(load, port, collector.port)
    lost = replace(made.receivers[1], delivery=Door("nowhere"))
    deaf = replace(BACK, intakes=(DoorSpec("nowhere"),))
    counts = []
    for _ in range(3):  # the first makes what lasts
        with pytest.raises(BuildError, match=r"gateway nowhere.*there is no gateway 'nowhere'"):
            bench.supervisor.apply(replace(made, receivers=(made.receivers[0], lost)))
        with pytest.raises(BuildError, match=r"'back'.*there is no gateway 'nowhere'"):
            bench.supervisor.apply(replace(made, listeners=(made.listeners[0], deaf)))
        bench.loop.close_ended()
        gc.collect()  # workers that never ran
        counts.append(descriptors())
    assert counts[1] == counts[2]


def test_a_gateway_that_stops_reading_is_a_state_and_a_count(bench: Bench, load: Load, collector: Collector) -> None:
    """A standby takes over, and waits again when the gateway reads."""
    port = free_port()
    made = chain(load, port, collector.port, needed=True)
    made = replace(
        made,
        send_buffer=1 << 18,
        receivers=(replace(made.receivers[0], standby_for="out"), made.receivers[1]),
        rules=(replace(made.rules[0], receivers=(1, 0)),),
    )
    bench.supervisor.apply(made)
    exporters = Exporters(1, port)
    bench.loop.hold(True)
    time.sleep(0.1)

    def stalled() -> bool:
        exporters.send(100)
        return bench.receiver("out").state != UP

    bench.until(stalled, "the stall to show")
    out = bench.receiver("out")
    assert (out.state, out.state_why) == (UNREACHABLE, STALLED)
    assert out.counters["failed_no_buffer_space"] > 0
    assert bench.receiver("one").takeovers == 1
    bench.loop.hold(False)
    bench.until(lambda: bench.receiver("out").state == UP, "the gateway to be seen reading")
    bench.until(lambda: bench.receiver("one").waiting, "the standby to wait again")
    bench.until(lambda: bench.loop.through == bench.receiver("out").counters["sent"], "what the queue held")


def test_a_gateway_that_ends_is_a_state_and_is_handed_new_doors(bench: Bench, load: Load, collector: Collector) -> None:
    port = free_port()
    made = chain(load, port, collector.port)
    bench.supervisor.apply(made)
    exporters = Exporters(1, port)
    exporters.send(10)
    bench.until(lambda: bench.receiver("one").counters["sent"] == 10, "ten copies")
    bench.loop.drop_doors()
    bench.until(lambda: bench.receiver("out").state != UP, "the end to show")
    assert (bench.receiver("out").state, bench.receiver("out").state_why) == (UNREACHABLE, GONE)
    bench.until(lambda: bench.listener("back").state == "down", "the listener's end to show")
    assert bench.listener("back").state_why.startswith(GONE)
    exporters.send(10)
    bench.until(lambda: bench.receiver("out").counters["failed_no_buffer_space"] == 10, "ten copies lost")
    assert bench.supervisor.housekeeping() == ("out", "back")
    bench.supervisor.apply(made)
    exporters.send(10)
    bench.until(lambda: bench.receiver("one").counters["sent"] == 20, "copies after the new doors")
    assert (bench.receiver("out").state, bench.listener("back").state) == (UP, "up")
    assert bench.supervisor.housekeeping() == ()


def test_members_of_a_pool_behind_doors_keep_their_exporters(bench: Bench, load: Load, collector: Collector) -> None:
    port = free_port()
    made = chain(load, port, collector.port)
    other = ReceiverSpec("other", Door("loop"), probe=OFF)
    pool = PoolSpec("both", "exporter-hash", ((1, 1), (2, 1)))
    made = replace(
        made,
        receivers=(*made.receivers, other),
        rules=(replace(made.rules[0], receivers=(), pools=(0,)), made.rules[1]),
        pools=(pool,),
    )
    bench.supervisor.apply(made)
    exporters = Exporters(16, port)
    exporters.send(20)
    bench.until(lambda: bench.receiver("one").counters["sent"] == 320, "all copies")
    shares = [bench.receiver(name).counters["sent"] for name in ("out", "other")]
    assert sum(shares) == 320
    assert all(share % 20 == 0 for share in shares)
    assert sorted(collector.take()) == sorted(session << 32 | n for session in range(16) for n in range(20))
