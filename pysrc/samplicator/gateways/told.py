"""What a receiver behind a gateway has been told of an exporter's templates, over a transport that loses nothing.

Purpose: copies of one exporter in, messages for its session out. Over TCP and SCTP a template is sent once per session,
and before it changes it is withdrawn (RFC 7011 section 8.1); copies come from datagrams, which repeat them again and
again. So what is known to the peer is left out, what changes is withdrawn first, and a new session begins with all that
is known. Data sets pass byte for byte. NetFlow v9 counts messages and knows no withdrawal: of its copies those that
have nothing but what is known are left out, and the others are counted without them. Pure; memory is bounded by
MAX_TEMPLATES and MAX_TEMPLATE_BYTES, and by the budget for all: templates beyond that pass whenever they come, and are
not known to a session that begins later. Called by line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from samplicator.gateways.budget import Budget, cost
from samplicator.gateways.forms import Form, form_of
from samplicator.gateways.ipfix import MAX_MESSAGE, SET, Template

MAX_TEMPLATES: Final = 4096
MAX_TEMPLATE_BYTES: Final = 4 << 20
MAX_DOMAINS: Final = 1024
DOMAIN_BYTES: Final = 600
U32: Final = 0xFFFFFFFF


@dataclass(slots=True)
class _Domain:
    """head, sequence: of the last copy, without what was left out before. templates: by number. left: copies that were
    left out, where copies are counted.
    """

    form: Form
    head: bytes
    sequence: int
    templates: dict[int, Template] = field(default_factory=dict)
    left: int = 0


class Told:
    """One exporter. unchanged: template records left out so far; withdrawn: templates that were withdrawn because they
    changed. full: templates that were not kept. before: makes what begin() was before the last copy, if that has
    replaced a template. taught: whether it had new ones.
    """

    __slots__ = ("_budget", "_domains", "_size", "_templates", "before", "full", "taught", "unchanged", "withdrawn")

    def __init__(self, budget: Budget | None = None) -> None:
        """budget: shared with other exporters."""
        self._budget = budget or Budget()
        self.unchanged = 0
        self.withdrawn = 0
        self.full = 0
        self.before: Callable[[], list[bytes]] | None = None
        self.taught = False
        self._domains: dict[tuple[int, int], _Domain] = {}  # by form and number
        self._size = 0
        self._templates = 0

    def template(self, form: Form, domain: int, number: int) -> Template | None:
        """As the collector has it."""
        found = self._domains.get((form.header_bytes, domain))
        return found.templates.get(number) if found is not None else None

    def begin(self) -> list[bytes]:
        """The first messages of a new session: all templates."""
        return self._remembered()()

    def _remembered(self) -> Callable[[], list[bytes]]:
        """What makes these messages later as they would be now."""
        known = [(d.form, d.head, d.sequence, tuple(d.templates.values())) for d in self._domains.values()]
        return lambda: _lessons(known)

    def take(self, message: bytes) -> list[bytes]:
        """What to send for a copy: nothing, the copy, or less and something before. Raises ValueError for what is no
        message.
        """
        form = form_of(message)
        sets = form.sets_of(message)
        taught = {
            found: list(form.templates_of(message, found)) for found in sets if found.identity in form.template_sets
        }
        domain = self._domain(form, message)
        self.before, self.taught = None, False
        if not taught:
            return [self._counted(form, domain, message)]
        if domain is not None and any(self._replaces(domain, t) for each in taught.values() for t in each):
            self.before = self._remembered()
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
        if form.per_message:
            if not left and domain is not None:
                domain.left += 1
                domain.sequence = (domain.sequence - 1) & U32
                return []
            return [self._counted(form, domain, message)]
        sequence = form.place(message)[0]
        made = []
        if gone:
            self.withdrawn += len(gone)
            sorted_out = [(kind, [t for t in gone if t.kind == kind]) for kind in form.template_sets]
            parts = [(kind, b"".join(SET.pack(t.identity, 0) for t in each)) for kind, each in sorted_out if each]
            made.append(form.make(message, 0, sequence, parts))
        if same:
            return [*made, message]
        return [*made, form.make(message, 0, sequence, left)] if left else made

    def _domain(self, form: Form, message: bytes) -> _Domain | None:
        """None: there are too many."""
        sequence, number = form.place(message)
        key = form.header_bytes, number
        found = self._domains.get(key)
        if found is None:
            if len(self._domains) >= MAX_DOMAINS or self._budget.left < DOMAIN_BYTES:
                return None
            self._use(DOMAIN_BYTES)
            found = self._domains[key] = _Domain(form, b"", sequence)
        found.head, found.sequence = message[: form.header_bytes], (sequence - found.left) & U32
        return found

    @staticmethod
    def _counted(form: Form, domain: _Domain | None, message: bytes) -> bytes:
        """With its number among those that were not left out."""
        return message if domain is None or not domain.left else form.numbered(message, domain.sequence)

    def _learn(self, domain: _Domain | None, template: Template, gone: list[Template]) -> bool:
        """Whether the record must be sent. gone: gets the template that it replaces."""
        if template.withdraws:  # nothing that came as a datagram should have one (section 8.4)
            return False
        old = domain.templates.get(template.identity) if domain is not None else None
        if old is not None and (old.kind, old.record) == (template.kind, template.record):
            self.unchanged += 1
            return False
        if old is not None and domain is not None:
            gone.append(old)
            del domain.templates[template.identity]
            self._templates -= 1
            self._use(-cost(old))
        size = cost(template)
        no_room = self._size + size > MAX_TEMPLATE_BYTES or size > self._budget.left
        if domain is None or self._templates >= MAX_TEMPLATES or no_room:
            self.full += 1
            self.taught = True
            return True
        domain.templates[template.identity] = template
        self._templates += 1
        self._use(size)
        self.taught = True
        return True

    @staticmethod
    def _replaces(domain: _Domain, template: Template) -> bool:
        old = domain.templates.get(template.identity)
        changed = old is not None and (old.kind, old.record) != (template.kind, template.record)
        return changed and not template.withdraws

    def _use(self, size: int) -> None:
        self._size += size
        self._budget.left -= size

    def close(self) -> None:
        """Gives back what it used of the budget."""
        self._domains = {}
        self._use(-self._size)


def _lessons(known: Sequence[tuple[Form, bytes, int, tuple[Template, ...]]]) -> list[bytes]:
    """known: form, header of the last copy, its sequence, templates, of each domain."""
    made = []
    for form, head, sequence, templates in known:
        lessons = list(form.teaching(head, templates, MAX_MESSAGE))
        # of what counts messages, these come just before the next one
        first = sequence + 1 - len(lessons) if form.per_message else sequence
        for number, (count, parts) in enumerate(lessons):
            made.append(form.make(head, count, (first + number * form.per_message) & U32, parts))
    return made
