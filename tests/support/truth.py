"""A collector behind a router, exporters of every protocol, and the witness beside the collector: what was lost where,
by those who took it away.

    exporter --- relay --- router (collector 2 of the lab) --- collector 1

What nftables takes away is counted by its rules, per exporter; what sockets drop is what was sent and not read. Used by
tests/system/test_witness.py. Invariant: figures of the witness come from its JSON only.
"""

from __future__ import annotations

import fcntl
import json
import select
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

from support import flows as model
from support.flows import IPFIX, V9
from support.lab import Lab, run
from support.process import Process, command, wait_for
from support.telemetry import FIELDS, record

PORT = 9995
FAR4, FAR6 = "198.18.40.2", "2001:db8:0:40::2"
STAGES = ("lost_before", "lost_at_socket", "failed", "lost_on_way", "dropped_by_collector")


class Device:
    """An exporter. rows: flows or records of its datagrams, by turns."""

    def __init__(self, lab: Lab, address: str, kind: str, rows: tuple[int, ...] = (24,), domain: int = 7) -> None:
        self.address, self.kind, self.rows, self.domain = address, kind, rows, domain
        self.sock = lab.exporter_socket(address, 50000)
        self.relay = (lab.relay6() if ":" in address else lab.relay4(), 2055)
        self.sequence = self.sent = 0

    def payload(self) -> bytes:
        rows = self.rows[self.sent % len(self.rows)]
        sequence, seconds = self.sequence, int(time.time())
        first = self.sent == 0
        self.sent += 1
        if self.kind == "v5":
            self.sequence += rows
            return model.v5(sequence, rows, self.domain)
        if self.kind == "sflow":
            self.sequence += 1
            return model.sflow(sequence, socket.inet_aton("192.0.2.9"), self.domain, samples=rows)
        kind = V9 if self.kind == "v9" else IPFIX
        if first:
            body = model.a_set(0 if kind == V9 else 2, model.template(256, FIELDS))
        else:
            body = model.a_set(256, *[record(self.sent, k) for k in range(rows)], pad=4)
        if kind == V9:
            self.sequence += 1
            return model.v9(sequence, self.domain, body, count=1 if first else rows, secs=seconds)
        self.sequence += 0 if first else rows
        return model.ipfix(sequence, self.domain, body, secs=seconds)

    def send(self, count: int = 1) -> None:
        for _ in range(count):
            self.sock.sendto(self.payload(), self.relay)


class Collector:
    """Software at the collector, which reads unless it is held. read: datagrams, by source address."""

    def __init__(self, lab: Lab, *, buffer_bytes: int = 8 << 20, sockets: int = 1) -> None:
        self.read: dict[str, int] = {}
        self.held = False
        self._end = False
        self.sockets = []
        for _ in range(sockets):
            sock = lab.collectors[0].socket(socket.AF_INET6)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.SOL_SOCKET, 33, buffer_bytes)  # SO_RCVBUFFORCE
            sock.bind(("::", PORT))
            sock.setblocking(False)
            lab.closers.append(sock.close)
            self.sockets.append(sock)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        lab.closers.insert(0, self.end)

    @property
    def idle(self) -> bool:
        """It has read all that is there (FIONREAD: bytes of the next datagram)."""
        return not any(struct.unpack("=i", fcntl.ioctl(sock, 0x541B, bytes(4)))[0] for sock in self.sockets)

    def shrink(self, buffer_bytes: int) -> None:
        for sock in self.sockets:
            sock.setsockopt(socket.SOL_SOCKET, 33, buffer_bytes)

    def end(self) -> None:
        self._end = True
        self.thread.join(5)

    def _run(self) -> None:
        while not self._end:
            if self.held:
                time.sleep(0.01)
                continue
            for sock in select.select(self.sockets, [], [], 0.05)[0]:
                try:
                    for _ in range(64):
                        source = sock.recvfrom(65535)[1][0].removeprefix("::ffff:")
                        self.read[source] = self.read.get(source, 0) + 1
                except BlockingIOError:
                    pass


def far_away(lab: Lab) -> None:
    """Puts a router between relay and collector 1."""
    router, end = lab.collectors[1], lab.collectors[0]
    run("ip", "link", "add", "w0", "netns", router.name, "type", "veth", "peer", "name", "w1", "netns", end.name)
    for namespace, device, last in ((router, "w0", 1), (end, "w1", 2)):
        namespace.ip("addr", "add", f"198.18.40.{last}/24", "dev", device)
        namespace.ip("addr", "add", f"2001:db8:0:40::{last}/64", "dev", device, "nodad")
        namespace.ip("link", "set", device, "txqueuelen", "10000", "up")
        if not lab.offload:
            namespace.run("ethtool", "-K", device, "tx", "off", "gro", "off")
    lab.relay.ip("route", "add", "198.18.40.0/24", "via", lab.peer4(2))
    lab.relay.ip("-6", "route", "add", "2001:db8:0:40::/64", "via", lab.peer6(2))
    end.ip("route", "replace", "198.18.64.0/18", "via", "198.18.40.1", "dev", "w1")
    end.ip("-6", "route", "replace", "2001:db8:8000::/33", "via", "2001:db8:0:40::1", "dev", "w1")


class Remover:
    """nftables takes every `every`-th datagram of each exporter away, at a hook of a namespace."""

    def __init__(self, lab: Lab, where: int, hook: str, port: int, addresses: list[str], every: int) -> None:
        """where: 0 = relay, 1 or 2 = collector."""
        self.namespace = lab.relay if where == 0 else lab.collectors[where - 1]
        self.addresses = addresses
        counters = [f"counter c{number} {{}}" for number in range(len(addresses))]
        rules = [
            f"{'ip6' if ':' in address else 'ip'} saddr {address} udp dport {port} numgen inc mod {every + number} 0 "
            f"counter name c{number} drop"
            for number, address in enumerate(addresses)
        ]
        chain = "chain c {\n  type filter hook " + hook + " priority -300;\n  " + "\n  ".join(rules) + "\n }"
        self.namespace.run("nft", "table inet truth {\n " + "\n ".join(counters) + "\n " + chain + "\n}")

    def removed(self) -> dict[str, int]:
        listed = json.loads(self.namespace.run("nft", "-j", "list", "counters", "table", "inet", "truth"))
        counts = {
            item["counter"]["name"]: item["counter"]["packets"] for item in listed["nftables"] if "counter" in item
        }
        return {address: counts[f"c{number}"] for number, address in enumerate(self.addresses)}

    def end(self) -> dict[str, int]:
        """Nothing is taken away any more, and then it is read how many were."""
        self.namespace.run("nft", "flush", "chain", "inet", "truth", "c")
        found = self.removed()
        self.namespace.run("nft", "delete", "table", "inet", "truth")
        return found


class Watching:
    """A witness that has begun."""

    def __init__(
        self, lab: Lab, control: Path, *words: str, seconds: float = 100.0, prefix: tuple[str, ...] = ()
    ) -> None:
        argv = [*prefix, command("samplicator"), "witness", "--port", str(PORT), "--control", str(control), "--json"]
        argv += ["--seconds", str(seconds), *words]
        self.process: Process = lab.start(argv, lab.collectors[0], "witness", expected=(0, 1))
        wait_for(lambda: self.process.said("watching port"), "the witness to begin", 20)

    def result(self, status: int | None = None) -> dict[str, Any]:
        """Of all that was sent until now."""
        self.process.send_signal(signal.SIGINT)
        found = self.process.wait(60)
        assert status is None or found == status, f"status {found}\n{self.process.tail()}"
        value: dict[str, Any] = json.loads(self.process.stdout())
        return value


def rows(value: dict[str, Any], stage: str) -> dict[str, int]:
    """Of a balance, what is not 0."""
    return {row["exporter"]: row[stage] for row in value["exporters"] if row[stage]}
