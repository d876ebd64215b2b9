"""What one exporter's session has said: its templates, and what is to become of its messages.

Purpose: messages of a session in, datagrams for the workers out; IPFIX, and NetFlow v9 where the transport carries it.
Invariants: templates live as long as the session (RFC 7011 section 8); a session without withdrawals, with one stream
and short messages passes byte for byte; withdrawals do not go on, because they must not be sent by UDP (section 8.4);
with several streams, which count apart (section 3.1), the datagrams have one count per domain, which leaves out as many
as the streams left out; a session in the place of one that ended goes on with its numbers. Pure; memory is bounded by
MAX_TEMPLATES, MAX_TEMPLATE_BYTES and MAX_DOMAINS per session, and by the budget for all. Called by place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from samplicator.gateways.budget import Budget, cost
from samplicator.gateways.forms import Form, form_of
from samplicator.gateways.ipfix import Set, Template
from samplicator.gateways.order import Shared
from samplicator.gateways.split import ends_of, split

MAX_TEMPLATES: Final = 4096
MAX_TEMPLATE_BYTES: Final = 4 << 20
MAX_DOMAINS: Final = 1024
DOMAIN_BYTES: Final = 600
STREAM_BYTES: Final = 120
MAX_NUMBERS: Final = 65536
"""Domains of sessions that have ended, at one place."""
MAX_DATAGRAM: Final = 65507
AHEAD: Final = 1 << 31
U32: Final = 0xFFFFFFFF


@dataclass(slots=True)
class _Domain:
    """templates: by number. expected: next sequence of each stream. sequence: next one of what goes on. more: by how
    much it is ahead of the exporter's, who does not know of messages that were made here. head: of the last message.
    shared: the count of all streams, None = each counts by itself.
    """

    form: Form
    head: bytes
    sequence: int
    templates: dict[int, Template] = field(default_factory=dict)
    expected: dict[int, int] = field(default_factory=dict)
    more: int = 0
    shared: Shared | None = None

    def follow(self, own: int, count: int, stream: int) -> int:
        """The sequence of a message in the count of all streams: its own, as long as there is one stream."""
        if self.shared is not None and stream not in self.expected:
            if not self.shared.fits(own):
                self.shared = None
            elif len(self.expected) == 1:  # until now gaps went on as they were
                self.shared.forget()
        lost = self.shared.take(own) if self.shared is not None else 0
        if self.expected.keys() <= {stream}:
            self.sequence = own + self.more
        elif self.shared is not None:
            self.sequence += lost
        else:
            missing = (own - self.expected.get(stream, own)) & U32
            if missing < AHEAD:  # a number that steps back is no loss
                self.sequence += missing
        sequence = self.sequence & U32
        self.sequence = (sequence + count) & U32
        self.expected[stream] = (own + count) & U32
        return sequence

    def add(self, messages: int) -> None:
        """So many messages more went on than came."""
        if self.form.per_message:
            self.more += messages
            self.sequence = (self.sequence + messages) & U32


class Numbers:
    """Where the numbers of exporters' domains are when their sessions end, so that those of the next ones do not step
    back: collectors that get UDP know nothing of sessions. The oldest are forgotten. Called by heard and place.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left: dict[tuple[bytes, int, int], int] = {}

    def keep(self, exporter: bytes, form: int, domain: int, sequence: int) -> None:
        key = exporter, form, domain
        self._left.pop(key, None)
        self._left[key] = sequence
        if len(self._left) > MAX_NUMBERS:
            del self._left[next(iter(self._left))]

    def take(self, exporter: bytes, form: int, domain: int) -> int | None:
        """The next number; None: no session has ended. A second session gets none."""
        return self._left.pop((exporter, form, domain), None)


class Heard:
    """One session. messages, records: read so far. malformed: messages that were left out. withdrawn: templates."""

    __slots__ = (
        "_budget",
        "_domains",
        "_exporter",
        "_limit",
        "_numbers",
        "_size",
        "_templates",
        "malformed",
        "messages",
        "split_up",
        "withdrawn",
    )

    def __init__(
        self, limit: int, budget: Budget | None = None, exporter: bytes = b"", numbers: Numbers | None = None
    ) -> None:
        """limit: bytes that a datagram is to have at most; 0 = any. budget, numbers: shared with other sessions.
        exporter: its address.
        """
        self._exporter = exporter
        self._numbers = numbers or Numbers()
        self._budget = budget or Budget()
        self.messages = 0
        self.malformed = 0
        self.withdrawn = 0
        self.split_up = 0
        self._limit = limit or U32
        self._domains: dict[tuple[int, int], _Domain] = {}  # by form and number
        self._templates = 0
        self._size = 0

    def take(self, message: bytes, stream: int = 0) -> list[bytes]:
        """The datagrams of a message; none of one that is malformed or has nothing but withdrawals. Raises
        OverflowError when the session has more templates or domains than are kept.
        """
        self.messages += 1
        try:
            form = form_of(message)
            sets = form.sets_of(message)
            taught = [
                t for found in sets if found.identity in form.template_sets for t in form.templates_of(message, found)
            ]
        except ValueError:
            self.malformed += 1
            return []
        own, number = form.place(message)
        domain = self._domain(form, message, own, number)
        self._learn(domain, taught)
        if any(template.withdraws for template in taught):
            message = without_withdrawals(form, message, sets)
            sets = form.sets_of(message)
        ends = [(found, ends_of(form, message, found, domain.templates.get)) for found in sets]
        if stream not in domain.expected:
            self._use(STREAM_BYTES)
        records = sum(len(each) for _, (each, data) in ends if data)
        sequence = domain.follow(own, 1 if form.per_message else records, stream)
        if not sets:
            return []
        if len(message) <= self._limit:
            return [message if sequence == own else form.numbered(message, sequence)]
        try:
            made = split(form, message, ends, sequence, self._limit)
        except ValueError:  # a set of one byte is longer with its padding
            self.malformed += 1
            return []
        domain.add(len(made) - 1)
        self.split_up += len(made) > 1
        return made

    def templates(self) -> Iterator[bytes]:
        """Datagrams with all that the session has taught, as it would repeat it now."""
        limit = min(self._limit, MAX_DATAGRAM)
        for domain in self._domains.values():
            for count, parts in domain.form.teaching(domain.head, list(domain.templates.values()), limit):
                yield domain.form.make(domain.head, count, domain.sequence, parts)
                domain.add(1)

    def _domain(self, form: Form, message: bytes, sequence: int, number: int) -> _Domain:
        head = message[: form.header_bytes]
        key = form.header_bytes, number
        domain = self._domains.get(key)
        if domain is None:
            if len(self._domains) >= MAX_DOMAINS:
                raise OverflowError(f"more than {MAX_DOMAINS} observation domains in one session")
            self._use(DOMAIN_BYTES)
            shared = Shared(sequence) if form.per_message else None
            domain = self._domains[key] = _Domain(form, head, sequence, shared=shared)
            before = self._numbers.take(self._exporter, *key)
            if before is not None:
                domain.more = (before - sequence) & U32
                domain.sequence = before
        domain.head = head
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
        for (form, number), domain in self._domains.items():
            self._numbers.keep(self._exporter, form, number, domain.sequence)
        self._domains = {}
        self._use(-self._size)

    def _forget(self, domain: _Domain, number: int) -> None:
        old = domain.templates.pop(number, None)
        if old is not None:
            self.withdrawn += 1
            self._templates -= 1
            self._use(-cost(old))


def without_withdrawals(form: Form, message: bytes, sets: list[Set]) -> bytes:
    """The message without these records, and without sets that have no others."""
    left = []
    for found in sets:
        records = message[found.begin : found.end]
        if found.identity in form.template_sets:
            records = b"".join(one.record for one in form.templates_of(message, found) if not one.withdraws)
        if records:
            left.append((found.identity, records))
    return form.make(message, 0, form.place(message)[0], left)
