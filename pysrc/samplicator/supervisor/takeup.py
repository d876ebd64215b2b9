"""Take up: what the process before this one has left, in a state file or handed over (carry says what that is).

Invariants: nothing of it is trusted until it is checked; what cannot be used is left out, and a whole that cannot be
used is ignored with one log line. Called by supervisor, before the first plan. It must never fail because of what it
reads.
"""

from __future__ import annotations

import binascii
import io
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samplicator import _fastpath
from samplicator._fastpath import Flow, TxCounters
from samplicator.datapath.counters import DATAGRAMS, NOTHING_SENT, OFFERED, RX_FIELDS, SENT, TX_FIELDS
from samplicator.datapath.intakes import ListenerState
from samplicator.health.running import CarriedReceiver, Running
from samplicator.plan.rules import Routes, widened
from samplicator.plan.spec import PlanSpec, ReceiverSpec, Udp
from samplicator.readings import add_up
from samplicator.supervisor.carry import (
    ENDS,
    FAILED,
    KINDS,
    RAW,
    RECEIVER,
    SKIPPED,
    batch_names,
    boot,
    known_by,
    latency_names,
)
from samplicator.supervisor.statefile import LIMIT_BYTES, Reader, Unusable, mark_running, reading

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Loaded:
    """What was taken up. counters: totals too. silent_seconds: since the file was written. broken: records that were
    not taken.
    """

    counters: bool = False
    domains: int = 0
    broken: int = 0
    silent_seconds: float = 0.0


def load(running: Running, spec: PlanSpec, path: str, state: bytes = b"", *, limit: int = LIMIT_BYTES) -> Loaded | None:
    """Before the first plan is built: takes up what the file holds, or `state` (see to_bytes) in its place, and `spec`
    names. None: there is no such file, or it is ignored, which is said in one line.
    """
    what = "the state that was handed over" if state else f"state file {path}"
    try:
        if state:
            reader = Reader(io.BytesIO(state), len(state), limit=limit)
            loaded = _Loading(running, spec, reader.final).all(reader)
        else:
            with reading(path, limit=limit) as reader:
                loaded = _Loading(running, spec, reader.final).all(reader)
    except FileNotFoundError:
        return None
    except Unusable as error:
        log.warning("%s is ignored: %s", what, error)
        return None
    except OSError as error:
        log.warning("%s is ignored: it cannot be read: %s", what, error.strerror or error)
        return None
    text = "%s, written %.1f s ago: observation domains with their templates that were loaded: %d; counters %s%s"
    counters = "continue" if loaded.counters else "begin at zero, because the service did not end normally"
    broken = f"; {loaded.broken} records were ignored" if loaded.broken else ""
    log.info(text, what, loaded.silent_seconds, loaded.domains, counters, broken)
    return loaded


def taken_up(path: str) -> None:
    """Called when the first plan runs: the counters of the file continue now, and no other process may load them
    again."""
    try:
        mark_running(path)
    except OSError as error:
        text = "state file %s cannot be written: %s; after a crash counters could go back to its values"
        log.warning(text, path, error.strerror or error)


class _Loading:
    """Loads one file. Its records are not trusted until they are checked."""

    def __init__(self, running: Running, spec: PlanSpec, counters: bool) -> None:
        self._running = running
        self._spec = spec
        self._loaded = Loaded(counters=counters)
        self._was = 0  # workers of the process that wrote it
        self._silent_ns = -1
        self._receivers = {receiver.name: receiver for receiver in spec.receivers}
        self._flows: list[Flow] = []
        self._routes = Routes({}, frozenset())  # nobody got anything

    def all(self, reader: Reader) -> Loaded:
        for record in reader.records():
            try:
                self._one(record)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                if not self._flows:
                    raise Unusable("it is damaged") from None
                self._loaded.broken += 1
        for name in widened(self._routes, self._spec):  # templates of exporters new to the receiver
            if name in self._running.carried:
                self._running.carried[name].same = False
        return self._loaded

    def _one(self, record: Mapping[str, Any]) -> None:
        if not self._flows:
            self._begin(record["head"])
        elif "domain" in record:
            self._domain(record["domain"], record["worker"])
        elif "receiver" in record:
            self._receiver(record)
        elif "listener" in record:
            self._listener(record)
        elif "flow" in record:
            self._flow(record)
        elif "routes" in record:
            self._routes = _routes(record["routes"])
        elif "drops" in record:
            self._running.drops = {_count(number): _count(drops) & 0xFFFFFFFF for number, drops in record["drops"]}
        elif "latency" in record and self._loaded.counters:
            latency = record["latency"]
            if set(latency) == set(latency_names()):
                self._running.gone_latency = tuple(_count(latency[name]) for name in latency_names())
                self._running.gone_latency_sum_ns = _count(record["sum_ns"])

    def _begin(self, head: Mapping[str, Any]) -> None:
        fields = tuple(head["item_fields"]), tuple(head["state_fields"])
        if fields != (_fastpath.FLOW_CARRY_ITEM_FIELDS, _fastpath.FLOW_CARRY_STATE_FIELDS):
            raise ValueError("other fields")
        self._was = _count(head["workers"])
        silent_ns = time.time_ns() - _count(head["unix_ns"])
        if head["boot"] and head["boot"] == boot():
            silent_ns = time.monotonic_ns() - _count(head["monotonic_ns"])
        self._silent_ns = max(silent_ns, 0)
        self._loaded.silent_seconds = self._silent_ns / 1e9
        running, spec = self._running, self._spec
        for slot, listener in enumerate(spec.listeners):
            running.listeners.setdefault(listener.name, ListenerState(listener.name, slot))
        running.flows.set_template_life(spec.template_life_minutes)
        self._flows = [running.flows.get(i, spec.flow_memory, spec.workers) for i in range(spec.workers)]

    def _listener(self, record: Mapping[str, Any]) -> None:
        state = self._running.listeners.get(record["listener"])
        if state is None or not self._loaded.counters:
            return
        counts = tuple(_count(record["counters"].get(name, 0)) for name in RX_FIELDS)
        if counts[DATAGRAMS] != sum(counts[i] for i in ENDS):
            raise ValueError("the law does not hold")
        batches = record["batches"]
        if set(batches) == set(batch_names()):
            state.retired_batches = tuple(_count(batches[name]) for name in batch_names())
        state.retired, state.retired_drops = counts, _count(record["drops"])

    def _receiver(self, record: Mapping[str, Any]) -> None:
        name = record["receiver"]
        wanted = self._receivers.get(name)
        if wanted is None or name in self._running.carried:
            return
        sums = [NOTHING_SENT] * self._spec.workers
        countdowns = [0] * self._spec.workers
        for index, row in record["workers"].items():
            counts = tuple(_count(row["counters"].get(field_name, 0)) for field_name in TX_FIELDS)
            if counts[OFFERED] != counts[SKIPPED] + counts[SENT] + sum(counts[i] for i in FAILED):
                raise ValueError("the law does not hold")
            to = _count(int(index)) % self._spec.workers
            sums[to] = add_up([sums[to], counts])
            countdowns[to] = _count(row["countdown"]) & 0xFFFFFFFF
        carried = CarriedReceiver(same=record["meets"] == known_by(wanted) and is_lasting(wanted))
        for index in range(self._spec.workers):
            carried.counters[index] = counters = TxCounters()
            counters.carry(sums[index] if self._loaded.counters else NOTHING_SENT, countdowns[index])
        carried.takeovers = _count(record["takeovers"]) if self._loaded.counters else 0
        self._running.carried[name] = carried

    def _flow(self, record: Mapping[str, Any]) -> None:
        if not self._loaded.counters:
            return
        width = max(KINDS) + 1
        rows = [[0] * width for _ in range(4)]
        for row, name in zip(rows, ("datagrams", "malformed", "lost", "restarts"), strict=True):
            for kind, kind_name in KINDS.items():
                row[kind] = _count(record[name].get(kind_name, 0))
        counters = {name: _count(value) for name, value in record["counters"].items()}
        _fastpath.flow_carry_totals(self._flows[_count(record["flow"]) % len(self._flows)], counters, *rows)

    def _domain(self, domain: dict[str, Any], worker: int) -> None:
        listener = self._running.listeners.get(domain["listener"])
        if listener is None:
            return
        domain["listener"] = listener.slot
        domain["address"] = bytes.fromhex(domain["address"])
        domain["header"] = bytes.fromhex(domain["header"])
        domain["items"] = [(*item[:RAW], binascii.a2b_base64(item[RAW])) for item in domain["items"]]
        same = self._was == len(self._flows)
        home = _count(worker) % len(self._flows)
        taken = False
        for index, flow in enumerate(self._flows):
            if same and index != home:
                continue
            states = [(self._id(state[RECEIVER], index), *state[RECEIVER + 1 :]) for state in domain["states"]]
            put = {**domain, "states": [state for state in states if state[RECEIVER]]}
            spare = index != home
            taken |= _fastpath.flow_carry_in(flow, put, time.monotonic_ns(), self._silent_ns, spare) and not spare
        self._loaded.domains += taken

    def _id(self, name: str, worker: int) -> int:
        """TxCounters.id of a receiver, 0 = it is not named any more."""
        carried = self._running.carried.get(name)
        return carried.counters[worker].id if carried is not None else 0


def is_lasting(spec: ReceiverSpec) -> bool:
    """Whether a collector sees the same sessions after a restart: the copies come from the exporters' addresses and
    ports, or from a port that the configuration names; any other port is another one in the next process (RFC 7011
    section 8: templates belong to a session).
    """
    if not isinstance(spec.delivery, Udp):
        return True
    udp = spec.delivery
    return udp.spoof or (udp.source is not None and udp.source[1] != 0 and not udp.per_session)


def _routes(record: Mapping[str, Any]) -> Routes:
    names = record["names"]
    rules = {str(rule): frozenset(str(names[index]) for index in indexes) for rule, _, indexes in record["rules"]}
    return Routes(rules, frozenset(str(rule) for rule, stop, _ in record["rules"] if stop))


def _count(value: object) -> int:
    """A counter's value: 64 bits, and far from the end of them, so that sums fit. Raises ValueError."""
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError("what is carried is no count")
    return value
