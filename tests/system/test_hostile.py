"""A million forged exporters: memory stays under its bound, and exporters that are alive lose nothing, neither a
datagram nor a template.

bench/tools/forge.c sends one datagram from each of a million addresses and ports: NetFlow v1 to v9, IPFIX, sFlow with
random template ids, field counts and lengths, cut short and damaged. Legitimate exporters go on all the while; two of
them begin in the middle of it.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support import flows as model
from support.flows import IPFIX, V9
from support.lab import Lab
from support.process import bench_tool, wait_for
from support.relay import Relay

FORGED = 1_000_000
SLICE = 50_000  # no more than this is on its way at once: what fits into the listener's queue whatever its sizes
RATE = 150_000
BOUND = 64 << 20  # the default of datapath.flow_memory
FIELDS = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (2, 4), (1, 4)]
GOOD, ALL, SAMPLED, LATE = 9995, 9996, 9997, 9998


class Exporter:
    """A legitimate exporter: its templates once, at the start, then data. No repetition: what is forgotten stays so."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.kind = V9 if number % 2 else IPFIX
        self.address, self.port = f"198.18.70.{number + 1}", 50000 + number
        self.socket = lab.exporter_socket(self.address, self.port)
        self.to = (lab.relay4(), 2055)
        self.template = model.template(256 + number, FIELDS)
        self.options = model.options_template(self.kind, 1000 + number, [(1, 4)], [(34, 4), (35, 1)])
        self.feed = self.payloads(number)
        self.sent: list[bytes] = []

    def payloads(self, number: int) -> Iterator[bytes]:
        base = 0 if self.kind == V9 else 2
        first = (model.a_set(base, self.template), model.a_set(base + 1, self.options, pad=4))
        data = model.a_set(256 + number, bytes([number]) * 21 * 5, pad=4)
        seconds, records = int(time.time()), 5
        for i in itertools.count():
            sets = first if i == 0 else (data,)
            if self.kind == V9:
                yield model.v9(i, number, *sets, secs=seconds)
            else:
                yield model.ipfix(max(0, i - 1) * records, number, *sets, secs=seconds)

    def send(self) -> None:
        self.sent.append(next(self.feed))
        self.socket.sendto(self.sent[-1], self.to)


class Legitimate:
    """The exporters, each sending 25 datagrams a second from a thread of its own."""

    def __init__(self, exporters: list[Exporter]) -> None:
        self.exporters = exporters
        self.ended = threading.Event()
        self.failure: list[BaseException] = []
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        try:
            while not self.ended.wait(0.04):
                for exporter in list(self.exporters):
                    exporter.send()
        except BaseException as error:
            self.failure.append(error)

    def end(self) -> None:
        self.ended.set()
        self.thread.join()
        assert not self.failure, self.failure


@contextlib.contextmanager
def going_on(exporters: list[Exporter]) -> Iterator[Legitimate]:
    legitimate = Legitimate(exporters)
    legitimate.thread.start()
    try:
        yield legitimate
    finally:
        legitimate.ended.set()
        legitimate.thread.join()


def configuration(lab: Lab, *, late: bool = False) -> str:
    """Everybody's datagrams go to `all` and, one in ten and renumbered, to `sampled`; the legitimate ones also to
    `good`, as if sent by the exporter.
    """
    receivers = {
        "good": f'to = "{lab.peer4(1)}:{GOOD}"\nspoof = true\n',
        "all": f'to = "{lab.peer4(2)}:{ALL}"\n',
        "sampled": f'to = "{lab.peer4(2)}:{SAMPLED}"\nfreq = 10\n',
        "late": f'to = "{lab.peer4(1)}:{LATE}"\nspoof = true\n',
    }
    if not late:
        del receivers["late"]
    text = '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
    text += "".join(f'[[receiver]]\nname = "{name}"\nprobe = "off"\n{rest}' for name, rest in receivers.items())
    good = '"good", "late"' if late else '"good"'
    return f'{text}[[rule]]\nfrom = ["198.18.70.0/24"]\nto = [{good}]\n[[rule]]\nto = ["all", "sampled"]\n'


def received(sock: socket.socket) -> dict[tuple[str, int], list[bytes]]:
    """What waits in a collector's socket, by exporter."""
    found: dict[tuple[str, int], list[bytes]] = {}
    sock.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            payload, where = sock.recvfrom(65536)
            found.setdefault(where, []).append(payload)
    return found


def forge(lab: Lab, relay: Relay, first: int) -> int:
    """One slice of forged datagrams, all of them taken by the relay; returns how many."""
    before = relay.metrics().value("receive_datagrams_total", listener="in")
    argv = ["--to", f"{lab.relay4()}:2055", "--source-base", "198.18.128.0", "--first", first, "--count", SLICE]
    tool = lab.start([bench_tool("forge"), *map(str, argv), "--rate", str(RATE)], lab.exporter, f"forge-{first}")
    result = tool.result()
    assert (result["sent"], result["errors"]) == (SLICE, 0)
    wait_for(
        lambda: relay.metrics().value("receive_datagrams_total", listener="in") - before >= SLICE,
        f"the relay to take {SLICE} datagrams",
    )
    return int(result["sent"])


@pytest.mark.deploy_heavy
@pytest.mark.parametrize("count", [FORGED])
def test_a_million_forged_exporters(lab: Lab, count: int) -> None:
    sink = lab.collector_socket(1, GOOD)
    for port in (ALL, SAMPLED):  # never read: the kernel drops there, which is nobody's loss here
        lab.collector_socket(2, port).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    relay = lab.samplicator(configuration(lab))
    exporters = [Exporter(lab, number) for number in range(8)]
    newcomers = [Exporter(lab, number) for number in range(8, 10)]
    forged = 0
    with going_on(exporters) as legitimate:
        time.sleep(3)  # what has come for two seconds is established
        resident = relay.rss()
        while forged < count:
            forged += forge(lab, relay, forged)
            if newcomers and forged >= count // 2:
                exporters += newcomers
                newcomers = []
        legitimate.end()
    metrics = relay.check_laws()
    sent = sum(len(exporter.sent) for exporter in exporters)
    assert metrics.value("receive_datagrams_total", listener="in") == forged + sent
    assert metrics.value("receive_matched_datagrams_total", listener="in") == forged + sent
    # memory: what is reserved, and what the process really took
    assert metrics.value("flow_memory_bytes") <= BOUND
    assert relay.rss() - resident <= BOUND
    assert metrics.value("flow_evicted_total", what="domain") > count // 4
    assert metrics.total("flow_malformed_datagrams_total") > count // 10
    # the legitimate: every datagram, as it was sent, in order, and not one taken for lost before us
    got = received(sink)
    assert {where: len(payloads) for where, payloads in got.items()} == {
        (exporter.address, exporter.port): len(exporter.sent) for exporter in exporters
    }
    for exporter in exporters:
        assert got[exporter.address, exporter.port] == exporter.sent
    # and their templates, sent once at the start, are known: a receiver that joins now gets them all, byte for byte
    late = lab.collector_socket(1, LATE)
    relay.hangup(lab.with_service(configuration(lab, late=True)))
    wait_for(lambda: relay.metrics().value("receiver_template_replays_total", receiver="late") == 1, "the replay")
    replayed = received(late)
    for exporter in exporters:
        whole = b"".join(replayed[exporter.address, exporter.port])
        assert exporter.template in whole
        assert exporter.options in whole
