"""Real exporter, real collectors: what nfcapd and nfacctd decode behind the relay is what they decode without it.

One softflowd reads a capture of real traffic and exports it three times at once: to the relay, and directly (routed)
to a second nfcapd and a second nfacctd. Relayed and direct collectors must then have the same flows, from the same
exporter address. tshark at the collectors tells source address and port, checksums and TTL of every relayed
datagram.
"""

from __future__ import annotations

import csv
import io
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.lab import Lab, Relay
from support.process import Process, bench_tool, tool, wait_for
from support.witness import Tap, Tshark

pytestmark = pytest.mark.xdist_group("flows")  # one capture for all

RELAYED, DIRECT = 9995, 9895  # nfcapd, collector 1
RELAYED_ACCT, DIRECT_ACCT = 9996, 9896  # nfacctd, collector 2


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A capture of real traffic over both families: TCP connections that carry data, UDP exchanges, echo requests."""
    path = tmp_path_factory.mktemp("capture") / "traffic.pcap"
    lab = Lab(collectors=1)
    try:
        peer = lab.collectors[0]
        recorder = lab.start([tool("dumpcap"), "-q", "-P", "-i", "r1", "-w", str(path)], lab.relay, "dumpcap")
        wait_for(lambda: recorder.said("File:") and path.exists(), "dumpcap to record", 20)
        exchanges = 0
        for family, address in ((socket.AF_INET, lab.peer4(1)), (socket.AF_INET6, lab.peer6(1))):
            server = peer.socket(family, socket.SOCK_STREAM)
            server.bind((address, 8080))
            server.listen(64)
            echo = peer.socket(family)
            echo.bind((address, 5353))
            for number in range(60):
                client = lab.relay.socket(family, socket.SOCK_STREAM)
                client.connect((address, 8080))
                accepted, _ = server.accept()
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                accepted.recv(100)
                accepted.sendall(b"x" * (100 + number * 97))
                accepted.close()
                while client.recv(65536):
                    pass
                client.close()
                exchanges += 1
            for number in range(200):
                client = lab.relay.socket(family)
                client.sendto(b"q" * (20 + number), (address, 5353))
                question, back = echo.recvfrom(2000)
                echo.sendto(question * 2, back)
                client.recv(2000)
                client.close()
                exchanges += 1
        assert exchanges == 520
        size = wait_for(lambda: path.stat().st_size, "the recording")
        wait_for(lambda: settled(path, size), "the recording to end", 10, 0.3)
        recorder.end(signal.SIGINT)
        yield path
    finally:
        lab.close()


def settled(path: Path, size: int, last: dict[Path, int] = {}) -> bool:  # noqa: B006
    """True when the file did not grow since the call before."""
    now = path.stat().st_size
    before = last.get(path, -1)
    last[path] = now
    return now == before and now >= size


@dataclass
class Collectors:
    """Two nfcapd at collector 1, two nfacctd at collector 2: one behind the relay, one fed directly."""

    lab: Lab

    def __post_init__(self) -> None:
        self.started: list[Process] = []
        for port in (RELAYED, DIRECT):
            self._nfcapd(port)
        for port in (RELAYED_ACCT, DIRECT_ACCT):
            self._nfacctd(port)

    def _nfcapd(self, port: int) -> None:
        place = self.lab.directory / f"nfcapd-{port}"
        place.mkdir()
        argv = [tool("nfcapd"), "-w", str(place), "-p", str(port), "-t", "3600", "-B", "4000000"]
        process = self.lab.start(argv, self.lab.collectors[0], f"nfcapd-{port}")
        self.lab.wait_bound(self.lab.collectors[0], [port], process)
        self.started.append(process)

    def _nfacctd(self, port: int) -> None:
        config = self.lab.directory / f"nfacctd-{port}.conf"
        keys = "src_host, dst_host, src_port, dst_port, proto, tos, tcpflags, peer_src_ip"
        config.write_text(
            f"daemonize: false\nnfacctd_port: {port}\nnfacctd_time_new: true\nplugins: print\n"
            f"aggregate: {keys}\nprint_output: csv\nprint_refresh_time: 3600\nprint_cache_entries: 65521\n"
            f"print_output_file: {self.lab.directory}/nfacctd-{port}.csv\n"
            "plugin_pipe_size: 10240000\nplugin_buffer_size: 10240\nnfacctd_pipe_size: 4000000\n"
        )
        argv = [tool("nfacctd"), "-f", str(config)]
        process = self.lab.start(argv, self.lab.collectors[1], f"nfacctd-{port}")
        self.lab.wait_bound(self.lab.collectors[1], [port], process)
        self.started.append(process)

    def end(self) -> None:
        for process in self.started:
            process.send_signal(signal.SIGTERM if "nfcapd" in process.label else signal.SIGINT)
        for process in self.started:
            assert process.wait(20) in process.expected, process.tail()

    def nfdump(self, port: int) -> list[tuple[str, ...]]:
        """Records of one nfcapd, sorted; without the time of reception, which is not a part of the flow."""
        place = self.lab.directory / f"nfcapd-{port}"
        done = subprocess.run(
            [tool("nfdump"), "-R", str(place), "-o", "csv", "-q"], capture_output=True, text=True, timeout=30
        )
        rows = [line.split(",") for line in done.stdout.splitlines() if line[:2] in ("19", "20")]
        assert rows, f"nfdump shows nothing for port {port}: {done.stdout[-500:]}{done.stderr}"
        return sorted(tuple(row[:-1]) for row in rows)

    def nfacct(self, port: int) -> list[tuple[str, ...]]:
        path = self.lab.directory / f"nfacctd-{port}.csv"
        wait_for(path.exists, f"nfacctd on {port} to write", 20)
        rows = list(csv.reader(io.StringIO(path.read_text())))
        assert len(rows) > 1, f"nfacctd on {port} wrote no flows"
        return sorted(tuple(row) for row in rows[1:])


def export(lab: Lab, capture: Path, version: int) -> None:
    """softflowd sends each export datagram to the relay and to both direct collectors."""
    targets = [f"{lab.relay4()}:2055", f"{lab.peer4(1)}:{DIRECT}", f"{lab.peer4(2)}:{DIRECT_ACCT}"]
    argv = [tool("softflowd"), "-d", "-6", "-r", str(capture), "-v", str(version), "-n", ",".join(targets)]
    # with a control socket softflowd 1.1.0 may wait in accept() for ever when it reads a file
    argv += ["-p", str(lab.directory / "softflowd.pid"), "-c", "none"]
    assert lab.start(argv, lab.exporter, "softflowd").wait(60) == 0


@pytest.mark.parametrize(
    ("version", "options", "ttl", "checksum"),
    [(5, (), 64, "1"), (9, (), 64, "1"), (10, (), 64, "1"), (9, ("-n",), 33, "3")],
    ids=["netflow5", "netflow9", "ipfix", "netflow9-no-checksum-ttl33"],
)
def test_collectors_decode_the_same_behind_the_relay(
    lab: Lab, capture: Path, version: int, options: tuple[str, ...], ttl: int, checksum: str
) -> None:
    collectors = Collectors(lab)
    arrivals = lab.tap(0, lambda seen: seen.port == 2055)
    sharks = [lab.tshark(1), lab.tshark(2)]
    for shark in sharks:
        shark.on()
    relay = lab.samplicate(
        "-S", *options, "-p", "2055",
        f"{lab.peer4(1)}/{RELAYED}/1,{ttl}", f"{lab.peer4(2)}/{RELAYED_ACCT}/1,{ttl}",
    )  # fmt: skip
    check_run(lab, capture, version, collectors, arrivals, sharks, relay, ttl, checksum)


def check_run(
    lab: Lab,
    capture: Path,
    version: int,
    collectors: Collectors,
    arrivals: Tap,
    sharks: list[Tshark],
    relay: Relay | None,
    ttl: int,
    checksum: str,
) -> None:
    export(lab, capture, version)
    came = arrivals.collect(1)
    assert len(came) > 5
    if relay:
        metrics = relay.at_rest()
        assert metrics.total("receive_datagrams_total") == len(came)
        assert metrics.total("send_datagrams_total") == 2 * len(came)
    for shark, port in zip(sharks, (RELAYED, RELAYED_ACCT), strict=True):
        rows = [row for row in shark.rows() if row["udp.dstport"] == str(port)]
        assert [bytes.fromhex(row["udp.payload"]) for row in rows] == [seen.payload for seen in came]
        assert [(row["ip.src"], int(row["udp.srcport"])) for row in rows] == [seen.exporter for seen in came]
        assert {row["udp.checksum.status"] for row in rows} == {checksum}
        assert {row["ip.ttl"] for row in rows} == {str(ttl)}
    collectors.end()
    direct, relayed = collectors.nfdump(DIRECT), collectors.nfdump(RELAYED)
    assert len(direct) > 500
    assert relayed == direct
    direct, relayed = collectors.nfacct(DIRECT_ACCT), collectors.nfacct(RELAYED_ACCT)
    assert len(direct) > 500
    assert relayed == direct
    # peer_src_ip: newer releases of pmacct write "::" for softflowd's IPFIX, in the direct output too
    exporters = {row[0] for row in relayed}
    assert "198.18.0.2" in exporters or exporters == {"::"}
    assert exporters <= {"198.18.0.2", "::"}, "the exporter's address, not the relay's"


def test_harness_with_the_classic_relay(lab: Lab, capture: Path) -> None:
    """The same run with the benchmark's yardstick in the relay's place: proves collectors, witnesses and comparison."""
    collectors = Collectors(lab)
    arrivals = lab.tap(0, lambda seen: seen.port == 2055)
    sharks = [lab.tshark(1), lab.tshark(2)]
    for shark in sharks:
        shark.on()
    words = ["--spoof", "--listen", "0.0.0.0:2055", "--to", f"{lab.peer4(1)}:{RELAYED}"]
    words += ["--to", f"{lab.peer4(2)}:{RELAYED_ACCT}"]
    relay = lab.start([bench_tool("classic"), *words], lab.relay, "classic")
    lab.wait_bound(lab.relay, [2055], relay)
    check_run(lab, capture, 10, collectors, arrivals, sharks, None, 64, "1")
