"""The laboratory: an exporter, a relay and collectors in network namespaces of their own, joined by veth pairs.

    exporter --- relay --- collector 1
                      \\--- collector 2

Link i carries 198.18.i.0/24 and 2001:db8:0:i::/64; the relay is .1 / ::1, the other side .2 / ::2. Every address of
198.18.64.0 up to 198.19.255.255 and of 2001:db8:8000::/33 is local to the exporter, so that one namespace speaks for
many thousand exporters.

Invariants: names are random and carry the pid of the test run; everything made here is undone by close(), whatever
happened before, and leftovers of runs that died are swept by the next one. Device offload is off unless asked for:
what a witness sees is what went over the wire. After each test close() holds the relay's counters against both
conservation laws. Used by tests/system and tests/deploy. Must never touch the host's own network.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from support.namespace import Namespace, run
from support.pace import waiting
from support.process import Process, bench_tool, command, tool, wait_for
from support.relay import Metrics, Relay
from support.witness import Seen, Tap, Tshark

__all__ = ["Lab", "Metrics", "Namespace", "Relay", "run", "sweep"]

IP_FREEBIND, IPV6_FREEBIND = 15, 78
SO_RCVBUFFORCE = 33


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
        for link, peer in enumerate(peers):
            mtu, macs = str(self.mtu), {1: f"02:00:00:00:{link:02x}:01", 2: f"02:00:00:00:{link:02x}:02"}
            words = ("ip", "link", "add", f"r{link}", "address", macs[1], "mtu", mtu, "netns", self.relay.name)
            run(*words, "type", "veth", "peer", "name", "e0", "address", macs[2], "mtu", mtu, "netns", peer.name)
            for namespace, device, last in ((self.relay, f"r{link}", 1), (peer, "e0", 2)):
                other = 3 - last
                # permanent neighbors: a fresh link may take a second to answer, and what waits for it is dropped
                batch = f"""\
addr add 198.18.{link}.{last}/24 dev {device}
addr add 2001:db8:0:{link}::{last}/64 dev {device} nodad
link set {device} txqueuelen 10000 up
neigh replace 198.18.{link}.{other} lladdr {macs[other]} dev {device} nud permanent
neigh replace 2001:db8:0:{link}::{other} lladdr {macs[other]} dev {device} nud permanent
"""
                run("ip", "-n", namespace.name, "-batch", "-", stdin=batch)
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
        label: str = "sink",
        join: bool = False,
    ) -> Process:
        """The C verifier at collector `link`; it listens when this returns, until tally(). join: a session may begin
        anywhere.
        """
        words = [word for listen in listens for word in ("--listen", listen)] + (["--join"] if join else [])
        process = self.start(
            [bench_tool("sink"), *words, "--idle-ms", "280000", "--max-seconds", "280"],
            self.collectors[link - 1],
            label,
        )
        ports = {int(listen.rpartition(":")[2]) for listen in listens}
        self.wait_bound(self.collectors[link - 1], ports, process)
        return process

    def tally(self, sink: Process) -> dict[str, int]:
        """What a sink got of all that the relays have sent. Waits for them to rest, and for what is on its way."""
        for relay in self.relays:
            if relay.alive and relay.http:
                relay.at_rest()
        quiet, came = 0, -1
        while quiet < 5:
            before, came = came, udp_datagrams(sink)
            quiet = quiet + 1 if came == before and not waiting(sink) else 0
            time.sleep(0.05)
        sink.send_signal(signal.SIGTERM)
        result: dict[str, int] = sink.result(30)
        return result

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


def udp_datagrams(process: Process) -> int:
    """Datagrams that have come to the network namespace of a process, whatever became of them."""
    lines = Path(f"/proc/{process.popen.pid}/net/snmp").read_text().splitlines()
    names, values = ([*line.split()] for line in lines if line.startswith("Udp:"))
    counters = dict(zip(names[1:], map(int, values[1:]), strict=True))
    six = dict(line.split() for line in Path(f"/proc/{process.popen.pid}/net/snmp6").read_text().splitlines())
    return counters["InDatagrams"] + counters["InErrors"] + int(six["Udp6InDatagrams"]) + int(six["Udp6InErrors"])


def sweep() -> None:
    """Removes namespaces that dead test runs left behind."""
    for path in Path("/run/netns").glob("smpl-*"):
        found = re.match(r"smpl-(\d+)-", path.name)
        if found and not Path(f"/proc/{found.group(1)}").exists():
            subprocess.run([tool("ip"), "netns", "del", path.name], capture_output=True, timeout=30)
            shutil.rmtree(f"/etc/netns/{path.name}", ignore_errors=True)
