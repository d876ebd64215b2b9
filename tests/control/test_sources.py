"""Sockets of listeners that were open before the process ran: what they hold is forwarded, those that do not fit are
not used.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from samplicator.host import listening
from samplicator.host.sources import HandedIn, Place
from samplicator.plan.spec import PlanSpec
from samplicator.supervisor.supervisor import Supervisor
from support.hosts import Load, free_port
from support.numbered import Collector, Exporters, spec, until


def places(plan: PlanSpec) -> list[Place]:
    return [
        Place(listener.name, sock, worker)
        for listener in plan.listeners
        for sock in listener.sockets
        for worker in range(plan.workers)
    ]


def opened(plan: PlanSpec) -> dict[Place, socket.socket]:
    """What the process before had: one socket for each worker, on the same port."""
    found: dict[Place, socket.socket] = {}
    for place in places(plan):
        beside = list(found.values())
        found[place] = listening.open_listener(
            place.socket, receive_buffer=1 << 20, ttl=False, tos=False, beside=beside
        )
    return found


@pytest.fixture
def started() -> Iterator[list[Supervisor]]:
    made: list[Supervisor] = []
    yield made
    for supervisor in made:
        supervisor.drain_and_stop(0.5)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_came_before_the_start_is_forwarded(
    load: Load, started: list[Supervisor], collector: Collector, workers: int
) -> None:
    port = free_port()
    plan = spec(load, port, collector.port, workers=workers)
    exporters = Exporters(8, port)
    given = opened(plan)
    numbers = {sock.fileno() for sock in given.values()}
    exporters.send(50)
    source = HandedIn(given)
    supervisor = Supervisor(source=source)
    started.append(supervisor)
    supervisor.apply(plan)
    source.close_rest()
    exporters.send(50)
    until(supervisor, exporters.sent)
    got = collector.take()
    assert len(got) == len(set(got)) == exporters.sent
    assert all(sock.fileno() in numbers for sock in given.values())  # none was opened, none was closed


def test_one_that_does_not_fit_is_closed_and_replaced(
    load: Load, started: list[Supervisor], collector: Collector
) -> None:
    port = free_port()
    plan = spec(load, port, collector.port)
    (place,) = places(plan)
    elsewhere = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    elsewhere.bind(("127.0.0.1", 0))
    unwanted = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    source = HandedIn({place: elsewhere, Place("gone", place.socket, 0): unwanted})
    supervisor = Supervisor(source=source)
    started.append(supervisor)
    supervisor.apply(plan)
    source.close_rest()
    assert (elsewhere.fileno(), unwanted.fileno()) == (-1, -1)
    exporters = Exporters(2, port)
    exporters.send(5)
    until(supervisor, exporters.sent)
    assert len(collector.take()) == exporters.sent


def test_a_place_is_the_same_in_another_process(load: Load, collector: Collector) -> None:
    """Whatever number a listener has there, and its interface."""
    plan = spec(load, 2055, collector.port)
    (place,) = places(plan)
    moved = replace(place, socket=replace(place.socket, listener=7, index=3))
    assert moved.lasting == place.lasting
