"""What a payload can be found to be: the facts that decode finds, and that lines and JSON show.

Called by decode, lines and command. Pure data. Every kind has `protocol`; fault: which rule of its protocol it breaks,
for people, "" = none is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class Flows:
    """NetFlow v1, v5, v7 or v8. sequence: of flows, None of v1. engine: TYPE/NUMBER, "" of v1 and v7. aggregation: of
    v8. records: as the header says.
    """

    protocol: str
    records: int = 0
    sequence: int | None = None
    engine: str = ""
    aggregation: int | None = None
    fault: str = ""


@dataclass(slots=True)
class Template:
    """A template or options template. fields: how many, names: of the first of them, by which they are known."""

    id: int
    options: bool
    fields: int
    names: Sequence[str]


@dataclass(slots=True)
class Data:
    """Data sets of one template. records: of those that could be counted. uncounted: sets whose template was not seen,
    or says nothing of their size.
    """

    id: int
    sets: int = 0
    records: int = 0
    uncounted: int = 0


@dataclass(slots=True)
class Sets:
    """NetFlow v9 or IPFIX. domain: v9's source id. templates: the first of them, by their order; more_templates: how
    many more there are. withdrawn: templates that IPFIX takes back. data: in the order of their first sets.
    """

    protocol: str
    domain: int = 0
    sequence: int = 0
    templates: list[Template] = field(default_factory=list)
    more_templates: int = 0
    withdrawn: int = 0
    data: list[Data] = field(default_factory=list)
    fault: str = ""


@dataclass(slots=True)
class Sflow:
    """sFlow v5. samples: by kind: flow, counter, eENTERPRISE/FORMAT."""

    protocol: str = "sflow5"
    agent: str = ""
    sub_agent: int = 0
    sequence: int = 0
    samples: Mapping[str, int] = field(default_factory=dict)
    fault: str = ""


@dataclass(slots=True)
class Syslog:
    """priority: facility * 8 + severity. text: the beginning of what follows."""

    priority: int
    text: str
    protocol: str = "syslog"


@dataclass(slots=True)
class Snmp:
    """version: v1, v2c or v3. kind: trap, inform ..., "" of v3, which may be encrypted."""

    version: str
    kind: str
    protocol: str = "snmp"


@dataclass(slots=True)
class Other:
    """Anything else."""

    protocol: str = "other"


Facts = Flows | Sets | Sflow | Syslog | Snmp | Other


class Session(Protocol):
    """What is known of an exporter's templates."""

    def learn(self, version: int, domain: int, template: int, shape: Sequence[int]) -> None:
        """Keeps the shape of a template. version: 9 or 10."""

    def find(self, version: int, domain: int, template: int) -> Sequence[int] | None:
        """The shape of a template, if it is known: see decode.shape_of."""
