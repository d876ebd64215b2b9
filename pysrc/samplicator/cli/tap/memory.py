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
from samplicator.cli.control import Unreachable
from samplicator.cli.tap.decode import shape_of
from samplicator.cli.tap.events import Address

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

    def session(self, exporter: Address, port: int) -> Known:
        """What is known of a session of an exporter."""
        return Known(self, str(exporter), port)

    def learn(self, key: Key, shape: Sequence[int]) -> None:
        """key: exporter, port, version, domain, template."""
        self._weight += len(shape) - len(self._shapes.pop(key, ()))
        self._shapes[key] = shape
        while self._weight > MOST_WEIGHT:
            self._weight -= len(self._shapes.popitem(last=False)[1])

    def find(self, key: Key) -> Sequence[int] | None:
        """Asks the daemon if it has to."""
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
        return self._shapes.get(key)

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

    def __init__(self, memory: Memory, exporter: str, port: int) -> None:
        self._memory = memory
        self._exporter = exporter
        self._port = port

    def learn(self, version: int, domain: int, template: int, shape: Sequence[int]) -> None:
        self._memory.learn((self._exporter, self._port, version, domain, template), shape)

    def find(self, version: int, domain: int, template: int) -> Sequence[int] | None:
        return self._memory.find((self._exporter, self._port, version, domain, template))


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
