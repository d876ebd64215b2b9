"""Relays that name each other, in networks drawn by lot: one datagram must not become a storm that lasts.

Each relay is a worker of its own with one listener; an edge is a way of the one to the listener of the other. The drawn
networks have rings, chords, pairs and receivers besides. What holds for each: copies come to an end by themselves, and
some way on each ring has found out that its copies come back. Not asserted: that nobody beside a ring is stopped; where
several relays test at the same time, each can take the other's question for an answer to its own.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator

import pytest
from support.worker import Relay, Sink, Way, wait_until

SECONDS = 20.0
"""Until all is quiet; on one CPU beside a busy loop. Alone it takes half a second to three."""
COPIES = 400_000
"""More than a storm of SECONDS is not: a relay forwards some 100,000 a second."""
Edge = tuple[int, int]


def drawn(lot: random.Random) -> tuple[int, set[Edge]]:
    """A network of 2 to 4 relays, all of which the first one reaches, with a ring at least."""
    nodes = lot.randint(2, 4)
    edges = {(lot.randrange(node), node) for node in range(1, nodes)}
    for _ in range(lot.randint(1, nodes)):
        a, b = lot.sample(range(nodes), 2)
        edges.add((a, b))
    if not on_rings(nodes, edges):
        edges.add((nodes - 1, 0))
    return nodes, edges


def reached(edges: set[Edge], begin: int) -> set[int]:
    """Where one comes from a relay by one edge or more."""
    found: set[int] = set()
    todo = [begin]
    while todo:
        here = todo.pop()
        for a, b in edges:
            if a == here and b not in found:
                found.add(b)
                todo.append(b)
    return found


def on_rings(nodes: int, edges: set[Edge]) -> set[Edge]:
    """Edges whose copies can come back to where they left."""
    return {(a, b) for a, b in edges if a == b or a in reached(edges, b)}


class Network:
    """The relays, running."""

    def __init__(self, nodes: int, edges: set[Edge], stack: contextlib.ExitStack) -> None:
        self.relays = [stack.enter_context(Relay()) for _ in range(nodes)]
        listeners = [relay.listen() for relay in self.relays]
        self.ways: dict[Edge, Way] = {}
        for a, b in sorted(edges):
            self.ways[a, b] = self.relays[a].udp("127.0.0.1", listeners[b].port)
        self.sinks: list[tuple[Sink, Way]] = []
        for relay in self.relays:
            sink = relay.sink()
            self.sinks.append((sink, relay.udp("127.0.0.1", sink.port)))
        for relay in self.relays:
            relay.go()
        self.entrance = ("127.0.0.1", listeners[0].port)

    def sent(self) -> int:
        return sum(way.values()["sent"] for relay in self.relays for way in relay.ways)

    def looped(self) -> set[Edge]:
        return {edge for edge, way in self.ways.items() if way.tx.looped}

    def quiet(self) -> bool:
        before = self.sent()
        time.sleep(0.3)  # longer than a payload under test is held
        return self.sent() == before


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


@pytest.mark.parametrize("seed", range(6))
def test_a_datagram_goes_round_no_ring_for_long(seed: int, stack: contextlib.ExitStack) -> None:
    nodes, edges = drawn(random.Random(seed))
    network = Network(nodes, edges, stack)
    exporter = stack.enter_context(Relay()).exporter()
    for number in range(8):  # a ring may die of a copy that is lost before it is found: then the next goes round
        exporter.sendto(b"datagram %d of an exporter that says each thing once" % number, network.entrance)
        wait_until(network.quiet, f"the copies of {sorted(edges)} to end", SECONDS)
        if not on_rings(nodes, edges - network.looped()):
            break
    assert not on_rings(nodes, edges - network.looped()), (edges, network.looped())
    assert network.sent() < COPIES
    assert {sink.read() for sink, _ in network.sinks} != {0}
