"""What carries SCTP packets for libusrsctp: raw IP (protocol 132), or UDP (RFC 6951).

Purpose: one socket per address family, whose packets come with the address of ours that they were sent to, so that
answers leave from it. Invariants: nothing waits; a packet that the kernel does not take is lost, as on a network, and
counted; one call of `receive` reads a bounded number. Called by userland. Must never look into a packet.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final, Protocol

from samplicator.gateways.sctp.peers import Place

ENCAPSULATION_PORT: Final = 9899
IP_PKTINFO, IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 8, 10, 0
SO_RCVBUFFORCE: Final = 33
RECEIVE_BYTES: Final = 4 << 20
MOST_AT_ONCE: Final = 64
LARGEST: Final = 65535

Arrival = tuple[bytes, Place, bytes]
"""A packet from its SCTP header on, where it came from, and our address."""


class Carrier(Protocol):
    """overhead_bytes: of IP, and of UDP. unsent: packets that the kernel did not take."""

    overhead_bytes: int
    unsent: int

    def fileno(self) -> int: ...

    def send(self, packet: bytes, to: Place, ours: bytes) -> None:
        """ours: our address to send from, b"" = the kernel chooses."""

    def receive(self) -> list[Arrival]:
        """Some of what is there; none: there is nothing now."""

    def close(self) -> None: ...


class _Socket:
    """What both have in common."""

    def __init__(self, family: int, sock: socket.socket, overhead_bytes: int) -> None:
        self.overhead_bytes = overhead_bytes
        self.unsent = 0
        self._six = family == socket.AF_INET6
        self._sock = sock
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        if self._six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def send(self, packet: bytes, to: Place, ours: bytes) -> None:
        control = []
        if ours and self._six:
            control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, ours + struct.pack("=I", to.scope_id))]
        elif ours:
            control = [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4x", 0, ours))]
        text = socket.inet_ntop(socket.AF_INET6 if self._six else socket.AF_INET, to.address)
        address = (text, to.port, 0, to.scope_id) if self._six else (text, to.port)
        try:
            self._sock.sendmsg([packet], control, socket.MSG_DONTWAIT, address)
        except OSError:
            self.unsent += 1

    def receive(self) -> list[Arrival]:
        found: list[Arrival] = []
        for _ in range(MOST_AT_ONCE):
            try:
                data, control, _, address = self._sock.recvmsg(LARGEST, 64)
            except BlockingIOError:
                break
            except OSError as error:  # an ICMP error of a packet that we sent
                if error.errno == errno.EBADF:
                    break
                continue
            ours = b""
            for level, kind, value in control:
                if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                    ours = value[8:12]
                elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                    ours = value[:16]
            place = self._place(address)
            if self._six:
                found.append((data, place._replace(scope_id=address[3]), ours))
            else:
                found.append((self._payload(data), place, ours))
        return found

    def _place(self, address: tuple[str, int]) -> Place:
        family = socket.AF_INET6 if self._six else socket.AF_INET
        return Place(socket.inet_pton(family, address[0].partition("%")[0]), address[1])

    def _payload(self, data: bytes) -> bytes:
        return data


class RawCarrier(_Socket):
    """Raises OSError: CAP_NET_RAW is missing."""

    def __init__(self, family: int) -> None:
        sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP)
        try:
            super().__init__(family, sock, 40 if family == socket.AF_INET6 else 20)
        except BaseException:
            sock.close()
            raise

    def _payload(self, data: bytes) -> bytes:
        """Without the IPv4 header, which a raw socket gives along."""
        return data[(data[0] & 15) * 4 :] if data else data

    def _place(self, address: tuple[str, int]) -> Place:
        return super()._place((address[0], 0))


class UdpCarrier(_Socket):
    """port: ours. Raises OSError: it is in use."""

    def __init__(self, family: int, port: int = ENCAPSULATION_PORT) -> None:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            super().__init__(family, sock, 48 if family == socket.AF_INET6 else 28)
            if self._six:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::" if self._six else "0.0.0.0", port))
        except BaseException:
            sock.close()
            raise
