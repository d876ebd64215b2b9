"""What a receiver behind a gateway has been told of an exporter's templates, over a transport that loses nothing.

Purpose: copies of one exporter in, messages for its session out. Over TCP and SCTP a template is sent once per session,
and before it changes it is withdrawn (RFC 7011 section 8.1); copies come from datagrams, which repeat them again.
So what is known to the peer is left out, what changes is withdrawn first, and a new session begins with all that is
known. Data sets pass byte for byte. Pure; memory is bounded by MAX_TEMPLATES and MAX_TEMPLATE_BYTES: templates beyond
that pass whenever they come, and are not known to a session that begins later. Called by outlet.
"""

from __future__ import annotations

from typing import Final

from samplicator.gateways.budget import Budget, cost
from samplicator.gateways.ipfix import (
    HEADER,
    SET,
    TEMPLATE_SETS,
    Template,
    message_of,
    sets_of,
    template_messages,
    templates_of,
)

MAX_TEMPLATES: Final = 4096
MAX_TEMPLATE_BYTES: Final = 4 << 20


class Told:
    """One exporter. unchanged: template records left out so far; withdrawn: templates that were withdrawn because they
    changed. full: templates that were not kept.
    """

    __slots__ = ("_budget", "_last", "_size", "_templates", "full", "unchanged", "withdrawn")

    def __init__(self, budget: Budget | None = None) -> None:
        """budget: shared with other exporters."""
        self._budget = budget or Budget()
        self.unchanged = 0
        self.withdrawn = 0
        self.full = 0
        self._templates: dict[tuple[int, int], Template] = {}  # by domain and number
        self._last: dict[int, tuple[int, int]] = {}  # export time and sequence of each domain
        self._size = 0

    def begin(self) -> list[bytes]:
        """The first messages of a new session: all templates."""
        by_domain: dict[int, list[Template]] = {}
        for (domain, _), template in self._templates.items():
            by_domain.setdefault(domain, []).append(template)
        return [
            message
            for domain, templates in by_domain.items()
            for message in template_messages(*self._last[domain], domain, templates)
        ]

    def take(self, message: bytes) -> list[bytes]:
        """What to send for a copy: nothing, the copy, or less and something before. Raises ValueError for what is no
        IPFIX message.
        """
        sets = sets_of(message)
        _, _, export_time, sequence, domain = HEADER.unpack_from(message)
        if domain in self._last or len(self._last) < MAX_TEMPLATES:
            self._last[domain] = export_time, sequence
        taught = {found: list(templates_of(message, found)) for found in sets if found.identity in TEMPLATE_SETS}
        if not taught:
            return [message]
        left: list[tuple[int, bytes]] = []
        gone: list[Template] = []
        same = True
        for found in sets:
            records = message[found.begin : found.end]
            if found in taught:
                fresh = b"".join(t.record for t in taught[found] if self._learn(domain, t, gone))
                same = same and records.startswith(fresh) and not any(records[len(fresh) :])
                records = fresh
            if records:
                left.append((found.identity, records))
        made = [self._withdrawals(export_time, sequence, domain, gone)] if gone else []
        if same:
            return [*made, message]
        return [*made, message_of(export_time, sequence, domain, left)] if left else made

    def _learn(self, domain: int, template: Template, gone: list[Template]) -> bool:
        """Whether the record must be sent. gone: gets the template that it replaces."""
        key = domain, template.identity
        old = self._templates.get(key)
        if template.withdraws:  # nothing that came as a datagram should have one (section 8.4)
            return False
        if old is not None and (old.kind, old.record) == (template.kind, template.record):
            self.unchanged += 1
            return False
        if old is not None:
            gone.append(old)
            del self._templates[key]
            self._use(-cost(old))
        size = cost(template)
        if (
            domain not in self._last
            or len(self._templates) >= MAX_TEMPLATES
            or self._size + size > MAX_TEMPLATE_BYTES
            or size > self._budget.left
        ):
            self.full += 1
            return True
        self._templates[key] = template
        self._use(size)
        return True

    def _use(self, size: int) -> None:
        self._size += size
        self._budget.left -= size

    def close(self) -> None:
        """Gives back what it used of the budget."""
        self._templates, self._last = {}, {}
        self._use(-self._size)

    def _withdrawals(self, export_time: int, sequence: int, domain: int, gone: list[Template]) -> bytes:
        self.withdrawn += len(gone)
        sets = [
            (kind, b"".join(SET.pack(template.identity, 0) for template in gone if template.kind == kind))
            for kind in TEMPLATE_SETS
        ]
        return message_of(export_time, sequence, domain, [(kind, records) for kind, records in sets if records])
