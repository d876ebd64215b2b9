"""A client of /api/v1/tap for tests: reads lines on a thread, over the control socket."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from support.process import wait_for


class TapClient:
    """An open tap. lines: all of them so far."""

    def __init__(self, control: Path, **asked: Any) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(20)
        self._sock.connect(str(control))
        connection = http.client.HTTPConnection("relay")
        connection.sock = self._sock
        connection.request("GET", f"/api/v1/tap?{urlencode(asked)}")
        self._answer = connection.getresponse()
        self.status = self._answer.status
        self.lines: list[dict[str, Any]] = []
        self.ended = False
        if self.status != 200:
            self.error = self._answer.read().decode()
            return
        assert self._answer.headers["Content-Type"] == "application/x-ndjson"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        wait_for(lambda: self.lines, "the tap to be open", interval=0.0005)
        assert self.lines[0]["event"] == "open"

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            while line := self._answer.readline():
                self.lines.append(json.loads(line))
        self.ended = True

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """What happened, with the payload as bytes."""
        wanted = kinds or ("in", "sent", "skipped", "failed", "dropped")
        return [
            {**line, "payload": base64.b64decode(line["payload"])}
            for line in list(self.lines)
            if line["event"] in wanted
        ]

    def ticks(self) -> list[dict[str, Any]]:
        return [line for line in list(self.lines) if line["event"] == "tick"]

    def wait(self, count: int, *kinds: str, timeout: float = 40.0) -> list[dict[str, Any]]:
        """Until so many events have come."""
        wait_for(lambda: len(self.events(*kinds)) >= count, f"{count} events of {kinds or 'all kinds'}", timeout)
        return self.events(*kinds)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


@contextlib.contextmanager
def tap(control: Path, **asked: Any) -> Iterator[TapClient]:
    """Closed at the end."""
    client = TapClient(control, **asked)
    try:
        yield client
    finally:
        client.close()
