"""What all tables of the configuration share, and whether a reload changes a setting.

A field says so in `json_schema_extra`: LIVE at run time, RESTART only when the process starts.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

LIVE: dict[str, Any] = {"reload": "live"}


RESTART: dict[str, Any] = {"reload": "restart"}


class Table(BaseModel):
    """What all tables share: frozen, strict, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
