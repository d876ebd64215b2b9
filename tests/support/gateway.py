"""Gateways for tests: listeners and receivers behind doors, and one that gives back whatever it gets.

Used by tests/engine, tests/control and tests/unit. Must never count anything by itself that a test compares the
worker's counters with, but datagrams that went through its own hands.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

from samplicator import _fastpath
from samplicator._fastpath import RxCounters, RxSocket, Tx, TxCounters
from samplicator.gateways.door import Datagram, Door, pair
from samplicator.plan.sessions import Door as Delivery
from samplicator.plan.sessions import DoorSpec

from support.flows import Collector
from support.pools import Exporter, Stand
from support.worker import Arrival, Listener, Relay, Sink, Way, wait_until

QUEUE_BYTES = 16 << 20


def text_of(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


class DoorListener(Listener):
    """A listener whose datagrams come in by a door. sock: the worker's end."""

    def __init__(self, index: int, queue_bytes: int = QUEUE_BYTES) -> None:
        self.sock, theirs = pair(queue_bytes)
        self.door = Door(theirs)
        self.port = 0
        self.counters = RxCounters()
        self.handle = RxSocket(self.sock.fileno(), self.counters, index, door=True)

    def put(self, *datagrams: Datagram) -> None:
        """Hands them in, all."""
        done = 0

        def written() -> bool:
            nonlocal done
            done += self.door.write(datagrams[done:])
            return done == len(datagrams)

        wait_until(written, f"room for {len(datagrams)} datagrams")


class DoorSink(Sink):
    """A receiver behind a door that keeps what arrives, in order. sock: the worker's end."""

    def __init__(self, queue_bytes: int = QUEUE_BYTES) -> None:
        self.sock, theirs = pair(queue_bytes)
        self.door = Door(theirs)
        self.address, self.port = "", 0
        self.arrivals: list[Arrival] = []
        self.datagrams: list[Datagram] = []

    def read(self) -> int:
        """Takes what waits now; returns how much has arrived in all."""
        while fresh := self.door.read():
            self.datagrams += fresh
            self.arrivals += [Arrival(d.payload, (text_of(d.address), d.port), d.ttl, d.tos) for d in fresh]
        return len(self.arrivals)


def door_listener(relay: Relay, **options: Any) -> DoorListener:
    relay.listeners.append(DoorListener(len(relay.listeners), **options))
    made = relay.listeners[-1]
    assert isinstance(made, DoorListener)
    relay.stack.callback(made.door.close)
    return made


def door_sink(relay: Relay, **options: Any) -> DoorSink:
    relay.sinks.append(DoorSink(**options))
    made = relay.sinks[-1]
    assert isinstance(made, DoorSink)
    relay.stack.callback(made.door.close)
    return made


def door_way(relay: Relay, sink: DoorSink, **options: Any) -> Way:
    counters = TxCounters()
    name = len(relay.ways).to_bytes(16, "big")
    tx = Tx(_fastpath.ENGINE_DOOR, sink.sock.fileno(), counters, name, 1, **options)
    relay.ways.append(Way(tx, counters, []))  # the sink closes the socket
    return relay.ways[-1]


class Loopback:
    """Gives back by the doors of a listener what comes out of those of receivers, in the same worker; a Gateway for the
    supervisor, with a thread of its own. held: it has stopped reading. through: datagrams that it has taken. change:
    makes another datagram of each, None = leaves it out.
    """

    def __init__(self, change: Callable[[Datagram], Datagram | None] | None = None) -> None:
        self.through = 0
        self.held = False
        self.change = change
        self.kept: list[Datagram] = []
        self.keeps = False
        self.lost = 0
        self._outs: dict[Door, int] = {}
        self._ins: dict[int, Door] = {}
        self._fresh: list[tuple[Door, int, bool]] = []
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._end = False
        self._asked = ""
        self._thread = threading.Thread(target=self._run, name="loopback")
        self._thread.start()

    # -- Gateway

    def takes(self, receiver: str, worker: int, door: Door, delivery: Delivery) -> None:
        self._add(door, worker, out=True)

    def brings(self, listener: str, worker: int, door: Door, spec: DoorSpec) -> None:
        self._add(door, worker, out=False)

    def runs(self, listener: str, spec: DoorSpec) -> None:
        """It has one door per worker, so there is nothing to choose."""

    def fault(self, receiver: str) -> str:
        return ""

    def down(self, listener: str) -> str:
        return ""

    def _add(self, door: Door, worker: int, *, out: bool) -> None:
        with self._lock:
            self._fresh.append((door, worker, out))
        self.wake()

    # -- what tests do with it

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    def hold(self, held: bool) -> None:
        """From now on it does not read, or does again."""
        self.held = held
        self.wake()

    @property
    def doors(self) -> int:
        """Doors that stand open."""
        with self._lock:
            return len(self._outs) + len(self._ins) + len(self._fresh)

    def drop_doors(self) -> None:
        """Closes all of them, as a gateway that ends."""
        self._ask("drop")

    def close_ended(self) -> None:
        """Closes those whose other end is gone; a loopback that reads learns of the receivers' by itself."""
        self._ask("ended")

    def _ask(self, what: str) -> None:
        self._asked = what
        self.wake()
        wait_until(lambda: not self._asked, f"the loopback to {what}")

    def close(self) -> None:
        self._end = True
        self.wake()
        self._thread.join(20)
        assert not self._thread.is_alive()
        for door in (*self._outs, *self._ins.values(), *(door for door, _, _ in self._fresh)):
            door.close()
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # -- its thread

    def _run(self) -> None:
        while not self._end:
            for key, _ in self._selector.select():
                if key.fileobj == self._wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                    self._settle()
                elif not self.held:
                    self._pass_on(key.fileobj)  # type: ignore[arg-type]

    def _settle(self) -> None:
        """New doors, and which of them are looked at."""
        with self._lock:
            for door, worker, out in self._fresh:
                if out:
                    self._outs[door] = worker
                else:
                    self._ins[worker] = door
            self._fresh.clear()
        if self._asked:
            self._let_go(only_ended=self._asked == "ended")
            self._asked = ""
        watched = set(self._selector.get_map()) - {self._wake_read}
        for door in list(self._outs):
            if self.held and door.fileno() in watched:
                self._selector.unregister(door)
            elif not self.held and door.fileno() not in watched:
                self._selector.register(door, selectors.EVENT_READ)

    def _let_go(self, *, only_ended: bool) -> None:
        for door in [*self._outs, *self._ins.values()]:
            looked = select.poll()
            looked.register(door, 0)
            if only_ended and not looked.poll(0):
                continue
            if door.fileno() in self._selector.get_map():
                self._selector.unregister(door)
            with self._lock:
                self._outs.pop(door, None)
                for worker in [worker for worker, other in self._ins.items() if other is door]:
                    del self._ins[worker]
            door.close()

    def _pass_on(self, door: Door) -> None:
        worker = self._outs[door]
        try:
            datagrams = door.read()
        except EOFError:
            self._selector.unregister(door)
            with self._lock:
                del self._outs[door]
            door.close()
            return
        self.through += len(datagrams)
        if self.keeps:
            self.kept += datagrams
        if self.change is not None:
            datagrams = [changed for one in datagrams if (changed := self.change(one)) is not None]
        if worker in self._ins and datagrams:
            self._give_back(self._ins[worker], datagrams)

    def _give_back(self, door: Door, datagrams: list[Datagram]) -> None:
        done = 0
        with selectors.DefaultSelector() as room:
            room.register(door, selectors.EVENT_WRITE)
            while done < len(datagrams) and not self._end:
                try:
                    done += door.write(datagrams[done:])
                except BrokenPipeError:
                    self.lost += len(datagrams) - done
                    return
                if done < len(datagrams):
                    room.select(0.1)


class DoorStand(Stand):
    """The stand of tests/support/pools.py with doors in the place of sockets, before the worker and behind it."""

    def __init__(self, relay: Relay, exporters: int, receivers: int = 4) -> None:
        super().__init__(relay, exporters, 0)
        relay.listeners.remove(self.listener)
        self.listener.sock.close()
        self.listener = self.door = door_listener(relay)
        self.door.handle.set_flow(True)
        sinks = [door_sink(relay) for _ in range(receivers)]
        self.sinks = list(sinks)
        self.ways = [door_way(relay, sink) for sink in sinks]
        self.collectors = [Collector() for _ in sinks]
        self.taken = [0] * receivers

    def send(self, exporter: Exporter, payload: bytes) -> None:
        address, port = exporter.sock.getsockname()
        self.door.put(Datagram(socket.inet_aton(address), port, payload))
        self.sent += 1
