"""The copier: the BPF program that copies frames for several receivers, at this host's loopback device.

Purpose: what fastpath/bpf/copies.bpf.c needs of the host: the program loaded, attached where packets leave to `lo`, and
its maps for the workers. Invariants: the hook is a link that ends with the process; programs of others there stay.
Called by supervisor. Must never decide whether frames are sent.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Final

from samplicator.host.libbpf import Hook, Objects

OBJECT: Final = Path(__file__).parent.parent / "bpf" / "copies.bpf.o"
DEVICE: Final = "lo"


class Copier:
    """Raises OSError, with what is missing: the compiled program, libbpf, a right, a kernel that has the hook."""

    def __init__(self) -> None:
        try:
            image = OBJECT.read_bytes()
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "samplicator was built without clang, so it has no BPF program") from None
        self.device = socket.if_nametoindex(DEVICE)
        self._objects = Objects(image, ["copy_frames"])
        try:
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
