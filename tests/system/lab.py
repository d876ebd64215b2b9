"""The laboratory: an exporter, a relay and collectors in network namespaces of their own, joined by veth pairs.

    exporter --- relay --- collector 1
                      \\--- collector 2

Link i carries 198.18.i.0/24 and 2001:db8:0:i::/64; the relay is .1 / ::1, the other side .2 / ::2. Every address of
198.18.64.0 up to 198.19.255.255 and of 2001:db8:8000::/33 is local to the exporter, so that one namespace speaks for
many thousand exporters.

Invariants: names are random and carry the pid of the test run; everything made here is undone by close(), whatever
happened before, and leftovers of runs that died are swept by the next one. Device checksum offload is off: what a
witness sees is what went over the wire. After each test close() holds the relay's counters against both conservation
laws. Used by tests/system only. Must never touch the host's own network.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from namespace import Namespace, run
from process import Process, bench_tool, command, tool, wait_for
from prometheus_client.parser import text_string_to_metric_families
from witness import Seen, Tap, Tshark

IP_FREEBIND, IPV6_FREEBIND = 15, 78
SO_RCVBUFFORCE = 33


class Metrics:
    """One scrape. Label values select; a missing series is a failure, not a zero."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))

    def select(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        rows = self.samples.get("samplicator_" + name, [])
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
            errors = self.total("send_errors_total", receiver=name)
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

    def wait_ready(self, timeout: float = 20.0) -> Relay:
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

    def at_rest(self, timeout: float = 15.0) -> Metrics:
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


class Lab:
    """See the head of this file. One lab for one test."""

    def __init__(self, *, mtu: int = 1500, collectors: int = 2, offload: bool = False) -> None:
        self.offload = offload
        self.directory = Path(tempfile.mkdtemp(prefix="smpl-"))
        self.directory.chmod(0o755)  # some tools drop their privileges
        self.mtu = mtu
        self.processes: list[Process] = []
        self.relays: list[Relay] = []
        self.closers: list[Callable[[], None]] = []
        self.names: list[str] = []
        stem = f"smpl-{os.getpid()}-{secrets.token_hex(3)}"
        try:
            self.exporter = self._namespace(f"{stem}-exp")
            self.relay = self._namespace(f"{stem}-rel")
            self.collectors = [self._namespace(f"{stem}-c{number}") for number in range(1, collectors + 1)]
            self._wire()
        except BaseException:
            self._remove()
            raise

    # --- addresses ---------------------------------------------------------------------------------------------------
    EXPORTERS4, EXPORTERS6 = "198.18.64.0", "2001:db8:8000::"

    @staticmethod
    def relay4(link: int = 0) -> str:
        return f"198.18.{link}.1"

    @staticmethod
    def relay6(link: int = 0) -> str:
        return str(ipaddress.ip_address(f"2001:db8:0:{link}::1"))

    @staticmethod
    def peer4(link: int) -> str:
        return f"198.18.{link}.2"

    @staticmethod
    def peer6(link: int) -> str:
        return str(ipaddress.ip_address(f"2001:db8:0:{link}::2"))

    # --- making and unmaking -----------------------------------------------------------------------------------------
    def _namespace(self, name: str) -> Namespace:
        run("ip", "netns", "add", name)
        self.names.append(name)
        return Namespace(name)

    def _wire(self) -> None:
        peers = [self.exporter, *self.collectors]
        for namespace in [self.relay, *peers]:
            namespace.sysctl(
                ipv4__conf__all__rp_filter=0,
                ipv4__conf__default__rp_filter=0,
                ipv6__conf__all__accept_dad=0,
                ipv6__conf__default__accept_dad=0,
                ipv6__conf__default__router_solicitations=0,
                ipv4__icmp_ratelimit=0,
                ipv4__icmp_msgs_burst=100_000,
                ipv4__ip_forward=1,
                ipv6__conf__all__forwarding=1,
            )
            namespace.ip("link", "set", "lo", "up")
        outer = self.relay.name
        for link, peer in enumerate(peers):
            inner = peer.name
            mtu = str(self.mtu)
            words = ("ip", "link", "add", f"r{link}", "mtu", mtu, "netns", outer, "type", "veth")
            run(*words, "peer", "name", "e0", "mtu", mtu, "netns", inner)
            for namespace, device, last in ((self.relay, f"r{link}", 1), (peer, "e0", 2)):
                run(
                    "ip",
                    "-n",
                    namespace.name,
                    "-batch",
                    "-",
                    stdin=f"""\
addr add 198.18.{link}.{last}/24 dev {device}
addr add 2001:db8:0:{link}::{last}/64 dev {device} nodad
link set {device} txqueuelen 10000 up
""",
                )
                if not self.offload:
                    namespace.run("ethtool", "-K", device, "tx", "off", "gro", "off")
        for link, peer in enumerate(peers):
            peer.ip("route", "add", "default", "via", self.relay4(link))
            peer.ip("-6", "route", "add", "default", "via", self.relay6(link))
        for prefix in ("198.18.64.0/18", "198.18.128.0/17", "198.19.0.0/16"):
            self.exporter.ip("route", "add", "local", prefix, "dev", "lo")
            self.relay.ip("route", "add", prefix, "via", self.peer4(0))
        self.exporter.ip("-6", "route", "add", "local", "2001:db8:8000::/33", "dev", "lo")
        self.relay.ip("-6", "route", "add", "2001:db8:8000::/33", "via", self.peer6(0))

    def tap(self, link: int, wanted: Callable[[Seen], bool] | None = None) -> Tap:
        """A witness of what arrives at the far end of `link` (1 = first collector); 0 = what arrives at the relay."""
        tap = Tap(self.collectors[link - 1], "e0", wanted) if link else Tap(self.relay, "r0", wanted)
        self.closers.append(tap.close)
        return tap

    def tshark(self, link: int) -> Tshark:
        """tshark at the far end of `link`; .on() waits until it captures (several start at once)."""
        process = self.start(Tshark.argv("e0"), self.collectors[link - 1], f"tshark{link}")
        sender = self.relay.socket(socket.AF_INET)
        self.closers.append(sender.close)
        return Tshark(process, lambda text: void(sender.sendto(text, (self.peer4(link), 9))))

    # --- processes ---------------------------------------------------------------------------------------------------
    def start(self, argv: Sequence[str], namespace: Namespace | None, label: str, **options: Any) -> Process:
        name = namespace.name if namespace else None
        process = Process(argv, namespace=name, directory=self.directory, label=self._label(label), **options)
        self.processes.append(process)
        return process

    def _label(self, label: str) -> str:
        used = {process.label for process in [*self.processes, *self.relays]}
        candidates = (label, *(f"{label}-{number}" for number in range(2, 10_000)))
        return next(candidate for candidate in candidates if candidate not in used)

    def samplicate(self, *words: str, http: bool = True, ready: bool = True, **options: Any) -> Relay:
        """The drop-in command in the relay namespace; `http` gives it a /metrics on 127.0.0.1:9420."""
        label = self._label("samplicate")
        extra = ["--http", "127.0.0.1:9420", "--control", str(self.directory / f"{label}.sock")] if http else []
        relay = Relay(self, [command("samplicate"), *extra, *words], label, http=http, **options)
        self.relays.append(relay)
        return relay.wait_ready() if http and ready else relay

    def samplicator(self, text: str, *words: str, ready: bool = True, **options: Any) -> Relay:
        """The modern command with a configuration; [service] is written here unless `text` has one."""
        label = self._label("samplicator")
        path = self.directory / f"{label}.toml"
        path.write_text(self.with_service(text, label))
        relay = Relay(self, [command("samplicator"), "run", "-c", str(path), *words], label, **options)
        self.relays.append(relay)
        return relay.wait_ready() if ready else relay

    def with_service(self, text: str, label: str = "samplicator") -> str:
        if "[service]" in text:
            return text
        return f'[service]\nhttp = "127.0.0.1:9420"\ncontrol = "{self.directory}/{label}.sock"\n{text}'

    # --- traffic -----------------------------------------------------------------------------------------------------
    def load(self, *words: object, namespace: Namespace | None = None, label: str = "loadgen") -> Process:
        """The C generator in the exporter namespace."""
        return self.start([bench_tool("loadgen"), "--json", *map(str, words)], namespace or self.exporter, label)

    def sink(
        self,
        link: int,
        *listens: str,
        idle_ms: int = 1500,
        max_seconds: int = 60,
        label: str = "sink",
        join: bool = False,
    ) -> Process:
        """The C verifier at collector `link`; it listens when this returns. join: a session may begin anywhere."""
        words = [word for listen in listens for word in ("--listen", listen)] + (["--join"] if join else [])
        process = self.start(
            [bench_tool("sink"), *words, "--idle-ms", str(idle_ms), "--max-seconds", str(max_seconds)],
            self.collectors[link - 1],
            label,
        )
        ports = {int(listen.rpartition(":")[2]) for listen in listens}
        self.wait_bound(self.collectors[link - 1], ports, process)
        return process

    @staticmethod
    def wait_bound(namespace: Namespace, ports: Iterable[int], process: Process, timeout: float = 15.0) -> None:
        """Waits until UDP sockets of the namespace are bound to all of `ports`."""

        def bound() -> bool:
            assert process.alive, f"{process.label} ended with {process.popen.returncode}:\n{process.tail()}"
            found = set()
            for name in ("udp", "udp6"):
                text = namespace.call(lambda name=name: Path(f"/proc/thread-self/net/{name}").read_text())
                found |= {int(port, 16) for port in re.findall(r"^ *\d+: [0-9A-F]+:([0-9A-F]{4}) ", text, re.M)}
            return set(ports) <= found

        wait_for(bound, f"{process.label} to listen on {sorted(ports)}", timeout)

    def exporter_socket(
        self, address: str, port: int, *, ttl: int | None = None, tos: int | None = None
    ) -> socket.socket:
        """A UDP socket of an exporter at any address of the pool."""
        six = ":" in address
        sock = self.exporter.socket(socket.AF_INET6 if six else socket.AF_INET)
        self.closers.append(sock.close)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            if ttl is not None:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
            if tos is not None:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            if ttl is not None:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            if tos is not None:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        sock.bind((address, port))
        return sock

    def collector_socket(self, link: int, port: int, *, six: bool = False) -> socket.socket:
        """A plain UDP socket at a collector, with a large buffer."""
        sock = self.collectors[link - 1].socket(socket.AF_INET6 if six else socket.AF_INET)
        self.closers.append(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        sock.bind((self.peer6(link) if six else self.peer4(link), port))
        sock.settimeout(10)
        return sock

    # --- the end -----------------------------------------------------------------------------------------------------
    def settle(self) -> None:
        """Ends everything but the relays, then holds each living relay to the laws; a relay that died by itself is a
        failure.
        """
        for process in self.processes:
            if process.alive and process.label.startswith("loadgen"):
                process.kill()
        for relay in self.relays:
            if relay.alive and relay.http:
                relay.check_laws()
            status = relay.popen.poll()
            if status is not None and status not in relay.expected:
                raise AssertionError(f"{relay.label} ended with {status}:\n{relay.tail()}")

    def close(self) -> None:
        try:
            self.settle()
            for relay in self.relays:
                relay.end()
        finally:
            self._remove()

    def _remove(self) -> None:
        for process in [*self.processes, *self.relays]:
            if process.alive:
                process.send_signal(signal.SIGTERM)
        for process in [*self.processes, *self.relays]:
            try:
                process.popen.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
        for closer in self.closers:
            with contextlib.suppress(OSError):
                closer()
        for name in self.names:
            subprocess.run([tool("ip"), "netns", "del", name], capture_output=True, timeout=30)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)


def void(_: object) -> None:
    """Drops a value where a callback must return none."""


def sweep() -> None:
    """Removes namespaces that dead test runs left behind."""
    for path in Path("/run/netns").glob("smpl-*"):
        found = re.match(r"smpl-(\d+)-", path.name)
        if found and not Path(f"/proc/{found.group(1)}").exists():
            subprocess.run([tool("ip"), "netns", "del", path.name], capture_output=True, timeout=30)
            shutil.rmtree(f"/etc/netns/{path.name}", ignore_errors=True)
