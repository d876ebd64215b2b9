"""Splits an IPFIX message that is longer than a datagram is to be, at the borders of sets and records.

Pure. Each piece is a message with the domain and export time of the whole; its sequence says how many data records went
before (RFC 7011 section 3.1), so a collector that reads the pieces in order finds no gap. Called by heard. A record
that alone is longer than the limit makes a piece that is longer; nothing is ever left out but padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from samplicator.gateways.ipfix import (
    HEADER,
    LEAST_DATA_SET,
    MAX_MESSAGE,
    SET,
    TEMPLATE_SETS,
    Set,
    Template,
    message_of,
    record_ends,
    templates_of,
)

Ends = tuple[list[int], bool]
"""Where the records of a set end, and whether they are data records."""


def ends_of(message: bytes, found: Set, template: Callable[[int], Template | None]) -> Ends:
    """Of a set. template: the one of a number, None = not known; then the whole set is one record that does not
    count. Raises ValueError for a broken template set.
    """
    if found.identity in TEMPLATE_SETS:
        ends, at = [], found.begin
        for one in templates_of(message, found):
            at += len(one.record)
            ends.append(at)
        return ends, False
    known = template(found.identity) if found.identity >= LEAST_DATA_SET else None
    ends = record_ends(message, found, known) if known is not None else []
    return (ends, True) if ends else ([found.end], False)


def split(message: bytes, sets: Sequence[tuple[Set, Ends]], limit: int) -> list[bytes]:
    """The pieces, in order, each of at most `limit` bytes as far as one record fits. sets: all, or those that are to
    be sent.
    """
    _, _, export_time, sequence, domain = HEADER.unpack_from(message)
    limit = min(limit, MAX_MESSAGE)
    pieces: list[bytes] = []
    parts: list[tuple[int, bytes]] = []
    used, before, counted = HEADER.size, 0, 0

    def finish() -> None:
        nonlocal parts, used, before
        if parts:
            pieces.append(message_of(export_time, sequence + before, domain, parts))
        parts, used, before = [], HEADER.size, counted

    for found, (ends, data) in sets:
        at, place = found.begin, 0
        while place < len(ends):
            room = limit - used - SET.size
            last = place
            while last < len(ends) and ends[last] - at <= room:
                last += 1
            if last == place:
                if parts:
                    finish()
                    continue
                last += 1  # it fits nowhere
            parts.append((found.identity, message[at : ends[last - 1]]))
            used += SET.size + ends[last - 1] - at
            counted += (last - place) * data
            at, place = ends[last - 1], last
    finish()
    return pieces
