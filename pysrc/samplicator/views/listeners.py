"""Listeners as they are shown.

Pure: readings in, plain values out. Called by http; the command line draws the same shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypedDict

from samplicator.config.address import endpoint_text
from samplicator.readings import Readings


class Listener(TypedDict):
    """A listener as it runs now."""

    name: str
    sockets: Annotated[
        list[str],
        "ADDRESS:PORT of each configured socket, once for all workers; tcp://ADDRESS:PORT where a gateway listens.",
    ]
    counters: Annotated[Mapping[str, int], "Totals; datagrams = truncated + unmatched + denied + matched."]
    batch_counts: Annotated[list[int], "Receive calls by the number of datagrams; the bounds are those of the metric."]
    buffer_bytes: Annotated[int, "Receive buffer that the kernel grants, for all sockets."]
    queue_bytes: Annotated[int, "Kernel memory used by datagrams that wait to be read."]
    kernel_drops: Annotated[int, "Datagrams that the kernel dropped because the buffer or ring was full."]
    up: bool
    receive: Annotated[str, "How datagrams are received: recvmmsg, ring, or door (by a gateway only)."]
    receive_why: str
    rings: Annotated[list[str], "Interfaces with a packet ring."]
    state: Annotated[str, "up, partly down or down."]
    state_why: str


def listeners(readings: Readings) -> list[Listener]:
    """All of them, in the order of the configuration."""
    return [
        {
            "name": item.name,
            "sockets": [*(endpoint_text(address, port) for address, port in item.sockets), *item.places],
            "counters": item.counters,
            "batch_counts": list(item.batch_counts),
            "buffer_bytes": item.buffer_bytes,
            "queue_bytes": item.queue_bytes,
            "kernel_drops": item.kernel_drops,
            "up": item.up,
            "receive": item.receive,
            "receive_why": item.receive_why,
            "rings": list(item.rings),
            "state": item.state,
            "state_why": item.state_why,
        }
        for item in readings.listeners
    ]
