"""A daemon that plays `/api/v1/tap`: what a test says, over a local socket or TCP; and the events in it.

Used by the tests of `samplicator tap`. The daemon answers `/api/v1/templates` too, and remembers what was asked for.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn, UnixStreamServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Script = Callable[[], Iterator[bytes]]
OPEN: dict[str, Any] = {
    "event": "open",
    "version": 1,
    "rate": 1000,
    "workers": 2,
    "listeners": [
        {"name": "flows", "address": "198.18.0.2", "port": 2055},
        {"name": "any", "address": "0.0.0.0", "port": 6343},
        {"name": "any", "address": "::", "port": 6343},
    ],
    "receivers": [
        {"name": "nf1", "address": "192.0.2.10", "port": 9995, "source": "exporter"},
        {"name": "own", "address": "192.0.2.11", "port": 9996, "source": "own"},
        {"name": "six", "address": "2001:db8::10", "port": 9995, "source": "2001:db8::1"},
    ],
}
TIME_NS = 1_700_000_000_123_456_789


def datagram(event: str, payload: bytes, **more: Any) -> dict[str, Any]:
    """An event about a datagram of 198.18.0.1 at the listener `flows`."""
    return {
        "event": event,
        "datagram": 256,
        "time_ns": TIME_NS,
        "exporter": "198.18.0.1",
        "port": 2055,
        "listener": "flows",
        "receiver": None,
        "reason": None,
        "way": None,
        "ttl": 64,
        "tos": 0,
        "length": len(payload),
        "payload": base64.b64encode(payload).decode(),
        **more,
    }


def tick(shown: int, unshown: int = 0) -> dict[str, Any]:
    return {"event": "tick", "shown": shown, "unshown": unshown}


def as_lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def script(*events: dict[str, Any]) -> Script:
    return lambda: iter([as_lines(event) for event in events])


class Daemon:
    """where: the path of a local socket, or ("127.0.0.1", 0). play: pieces of the answer; after the last one the answer
    ends. templates: rows of `/api/v1/templates`. status, body: of another answer to the tap. broken: the answer ends
    in the middle of a chunk.
    """

    def __init__(self, where: Path | tuple[str, int], play: Script, templates: list[Any] | None = None) -> None:
        self.play = play
        self.templates = templates or []
        self.status = 200
        self.body = b""
        self.broken = False
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.headers: list[dict[str, str]] = []
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                daemon.seen.append((parts.path, dict(parse_qsl(parts.query))))
                daemon.headers.append(dict(self.headers.items()))
                daemon.answer(self, parts.path)

            def log_message(self, *words: Any) -> None:
                pass

            def address_string(self) -> str:
                return "here"

        class Threads(ThreadingMixIn):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):
                    super().handle_error(request, client_address)  # type: ignore[misc]

        class Local(Threads, UnixStreamServer):
            pass

        class Network(Threads, TCPServer):
            pass

        self.server = Local(str(where), Handler) if isinstance(where, Path) else Network(where, Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})

    def answer(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        if path.endswith("/templates"):
            whole(handler, 200, json.dumps({"domains": self.templates, "after": None}).encode())
        elif self.status != 200:
            whole(handler, self.status, self.body)
        else:
            self._stream(handler)

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-ndjson")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for piece in self.play():
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                handler.wfile.flush()
            handler.wfile.write(b"ff\r\n" if self.broken else b"0\r\n\r\n")
        except ConnectionError:  # the client has left
            pass
        handler.close_connection = True

    def asked_for(self, end: str) -> list[dict[str, str]]:
        """The queries of requests whose path ends so."""
        return [query for path, query in self.seen if path.endswith(end)]

    def __enter__(self) -> Daemon:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def whole(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
