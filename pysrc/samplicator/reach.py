"""Reach: whether somebody listens at a receiver's port, found out by asking from our own address.

The copies themselves tell it only when they are unspoofed (the kernel hands their ICMP errors to the socket that sent
them): refusals of spoofed copies go to the exporter. A probe is a datagram on a connected UDP socket; ECONNREFUSED
says that the port is closed, silence that it is open or that the answer was held back (hosts limit ICMP to one a second
and peer after the first six, icmp(7) icmp_ratelimit). So silence counts as open, and a host that refuses again soon
after is believed less quickly the next time.

Pure state and one socket. Called by supervisor, from one thread at a time. It must never wait.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import Final

from samplicator import sockets
from samplicator.plan import ReceiverSpec

IDLE_SECONDS: Final = 2.0  # between two probes of a receiver that answers nothing, as it should
QUICK_SECONDS: Final = 0.5  # between two probes of one that refuses, for the first seconds
SLOW_SECONDS: Final = 1.02  # and after them: above the limit of one ICMP error a second
QUICK_FOR_SECONDS: Final = 7.0  # as long as six answers at once and one a second last
COPY_SECONDS: Final = 0.2  # a copy refused within so long: the probe's silence means nothing
ANSWER_SECONDS: Final = 0.2  # a refusal has come by then
RELAPSE_SECONDS: Final = 5.0  # refused again within so long: it had not come back
HOLD_LIMIT_SECONDS: Final = 60.0
IPFIX_EMPTY: Final = struct.pack("!HHIII", 10, 16, 0, 0, 0)
"""An IPFIX message of no sets (RFC 7011 section 3.1), which collectors of flows pass over."""


def _open(spec: ReceiverSpec) -> socket.socket:
    """A non-blocking socket from our own address, connected to the receiver: a closed port shows as SO_ERROR."""
    family = socket.AF_INET if spec.family == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.connect(sockets.endpoint(spec.address, spec.port, spec.scope_id))
    except BaseException:
        sock.close()
        raise
    return sock


class Reach:
    """Of one receiver. refusing: its port is closed, as far as known. Times are of the monotonic clock, in seconds."""

    __slots__ = ("_came", "_gone", "_hold", "_judge", "_next", "_refused", "_sock", "refusing", "spec")

    def __init__(self, spec: ReceiverSpec) -> None:
        self.spec = spec
        self.refusing = False
        self._sock: socket.socket | None = None
        self._next = 0.0
        self._judge = 0.0  # when the answer to the last probe is due, 0 = none is under way
        self._gone = 0.0  # since when it refuses
        self._came = 0.0  # when it came back last
        self._refused = -COPY_SECONDS  # when copies were refused last
        self._hold = 0.0  # how long it has to be silent

    def refused(self, now: float) -> None:
        """Copies from our own address were refused."""
        self._refused = now
        if self.spec.probe != "off" and not self.refusing:
            self._closed(now)
            self._next = now + QUICK_SECONDS

    def step(self, now: float) -> bool:
        """Sends and judges what is due; True when the receiver has come back just now."""
        mode = self.spec.probe
        if mode == "off" or (mode == "auto" and not self.refusing):
            self.close()
            return False
        if self._judge and now >= self._judge:
            self._judge = 0.0
            return self._answered(now)
        if not self._judge and now >= self._next:
            if self._errors() or self._send():
                self._closed(now)
            self._judge = now + ANSWER_SECONDS
            quick = self.refusing and now - self._gone < QUICK_FOR_SECONDS
            self._next = now + (QUICK_SECONDS if quick else SLOW_SECONDS if self.refusing else IDLE_SECONDS)
        return False

    def _answered(self, now: float) -> bool:
        if self._errors() or now - self._refused < COPY_SECONDS:
            self._closed(now)
            return False
        if not self.refusing or now - self._gone < self._hold:
            return False
        self.refusing = False
        self._came = now
        return True

    def _closed(self, now: float) -> None:
        if not self.refusing:
            relapse = self._came and now - self._came < RELAPSE_SECONDS
            self._hold = min(max(1.0, 2 * self._hold), HOLD_LIMIT_SECONDS) if relapse else 0.0
            self._gone = now
        self.refusing = True

    def _send(self) -> bool:
        """Sends a probe; whether a refusal of the one before turned up instead."""
        refused = False
        with contextlib.suppress(OSError):
            if self._sock is None:
                self._sock = _open(self.spec)
            probe = IPFIX_EMPTY if self.spec.probe == "ipfix" else b""
            try:
                self._sock.send(probe)
            except ConnectionRefusedError:
                refused = True
                self._sock.send(probe)
        return refused

    def _errors(self) -> bool:
        """Whether a refusal has come in since the last call."""
        if self._sock is None:
            return False
        found = False
        for _ in range(8):
            number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not number:
                break
            found = found or number == errno.ECONNREFUSED
        return found

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
