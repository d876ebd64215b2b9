"""The reloader over a supervisor that only remembers: what fails changes nothing, triggers are shared."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hosts import Load, host
from samplicator.config.model import Loaded
from samplicator.errors import ConfigError, Problem
from samplicator.planner import PlanSpec, ResolvedAddress
from samplicator.reload import Reloader
from samplicator.resolve import Resolver
from samplicator.supervisor import BuildError

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
        assert bench.runs.specs[-1].receivers[0].address == bytes([192, 0, 2, 7])
        assert (bench.loads, bench.reloader.reloads_total) == (0, 0)

    drive(lambda: load(TEXT.format(name="a", to="c.example:1")), story)


def test_two_hundred_reloads_are_quick(load: Load) -> None:
    async def story(bench: Bench) -> None:
        start = time.monotonic()
        for number in range(200):
            bench.source = lambda n=number: load(TEXT.format(name=f"r{n}", to="192.0.2.1:1"))  # type: ignore[misc]
            assert (await bench.reloader.reload("loop")).ok
        assert time.monotonic() - start < 10
        assert bench.reloader.reloads_total == 200

    drive(lambda: load(TEXT.format(name="a", to="192.0.2.1:1")), story)
