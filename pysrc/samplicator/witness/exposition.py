"""The account for Prometheus, for a witness that stays on.

Purpose: counters per exporter and stage, as text. Invariants: an answer is made beforehand; at most MOST exporters are
named, those with losses first, and the rest are `_other`; a client has SECONDS. No third-party package. Called by cli.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from samplicator.views.witness_metrics import WITNESS_METRICS
from samplicator.witness.balance import STAGES, Account

MOST: Final = 1000
SECONDS: Final = 5.0


class Shown:
    """What is served."""

    def __init__(self) -> None:
        self.body = b""
        self.address = ("", 0)

    def update(self, receiver: str, account: Account) -> None:
        self.body = text(receiver, account).encode()


def text(receiver: str, account: Account) -> str:
    """Prometheus text format 0.0.4."""
    known: set[str] = set().union(*(getattr(account, stage) for stage in (*STAGES, "wire")))
    ranked = sorted(known, key=lambda name: (-sum(getattr(account, stage)[name] for stage in STAGES), name))
    kept = ranked[:MOST]
    found = []
    for metric in WITNESS_METRICS:
        name, (_, origin) = metric.full_name, metric.origin.split(".")
        found += [f"# HELP {name} {metric.help}", f"# TYPE {name} counter"]
        if origin == "sums":
            for stages, (count, _) in account.sums.items():
                found.append(f'{name}{{receiver="{_label(receiver)}",stage="{"_or_".join(stages)}"}} {count}')
        elif origin == "unseen":
            found.append(f"{name} {account.unseen}")
        else:
            counts = getattr(account, origin)
            rows = [(each, max(0, counts[each])) for each in kept]
            if len(ranked) > MOST:
                rows.append(("_other", sum(max(0, counts[each]) for each in ranked[MOST:])))
            found += [f'{name}{{receiver="{_label(receiver)}",exporter="{each}"}} {count}' for each, count in rows]
    return "\n".join(found) + "\n"


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def serve(place: str) -> Shown:
    """Serves /metrics at ADDRESS:PORT from now on. Raises OSError, ValueError."""
    host, _, port = place.rpartition(":")
    if not port.isdigit():
        raise ValueError("must be ADDRESS:PORT")
    host = host.strip("[]")
    shown = Shown()
    shown.update("", Account())

    class Answer(BaseHTTPRequestHandler):
        timeout = SECONDS

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(shown.body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(shown.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    server = Server((host, int(port)), Answer)
    shown.address = server.server_address[:2]  # type: ignore[assignment]
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return shown
