"""Real collectors that decode flows and complain (nfcapd at collector 1, nfacctd at collector 2), and flows for them.

nfcapd says at its end how many flows it decoded and how many sequence errors it counted, nfacctd logs what it expected
and prints the flows it counted. Used by tests/system.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import signal
import socket
import time
from collections.abc import Iterator

from support import flows as model
from support.flows import IPFIX, V9
from support.lab import Lab
from support.process import Process, tool, wait_for
from support.relay import Relay

PORT, ACCT = 9995, 9996
NAMES = {V9: "netflow9", IPFIX: "ipfix"}
FIELDS = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (2, 4), (1, 4)]
ROWS = 20
EXPORTER = "198.18.70.1"


# ---------------------------------------------------------------------------------------------------- exporters


def record(i: int, k: int) -> bytes:
    ports = (1000 + k).to_bytes(2, "big") + (80).to_bytes(2, "big")
    return bytes([10, i // 256, i % 256, k, 192, 0, 2, 1]) + ports + b"\x06" + bytes([0, 0, 0, 3, 0, 0, 1, 44])


def a_template(kind: int) -> bytes:
    return model.a_set(0 if kind == V9 else 2, model.template(256, FIELDS))


def stream(kind: int, every: int = 20) -> Iterator[tuple[bytes, bool]]:
    """(payload, carries templates) without end: data of ROWS flows, a template before every so many."""
    sequence = 0
    seconds = int(time.time())
    for i in itertools.count():
        if i % every == 0:
            one = a_template(kind)
            yield (
                (
                    model.v9(sequence, 1, one, secs=seconds)
                    if kind == V9
                    else model.ipfix(sequence, 1, one, secs=seconds)
                ),
                True,
            )
            sequence += kind == V9
        data = model.a_set(256, *[record(i, k) for k in range(ROWS)], pad=4)
        if kind == V9:
            yield model.v9(sequence, 1, data, count=ROWS, secs=seconds), False
        else:
            yield model.ipfix(sequence, 1, data, secs=seconds), False
        sequence += 1 if kind == V9 else ROWS


def plain(kind: str) -> Iterator[bytes]:
    """Datagrams without end of a kind that needs no template here: v5 with 30 flows each, sFlow."""
    for i in itertools.count():
        yield model.v5(30 * i, 30) if kind == "netflow5" else model.sflow(i, bytes([10, 0, 0, 1]))


# ---------------------------------------------------------------------------------------------------- collectors


class Nfcapd:
    """link: 1 = the first collector."""

    def __init__(self, lab: Lab, port: int = PORT, name: str = "a", link: int = 1) -> None:
        self.place = lab.directory / f"nfcapd-{name}"
        self.place.mkdir()
        self.port = port
        argv = [tool("nfcapd"), "-w", str(self.place), "-p", str(port), "-t", "3600", "-B", "4000000"]
        self.process: Process = lab.start(argv, lab.collectors[link - 1], "nfcapd")
        lab.wait_bound(lab.collectors[link - 1], [port], self.process)

    def end(self) -> tuple[int, int]:
        """(flows decoded, sequence errors). It says so for each file, and begins another at the full hour."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) in self.process.expected, self.process.tail()
        text = self.process.stdout() + self.process.stderr()
        found = re.findall(r"Flows: (\d+).*?Sequence Errors: (\d+)", text)
        assert found, text
        return sum(int(flows) for flows, _ in found), sum(int(errors) for _, errors in found)


class Nfacctd:
    def __init__(self, lab: Lab) -> None:
        self.out = lab.directory / "nfacctd.csv"
        config = lab.directory / "nfacctd.conf"
        config.write_text(
            f"daemonize: false\nnfacctd_port: {ACCT}\nnfacctd_time_new: true\nplugins: print\n"
            "aggregate: src_host, src_port, peer_src_ip\nprint_output: csv\nprint_refresh_time: 3600\n"
            f"print_cache_entries: 65521\nprint_output_file: {self.out}\n"
            "plugin_pipe_size: 10240000\nplugin_buffer_size: 10240\nnfacctd_pipe_size: 4000000\n"
        )
        self.process: Process = lab.start([tool("nfacctd"), "-f", str(config)], lab.collectors[1], "nfacctd")
        lab.wait_bound(lab.collectors[1], [ACCT], self.process)

    def end(self) -> tuple[int, int]:
        """(flows decoded, lines of complaint: wrong sequences, unknown templates)."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) in self.process.expected, self.process.tail()
        text = self.process.stdout() + self.process.stderr()
        complaints = re.findall(r"expecting flow|[Uu]nknown template", text)
        rows = list(csv.reader(io.StringIO(self.out.read_text()))) if self.out.exists() else []
        return max(0, len(rows) - 1), len(complaints)


def configuration(lab: Lab, *, freq: int = 1, flow: str = "auto", second: bool = True, more: str = "") -> str:
    to = [("one", f"{lab.peer4(1)}:{PORT}"), ("two", f"{lab.peer4(2)}:{ACCT}")][: 2 if second else 1]
    receivers = "".join(
        f'[[receiver]]\nname = "{name}"\nto = "{where}"\nspoof = true\nfreq = {freq}\n{more}' for name, where in to
    )
    names = ", ".join(f'"{name}"' for name, _ in to)
    listener = f'[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\nflow = "{flow}"\n'
    return f"{listener}{receivers}[[rule]]\nto = [{names}]\n"


def send(lab: Lab, payloads: list[bytes], sock: socket.socket | None = None, pause: float = 0.0004) -> socket.socket:
    sock = sock or lab.exporter_socket(EXPORTER, 50001)
    for payload in payloads:
        sock.sendto(payload, (lab.relay4(), 2055))
        time.sleep(pause)
    return sock


def come(relay: Relay, count: int) -> None:
    wait_for(lambda: relay.metrics().total("receive_datagrams_total") >= count, f"{count} datagrams to come", 20)
