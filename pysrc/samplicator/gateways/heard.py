"""What one exporter's session has said: its templates, and what is to become of its messages.

Purpose: messages of a session in, datagrams for the workers out. Invariants: templates live as long as the session (RFC
7011 section 8); a session without withdrawals, with one stream and short messages passes byte for byte; withdrawals do
not go on, because they must not be sent by UDP (section 8.4); with several streams, which count apart (section 3.1),
the datagrams have one count per domain, which leaves out as many as the streams left out. Pure; memory is bounded by
MAX_TEMPLATES and MAX_TEMPLATE_BYTES per session, MAX_DOMAINS. Called by place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from samplicator.gateways.budget import Budget, cost
from samplicator.gateways.ipfix import (
    HEADER,
    TEMPLATE_SETS,
    Set,
    Template,
    message_of,
    sets_of,
    template_messages,
    templates_of,
)
from samplicator.gateways.split import ends_of, split

MAX_TEMPLATES: Final = 4096
MAX_TEMPLATE_BYTES: Final = 4 << 20
MAX_DOMAINS: Final = 1024
AHEAD: Final = 1 << 31
U32: Final = 0xFFFFFFFF


@dataclass(slots=True)
class _Domain:
    """templates: by number. expected: next sequence of each stream. sequence: next one of what goes on. export_time:
    the last.
    """

    templates: dict[int, Template] = field(default_factory=dict)
    expected: dict[int, int] = field(default_factory=dict)
    sequence: int = 0
    export_time: int = 0

    def follow(self, own: int, records: int, stream: int) -> int:
        """The sequence of a message in the count of all streams: its own, as long as there is one stream."""
        if self.expected.keys() <= {stream}:
            self.sequence = own
        else:
            missing = (own - self.expected.get(stream, own)) & U32
            if missing < AHEAD:  # a number that steps back is no loss
                self.sequence += missing
        sequence = self.sequence & U32
        self.sequence = (sequence + records) & U32
        self.expected[stream] = (own + records) & U32
        return sequence


class Heard:
    """One session. messages, records: read so far. malformed: messages that were left out. withdrawn: templates."""

    __slots__ = (
        "_budget",
        "_domains",
        "_limit",
        "_size",
        "_templates",
        "malformed",
        "messages",
        "split_up",
        "withdrawn",
    )

    def __init__(self, limit: int, budget: Budget | None = None) -> None:
        """limit: bytes that a datagram is to have at most; 0 = any. budget: shared with other sessions."""
        self._budget = budget or Budget()
        self.messages = 0
        self.malformed = 0
        self.withdrawn = 0
        self.split_up = 0
        self._limit = limit or HEADER.size + U32
        self._domains: dict[int, _Domain] = {}
        self._templates = 0
        self._size = 0

    def take(self, message: bytes, stream: int = 0) -> list[bytes]:
        """The datagrams of a message; none of one that is malformed or has nothing but withdrawals. Raises
        OverflowError when the session has more templates or domains than are kept.
        """
        self.messages += 1
        try:
            sets = sets_of(message)
            taught = [
                template
                for found in sets
                if found.identity in TEMPLATE_SETS
                for template in templates_of(message, found)
            ]
        except ValueError:
            self.malformed += 1
            return []
        domain = self._domain(message)
        self._learn(domain, taught)
        if any(template.withdraws for template in taught):
            message = without_withdrawals(message, sets)
            sets = sets_of(message)
        ends = [(found, ends_of(message, found, domain.templates.get)) for found in sets]
        own = HEADER.unpack_from(message)[3]
        sequence = domain.follow(own, sum(len(e) for _, (e, data) in ends if data), stream)
        if not sets:
            return []
        if sequence != own:
            message = message[:8] + sequence.to_bytes(4, "big") + message[12:]
        if len(message) <= self._limit:
            return [message]
        made = split(message, ends, self._limit)
        self.split_up += len(made) > 1
        return made

    def templates(self) -> Iterator[bytes]:
        """Datagrams with all that the session has taught, as it would repeat it now."""
        for number, domain in self._domains.items():
            yield from template_messages(
                domain.export_time, domain.sequence, number, list(domain.templates.values()), min(self._limit, 65507)
            )

    def _domain(self, message: bytes) -> _Domain:
        _, _, export_time, sequence, number = HEADER.unpack_from(message)
        domain = self._domains.get(number)
        if domain is None:
            if len(self._domains) >= MAX_DOMAINS:
                raise OverflowError(f"more than {MAX_DOMAINS} observation domains in one session")
            domain = self._domains[number] = _Domain(sequence=sequence)
        domain.export_time = export_time
        return domain

    def _learn(self, domain: _Domain, templates: list[Template]) -> None:
        for template in templates:
            if template.withdraws_all:
                for number in [n for n, t in domain.templates.items() if t.kind == template.kind]:
                    self._forget(domain, number)
            elif template.withdraws:
                self._forget(domain, template.identity)
            else:
                old = domain.templates.get(template.identity)
                self._use(cost(template) - (cost(old) if old else 0))
                self._templates += old is None
                domain.templates[template.identity] = template
        if self._templates > MAX_TEMPLATES or self._size > MAX_TEMPLATE_BYTES:
            raise OverflowError(f"more than {MAX_TEMPLATES} templates or {MAX_TEMPLATE_BYTES} bytes in one session")
        if self._budget.left < 0:
            raise OverflowError("the templates of all sessions need more memory than there is for them")

    def _use(self, size: int) -> None:
        self._size += size
        self._budget.left -= size

    def close(self) -> None:
        """The session is over: gives back what it used of the budget."""
        self._domains = {}
        self._use(-self._size)

    def _forget(self, domain: _Domain, number: int) -> None:
        old = domain.templates.pop(number, None)
        if old is not None:
            self.withdrawn += 1
            self._templates -= 1
            self._use(-cost(old))


def without_withdrawals(message: bytes, sets: list[Set]) -> bytes:
    """The message without these records, and without sets that have no others."""
    _, _, export_time, sequence, domain = HEADER.unpack_from(message)
    left = []
    for found in sets:
        records = message[found.begin : found.end]
        if found.identity in TEMPLATE_SETS:
            records = b"".join(one.record for one in templates_of(message, found) if not one.withdraws)
        if records:
            left.append((found.identity, records))
    return message_of(export_time, sequence, domain, left)
