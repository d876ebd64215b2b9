"""[datapath]: the threads that forward. Judges what can be judged within the table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from samplicator.config.fields import (
    Delay,
    Minutes,
    Size,
    Workers,
)
from samplicator.config.model.table import LIVE, RESTART, Table


class Datapath(Table):
    """The threads that forward."""

    workers: Workers = Field(
        1, description='Forwarding threads, 1..256, or "auto": one per allowed CPU.', json_schema_extra=LIVE
    )
    cpus: list[Annotated[int, Field(ge=0, le=4095)]] = Field(
        default=[],
        description="CPUs that the workers run on, in order; empty = the allowed CPUs.",
        json_schema_extra=LIVE,
    )
    receive_buffer: Size = Field(
        64 << 20,
        description='Receive buffer of each listener socket in bytes, or as "64MiB"; the kernel may grant less.',
        json_schema_extra=LIVE,
    )
    send_buffer: Size = Field(
        4 << 20,
        description='Send buffer of each sending socket in bytes, or as "4MiB"; the kernel may grant less.',
        json_schema_extra=LIVE,
    )
    ring_buffer: Size = Field(
        64 << 20,
        description="Size of the packet ring of each listener that receives by ring, per worker and interface, in "
        'bytes, or as "64MiB"; the ring has at least 2 MiB.',
        json_schema_extra=RESTART,
    )
    flow_memory: Size = Field(
        64 << 20,
        description="Memory for the exporters' flow state (templates, options, sequences), in bytes or as "
        '"64MiB"; the first workers share it evenly, and each later worker adds one such share.',
        json_schema_extra=RESTART,
    )
    template_life_minutes: Minutes = Field(
        120,
        description="Minutes, 0..10080, after which a template without repetition and without data is forgotten, and "
        "options data without repetition; 0 = never.",
        json_schema_extra=LIVE,
    )
    max_datagram: int = Field(
        65535,
        ge=1,
        le=65535,
        description="Largest UDP payload in bytes that is forwarded, 1..65535; longer ones are counted and dropped.",
        json_schema_extra=RESTART,
    )
    batch: int = Field(
        512,
        ge=1,
        le=512,
        description="Largest number of datagrams per receive call, 1..512.",
        json_schema_extra=RESTART,
    )
    replicate: Literal["off", "copier", "tcx", "xdp"] = Field(
        "off",
        description="Who makes the copies of a frame (engine packet, or the frames of auto): off = the workers; copier "
        "= the kernel, by a BPF program at the loopback device (Linux 6.6, libbpf.so.1, CAP_BPF and CAP_NET_ADMIN); "
        "tcx = the same, and of sessions whose receivers all take every datagram as it is, where they come in; "
        "xdp = tcx, but by XDP where the drivers of the interfaces can.",
        json_schema_extra=RESTART,
    )
    max_delay: Delay = Field(
        0,
        description="Microseconds that a busy worker waits for more datagrams before it receives, 0..100000: larger "
        'batches, more latency; 0 = no wait, but 250 for rings; "auto" = 100 while several are likely to come.',
        json_schema_extra=RESTART,
    )
