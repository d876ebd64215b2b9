"""What the driver of an interface says, by the requests of ethtool(8).

Invariants: an interface that is gone, or a driver that says nothing, is an empty answer, not an error. Called by
express and links. It changes nothing.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import socket
import struct
from typing import Final

SIOCETHTOOL: Final = 0x8946
GSTRINGS, GSSET_INFO, GFEATURES = 0x1B, 0x37, 0x3A
FEATURES: Final = 4
"""Of enum ethtool_stringset (linux/ethtool.h): ETH_SS_FEATURES."""
STRING_BYTES: Final = 32
BLOCK: Final = struct.Struct("=4I")
"""Of 32 features: those that can be turned on and off, those that are wanted, that are on, that never change."""
UDP_SEGMENTS: Final = b"tx-udp-segmentation"


def ask(name: str, what: int, octets: int, body: bytes = b"") -> bytes:
    """The answer, struct ethtool_* (linux/ethtool.h), so many bytes with the request number in front; empty: there is
    none (netdevice(7), struct ifreq). body: what follows the number in the question.
    """
    said = ctypes.create_string_buffer(struct.pack("=I", what) + body, octets)
    asked = struct.pack("@16sP16x", name.encode()[:15], ctypes.addressof(said))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCETHTOOL, asked)
    except OSError:
        return b""
    return said.raw


@functools.cache
def _features(name: str) -> tuple[bytes, ...]:
    """Names of all features, by number: those of the kernel, whatever the interface. Raises LookupError."""
    count = ask(name, GSSET_INFO, 20, struct.pack("=IQ", 0, 1 << FEATURES))
    if not count:
        raise LookupError(name)
    (many,) = struct.unpack_from("=I", count, 16)
    said = ask(name, GSTRINGS, 12 + many * STRING_BYTES, struct.pack("=II", FEATURES, many))
    if not said:
        raise LookupError(name)
    return tuple(said[n : n + STRING_BYTES].rstrip(b"\0") for n in range(12, len(said), STRING_BYTES))


def takes_runs(name: str) -> bool:
    """Whether an interface can take a run of UDP datagrams as one packet (tx-udp-segmentation), if nobody has turned
    that off; False: it can not, as a veth whose other end has an XDP program, or nobody can say.
    """
    try:
        names = _features(name)
        number = names.index(UDP_SEGMENTS)
    except (LookupError, ValueError):
        return False
    blocks = (len(names) + 31) // 32
    said = ask(name, GFEATURES, 8 + BLOCK.size * blocks, struct.pack("=I", blocks))
    if not said:
        return False
    available, _, active, _ = BLOCK.unpack_from(said, 8 + BLOCK.size * (number // 32))
    return bool((available | active) >> number % 32 & 1)
