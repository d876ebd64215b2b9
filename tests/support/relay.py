"""The daemon under test as the tests see it: a process in the relay's namespace, its pages, its reloads, its laws.

Invariants: a scrape is asked for from inside the namespace; a missing series is a failure; waiting for an outcome is
polling with an end. Made by lab.py. Must never look into the product by any other way than its own interfaces.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from support.process import Process, wait_for

if TYPE_CHECKING:
    from support.lab import Lab


class Metrics:
    """One scrape. Label values select; a missing series is a failure, not a zero. Only what is asked for is read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._lines: dict[str, list[str]] = {}
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                self._lines.setdefault(re.split("[{ ]", line, maxsplit=1)[0], []).append(line)

    @property
    def samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """All of it, by name."""
        return {name: self._read(name) for name in self._lines}

    def _read(self, name: str) -> list[tuple[dict[str, str], float]]:
        if name not in self._samples:
            text = "".join(f"{line}\n" for line in self._lines.get(name, ()))
            self._samples[name] = [
                (dict(sample.labels), sample.value)
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            ]
        return self._samples[name]

    def select(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        rows = self._read("samplicator_" + name)
        return [row for row in rows if all(row[0].get(key) == value for key, value in labels.items())]

    def value(self, name: str, **labels: str) -> int:
        """The one series with these labels."""
        rows = self.select(name, **labels)
        assert len(rows) == 1, f"{len(rows)} series samplicator_{name} {labels}"
        return int(rows[0][1])

    def total(self, name: str, **labels: str) -> int:
        """Sum of the series with these labels, 0 when there is none."""
        return int(sum(value for _, value in self.select(name, **labels)))

    def names(self, label: str, metric: str) -> set[str]:
        return {labels[label] for labels, _ in self.select(metric)}

    def law_violations(self) -> list[str]:
        """Both conservation laws, per listener and per receiver; an empty list when they hold exactly."""
        problems = []
        listeners = self.names("listener", "receive_datagrams_total")
        for name in sorted(listeners):
            received = self.value("receive_datagrams_total", listener=name)
            truncated = self.value("receive_truncated_datagrams_total", listener=name)
            matched = self.value("receive_matched_datagrams_total", listener=name)
            rejected = self.total("receive_rejected_datagrams_total", listener=name)
            if received != truncated + matched + rejected:
                parts = f"truncated {truncated} + matched {matched} + rejected {rejected}"
                problems.append(f"listener {name}: received {received} != {parts}")
        for name in sorted(self.names("receiver", "send_offered_datagrams_total")):
            offered = self.value("send_offered_datagrams_total", receiver=name)
            skipped = self.total("send_skipped_datagrams_total", receiver=name)
            sent = self.value("send_datagrams_total", receiver=name)
            errors = self.total("send_failed_datagrams_total", receiver=name)
            if offered != skipped + sent + errors:
                parts = f"skipped {skipped} + sent {sent} + errors {errors}"
                problems.append(f"receiver {name}: offered {offered} != {parts}")
        if not listeners:
            problems.append("no listener in /metrics")
        return problems


class Relay(Process):
    """The daemon under test, and the ways to ask it."""

    HTTP = ("127.0.0.1", 9420)

    def __init__(self, lab: Lab, argv: Sequence[str], label: str, *, http: bool = True, **options: Any) -> None:
        self.lab = lab
        self.http = http
        self.control_path = lab.directory / f"{label}.sock"
        self.config_path = lab.directory / f"{label}.toml"
        super().__init__(argv, namespace=lab.relay.name, directory=lab.directory, label=label, **options)

    def get(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, control: bool = False
    ) -> tuple[int, bytes]:
        """One HTTP exchange, over TCP inside the relay's namespace or over the control socket."""
        if control:
            sock = socket.socket(socket.AF_UNIX)
            target: Any = str(self.control_path)
        else:
            sock = self.lab.relay.socket(socket.AF_INET, socket.SOCK_STREAM)
            target = self.HTTP
        with sock:
            sock.settimeout(20)
            sock.connect(target)
            connection = http.client.HTTPConnection("relay")
            connection.sock = sock
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read()

    def api(self, path: str) -> Any:
        status, body = self.get(f"/api/v1/{path}")
        assert status == 200, f"GET /api/v1/{path}: {status} {body!r}"
        return json.loads(body)

    def metrics(self) -> Metrics:
        status, body = self.get("/metrics")
        assert status == 200, f"GET /metrics: {status} {body!r}"
        return Metrics(body.decode())

    def answers(self) -> bool:
        """Whether /healthz says that all is well."""
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False

    def wait_ready(self, timeout: float = 40.0) -> Relay:
        def probe() -> bool:
            assert self.alive, f"{self.label} ended with {self.popen.returncode}:\n{self.tail()}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.get("/readyz")[0] == 200
            return False

        try:
            wait_for(probe, f"{self.label} to be ready", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None
        return self

    def write(self, text: str) -> None:
        """Replaces the configuration file in one step, without telling anybody."""
        fresh = self.config_path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.config_path)

    def reloads(self) -> tuple[int, int]:
        """(reloads tried, reloads failed) so far."""
        metrics = self.metrics()
        return metrics.value("config_reloads_total"), metrics.value("config_reload_failures_total")

    def hangup(self, text: str | None = None, *, broken: bool = False, timeout: float = 15.0) -> Metrics:
        """Puts `text` in the configuration's place, sends SIGHUP and waits until that is done with: until the daemon
        says that it runs this very text or, with `broken`, that a reload has failed. (The file watch may be the quicker
        of the two: what counts is the outcome.)
        """
        before = self.metrics()
        if text is not None:
            self.write(text)
        wanted = None if text is None else int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
        succeeded, failures = "config_last_reload_success_timestamp_seconds", "config_reload_failures_total"
        self.send_signal(signal.SIGHUP)

        def ended() -> Metrics | None:
            assert self.alive, f"{self.label} ended with {self.popen.returncode}:\n{self.tail()}"
            now = self.metrics()
            good = now.value("config_last_reload_successful") == 1
            if broken:
                return now if not good and now.value(failures) > before.value(failures) else None
            newer = now.select(succeeded) != before.select(succeeded)
            same = wanted is None or now.value("config_hash") == wanted
            return now if good and newer and same else None

        try:
            wait_for(ended, "the reload to end", timeout)
            return self.metrics()  # one scrape is not one moment: take one that began after the outcome was seen
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None

    def at_rest(self, timeout: float = 120.0) -> Metrics:
        """A scrape between which and the one before nothing moved: the moment at which the laws must hold exactly."""
        moving = ("receive_datagrams", "send_offered_datagrams", "send_datagrams", "send_errors")
        last: list[Metrics] = []

        def still() -> Metrics | None:
            now = self.metrics()
            same = bool(last) and all(
                now.select(f"{name}_total") == last[-1].select(f"{name}_total") for name in moving
            )
            queued = now.total("receive_queue_bytes")
            last.append(now)
            return now if same and queued == 0 else None

        return wait_for(still, "the relay to come to rest", timeout, 0.1)

    def check_laws(self) -> Metrics:
        metrics = self.at_rest()
        problems = metrics.law_violations()
        assert not problems, "conservation laws broken:\n" + "\n".join(problems)
        return metrics
