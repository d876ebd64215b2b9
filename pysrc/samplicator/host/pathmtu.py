"""Path MTU of an IPv6 receiver whose copies have the source of another host, found out with probes from this host's
address.

Routers do not fragment IPv6 (RFC 8200 section 5): one that cannot pass a packet on drops it and tells the source, which
for a spoofed copy is the exporter. So this host gets no report that copies are lost. Therefore it sends an ICMPv6 echo
request as long as the interface takes (RFC 8201). A router that answers "packet too big" reports the size that it
takes, and a request of that size is sent next; an answer from the receiver ends the round. A round has at most
ROUND_LIMIT packets and runs once per minute. The result is kept for ten rounds of silence, because many hosts do not
answer. If short requests are answered but long ones are not, this is only reported, because firewalls also drop long
echo requests.

Over IPv4 routers fragment, because no copy has the bit that forbids it; for unspoofed copies the kernel gets the
reports.

Called by engines, from one thread at a time. It must never wait. Times are of the monotonic clock, in seconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import Final

from samplicator.host import sockets
from samplicator.plan.spec import Udp

ROUND_SECONDS: Final = 60.0
ANSWER_SECONDS: Final = 1.0
TRIES: Final = 3  # of one size without an answer
ROUND_LIMIT: Final = 12
SILENT_ROUNDS: Final = 10  # in which no router complains: what was learnt is forgotten (RFC 8201 section 4, 10 minutes)
LEAST: Final = 1280  # every IPv6 link takes so much (RFC 8200 section 5)
LONGEST: Final = 65535  # an interface that takes this is the loopback, or no wire

ECHO_REQUEST, ECHO_REPLY = 128, 129  # RFC 4443
ICMPV6_FILTER: Final = 1  # include/uapi/linux/icmpv6.h
IPV6_DONTFRAG: Final = 62
IPV6_PMTUDISC_PROBE: Final = 3
SO_EE_ORIGIN_LOCAL, SO_EE_ORIGIN_ICMP6 = 1, 3
_ONLY_REPLIES: Final = struct.pack("=8I", *(0xFFFFFFFF & ~(1 << 1 if word == 4 else 0) for word in range(8)))


class PathMtu:
    """Of one receiver. learned: bytes that the path takes, 0 = as many as the interface, as far as known. interface:
    bytes that the interface takes, 0 = not known. doubtful: long packets seem to get lost, and no router says so.
    """

    __slots__ = (
        "_count", "_id", "_next", "_quiet", "_scope", "_sent", "_sequence", "_silent", "_size", "_sock", "_tries",
        "address", "doubtful", "interface", "learned",
    )  # fmt: skip

    def __init__(self, address: bytes, scope_id: int) -> None:
        self.address = address
        self.learned = 0
        self.interface = 0
        self.doubtful = False
        self._scope = scope_id
        self._sock: socket.socket | None = None
        self._id = int.from_bytes(os.urandom(2), "big")
        self._sequence = 0
        self._sent: dict[int, int] = {}  # size by sequence number, of this round
        self._count = 0  # packets of this round
        self._size = 0  # asked for now, 0 = no round
        self._tries = 0  # of this size
        self._quiet = False  # no answer to the size that counts: is a short request answered?
        self._silent = 0  # rounds in a row that ended like that
        self._next = 0.0

    def inherit(self, other: PathMtu | None) -> None:
        """Goes on from what another knew of the way to the same place."""
        if other is not None and (other.address, other._scope) == (self.address, self._scope):
            self.learned = other.learned

    def step(self, now: float) -> bool:
        """Hears answers and asks what is due; True when `learned` or `doubtful` has changed."""
        before = self.learned, self.doubtful
        try:
            if self._sock is not None:
                self._hear(now)
            if now >= self._next:
                self._ask(now)
        except OSError:  # no route now, no descriptor, not permitted: no news
            self._end(now)
        return (self.learned, self.doubtful) != before

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    # ------------------------------------------------------------------ a round

    def _ask(self, now: float) -> None:
        if self._size == 0:
            self._sock = _open(self.address, self._scope)  # of its own each round: the route may be another one
            self.interface = self._size = self._ask_interface()
            self._count = self._tries = 0
            self._quiet = False
        if self._tries == TRIES and not self._quiet:
            self._fell_silent()
        if self._tries == TRIES or self._count == ROUND_LIMIT or not LEAST < self.interface < LONGEST:
            self._end(now)
            return
        self._tries += 1
        self._send(LEAST if self._quiet else self._size)
        self._next = now + ANSWER_SECONDS

    def _fell_silent(self) -> None:
        """Three packets of this size, and no word: asks with short ones whether that means anything."""
        self._quiet = True
        self._tries = 0
        if self._size == self.interface:  # no router has complained
            self._silent += 1
            if self._silent >= SILENT_ROUNDS:
                self.learned = 0

    def _end(self, now: float) -> None:
        self.close()  # what comes later is no news, and listening to it costs
        self._size = 0
        self._sent = {}
        self._next = now + ROUND_SECONDS

    def _send(self, size: int) -> None:
        assert self._sock is not None
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._sent[self._sequence] = size
        self._count += 1
        header = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, self._id, self._sequence)
        self._sock.send(header.ljust(size - 40, b"\0"))  # the kernel writes the checksum (RFC 3542 section 3.1)

    def _ask_interface(self) -> int:
        """MTU of the interface that the route leads to: the kernel says it when it refuses what is longer. Sends
        nothing.
        """
        assert self._sock is not None
        try:
            self._sock.send(bytes(LONGEST + 1))
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
        return next((info for origin, info in self._errors() if origin == SO_EE_ORIGIN_LOCAL), LONGEST)

    # ------------------------------------------------------------------ answers

    def _hear(self, now: float) -> None:
        for origin, info in self._errors():
            if origin == SO_EE_ORIGIN_ICMP6 and 0 < info < self._size:
                self._too_big(max(info, LEAST), now)
        for size in self._replies():
            if self._quiet and size == LEAST:
                self.doubtful = self.learned == 0
            else:
                self.learned = size if size < self.interface else 0
                self.doubtful = False
                self._silent = 0
            self._end(now)

    def _too_big(self, size: int, now: float) -> None:
        """A router takes no more than `size` bytes: that is asked next, for there may be others behind it."""
        if self.learned == 0 or size < self.learned:
            self.learned = size
        self.doubtful = self._quiet = False
        self._silent = 0
        self._sent = {}
        self._size, self._tries, self._next = size, 0, now

    def _errors(self) -> list[tuple[int, int]]:
        """(origin, MTU) of every "too big" in the error queue (ip(7), IP_RECVERR)."""
        found = []
        assert self._sock is not None
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                control = self._sock.recvmsg(0, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)[1]
                for level, kind, data in control:
                    if (level, kind) == (socket.IPPROTO_IPV6, sockets.IPV6_RECVERR):
                        number, origin, _, _, _, info, _ = struct.unpack_from("=IBBBBII", data)
                        if number == errno.EMSGSIZE:
                            found.append((origin, info))
        return found

    def _replies(self) -> list[int]:
        """Sizes of our requests that the receiver has answered."""
        found = []
        assert self._sock is not None
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                try:
                    data = self._sock.recv(8)
                except OSError as error:  # an ICMP error of another kind: a closed way, not a short one
                    if error.errno == errno.EAGAIN:
                        raise
                    continue
                kind, _, _, number, sequence = struct.unpack("!BBHHH", data.ljust(8, b"\0"))
                if kind == ECHO_REPLY and number == self._id and sequence in self._sent:
                    found.append(self._sent[sequence])
        return found


def path_mtu(spec: Udp, probe: str) -> PathMtu | None:
    """Follows the path of a receiver; None if that is not needed: see the head of this file. probe: its kind."""
    others = spec.spoof or (spec.engine == "raw" and spec.source is not None)  # routers report to another host
    if spec.family != 6 or not others or probe == "off" or spec.address[0] == 0xFF:
        return None
    return PathMtu(spec.address, spec.scope_id)


def _open(address: bytes, scope_id: int) -> socket.socket:
    """A raw ICMPv6 socket that sends whole packets as long as the interface takes, whatever the kernel knows of the
    path, and hears echo replies and errors only.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    sock = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
    try:
        sock.setsockopt(socket.IPPROTO_ICMPV6, ICMPV6_FILTER, _ONLY_REPLIES)
        sock.setsockopt(socket.IPPROTO_IPV6, sockets.IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, sockets.IPV6_RECVERR, 1)
        sock.connect(sockets.endpoint(address, 0, scope_id))
    except BaseException:
        sock.close()
        raise
    return sock
