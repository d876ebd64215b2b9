"""What is done over and over: it goes on after a failure, and waits for nobody's threads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import pytest
from samplicator.service.pulse import Pulse
from samplicator.service.service import Options, Service
from support.hosts import Load


def wait(what: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")])
def test_a_failure_does_not_end_it(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    done: list[float] = []

    def work() -> None:
        done.append(time.monotonic())
        if len(done) < 50:
            raise error

    pulse = Pulse("look", 0.001, work)
    with caplog.at_level(logging.DEBUG):
        pulse.start()
        wait(lambda: len(done) > 60)
        pulse.stop()
    assert [r.levelname for r in caplog.records] == ["ERROR"], "once a minute, not fifty times"
    time.sleep(0.05)
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count


def test_it_can_be_had_at_once() -> None:
    done: list[float] = []
    pulse = Pulse("missing", 600.0, lambda: done.append(time.monotonic()))
    pulse.start()
    for count in (1, 2, 3):
        pulse.now()
        wait(lambda count=count: len(done) == count)  # type: ignore[misc]
    pulse.stop()
    pulse._thread.join(10)
    assert not pulse._thread.is_alive()
    assert len(done) == 3


def test_fail_over_does_not_wait_for_http(load: Load) -> None:
    """The threads that answer HTTP requests are all busy, and so is the loop: receivers are looked at all the same."""
    loaded = load(
        '[[listener]]\nname = "a"\nlisten = ["127.0.0.1:1"]\n[[receiver]]\nname = "r"\nto = "192.0.2.1:1"\n'
        '[[rule]]\nto = ["r"]\n'
    )
    looks: list[float] = []
    release = threading.Event()

    async def main() -> None:
        service = Service(lambda: loaded, loaded, Options(watch=False), {})
        service._supervisor.look = lambda sparing=False: looks.append(time.monotonic())  # type: ignore[method-assign]
        service._start_pulses()
        requests = [asyncio.create_task(asyncio.to_thread(release.wait, 20)) for _ in range(200)]
        await asyncio.sleep(0.05)
        begun = len(looks)
        end = time.monotonic() + 15
        while len(looks) < begun + 5 and time.monotonic() < end:
            time.sleep(0.01)  # the loop does nothing else meanwhile
        release.set()
        await asyncio.gather(*requests)
        for pulse in service._pulses:
            pulse.stop()
        assert len(looks) >= begun + 5

    asyncio.run(main())


def test_no_task_of_the_service_ends_for_a_failure(load: Load) -> None:
    loaded = load(
        '[[listener]]\nname = "a"\nlisten = ["127.0.0.1:1"]\n[[receiver]]\nname = "r"\nto = "192.0.2.1:1"\n'
        '[[rule]]\nto = ["r"]\n'
    )
    rounds = 0

    async def main() -> None:
        service = Service(lambda: loaded, loaded, Options(watch=False), {})

        async def work() -> None:
            nonlocal rounds
            rounds += 1
            raise RuntimeError("can't start new thread")

        task = asyncio.create_task(service._every(0.001, work))
        async with asyncio.timeout(15):
            while rounds < 20:
                await asyncio.sleep(0.001)
        assert not task.done()
        task.cancel()

    asyncio.run(main())
