"""The reloader over a supervisor that only remembers: what fails changes nothing, triggers are shared."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from samplicator.config.model.loaded import Loaded
from samplicator.errors import ConfigError, Problem
from samplicator.host.resolve import Resolver
from samplicator.plan.spec import PlanSpec, ResolvedAddress
from samplicator.supervisor import reload as reload_module
from samplicator.supervisor.publish import WorkerStuck
from samplicator.supervisor.refusal import BuildError
from samplicator.supervisor.reload import CHANGED_FILE, Reloader
from support.hosts import Load, host

TEXT = """
[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
[[receiver]]
name = "{name}"
to = "{to}"
[[rule]]
to = ["{name}"]
"""


class Runs:
    """A supervisor without sockets."""

    def __init__(self) -> None:
        self.generation = 0
        self.specs: list[PlanSpec] = []
        self.error: Exception | None = None
        self.inside = 0
        self.gate = threading.Event()
        self.gate.set()

    def apply(self, spec: PlanSpec) -> None:
        self.inside += 1
        assert self.inside == 1, "two at a time"
        self.gate.wait(5)
        self.inside -= 1
        if self.error is not None:
            raise self.error
        self.generation += 1
        self.specs.append(spec)


class Bench:
    """A reloader whose configuration is whatever `source` returns."""

    def __init__(self, source: Callable[[], Loaded]) -> None:
        self.source = source
        self.loads = 0
        self.runs = Runs()
        self.addresses = [ResolvedAddress(bytes([192, 0, 2, 1]))]
        self.resolver = Resolver(lambda name, family: tuple(self.addresses), max_age=0)
        self.events: list[str] = []
        self.reloader = Reloader(
            self.load,
            self.runs,
            self.resolver,
            host,
            begins=lambda: self.events.append("begin"),
            ended=lambda result: self.events.append(f"end {result.ok}"),
        )

    def load(self) -> Loaded:
        self.loads += 1
        return self.source()


def drive(bench_source: Callable[[], Loaded], story: Callable[[Bench], Coroutine[Any, Any, None]]) -> Bench:
    async def main() -> Bench:
        bench = Bench(bench_source)
        await bench.reloader.start(bench_source())
        await story(bench)
        bench.reloader.close()
        return bench

    return asyncio.run(main())


def test_start_is_no_reload(load: Load) -> None:
    async def story(bench: Bench) -> None:
        assert (bench.reloader.reloads_total, bench.reloader.failures_total, bench.reloader.last_successful) == (
            0,
            0,
            True,
        )
        assert bench.reloader.last_success_timestamp > 0
        assert bench.reloader.config_hash == int(load(TEXT.format(name="a", to="192.0.2.1:1")).text_hash[:12], 16)
        assert 0 < bench.reloader.config_hash < 1 << 48

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)


def test_reload_says_what_changed(load: Load) -> None:
    async def story(bench: Bench) -> None:
        bench.source = lambda: load(TEXT.format(name="b", to="192.0.2.2:2"))
        result = await bench.reloader.reload("test")
        assert result.ok
        assert (result.generation, result.problems) == (2, ())
        assert "+b" in result.diff
        assert "-a" in result.diff
        assert bench.runs.specs[-1].receivers[0].name == "b"
        assert bench.events == ["begin", "end True"]
        assert bench.reloader.loaded is not None
        assert bench.reloader.loaded.config.receiver[0].name == "b"

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)


def broken_file() -> Loaded:
    raise ConfigError([Problem("x.toml", 3, "receiver[0].to", "is wrong"), Problem("x.toml", 9, "", "is too")])


def missing_file() -> Loaded:
    raise FileNotFoundError(2, "No such file or directory", "x.toml")


@pytest.mark.parametrize(
    ("source", "problems"),
    [
        (broken_file, ("x.toml:3: receiver[0].to: is wrong", "x.toml:9: is too")),
        (missing_file, ("[Errno 2] No such file or directory: 'x.toml'",)),
    ],
)
def test_what_cannot_be_read_changes_nothing(
    load: Load, source: Callable[[], Loaded], problems: tuple[str, ...]
) -> None:
    async def story(bench: Bench) -> None:
        before = bench.reloader.loaded, bench.reloader.spec, bench.reloader.config_hash
        succeeded = bench.reloader.last_success_timestamp
        bench.source = source
        result = await bench.reloader.reload("test")
        assert not result.ok
        assert result.problems == problems
        assert (result.generation, len(bench.runs.specs)) == (1, 1)
        assert (bench.reloader.loaded, bench.reloader.spec, bench.reloader.config_hash) == before
        assert bench.reloader.last_success_timestamp == succeeded
        assert (bench.reloader.reloads_total, bench.reloader.failures_total) == (1, 1)
        assert not bench.reloader.last_successful
        bench.source = lambda: load(TEXT.format(name="a", to="192.0.2.1:1"))
        assert (await bench.reloader.reload("test")).ok
        assert bench.reloader.last_successful

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)


def test_what_the_kernel_refuses_is_reported_with_its_line(load: Load) -> None:
    async def story(bench: Bench) -> None:
        bench.runs.error = BuildError(98, "listener 'in' cannot listen at 0.0.0.0:2055: in use", ("listener", 0))
        result = await bench.reloader.reload("test")
        assert len(result.problems) == 1
        assert ".toml:" in result.problems[0]
        assert result.problems[0].endswith("listener[0]: listener 'in' cannot listen at 0.0.0.0:2055: in use")

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)


def test_a_defect_is_a_failed_reload_too(load: Load) -> None:
    async def story(bench: Bench) -> None:
        bench.runs.error = ZeroDivisionError("oops")
        assert (await bench.reloader.reload("test")).problems == ("oops",)

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)


def test_triggers_that_meet_share_one_reload(load: Load) -> None:
    async def story(bench: Bench) -> None:
        bench.runs.gate.clear()
        first = asyncio.create_task(bench.reloader.reload("first"))
        while not bench.runs.inside:
            await asyncio.sleep(0.001)
        later = [asyncio.create_task(bench.reloader.reload(f"later {n}")) for n in range(20)]
        await asyncio.sleep(0.05)
        bench.runs.gate.set()
        results = await asyncio.gather(first, *later)
        assert all(result.ok for result in results)
        assert bench.loads == 2  # the one that ran, and one that began after every trigger
        assert {result.generation for result in results[1:]} == {3}

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)


def test_a_caller_that_goes_away_stops_nothing(load: Load) -> None:
    async def story(bench: Bench) -> None:
        bench.runs.gate.clear()
        task = asyncio.create_task(bench.reloader.reload("gone"))
        while not bench.runs.inside:
            await asyncio.sleep(0.001)
        task.cancel()
        bench.runs.gate.set()
        assert (await bench.reloader.reload("next")).generation == 3

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)


def test_replan_takes_new_addresses_and_reads_no_file(load: Load) -> None:
    async def story(bench: Bench) -> None:
        bench.source = broken_file  # the file is being edited: a name that moves must not mind
        bench.addresses = [ResolvedAddress(bytes([192, 0, 2, 7]))]
        assert bench.resolver.refresh() == ["c.example"]
        assert (await bench.reloader.replan("name")).ok
        assert bench.runs.specs[-1].receivers[0].udp.address == bytes([192, 0, 2, 7])
        assert (bench.loads, bench.reloader.reloads_total) == (0, 0)

    drive(lambda: load(TEXT.format(name="a", to="c.example:1")), story)


def test_two_hundred_reloads_are_quick(load: Load) -> None:
    """By what is called for one, which no machine changes; the last one does no more than the first ones."""
    calls = [0]

    def called(frame: object, event: str, what: object) -> None:
        calls[-1] += event in ("call", "c_call")

    async def story(bench: Bench) -> None:
        for number in range(200):
            bench.source = lambda n=number: load(TEXT.format(name=f"r{n}", to="192.0.2.1:1"))  # type: ignore[misc]
            calls.append(0)
            assert (await bench.reloader.reload("loop")).ok
        assert bench.reloader.reloads_total == 200

    threading.setprofile(called)  # of the threads that begin from now on; this one only waits for them
    try:
        drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)
    finally:
        threading.setprofile(None)
    assert max(calls[100:]) < 1.2 * max(calls[1:20])
    assert max(calls) < 5000  # about 1650 now


def test_a_reload_that_fails_after_the_publish_says_so(load: Load) -> None:
    """A worker that hangs: the new plan runs on the others, so "nothing has changed" would be a lie."""

    async def story(bench: Bench) -> None:
        def apply(spec: PlanSpec) -> None:
            bench.runs.generation += 1
            bench.runs.specs.append(spec)
            raise WorkerStuck("worker 1 has not adopted plan 2")

        bench.runs.apply = apply  # type: ignore[method-assign]
        bench.source = lambda: load(TEXT.format(name="b", to="192.0.2.2:2"))
        result = await bench.reloader.reload("test")
        assert (result.ok, result.published, result.generation) == (False, True, 2)
        assert result.problems == ("worker 1 has not adopted plan 2",)
        assert bench.reloader.spec is bench.runs.specs[-1]  # what runs is what is remembered
        assert bench.reloader.loaded is not None
        assert bench.reloader.loaded.config.receiver[0].name == "b"

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)


def test_what_is_said_of_a_failed_reload(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    async def story(bench: Bench) -> None:
        bench.runs.error = OSError(24, "Too many open files")
        assert not (await bench.reloader.reload("one")).published
        bench.runs.error = None

        def apply(spec: PlanSpec) -> None:
            bench.runs.generation += 1
            raise WorkerStuck("hangs")

        bench.runs.apply = apply  # type: ignore[method-assign]
        assert (await bench.reloader.replan("two")).published

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)
    said = [record.message for record in caplog.records if "failed" in record.message]
    assert said[0].startswith("reload (one) failed, the running plan stays: ")
    assert said[1] == "new plan (two) failed, but plan 2 already runs: hangs"


class Saving:
    """A file that an editor saves in pieces: the first readings find faults."""

    def __init__(self, load: Load, bad: int) -> None:
        self.good = load(TEXT.format(name="b", to="192.0.2.2:2"))
        self.bad = bad

    def __call__(self) -> Loaded:
        self.bad -= 1
        return broken_file() if self.bad >= 0 else self.good


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_module, "SECOND_LOOK_SECONDS", 0.1)


def test_a_file_saved_by_halves_is_no_failed_reload(load: Load, quick: None, caplog: pytest.LogCaptureFixture) -> None:
    async def story(bench: Bench) -> None:
        bench.source = Saving(load, 1)
        result = await bench.reloader.reload(CHANGED_FILE)
        assert result.ok
        assert (bench.reloader.reloads_total, bench.reloader.failures_total) == (1, 0)
        assert bench.events.count("end True") == 1

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)
    said = [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert [text for text in said if "copies are not spoofed" not in text] == []  # that is of the configuration


def test_a_changed_file_that_stays_broken_is_one_error(
    load: Load, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(bench: Bench) -> None:
        bench.source = broken_file
        result = await bench.reloader.reload(CHANGED_FILE)
        assert not result.ok
        assert len(result.problems) == 2
        assert (bench.reloader.reloads_total, bench.reloader.failures_total) == (1, 1)

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)
    assert [record.levelname for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == ["ERROR"]


def test_who_asks_for_a_reload_does_not_wait_for_an_editor(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_module, "SECOND_LOOK_SECONDS", 30.0)

    async def story(bench: Bench) -> None:
        bench.source = broken_file
        changed = asyncio.create_task(bench.reloader.reload(CHANGED_FILE))
        while bench.reloader._looking is None:
            await asyncio.sleep(0.001)
        async with asyncio.timeout(10):
            assert len((await bench.reloader.reload("SIGHUP")).problems) == 2
            assert len((await changed).problems) == 2
        assert bench.reloader.reloads_total == 1

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)


def test_a_file_that_goes_on_being_written_is_waited_for(load: Load, quick: None) -> None:
    async def story(bench: Bench) -> None:
        bench.source = Saving(load, 3)
        changed = asyncio.create_task(bench.reloader.reload(CHANGED_FILE))
        for _ in range(2):
            while bench.reloader._looking is None or bench.reloader._written_again:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            asyncio.create_task(bench.reloader.reload(CHANGED_FILE))  # noqa: RUF006
            await asyncio.sleep(0.01)
        result = await changed
        assert result.ok, result
        assert bench.reloader.failures_total == 0

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)


def test_a_host_that_changed_makes_a_new_plan_and_one_that_did_not_makes_none(load: Load) -> None:
    interfaces: dict[str, int] = {}

    async def story(bench: Bench) -> None:
        bench.reloader._capabilities = lambda: replace(host(), interface_index=lambda name: interfaces.get(name, 0))
        await bench.reloader.follow("events")
        assert len(bench.runs.specs) == 1
        interfaces["v7"] = 12
        await bench.reloader.follow("events")
        assert (bench.runs.specs[-1].receivers[0].udp.scope_id, bench.runs.specs[-1].follows_host) == (12, True)
        assert bench.runs.specs[-1].receivers[0].missing == ""
        await bench.reloader.follow("events")
        assert len(bench.runs.specs) == 2
        assert bench.loads == 0

    drive(lambda: load(TEXT.format(name="a", to="[fe80::1%v7]:1")), story)


def test_the_end_during_a_reload_is_no_defect(load: Load) -> None:
    """What is under way ends as it can, what comes later is told why it is not done."""

    async def story(bench: Bench) -> None:
        bench.runs.gate.clear()
        first = asyncio.create_task(bench.reloader.reload("SIGHUP"))
        while not bench.runs.inside:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(bench.reloader.reload(CHANGED_FILE))
        await asyncio.sleep(0)
        bench.reloader.close()
        bench.runs.gate.set()
        assert (await first).ok
        assert (await second).problems == (await bench.reloader.replan("host")).problems == ("the service is stopping",)
        assert bench.events == ["begin"]

    assert drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:2055")), story).runs.generation == 2
