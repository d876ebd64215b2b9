"""The account for Prometheus, for a witness that stays on.

Purpose: counters per exporter and stage, as text. Invariants: an answer is made beforehand; at most MOST exporters are
named, those with losses first, and the rest are `_other`; a client has SECONDS. Standard library only. Called by cli.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from samplicator.witness.balance import STAGES, Account

MOST: Final = 1000
SECONDS: Final = 5.0
TEXT: Final = {
    "lost_before": "Datagrams lost before the relay, by the exporters' sequence numbers",
    "lost_at_socket": "Datagrams dropped by the kernel in front of the relay's sockets",
    "failed": "Copies that the relay could not send",
    "lost_on_way": "Copies that the relay sent and that did not arrive here",
    "dropped_by_collector": "Datagrams dropped by the kernel in front of the collector's sockets",
    "wire": "Datagrams that arrived at this host",
}

UNATTRIBUTED: Final = "samplicator_witness_unattributed_datagrams_total"
UNSEEN: Final = "samplicator_witness_unseen_packets_total"


def names() -> tuple[str, ...]:
    """All metrics."""
    return (*(f"samplicator_witness_{stage}_datagrams_total" for stage in TEXT), UNATTRIBUTED, UNSEEN)


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
    for metric, (stage, said) in zip(names(), TEXT.items(), strict=False):
        counts = getattr(account, stage)
        found += [f"# HELP {metric} {said}", f"# TYPE {metric} counter"]
        rows = [(name, max(0, counts[name])) for name in kept]
        if len(ranked) > MOST:
            rows.append(("_other", sum(max(0, counts[name]) for name in ranked[MOST:])))
        found += [f'{metric}{{receiver="{_label(receiver)}",exporter="{name}"}} {count}' for name, count in rows]
    metric = UNATTRIBUTED
    found += [f"# HELP {metric} Datagrams lost that are known as a sum only, by stage", f"# TYPE {metric} counter"]
    for stages, (count, _) in account.sums.items():
        found.append(f'{metric}{{receiver="{_label(receiver)}",stage="{"_or_".join(stages)}"}} {count}')
    metric = UNSEEN
    found += [f"# HELP {metric} Packets that the witness had no room for", f"# TYPE {metric} counter"]
    found.append(f"{metric} {account.unseen}")
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
