"""Options data and real collectors: every sampler of an exporter reaches a collector that joins late, and an exporter
that no rule matched at first is decoded at once when its rule is mended. nfacctd multiplies a flow's packets by the
interval of the sampler that the flow names, so a sampler that is missing, or another's rate, is seen there; nfcapd of
Debian does not, with or without a relay: it judges flows and sequence.
"""

from __future__ import annotations

import csv
import io
import re
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import flows as model
from support.decoders import Nfcapd
from support.flows import IPFIX, V9
from support.lab import Lab
from support.process import Process, tool, wait_for
from support.relay import Relay

PORT, ACCT = 9995, 2100
EXPORTER = "198.18.70.1"
FIELDS = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (2, 4), (1, 4), (48, 2)]
RATES = {1: 2000, 2: 4000, 3: 500}
ROWS = 5


def record(sampler: int, n: int) -> bytes:
    """A flow of 3 packets that this sampler saw; its source address tells the sampler."""
    addresses = bytes([10, sampler, n // 256, n % 256, 192, 0, 2, 1])
    return addresses + struct.pack(">HHBIIH", 1000 + n, 80, 6, 3, 300, sampler)


def knowledge(kind: int) -> list[bytes]:
    """Template, options template and the table of samplers, all of one scope: the exporter as a whole."""
    scope = [(1, 4)] if kind == V9 else [(144, 4)]
    options = model.options_template(kind, 300, scope, [(48, 2), (49, 1), (50, 4)])
    rows = [struct.pack(">IHBI", 1, sampler, 2, rate) for sampler, rate in RATES.items()]
    return [
        model.a_set(0 if kind == V9 else 2, model.template(256, FIELDS)),
        model.a_set(1 if kind == V9 else 3, options, pad=4),
        *(model.a_set(300, row, pad=4 if kind == V9 else 1) for row in rows),
    ]


def stream(kind: int) -> Iterator[bytes]:
    """What is known, once, and then data of one sampler after the other, without end."""
    known = knowledge(kind)
    seconds = int(time.time())
    if kind == V9:
        yield model.v9(0, 1, *known, count=5, secs=seconds)
    else:
        yield model.ipfix(0, 1, *known, secs=seconds)
    sequence = 1 if kind == V9 else len(RATES)
    n = 0
    while True:
        for sampler in RATES:
            data = model.a_set(256, *[record(sampler, n + k) for k in range(ROWS)], pad=4)
            n += ROWS
            if kind == V9:
                yield model.v9(sequence, 1, data, count=ROWS, secs=seconds)
            else:
                yield model.ipfix(sequence, 1, data, secs=seconds)
            sequence += 1 if kind == V9 else ROWS


class Nfacctd:
    def __init__(self, lab: Lab) -> None:
        self.out: Path = lab.directory / "nfacctd-options.csv"
        config = lab.directory / "nfacctd-options.conf"
        config.write_text(
            f"daemonize: false\nnfacctd_port: {ACCT}\nnfacctd_time_new: true\nnfacctd_renormalize: true\n"
            "plugins: print\naggregate: src_host, src_port\nprint_output: csv\nprint_refresh_time: 3600\n"
            f"print_cache_entries: 65521\nprint_output_file: {self.out}\nplugin_pipe_size: 10240000\n"
            "plugin_buffer_size: 10240\nnfacctd_pipe_size: 4000000\n"
        )
        self.process: Process = lab.start([tool("nfacctd"), "-f", str(config)], lab.collectors[1], "nfacctd")
        lab.wait_bound(lab.collectors[1], [ACCT], self.process)

    def end(self) -> tuple[int, int, Counter[int]]:
        """(flows, complaints, packets by sampler)."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) in self.process.expected, self.process.tail()
        text = self.process.stdout() + self.process.stderr()
        rows = list(csv.DictReader(io.StringIO(self.out.read_text()))) if self.out.exists() else []
        packets: Counter[int] = Counter()
        for row in rows:
            packets[int(row["SRC_IP"].split(".")[1])] += int(row["PACKETS"])
        return len(rows), len(re.findall(r"expecting flow|[Uu]nknown template", text)), packets


def configuration(lab: Lab, source: str, names: list[str]) -> str:
    to = {"one": f"{lab.peer4(1)}:{PORT}", "two": f"{lab.peer4(2)}:{ACCT}", "other": f"{lab.peer4(2)}:9"}
    receivers = "".join(f'[[receiver]]\nname = "{name}"\nto = "{to[name]}"\nspoof = true\n' for name in names)
    listed = ", ".join(f'"{name}"' for name in names)
    listener = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
    return f'{listener}{receivers}[[rule]]\nfrom = ["{source}"]\nto = [{listed}]\n'


def received(relay: Relay, count: int) -> None:
    wait_for(lambda: relay.metrics().total("receive_datagrams_total") >= count, f"{count} datagrams to come", 20)


def feed(lab: Lab, payloads: Iterator[bytes], count: int, send: Callable[[bytes], object]) -> None:
    for _ in range(count):
        send(next(payloads))
        time.sleep(0.0005)


@pytest.mark.parametrize("kind", [V9, IPFIX], ids=["netflow9", "ipfix"])
@pytest.mark.parametrize("how", ["joins late", "rule mended"])
def test_every_sampler_and_every_flow(lab: Lab, kind: int, how: str) -> None:
    """What is known is sent once, 30 datagrams before a collector gets any; 60 that follow are scaled right."""
    late = how == "joins late"
    before = configuration(lab, f"{EXPORTER}/32" if late else "203.0.113.0/24", ["other"] if late else ["one", "two"])
    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    relay = lab.samplicator(before)
    sock = lab.exporter_socket(EXPORTER, 50001)
    payloads = stream(kind)

    def send(payload: bytes) -> object:
        return sock.sendto(payload, (lab.relay4(), 2055))

    feed(lab, payloads, 31, send)
    received(relay, 31)
    assert relay.metrics().value("flow_unmatched_domains") == (0 if late else 1)
    names = ["other", "one", "two"] if late else ["one", "two"]
    relay.write(lab.with_service(configuration(lab, f"{EXPORTER}/32", names)))
    generation = relay.metrics().total("config_generation")
    relay.send_signal(signal.SIGHUP)
    wait_for(lambda: relay.metrics().total("config_generation") > generation, "the reload", 20)
    feed(lab, payloads, 60, send)
    received(relay, 91)
    metrics = relay.at_rest()
    assert metrics.value("flow_unmatched_domains") == 0
    assert metrics.total("flow_sequence_lost_datagrams_total") == 0
    assert metrics.total("flow_sequence_lost_records_total") == 0
    want = {sampler: 3 * 20 * ROWS * rate for sampler, rate in RATES.items()}
    assert nfcapd.end() == (60 * ROWS, 0)
    assert nfacctd.end() == (60 * ROWS, 0, want)
