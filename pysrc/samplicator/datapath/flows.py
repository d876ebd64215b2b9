"""Flows: the flow stage's memory of every worker, for the process's life, and its readings.

Invariants: a Flow is written by one worker at a time, the one with its index; it stays when that worker ends, so that
it can still be read, and the next worker with that index continues to use it. Reading takes no lock that a worker
takes. Called by the supervisor.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, Final

from samplicator import _fastpath
from samplicator._fastpath import Flow, Plan
from samplicator.config.address import address_text
from samplicator.readings import Activity, Domain, FlowField, FlowReading, FlowTemplate, Unmatched, add_up, wall_ns

LEAST_BYTES: Final = 256 << 10
SETTLE_NS: Final = 2_000_000_000
"""A gap counts as loss when its domain was silent for this time, because no late datagram is expected any more."""
UNMATCHED_MS: Final = 600_000
"""An exporter that no rule matches is reported for this time after its last datagram."""
_KINDS: Final = tuple(_fastpath.FLOW_KIND_NAMES.items())
_ADDRESS, _LISTENER, _TEMPLATES, _OPTIONS_TEMPLATES = (
    _fastpath.FLOW_SESSION_FIELDS.index(name) for name in ("address", "listener", "templates", "options_templates")
)
_DATAGRAMS: Final = _fastpath.FLOW_SESSION_FIELDS.index("datagrams")
_ACTIVITY: Final = itemgetter(
    *map(
        _fastpath.FLOW_SESSION_FIELDS.index,
        (
            *("number", "address", "kind", "style", "first_ns", "datagrams", "bytes", "lost", "pending", "seen_ns"),
            *("port", "domain", "listener", "unmatched", "header", "restarts", "unknown", "malformed"),
            *("templates", "options_templates", "options_data", "templates_added"),
        ),
    )
)
"""The fields of Activity."""
_DOMAIN_AT: Final = len(_fastpath.FLOW_SESSION_FIELDS) - len(_fastpath.FLOW_DOMAIN_FIELDS)


class Flows:
    """By worker index."""

    def __init__(self) -> None:
        self.by_worker: dict[int, Flow] = {}
        self._share = 0
        self._life_ms = 0

    def get(self, index: int, memory: int, workers: int) -> Flow:
        """The Flow of a worker, made if there is none. memory: bytes for the workers of the start together."""
        flow = self.by_worker.get(index)
        if flow is None:
            self._share = self._share or max(memory // workers, LEAST_BYTES)
            flow = self.by_worker[index] = Flow(self._share)
            flow.set_template_life(self._life_ms)
        return flow

    def set_template_life(self, minutes: int) -> None:
        """How long a template lives that is neither repeated nor used; 0 = as long as its exporter is known."""
        self._life_ms = minutes * 60_000
        for flow in list(self.by_worker.values()):
            flow.set_template_life(self._life_ms)

    def read(self) -> FlowReading:
        """Sums over all workers."""
        flows = list(self.by_worker.values())
        counters = [flow.counters() for flow in flows]
        losses = [flow.losses() for flow in flows]
        width = max(number for number, _ in _KINDS) + 1
        nothing = (0,) * width

        def by_kind(rows: list[tuple[int, ...]]) -> dict[str, int]:
            total = add_up([nothing, *rows])
            return {name: total[number] for number, name in _KINDS}

        fields = _fastpath.FLOW_COUNTER_FIELDS
        return FlowReading(
            counters=dict(zip(fields, add_up([(0,) * len(fields), *(row[0] for row in counters)]), strict=True)),
            datagrams=by_kind([row[1] for row in counters]),
            malformed=by_kind([row[2] for row in counters]),
            lost=by_kind([row[0] for row in losses]),
            restarts=by_kind([row[1] for row in losses]),
            memory_bytes=sum(flow.bytes for flow in flows),
        )

    def sessions(self, worker: int, after: int, limit: int) -> tuple[list[Domain], tuple[int, int] | None]:
        """`limit` sessions behind number `after` of a worker, and where to go on (worker, number), None = the end."""
        found: list[Domain] = []
        for index, number, row in self._rows(worker, after):
            found.append(_session(index, row))
            if len(found) >= limit:
                return found, (index, number)
        return found, None

    def extent(self) -> dict[int, int]:
        """The largest number of an observation domain, by worker."""
        return {index: flow.used for index, flow in list(self.by_worker.items())}

    def activity(self, worker: int, numbers: Iterable[int]) -> list[Activity]:
        """What the domains of a worker with these numbers have counted; without those that are empty."""
        flow = self.by_worker.get(worker)
        rows = (flow.session(number) for number in numbers) if flow is not None else ()
        return [Activity._make(_ACTIVITY(row)) for row in rows if row is not None]

    def _rows(self, worker: int, after: int) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
        for index in sorted(self.by_worker):
            if index < worker:
                continue
            flow = self.by_worker[index]
            for number in range(after + 1 if index == worker else 1, flow.used + 1):
                row = flow.session(number)
                if row is not None and row[_DATAGRAMS]:  # else it was carried here and nothing came yet
                    yield index, number, row

    def templates_known(self) -> bool:
        """Whether any worker holds a template."""
        at = [_fastpath.FLOW_COUNTER_FIELDS.index(name) for name in ("templates", "options_templates")]
        return any(flow.counters()[0][i] for flow in self.by_worker.values() for i in at)

    def teachers(self, place: tuple[int, int], limit: int) -> tuple[list[tuple[bytes, int]], tuple[int, int]]:
        """(address, listener slot) of exporters whose templates are known, among `limit` places from `place` (worker,
        number) on, and where to go on.
        """
        worker, number = place
        found: dict[tuple[bytes, int], None] = {}
        indexes = sorted(self.by_worker)
        if worker not in self.by_worker:
            worker, number = next((i for i in indexes if i > worker), indexes[0] if indexes else 0), 0
        flow = self.by_worker.get(worker)
        if flow is None:
            return [], (0, 0)
        used = flow.used
        last = min(number + limit, used)
        for each in range(number + 1, last + 1):
            row = flow.session(each)
            if row is not None and (row[_TEMPLATES] or row[_OPTIONS_TEMPLATES]):
                found[(row[_ADDRESS], row[_LISTENER])] = None  # type: ignore[index]
        after = (worker, last) if last < used else (worker + 1, 0)
        return list(found), after

    def templates(self, worker: int, number: int, after: int = -1) -> Iterator[FlowTemplate]:
        """Templates and options templates of a session by id, those with ids above `after`, one made at a time."""
        flow = self.by_worker.get(worker)
        row = flow.session(number) if flow is not None else None
        if flow is None or row is None:
            return
        items = [item for item in flow.items(number, after=after) if item[1] != "options_data"]
        for item in sorted(items, key=lambda item: item[0]):  # type: ignore[arg-type, return-value]
            yield _template(item, row[3] == "ipfix")

    def options(self, worker: int, number: int) -> list[FlowTemplate]:
        """Options templates of a session and their rows of data, the least recently sent first."""
        flow = self.by_worker.get(worker)
        row = flow.session(number) if flow is not None else None
        if flow is None or row is None:
            return []
        return [_template(item, row[3] == "ipfix") for item in flow.items(number, templates=False)]

    def unmatched(self, limit: int) -> dict[tuple[bytes, int], int]:
        """Datagrams by (address, slot of the listener) of exporters that no rule matches, heard within UNMATCHED_MS.
        limit: sessions of each worker.
        """
        found: dict[tuple[bytes, int], int] = {}
        for flow in list(self.by_worker.values()):
            for address, listener, datagrams in flow.unmatched(limit, UNMATCHED_MS):
                found[address, listener] = found.get((address, listener), 0) + datagrams
        return found

    def without_rule(self, plan: Plan | None, names: Mapping[int, str], limit: int) -> list[Unmatched]:
        """See Supervisor.unmatched. names: of the listeners, by slot."""
        found = []
        for (address, slot), datagrams in self.unmatched(limit).items():
            if plan is not None and slot in names:
                rules, _, denied = plan.route(address, slot)
                if not rules and not denied:
                    found.append(Unmatched(address_text(address), names[slot], datagrams))
        return sorted(found, key=lambda item: -item.datagrams)


def _session(worker: int, row: tuple[Any, ...]) -> Domain:
    named = dict(zip(_fastpath.FLOW_SESSION_FIELDS, row, strict=True))
    counters = dict(zip(_fastpath.FLOW_DOMAIN_FIELDS, row[_DOMAIN_AT:], strict=True))
    silent_ns = max(0, time.monotonic_ns() - named["seen_ns"])
    first_unix_ns = wall_ns(named["first_ns"])
    return Domain(
        worker=worker,
        number=named["number"],
        address=address_text(named["address"]),
        port=named["port"],
        protocol=named["kind"],
        domain=named["domain"],
        listener=named["listener"],
        first_seen_unix=first_unix_ns / 1e9,
        last_seen_unix=(first_unix_ns + named["seen_ns"] - named["first_ns"]) / 1e9,
        next_sequence=named["sequence"],
        header=named["header"],
        templates=named["templates"],
        options_templates=named["options_templates"],
        options_data=named["options_data"],
        style=named["style"],
        lost=counters["lost"] + (counters["pending"] if silent_ns >= SETTLE_NS else 0),
        counters=counters,
        unmatched=named["unmatched"],
    )


def _template(item: tuple[Any, ...], ipfix: bool) -> FlowTemplate:
    named = dict(zip(_fastpath.FLOW_ITEM_FIELDS, item, strict=True))
    fields: tuple[FlowField, ...] = ()
    if named["kind"] != "options_data":
        listed = _fastpath.flow_field_list(named["raw"], ipfix, named["kind"] == "options_template")
        scopes = _scope_count(named["raw"], ipfix) if named["kind"] == "options_template" else 0
        fields = tuple(
            FlowField(element, length, enterprise, place < scopes)
            for place, (element, length, enterprise) in enumerate(listed)
        )
    return FlowTemplate(
        id=named["id"],
        kind=named["kind"],
        first_seen_unix=wall_ns(named["first_s"] * 1_000_000_000) / 1e9,
        last_seen_unix=wall_ns(named["seen_s"] * 1_000_000_000) / 1e9,
        record_bytes=named["record_bytes"],
        fields=fields,
        raw=named["raw"],
    )


def _scope_count(raw: bytes, ipfix: bool) -> int:
    """Scope fields of a raw options template: IPFIX says their number last, v9 their bytes first."""
    return int.from_bytes(raw[4:6], "big") if ipfix else int.from_bytes(raw[2:4], "big") // 4
