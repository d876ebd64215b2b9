"""One row of the catalogue: a family of series. Pure data; used by catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "samplicator_"
FOREIGN: Final = ("process_", "python_gc_")
"""Prefixes of the series that prometheus_client's own collectors add."""

Kind = Literal["counter", "gauge", "histogram", "info"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. name: without PREFIX, with `_total` or `_info`. labels: in order. split: (value of the last label,
    field) for a family whose last label names a cause, the fields being of the compiled counters `origin` names, or
    words of the attribute that it names.
    scale: unit of the name / unit of the field.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    origin: str
    split: tuple[tuple[str, str], ...] = ()
    scale: float = 1

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def series(self) -> tuple[str, ...]:
        """The names a query can use."""
        if self.kind == "histogram":
            return tuple(f"{self.full_name}_{part}" for part in ("bucket", "count", "sum"))
        return (self.full_name,)
