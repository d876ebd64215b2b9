"""The relay, as the witness asks it: its API over the control socket or HTTP.

Purpose: snapshots of what the relay gave to one receiver, by exporter. Invariants: reads only; an answer has at most
MOST_BYTES; user and password come from the URL. Standard library only. Called by watch, in a thread.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MOST_BYTES: Final = 64 << 20
SECONDS: Final = 10.0
PAGES: Final = 10_000


class Unreachable(Exception):
    """The relay did not answer, or not as it should; the text says why."""


class _Local(http.client.HTTPConnection):
    """HTTP over a local socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The relay's side. rows: shares by place (views/shares). given, drops: read after the rows, so that what a row
    shows is in them: the receivers' counters together, and kernel drops by listener.
    """

    rows: dict[str, dict[str, Any]]
    given: dict[str, Any]
    drops: dict[str, int] = field(default_factory=dict)


class Relay:
    """One relay. url or control: where its API is."""

    def __init__(self, url: str = "", control: str = "") -> None:
        """Raises Unreachable for a URL that cannot be one."""
        self.name = url or control
        self._control = control
        self._parts = urllib.parse.urlsplit(url)
        if url and (self._parts.scheme not in ("http", "https") or not self._parts.hostname):
            raise Unreachable(f"{url} must be http://HOST:PORT or https://HOST:PORT")

    def get(self, page: str) -> Any:
        """The JSON value of a page. Raises Unreachable."""
        try:
            connection = self._connection()
            try:
                connection.request("GET", self._parts.path.rstrip("/") + page, headers=self._headers())
                answer = connection.getresponse()
                body = answer.read(MOST_BYTES)
            finally:
                connection.close()
            if answer.status == 404:
                raise Unreachable(f"{self.name}: {page} is not there; the relay must be samplicator of this version")
            if answer.status != 200:
                said = body[:200].decode(errors="replace").strip()
                raise Unreachable(f"{self.name}: {page} answered {answer.status}: {said}")
            return json.loads(body)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Unreachable(f"{self.name}: {error or type(error).__name__}") from error

    def _connection(self) -> http.client.HTTPConnection:
        if self._control:
            return _Local(self._control)
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=SECONDS, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=SECONDS)

    def _headers(self) -> dict[str, str]:
        if self._parts.username is None:
            return {}
        pair = f"{urllib.parse.unquote(self._parts.username)}:{urllib.parse.unquote(self._parts.password or '')}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}

    def snapshot(self, receivers: Sequence[str]) -> Snapshot:
        """Of receivers together: a row's `copies` says how many of them get its datagrams. Raises Unreachable."""
        rows: dict[str, dict[str, Any]] = {}
        heads = []
        for name in receivers:
            page = "/api/v1/shares?receiver=" + urllib.parse.quote(name, safe="")
            after: str | None = ""
            for _ in range(PAGES):
                answer = self.get(page + (f"&after={after}" if after else ""))
                for row in answer["shares"]:
                    # the later reading, so that datagrams and copies belong to one moment
                    known = rows.get(row["place"], {"copies": 0, "pool": ""})
                    copies, pool = known["copies"] + 1, row["pool"] or known["pool"]
                    rows[row["place"]] = {**row, "copies": copies, "pool": pool}
                after = answer["after"]
                if not after:
                    break
        for name in receivers:
            heads.append(self.get("/api/v1/shares?limit=1&receiver=" + urllib.parse.quote(name, safe="")))
        failed: Counter[str] = Counter()
        for head in heads:
            failed.update(head["receiver"]["failed"])
        sums = {key: sum(head["receiver"][key] for head in heads) for key in ("offered", "skipped", "sent")}
        drops = {item["listener"]: item["kernel_drops"] for item in heads[-1]["listeners"]}
        return Snapshot(rows, {**sums, "failed": failed}, drops)

    def takes_turns(self, receivers: Sequence[str]) -> bool:
        """Whether one of them is in a pool that deals each exporter's datagrams out. Raises Unreachable."""
        return any(
            pool["balance"] == "round-robin" and any(member["receiver"] in receivers for member in pool["members"])
            for pool in self.get("/api/v1/pools")
        )

    def receivers_of(self, port: int, addresses: frozenset[str], name: str = "") -> list[dict[str, Any]]:
        """The receiver with this name and all that send to the same place, or all that send to the port of one of the
        addresses. Raises Unreachable when there is none, or when it is not clear which.
        """
        receivers = [dict(row) for row in self.get("/api/v1/receivers")]
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
