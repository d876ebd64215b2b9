"""The ring: the second way in. Packet sockets with a TPACKET_V3 ring that take the listener's datagrams at the device, and the ingress rule
that keeps the same datagrams from the UDP stack.

Purpose: one place for what packet(7) and nftables want to hear. Invariants: the socket filter and the ingress rule test the very same
conditions (whole, option-less UDP datagrams to the given addresses and ports), so that a datagram comes in exactly one way;
the rule lives in a table owned by a netlink socket of a child process that ends with us, so that nothing is left behind, whatever kills us. Called by
engines. It must never touch a datagram.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import mmap
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SOL_PACKET: Final = 263
PACKET_RX_RING: Final = 5
PACKET_STATISTICS: Final = 6
PACKET_VERSION: Final = 10
PACKET_VNET_HDR: Final = 15
PACKET_FANOUT: Final = 18
PACKET_IGNORE_OUTGOING: Final = 23
TPACKET_V3: Final = 2
PACKET_FANOUT_HASH: Final = 0
ETH_P_ALL: Final = 3
SO_ATTACH_FILTER: Final = 26
BLOCK_BYTES: Final = 1 << 20
RETIRE_MS: Final = 1
FRAME_BYTES: Final = 2048
_NET: Final = 0xFFF00000  # SKF_NET_OFF: loads relative to the network header, include/uapi/linux/filter.h
_ANCILLARY: Final = 0xFFFFF000  # SKF_AD_OFF
_ACCEPT: Final = 0x40000
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_JUMP, _JUMP_EQUAL, _JUMP_SET, _JUMP_GREATER_EQUAL, _RETURN = 0x05, 0x15, 0x45, 0x35, 0x06

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class RingMatch:
    """Which datagrams a ring takes. ports: inclusive ranges. addresses: destinations, 4 or 16 bytes each. groups: multicast ones of them
    are taken too (packet type multicast).
    """

    ports: tuple[tuple[int, int], ...]
    addresses: tuple[bytes, ...]
    groups: tuple[bytes, ...] = ()


class _Program:
    """Classic BPF with forward labels: every test falls through when it holds and goes to its label when not."""

    def __init__(self) -> None:
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.jumps: dict[int, str] = {}

    def label(self, name: str) -> None:
        self.labels[name] = len(self.code)

    def load(self, code: int, offset: int) -> None:
        self.code.append((code, 0, 0, offset & 0xFFFFFFFF))

    def jump(self, name: str) -> None:
        self.jumps[len(self.code)] = name
        self.code.append((_JUMP, 0, 0, 0))

    def unless(self, test: int, value: int, name: str, *, inverted: bool = False) -> None:
        """Goes to `name` unless the test holds (inverted: if it holds)."""
        self.code.append((test, 0 if inverted else 1, 1 if inverted else 0, value))
        self.jump(name)

    def finish(self) -> bytes:
        out = b""
        for i, (code, jt, jf, k) in enumerate(self.code):
            out += struct.pack("=HBBI", code, jt, jf, self.labels[self.jumps[i]] - i - 1 if i in self.jumps else k)
        return out


def socket_filter(match: RingMatch) -> bytes:
    """The match as a classic BPF program (struct sock_filter array)."""
    program = _Program()
    program.load(_LOAD_WORD, _ANCILLARY + 4)  # packet type: 0 host, 2 multicast
    program.unless(_JUMP_EQUAL, 0, "group" if match.groups else "reject")
    program.jump("protocol")
    if match.groups:
        program.label("group")
        program.unless(_JUMP_EQUAL, 2, "reject")
    program.label("protocol")
    program.load(_LOAD_WORD, _ANCILLARY)
    program.unless(_JUMP_EQUAL, 0x0800, "six")
    program.load(_LOAD_BYTE, _NET)
    program.unless(_JUMP_EQUAL, 0x45, "reject")
    program.load(_LOAD_BYTE, _NET + 9)
    program.unless(_JUMP_EQUAL, socket.IPPROTO_UDP, "reject")
    program.load(_LOAD_HALF, _NET + 6)
    program.unless(_JUMP_SET, 0x3FFF, "reject", inverted=True)
    program.load(_LOAD_WORD, _NET + 16)
    every = match.addresses + match.groups
    for i, address in enumerate(a for a in every if len(a) == 4):
        program.unless(_JUMP_EQUAL, int.from_bytes(address), f"four{i}")
        program.load(_LOAD_HALF, _NET + 22)
        program.jump("port")
        program.label(f"four{i}")
    program.jump("reject")
    program.label("six")
    program.unless(_JUMP_EQUAL, 0x86DD, "reject")
    program.load(_LOAD_BYTE, _NET + 6)
    program.unless(_JUMP_EQUAL, socket.IPPROTO_UDP, "reject")
    for i, address in enumerate(a for a in every if len(a) == 16):
        for word in range(4):
            program.load(_LOAD_WORD, _NET + 24 + 4 * word)
            program.unless(_JUMP_EQUAL, int.from_bytes(address[4 * word : 4 * word + 4]), f"six{i}")
        program.load(_LOAD_HALF, _NET + 42)
        program.jump("port")
        program.label(f"six{i}")
    program.jump("reject")
    program.label("port")
    for i, (low, high) in enumerate(match.ports):
        program.unless(_JUMP_GREATER_EQUAL, low, f"port{i}")
        program.unless(_JUMP_GREATER_EQUAL, high + 1, f"port{i}", inverted=True)
        program.jump("accept")
        program.label(f"port{i}")
    program.label("reject")
    program.load(_RETURN, 0)
    program.label("accept")
    program.load(_RETURN, _ACCEPT)
    return program.finish()


def _attach(sock: socket.socket, program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(buffer)))


class Ring:
    """One packet socket with its ring, bound to one interface. ring: the mapping. drops: what the kernel found no room for."""

    def __init__(self, interface: str, match: RingMatch, ring_bytes: int, fanout: int) -> None:
        """fanout: group number 1..65535, shared by the workers' rings of one listener and interface; 0 = none. Raises OSError."""
        self.interface = interface
        self.drops = 0
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            # nothing comes in before the filter stands: an empty program's place is taken by "return 0"
            _attach(self.sock, struct.pack("=HBBI", _RETURN, 0, 0, 0))
            self.sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
            self.sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            self.sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            blocks = max(2, ring_bytes // BLOCK_BYTES)
            frames = blocks * (BLOCK_BYTES // FRAME_BYTES)
            request = struct.pack("7I", BLOCK_BYTES, blocks, FRAME_BYTES, frames, RETIRE_MS, 0, 0)
            self.sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
            self.map = mmap.mmap(
                self.sock.fileno(), blocks * BLOCK_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
            )
            self.sock.bind((interface, ETH_P_ALL))
            if fanout:
                self.sock.setsockopt(SOL_PACKET, PACKET_FANOUT, fanout | PACKET_FANOUT_HASH << 16)
            self.bytes = blocks * BLOCK_BYTES
            _attach(self.sock, socket_filter(match))
        except BaseException:
            self.sock.close()
            raise

    def count_drops(self) -> int:
        """Adds what PACKET_STATISTICS counted since the last call (reading resets it) to `drops`."""
        with contextlib.suppress(OSError):
            _, dropped, _ = struct.unpack("3I", self.sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))
            self.drops += dropped
        return self.drops

    def close(self) -> None:
        self.sock.close()


class IngressError(OSError):
    """nft is missing or refused the rule; the text says what to do."""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)


class IngressDrop:
    """The ingress rule: an nftables table with the owner flag, which the kernel removes with the netlink socket of the child that made it.

    Needs CAP_NET_ADMIN, kernel 5.12+ and the nft command. The child reads its commands from a pipe that only we hold.
    """

    def __init__(self) -> None:
        self.table = f"samplicator_{os.getpid()}_{time.monotonic_ns() & 0xFFFFFF:x}"
        try:
            self.child = subprocess.Popen(
                ["nft", "-i"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                bufsize=1,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise IngressError(error.errno, 'receive = "ring" needs the nft command (package nftables)') from error
        self.chains = 0
        self._send(f"add table netdev {self.table} {{ flags owner; }}")

    def _send(self, line: str) -> None:
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(line + "\n")
            self.child.stdin.flush()
        except OSError as error:
            raise IngressError(error.errno, f"nft ended: {self._complaint()}") from error

    def _complaint(self) -> str:
        self.child.kill()
        text = self.child.communicate()[0] if self.child.stdout else ""
        return " ".join(text.split()) or "it said nothing"

    def add(self, interface: str, match: RingMatch) -> str:
        """Drops what the match takes at the interface's ingress; returns the chain's name. Raises IngressError; then the table is gone too."""
        chain = f"in{self.chains}"
        self.chains += 1
        head = f"netdev {self.table} {chain}"
        self._send(
            f'add chain {head} {{ type filter hook ingress device "{interface}" priority -500; policy accept; }}'
        )
        ports = ", ".join(f"{low}-{high}" if high > low else str(low) for low, high in match.ports)
        rules = 0
        for kind, addresses in (("host", match.addresses), ("multicast", match.groups)):
            for family, octets, whole in (
                ("ip", 4, "ip hdrlength 5 ip frag-off & 0x3fff == 0 ip protocol udp"),
                ("ip6", 16, "ip6 nexthdr udp"),
            ):
                texts = [str(ipaddress.ip_address(a)) for a in addresses if len(a) == octets]
                if texts:
                    self._send(
                        f"add rule {head} meta pkttype {kind} {whole} {family} daddr {{ {', '.join(texts)} }} udp dport {{ {ports} }} counter drop"
                    )
                    rules += 1
        self._expect(chain, rules)
        return chain

    def remove(self, chain: str) -> None:
        """Lets the UDP stack have that interface's datagrams again."""
        self._send(f"flush chain netdev {self.table} {chain}")
        self._send(f"delete chain netdev {self.table} {chain}")

    def _expect(self, chain: str, rules: int) -> None:
        """Waits, two seconds at most, until the kernel has the rules."""
        text = ""
        for _ in range(40):
            done = subprocess.run(
                ["nft", "list", "chain", "netdev", self.table, chain], capture_output=True, text=True, check=False
            )
            text = done.stdout + done.stderr
            if done.returncode == 0 and text.count(" drop") == rules:
                return
            time.sleep(0.05)
        raise IngressError(0, f"nft did not install the ingress rule: {self._complaint()}")

    def close(self) -> None:
        """Ends the child; the kernel removes the table with its netlink socket."""
        self.child.kill()
        self.child.communicate()


def reject_all(ring: Ring) -> None:
    """Stops a ring from taking anything more; what is in it can still be read."""
    _attach(ring.sock, struct.pack("=HBBI", _RETURN, 0, 0, 0))


def open_rings(interfaces: Sequence[str], match: RingMatch, ring_bytes: int, fanout: int) -> list[Ring]:
    """A ring on each interface. Raises OSError; then none is open."""
    rings: list[Ring] = []
    try:
        for interface in interfaces:
            rings.append(Ring(interface, match, ring_bytes, fanout))
    except BaseException:
        for ring in rings:
            ring.close()
        raise
    return rings
