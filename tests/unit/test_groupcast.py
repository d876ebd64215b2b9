"""Filters of sockets on one port: a broadcast or group is left to one of them, whatever else comes is let in.

The programs run in a tiny model of classic BPF; the kernel runs them in tests/system/test_storms.py.
"""

from __future__ import annotations

import socket
import struct

import pytest
from samplicator.host import bpf
from samplicator.plan.groupcast import Casts
from samplicator.plan.spec import SocketSpec

HOST, BROADCAST_FRAME = 0, 1
INDEX = {"eth0": 2, "eth1": 3, "gone": 0}


def run(program: bytes, to: str, interface: int = 2, kind: int = HOST) -> bool:
    """Whether the program lets a packet in."""
    six = ":" in to
    packed = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, to)
    header = bytes([0x60]) + bytes(23) + packed if six else bytes([0x45]) + bytes(15) + packed
    code = list(struct.iter_unpack("=HBBI", program))
    if not code:
        return True
    at = a = 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op in (0x20, 0x30):
            if k == 0xFFFFF004:
                a = kind
            elif k == 0xFFFFF008:
                a = interface
            else:
                a = int.from_bytes(header[k - 0xFFF00000 :][: 4 if op == 0x20 else 1])
        elif op == 0x54:
            a &= k
        elif op == 0x15:
            at += jt if a == k else jf
        elif op == 0x05:
            at += k
        else:
            assert op == 0x06
            return k != 0


def spec(
    address: str = "0.0.0.0", interface: str = "", groups: tuple[str, ...] = (), v6only: bool = False, port: int = 2055
) -> SocketSpec:
    family = 6 if ":" in address else 4
    return SocketSpec(0, address, port, family, v6only=v6only, interface=interface, groups=groups)


def casts(*sockets: SocketSpec, broadcasts: tuple[str, ...] = ("192.0.2.255",)) -> Casts:
    return Casts(sockets, frozenset(map(socket.inet_aton, broadcasts)), lambda name: INDEX[name])


CAST = ("255.255.255.255", "192.0.2.255", "239.1.1.1", "ff02::1")
ONE = ("192.0.2.1", "192.0.2.254", "10.0.0.1", "223.255.255.255", "240.0.0.1", "2001:db8::1", "fe80::1")


@pytest.mark.parametrize("many", [0, 2000])
def test_all_but_the_first_worker_get_unicast_only(many: int) -> None:
    addresses = tuple(f"10.{n >> 8}.{n & 255}.255" for n in range(many))
    found = casts(spec(), broadcasts=("192.0.2.255", *addresses))
    assert found.program(spec(), 0) == b""
    program = found.program(spec(), 1)
    assert program == found.program(spec(), 7)
    assert len(program) // 8 <= 4096
    for to in CAST:
        assert not run(program, to, kind=BROADCAST_FRAME)
    for to in ONE:
        assert run(program, to)
        assert run(program, to, kind=2)  # a cluster sends unicast in multicast frames


def test_the_interface_comes_first() -> None:
    wide, port = spec(groups=("239.1.1.1",)), spec(interface="eth0", groups=("239.1.1.1",))
    found = casts(wide, port)
    assert found.program(port, 0) == b""
    program = found.program(wide, 0)
    for to in CAST[:3]:
        assert not run(program, to, interface=2)
        assert run(program, to, interface=3)
    assert all(run(program, to, interface=2) for to in (*ONE, "239.1.1.2"))


def test_then_the_address() -> None:
    wide, exact, port = spec(), spec("192.0.2.255"), spec(interface="eth1")
    found = casts(wide, exact, port)
    program = found.program(wide, 0)
    assert not run(program, "192.0.2.255")
    assert run(program, "255.255.255.255")
    assert not run(program, "255.255.255.255", interface=3)
    program = found.program(exact, 0)
    assert run(program, "192.0.2.255", interface=2)
    assert not run(program, "192.0.2.255", interface=3)


def test_six_and_what_nobody_else_takes() -> None:
    wide = spec("::", groups=("ff15::1",), v6only=True)
    exact = spec("ff15::1", groups=("ff15:0::1",), v6only=True)
    found = casts(wide, exact, spec("2001:db8::1", v6only=True), spec("::", interface="gone", v6only=True))
    program = found.program(wide, 0)
    assert not run(program, "ff15::1")
    assert run(program, "ff15::2")
    assert run(program, "2001:db8::1")
    assert found.program(exact, 0) == b""


def test_other_ports_and_other_interfaces_leave_nothing_out() -> None:
    found = casts(spec(port=9995), spec(interface="eth0"), spec(interface="eth1"))
    for each in found.sockets:
        assert found.program(each, 0) == b""


def test_more_groups_than_a_program_can_hold() -> None:
    """The kernel takes the program all the same: a filter for some is better than none for all."""
    groups = tuple(f"ff15::{number:x}" for number in range(1, 700))
    wide, exact = spec("::", groups=groups, v6only=True), spec("::", interface="eth0", groups=groups, v6only=True)
    program = casts(wide, exact).program(wide, 0)
    assert not run(program, "ff15::1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        bpf.set_filter(sock, program)
