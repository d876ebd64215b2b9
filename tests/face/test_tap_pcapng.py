"""The pcapng files of `samplicator tap --write`, read back by tshark and by a slow reader of blocks: addresses, times,
checksums, interfaces, comments; and the same flows as in the capture that the datagrams are from.
"""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplicator.cli.main import main
from samplicator.cli.tap import pcapng
from samplicator.cli.tap.events import Datagram, Open, parse
from samplicator.cli.tap.packets import packet
from samplicator.cli.tap.pcapng import Writer
from samplicator.demo.traffic import payloads
from support.flows import without_times
from support.process import tool
from support.tapped import OPEN, TIME_NS, Daemon, as_lines, datagram, script, tick

CHECKED = ["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]
CAPTURES = {
    "netflow5": (2055, "cflow"),
    "netflow9": (9995, "cflow"),
    "ipfix": (4739, "cflow"),
    "sflow": (6343, "sflow"),
}


def write(path: Path, *events: dict[str, Any]) -> Path:
    """As the command does."""
    with Daemon(path.with_suffix(".control"), script(OPEN, *events, tick(len(events)), {"event": "end"})):
        argv = ["tap", "--control", str(path.with_suffix(".control")), "--write", str(path), "-c", str(len(events))]
        assert main(argv) == 0
    return path


def tshark(path: Path, *words: str) -> str:
    """Also that nothing is wrong with the file or with a packet in it."""
    argv = [tool("tshark"), "-n", "-r", str(path), *CHECKED, *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "appears to" not in done.stderr
    return done.stdout


def fields(path: Path, *names: str) -> list[list[str]]:
    words = [word for name in names for word in ("-e", name)]
    return [row.split("\t") for row in tshark(path, "-T", "fields", *words).splitlines()]


# ---------------------------------------------------------------------------------------------------- as tshark has it


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datagram and a copy of every kind."""
    copy, odd = b"payload", b"payload!"
    return write(
        tmp_path_factory.mktemp("tap") / "all.pcapng",
        datagram("in", copy, ttl=61, tos=0xB8),
        datagram("in", odd, listener="any"),
        datagram("in", copy, listener="any", exporter="2001:db8::7", tos=0xB8, ttl=9),
        datagram("sent", copy, receiver="nf1", way="raw"),
        datagram("sent", odd, receiver="own", way="udp"),
        datagram("sent", copy, receiver="six", way="udp"),
        datagram("sent", copy, receiver="new", way="door", exporter="2001:db8::7"),
        datagram("skipped", copy, receiver="nf1"),
        datagram("failed", copy, receiver="nf1", way="packet", reason="no_neighbor"),
        datagram("dropped", copy, reason="acl"),
        datagram("dropped", b"", reason="truncated", length=9000),
        datagram("dropped", b"", reason="truncated", length=65535, exporter="2001:db8::7"),
    )


ROWS = [
    # source, port, destination, port, bytes, interface, comment
    ("198.18.0.1", "2055", "198.18.0.2", "2055", 35, "listener flows", "in by flows"),
    ("198.18.0.1", "2055", "0.0.0.0", "6343", 36, "listener any", "in by any"),
    ("2001:db8::7", "2055", "::", "6343", 55, "listener any", "in by any"),
    ("198.18.0.1", "2055", "192.0.2.10", "9995", 35, "receiver nf1", "sent to nf1 by raw"),
    ("0.0.0.0", "0", "192.0.2.11", "9996", 36, "receiver own", "sent to own by udp"),
    ("2001:db8::1", "0", "2001:db8::10", "9995", 55, "receiver six", "sent to six by udp"),
    ("::", "0", "::", "0", 55, "receiver new", "sent to new by door"),
    ("198.18.0.1", "2055", "192.0.2.10", "9995", 35, "receiver nf1", "not sent to nf1: skipped by freq"),
    ("198.18.0.1", "2055", "192.0.2.10", "9995", 35, "receiver nf1", "not sent to nf1: no_neighbor"),
    ("198.18.0.1", "2055", "198.18.0.2", "2055", 35, "listener flows", "not forwarded: acl"),
    ("198.18.0.1", "2055", "198.18.0.2", "2055", 9028, "listener flows", "not forwarded: truncated"),
    ("2001:db8::7", "2055", "198.18.0.2", "2055", 65583, "listener flows", "not forwarded: truncated"),
]


def test_packets_interfaces_and_comments(path: Path) -> None:
    names = ("ip.src", "ipv6.src", "udp.srcport", "ip.dst", "ipv6.dst", "udp.dstport")
    rows = fields(path, *names, "frame.len", "frame.interface_name", "frame.comment")
    found = [(a + b, port, c + d, to, int(size), name, text) for a, b, port, c, d, to, size, name, text in rows]
    # IPv6, and a listener that has IPv4 only
    wanted = [*ROWS[:-1], (*ROWS[-1][:2], "::", *ROWS[-1][3:])]
    assert found == wanted


def test_interfaces_are_described_and_raw_ip(path: Path) -> None:
    rows = fields(path, "frame.interface_name", "frame.interface_description", "frame.encap_type")
    assert {tuple(row) for row in rows} == {
        ("listener flows", "198.18.0.2:2055", "7"),  # WTAP_ENCAP_RAW_IP
        ("listener any", "0.0.0.0:6343, [::]:6343", "7"),
        ("receiver nf1", "192.0.2.10:9995", "7"),
        ("receiver own", "192.0.2.11:9996", "7"),
        ("receiver six", "[2001:db8::10]:9995", "7"),
        ("receiver new", "", "7"),
    }


def test_times_ttl_tos_and_direction(path: Path) -> None:
    rows = fields(
        path, "frame.time_epoch", "ip.ttl", "ipv6.hlim", "ip.dsfield", "ipv6.tclass", "frame.packet_flags_direction"
    )
    assert {row[0] for row in rows} == {f"{TIME_NS // 10**9}.{TIME_NS % 10**9}"}
    assert rows[0][1:] == ["61", "", "0xb8", "", "0x00000001"]
    assert rows[2][1:] == ["", "9", "", "0x000000b8", "0x00000001"]
    assert rows[3][1:] == ["64", "", "0x00", "", "0x00000002"]


def test_checksums_are_correct(path: Path) -> None:
    rows = fields(path, "ip.checksum.status", "udp.checksum.status", "frame.cap_len", "frame.len")
    for ip, udp, kept, whole in rows:
        assert ip in ("1", "")  # good, or IPv6
        absent = "3" if ip else "4"  # which IPv6 forbids (RFC 8200, 8.1), but what is not known is not made up
        assert udp == ("1" if kept == whole else absent), (udp, kept, whole)
    assert {udp for _, udp, kept, whole in rows if kept == whole} == {"1"}


def test_the_listing_of_interfaces(path: Path) -> None:
    """By a reader of its own: the blocks are whole, and every interface comes before its packets."""
    kinds = [kind for kind, _ in blocks(path.read_bytes())]
    assert kinds[0] == 0x0A0D0D0A
    assert kinds[1:6] == [1] * 5
    assert kinds.count(1) == 6  # and the one that the configuration did not name
    assert kinds.count(6) == len(ROWS)


# ---------------------------------------------------------------------------------------------------- the same flows


@pytest.mark.parametrize("name", CAPTURES)
def test_the_same_flows_as_in_the_capture(name: str, tmp_path: Path) -> None:
    """Everything that tshark decodes of every datagram, in and sent, equals what it decodes of the capture."""
    port, protocol = CAPTURES[name]
    came = write(tmp_path / "in.pcapng", *[datagram("in", payload) for payload in payloads(name)])
    copies = [datagram("sent", payload, receiver="nf1", way="raw") for payload in payloads(name)]
    left = write(tmp_path / "sent.pcapng", *copies)
    original = Path(pcapng.__file__).parents[2] / "captures" / f"{name}.pcap"
    words = ("-T", "json", "-J", protocol, "--no-duplicate-keys")

    def decoded(file: Path, port: int) -> list[Any]:
        rows = json.loads(tshark(file, "-d", f"udp.port=={port},{protocol}", *words))
        return [without_times(row["_source"]["layers"][protocol]) for row in rows]

    wanted = decoded(original, port)
    assert len(wanted) == len(payloads(name))
    assert json.dumps(wanted).count("addr" if protocol == "cflow" else "agent") > len(wanted)
    assert decoded(came, 2055) == wanted
    assert decoded(left, 9995) == wanted


def test_through_a_pipe(tmp_path: Path) -> None:
    """`tap --write - | tshark -i -`."""
    control = tmp_path / "control"
    payload = payloads("ipfix")[0]
    argv = [sys.executable, "-m", "samplicator", "tap", "--control", str(control), "--write", "-"]
    with Daemon(control, script(OPEN, datagram("in", payload), tick(1), {"event": "end"})):
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        shark = [
            tool("tshark"),
            "-n",
            "-r",
            "-",
            "-d",
            "udp.port==2055,cflow",
            "-T",
            "fields",
            "-e",
            "cflow.template_id",
        ]
        done = subprocess.run(shark, stdin=process.stdout, capture_output=True, text=True, timeout=60)
        err = process.stderr.read().decode()
        assert process.wait(30) == 1
    assert done.stdout.split(",")[:4] == ["1024", "1025", "2048", "2049"]
    assert err.endswith("\n1 shown, 0 not shown\n")


# ---------------------------------------------------------------------------------------------------- the writer


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body; all of the data must be whole blocks."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert size % 4 == 0
        assert at + size <= len(data)
        assert struct.unpack_from("<I", data, at + size - 4)[0] == size
        yield kind, data[at + 8 : at + size - 4]
        at += size


def opened(*listeners: dict[str, Any]) -> Open:
    _, event = parse(as_lines({**OPEN, "listeners": list(listeners)})[:-1])
    assert isinstance(event, Open)
    return event


def test_a_listener_whose_address_has_changed_is_another_interface() -> None:
    file = io.BytesIO()
    writer = Writer(file)
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
        writer.open(opened({"name": "a", "address": address, "port": 1}))
    assert sum(b"listener a" in body for kind, body in blocks(file.getvalue()) if kind == 1) == 2


def test_interfaces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcapng, "_MOST_INTERFACES", 10)
    with pytest.raises(ValueError, match="too many listeners and receivers"):
        Writer(io.BytesIO()).open(opened(*[{"name": f"{n}", "address": "::", "port": 1} for n in range(11)]))


def test_an_unknown_time_is_said() -> None:
    file = io.BytesIO()
    _, event = parse(as_lines(datagram("in", b"", time_ns=0))[:-1])
    assert isinstance(event, Datagram)
    Writer(file).packet(event, Open({}, {}))
    assert b"in by flows; its time of arrival is not known" in file.getvalue()


TEXT = st.one_of(st.sampled_from(["flows", "nf1", "own", "six", "any", "", "\ud800\x1b[0m"]), st.text(max_size=2000))
ADDRESSES = st.sampled_from(["198.18.0.1", "0.0.0.0", "2001:db8::7", "fe80::1%eth0"])
EVENTS = st.builds(
    lambda kind, payload, more, short: datagram(kind, payload[:short], **more, length=len(payload)),
    st.sampled_from(["in", "sent", "skipped", "failed", "dropped"]),
    st.binary(max_size=200),
    st.fixed_dictionaries(
        {
            **dict.fromkeys(("listener", "receiver", "reason", "way"), TEXT),
            "exporter": ADDRESSES,
            "port": st.integers(0, 65535),
            "ttl": st.integers(0, 255),
            "tos": st.integers(0, 255),
            "time_ns": st.integers(0, (1 << 63) - 1),
        }
    ),
    st.sampled_from([None, 0, 5]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=5))
def test_whatever_comes_the_file_is_whole(events: list[dict[str, Any]]) -> None:
    file = io.BytesIO()
    writer = Writer(file)
    config = opened(*OPEN["listeners"])
    writer.open(config)
    for each in events:
        _, event = parse(as_lines(each)[:-1])
        assert isinstance(event, Datagram)
        writer.packet(event, config)
    found = list(blocks(file.getvalue()))
    packets = [body for kind, body in found if kind == 6]
    interfaces = sum(kind == 1 for kind, _ in found)
    assert len(packets) == len(events)
    for body in packets:
        number, _, _, kept, whole = struct.unpack_from("<IIIII", body)
        assert number < interfaces
        assert kept <= whole


@given(st.binary(max_size=300), st.sampled_from(["198.18.0.1", "2001:db8::7"]))
def test_checksums_as_rfc_1071_adds_them(payload: bytes, exporter: str) -> None:
    """The sum over pseudo header and datagram, in words of 16 bits, with its carries, is all ones."""
    _, event = parse(as_lines(datagram("in", payload, exporter=exporter))[:-1])
    assert isinstance(event, Datagram)
    data, whole = packet(event, Open({}, {}))
    assert len(data) == whole
    head = 20 if data[0] >> 4 == 4 else 40
    addresses = data[12:20] if head == 20 else data[8:40]

    def total(some: bytes) -> int:
        some += bytes(len(some) % 2)
        found = sum(struct.unpack(f">{len(some) // 2}H", some))
        while found >> 16:
            found = (found & 0xFFFF) + (found >> 16)
        return found

    assert total(addresses + struct.pack(">II", len(data) - head, 17) + data[head:]) == 0xFFFF
    if head == 20:
        assert total(data[:20]) == 0xFFFF
