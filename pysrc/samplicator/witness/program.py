"""The classic BPF program of the witness: which packets the kernel shows to it.

Purpose: UDP datagrams to one port, whatever their address, over IPv4 (with options too) and IPv6; of fragments the
first to the port and all that follow a first one, since those have no port. Left out: frames with a VLAN tag, which
come again at the VLAN's own interface, packets for other hosts, and outgoing ones. Pure. Called by tape.
"""

from __future__ import annotations

import struct
from typing import Final

ALL: Final = 0x40000
"""Bytes kept of a packet: all of them, since a packet may hold many datagrams (GRO, UDP_SEGMENT)."""
NET: Final = 0xFFF00000  # SKF_NET_OFF: loads relative to the network header, include/uapi/linux/filter.h
PROTOCOL: Final = 0xFFFFF000  # SKF_AD_OFF + SKF_AD_PROTOCOL
PACKET_TYPE: Final = PROTOCOL + 4
INTERFACE: Final = PROTOCOL + 8
VLAN_TAG: Final = PROTOCOL + 48
LOAD_WORD, LOAD_HALF, LOAD_BYTE = 0x20, 0x28, 0x30
LOAD_HEADER_LENGTH: Final = 0xB1  # BPF_LDX | BPF_B | BPF_MSH: 4 * (byte & 15)
LOAD_HALF_AT_X: Final = 0x48  # BPF_LD | BPF_H | BPF_IND
AND, JUMP, EQUAL, GREATER, SET, RETURN = 0x54, 0x05, 0x15, 0x25, 0x45, 0x06
IPV4, IPV6, UDP, FRAGMENT = 0x0800, 0x86DD, 17, 44
LAST_TYPE: Final = 2
"""Packet types above this one are for other hosts or leave this one (if_packet.h)."""
MOST_INTERFACES: Final = 1000

Line = tuple[int, int, str, str]
"""Operation, value, and the labels to go to if a test holds or does not; "" = the next line."""


def program(port: int, skipped: tuple[int, ...] = ()) -> bytes:
    """An array of struct sock_filter. skipped: indexes of interfaces whose packets are left out."""
    lines: list[Line | str] = [
        (LOAD_WORD, VLAN_TAG, "", ""),
        (EQUAL, 0, "", "reject"),
        (LOAD_WORD, PACKET_TYPE, "", ""),
        (GREATER, LAST_TYPE, "reject", ""),
        (LOAD_WORD, INTERFACE, "", ""),
    ]
    for index in skipped[:MOST_INTERFACES]:
        lines += [(EQUAL, index, "reject", "")]
    lines += [
        (LOAD_WORD, PROTOCOL, "", ""),
        (EQUAL, IPV4, "", "six"),
        (LOAD_BYTE, NET + 9, "", ""),
        (EQUAL, UDP, "", "reject"),
        (LOAD_HALF, NET + 6, "", ""),
        (SET, 0x1FFF, "accept", ""),
        (LOAD_HEADER_LENGTH, NET, "", ""),
        (LOAD_HALF_AT_X, NET + 2, "", ""),
        (EQUAL, port, "accept", "reject"),
        "six",
        (EQUAL, IPV6, "", "reject"),
        (LOAD_BYTE, NET + 6, "", ""),
        (EQUAL, UDP, "", "fragment"),
        (LOAD_HALF, NET + 42, "", ""),
        (EQUAL, port, "accept", "reject"),
        "fragment",
        (EQUAL, FRAGMENT, "", "reject"),
        (LOAD_BYTE, NET + 40, "", ""),
        (EQUAL, UDP, "", "reject"),
        (LOAD_HALF, NET + 42, "", ""),
        (SET, 0xFFF8, "accept", ""),
        (LOAD_HALF, NET + 50, "", ""),
        (EQUAL, port, "accept", "reject"),
        "reject",
        (RETURN, 0, "", ""),
        "accept",
        (RETURN, ALL, "", ""),
    ]
    return _assembled(lines)


def _assembled(lines: list[Line | str]) -> bytes:
    """Tests that jump to a label go over a jump of their own, because a test reaches 255 lines only."""
    code: list[tuple[int, int, int, int | str]] = []
    labels: dict[str, int] = {}
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(code)
            continue
        operation, value, yes, no = line
        jumps = [label for label in (yes, no) if label]
        if operation not in (EQUAL, GREATER, SET):
            code.append((operation, 0, 0, value))
        elif len(jumps) == 2:
            code += [(operation, 0, 1, value), (JUMP, 0, 0, yes), (JUMP, 0, 0, no)]
        else:
            code += [(operation, int(not yes), int(not no), value), (JUMP, 0, 0, jumps[0])]
    return b"".join(
        struct.pack("=HBBI", op, jt, jf, labels[k] - i - 1 if isinstance(k, str) else k & 0xFFFFFFFF)
        for i, (op, jt, jf, k) in enumerate(code)
    )
