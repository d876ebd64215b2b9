"""[datapath]: the threads that forward. Judges what can be judged within the table."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from samplicator.config.fields import (
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
        description="CPUs to pin the workers to, in order; empty = the allowed CPUs.",
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
        description="Ring of each listener that receives by ring, per worker and interface, in bytes, or as "
        '"64MiB"; at least 2 MiB are taken.',
        json_schema_extra=RESTART,
    )
    flow_memory: Size = Field(
        64 << 20,
        description="Memory for what is known of the exporters' flow data (templates, options, sequences), in bytes or "
        'as "64MiB"; the workers of the start share it evenly, a later one adds as large a share.',
        json_schema_extra=RESTART,
    )
    template_life_minutes: Minutes = Field(
        120,
        description="Minutes after which a template that the exporter has not repeated, and of which no data came, is "
        "forgotten, 0..10080, and options data that it has not repeated; 0 = never.",
        json_schema_extra=LIVE,
    )
    max_datagram: int = Field(
        65535,
        ge=1,
        le=65535,
        description="Largest UDP payload forwarded in bytes, 1..65535; longer ones are counted and dropped.",
        json_schema_extra=RESTART,
    )
    batch: int = Field(
        512, ge=1, le=512, description="Most datagrams taken by one receive call, 1..512.", json_schema_extra=RESTART
    )
    max_delay: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Microseconds a busy worker waits for more datagrams before it receives, 0..100000: larger batches "
        "for more latency; 0 = never, but 250 for those of a ring.",
        json_schema_extra=RESTART,
    )
