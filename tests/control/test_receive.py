"""Rings: which a listener gets, and that filter and hash program do what they say, run by a slow interpreter."""

from __future__ import annotations

import gc
import ipaddress
import os
import random
import socket
import struct
import threading
from dataclasses import replace

import pytest
from samplicator.errors import ConfigError
from samplicator.host.ingress import Ingress, IngressError
from samplicator.host.ring import BLOCK_HEADER, IPV4, IPV6, Ring, socket_filter, spread
from samplicator.plan.planner import compile
from samplicator.plan.rings import rings_of
from samplicator.plan.spec import HostAddress, ListenerSpec, PlanSpec, RingMatch, SocketSpec
from support.hosts import Load, host
from support.process import wait_for


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


HOST = tuple(
    HostAddress(name, index, packed(text))
    for name, index, text in (
        ("lo", 1, "127.0.0.1"),
        ("lo", 1, "::1"),
        ("lo", 1, "203.0.113.9"),
        ("eth0", 2, "192.0.2.1"),
        ("eth0", 2, "2001:db8::1"),
        ("eth1", 3, "198.51.100.1"),
    )
)
INDEXES = {item.interface: item.index for item in HOST}


def bound(
    address: str, port: int = 2055, *, interface: str = "", v6only: bool = False, groups: tuple[str, ...] = ()
) -> SocketSpec:
    return SocketSpec(0, address, port, 6 if ":" in address else 4, v6only, interface, groups)


def rings(*sockets: SocketSpec, others: tuple[SocketSpec, ...] = ()) -> dict[str, list[tuple[object, ...]]]:
    """By interface: (ports, addresses as text, groups as text) of each match."""
    return {
        ring.interface: [
            (
                match.ports,
                [str(ipaddress.ip_address(a)) for a in match.addresses],
                [str(ipaddress.ip_address(a)) for a in match.groups],
            )
            for match in ring.matches
        ]
        for ring in rings_of(sockets, others, HOST, INDEXES)
    }


FOUR = ["192.0.2.1", "198.51.100.1", "203.0.113.9"]
P = ((2055, 2055),)


def test_an_address_has_a_ring_where_it_is() -> None:
    assert rings(bound("192.0.2.1")) == {"eth0": [(P, ["192.0.2.1"], [])]}
    assert rings(bound("127.0.0.1")) == {"lo": [(P, ["127.0.0.1"], [])]}
    assert rings(bound("127.0.0.7")) == {"lo": [(P, ["127.0.0.7"], [])]}


def test_an_address_of_our_own_on_lo_comes_in_anywhere() -> None:
    assert rings(bound("203.0.113.9")) == {name: [(P, ["203.0.113.9"], [])] for name in ("eth0", "eth1")}


def test_any_address_has_rings_everywhere() -> None:
    assert rings(bound("0.0.0.0")) == {name: [(P, FOUR, [])] for name in ("eth0", "eth1")}
    assert rings(bound("::", v6only=True)) == {"eth0": [(P, ["2001:db8::1"], [])]}
    assert rings(bound("::"))["eth1"][0][1] == ["2001:db8::1", *FOUR]


def test_an_interface_of_its_own() -> None:
    assert rings(bound("0.0.0.0", interface="eth1")) == {"eth1": [(P, FOUR, [])]}
    assert rings(bound("0.0.0.0", interface="lo"))["lo"][0][1] == ["127.0.0.1", *FOUR]


def test_groups_only_on_a_named_interface() -> None:
    assert rings(bound("0.0.0.0", groups=("239.1.1.1",)))["eth0"][0][2] == []
    assert rings(bound("0.0.0.0", interface="eth1", groups=("239.1.1.1",)))["eth1"][0][2] == ["239.1.1.1"]


def test_ports_are_joined_to_ranges() -> None:
    found = rings(*(bound("192.0.2.1", port) for port in (1, 3, 2, 9, 10, 20)))
    assert found["eth0"][0][0] == ((1, 3), (9, 10), (20, 20))


def test_what_a_more_specific_socket_gets_is_left_to_it() -> None:
    special = bound("192.0.2.1")
    assert rings(bound("0.0.0.0"), others=(special,))["eth1"][0][1] == ["198.51.100.1", "203.0.113.9"]
    assert rings(bound("0.0.0.0"), others=(replace(special, port=1),))["eth1"][0][1] == FOUR
    assert set(rings(bound("0.0.0.0"), others=(bound("0.0.0.0", interface="eth1"),))) == {"eth0"}
    assert set(rings(bound("0.0.0.0"), others=(bound("::", interface="eth1", v6only=True),))) == {"eth0", "eth1"}


def test_nothing_carries_it() -> None:
    assert rings(bound("192.0.2.99")) == {}


# ---- the plan

TEXT = """[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
receive = "{}"
{}
[[receiver]]
name = "r"
to = "192.0.2.77:9"
[[rule]]
to = ["r"]
"""


def plan(load: Load, receive: str, extra: str = "", *, net_admin: bool = True, net_raw: bool = True) -> PlanSpec:
    capabilities = replace(host(net_raw=net_raw), net_admin=net_admin, host_addresses=lambda: HOST)
    return compile(load(TEXT.format(receive, extra)), {}, capabilities)


def listener(spec: PlanSpec) -> ListenerSpec:
    return spec.listeners[0]


def test_plan_has_rings_and_says_why(load: Load) -> None:
    spec = plan(load, "ring")
    assert [ring.interface for ring in listener(spec).rings] == ["eth0", "eth1"]
    assert listener(spec).receive == "ring"
    assert listener(spec).receive_why.startswith("configured: a packet ring on eth0, eth1 receives")
    assert spec.host_addresses == HOST
    assert spec.ring_buffer == 64 << 20


def test_recvmmsg_asks_for_no_addresses(load: Load) -> None:
    spec = plan(load, "recvmmsg")
    assert (listener(spec).receive, listener(spec).rings, spec.host_addresses) == ("recvmmsg", (), ())


@pytest.mark.parametrize("missing", ["net_raw", "net_admin"])
def test_a_ring_without_rights(load: Load, missing: str) -> None:
    with pytest.raises(ConfigError, match=r"toml:\d+: listener\[0\]\.receive: .*CAP_NET_RAW .*CAP_NET_ADMIN"):
        plan(load, "ring", **{missing: False})
    found = listener(plan(load, "auto", **{missing: False}))
    assert (found.receive, found.rings) == ("recvmmsg", ())
    assert "CAP_NET_ADMIN" in found.receive_why


def test_auto_takes_the_ring_but_can_do_without(load: Load) -> None:
    assert listener(plan(load, "auto")).receive == "ring"
    assert not listener(plan(load, "auto")).ring_required
    assert listener(plan(load, "ring")).ring_required


# ---- the programs


def interpret(program: bytes, packet: bytes, protocol: int, kind: int = 0, tag: int = 0) -> int:
    """Classic BPF as Documentation/networking/filter.rst has it; a load beyond the packet ends with 0."""
    code = [struct.unpack_from("=HBBI", program, i) for i in range(0, len(program), 8)]
    a = x = at = 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op in (0x20, 0x28, 0x30):
            size = {0x20: 4, 0x28: 2, 0x30: 1}[op]
            if k >= 0xFFFFF000:
                a = {0: protocol, 4: kind, 48: tag}[k - 0xFFFFF000]
                continue
            offset = k - 0xFFF00000
            if offset + size > len(packet):
                return 0
            a = int.from_bytes(packet[offset : offset + size])
        elif op == 0x05:
            at += k
        elif op in (0x15, 0x35):
            at += jt if (a == k if op == 0x15 else a >= k) else jf
        elif op == 0x07:
            x = a
        elif op == 0x06:
            return k
        elif op == 0x16:
            return a
        else:
            a = {0xAC: a ^ x, 0x54: a & k, 0x24: a * k & 0xFFFFFFFF, 0x74: a >> k, 0x94: a % k if k else 0}[op]


def four(
    to: str, port: int, *, head: int = 0x45, fragment: int = 0, protocol: int = 17, source: str = "10.0.0.1"
) -> bytes:
    packet = struct.pack("!BBHHHBBH", head, 0, 0, 0, fragment, 64, protocol, 0) + packed(source) + packed(to)
    return packet + struct.pack("!HHHH", 5000, port, 8, 0)


def six(to: str, port: int, *, following: int = 17) -> bytes:
    packet = struct.pack("!IHBB", 6 << 28, 8, following, 64) + packed("2001:db8::99") + packed(to)
    return packet + struct.pack("!HHHH", 5000, port, 8, 0)


MATCHES = (
    RingMatch(((2055, 2055), (9990, 9999)), (packed("192.0.2.1"), packed("192.0.2.2"), packed("2001:db8::1"))),
    RingMatch(((6343, 6343),), (packed("192.0.2.3"),), (packed("239.1.1.1"), packed("ff05::1"))),
)


@pytest.mark.parametrize(
    ("packet", "protocol", "kind", "tag", "taken"),
    [
        (four("192.0.2.1", 2055), IPV4, 0, 0, True),
        (four("192.0.2.2", 9990), IPV4, 0, 0, True),
        (four("192.0.2.2", 9999), IPV4, 0, 0, True),
        (four("192.0.2.2", 9989), IPV4, 0, 0, False),
        (four("192.0.2.2", 10000), IPV4, 0, 0, False),
        (four("192.0.2.3", 2055), IPV4, 0, 0, False),
        (four("192.0.2.3", 6343), IPV4, 0, 0, True),
        (four("192.0.2.1", 6343), IPV4, 0, 0, False),
        (four("192.0.2.1", 2055), IPV4, 2, 0, False),
        (four("192.0.2.1", 2055), IPV4, 3, 0, False),
        (four("192.0.2.1", 2055), IPV4, 4, 0, False),
        (four("192.0.2.1", 2055), IPV4, 0, 1, False),
        (four("192.0.2.1", 2055, head=0x46), IPV4, 0, 0, False),
        (four("192.0.2.1", 2055, fragment=0x2000), IPV4, 0, 0, False),
        (four("192.0.2.1", 2055, fragment=0x00B9), IPV4, 0, 0, False),
        (four("192.0.2.1", 2055, fragment=0x4000), IPV4, 0, 0, True),
        (four("192.0.2.1", 2055, protocol=6), IPV4, 0, 0, False),
        (four("192.0.2.1", 2055), IPV6, 0, 0, False),
        (four("192.0.2.1", 2055)[:21], IPV4, 0, 0, False),
        (four("239.1.1.1", 6343), IPV4, 2, 0, True),
        (four("239.1.1.1", 6343), IPV4, 0, 0, False),
        (four("239.1.1.1", 2055), IPV4, 2, 0, False),
        (six("2001:db8::1", 2055), IPV6, 0, 0, True),
        (six("2001:db8::1", 2055, following=44), IPV6, 0, 0, False),
        (six("2001:db8::2", 2055), IPV6, 0, 0, False),
        (six("ff05::1", 6343), IPV6, 2, 0, True),
        (six("2001:db8::1", 2055), 0x0806, 0, 0, False),
    ],
)
def test_filter(packet: bytes, protocol: int, kind: int, tag: int, taken: bool) -> None:
    assert bool(interpret(socket_filter(MATCHES), packet, protocol, kind, tag)) == taken


def test_filter_of_nothing_takes_nothing() -> None:
    assert interpret(socket_filter(()), four("192.0.2.1", 2055), IPV4) == 0


def test_too_many_addresses_are_refused() -> None:
    many = RingMatch(P, tuple(packed(f"2001:db8::{number:x}") for number in range(1000)))
    with pytest.raises(OSError, match="one ring cannot filter so many addresses"):
        socket_filter((many,))


def test_sessions_are_spread_evenly_and_stay() -> None:
    dice = random.Random(1)
    program = spread(4)
    counts = [0] * 4
    for number in range(4000):
        address = f"10.0.{number >> 8}.{number & 255}"
        member = interpret(program, four("192.0.2.1", 2055, source=address), IPV4)
        assert member == interpret(program, four("192.0.2.2", dice.randrange(1, 65535), source=address), IPV4)
        counts[member] += 1
    assert min(counts) > 700
    assert interpret(spread(1), six("2001:db8::1", 2055), IPV6) == 0
    assert interpret(program, b"", 0x0806) == 0


# ---- the kernel takes them


def can_have_rings() -> bool:
    return os.geteuid() == 0


@pytest.mark.skipif(not can_have_rings(), reason="needs root: packet sockets and ingress rules")
def test_the_kernel_takes_filter_hash_and_rule() -> None:
    """On the loopback device, for an address and a port that nobody has."""
    matches = (
        RingMatch(((9, 9), (4000, 4001)), (packed("127.9.9.9"), packed("2001:db8::99")), (packed("239.9.9.9"),)),
    )
    ingress = Ingress()
    first = Ring("lo", 1 << 20)
    second = Ring("lo", 1 << 20, first.fanout)
    try:
        for ring in (first, second):
            ring.accept(matches)
        first.select(2)
        ingress.put("a", "lo", matches)
        ingress.put("a", "lo", matches[:1])
        ingress.put("b", "lo", matches)
        with pytest.raises(IngressError, match="interface is gone"):
            ingress.put("c", "nosuchdevice", matches)
        assert (first.count_drops(), first.waiting_bytes(0, BLOCK_HEADER)) == (0, 0)
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("127.9.9.9", 4000))
        receiver.settimeout(0.2)
        receiver.sendto(b"x", ("127.9.9.9", 4000))
        with pytest.raises(TimeoutError):
            receiver.recv(10)
        ingress.remove("a")
        ingress.remove("b")
        ingress.remove("b")
        receiver.sendto(b"y", ("127.9.9.9", 4000))
        assert receiver.recv(10) == b"y"
        receiver.close()
    finally:
        ingress.close()
        first.close()
        second.close()


@pytest.mark.skipif(not can_have_rings(), reason="needs root: ingress rules")
def test_an_ingress_that_nobody_closes_goes_without_harm() -> None:
    """Its thread has descriptors of its own: closed anywhere else, the number would be that of another descriptor."""

    def threads() -> int:
        return sum(thread.name == "ingress" for thread in threading.enumerate())

    def mine() -> dict[int, str]:
        return {number: os.readlink(f"/proc/self/fd/{number}") for number in files}

    before = threads()
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]  # one has the number of its socket
    try:
        opened = mine()
        ingress = Ingress()
        ingress.put("a", "lo", (RingMatch(((9, 9),), (packed("127.9.9.9"),), ()),))
        assert threads() == before + 1
        cycle = [ingress]
        cycle.append(cycle)  # type: ignore[arg-type]  # so that the collector finds it
        del ingress, cycle
        gc.collect()
        wait_for(lambda: threads() == before, "its thread to end")
        assert mine() == opened
    finally:
        for number in files:
            os.close(number)
