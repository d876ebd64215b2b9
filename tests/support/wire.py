"""A wire for tests of the engines: a veth, MTU 1500, from the relay's network namespace to one outside.

Invariants: both namespaces are anonymous and vanish with the last socket in them; the thread that made the wire is in
the relay's namespace except within outside(). Neighbors are permanent: nothing waits for an answer. Outside accepts
its own addresses as sources of what arrives, so that the exporters can live where the receivers do. Used by tests of
tests/engine that need a device. Must never be used by two threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from support.worker import CLONE_NEWNET, in_namespace, ip, packed, receive_buffer, wait_usable

T = TypeVar("T")
HERE = {4: "198.18.0.1", 6: "2001:db8::1"}
"""The relay's addresses."""
THERE = {4: "198.18.0.2", 6: "2001:db8::2"}
"""The receivers'."""
EXPORTERS = {4: ("198.18.1.1", "198.18.1.2", "198.18.2.1"), 6: ("2001:db8:1::1", "2001:db8:1::2", "2001:db8:2::1")}
MTU = 1500
DEVICE, PEER = "relay0", "out0"
VNET_BYTES, GSO_UDP_L4 = 10, 5  # struct virtio_net_hdr: its bytes, gso_type of a run
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, ETH_P_ALL = 263, 15, 23, 3
ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _sysctl(name: str, value: int) -> None:
    Path("/proc/sys/net", name).write_text(str(value))


@dataclass
class Frames:
    """What has come over the wire. segmented: a run in one piece; only a device with the offload carries those."""

    total: int = 0
    segmented: int = 0


class Tap:
    """Counts the whole UDP datagrams and runs that arrive outside, by destination port and whether they come from
    the relay's own address. Fragments are not counted.
    """

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        receive_buffer(self.sock)
        self.sock.bind((PEER, ETH_P_ALL))
        self.frames: defaultdict[tuple[int, bool], Frames] = defaultdict(Frames)
        self.start = bytearray(VNET_BYTES + 64)

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.sock.recv_into(self.start)
                frame = self.start[VNET_BYTES:]
                six = frame[12:14] == ETHERTYPE[6]
                fragment = not six and int.from_bytes(frame[20:22], "big") & 0x3FFF
                if frame[20 if six else 23] == socket.IPPROTO_UDP and not fragment:
                    source, port = (frame[22:38], 56) if six else (frame[26:30], 36)
                    own = source == packed(HERE[6 if six else 4])
                    frames = self.frames[int.from_bytes(frame[port : port + 2], "big"), own]
                    frames.total += 1
                    frames.segmented += self.start[1] == GSO_UDP_L4


class Wire:
    """offload: the device takes segmented sends and checksums; without, the kernel does both before the device."""

    def __init__(self, *, offload: bool) -> None:
        self.offload = offload
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        self.away = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _enter(self.home)
        door = f"/proc/{os.getpid()}/fd/{self.away}"
        self._settle()
        with self.outside():
            self._settle()
            _sysctl("ipv4/conf/all/accept_local", 1)
        ip(
            f"link add {DEVICE} address {MACS[0]} mtu {MTU} type veth "
            f"peer name {PEER} address {MACS[1]} mtu {MTU} netns {door}"
        )
        self._raise(DEVICE, HERE, (), THERE, MACS[1])
        with self.outside():
            self._raise(PEER, THERE, (*EXPORTERS[4], *EXPORTERS[6]), HERE, MACS[0])
            self.tap = Tap()
        self.index = socket.if_nametoindex(DEVICE)
        self.packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self.packet.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)

    @staticmethod
    def _settle() -> None:
        ip("link set lo up")
        _sysctl("ipv4/conf/all/rp_filter", 0)
        _sysctl("ipv4/conf/default/rp_filter", 0)
        _sysctl("ipv6/conf/default/accept_dad", 0)
        _sysctl("ipv6/conf/default/router_solicitations", 0)

    def _raise(self, device: str, own: dict[int, str], more: tuple[str, ...], others: dict[int, str], mac: str) -> None:
        addresses = (*own.values(), *more)
        ip(
            *(f"addr add {a}/{32 if ':' in a else 16} dev {device} {'nodad' if ':' in a else ''}" for a in addresses),
            f"link set {device} up",
            *(f"neigh replace {other} lladdr {mac} dev {device} nud permanent" for other in others.values()),
        )
        if not self.offload:
            subprocess.run(
                ["ethtool", "-K", device, "tx", "off", "rx", "off", "gro", "off"], check=True, capture_output=True
            )
        for address in addresses:
            wait_usable(address)

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """The thread is in the exporters' and receivers' namespace for as long as this lasts."""
        _enter(self.away)
        try:
            yield
        finally:
            _enter(self.home)

    def link_header(self, family: int) -> bytes:
        destination, source = (bytes.fromhex(mac.replace(":", "")) for mac in reversed(MACS))
        return destination + source + ETHERTYPE[family]

    def messages(self) -> int:
        """What UDP sockets of the relay's namespace have sent so far; a run sent as one is one."""
        four = Path("/proc/thread-self/net/snmp").read_text()
        six = Path("/proc/thread-self/net/snmp6").read_text()
        names, values = (line.split() for line in re.findall(r"^Udp: .*$", four, re.M))
        found = re.search(r"^Udp6OutDatagrams\s+(\d+)", six, re.M)
        assert found
        return int(values[names.index("OutDatagrams")]) + int(found[1])

    def close(self) -> None:
        self.tap.sock.close()
        self.packet.close()
        os.close(self.away)
        os.close(self.home)


def on_a_wire(function: Callable[[Wire], T], *, offload: bool) -> T:
    """Calls the function in a thread of its own, bound to one CPU so that nothing on the wire overtakes anything."""

    def run() -> T:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        wire = Wire(offload=offload)
        try:
            return function(wire)
        finally:
            wire.close()

    return in_namespace(run)
