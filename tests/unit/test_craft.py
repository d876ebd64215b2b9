"""Packets of the `raw` engine: equal to scapy's bytes over random inputs; fragments put the datagram together again.

The packets are caught at the engine seam by the scripted engine; nothing is sent.
"""

from __future__ import annotations

import random
import socket
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplicator import _inside
from scapy.compat import raw
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment

WORKER = _inside.Worker(batch=1, sessions=8)
V4, V6 = bytes([198, 18, 0, 1]), bytes.fromhex("20010db8000000000000000000000001")
RECEIVER4, RECEIVER6 = bytes([198, 18, 0, 2]), bytes.fromhex("20010db8000000000000000000000002")


@dataclass(frozen=True)
class Datagram:
    source: bytes
    port: int
    ttl: int
    tos: int
    payload: bytes


def craft(
    datagram: Datagram,
    receiver: bytes,
    port: int,
    *,
    ttl: int = 0,
    tos: int = -1,
    checksum: bool = True,
    mtu: int = 65535,
    source: tuple[bytes, int] | None = None,
) -> list[bytes]:
    tx = _inside.Tx(
        _inside.ENGINE_RAW,
        -1,
        _inside.TxCounters(),
        receiver,
        port,
        ttl=ttl,
        tos=tos,
        checksum=checksum,
        mtu=mtu,
        source=source,
    )
    script = _inside.Script()
    fields = (datagram.source, datagram.port, datagram.ttl, datagram.tos, datagram.payload)
    _inside.play(WORKER, tx, [fields], script)
    assert all(control == b"" for _, control in script.accepted)
    return [packet for packet, _ in script.accepted]


def text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def by_scapy(packet: bytes, source: bytes, source_port: int, receiver: bytes, port: int, ttl: int, tos: int) -> IP:
    """The packet as scapy builds it from the same fields; the random identification is taken over."""
    if len(receiver) == 4:
        ip = IP(src=text(source), dst=text(receiver), ttl=ttl, tos=tos, id=int.from_bytes(packet[4:6], "big"), flags=0)
    else:
        ip = IPv6(src=text(source), dst=text(receiver), hlim=ttl, tc=tos)
    return ip / UDP(sport=source_port, dport=port)


payloads = st.one_of(st.binary(max_size=64), st.integers(0, 1500).map(lambda n: random.Random(n).randbytes(n)))
ports = st.integers(1, 65535)
octets = st.integers(0, 255)


@pytest.mark.parametrize("length", [4, 16])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_equals_scapy(length: int, data: st.DataObject) -> None:
    addresses = st.binary(min_size=length, max_size=length)
    datagram = Datagram(
        data.draw(addresses), data.draw(ports), data.draw(st.integers(1, 255)), data.draw(octets), data.draw(payloads)
    )
    receiver, port = data.draw(addresses), data.draw(ports)
    ttl, tos = data.draw(octets), data.draw(st.integers(-1, 255))
    fixed = data.draw(st.none() | st.tuples(addresses, st.integers(0, 65535)))
    packets = craft(datagram, receiver, port, ttl=ttl, tos=tos, source=fixed)
    assert len(packets) == 1
    source = fixed[0] if fixed else datagram.source
    source_port = fixed[1] if fixed and fixed[1] else datagram.port
    expected = by_scapy(
        packets[0],
        source,
        source_port,
        receiver,
        port,
        ttl or datagram.ttl,
        datagram.tos if tos < 0 else tos,
    )
    assert packets[0] == raw(expected / datagram.payload)


def test_unknown_ttl_is_64() -> None:
    """A listener that does not hand over TTLs, and a receiver that keeps them."""
    assert craft(Datagram(V4, 1, 0, 0, b""), RECEIVER4, 2)[0][8] == 64
    assert craft(Datagram(V6, 1, 0, 0, b""), RECEIVER6, 2)[0][7] == 64


def test_zero_checksum_on_request() -> None:
    packet = craft(Datagram(V4, 1000, 64, 0, b"payload"), RECEIVER4, 2055, checksum=False)[0]
    assert packet[26:28] == b"\0\0"
    expected = IP(packet)
    assert expected[UDP].chksum == 0
    del expected.chksum
    assert IP(raw(expected)).chksum == IP(packet).chksum


@pytest.mark.parametrize(("source", "receiver", "header"), [(V4, RECEIVER4, 20), (V6, RECEIVER6, 40)])
@pytest.mark.parametrize("tail", [b"", b"x", b"odd"])
def test_computed_zero_is_sent_as_ffff(source: bytes, receiver: bytes, header: int, tail: bytes) -> None:
    """RFC 768: 0 means none. The first two payload bytes are chosen so that the sum comes out as 0xFFFF."""
    plain = craft(Datagram(source, 5, 64, 0, b"\0\0" + tail), receiver, 6)[0]
    (checksum,) = struct.unpack_from(">H", plain, header + 6)
    packet = craft(Datagram(source, 5, 64, 0, struct.pack(">H", checksum) + tail), receiver, 6)[0]
    assert packet[header + 6 : header + 8] == b"\xff\xff"
    zero_is = craft(Datagram(source, 5, 64, 0, struct.pack(">H", checksum - 1) + tail), receiver, 6)[0]
    assert zero_is[header + 6 : header + 8] == b"\0\1"


def test_identifications_differ_and_are_never_zero() -> None:
    """The kernel would replace an identification of 0 by its own, which differs from fragment to fragment."""
    tx = _inside.Tx(_inside.ENGINE_RAW, -1, _inside.TxCounters(), RECEIVER4, 1)
    values = _inside.identifications(tx, 200_000)
    assert all(value & 0xFFFF for value in values)
    assert len({value & 0xFFFF for value in values}) > 60_000
    assert len(set(values)) > 199_900
    other = _inside.Tx(_inside.ENGINE_RAW, -1, _inside.TxCounters(), RECEIVER4, 1)
    assert _inside.identifications(other, 10) != values[:10]


# ---- fragments


def internet_checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def reassemble4(packets: list[bytes], mtu: int) -> bytes:
    """The UDP datagram that the fragments carry; every field of every fragment is checked on the way."""
    whole = b""
    first_id = packets[0][4:6]
    assert first_id != b"\0\0"
    for number, packet in enumerate(packets):
        last = number == len(packets) - 1
        total, flags = struct.unpack_from(">H2xH", packet, 2)
        assert packet[0] == 0x45
        assert packet[9] == socket.IPPROTO_UDP
        assert total == len(packet) <= mtu
        assert internet_checksum(packet[:20]) == 0
        assert packet[4:6] == first_id
        assert flags & 0xC000 == 0  # reserved, DF
        assert bool(flags & 0x2000) is not last
        assert (flags & 0x1FFF) * 8 == len(whole)
        assert len(packet) > 20
        if not last:
            assert total + 8 > mtu, "a fragment that is not the last is as long as it can be"
            assert (len(packet) - 20) % 8 == 0
        whole += packet[20:]
    return whole


def reassemble6(packets: list[bytes], mtu: int) -> bytes:
    whole = b""
    for number, packet in enumerate(packets):
        last = number == len(packets) - 1
        length, following = struct.unpack_from(">HB", packet, 4)
        assert packet[0] >> 4 == 6
        assert following == 44
        assert length == len(packet) - 40
        assert len(packet) <= mtu
        nh, reserved, offset = struct.unpack_from(">BBH", packet, 40)
        assert (nh, reserved) == (socket.IPPROTO_UDP, 0)
        assert offset & 0x6 == 0
        assert bool(offset & 1) is not last
        assert offset & 0xFFF8 == len(whole)
        assert packet[44:48] == packets[0][44:48] != bytes(4)
        assert len(packet) > 48
        if not last:
            assert len(packet) + 8 > mtu
            assert (len(packet) - 48) % 8 == 0
        whole += packet[48:]
    return whole


def reference_udp(source: bytes, receiver: bytes, port: int, receiver_port: int, payload: bytes) -> bytes:
    """The UDP datagram by RFC 768, slowly."""
    length = len(payload) + 8
    pseudo = source + receiver + struct.pack(">HH", socket.IPPROTO_UDP, length)
    header = struct.pack(">HHHH", port, receiver_port, length, 0)
    checksum = internet_checksum(pseudo + header + payload + bytes(length % 2)) or 0xFFFF
    return header[:6] + struct.pack(">H", checksum) + payload


def check_fragments(source: bytes, receiver: bytes, mtu: int, payload: bytes) -> None:
    header = 20 if len(source) == 4 else 40
    udp = reference_udp(source, receiver, 4444, 2055, payload)
    packets = craft(Datagram(source, 4444, 33, 0x28, payload), receiver, 2055, mtu=mtu)
    if header + len(udp) <= mtu:
        assert len(packets) == 1
        assert packets[0][header:] == udp
    else:
        assert len(packets) > 1
        assert (reassemble4 if header == 20 else reassemble6)(packets, mtu) == udp
    for packet in packets:  # TTL, TOS and addresses on every fragment
        if header == 20:
            assert (packet[1], packet[8], packet[12:20]) == (0x28, 33, source + receiver)
        else:
            assert (packet[:4], packet[7], packet[8:40]) == (b"\x62\x80\0\0", 33, source + receiver)


PAYLOAD = random.Random(4).randbytes(65507)


def test_every_mtu_ipv4() -> None:
    for mtu in range(68, 1700):
        for size in {0, mtu - 29, mtu - 28, mtu - 27, 2 * mtu - 48, 2 * mtu - 40, 3000}:
            check_fragments(V4, RECEIVER4, mtu, PAYLOAD[: max(size, 0)])


def test_every_mtu_ipv6() -> None:
    for mtu in range(1280, 2900):
        for size in {0, mtu - 49, mtu - 48, mtu - 47, 2 * mtu - 104, 2 * mtu - 96, 5000}:
            check_fragments(V6, RECEIVER6, mtu, PAYLOAD[:size])


@pytest.mark.parametrize("size", [1471, 1472, 1473, 8972, 9000, 65507])
@pytest.mark.parametrize("mtu", [1280, 1499, 1500, 1501, 9000, 65535])
def test_usual_sizes(mtu: int, size: int) -> None:
    check_fragments(V4, RECEIVER4, mtu, PAYLOAD[:size])
    check_fragments(V6, RECEIVER6, mtu, PAYLOAD[:size])


def test_largest_datagram_over_the_smallest_mtu() -> None:
    """1365 fragments: what the ring must hold."""
    packets = craft(Datagram(V4, 1, 64, 0, PAYLOAD), RECEIVER4, 2, mtu=68)
    assert len(packets) == 1365 <= _inside.RING
    assert len(reassemble4(packets, 68)) == 65515


@pytest.mark.parametrize("mtu", [576, 1500])
def test_fragments_are_scapys_datagram(mtu: int) -> None:
    payload = PAYLOAD[:4001]
    packets = craft(Datagram(V4, 999, 7, 3, payload), RECEIVER4, 111, mtu=mtu)
    expected = raw(by_scapy(packets[0], V4, 999, RECEIVER4, 111, 7, 3) / payload)
    assert b"".join(raw(IP(packet).payload) for packet in packets) == expected[20:]


def test_fragments_are_scapys_datagram_ipv6() -> None:
    payload = PAYLOAD[:4001]
    packets = craft(Datagram(V6, 999, 7, 3, payload), RECEIVER6, 111, mtu=1500)
    expected = raw(by_scapy(packets[0], V6, 999, RECEIVER6, 111, 7, 3) / payload)
    fragments = [IPv6(packet)[IPv6ExtHdrFragment] for packet in packets]
    assert b"".join(raw(fragment.payload) for fragment in fragments) == expected[40:]
    assert [fragment.m for fragment in fragments] == [1] * (len(packets) - 1) + [0]
    assert len({fragment.id for fragment in fragments}) == 1


def test_payload_that_the_length_field_cannot_hold() -> None:
    """65,508 bytes fit IPv6 but not IPv4; nothing is sent and the copy is counted."""
    for payload, receiver, source, fits in (
        (65507, RECEIVER4, V4, True),
        (65508, RECEIVER4, V4, False),
        (65527, RECEIVER6, V6, True),
        (65528, RECEIVER6, V6, False),
    ):
        counters = _inside.TxCounters()
        tx = _inside.Tx(_inside.ENGINE_RAW, -1, counters, receiver, 1, mtu=1500)
        script = _inside.Script()
        _inside.play(WORKER, tx, [(source, 1, 64, 0, bytes(payload))], script)
        values = dict(zip(_inside.TX_FIELDS, counters.read(), strict=True))
        assert bool(script.accepted) is fits
        assert (values["sent"], values["failed_message_too_long"]) == ((1, 0) if fits else (0, 1))


def test_copies_of_a_batch_share_nothing_but_the_payload() -> None:
    """Whole and fragmented datagrams in one flush, more packets than the ring holds: order and bytes stay."""
    tx = _inside.Tx(_inside.ENGINE_RAW, -1, _inside.TxCounters(), RECEIVER4, 9, ttl=64, tos=0, mtu=576)
    generator = random.Random(5)
    datagrams = [
        (bytes([198, 18, 1, n % 256]), 1024 + n, 64, 0, generator.randbytes(generator.choice([0, 10, 548, 549, 9000])))
        for n in range(512)
    ]
    script = _inside.Script()
    _inside.play(WORKER, tx, datagrams, script)
    packets = [packet for packet, _ in script.accepted]
    got, group = [], []
    for packet in packets:
        group.append(packet)
        if not packet[6] & 0x20:
            udp = reassemble4(group, 576) if len(group) > 1 else packet[20:]
            got.append((packet[12:16], int.from_bytes(udp[:2], "big"), udp[8:]))
            group = []
    assert group == []
    assert got == [(source, port, payload) for source, port, _, _, payload in datagrams]
    assert len(script.calls) > 1
