"""Relays behind a router that shares exporters among them by BGP: BIRD and the files of deploy/anycast, in namespaces.

    exporters --- router --- switch --- relay 1, 2, 3
                                  \\---- collector: a relay of its own, whose ledger counts losses

Routers and relays run the shipped configurations with the addresses of this laboratory. The switch keeps the carrier of
the router's port up when a relay is cut off. Used by tests/deploy/test_anycast.py. Must never touch the host's network.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from support import flows
from support.namespace import Namespace, run
from support.process import Process, command, tool, wait_for

ANYCAST = Path(__file__).resolve().parents[2] / "deploy" / "anycast"
SERVICE4, SERVICE6 = "198.18.2.255", "2001:db8:2::255"
PORT, COLLECTOR_PORT = 2055, 9995
ROUTER, COLLECTOR = 1, 100  # host numbers on the switch; relay n has 10 + n
FIELDS = [(8, 4), (12, 4), (1, 4)]
SO_RCVBUFFORCE, IPV6_FREEBIND = 33, 78

RELAY = """\
[service]
http = ""
control = "{control}"
[[listener]]
name = "in"
listen = ["0.0.0.0:2055", "[::]:2055"]
[[receiver]]
name = "collector4"
to = "198.18.1.100:9995"
spoof = true
[[receiver]]
name = "collector6"
to = "[2001:db8:0:1::100]:9995"
spoof = true
[[rule]]
from = ["0.0.0.0/0"]
to = ["collector4"]
[[rule]]
from = ["::/0"]
to = ["collector6"]
"""

BEHIND = """\
[service]
http = ""
control = "{control}"
[[listener]]
name = "in"
listen = ["0.0.0.0:9995", "[::]:9995"]
[[receiver]]
name = "sink"
to = "127.0.0.1:9996"
[[rule]]
to = ["sink"]
"""


class Relay:
    """A relay: samplicator, BIRD, announce.py. Each can be started and ended apart."""

    def __init__(self, field: Field, number: int) -> None:
        self.field = field
        self.number = number
        self.namespace = field.namespace(f"r{number}")
        self.control = field.directory / f"relay{number}.sock"
        self.bird_control = field.directory / f"bird{number}.ctl"
        field.join(self.namespace, 10 + number)
        for words in (("addr", "add", f"{SERVICE4}/32"), ("-6", "addr", "add", f"{SERVICE6}/128")):
            self.namespace.ip(*words, "dev", "lo")
        text = field.adapted(ANYCAST / "relay" / "bird.conf")
        text, replaced = re.subn(r"(?m)^router id \S+;", f"router id 198.18.1.{10 + number};", text)
        assert replaced == 1
        self.bird_config = field.directory / f"bird{number}.conf"
        self.bird_config.write_text(text)
        (field.directory / f"relay{number}.toml").write_text(RELAY.format(control=self.control))
        self.samplicator = self.start_samplicator()
        self.bird = self.start_bird()
        self.announce = self.start_announce()

    def start_samplicator(self) -> Process:
        self.samplicator = self.field.daemon(self.namespace, f"relay{self.number}")
        return self.samplicator

    def start_bird(self) -> Process:
        self.bird = self.field.start_bird(self.namespace, self.bird_config, self.bird_control)
        return self.bird

    def start_announce(self) -> Process:
        birdc = f"{tool('birdc')} -s {self.bird_control}"
        self.announce = self.field.start(
            [
                sys.executable,
                str(ANYCAST / "relay" / "announce.py"),
                *("--control", str(self.control), "--quiet", "1"),
                *("--announce", f"{birdc} enable '\"samplicator*\"'"),
                *("--withdraw", f"{birdc} disable '\"samplicator*\"'"),
            ],
            self.namespace,
            f"announce{self.number}",
        )
        return self.announce

    def exporters(self) -> set[str]:
        """Addresses of the exporters that this relay has seen."""
        return {row["exporter"] for row in ask(self.control, "exporters?limit=1000")["exporters"]}

    def no_ports(self) -> int:
        """Datagrams that came to this host while no process had their port."""

        def read() -> int:
            lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
            names, values = (line.split() for line in lines if line.startswith("Udp:"))
            six = dict(line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
            return int(values[names.index("NoPorts")]) + int(six["Udp6NoPorts"])

        return self.namespace.call(read)


class Field:
    """See the head of this file. One for one test; everything made here is undone by close()."""

    def __init__(self, relays: int = 3) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="smpl-"))
        self.directory.chmod(0o755)
        self.stem = f"smpl-{os.getpid()}-{secrets.token_hex(3)}"
        self.names: list[str] = []
        self.processes: list[Process] = []
        self.sockets: list[socket.socket] = []
        try:
            self.switch = self.namespace("sw")
            self.switch.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
            self.switch.ip("link", "set", "br0", "up")
            self.router = self.namespace("rt")
            self.join(self.router, ROUTER)
            self._exporters()
            self._collector()
            self.relays = [Relay(self, number) for number in range(1, relays + 1)]
            self._neighbors()
            self._router()
        except BaseException:
            self.close()
            raise

    # --- the network -------------------------------------------------------------------------------------------------
    def namespace(self, name: str) -> Namespace:
        full = f"{self.stem}-{name}"
        run("ip", "netns", "add", full)
        self.names.append(full)
        made = Namespace(full)
        made.sysctl(
            ipv4__conf__all__rp_filter=0,
            ipv4__conf__default__rp_filter=0,
            ipv6__conf__all__accept_dad=0,
            ipv6__conf__default__accept_dad=0,
            ipv6__conf__default__router_solicitations=0,
            ipv4__ip_forward=1,
            ipv6__conf__all__forwarding=1,
        )
        made.ip("link", "set", "lo", "up")
        return made

    def join(self, namespace: Namespace, number: int) -> None:
        """A port of the switch for a namespace: 198.18.1.NUMBER, 2001:db8:0:1::NUMBER."""
        words = ("ip", "link", "add", f"p{number}", "netns", self.switch.name, "type", "veth", "peer", "name", "e0")
        run(*words, "address", mac(number), "netns", namespace.name)
        self.switch.ip("link", "set", f"p{number}", "master", "br0", "up")
        namespace.ip("addr", "add", f"198.18.1.{number}/24", "dev", "e0")
        namespace.ip("addr", "add", f"2001:db8:0:1::{number}/64", "dev", "e0", "nodad")
        namespace.ip("link", "set", "e0", "txqueuelen", "10000", "up")

    def _exporters(self) -> None:
        self.exporters = self.namespace("ex")
        words = ("ip", "link", "add", "x0", "netns", self.router.name, "type", "veth", "peer", "name", "e0")
        run(*words, "address", "02:00:00:00:02:02", "netns", self.exporters.name)
        for namespace, device, last in ((self.router, "x0", 1), (self.exporters, "e0", 2)):
            namespace.ip("addr", "add", f"198.18.3.{last}/24", "dev", device)
            namespace.ip("addr", "add", f"2001:db8:0:3::{last}/64", "dev", device, "nodad")
            namespace.ip("link", "set", device, "txqueuelen", "10000", "up")
        self.exporters.ip("route", "add", "default", "via", "198.18.3.1")
        self.exporters.ip("-6", "route", "add", "default", "via", "2001:db8:0:3::1")
        self.exporters.ip("route", "add", "local", "198.18.64.0/18", "dev", "lo")
        self.exporters.ip("-6", "route", "add", "local", "2001:db8:8000::/33", "dev", "lo")
        self.router.ip("route", "add", "198.18.64.0/18", "via", "198.18.3.2")
        self.router.ip("-6", "route", "add", "2001:db8:8000::/33", "via", "2001:db8:0:3::2")

    def _neighbors(self) -> None:
        """Permanent neighbors: what waits for a link address may be dropped, and that is not what is tested."""
        numbers = [ROUTER, COLLECTOR, *(10 + relay.number for relay in self.relays)]
        places = [(self.router, ROUTER), (self.behind, COLLECTOR)]
        places += [(relay.namespace, 10 + relay.number) for relay in self.relays]
        for namespace, own in places:
            for number in set(numbers) - {own}:
                for address in (f"198.18.1.{number}", f"2001:db8:0:1::{number}"):
                    namespace.ip("neigh", "replace", address, "lladdr", mac(number), "dev", "e0", "nud", "permanent")

    # --- processes ---------------------------------------------------------------------------------------------------
    def start(self, argv: list[str], namespace: Namespace, label: str) -> Process:
        number = sum(process.label.split("-")[0] == label for process in self.processes)
        name = f"{label}-{number}" if number else label
        process = Process(argv, namespace=namespace.name, directory=self.directory, label=name)
        self.processes.append(process)
        return process

    def daemon(self, namespace: Namespace, label: str) -> Process:
        argv = [command("samplicator"), "run", "-c", str(self.directory / f"{label}.toml")]
        return self.start(argv, namespace, label)

    def start_bird(self, namespace: Namespace, config: Path, control: Path) -> Process:
        argv = [tool("bird"), "-f", "-c", str(config), "-s", str(control), "-P", f"{control}.pid"]
        return self.start(argv, namespace, config.stem)

    def adapted(self, path: Path) -> str:
        """A shipped configuration with the addresses of this laboratory; logs go to stderr."""
        text = path.read_text().replace("log syslog", "log stderr")
        return (
            text.replace("192.0.2.", "198.18.1.")
            .replace("198.51.100.255", SERVICE4)
            .replace("2001:db8:ffff::255", SERVICE6)
        )

    def _collector(self) -> None:
        """samplicator as the collector, and the truth behind it: a socket that keeps all."""
        self.behind = self.namespace("co")
        self.join(self.behind, COLLECTOR)
        self.sink = self.behind.socket(socket.AF_INET)
        self.sockets.append(self.sink)
        self.sink.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 512 << 20)
        self.sink.bind(("127.0.0.1", 9996))
        self.sink.setblocking(False)
        self.behind_control = self.directory / "behind.sock"
        (self.directory / "behind.toml").write_text(BEHIND.format(control=self.behind_control))
        self.daemon(self.behind, "behind")

    def _router(self) -> None:
        config = self.directory / "router.conf"
        config.write_text(self.adapted(ANYCAST / "router" / "bird.conf"))
        self.start_bird(self.router, config, self.directory / "router.ctl")
        argv = [sys.executable, str(ANYCAST / "router" / "resilient.py")]
        self.resilient = self.start(argv, self.router, "resilient")

    # --- what is seen ------------------------------------------------------------------------------------------------
    def next_hops(self) -> dict[str, set[int]]:
        """Relays that the router sends to, by the main table, for each family."""
        found = {}
        for family, service in (("-4", SERVICE4), ("-6", SERVICE6)):
            rows = json.loads(run("ip", "-n", self.router.name, family, "-j", "route", "show", service) or "[]")
            several = [hop for row in rows for hop in row.get("nexthops") or [row]]
            found[family] = {int(re.split(r"[.:]", hop["gateway"])[-1]) - 10 for hop in several}
        return found

    def wait_route(self, *numbers: int, timeout: float = 40.0) -> float:
        """Waits until the router sends to exactly these relays; the monotonic time when that was seen."""
        wanted = {"-4": set(numbers), "-6": set(numbers)}
        try:
            wait_for(lambda: self.next_hops() == wanted, f"routes to relays {numbers}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.next_hops()}\n{self.tails()}") from None
        return time.monotonic()

    def tails(self) -> str:
        return "\n".join(process.tail(800) for process in self.processes)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for sock in self.sockets:
            sock.close()
        for name in self.names:
            subprocess.run([tool("ip"), "netns", "del", name], capture_output=True, timeout=30)
        shutil.rmtree(self.directory, ignore_errors=True)


class Traffic:
    """Exporters of NetFlow v9 in a thread, each with a sequence of its own; remembers when each datagram was sent."""

    def __init__(self, field: Field, *, exporters: int = 60, per_second: int = 2000) -> None:
        self._interval = 1 / per_second
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self.addresses = [
            f"198.18.{64 + number // 250}.{1 + number % 250}" if number % 3 else f"2001:db8:8000::{number + 1:x}"
            for number in range(exporters)
        ]
        self.sockets = []
        for address in self.addresses:
            six = ":" in address
            sock = field.exporters.socket(socket.AF_INET6 if six else socket.AF_INET)
            if six:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            sock.bind((address, 50000))
            self.sockets.append(sock)
        field.sockets.extend(self.sockets)
        self.times: list[list[float]] = [[] for _ in self.sockets]

    @property
    def sent(self) -> int:
        return sum(map(len, self.times))

    def start(self) -> None:
        self._thread.start()

    def rounds(self, count: int) -> None:
        """Waits until every exporter has sent so many datagrams more."""
        until = self.sent + count * len(self.sockets) + len(self.sockets)
        wait_for(lambda: self.sent >= until, f"{count} datagrams of every exporter")

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        template = flows.a_set(0, flows.template(256, FIELDS))
        data = flows.a_set(256, bytes(12), bytes(12), pad=4)
        due, turn = time.monotonic(), 0
        while not self._ended.is_set():
            number = turn % len(self.sockets)
            times = self.times[number]
            sequence = len(times)
            sets = data if sequence else template
            count = 2 if sequence else 1
            times.append(time.monotonic())
            datagram = flows.v9(sequence, number, sets, count=count, secs=int(time.time()))
            # not connected: a relay that is killed answers with port unreachable, which a connected socket would report
            self.sockets[number].sendto(datagram, (SERVICE6 if ":" in self.addresses[number] else SERVICE4, PORT))
            turn += 1
            due += self._interval
            late = due - time.monotonic()
            if late > 0:
                time.sleep(late)
            else:
                due = max(due, time.monotonic() - 0.05)  # held up: no burst that makes up for it all


class Arrived:
    """What the sink has got so far, by exporter and sequence."""

    def __init__(self, field: Field, traffic: Traffic) -> None:
        self._sink = field.sink
        self._traffic = traffic
        self.counts: dict[tuple[int, int], int] = {}

    def take(self) -> int:
        while True:
            try:
                datagram = self._sink.recv(2000)
            except BlockingIOError:
                return len(self.counts)
            if not datagram:
                continue  # a relay asks whether the collector's port is open
            key = int.from_bytes(datagram[16:20], "big"), int.from_bytes(datagram[12:16], "big")
            if datagram[20:22] == bytes(2):  # templates: an exporter sends them first, relays replay them
                self.counts.setdefault((key[0], 0), 1)
            else:
                self.counts[key] = self.counts.get(key, 0) + 1

    def settle(self) -> None:
        """Waits until nothing more arrives; the exporters must have stopped."""
        quiet, before = 0, -1
        while quiet < 10:
            now = self.take()
            quiet, before = (quiet + 1 if now == before else 0), now
            time.sleep(0.1)

    def lost(self) -> list[tuple[int, int, float]]:
        """(exporter, sequence, time when it was sent) of what did not arrive."""
        return [
            (exporter, sequence, when)
            for exporter, times in enumerate(self._traffic.times)
            for sequence, when in enumerate(times)
            if (exporter, sequence) not in self.counts
        ]

    def repeated(self) -> int:
        return sum(count - 1 for count in self.counts.values())


def mac(number: int) -> str:
    return f"02:00:00:00:01:{number:02x}"


def ask(control: Path, page: str) -> Any:
    """A page of the API, over a control socket."""
    done = subprocess.run(
        [tool("curl"), "-sf", "--unix-socket", str(control), f"http://localhost/api/v1/{page}"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, f"{control}: {page}: {done.returncode} {done.stderr!r}"
    return json.loads(done.stdout)
