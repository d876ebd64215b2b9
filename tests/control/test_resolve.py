"""The resolver: a name that worked keeps its address, round-robin answers move nobody, nothing waits for ever."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable

import pytest
from samplicator.host import resolve
from samplicator.host.resolve import Resolver
from samplicator.plan.spec import ResolvedAddress
from support.hosts import Load

TEXT = """
[[listener]]
name = "in"
listen = ["listen.example:2055"]
[[receiver]]
name = "r"
to = "c.example:9995"
[[rule]]
from = ["router.example"]
to = ["r"]
"""


def four(last: int) -> ResolvedAddress:
    return ResolvedAddress(bytes([192, 0, 2, last]))


class Names:
    """A name server in a dictionary; counts questions."""

    def __init__(self, **answers: tuple[ResolvedAddress, ...]) -> None:
        self.answers = {name.replace("_", "."): answer for name, answer in answers.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, family: int) -> tuple[ResolvedAddress, ...]:
        self.asked.append(host)
        if host not in self.answers:
            raise OSError(-2, "Name or service not known")
        return self.answers[host]


def wait(what: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def names() -> Names:
    return Names(c_example=(four(1), four(2)), listen_example=(four(9),), router_example=(four(5),))


def test_all_kinds_of_names(load: Load) -> None:
    resolved = Resolver(names()).resolve(load(TEXT))
    assert {key[0]: value[0] for key, value in resolved.items()} == {
        "c.example": four(1),
        "listen.example": four(9),
        "router.example": four(5),
    }


def test_unresolvable_names_are_left_out_and_asked_for_again(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    server = names()
    kept = server.answers.pop("c.example")
    del server.answers["router.example"], server.answers["listen.example"]
    resolver = Resolver(server, max_age=0)
    loaded = load(TEXT)
    assert resolver.resolve(loaded) == {}
    resolver.adopt(loaded)
    (said,) = [record.message for record in caplog.records if "c.example" in record.message]
    assert re.fullmatch(r"host name c.example does not resolve \(.+\); samplicator tries again every few seconds", said)
    assert resolver.tick() == []
    server.answers["c.example"] = kept
    server.answers["listen.example"] = (four(9),)
    wait(lambda: resolver.tick() == ["c.example", "listen.example"])
    assert resolver.known(loaded)["c.example", 0] == kept
    resolver.adopt(loaded)
    assert resolver.refresh() == []
    wait(lambda: not resolver._asking)  # the tick before asked for all of them
    server.asked.clear()
    resolver.refresh()
    assert set(server.asked) == {"c.example", "router.example"}  # that of the listener is fixed now


def test_a_name_is_asked_for_once_at_a_time(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer must not make a queue, whatever asks: ticks, refreshes, reloads."""
    monkeypatch.setattr(resolve, "TIMEOUT_SECONDS", 0.02)
    release = threading.Event()
    asked: list[str] = []

    def silent(host: str, family: int) -> tuple[ResolvedAddress, ...]:
        asked.append(host)
        release.wait(20)
        return (four(len(host)),)

    resolver = Resolver(silent, max_age=0)
    loaded = load(TEXT)
    resolver.resolve(loaded)
    resolver.adopt(loaded)
    for _ in range(20):
        assert resolver.tick() == []
        resolver.refresh()
        resolver.resolve(loaded)
    assert sorted(asked) == ["c.example", "listen.example", "router.example"]
    release.set()  # a late answer counts
    wait(lambda: resolver.changed() == ["c.example", "listen.example", "router.example"])


def test_round_robin_answers_move_nobody(load: Load) -> None:
    server = names()
    resolver = Resolver(server)
    loaded = load(TEXT)
    resolver.resolve(loaded)
    resolver.adopt(loaded)
    server.answers["c.example"] = (four(2), four(1))
    assert resolver.refresh() == []
    server.answers["c.example"] = (four(2), four(3))
    assert resolver.refresh() == ["c.example"]
    assert resolver.resolve(loaded)["c.example", 0][0] == four(2)


def test_failure_keeps_the_last_address_with_one_log_line(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    server = names()
    resolver = Resolver(server, max_age=0)
    loaded = load(TEXT)
    resolver.resolve(loaded)
    resolver.adopt(loaded)
    kept = server.answers.pop("c.example")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert resolver.refresh() == []
        assert resolver.resolve(loaded)["c.example", 0][0] == four(1)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        server.answers["c.example"] = kept
        resolver.refresh()
        assert "resolves again" in caplog.records[-1].message


def test_reloads_do_not_ask_again_within_max_age(load: Load) -> None:
    server = names()
    resolver = Resolver(server, max_age=60)
    for _ in range(5):
        resolver.resolve(load(TEXT))
    assert sorted(server.asked) == ["c.example", "listen.example", "router.example"]


def test_listener_names_are_not_refreshed(load: Load) -> None:
    server = names()
    resolver = Resolver(server)
    loaded = load(TEXT)
    resolver.resolve(loaded)
    resolver.adopt(loaded)
    server.asked.clear()
    resolver.refresh()
    assert sorted(server.asked) == ["c.example", "router.example"]


def test_names_no_longer_used_are_forgotten(load: Load) -> None:
    resolver = Resolver(names())
    loaded = load(TEXT)
    resolver.resolve(loaded)
    resolver.adopt(loaded)
    assert resolver.in_use
    resolver.adopt(
        load(
            '[[listener]]\nname="a"\nlisten=["0.0.0.0:1"]\n[[receiver]]\nname="r"\nto="192.0.2.1:1"\n[[rule]]\nto=["r"]\n'
        )
    )
    assert not resolver.in_use
    assert resolver.refresh() == []


def test_a_silent_name_server_is_not_waited_for(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "TIMEOUT_SECONDS", 0.2)
    release = threading.Event()

    def silent(host: str, family: int) -> tuple[ResolvedAddress, ...]:
        release.wait(10)
        return (four(1),)

    start = time.monotonic()
    assert Resolver(silent).resolve(load(TEXT)) == {}
    assert time.monotonic() - start < 8
    release.set()


def test_close_ends_the_waiting(load: Load) -> None:
    release = threading.Event()

    def silent(host: str, family: int) -> tuple[ResolvedAddress, ...]:
        release.wait(20)
        return (four(1),)

    resolver = Resolver(silent)
    threading.Timer(0.2, resolver.close).start()
    start = time.monotonic()
    assert resolver.resolve(load(TEXT)) == {}
    assert time.monotonic() - start < 10
    release.set()


def test_the_system_resolves_localhost() -> None:
    assert ResolvedAddress(bytes([127, 0, 0, 1])) in resolve.getaddrinfo("localhost", 4)
