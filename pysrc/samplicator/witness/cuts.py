"""Cuts: the moment of a relay's snapshot, found again in the datagrams on the wire.

A row of the relay has the header of the last datagram that it looked at. On the wire, datagrams of one exporter
session come in the relay's order, so all up to this header belong to the snapshot, and all behind it do not: what is
on its way at a cut is never lost. If that datagram did not come, its sequence number decides; and what came of an
exporter that rests belongs to the snapshot, whatever is written in it. Invariants: between two cuts a datagram of the
wire is counted once. Pure. Called by watch.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from samplicator.witness.relay import Snapshot
from samplicator.witness.streams import Stream, Streams, domain_of
from samplicator.witness.units import M32, SAMPLE, Sizes, ahead, sequence_of

DATAGRAM_UNITS: Final = ("packets", "datagrams")
OWN: Final = "own"
ALIKE: Final = "*"
"""In place of an exporter: one of several that cannot be told apart."""

Group = tuple[str, int, str, bytes]
"""As streams.Key; source and port empty where copies have the relay's own address."""


class _Span(NamedTuple):
    """The sequence numbers of a row since the cut before, and how many copies it gave."""

    place: str
    last: int
    width: int
    given: int

    def has(self, number: int) -> bool:
        return (self.last - number) & M32 < self.width


@dataclass(slots=True)
class Tracked:
    """A row from cut to cut. sizes: of its datagrams, in units."""

    row: dict[str, Any]
    sizes: Sizes


@dataclass(slots=True)
class Step:
    """What happened between two cuts, by exporter. before: lost before the relay or at its socket, by listener; slack:
    by how many datagrams that may be wrong. after: given by the relay and not seen on the wire; negative where
    datagrams came later than their cut.
    """

    before: dict[str, Counter[str]] = field(default_factory=dict)
    after: Counter[str] = field(default_factory=Counter)
    wire: Counter[str] = field(default_factory=Counter)
    slack: Counter[str] = field(default_factory=Counter)


class Cuts:
    """All rows. exporters: of each stream that rows belong to. unnumbered: those that write no sequence numbers, whose
    datagrams cannot be told apart. given: copies of the rows since the first cut; pooled: those through a pool; partly:
    some copies of an exporter come through a pool, and others do not; alike: exporters that cannot be told apart on the
    wire, because copies have the relay's address and their numbers overlap; surplus: datagrams that came and that no
    exporter sent, such as templates that are replayed.
    """

    def __init__(self, streams: Streams, source: str) -> None:
        """source: of the copies, own or spoof."""
        self._streams = streams
        self._own = source == OWN
        self._rows: dict[str, Tracked] = {}
        self._began = False
        self.given = self.pooled = self.surplus = 0
        self.partly = False
        self.alike: set[Group] = set()
        self.unnumbered: set[str] = set()
        self.exporters: dict[Stream, set[str]] = {}

    def group(self, row: dict[str, Any]) -> Group:
        domain = domain_of(row["protocol"], bytes.fromhex(row["header"]))
        if self._own:
            return "", 0, row["protocol"], domain
        return row["exporter"], row["port"], row["protocol"], domain

    def _groups(self) -> dict[Group, list[Stream]]:
        found: dict[Group, list[Stream]] = {}
        for stream in self._streams.by_key.values():
            source, port, kind, domain = stream.key
            key = ("", 0, kind, domain) if self._own else (str(ipaddress.ip_address(source)), port, kind, domain)
            found.setdefault(key, []).append(stream)
        return found

    def waits(self, snapshot: Snapshot) -> bool:
        """Whether the last datagram of a row has not come yet."""
        groups = self._groups()
        for place, row in snapshot.rows.items():
            known = self._known(place, row)
            if known is not None and known.row["header"] == row["header"]:
                continue
            header = bytes.fromhex(row["header"])
            streams = groups.get(self.group(row), [])
            if known is None and not self._began and not any(stream.log for stream in streams):
                continue  # silent since before the witness began
            if not any(header in stream.log for stream in streams):
                return True
        return False

    def _known(self, place: str, row: dict[str, Any]) -> Tracked | None:
        """The row at the cut before; None also for another exporter at this place."""
        known = self._rows.get(place)
        if known is None or _identity(known.row) != _identity(row) or row["datagrams"] < known.row["datagrams"]:
            return None
        return known

    def _follow(self, rows: Mapping[str, dict[str, Any]]) -> None:
        """Rows that have another place now: the relay began anew with what it knew, or has other workers."""
        moved = {place for place in self._rows if place not in rows or self._known(place, rows[place]) is None}
        by_identity = {_identity(self._rows[place].row): place for place in moved}
        found = {}
        for place, row in rows.items():
            old = by_identity.get(_identity(row))
            stays = place in self._rows and place not in moved
            if old is not None and not stays and row["datagrams"] >= self._rows[old].row["datagrams"]:
                found[place] = by_identity.pop(_identity(row))
        self._rows |= {place: self._rows[old] for place, old in found.items()}

    def cut(self, snapshot: Snapshot, *, rest: bool = False) -> Step:
        """Counts up to the snapshot. rest: no exporter has sent since. The first call only begins."""
        step = Step()
        self._follow(snapshot.rows)
        groups = self._groups()
        rows: dict[Group, list[str]] = {}
        for place, row in snapshot.rows.items():
            rows.setdefault(self.group(row), []).append(place)
        for key, places in rows.items():
            streams = groups.get(key, [])
            for stream in streams:
                self.exporters[stream] = {snapshot.rows[place]["exporter"] for place in places}
            if len(places) == 1 and len(streams) <= 1:
                came = {places[0]: self._alone(snapshot.rows[places[0]], streams, rest)}
            else:
                came = self._shared(key, {place: snapshot.rows[place] for place in places}, streams, rest)
            for place, headers in came.items():
                self._account(step, place, snapshot.rows[place], headers, alike=key in self.alike)
        for key, streams in groups.items():
            if key not in rows:  # not of a row: nothing will cut it off
                for stream in streams:
                    self._take(stream, len(stream.log))
        self._began = True
        return step

    def _take(self, stream: Stream, count: int) -> list[bytes]:
        taken = stream.log[:count]
        del stream.log[:count]
        self._streams.logged -= count
        return taken

    def _alone(self, row: dict[str, Any], streams: list[Stream], rest: bool) -> list[bytes]:
        """A row with a stream of its own."""
        if not streams or not streams[0].log:
            return []
        stream, header, kind = streams[0], bytes.fromhex(row["header"]), row["protocol"]
        if rest:
            return self._take(stream, len(stream.log))
        backwards = stream.log[::-1]
        if header in backwards:
            return self._take(stream, len(backwards) - backwards.index(header))
        last = sequence_of(kind, header)
        behind = (i for i, other in enumerate(backwards) if not ahead(sequence_of(kind, other), last))
        return self._take(stream, len(backwards) - next(behind, len(backwards)))

    def _shared(
        self, key: Group, rows: dict[str, dict[str, Any]], streams: Iterable[Stream], rest: bool
    ) -> dict[str, list[bytes]]:
        """Rows that the wire shows as one: each datagram belongs to a row that its number is between two cuts of. Where
        that are several, each row gets as many as it gave; then which of them lost some cannot be told.
        """
        came: dict[str, list[bytes]] = {place: [] for place in rows}
        spans = [self._span(place, row) for place, row in rows.items()]
        left = {span.place: span.given for span in spans}
        several = len({row["exporter"] for row in rows.values()}) > 1
        for stream in streams:
            kept, number_of = [], partial(sequence_of, stream.key[2])
            doubtful: list[bytes] = []
            for header in self._take(stream, len(stream.log)):
                number = number_of(header)
                fitting = [span for span in spans if span.has(number)]
                if len(fitting) == 1:
                    came[fitting[0].place].append(header)
                    left[fitting[0].place] -= 1
                elif fitting:
                    doubtful.append(header)
                elif not rest and any(ahead(number, span.last) for span in spans):
                    kept.append(header)
            if doubtful and several:
                self.alike.add(key)
            for header in sorted(doubtful, key=number_of):
                number = number_of(header)
                fitting = sorted((span for span in spans if span.has(number)), key=lambda s: (s.last - number) & M32)
                free = [span for span in fitting if left[span.place] > 0]
                if free or rest or not any(ahead(number, span.last) for span in spans):
                    came[(free or fitting)[0].place].append(header)
                    left[(free or fitting)[0].place] -= 1
                else:
                    kept.append(header)
            stream.log[:0] = kept
            self._streams.logged += len(kept)
        return came

    def _span(self, place: str, row: dict[str, Any]) -> _Span:
        last = sequence_of(row["protocol"], bytes.fromhex(row["header"]))
        known = self._known(place, row)
        if known is None:
            return _Span(place, last, (row["units"] + row["missing"] + 1) & M32, row["datagrams"] * row["copies"])
        first = sequence_of(row["protocol"], bytes.fromhex(known.row["header"]))
        given = (row["datagrams"] - known.row["datagrams"]) * row["copies"]
        return _Span(place, last, (last - first) & M32, given)

    def _account(
        self, step: Step, place: str, row: dict[str, Any], headers: list[bytes], *, alike: bool = False
    ) -> None:
        """Enters what happened to a row since the cut before. alike: datagrams of others may be among them."""
        known = self._known(place, row)
        kind, exporter = row["protocol"], row["exporter"]
        if not row["numbered"] or not row["header"]:
            self.unnumbered.add(exporter)
        if known is None:
            sizes = Sizes(kind)
            if not self._began:
                sizes.learn(headers[-SAMPLE:])
                sizes.at(bytes.fromhex(row["header"]))
                self._rows[place] = Tracked(row, sizes)
                return
            known = self._rows[place] = Tracked({**row, "datagrams": 0, "missing": 0}, sizes)
        given = (row["datagrams"] - known.row["datagrams"]) * row["copies"]
        units = row["missing"] - known.row["missing"]
        if row["pool"] and not headers:
            given = units = 0  # another member of the pool has this exporter now
        if units and row["unit"] not in DATAGRAM_UNITS:
            known.sizes.learn(headers)
            missing, slack = known.sizes.datagrams(units, known.sizes.gaps(headers), given - len(headers))
            if slack:
                step.slack[exporter] += slack
        else:
            if row["unit"] not in DATAGRAM_UNITS and headers:
                known.sizes.learn(headers[:SAMPLE])
            missing = units
        known.sizes.at(bytes.fromhex(row["header"]))
        if missing:
            step.before.setdefault(row["listener"], Counter())[exporter] += missing
        known.row = row
        self.given += given
        self.pooled += given if row["pool"] else 0
        self.partly = self.partly or (bool(row["pool"]) and row["copies"] > 1)
        self.surplus += max(0, len(headers) - given)
        if given != len(headers):
            step.after[ALIKE if alike else exporter] += given - len(headers)
        if headers:
            step.wire[exporter] += len(headers)


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What stays the same of a row, wherever it is."""
    return tuple(row[key] for key in ("exporter", "port", "protocol", "domain", "agent"))
