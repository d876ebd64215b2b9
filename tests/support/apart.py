"""Exporters that a collector can hardly tell apart, and collectors that say exactly what they understood.

All exporters use one domain and one template number, each with fields in an order of its own: whoever decodes with
another's template gets other flows. A judge gives the flows it decoded as values, so that one wrong flow is seen.
Used by test_unspoofed.py.
"""

from __future__ import annotations

import csv
import io
import random
import re
import signal
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from support import flows as model
from support.flows import V9
from support.lab import Lab
from support.process import Process, tool

Flow = tuple[str, str, int, int, int, int]
"""Source, destination, their ports, packets, bytes."""
FIELDS = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (6, 1), (2, 4), (1, 4)]
ROWS = 4


class Exporter:
    """Sends templates in every `every`-th datagram, data in all others. sock: connected to the relay. order: seed of
    its field order.
    """

    def __init__(self, sock: socket.socket, kind: int, order: int, *, domain: int = 0, every: int = 6) -> None:
        self.sock, self.kind, self.domain, self.every, self.order = sock, kind, domain, every, order
        self.fields = list(FIELDS)
        random.Random(order).shuffle(self.fields)
        self.sequence = self.datagrams = 0
        self.flows: list[Flow] = []

    def row(self, k: int) -> tuple[Flow, bytes]:
        n = self.datagrams
        flow = (
            f"{10 + self.order // 250}.{self.order % 250}.{n // 250}.{n % 250}",
            f"192.0.2.{k}",
            1000 + k,
            53 + self.order,
            7 + k,
            900 + n,
        )
        raw = struct.pack(
            ">4s4sHHBBII",
            socket.inet_aton(flow[0]),
            socket.inet_aton(flow[1]),
            flow[2],
            flow[3],
            17,
            0,
            flow[4],
            flow[5],
        )
        values, at = {}, 0
        for element, length in FIELDS:
            values[element] = raw[at : at + length]
            at += length
        return flow, b"".join(values[element] for element, _ in self.fields)

    def payload(self) -> bytes:
        """The next datagram."""
        records = 0
        if self.datagrams % self.every == 0:
            one = model.a_set(0 if self.kind == V9 else 2, model.template(256, self.fields))
        else:
            rows = [self.row(k) for k in range(ROWS)]
            self.flows += [flow for flow, _ in rows]
            one = model.a_set(256, *[raw for _, raw in rows], pad=4)
            records = ROWS
        self.datagrams += 1
        seconds, sequence = int(time.time()), self.sequence
        self.sequence += 1 if self.kind == V9 else records
        if self.kind == V9:
            return model.v9(sequence, self.domain, one, count=max(1, records), secs=seconds)
        return model.ipfix(sequence, self.domain, one, secs=seconds)

    def send(self) -> None:
        self.sock.send(self.payload())


def exporter(lab: Lab, address: str, port: int, kind: int, order: int, **more: int) -> Exporter:
    sock = lab.exporter_socket(address, port)
    sock.connect((lab.relay4(), 2055))
    return Exporter(sock, kind, order, **more)


def flock(lab: Lab, count: int, kind: int, **more: int) -> list[Exporter]:
    """Exporters at addresses of their own that send from one port number, as routers of one make do."""
    return [exporter(lab, f"198.18.{110 + n // 200}.{1 + n % 200}", 50001, kind, n, **more) for n in range(count)]


def rounds(exporters: Sequence[Exporter], count: int, pause: float = 0.0003) -> None:
    for _ in range(count):
        for exporter in exporters:
            exporter.send()
            time.sleep(pause)


def expected(exporters: Sequence[Exporter]) -> Counter[Flow]:
    return Counter(flow for exporter in exporters for flow in exporter.flows)


class Judge:
    """A collector as RFC 7011 has it: templates and sequences per source address, source port and domain; by_port
    False: as nfdump and pmacct have it, whatever the port.
    """

    def __init__(self, *, by_port: bool = True) -> None:
        self.by_port = by_port
        self.templates: dict[tuple[object, ...], list[tuple[int, int, int]]] = {}
        self.next: dict[tuple[object, ...], int] = {}
        self.flows: Counter[Flow] = Counter()
        self.sequence_errors = self.unknown = 0
        self.sources: set[tuple[str, int]] = set()
        self.domains: set[int] = set()

    def take(self, source: tuple[str, int], payload: bytes) -> None:
        message = model.parse(payload)
        assert message is not None
        key = (source if self.by_port else source[0], message.kind, message.domain)
        self.sources.add(source)
        self.domains.add(message.domain)
        records = 0
        for one in message.sets:
            for template in one.records:
                assert isinstance(template, model.Template)
                self.templates[(*key, template.identity)] = template.fields
            if one.identity >= 256:
                fields = self.templates.get((*key, one.identity))
                if fields is None:
                    self.unknown += 1
                    continue
                found = _decode(one.body, fields)
                records += len(found)
                self.flows.update(found)
        if self.next.get(key, message.sequence) != message.sequence:
            self.sequence_errors += 1
        self.next[key] = message.sequence + (1 if message.kind == V9 else records)


def _decode(body: bytes, fields: Sequence[tuple[int, int, int]]) -> list[Flow]:
    length, found = sum(field[1] for field in fields), []
    while len(body) >= length:
        values, at = {}, 0
        for element, octets, _ in fields:
            values[element] = body[at : at + octets]
            at += octets
        number = {element: int.from_bytes(value, "big") for element, value in values.items()}
        source, destination = socket.inet_ntoa(values[8]), socket.inet_ntoa(values[12])
        found.append((source, destination, number[7], number[11], number[2], number[1]))
        body = body[length:]
    return found


class Nfcapd:
    """nfcapd: templates per address and domain, whatever the port."""

    def __init__(self, lab: Lab, port: int = 9995) -> None:
        self.place = lab.directory / "nfcapd-apart"
        self.place.mkdir()
        argv = [tool("nfcapd"), "-w", str(self.place), "-p", str(port), "-t", "3600", "-B", "4000000"]
        self.process: Process = lab.start(argv, lab.collectors[0], "nfcapd")
        lab.wait_bound(lab.collectors[0], [port], self.process)

    def end(self) -> tuple[Counter[Flow], int]:
        """(flows, sequence errors)."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) in self.process.expected, self.process.tail()
        text = self.process.stdout() + self.process.stderr()
        found = re.findall(r"Flows: (\d+).*?Sequence Errors: (\d+)", text)
        assert found, text
        argv = [tool("nfdump"), "-R", str(self.place), "-q", "-N", "-o", "fmt:%sa,%da,%sp,%dp,%pkt,%byt"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
        return _rows(csv.reader(io.StringIO(done.stdout))), sum(int(errors) for _, errors in found)


class Nfacctd:
    """nfacctd: templates per address, domain and template number."""

    def __init__(self, lab: Lab, port: int = 9996) -> None:
        self.out = lab.directory / "nfacctd-apart.csv"
        config = lab.directory / "nfacctd-apart.conf"
        config.write_text(
            f"daemonize: false\nnfacctd_port: {port}\nnfacctd_time_new: true\nplugins: print\n"
            "aggregate: src_host, dst_host, src_port, dst_port\nprint_output: csv\nprint_refresh_time: 3600\n"
            f"print_cache_entries: 65521\nprint_output_file: {self.out}\n"
            "plugin_pipe_size: 10240000\nplugin_buffer_size: 10240\nnfacctd_pipe_size: 4000000\n"
        )
        self.process: Process = lab.start([tool("nfacctd"), "-f", str(config)], lab.collectors[1], "nfacctd")
        lab.wait_bound(lab.collectors[1], [port], self.process)

    def end(self) -> tuple[Counter[Flow], int]:
        """(flows, complaints: wrong sequences, unknown templates)."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) in self.process.expected, self.process.tail()
        text = self.process.stdout() + self.process.stderr()
        complaints = re.findall(r"expecting flow|[Uu]nknown template", text)
        rows = list(csv.reader(io.StringIO(self.out.read_text()))) if self.out.exists() else []
        return _rows(rows[1:]), len(complaints)


def _rows(rows: Iterable[Sequence[str]]) -> Counter[Flow]:
    found: Counter[Flow] = Counter()
    for row in rows:
        if len(row) >= 6:
            cells = [cell.strip() for cell in row]
            ports = int(cells[2]), int(cells[3].partition(".")[0])  # nfdump writes TYPE.CODE of ICMP there
            sums = int(cells[4]), int(cells[5])
            found[(cells[0], cells[1], *ports, *sums)] += 1
    return found
