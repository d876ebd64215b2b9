"""The experiments' table (freq 2, 3, 10; joining late; refreshing in a running stream) with a real collector,
nfcapd, on loopback: it decodes exactly the records of what was sent and counts no sequence error; and the control,
where it does.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from samplicator import _inside_flow as probe
from support import flows as model
from support.flows import IPFIX, V9
from support.hosts import free_port
from support.sampled import ADDRESS, PORT, Receiver, new, run

pytestmark = pytest.mark.skipif(shutil.which("nfcapd") is None, reason="no nfcapd here")
FIELDS = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (2, 4), (1, 4)]


def record(i: int, k: int) -> bytes:
    ports = (1000 + k).to_bytes(2, "big") + (80).to_bytes(2, "big")
    return (
        bytes([10, 0, i % 256, k, 192, 0, 2, 1]) + ports + b"\x06" + (3).to_bytes(4, "big") + (300).to_bytes(4, "big")
    )


def stream(kind: int, n: int = 120, every: int = 20, rows: int = 20) -> list[bytes]:
    """n data datagrams of 20 flows each, a template in a datagram of its own every so many."""
    out, sequence = [], 0
    template = model.a_set(0 if kind == V9 else 2, model.template(256, FIELDS))
    for i in range(n):
        data = model.a_set(256, *[record(i, k) for k in range(rows)], pad=4)
        if i % every == 0:
            out.append(model.v9(sequence, 1, template) if kind == V9 else model.ipfix(sequence, 1, template))
            sequence += kind == V9
        out.append(model.v9(sequence, 1, data, count=rows) if kind == V9 else model.ipfix(sequence, 1, data))
        sequence += 1 if kind == V9 else rows
    return out


def nfcapd(payloads: list[bytes], directory: Path) -> tuple[int, int]:
    """(flows decoded, sequence errors) as nfcapd says when it ends."""
    port = free_port()
    command = ["nfcapd", "-w", str(directory), "-b", "127.0.0.1", "-p", str(port), "-t", "3600"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wanted = f":{port:04X} "
        for _ in range(200):
            if wanted in Path("/proc/net/udp").read_text():
                break
            time.sleep(0.02)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for payload in payloads:
                sender.sendto(payload, ("127.0.0.1", port))
                time.sleep(0.0005)
        time.sleep(0.5)
    finally:
        process.terminate()
        text = process.communicate(timeout=20)[0]
    found = re.findall(r"Flows: (\d+).*?Sequence Errors: (\d+)", text)
    assert found, text
    return int(found[-1][0]), int(found[-1][1])


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("freq", [2, 3, 10])
def test_sampled(kind: int, freq: int, tmp_path: Path) -> None:
    flow = new()
    receiver = Receiver(flow, 1, freq)
    run(flow, stream(kind), [receiver])
    assert nfcapd(receiver.got, tmp_path) == (2400 // freq, 0)


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_control_sampled_without_us(kind: int, tmp_path: Path) -> None:
    flow = new()
    receiver = Receiver(flow, 1, 3, safe=True, renumbers=False)
    run(flow, stream(kind), [receiver])
    decoded, errors = nfcapd(receiver.got, tmp_path)
    assert decoded == 800
    assert errors > 20


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_joining_late(kind: int, tmp_path: Path) -> None:
    flow = new()
    payloads = stream(kind, every=1000)
    run(flow, payloads[:109], [])
    (number,) = probe.domains_of(flow, ADDRESS, PORT)
    datagrams, _ = probe.replay(flow, number, 9, probe.EVERYTHING, probe.JOIN, 1400)
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    assert nfcapd(datagrams + payloads[109:], tmp_path / "with") == (240, 0)
    assert nfcapd(payloads[109:], tmp_path / "without")[0] == 0


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_refreshed_in_a_running_stream(kind: int, tmp_path: Path) -> None:
    flow = new()
    receiver = Receiver(flow, 1)
    for i, payload in enumerate(stream(kind)):
        run(flow, [payload], [receiver])
        if i % 17 == 16:
            (number,) = probe.domains_of(flow, ADDRESS, PORT)
            for datagram in probe.replay(flow, number, 1, probe.EVERYTHING, probe.REFRESH, 1400)[0]:
                receiver.deliver(datagram)
    assert nfcapd(receiver.got, tmp_path) == (2400, 0)
