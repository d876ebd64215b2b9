"""The relay, as the witness asks it.

Purpose: snapshots of what the relay gave to one receiver, by exporter. Invariants: reads only; what is no answer of a
relay of this version is Unreachable, like silence. Called by watch, in a thread; cli makes the client.
"""

from __future__ import annotations

import functools
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from samplicator.errors import Unreachable

PAGES: Final = 10_000
P = ParamSpec("P")
R = TypeVar("R")


class Api(Protocol):
    """A client of the relay's API. name: of the relay, for people."""

    name: str

    def get(self, page: str) -> Any:
        """The JSON value of a page. Raises Unreachable."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The relay's side. rows: shares by place (views/shares). given, drops: read after the rows, so that what a row
    shows is in them: the receivers' counters together, and kernel drops by listener.
    """

    rows: dict[str, dict[str, Any]]
    given: dict[str, Any]
    drops: dict[str, int] = field(default_factory=dict)


def _understood(ask: Callable[Concatenate[Relay, P], R]) -> Callable[Concatenate[Relay, P], R]:
    """Raises Unreachable for answers of another form."""

    @functools.wraps(ask)
    def asked(relay: Relay, /, *words: P.args, **more: P.kwargs) -> R:
        try:
            return ask(relay, *words, **more)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            why = f"the answer is not that of a relay of this version ({type(error).__name__}: {error})"
            raise Unreachable(f"{relay.name}: {why}") from error

    return asked


class Relay:
    """One relay."""

    def __init__(self, api: Api) -> None:
        self.name = api.name
        self._api = api

    @_understood
    def snapshot(self, receivers: Sequence[str]) -> Snapshot:
        """Of receivers together: a row's `copies` says how many of them get its datagrams. Raises Unreachable."""
        rows: dict[str, dict[str, Any]] = {}
        heads = []
        for name in receivers:
            page = "/api/v1/shares?receiver=" + urllib.parse.quote(name, safe="")
            after: str | None = ""
            for _ in range(PAGES):
                answer = self._api.get(page + (f"&after={after}" if after else ""))
                for row in answer["shares"]:
                    # the later reading, so that datagrams and copies belong to one moment
                    known = rows.get(row["place"], {"copies": 0, "pool": ""})
                    copies, pool = known["copies"] + 1, row["pool"] or known["pool"]
                    rows[row["place"]] = {**row, "copies": copies, "pool": pool}
                after = answer["after"]
                if not after:
                    break
        for name in receivers:
            heads.append(self._api.get("/api/v1/shares?limit=1&receiver=" + urllib.parse.quote(name, safe="")))
        failed: Counter[str] = Counter()
        for head in heads:
            failed.update(head["receiver"]["failed"])
        sums = {key: sum(head["receiver"][key] for head in heads) for key in ("offered", "skipped", "sent")}
        drops = {item["listener"]: item["kernel_drops"] for item in heads[-1]["listeners"]}
        return Snapshot(rows, {**sums, "failed": failed}, drops)

    @_understood
    def takes_turns(self, receivers: Sequence[str]) -> bool:
        """Whether one of them is in a pool that deals each exporter's datagrams out. Raises Unreachable."""
        return any(
            pool["balance"] == "round-robin" and any(member["receiver"] in receivers for member in pool["members"])
            for pool in self._api.get("/api/v1/pools")
        )

    @_understood
    def receivers_of(self, port: int, addresses: frozenset[str], name: str = "") -> list[dict[str, Any]]:
        """The receiver with this name and all that send to the same place, or all that send to the port of one of the
        addresses. Raises Unreachable when there is none, or when it is not clear which.
        """
        receivers = [dict(row) for row in self._api.get("/api/v1/receivers")]
        if name:
            one = next((row for row in receivers if row["name"] == name), None)
            if one is None:
                known = ", ".join(row["name"] for row in receivers)
                raise Unreachable(f"{self.name}: there is no receiver {name!r}; --receiver must be one of: {known}")
            same = ("address", "port", "source")
            return [one, *(row for row in receivers if row is not one and all(row[key] == one[key] for key in same))]
        found = [row for row in receivers if row["port"] == port]
        here = [row for row in found if row["address"] in addresses]
        found = here or found
        if not found:
            raise Unreachable(f"{self.name}: no receiver has port {port}; name the receiver with --receiver")
        if len({row["source"] for row in found}) > 1 or (not here and len(found) > 1):
            names = ", ".join(row["name"] for row in found)
            raise Unreachable(f"{self.name}: several receivers have port {port} ({names}); name one with --receiver")
        return found
