"""Carry: saves the state of a service in a file and loads it into the next process: templates, sequence numbers,
renumbering, counters.

Purpose: for collectors a restart looks like a short silence. Two kinds of state are carried. The cache (templates and
options data, the exporters' sequence numbers, the numbers that receivers saw) is loaded from any file; it is as old as
the file. Counters (of listeners, receivers, the flow stage, latency) are loaded only from the final file of a service
that ended normally, and only once: a file that was written while the service ran is older than the last scrape, and
readers treat a counter that decreases as a restart from zero (Prometheus then adds its whole value). So after a crash
counters begin at zero, which all readers handle. Values that describe the process, not the traffic (CPU time, wake-ups,
heartbeats), always begin at zero.

State is matched by name: state of names that the new configuration does not have is dropped, including totals. With the
same number of workers, each worker gets the state of the worker with its number, because the kernel spreads exporters
over the sockets of a port by their order. With another number of workers each one gets all domains, and one of them
gets the counters of a domain, so that sums are right; domains that a worker gets no datagrams of are forgotten in ten
minutes. A domain that was silent for longer than the flow stage keeps domains is dropped; templates expire by the time
since they were last repeated or used.

Called by supervisor: load before the first plan, snapshot and save in a thread. It must never take a lock that a worker
takes, and never fail because of the content of a file: a file that cannot be used is ignored with one log line.
"""

from __future__ import annotations

import binascii
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from samplicator import _fastpath
from samplicator._fastpath import Flow, TxCounters
from samplicator.datapath.counters import (
    DATAGRAMS,
    NO_NEIGHBOR,
    NOTHING_SENT,
    OFFERED,
    RX_FIELDS,
    SENT,
    SENT_BYTES,
    TX_FIELDS,
)
from samplicator.datapath.intakes import ListenerState
from samplicator.datapath.ways import meets
from samplicator.health.receiver import ReceiverState, ids
from samplicator.health.running import CarriedReceiver, Running
from samplicator.plan.spec import PlanSpec, ReceiverSpec
from samplicator.readings import add_up
from samplicator.supervisor.statefile import LIMIT_BYTES, Reader, Unusable, Writer, mark_running

log = logging.getLogger(__name__)

BREATH: Final = 64
"""Domains that are saved in one go; then other threads have their turn."""
BREATH_SECONDS: Final = 0.0005
AGAIN: Final = 10
"""A domain that changes all the time is asked for so often, each time after a pause."""
FAILED: Final = tuple(i for i, name in enumerate(TX_FIELDS) if name.startswith("failed_"))
SKIPPED: Final = TX_FIELDS.index("skipped")
ENDS: Final = tuple(RX_FIELDS.index(name) for name in ("truncated", "unmatched", "denied", "matched"))
KINDS: Final = dict(sorted(_fastpath.FLOW_KIND_NAMES.items()))
RAW: Final = _fastpath.FLOW_CARRY_ITEM_FIELDS.index("raw")
RECEIVER: Final = _fastpath.FLOW_CARRY_STATE_FIELDS.index("receiver")
BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is to be saved, as far as it is small: records, and where the domains are to be read. final: all workers
    have ended, nothing is counted any more. receivers: name by (worker, TxCounters.id); listeners: name by slot.
    """

    final: bool
    records: tuple[dict[str, Any], ...]
    flows: Mapping[int, Flow]
    receivers: Mapping[tuple[int, int], str]
    listeners: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a file holds now. left_out: domains that there was no room for, those silent for the longest time."""

    domains: int
    left_out: int


@dataclass(slots=True)
class Loaded:
    """What was taken up. counters: totals too. silent_seconds: since the file was written. broken: records that were
    not taken.
    """

    counters: bool = False
    domains: int = 0
    broken: int = 0
    silent_seconds: float = 0.0


# ---------------------------------------------------------------------- out


def snapshot(running: Running) -> Snapshot | None:
    """What is small, copied now; under Running.lock. None: no plan ran yet."""
    spec = running.spec
    if spec is None:
        return None
    receivers = list(running.receivers.values())
    flows = dict(running.flows.by_worker)
    records: list[dict[str, Any]] = [{"head": _head(spec.workers)}]
    records += [_listener_record(state) for state in running.listeners.values()]
    records += [_receiver_record(state) for state in receivers]
    latency = [worker.worker.latency() for worker in running.workers]
    latency.append((running.gone_latency, running.gone_latency_sum_ns))
    counts = add_up([row for row, _ in latency])
    records.append({"latency": _named(_bounds(), counts), "sum_ns": sum(total for _, total in latency)})
    records += [_flow_record(index, flow) for index, flow in flows.items()]
    return Snapshot(
        final=not running.workers,
        records=tuple(records),
        flows={index: flow for index, flow in flows.items() if index < spec.workers},
        receivers={(i, number): name for i in flows for number, name in ids(receivers, i).items()},
        listeners={state.slot: state.name for state in running.listeners.values()},
    )


def save(taken: Snapshot, path: str, *, limit: int = LIMIT_BYTES) -> Saved:
    """Writes the file; takes seconds for many exporters. Raises OSError; then the file is as it was."""
    domains = left_out = 0
    with Writer(path, final=taken.final, limit=limit) as writer:
        for record in taken.records:
            if not writer.add(record):
                raise OSError(0, f"the limit of {limit} bytes is too small for the state file")
        order = _order(taken.flows)
        for domain in _domains(taken, order):
            if not writer.add(domain):
                left_out = len(order) - domains
                break
            domains += 1
    return Saved(domains, left_out)


def _head(workers: int) -> dict[str, Any]:
    return {
        "workers": workers,
        "boot": _boot(),
        "monotonic_ns": time.monotonic_ns(),
        "unix_ns": time.time_ns(),
        "item_fields": _fastpath.FLOW_CARRY_ITEM_FIELDS,
        "state_fields": _fastpath.FLOW_CARRY_STATE_FIELDS,
    }


def _boot() -> str:
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _bounds() -> tuple[str, ...]:
    return (*map(str, _fastpath.LATENCY_BOUNDS_NS), "+Inf")


def _named(names: Sequence[str], values: Sequence[int]) -> dict[str, int]:
    return dict(zip(names, values, strict=True))


def _batches() -> tuple[str, ...]:
    return (*map(str, _fastpath.BATCH_BOUNDS), "+Inf")


def _listener_record(state: ListenerState) -> dict[str, Any]:
    """Counters for which the conservation law holds, even with a batch in flight: a datagram without a result does not
    count as received."""
    reading = state.read()
    counts = [reading.counters[name] for name in RX_FIELDS]
    counts[DATAGRAMS] = sum(counts[i] for i in ENDS)
    return {
        "listener": state.name,
        "counters": _named(RX_FIELDS, counts),
        "batches": _named(_batches(), reading.batch_counts),
        "drops": reading.kernel_drops,
    }


def _receiver_record(state: ReceiverState) -> dict[str, Any]:
    """Counters for which the conservation law holds. Copies that wait for the link address of their next hop (Account)
    count as lost.
    """
    rows = {index: list(counters.read()) for index, counters in state.counters.items()}
    account = state.standing.account
    lost, octets = account.lost + account.held, account.lost_octets + account.held_octets
    for row in rows.values():
        part, part_octets = min(lost, row[SENT]), min(octets, row[SENT_BYTES])
        lost, octets = lost - part, octets - part_octets
        row[SENT] -= part
        row[SENT_BYTES] -= part_octets
        row[NO_NEIGHBOR] += part
        row[OFFERED] = row[SKIPPED] + row[SENT] + sum(row[i] for i in FAILED)
    return {
        "receiver": state.spec.name,
        "meets": known_by(state.spec),
        "takeovers": state.standing.takeovers,
        "workers": {
            str(index): {"counters": _named(TX_FIELDS, row), "countdown": state.counters[index].countdown}
            for index, row in rows.items()
        },
    }


def known_by(spec: ReceiverSpec) -> str:
    """A receiver for which this value differs needs the templates."""
    return hashlib.blake2b(repr(meets(spec)).encode(), digest_size=8).hexdigest()


def _flow_record(index: int, flow: Flow) -> dict[str, Any]:
    counters, datagrams, malformed = flow.counters()
    lost, restarts = flow.losses()
    by_kind = {"datagrams": datagrams, "malformed": malformed, "lost": lost, "restarts": restarts}
    return {
        "flow": index,
        "counters": _named(_fastpath.FLOW_COUNTER_FIELDS, counters),
        **{name: {KINDS[kind]: row[kind] for kind in KINDS} for name, row in by_kind.items()},
    }


def _order(flows: Mapping[int, Flow]) -> list[int]:
    """All domains, the one heard last first: age in ms << 64 | worker << 32 | number."""
    now = time.monotonic_ns()
    return sorted(
        age_number >> 32 << 64 | index << 32 | age_number & 0xFFFFFFFF
        for index, flow in flows.items()
        for age_number in _fastpath.flow_carry_order(flow, now)
    )


def _domains(taken: Snapshot, order: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The records of domains. Ages in all are as of the time of the head."""
    now = taken.records[0]["head"]["monotonic_ns"]
    for attempt in range(AGAIN):
        busy: list[int] = []
        for count, place in enumerate(order, 1):
            index, number = place >> 32 & 0xFFFFFFFF, place & 0xFFFFFFFF
            found = _fastpath.flow_carry_out(taken.flows[index], number, now)
            if found:
                yield _domain_record(taken, index, found)
            elif found is not None:
                busy.append(place)
            if attempt or count % BREATH == 0:
                time.sleep(BREATH_SECONDS)
        order = busy


def _domain_record(taken: Snapshot, index: int, found: Any) -> dict[str, Any]:
    domain = dict(found)
    domain["address"] = found["address"].hex()
    domain["header"] = found["header"].hex()
    domain["listener"] = taken.listeners.get(found["listener"], "")
    domain["items"] = [(*item[:RAW], binascii.b2a_base64(item[RAW], newline=False).decode()) for item in found["items"]]
    domain["states"] = [
        (taken.receivers[index, state[RECEIVER]], *state[RECEIVER + 1 :])
        for state in found["states"]
        if (index, state[RECEIVER]) in taken.receivers
    ]
    return {"domain": domain, "worker": index}


# ---------------------------------------------------------------------- in


def load(running: Running, spec: PlanSpec, path: str, *, limit: int = LIMIT_BYTES) -> Loaded | None:
    """Before the first plan is built: takes up what the file holds and `spec` names. None: there is no such file, or it
    is ignored, which is said in one line.
    """
    try:
        with Reader(path, limit=limit) as reader:
            loaded = _Loading(running, spec, reader.final).all(reader)
    except FileNotFoundError:
        return None
    except Unusable as error:
        log.warning("state file %s is ignored: %s", path, error)
        return None
    except OSError as error:
        log.warning("state file %s is ignored: it cannot be read: %s", path, error.strerror or error)
        return None
    text = "state file %s, written %.1f s ago: %d observation domains with their templates were loaded; counters %s%s"
    counters = "continue" if loaded.counters else "begin at zero, because the service did not end normally"
    broken = f"; {loaded.broken} records were ignored" if loaded.broken else ""
    log.info(text, path, loaded.silent_seconds, loaded.domains, counters, broken)
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

    def all(self, reader: Reader) -> Loaded:
        for record in reader.records():
            try:
                self._one(record)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                if not self._flows:
                    raise Unusable("it is damaged") from None
                self._loaded.broken += 1
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
        elif "latency" in record and self._loaded.counters:
            latency = record["latency"]
            if set(latency) == set(_bounds()):
                self._running.gone_latency = tuple(_count(latency[name]) for name in _bounds())
                self._running.gone_latency_sum_ns = _count(record["sum_ns"])

    def _begin(self, head: Mapping[str, Any]) -> None:
        fields = tuple(head["item_fields"]), tuple(head["state_fields"])
        if fields != (_fastpath.FLOW_CARRY_ITEM_FIELDS, _fastpath.FLOW_CARRY_STATE_FIELDS):
            raise ValueError("other fields")
        self._was = _count(head["workers"])
        silent_ns = time.time_ns() - _count(head["unix_ns"])
        if head["boot"] and head["boot"] == _boot():
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
        if set(batches) == set(_batches()):
            state.retired_batches = tuple(_count(batches[name]) for name in _batches())
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
        carried = CarriedReceiver(same=record["meets"] == known_by(wanted))
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


def _count(value: object) -> int:
    """A counter's value: 64 bits, and far from the end of them, so that sums fit. Raises ValueError."""
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError("what is carried is no count")
    return value
