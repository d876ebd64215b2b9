"""Refusal: why a plan cannot run, with the place in the configuration that asks for it.

Called by build and its parts. It must never open anything.
"""

from __future__ import annotations

import errno
from typing import Final

from samplicator.plan.spec import ListenerSpec, PlanSpec, RingSpec

SPARE_DESCRIPTORS: Final = 64
"""Descriptors kept free for HTTP, files, name look-ups and probes."""

REFUSED: Final = {
    "segment": "the kernel refuses segmented sends (UDP_SEGMENT); datagrams are sent one by one",
    "transparent": "the kernel refuses sockets on exporters' ports; the raw socket sends the copies",
    "packet": "the kernel refuses link frames; other sockets send the copies",
    "copier": "the kernel makes no copies (is lo down, or another BPF program there first?); the worker makes them",
}
"""What is said of a feature that was given up, by its word in `gave_up`."""
REGAINED: Final = {
    "segment": "the kernel accepts segmented sends again",
    "transparent": "sockets on exporters' ports send copies again",
    "packet": "copies are sent as link frames again",
    "copier": "the kernel makes copies again",
}
"""And of one that works again."""


class BuildError(OSError):
    """The kernel refused a part of a plan. where: path of that part in the configuration, as ("listener", 0)."""

    def __init__(self, error_number: int, text: str, where: tuple[str | int, ...] = ()) -> None:
        super().__init__(error_number, text)
        self.text = text
        self.where = where

    def __str__(self) -> str:
        return self.text


def ring_error(listener: ListenerSpec, spec: RingSpec, error: OSError) -> BuildError:
    text = f"listener {listener.name!r} cannot receive by ring on {spec.interface}: {error.strerror or error}"
    return BuildError(error.errno or 0, text, ("listener", listener.index, "receive"))


def check_descriptors(spec: PlanSpec, limit: int) -> None:
    """Raises BuildError before anything is opened if there are not enough file descriptors. Only what changes needs old
    and new sockets at the same time.
    """
    # a ring has a doorbell, a door another end
    listening = sum(len(item.sockets) + 2 * len(item.rings) + 2 * len(item.doors) for item in spec.listeners)
    listening *= spec.workers
    sending = sum(1 + udp.spoof + (udp.mtu > 0) for udp in spec.udp) * spec.workers
    sending += 2 * (len(spec.receivers) - len(spec.udp)) * spec.workers
    sending += sum(udp.family == 6 and udp.engine != "udp" for udp in spec.udp)  # what asks for the path MTU
    reserved = sum(udp.engine == "raw" and not udp.spoof for udp in spec.udp)
    sending += sum(r.probe.kind != "off" for r in spec.receivers)
    need = listening + sending + reserved + 3 * spec.workers + SPARE_DESCRIPTORS  # epoll, eventfd and packet socket
    if need > limit:
        raise BuildError(
            errno.EMFILE,
            f"this plan needs {need} file descriptors ({listening} for listeners, {sending} for receivers, "
            f"{spec.workers} workers), but the limit is {limit}; raise the limit (ulimit -Hn, systemd LimitNOFILE=) or "
            "use fewer workers",
        )
