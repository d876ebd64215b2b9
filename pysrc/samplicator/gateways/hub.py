"""A gateway: the doors of all listeners and receivers of one transport, and the sessions behind them.

Purpose: what the supervisor hands doors to (door.Gateway). Invariants: takes() and brings() never wait for the network;
what the operator wrote and cannot be used (certificates) is refused there, before a plan runs; everything else happens
in the thread of the loop. What stays in a new plan keeps its sessions. Made by the service when a configuration first
names the transport. It must never ask which transport it has.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from samplicator.gateways.door import Door
from samplicator.gateways.inlet import Inlet
from samplicator.gateways.loop import LoopThread
from samplicator.gateways.outlet import Outlet
from samplicator.gateways.place import Place
from samplicator.gateways.tally import InTally, OutTally, counts
from samplicator.gateways.transport import Address, Factory, Options, Transport
from samplicator.plan.sessions import Door as Delivery
from samplicator.plan.sessions import DoorSpec
from samplicator.readings import GatewayReading, TransportSessionReading

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.1
DEAFEN_SECONDS: Final = 1.0
REPLAY_SECONDS: Final = 5.0
"""A receiver is replayed to at most so often; each replay is for all exporters."""
SHOWN_SECONDS: Final = 1.0
SESSIONS_SECONDS: Final = 10.0
"""How long the thread of the loop, which may be busy, is waited for by those who look."""


class Hub:
    """See above. One per transport."""

    def __init__(self, name: str, factory: Factory, thread: LoopThread, replay: Callable[[str], None]) -> None:
        """name: the scheme in the configuration. replay(receiver): has the workers send templates and options data of
        all exporters to a receiver again; called in a thread of its own, since it may wait.
        """
        self.name = name
        self._thread = thread
        self._loop = thread.loop
        self._transport: Transport = factory(thread.loop)
        self._replay = replay
        self._inlets: dict[tuple[str, DoorSpec], Inlet] = {}
        self._outlets: dict[tuple[str, Delivery], Outlet] = {}
        self._leaving: set[Outlet] = set()  # others have taken their places
        self._places: dict[Address, Place] = {}
        self._in_tallies: dict[str, InTally] = {}
        self._out_tallies: dict[str, OutTally] = {}
        self._replayed: dict[str, float] = {}
        self._runs: dict[str, DoorSpec] = {}  # of each listener; the supervisor's
        self._ended = False
        self._shown: list[GatewayReading] = []
        thread.call(self._look)

    # ------------------------------------------------------------------ from the supervisor, any thread

    def takes(self, receiver: str, worker: int, door: Door, delivery: Delivery) -> None:
        """See door.Gateway. Raises OSError for what the transport cannot use."""
        self._transport.check(Options(tls=delivery.tls, name=delivery.host, sctp=delivery.sctp))
        self._thread.call(lambda: self._take(receiver, worker, door, delivery))

    def brings(self, listener: str, worker: int, door: Door, spec: DoorSpec) -> None:
        """See door.Gateway. Raises OSError for what the transport cannot use."""
        self._transport.check(Options(tls=spec.tls, sctp=spec.sctp))
        self._thread.call(lambda: self._bring(listener, worker, door, spec))

    def runs(self, listener: str, spec: DoorSpec) -> None:
        """See door.Gateway."""
        if self._runs.get(listener) == spec:
            return
        if not self._thread.wait(lambda: self._begin(listener, spec)):
            log.error("listener %r: the gateways' thread does not answer", listener)
        self._runs[listener] = spec

    def fault(self, receiver: str) -> str:
        """Why nothing gets through to a receiver now, "" = it does, or it is not known."""
        return next((one.fault for (name, _), one in list(self._outlets.items()) if name == receiver), "")

    def down(self, listener: str) -> str:
        """Why a place of a listener cannot be listened at now, "" = all can."""
        places = list(self._places.values())
        owned = (place for place in places if place.owners and place.owners[0].name == listener)
        return next((place.why for place in owned if place.why), "")

    # ------------------------------------------------------------------ doors

    def _take(self, receiver: str, worker: int, door: Door, delivery: Delivery) -> None:
        if self._ended:
            door.close()
            return
        outlet = self._outlets.get((receiver, delivery))
        if outlet is not None and outlet.ending:
            self._leaving.add(outlet)
            outlet = None
        if outlet is None:
            tally = self._out_tallies.setdefault(receiver, OutTally())
            outlet = self._outlets[receiver, delivery] = Outlet(
                self._loop,
                self._transport,
                receiver,
                delivery,
                tally,
                self._outlet_ended,
                lambda: self._came_back(receiver),
            )
        outlet.add(worker, door)

    def _outlet_ended(self, outlet: Outlet) -> None:
        self._leaving.discard(outlet)
        self._outlets = {key: one for key, one in self._outlets.items() if one is not outlet}
        if all(name != outlet.name for name, _ in self._outlets):
            self._out_tallies.pop(outlet.name, None)
            self._replayed.pop(outlet.name, None)

    def _came_back(self, receiver: str) -> None:
        now = self._loop.time()
        at = max(now, self._replayed.get(receiver, -REPLAY_SECONDS) + REPLAY_SECONDS)
        if self._ended or self._replayed.get(receiver, now) > now:  # one is to come
            return
        self._replayed[receiver] = at
        self._loop.call_later(at - now, self._replay_now, receiver)

    def _replay_now(self, receiver: str) -> None:
        if not self._ended and receiver in self._replayed:
            self._loop.run_in_executor(None, self._replay, receiver)

    def _bring(self, listener: str, worker: int, door: Door, spec: DoorSpec) -> None:
        if self._ended:
            door.close()
            return
        inlet = self._inlets.get((listener, spec))
        if inlet is None:
            tally = self._in_tallies.setdefault(listener, InTally())
            inlet = self._inlets[listener, spec] = Inlet(self._loop, listener, spec, tally)
            inlet.add(worker, door, self._inlet_ended)
            for where in map(Address._make, spec.places):
                place = self._places.get(where)
                if place is None:
                    place = self._places[where] = Place(self._loop, self._transport, self.name, where)
                place.give(inlet)
        else:
            inlet.add(worker, door, self._inlet_ended)

    def _begin(self, listener: str, spec: DoorSpec) -> None:
        inlet = self._inlets.get((listener, spec))
        if inlet is not None:
            for where in map(Address._make, spec.places):
                self._places[where].runs(inlet)

    def _inlet_ended(self, inlet: Inlet) -> None:
        del self._inlets[inlet.name, inlet.spec]
        for where in map(Address._make, inlet.spec.places):
            if not self._places[where].take_back(inlet):
                del self._places[where]
        if all(name != inlet.name for name, _ in self._inlets):
            self._in_tallies.pop(inlet.name, None)

    # ------------------------------------------------------------------ in time

    def _look(self) -> None:
        for outlet in self._outlets.values():
            outlet.look()
        if not self._ended:
            self._loop.call_later(LOOK_SECONDS, self._look)

    def deafen(self) -> None:
        """Nothing more comes in: exporters see their sessions end. Before the workers stop; returns when the doors have
        what was read, or after DEAFEN_SECONDS.
        """
        self._thread.wait(self._close_places)
        latest = time.monotonic() + DEAFEN_SECONDS
        while any(inlet.waiting for inlet in list(self._inlets.values())) and time.monotonic() < latest:
            time.sleep(0.005)

    def _close_places(self) -> None:
        for place in self._places.values():
            place.close()

    def close(self, seconds: float) -> None:
        """After the workers have ended: waits at most so long until what came out of the doors is sent, then ends."""
        latest = time.monotonic() + seconds
        while (self._outlets or self._leaving) and time.monotonic() < latest:
            time.sleep(0.01)
        self._thread.wait(self._end)

    def _end(self) -> None:
        self._ended = True
        self._close_places()
        for inlet in list(self._inlets.values()):
            inlet.close()
        for outlet in [*self._outlets.values(), *self._leaving]:
            outlet.end(abort=True)
        self._transport.close()

    # ------------------------------------------------------------------ what is shown, any thread

    def readings(self) -> list[GatewayReading]:
        """One of each listener, one of each receiver; the last ones while the loop is too busy to say. To show none
        would be no answer but a lie: whoever watches would see counters and states end, and begin again.
        """

        def read() -> None:
            self._shown = self._read()

        self._thread.wait(read, SHOWN_SECONDS)
        return self._shown

    def sessions(self) -> list[TransportSessionReading]:
        """Those that are open, or are to be. Raises TimeoutError: the loop is too busy to say."""
        found: list[list[TransportSessionReading]] = []

        def read() -> None:
            incoming = [session for place in self._places.values() for session in place.readings()]
            found.append(incoming + [session for outlet in self._outlets.values() for session in outlet.readings()])

        self._thread.wait(read, SESSIONS_SECONDS)
        if not found:
            raise TimeoutError(f"gateway {self.name} did not say what its sessions are in {SESSIONS_SECONDS:g} s")
        return found[0]

    def _read(self) -> list[GatewayReading]:
        found = []
        for (name, spec), inlet in self._inlets.items():
            places = [self._places[where] for where in map(Address._make, spec.places)]
            if any(place.owners[0] is not inlet for place in places):
                continue
            found.append(
                GatewayReading(
                    gateway=self.name,
                    side="in",
                    name=name,
                    place=", ".join(f"{self.name}://{place.address.text}" for place in places),
                    why=next((place.why for place in places if place.why), ""),
                    sessions={"connected": sum(place.sessions for place in places)},
                    counters=counts(inlet.tally),
                )
            )
        latest = {name: outlet for (name, _), outlet in self._outlets.items()}  # one that ends has the same tally
        for name, outlet in latest.items():
            sessions = outlet.readings()
            found.append(
                GatewayReading(
                    gateway=self.name,
                    side="out",
                    name=name,
                    place=outlet.place,
                    why=outlet.fault,
                    sessions=dict(Counter(one.state for one in sessions)),
                    counters=counts(outlet.tally),
                    backups_in_use=sum(one.backup_in_use for one in sessions),
                )
            )
        return found
