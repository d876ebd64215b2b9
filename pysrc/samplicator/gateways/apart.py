"""Messages of one exporter on the streams of a session that has several: SCTP.

Purpose: templates, options templates and options data go on stream 0, where nothing is ever given up, and data on the
others (RFC 7011 section 10.2, RFC 6526). Invariants: each stream counts by itself per domain (section 3.1), and a gap
that was there before stays one, on the stream of the data; the order within a stream is that of the copies; NetFlow v9
has one count of messages for all streams (RFC 3954 section 5.1). Pure; one number per domain and stream is kept, and
MAX_DOMAINS bounds the domains. Called by line, where the session has more than one stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from samplicator.gateways.forms import Form, form_of
from samplicator.gateways.heard import AHEAD, MAX_DOMAINS, U32
from samplicator.gateways.ipfix import Set, Template
from samplicator.gateways.split import ends_of

CONTROL: Final = 0


class Apart:
    """One session. streams: 2 or more. template(form, domain, number): as the exporter has it."""

    __slots__ = ("_expected", "_more", "_next", "_streams", "_template")

    def __init__(self, streams: int, template: Callable[[Form, int, int], Template | None]) -> None:
        self._streams = streams
        self._template = template
        self._expected: dict[int, int] = {}
        self._more: dict[int, int] = {}  # messages of NetFlow v9 that were made here
        self._next: dict[tuple[int, int], int] = {}

    def take(self, message: bytes) -> list[tuple[int, bytes]]:
        """(stream, message) in the order to send them. Raises ValueError for what is no message."""
        form = form_of(message)
        sets = form.sets_of(message)
        sequence, domain = form.place(message)
        control = [self._is_control(form, domain, found) for found in sets]
        stream = 1 + domain % (self._streams - 1)
        known = self._more if form.per_message else self._expected
        if domain not in known and len(self._expected) + len(self._more) >= MAX_DOMAINS:
            return [(CONTROL if any(control) else stream, message)]
        if form.per_message:
            return self._counted(form, message, stream, list(zip(sets, control, strict=True)))
        self._follow(domain, stream, sequence)
        counts = [self._records(form, message, domain, found) for found in sets]
        self._expected[domain] = (sequence + sum(counts)) & U32
        made = []
        for number in (CONTROL, stream):
            chosen = [n for n, each in enumerate(control) if each == (number == CONTROL)]
            if not chosen and (sets or number == CONTROL):
                continue
            parts = [(sets[n].identity, message[sets[n].begin : sets[n].end]) for n in chosen]
            own = self._next.get((domain, number), 0)
            made.append((number, form.make(message, 0, own, parts)))
            self._next[domain, number] = (own + sum(counts[n] for n in chosen)) & U32
        return made

    def _counted(
        self, form: Form, message: bytes, stream: int, sets: list[tuple[Set, bool]]
    ) -> list[tuple[int, bytes]]:
        """Of NetFlow v9: one with both kinds of sets becomes two, and later ones count on."""
        sequence, domain = form.place(message)
        more = self._more.setdefault(domain, 0)
        first = (sequence + more) & U32
        made = [found for found, is_control in sets if is_control]
        if not made or len(made) == len(sets):
            return [(CONTROL if made else stream, form.numbered(message, first) if more else message)]
        count = int.from_bytes(message[2:4], "big")
        known = sum(len(ends_of(form, message, found, lambda n: self._template(form, domain, n))[0]) for found in made)
        self._more[domain] = more + 1

        def part(records: int, number: int, chosen: list[Set]) -> bytes:
            parts = [(found.identity, message[found.begin : found.end]) for found in chosen]
            return form.make(message, records, number, parts)

        rest = [found for found, is_control in sets if not is_control]
        return [
            (CONTROL, part(min(known, count), first, made)),
            (stream, part(max(count - known, 0), (first + 1) & U32, rest)),
        ]

    def control(self, message: bytes) -> bytes:
        """A message of templates alone, with the number that stream 0 has now."""
        form = form_of(message)
        if form.per_message:
            sequence, domain = form.place(message)
            return form.numbered(message, (sequence + self._more.get(domain, 0)) & U32)
        return form.numbered(message, self._next.get((form.place(message)[1], CONTROL), 0))

    def _follow(self, domain: int, stream: int, sequence: int) -> None:
        """What is missing is missing in the stream of the data."""
        missing = (sequence - self._expected.get(domain, sequence)) & U32
        if missing < AHEAD:
            self._next[domain, stream] = (self._next.get((domain, stream), 0) + missing) & U32

    def _is_control(self, form: Form, domain: int, found: Set) -> bool:
        if found.identity in form.template_sets:
            return True
        known = self._template(form, domain, found.identity)
        return known is not None and known.kind == form.template_sets[1]

    def _records(self, form: Form, message: bytes, domain: int, found: Set) -> int:
        ends, data = ends_of(form, message, found, lambda number: self._template(form, domain, number))
        return len(ends) * data
