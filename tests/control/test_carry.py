"""A process that saves and a new one that takes it up: templates known, numbers and counters go on."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from samplicator import _fastpath
from samplicator.supervisor.supervisor import Supervisor
from support.carried import Exporter, Relay, Sink, lawful
from support.hosts import Load, free_port
from support.numbered import CAPABILITIES, Collector, Exporters, spec, until
from support.process import wait_for

NAMES = ("all", "third", "m1", "m2")
GAUGES = set(_fastpath.FLOW_COUNTER_GAUGES)


class Stand:
    """A configuration, exporters that go on, collectors that stay."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.port = free_port()
        self.sinks = {name: Sink() for name in NAMES}
        # a port of its own, so that a collector sees the same sessions after a restart
        self.sources = {name: f'source = "127.0.0.1:{free_port()}"\n' for name in NAMES}
        self.exporters = [Exporter(number, self.port) for number in range(10)]
        self.sent = 0

    def relay(
        self, workers: int = 1, receive: str = "recvmmsg", listener: str = "in", rule: str = '"all", "third", "p"'
    ) -> Relay:
        receivers = "".join(
            f'[[receiver]]\nname = "{name}"\nto = "127.0.0.1:{sink.port}"\nprobe = "off"\n{self.sources.get(name, "")}'
            + ("freq = 3\n" if name == "third" else "")
            for name, sink in self.sinks.items()
        )
        config = self.directory / "samplicator.toml"
        config.write_text(
            f'[service]\nhttp = ""\ncontrol = ""\n[datapath]\nworkers = {workers}\n'
            f'[[listener]]\nname = "{listener}"\nlisten = ["127.0.0.1:{self.port}"]\n'
            f'receive = "{receive}"\n{receivers}'
            f'[[pool]]\nname = "p"\nmembers = ["m1", "m2"]\n[[rule]]\nto = [{rule}]\n'
        )
        return Relay(config, self.state)

    def teach(self) -> None:
        for exporter in self.exporters:
            exporter.teach()
        self.sent += len(self.exporters)

    def send(self, count: int) -> None:
        for _ in range(count):
            for exporter in self.exporters:
                exporter.send()
            self.sent += len(self.exporters)

    def close(self) -> None:
        for each in (*self.sinks.values(), *self.exporters):
            each.sock.close()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def counted(said: dict[str, Any]) -> dict[str, Any]:
    """All that only grows and is about traffic."""
    readings = said["readings"]
    flow = readings["flow"]
    return {
        "listeners": {r["name"]: (r["counters"], r["batch_counts"], r["kernel_drops"]) for r in readings["listeners"]},
        "receivers": {r["name"]: (r["counters"], r["takeovers"]) for r in readings["receivers"]},
        "latency": (readings["latency_counts"], readings["latency_sum_ns"]),
        "flow": {name: n for name, n in flow["counters"].items() if name not in GAUGES},
        **{name: flow[name] for name in ("datagrams", "malformed", "lost", "restarts")},
    }


def quiet(said: dict[str, Any]) -> dict[str, Any]:
    """The same but for what looking for datagrams counts."""
    found = counted(said)
    for counters, _, _ in found["listeners"].values():
        for name in ("errors_again", "errors_intr"):
            del counters[name]
    return found


def ledger(said: dict[str, Any]) -> dict[tuple[str, int, int], tuple[Any, ...]]:
    return {
        (s["address"], s["port"], s["domain"]): (s["next_sequence"], s["templates"], s["options_data"], s["counters"])
        for s in said["sessions"]
    }


RING = pytest.param(2, "ring", marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root: packet sockets"))


@pytest.mark.parametrize(("workers", "receive"), [(1, "recvmmsg"), (2, "recvmmsg"), RING])
def test_a_new_process_goes_on_where_the_old_one_stopped(stand: Stand, workers: int, receive: str) -> None:
    with stand.relay(workers, receive) as first:
        stand.teach()
        stand.send(11)
        first.received(stand.sent)
        before = first.stop()
    assert stand.state.stat().st_mode & 0o777 == 0o600
    with stand.relay(workers, receive) as second:
        assert quiet(second.begun) == quiet(before)
        assert ledger(second.begun) == ledger(before)
        assert len(ledger(before)) == len(stand.exporters)
        stand.send(13)  # data only
        second.received(stand.sent)
        after = second.stop()
    assert "counters continue" in second.log
    flow = after["readings"]["flow"]
    assert flow["counters"]["domains"] == len(stand.exporters)
    assert sum(flow["lost"].values()) == sum(flow["restarts"].values()) == 0
    assert all(
        s["counters"]["lost"] == s["counters"]["pending"] == s["counters"]["unknown"] == 0 for s in after["sessions"]
    )
    received = after["readings"]["listeners"][0]["counters"]
    assert received["datagrams"] == received["matched"] == stand.sent
    assert sum(flow["datagrams"].values()) == stand.sent
    offered = {r["name"]: r["counters"]["offered"] for r in after["readings"]["receivers"]}
    assert offered["all"] == offered["third"] == stand.sent
    assert lawful(after)
    for sink in stand.sinks.values():
        sink.take()
        sink.check()
    assert stand.sinks["all"].collector.records == 24 * 5 * len(stand.exporters)
    pool = [stand.sinks["m1"].collector, stand.sinks["m2"].collector]
    assert sum(member.records for member in pool) == 24 * 5 * len(stand.exporters)


@pytest.mark.parametrize("workers", [(2, 1), (1, 3)])
def test_with_another_number_of_workers_all_is_known_to_all(stand: Stand, workers: tuple[int, int]) -> None:
    with stand.relay(workers[0]) as first:
        stand.teach()
        stand.send(5)
        first.received(stand.sent)
        before = first.stop()
    with stand.relay(workers[1]) as second:
        assert quiet(second.begun) == quiet(before)
        assert ledger(second.begun) == ledger(before)
        assert second.begun["readings"]["flow"]["counters"]["domains"] == workers[1] * len(stand.exporters)
        assert sum(s["counters"]["datagrams"] for s in second.begun["sessions"]) == stand.sent
        stand.send(8)
        second.received(stand.sent)
        after = second.stop()
    flow = after["readings"]["flow"]
    assert sum(flow["lost"].values()) == sum(flow["restarts"].values()) == 0
    assert sum(s["counters"]["datagrams"] for s in after["sessions"]) == stand.sent
    for sink in stand.sinks.values():
        sink.take()
        sink.check()


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_what_was_lost_in_between_is_counted_exactly(stand: Stand, lost: int) -> None:
    with stand.relay() as first:
        stand.teach()
        stand.send(5)
        first.received(stand.sent)
        first.stop()
    for exporter in stand.exporters:
        exporter.send(lost, lost=True)
    with stand.relay() as second:
        stand.send(20)
        after = second.received(stand.sent)
        found = {s["domain"]: s["counters"]["lost"] + s["counters"]["pending"] for s in after["sessions"]}
        assert found == {exporter.domain: lost * exporter.unit for exporter in stand.exporters}
    for name in ("all", "third"):
        sink = stand.sinks[name]
        sink.take()
        assert sink.collector.sequence_errors == (len(stand.exporters) if lost else 0)
        assert sink.collector.unknown_sets == 0


def test_one_that_is_new_or_moved_is_told_the_templates_first(stand: Stand) -> None:
    with stand.relay() as first:
        stand.teach()
        stand.send(3)
        first.received(stand.sent)
        first.stop()
    stand.sinks["third"].sock.close()
    stand.sinks["third"] = Sink()
    stand.sinks["new"] = Sink()
    for name in ("all", "m1", "m2"):
        stand.sinks[name].take()
    with stand.relay(rule='"all", "third", "new", "p"') as second:
        for name in ("third", "new"):
            sink = stand.sinks[name]
            wait_for(
                lambda sink=sink: sink.take() * 0 + (sink.got >= len(stand.exporters)), "templates of all exporters"
            )
            assert len({key[2] for key in sink.collector.templates}) == len(stand.exporters)
        assert stand.sinks["all"].take() == 0
        stand.send(9)
        second.received(stand.sent)
        second.stop()
    for sink in stand.sinks.values():
        sink.take()
        assert sink.collector.unknown_sets == 0
    assert stand.sinks["new"].collector.records == 9 * 5 * len(stand.exporters)


@pytest.mark.parametrize("why", ["port", "rule"])
def test_one_whose_collector_cannot_know_is_told_the_templates_first(stand: Stand, why: str) -> None:
    """From another source port the collector sees new sessions; a rule that named the receiver while the process was
    away brings exporters that are new to it.
    """
    if why == "port":
        del stand.sources["third"]
    with stand.relay(rule='"all", "third", "p"' if why == "port" else '"all", "p"') as first:
        stand.teach()
        stand.send(3)
        first.received(stand.sent)
        first.stop()
    before = {name: sink.take() for name, sink in stand.sinks.items()}
    assert (before["third"] == 0) == (why == "rule")
    seen = stand.sinks["third"].got
    with stand.relay() as second:
        sink = stand.sinks["third"]
        wait_for(lambda: sink.take() * 0 + (sink.got >= seen + len(stand.exporters)), "templates of all exporters")
        assert stand.sinks["all"].take() == 0
        second.stop()
    assert len({key[2] for key in sink.collector.templates}) == len(stand.exporters)


def test_what_is_not_named_any_more_is_dropped(stand: Stand) -> None:
    with stand.relay() as first:
        stand.teach()
        stand.send(3)
        first.received(stand.sent)
        first.stop()
    stand.sinks["fresh"] = stand.sinks.pop("all")
    with stand.relay(listener="other", rule='"fresh", "third", "p"') as second:
        readings = second.begun["readings"]
        assert second.begun["sessions"] == []
        assert readings["listeners"][0]["counters"]["datagrams"] == 0
        offered = {r["name"]: r["counters"]["offered"] for r in readings["receivers"]}
        assert offered["fresh"] == 0
        assert offered["third"] == stand.sent


def test_after_a_crash_the_cache_is_there_and_counters_begin_at_zero(stand: Stand) -> None:
    with stand.relay() as first:
        stand.teach()
        stand.send(5)
        first.received(stand.sent)
        first.ask("save")
        stand.send(2)
        first.received(stand.sent)
        first.kill()
    stand.sinks["all"].take()
    with stand.relay() as second:
        readings = second.begun["readings"]
        assert readings["listeners"][0]["counters"]["datagrams"] == 0
        assert all(not any(r["counters"].values()) for r in readings["receivers"])
        assert readings["flow"]["counters"]["domains"] == len(stand.exporters)
        stand.send(4)
        second.received(4 * len(stand.exporters))
        after = second.stop()
    assert "begin at zero" in second.log
    assert all(s["counters"]["unknown"] == 0 for s in after["sessions"])
    sink = stand.sinks["all"]
    sink.take()
    sink.check()
    assert sink.collector.records == 11 * 5 * len(stand.exporters)


def test_the_last_word_is_taken_up_once(stand: Stand) -> None:
    """What crashed right after it took it up has been scraped: nobody may begin there again."""
    with stand.relay() as first:
        stand.teach()
        first.received(stand.sent)
        first.stop()
    with stand.relay() as second:
        assert second.begun["readings"]["listeners"][0]["counters"]["datagrams"] == stand.sent
        second.kill()
    with stand.relay() as third:
        assert third.begun["readings"]["listeners"][0]["counters"]["datagrams"] == 0
        assert third.begun["readings"]["flow"]["counters"]["domains"] == len(stand.exporters)


@pytest.mark.parametrize("what", ["truncated", "foreign", "empty", "version", "damaged"])
def test_what_cannot_be_used_is_ignored_with_one_line(stand: Stand, what: str) -> None:
    with stand.relay() as first:
        stand.teach()
        first.received(stand.sent)
        first.stop()
        lines = len(first.log.splitlines())
    whole = stand.state.read_bytes()
    middle = len(whole) // 2
    stand.state.write_bytes(
        {
            "truncated": whole[:-1],
            "foreign": b"[service]\nhttp = ''\n" * 40,
            "empty": b"",
            "version": whole.replace(b"state 1", b"state 7", 1),
            "damaged": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :],
        }[what]
    )
    with stand.relay() as second:
        assert second.begun["sessions"] == []
        assert second.begun["readings"]["listeners"][0]["counters"]["datagrams"] == 0
        stand.teach()
        second.received(len(stand.exporters))
        if what == "foreign":
            second.kill()
        else:
            second.stop()
            assert stand.state.read_bytes().startswith(b"samplicator state 1 final")
    said = [line for line in second.log.splitlines() if "state file" in line]
    assert len(said) == 1, second.log
    assert "ignored" in said[0]
    assert len(second.log.splitlines()) <= lines + 1


# ---------------------------------------------------------------------- in this process


def test_a_file_that_is_not_ours_is_not_written_over(
    load: Load, collector: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "precious"
    state.write_text("somebody else's")
    supervisor = Supervisor(state_file=str(state))
    try:
        supervisor.apply(spec(load, free_port(), collector.port))
        assert len([r for r in caplog.records if "precious" in r.getMessage()]) == 1
        with pytest.raises(FileExistsError, match="it is not replaced"):
            supervisor.save_state()
    finally:
        supervisor.drain_and_stop(0.5)
    assert state.read_text() == "somebody else's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "samplicator.toml"]


def test_countdowns_go_on(load: Load, collector: Collector, tmp_path: Path) -> None:
    """freq takes every third of all datagrams, whoever restarts in between."""
    port = free_port()
    exporters = Exporters(1, port)
    for _ in range(5):
        supervisor = Supervisor(state_file=str(tmp_path / "state"))
        try:
            supervisor.apply(spec(load, port, collector.port, receiver="freq = 3"))
            exporters.send(2)
            wait_for(lambda s=supervisor, n=exporters.sent: offered(s) == n, "all copies")
        finally:
            supervisor.drain_and_stop(2)
        assert supervisor.save_state() is not None
    assert collector.take() == [0, 3, 6, 9]


def offered(supervisor: Supervisor) -> int:
    return supervisor.view.readings().receivers[0].counters["offered"]


def test_a_plan_that_fails_takes_nothing_up(load: Load, collector: Collector, tmp_path: Path) -> None:
    """The file is still the last word when the service could not start."""
    port = free_port()
    state = tmp_path / "state"
    supervisor = Supervisor(state_file=str(state))
    supervisor.apply(spec(load, port, collector.port))
    Exporters(3, port).send(4)
    until(supervisor, 12)
    supervisor.drain_and_stop(2)
    supervisor.save_state()
    failing = Supervisor(state_file=str(state), descriptor_limit=3)
    with pytest.raises(OSError, match="descriptors"):
        failing.apply(spec(load, port, collector.port))
    assert failing.save_state() is None
    again = Supervisor(state_file=str(state))
    try:
        again.apply(spec(load, port, collector.port))
        assert offered(again) == 12
        assert again.view.received() == 0  # of these sockets
        assert again.view.readings().listeners[0].counters["datagrams"] == 12
    finally:
        again.drain_and_stop(0.5)


def test_saving_while_it_runs(load: Load, collector: Collector, tmp_path: Path) -> None:
    """Many times under load: every file is whole, laws hold in it, and nothing is lost."""
    port = free_port()
    exporters = Exporters(40, port)
    supervisor = Supervisor(state_file=str(tmp_path / "state"))
    supervisor.apply(spec(load, port, collector.port, workers=2))
    end = time.monotonic() + 1.5
    saves = 0
    while time.monotonic() < end or saves < 3:
        exporters.send(3)
        assert supervisor.save_state() is not None
        saves += 1
    until(supervisor, exporters.sent)
    supervisor.drain_and_stop(2)
    supervisor.save_state()
    again = Supervisor(state_file=str(tmp_path / "state"))
    try:
        again.apply(spec(load, port, collector.port, workers=2))
        assert offered(again) == exporters.sent
    finally:
        again.drain_and_stop(0.5)
    assert CAPABILITIES
