"""The copier: the BPF program that copies frames for several receivers, at this host's loopback device.

Purpose: what fastpath/bpf/copies.bpf.c needs of the host: the program loaded, attached where packets leave to `lo`, and
its maps for the workers. Invariants: the hook is a link that ends with the process; programs of others there stay.
Called by supervisor. Must never decide whether frames are sent.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from samplicator.host.libbpf import Hook, Objects

OBJECT: Final = Path(__file__).parent.parent / "bpf" / "copies.bpf.o"
DEVICE: Final = "lo"
IFF_UP: Final = 1
SIOCGIFFLAGS: Final = 0x8913


class Copier:
    """token: by which the program knows our frames. Raises OSError, with what is missing: the compiled program, libbpf,
    a right, a kernel that has the hook, the device.
    """

    def __init__(self) -> None:
        try:
            image = OBJECT.read_bytes()
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "samplicator was built without clang, so it has no BPF program") from None
        self.device = socket.if_nametoindex(DEVICE)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", DEVICE.encode(), 0))
        if not struct.unpack_from("=H", answer, 16)[0] & IFF_UP:
            raise OSError(errno.ENETDOWN, f"the interface {DEVICE} is down")
        self.token = int.from_bytes(os.urandom(4), sys.byteorder) | 1
        self._objects = Objects(image, ["copy_frames"])
        try:
            self._objects.maps["token"].put(bytes(4), self.token.to_bytes(4, sys.byteorder))
            self._link = self._objects.attach("copy_frames", self.device, Hook.TCX_EGRESS)
        except BaseException:
            self._objects.close()
            raise

    @property
    def receivers(self) -> int:
        """File descriptor of the map."""
        return self._objects.maps["receivers"].fd

    @property
    def counters(self) -> int:
        return self._objects.maps["counters"].fd

    def close(self) -> None:
        self._link.close()
        self._objects.close()
