"""[[pool]]: receivers that share the exporters. Judges what can be judged within the table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from samplicator.config.fields import (
    Name,
    Weights,
)
from samplicator.config.model.table import LIVE, Table


class Pool(Table):
    """Receivers that share the exporters: each datagram goes to one of them, templates go to all."""

    name: Name = Field(
        description="Name used by rules, metrics and logs; unique among pools and receivers.", json_schema_extra=LIVE
    )
    members: list[str] = Field(
        min_length=1, description="Names of the receivers that share the exporters.", json_schema_extra=LIVE
    )
    weight: Weights = Field(
        default=[],
        description="Share of each member, 1..1000: a list in the order of `members`, or a table { NAME = WEIGHT }; "
        "default 1.",
        json_schema_extra=LIVE,
    )
    balance: Literal["exporter-hash", "round-robin"] = Field(
        "exporter-hash",
        description="exporter-hash = an observation domain of an exporter stays with one member; round-robin = each "
        "datagram goes to the next member.",
        json_schema_extra=LIVE,
    )

    @property
    def weights(self) -> tuple[int, ...]:
        """One for each member, in their order."""
        if isinstance(self.weight, dict):
            return tuple(self.weight.get(name, 1) for name in self.members)
        return tuple(self.weight) or (1,) * len(self.members)
