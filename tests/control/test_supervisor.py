"""The supervisor with the compiled datapath on loopback: what stays loses nothing, what fails changes nothing."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from samplicator.host import listening, ring
from samplicator.plan.planner import compile
from samplicator.plan.spec import RingMatch
from samplicator.supervisor import publish
from samplicator.supervisor.publish import WorkerStuck
from samplicator.supervisor.refusal import BuildError
from samplicator.supervisor.supervisor import Supervisor
from support.freeze import held, thread_named
from support.hosts import Load, free_port
from support.numbered import CAPABILITIES, Collector, Exporters, descriptors, in_order, spec, text, until
from support.process import wait_for


def test_workers_come_and_go_and_nothing_is_lost(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    port = free_port()
    supervisor.apply(spec(load, port, collector.port))
    exporters = Exporters(20, port)
    got: list[int] = []
    opened: list[int] = []
    for workers in (2, 3, 1, 2, 1, 1):
        exporters.send(50)
        supervisor.apply(spec(load, port, collector.port, workers=workers))
        exporters.send(50)
        got += collector.take()
        readings = supervisor.view.readings()
        assert [worker.index for worker in readings.workers] == list(range(workers))
        assert {worker.generation for worker in readings.workers} == {supervisor.view.generation}
        gc.collect()  # workers that have ended close their descriptors when they go
        opened.append(descriptors())
    assert len(got) == exporters.sent
    assert sorted(got) == sorted(set(got))
    readings = supervisor.view.readings()
    assert readings.listeners[0].counters["datagrams"] == exporters.sent
    assert readings.listeners[0].kernel_drops == 0
    assert readings.receivers[0].counters["sent"] == exporters.sent
    assert 0 < sum(readings.latency_counts) <= exporters.sent  # of large batches one in eight is timed
    assert opened[-1] == opened[-2]


def test_reloads_under_load_keep_order_and_counters(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    port = free_port()
    supervisor.apply(spec(load, port, collector.port))
    exporters = Exporters(5, port)
    stop = threading.Event()
    got: list[int] = []

    def send() -> None:
        while not stop.is_set():
            exporters.send(4)
            time.sleep(0.002)

    def take() -> None:
        while not stop.is_set():
            got.extend(collector.take())
        got.extend(collector.take())

    threads = [threading.Thread(target=send), threading.Thread(target=take)]
    for thread in threads:
        thread.start()
    before = 0
    for number in range(60):
        more = f'[[receiver]]\nname = "x{number}"\nto = "127.0.0.1:{free_port()}"\n'
        more += f'[[rule]]\nfrom = ["127.0.1.{number}"]\nto = ["x{number}"]\nlistener = ["in"]\n'
        listener = f'[[listener]]\nname = "l{number}"\nlisten = ["127.0.0.1:{free_port()}"]\n' if number % 3 else ""
        supervisor.apply(spec(load, port, collector.port, more=more, listener=listener))
        sent = supervisor.view.readings().receivers[0].counters["sent"]
        assert sent >= before
        before = sent
    stop.set()
    for thread in threads:
        thread.join(20)
    assert len(got) == exporters.sent
    assert in_order(got)
    names = [receiver.name for receiver in supervisor.view.readings().receivers]
    assert names == ["one", "x59"]


def test_what_stays_keeps_its_socket(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    port = free_port()
    supervisor.apply(spec(load, port, collector.port))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        sources = set()
        for receiver in ("", "", "ttl = 9", "ttl = 9"):
            supervisor.apply(spec(load, port, collector.port, receiver=receiver))
            exporter.sendto(bytes(20), ("127.0.0.1", port))
            sources.add(collector.sock.recvfrom(100)[1])
    assert len(sources) == 2
    wait_for(
        lambda: supervisor.view.readings().receivers[0].counters["sent"] == 4, "the last copy is counted after it left"
    )


def test_countdown_survives_reloads_and_changes(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    port = free_port()
    exporters = Exporters(1, port)
    for ttl in (64, 64, 65, 66, 66, 66):
        supervisor.apply(spec(load, port, collector.port, receiver=f"freq = 3\nttl = {ttl}"))
        exporters.send(2)
        until(supervisor, exporters.sent)
    assert collector.take() == [0, 3, 6, 9]


def test_a_receiver_that_was_away_begins_at_zero(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    port = free_port()
    more = f'[[receiver]]\nname = "two"\nto = "127.0.0.1:{collector.port}"\n[[rule]]\nto = ["two"]\n'
    supervisor.apply(spec(load, port, collector.port, more=more))
    Exporters(1, port).send(5)
    until(supervisor, 5)
    supervisor.apply(spec(load, port, collector.port))
    assert [receiver.name for receiver in supervisor.view.readings().receivers] == ["one"]
    supervisor.apply(spec(load, port, collector.port, more=more))
    counts = {receiver.name: receiver.counters["sent"] for receiver in supervisor.view.readings().receivers}
    assert counts == {"one": 5, "two": 0}
    assert supervisor.view.readings().receivers[1].generation_added == supervisor.view.generation


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: packet sockets and ingress rules")
def test_no_ring_fills_up_while_others_are_opened(
    load: Load, supervisor: Supervisor, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening one takes the kernel tens of milliseconds, and the workers get the rings with the plan."""
    seen: list[str] = []

    class Watched(ring.Ring):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            seen.append("open")

        def accept(self, matches: Sequence[RingMatch]) -> None:
            seen.append("accept")
            super().accept(matches)

        def select(self, members: int) -> None:
            seen.append(f"select {members}")
            super().select(members)

    monkeypatch.setattr(ring, "Ring", Watched)
    more = f'[[listener]]\nname = "two"\nlisten = ["127.0.0.2:{free_port()}"]\nreceive = "ring"\n'
    wanted = spec(load, free_port(), collector.port, workers=2, listener='receive = "ring"', more=more)
    supervisor.apply(wanted)
    assert seen == ["open", "select 2", "open"] * 2 + ["accept"] * 4
    supervisor.apply(wanted)
    assert len(seen) == 10


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: packet sockets and ingress rules")
@pytest.mark.parametrize(
    ("release", "beside"), [("6.1.0-37-amd64", 0), ("6.2.0", 1), ("5.10", 0), ("6.18.44-fc-v669", 1), ("10.0", 1)]
)
def test_nothing_is_coalesced_that_a_ring_cannot_hold(
    load: Load, supervisor: Supervisor, collector: Collector, monkeypatch: pytest.MonkeyPatch, release: str, beside: int
) -> None:
    """Before Linux 6.2 a ring drops what the kernel has coalesced for a socket that asked for it."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    port = free_port()

    def coalesced() -> set[int]:
        (state,) = supervisor._running.listeners.values()
        return {intake.sock.getsockopt(socket.IPPROTO_UDP, listening.UDP_GRO) for intake in state.sockets()}

    by_ring = spec(load, port, collector.port, workers=2, listener='receive = "ring"')
    for _ in range(2):
        supervisor.apply(by_ring)
        assert coalesced() == {beside}
        supervisor.apply(spec(load, port, collector.port, workers=2))
        assert coalesced() == {1}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        two = f'receive = "ring"\n[[listener]]\nname = "two"\nlisten = ["127.0.0.1:{other.getsockname()[1]}"]\n'
        with pytest.raises(BuildError):
            supervisor.apply(spec(load, port, collector.port, workers=2, listener=two))
    assert coalesced() == {1}


def test_what_cannot_be_bound_changes_nothing(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    port = free_port()
    supervisor.apply(spec(load, port, collector.port))
    before, opened = supervisor.view.readings(), descriptors()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        listener = f'[[listener]]\nname = "two"\nlisten = ["127.0.0.1:{other.getsockname()[1]}"]\n'
        with pytest.raises(BuildError, match="'two' cannot listen at") as caught:
            supervisor.apply(spec(load, port, collector.port, workers=3, listener=listener, receiver="ttl = 3"))
        assert caught.value.where == ("listener", 1)
    after = supervisor.view.readings()
    assert (after.generation, len(after.workers), [item.name for item in after.listeners]) == (
        before.generation, 1, ["in"],
    )  # fmt: skip
    assert descriptors() == opened
    exporters = Exporters(2, port)
    exporters.send(10)
    assert len(collector.take()) == 20


def test_too_many_descriptors_is_said_before_anything_is_opened(load: Load, collector: Collector) -> None:
    small = Supervisor(descriptor_limit=70)
    with pytest.raises(BuildError, match="LimitNOFILE"):
        small.apply(spec(load, free_port(), collector.port, workers=4))
    assert small.generation == 0


def test_a_removed_listener_is_drained_first(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    port, other = free_port(), free_port()
    listener = f'[[listener]]\nname = "two"\nlisten = ["127.0.0.1:{other}"]\n'
    supervisor.apply(spec(load, port, collector.port, listener=listener))
    exporters = Exporters(5, other)
    exporters.send(100)
    supervisor.apply(spec(load, port, collector.port))
    assert len(collector.take()) == 500
    assert [item.name for item in supervisor.view.readings().listeners] == ["in"]


def test_stop_forwards_what_is_queued(load: Load, collector: Collector) -> None:
    port = free_port()
    supervisor = Supervisor()
    opened = descriptors()
    supervisor.apply(spec(load, port, collector.port, workers=2))
    exporters = Exporters(10, port)
    exporters.send(200)
    supervisor.drain_and_stop(2.0)
    assert len(collector.take()) == exporters.sent
    exporters = Exporters(0, 0)
    del supervisor
    assert descriptors() <= opened + 10  # the exporters of above


WITHOUT_A_ROUTE = """
import socket, subprocess, sys, time
from samplicator.host import abilities
from samplicator.config.toml.load import load_toml
from samplicator.plan.planner import compile
from samplicator.supervisor.supervisor import Supervisor

def ip(*words):
    subprocess.run(["ip", *words], check=True)

def look():
    for _ in range(5):
        exporter.sendto(b"x", ("127.0.0.1", 2055))
    time.sleep(0.3)
    supervisor.housekeeping()
    return {r.name: r for r in supervisor.view.readings().receivers}

ip("link", "set", "lo", "up")
supervisor = Supervisor()
supervisor.apply(compile(load_toml(sys.argv[1]), {}, abilities.capabilities()))
exporter = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for r in look().values():
    assert not r.up, r
    assert r.counters["failed_no_route"] == 5 and r.counters["sent"] == 0, r
ip("addr", "add", "198.18.0.1/32", "dev", "lo")
ip("addr", "add", "2001:db8::1/128", "dev", "lo", "nodad")
sinks = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET, socket.AF_INET6)]
for sink, address in zip(sinks, (("198.18.0.1", 9), ("198.18.0.1", 10), ("2001:db8::1", 11))):
    sink.bind(address)
supervisor.housekeeping()
for r in look().values():
    assert r.up and r.counters["sent"] == 5, r
supervisor.drain_and_stop(0.5)
print("fine")
"""


@pytest.mark.netns
def test_a_receiver_without_a_route_comes_up_later(tmp_path: Path) -> None:
    """In a namespace of its own, without any route: the start does not fail, the receivers are down and counted."""
    config = tmp_path / "a.toml"
    config.write_text(
        '[service]\nhttp = ""\ncontrol = ""\n[[listener]]\nname = "in"\nlisten = ["127.0.0.1:2055"]\n'
        '[[receiver]]\nname = "udp"\nto = "198.18.0.1:9"\n[[receiver]]\nname = "spoofed"\nto = "198.18.0.1:10"\n'
        'spoof = true\n[[receiver]]\nname = "raw6"\nto = "[2001:db8::1]:11"\nengine = "raw"\n'
        '[[rule]]\nto = ["udp", "spoofed", "raw6"]\n'
    )
    argv = ["unshare", "-n", sys.executable, "-c", WITHOUT_A_ROUTE, str(config)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_a_closed_port_makes_a_receiver_down(load: Load, supervisor: Supervisor) -> None:
    port = free_port()
    supervisor.apply(spec(load, port, free_port()))
    exporters = Exporters(1, port)
    for _ in range(20):
        exporters.send(1)
        time.sleep(0.005)
    supervisor.housekeeping()
    reading = supervisor.view.readings().receivers[0]
    assert not reading.up
    assert reading.counters["failed_refused"] > 5
    counters = reading.counters
    assert counters["offered"] == counters["sent"] + sum(v for k, v in counters.items() if k.startswith("failed_"))


def test_route_of_the_running_plan(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    port = free_port()
    more = '[[rule]]\nfrom = ["10.0.0.0/8"]\nto = []\nstop = true\n'
    supervisor.apply(spec(load, port, collector.port, more=more))
    route = supervisor.view.route(bytes([10, 1, 2, 3]), listener="in")
    assert route.receivers == ("one",)
    assert len(route.rules) == 2
    assert supervisor.view.route(bytes([11, 1, 2, 3]), port=port).rule_indexes == (0,)


def test_pinning(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    cpu = CAPABILITIES.cpus[-1]
    port = free_port()
    pinned = text(port, collector.port).replace("workers = 1", f"workers = 1\ncpus = [{cpu}]")
    supervisor.apply(compile(load(pinned), {}, CAPABILITIES))
    assert supervisor.view.readings().workers[0].cpu == cpu
    supervisor.apply(spec(load, port, collector.port))
    assert supervisor.view.readings().workers[0].cpu is None


def test_idle_workers_sleep(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    supervisor.apply(spec(load, free_port(), collector.port, workers=2))
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(1.5)
    assert time.process_time() - before < 0.05
    assert supervisor.view.stuck() == ""


def test_buffers_are_reported_and_change_live(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    port = free_port()
    supervisor.apply(spec(load, port, collector.port))
    asked, granted = supervisor.view.grants()["in"]
    assert asked == 4 << 20
    assert granted == supervisor.view.readings().listeners[0].buffer_bytes // 2
    smaller = text(port, collector.port).replace("4MiB", "64KiB")
    supervisor.apply(compile(load(smaller), {}, CAPABILITIES))
    assert supervisor.view.grants()["in"] == (64 << 10, 64 << 10)
    assert supervisor.view.readings().listeners[0].buffer_bytes == 128 << 10


def test_a_worker_that_hangs_is_reported_and_nothing_it_uses_is_closed(
    load: Load, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's thread is held here, as a hanging system call would."""
    monkeypatch.setattr(publish, "ADOPT_SECONDS", 0.3)
    supervisor = Supervisor()
    port = free_port()
    supervisor.apply(spec(load, port, collector.port))
    exporters = Exporters(1, port)
    exporters.send(1)
    gc.collect()  # workers of other tests, which close their descriptors when they go
    with held(thread_named(os.getpid(), "sampl-worker-0")):
        opened = descriptors()
        with pytest.raises(WorkerStuck, match="worker 0"):
            supervisor.apply(spec(load, port, collector.port, receiver="ttl = 9"))
        assert descriptors() == opened + 1  # the new way, and the old one still
        opened -= 2  # pipes to the other process
    monkeypatch.setattr(publish, "ADOPT_SECONDS", 10.0)
    supervisor.apply(spec(load, port, collector.port, receiver="ttl = 9"))
    assert descriptors() == opened
    exporters.send(3)
    assert collector.take() == [0, 1, 2, 3]
    supervisor.drain_and_stop(0.5)


def test_a_dual_stack_listener_makes_room_for_an_ipv4_one(
    load: Load, supervisor: Supervisor, collector: Collector
) -> None:
    port = free_port()
    wide = text(port, collector.port).replace(f"127.0.0.1:{port}", f"[::]:{port}")
    both = wide.replace(f'"[::]:{port}"', f'"[::]:{port}", "0.0.0.0:{port}"')
    exporters = Exporters(3, port)
    for config in (wide, both, wide, both):
        supervisor.apply(compile(load(config), {}, CAPABILITIES))
        exporters.send(20)
        until(supervisor, exporters.sent, 1)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
            six.sendto(bytes(8), ("::1", port))
        assert len(collector.take()) == 61
    assert len(supervisor.view.readings().listeners[0].sockets) == 2
    assert supervisor.view.readings().listeners[0].counters["datagrams"] == 4 * 61


def test_the_wall_clock_makes_no_worker_stuck(
    load: Load, supervisor: Supervisor, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.apply(spec(load, free_port(), collector.port))
    real, real_ns = time.time, time.time_ns
    for step in (-5, 25 * 3600, 50 * 86400):
        monkeypatch.setattr(time, "time", lambda step=step: real() + step)
        monkeypatch.setattr(time, "time_ns", lambda step=step: real_ns() + step * 10**9)
        assert supervisor.view.stuck() == ""
        heartbeat = supervisor.view.readings().workers[0].counters["heartbeat_ns"]
        assert abs(heartbeat / 1e9 - time.time()) < 60, "shown by the wall clock as it is now"


def test_the_life_of_templates_follows_a_reload(load: Load, supervisor: Supervisor, collector: Collector) -> None:
    port = free_port()
    lives = text(port, collector.port).replace("workers = 1", "workers = 1\ntemplate_life_minutes = 3")
    lives_spec = compile(load(lives), {}, CAPABILITIES)
    assert lives_spec.template_life_minutes == 3
    supervisor.apply(spec(load, port, collector.port))
    supervisor.apply(lives_spec)
    assert supervisor._running.flows._life_ms == 180_000
