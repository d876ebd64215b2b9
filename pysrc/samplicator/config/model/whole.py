"""The whole configuration: its tables, what only a restart changes, and its JSON Schema."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from samplicator.config.model.datapath import Datapath
from samplicator.config.model.listener import Listener
from samplicator.config.model.pool import Pool
from samplicator.config.model.receiver import Receiver
from samplicator.config.model.rule import Rule
from samplicator.config.model.sctp import Sctp
from samplicator.config.model.service import Service
from samplicator.config.model.table import RESTART, Table


class Config(Table):
    """The whole configuration."""

    service: Service = Field(
        default_factory=Service, description="The control plane: HTTP, control socket, log, timers."
    )
    datapath: Datapath = Field(default_factory=Datapath, description="The worker threads, buffers and memory.")
    sctp: Sctp = Field(default_factory=Sctp, description="How this host does SCTP, for sctp:// places.")
    listener: list[Listener] = Field(default=[], description="Addresses that exporters send to.")
    receiver: list[Receiver] = Field(default=[], description="Destinations of copies.")
    pool: list[Pool] = Field(default=[], description="Receivers that share the exporters.")
    rule: list[Rule] = Field(default=[], description="Which exporters' datagrams are copied to which receivers.")


def restart_settings() -> list[tuple[str, str]]:
    """(table, key) of every setting that only a restart changes."""
    tables: dict[str, type[Table]] = {"service": Service, "datapath": Datapath, "sctp": Sctp}
    return [
        (table, key)
        for table, model in tables.items()
        for key, info in model.model_fields.items()
        if info.json_schema_extra == RESTART
    ]


def json_schema() -> dict[str, Any]:
    """JSON Schema of the TOML file, for editors and `samplicator schema`."""
    schema = Config.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "samplicator configuration"}
