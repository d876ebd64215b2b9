"""Splits a message that is longer than a datagram is to be, at the borders of sets and records.

Pure. Each piece is a message with the domain and times of the whole. Its sequence says how many data records went
before (IPFIX, RFC 7011 section 3.1), or how many messages (NetFlow v9), so a collector that reads the pieces in order
finds no gap. Called by heard. A record that alone is longer than the limit makes a piece that is longer; nothing is
ever left out but padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from samplicator.gateways.forms import Form
from samplicator.gateways.ipfix import LEAST_DATA_SET, MAX_MESSAGE, SET, Set, Template, record_ends

PADDING: Final = 3
"""Bytes that a set may get to end at a multiple of 4 (NetFlow v9)."""
Ends = tuple[list[int], bool]
"""Where the records of a set end, and whether they are data records."""


def ends_of(form: Form, message: bytes, found: Set, template: Callable[[int], Template | None]) -> Ends:
    """Of a set. template: the one of a number, None = not known; then the whole set is one record that does not
    count. Raises ValueError for a broken template set.
    """
    if found.identity in form.template_sets:
        ends, at = [], found.begin
        for one in form.templates_of(message, found):
            at += len(one.record)
            ends.append(at)
        return ends, False
    known = template(found.identity) if found.identity >= LEAST_DATA_SET else None
    ends = record_ends(message, found, known) if known is not None else []
    return (ends, True) if ends else ([found.end], False)


def split(form: Form, message: bytes, sets: Sequence[tuple[Set, Ends]], sequence: int, limit: int) -> list[bytes]:
    """The pieces, in order, each of at most `limit` bytes as far as one record fits. sets: all of the message, or those
    that are to be sent. sequence: of the first piece.
    """
    limit = min(limit, MAX_MESSAGE)
    padding = PADDING if form.per_message else 0
    pieces: list[bytes] = []
    parts: list[tuple[int, bytes]] = []
    used, records, before, counted = form.header_bytes, 0, 0, 0

    def finish() -> None:
        nonlocal parts, used, records, before
        if parts:
            number = sequence + (len(pieces) if form.per_message else before)
            pieces.append(form.make(message, records, number, parts))
        parts, used, records, before = [], form.header_bytes, 0, counted

    for found, (ends, data) in sets:
        at, place = found.begin, 0
        while place < len(ends):
            room = limit - used - SET.size - padding
            last = place
            while last < len(ends) and ends[last] - at <= room:
                last += 1
            if last == place:
                if parts:
                    finish()
                    continue
                last += 1  # it fits nowhere
            parts.append((found.identity, message[at : ends[last - 1]]))
            used += SET.size + ends[last - 1] - at + padding
            records += last - place
            counted += (last - place) * data
            at, place = ends[last - 1], last
    finish()
    return pieces
