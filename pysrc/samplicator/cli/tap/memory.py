"""The templates of exporters, as far as they were seen in the stream or as the daemon knows them.

Called by command; decode asks and teaches. Invariants: what is kept is bounded, the least recently used goes; the
daemon is asked once for each of ASKED exporters, when a data set comes whose template was not seen, and no more after
an answer that is none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote

from samplicator.cli.api import Api
from samplicator.cli.tap.decode import shape_of
from samplicator.cli.tap.events import Address
from samplicator.errors import Unreachable

ASKED: Final = 1000
"""Exporters."""
MOST_PAGES: Final = 100
"""Of one exporter."""
MOST_WEIGHT: Final = 500_000
"""Templates, and their fields of variable length."""
_VERSIONS: Final = {"netflow9": 9, "ipfix": 10}

Ask = Callable[[str], Iterator[Any]]
"""An exporter's address to rows of `/api/v1/templates`. Raises Unreachable, KeyError and TypeError."""
Key = tuple[str, int, int, int, int]


class Memory:
    """ask: see Ask. note: called with a text for people when the daemon is not asked any more."""

    def __init__(self, ask: Ask, note: Callable[[str], None]) -> None:
        self._ask = ask
        self._note = note
        self._asked: set[str] = set()
        self._most = ASKED
        self._weight = 0
        self._shapes: OrderedDict[Key, Sequence[int]] = OrderedDict()
        self._any: dict[Key, Sequence[int]] = {}  # of all domains, which are 0 here; empty = they differ

    def session(self, exporter: Address, port: int, *, any_domain: bool = False) -> Known:
        """What is known of a session of an exporter. any_domain: a template of an unknown domain is that of the others,
        if it is the same in all; for copies whose domain the daemon has replaced (domain = "unique").
        """
        return Known(self, str(exporter), port, any_domain)

    def learn(self, key: Key, shape: Sequence[int]) -> None:
        """key: exporter, port, version, domain, template."""
        before = self._shapes.pop(key, None)
        self._weight += len(shape) - len(before or ())
        self._shapes[key] = shape
        every = _every(key)
        self._any[every] = shape if self._any.get(every, shape) in (shape, before) else ()
        while self._weight > MOST_WEIGHT:
            gone, old = self._shapes.popitem(last=False)
            self._weight -= len(old)
            self._any.pop(_every(gone), None)

    def find(self, key: Key, any_domain: bool = False) -> Sequence[int] | None:
        """Asks the daemon if it has to. any_domain: see session."""
        exporter = key[0]
        if key not in self._shapes and exporter not in self._asked and len(self._asked) < self._most:
            self._asked.add(exporter)
            try:
                for row in self._ask(exporter):
                    self._learn_row(row)
            except (Unreachable, KeyError, TypeError, ValueError, AttributeError) as error:
                self._most = 0
                why = error if isinstance(error, Unreachable) else "the answer has an unexpected form"
                self._note(f"templates that were sent before are not known: {why}")
        if key in self._shapes:
            self._shapes.move_to_end(key)
        return self._shapes.get(key) or (self._any.get(_every(key)) if any_domain else None) or None

    def _learn_row(self, row: Any) -> None:
        version = _VERSIONS.get(row["protocol"])
        if version is None:
            return
        for template in row["templates"]:
            lengths = [65535 if item["bytes"] is None else item["bytes"] for item in template["fields"]]
            if not all(isinstance(length, int) and 0 <= length <= 65535 for length in lengths):
                raise TypeError
            key = (str(row["exporter"]), int(row["port"]), version, int(row["domain"]), int(template["id"]))
            if key not in self._shapes:  # what was seen is newer
                self.learn(key, shape_of(lengths))


class Known:
    """One session of an exporter: see facts.Session."""

    def __init__(self, memory: Memory, exporter: str, port: int, any_domain: bool) -> None:
        self._memory = memory
        self._any_domain = any_domain
        self._exporter = exporter
        self._port = port

    def learn(self, version: int, domain: int, template: int, shape: Sequence[int]) -> None:
        self._memory.learn((self._exporter, self._port, version, domain, template), shape)

    def find(self, version: int, domain: int, template: int) -> Sequence[int] | None:
        return self._memory.find((self._exporter, self._port, version, domain, template), self._any_domain)


def _every(key: Key) -> Key:
    """The key of all domains."""
    exporter, port, version, _, template = key
    return exporter, port, version, 0, template


def asking(api: Api) -> Ask:
    """Asks a daemon."""

    def ask(exporter: str) -> Iterator[Any]:
        after: Any = "0.0"
        for _ in range(MOST_PAGES):
            answer = api.get(f"/api/v1/templates?after={quote(str(after))}&exporter={quote(exporter)}")
            yield from answer["domains"]
            after = answer["after"]
            if not after:
                return

    return ask
