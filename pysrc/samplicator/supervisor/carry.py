"""Carry: saves the state of a service for the next process, in a file or as bytes: templates, sequence numbers,
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

Called by supervisor: snapshot and save in a thread; the other way is takeup's. It must never take a lock that a worker
takes.
"""

from __future__ import annotations

import binascii
import hashlib
import io
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from samplicator import _fastpath
from samplicator._fastpath import Flow
from samplicator.datapath.counters import (
    DATAGRAMS,
    NO_NEIGHBOR,
    OFFERED,
    RX_FIELDS,
    SENT,
    SENT_BYTES,
    TX_FIELDS,
)
from samplicator.datapath.intakes import ListenerState
from samplicator.datapath.ways import meets
from samplicator.health.receiver import ReceiverState, ids
from samplicator.health.running import Running
from samplicator.plan.rules import routes
from samplicator.plan.spec import PlanSpec, ReceiverSpec
from samplicator.readings import add_up
from samplicator.supervisor.statefile import LIMIT_BYTES, Writer, replacing

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


def snapshot(running: Running, *, final: bool = False) -> Snapshot | None:
    """What is small, copied now; under Running.lock. final: nothing is counted any more, although workers run. None: no
    plan ran yet.
    """
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
    records.append({"latency": _named(latency_names(), counts), "sum_ns": sum(total for _, total in latency)})
    records += [_flow_record(index, flow) for index, flow in flows.items()]
    records.append({"routes": _routes_record(spec)})
    records.append({"drops": [list(row) for state in running.listeners.values() for row in _drops(state)]})
    return Snapshot(
        final=final or not running.workers,
        records=tuple(records),
        flows={index: flow for index, flow in flows.items() if index < spec.workers},
        receivers={(i, number): name for i in flows for number, name in ids(receivers, i).items()},
        listeners={state.slot: state.name for state in running.listeners.values()},
    )


def save(taken: Snapshot, path: str, *, limit: int = LIMIT_BYTES) -> Saved:
    """Writes the file; takes seconds for many exporters. Raises OSError; then the file is as it was."""
    with replacing(path, sync=not taken.final) as file:
        return _write(taken, file, limit)


def to_bytes(taken: Snapshot) -> bytes:
    """What would be in the file."""
    file = io.BytesIO()
    _write(taken, file, LIMIT_BYTES)
    return file.getvalue()


def _write(taken: Snapshot, file: BinaryIO, limit: int) -> Saved:
    domains = left_out = 0
    writer = Writer(file, final=taken.final, limit=limit)
    for record in taken.records:
        if not writer.add(record):
            raise OSError(0, f"the limit of {limit} bytes is too small for the state file")
    order = _order(taken.flows)
    for domain in _domains(taken, order):
        if not writer.add(domain):
            left_out = len(order) - domains
            break
        domains += 1
    writer.finish()
    return Saved(domains, left_out)


def _head(workers: int) -> dict[str, Any]:
    return {
        "workers": workers,
        "boot": boot(),
        "monotonic_ns": time.monotonic_ns(),
        "unix_ns": time.time_ns(),
        "item_fields": _fastpath.FLOW_CARRY_ITEM_FIELDS,
        "state_fields": _fastpath.FLOW_CARRY_STATE_FIELDS,
    }


def boot() -> str:
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def latency_names() -> tuple[str, ...]:
    return (*map(str, _fastpath.LATENCY_BOUNDS_NS), "+Inf")


def _named(names: Sequence[str], values: Sequence[int]) -> dict[str, int]:
    return dict(zip(names, values, strict=True))


def batch_names() -> tuple[str, ...]:
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
        "batches": _named(batch_names(), reading.batch_counts),
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


def _routes_record(spec: PlanSpec) -> dict[str, Any]:
    """Names once, and the rules by their number."""
    found = routes(spec)
    index = {receiver.name: number for number, receiver in enumerate(spec.receivers)}
    rules = [
        [rule, int(rule in found.stops), sorted(index[name] for name in names)] for rule, names in found.names.items()
    ]
    return {"names": list(index), "rules": rules}


def _drops(state: ListenerState) -> Iterator[tuple[int, int]]:
    """Of each socket: its cookie, and the drops that are counted. Who has the socket next counts those that follow."""
    return ((intake.cookie, intake.drops_read) for intake in state.sockets())


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
            if attempt or (count % BREATH == 0 and not taken.final):  # at the end somebody may wait for it
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
