"""The demo: captures are what they claim, the judge sees every kind of wrong, and a short real run is faultless."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from samplicator.demo.daemon import series
from samplicator.demo.demo import verdict
from samplicator.demo.traffic import CAPTURES, Exporter, Receiver, make_exporters, payloads, udp_payloads
from samplicator.views.prometheus import Page, render
from scapy.layers.inet import UDP
from scapy.utils import rdpcap
from support.state import make_readings, make_state

CAPTURE_FOLDER = Path(__file__).resolve().parents[2] / "pysrc" / "samplicator" / "captures"


# ---------------------------------------------------------------------------------------------------- captures


@pytest.mark.parametrize(
    ("name", "starts", "least"),
    [("netflow5", b"\0\5", 50), ("netflow9", b"\0\x09", 80), ("ipfix", b"\0\x0a", 80), ("sflow", b"\0\0\0\5", 60)],
)
def test_captures_hold_their_protocol(name: str, starts: bytes, least: int) -> None:
    datagrams = payloads(name)
    assert len(datagrams) >= least
    assert all(datagram.startswith(starts) for datagram in datagrams)
    assert len(set(datagrams)) == len(datagrams)
    assert (CAPTURE_FOLDER / f"{name}.pcap").stat().st_size < 200_000


@pytest.mark.parametrize("name", CAPTURES)
def test_pcap_reader_agrees_with_scapy(name: str) -> None:
    packets = rdpcap(str(CAPTURE_FOLDER / f"{name}.pcap"))
    assert [bytes(packet[UDP])[8 : packet[UDP].len] for packet in packets] == payloads(name)


@pytest.mark.parametrize("damage", [b"", b"\0" * 24, b"\xd4\xc3\xb2\xa1" + bytes(20)])
def test_pcap_reader_refuses_what_it_cannot_read(damage: bytes) -> None:
    with pytest.raises(ValueError, match="pcap"):
        list(udp_payloads(damage))


def test_pcap_reader_refuses_cut_frames() -> None:
    whole = (CAPTURE_FOLDER / "sflow.pcap").read_bytes()
    with pytest.raises(ValueError, match="cut short"):
        list(udp_payloads(whole[:500]))


# ---------------------------------------------------------------------------------------------------- the judge


@pytest.fixture
def exporters() -> Iterator[list[Exporter]]:
    made = make_exporters()
    yield made
    for exporter in made:
        exporter.sock.close()


@pytest.fixture
def receivers(exporters: list[Exporter]) -> Iterator[list[Receiver]]:
    made = [Receiver("spoofed", "127.0.0.2", True, exporters), Receiver("plain", "127.0.0.3", False, exporters)]
    yield made
    for receiver in made:
        receiver.sock.close()


RELAY = ("127.0.0.1", 40000)


def test_exporters_share_no_datagram(exporters: list[Exporter]) -> None:
    everything = [datagram for exporter in exporters for datagram in exporter.datagrams]
    assert len(set(everything)) == len(everything) > 300
    assert len({exporter.address for exporter in exporters}) == len(exporters) == 8
    assert {exporter.kind for exporter in exporters} == set(CAPTURES.values())


def test_judge_accepts_what_is_right_round_and_round(exporters: list[Exporter], receivers: list[Receiver]) -> None:
    spoofed, plain = receivers
    for turn in range(2 * max(len(e.datagrams) for e in exporters)):
        for exporter in exporters:
            datagram = exporter.datagrams[turn % len(exporter.datagrams)]
            spoofed.judge(datagram, exporter.address)
            plain.judge(datagram, RELAY)
    for tally in (spoofed.tally, plain.tally):
        assert tally.verified == tally.received > 0
        assert (tally.lost, tally.wrong) == (0, 0)


def test_judge_sees_each_kind_of_wrong(exporters: list[Exporter], receivers: list[Receiver]) -> None:
    spoofed, plain = receivers
    one, other = exporters[0], exporters[1]
    spoofed.judge(one.datagrams[0], one.address)
    spoofed.judge(one.datagrams[3], one.address)  # two are missing
    spoofed.judge(one.datagrams[3], one.address)  # twice
    spoofed.judge(one.datagrams[1], one.address)  # too late
    spoofed.judge(one.datagrams[4], other.address)  # another's source
    spoofed.judge(one.datagrams[5][:-1], one.address)  # cut
    wanted = {"received": 6, "verified": 2, "lost": 2, "wrong_bytes": 1, "wrong_source": 1, "wrong_order": 2}
    assert dataclasses.asdict(spoofed.tally) == wanted
    plain.judge(one.datagrams[0], RELAY)
    plain.judge(other.datagrams[0], ("127.0.0.1", 40001))  # the daemon's socket does not change
    assert (plain.tally.verified, plain.tally.wrong_source) == (1, 1)


METRICS = {
    'samplicator_receive_datagrams_total{listener="demo"}': 10.0,
    'samplicator_receive_matched_datagrams_total{listener="demo"}': 10.0,
    'samplicator_receive_kernel_drops_total{listener="demo"}': 0.0,
    **{
        f'samplicator_{name}{{{first}receiver="{receiver}"}}': value
        for receiver in ("spoofed", "plain")
        for name, first, value in (
            ("send_offered_datagrams_total", "", 10.0),
            ("send_datagrams_total", "", 10.0),
            ("send_failed_datagrams_total", 'reason="refused",', 0.0),
            ("send_skipped_datagrams_total", 'reason="freq",', 0.0),
        )
    },
}


def test_verdict_needs_all_three_to_agree(receivers: list[Receiver]) -> None:
    for receiver in receivers:
        receiver.tally.received = receiver.tally.verified = 10
    assert verdict(10, receivers, METRICS) == []
    assert verdict(11, receivers, METRICS)
    assert verdict(0, receivers, METRICS)
    assert verdict(10, receivers, {}) == ["the daemon does not answer on /metrics"]
    for name in METRICS:
        if "kernel_drops" not in name:
            assert verdict(10, receivers, {**METRICS, name: 9.0}), name
    receivers[0].tally.verified = 9
    assert any("9 verified" in fault for fault in verdict(10, receivers, METRICS))


def test_verdict_reads_series_as_they_are_rendered() -> None:
    text = render(Page(make_state()), accept="text/plain")[0].decode()
    found = series(text)
    assert found['samplicator_send_datagrams_total{receiver="nfdump"}'] == make_readings().receivers[0].counters["sent"]
    errors = [name for name in found if name.startswith("samplicator_send_failed_datagrams_total{")]
    assert 'samplicator_send_failed_datagrams_total{reason="refused",receiver="nfdump"}' in errors


# ---------------------------------------------------------------------------------------------------- the real thing


def demo(*words: str) -> list[str]:
    return [sys.executable, "-m", "samplicator", "demo", *words]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name: that of a control socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="smpl-") as folder:
        yield Path(folder)


def test_short_run_is_faultless(place: Path) -> None:
    done = subprocess.run(
        demo("--seconds", "3"), capture_output=True, text=True, timeout=90, env=os.environ | {"TMPDIR": str(place)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^OK: 0 lost, every copy verified", done.stdout, re.MULTILINE)
    counts = re.findall(r"([\d,]+) copies, ([\d,]+) verified, 0 lost, 0 wrong$", done.stdout, re.MULTILINE)
    assert len(counts) == 2
    sent = re.search(r"s: ([\d,]+) datagrams of 8 exporters", done.stdout)
    assert sent is not None
    assert {number for pair in counts for number in pair} == {sent[1]}
    assert int(sent[1].replace(",", "")) > 4000
    shown = re.findall(
        r"sent ([\d,]+)   the daemon received ([\d,]+)((?: \| \S+ [\d,]+ copies, [^|\n]*)+)", done.stdout
    )
    assert shown
    for first, second, rest in shown:
        arrived = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) copies", rest)]
        assert max(arrived) <= int(second.replace(",", "")) <= int(first.replace(",", ""))
    assert re.search(r"samplicate -S -p 2055 \S+/9995 \S+/9995$", done.stdout, re.MULTILINE)
    assert list(place.iterdir()) == [], "it leaves nothing behind"


def test_interrupted_run_ends_with_its_summary() -> None:
    process = subprocess.Popen(
        demo("--forever", "--rate", "500"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell starts background jobs with SIGINT ignored, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    head = process.stdout.readline() + process.stdout.readline()
    page = re.search(r"metrics: (http://\S+)", head)
    assert page is not None
    time.sleep(1.5)
    with urllib.request.urlopen(page[1], timeout=5) as answer:
        assert b'samplicator_receive_datagrams_total{listener="demo"}' in answer.read()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0, head + rest
    assert "OK: 0 lost" in rest


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to give up rights")
def test_without_net_raw_it_says_so_and_does_not_spoof() -> None:
    words = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", *demo("--seconds", "1")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this user lacks CAP_NET_RAW, so no copy is spoofed" in done.stdout
    assert "plain-1 (own source)" in done.stdout


def test_a_daemon_that_cannot_start_is_a_failure() -> None:
    done = subprocess.run(demo("--seconds", "1", "--http", "192.0.2.1:1"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "FAILED: the daemon ended at once" in done.stderr
    assert "192.0.2.1:1" in done.stderr
