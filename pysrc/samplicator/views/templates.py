"""Templates as they are shown, with IANA's field names.

Pure: readings in, plain values out. Called by http; the command line draws the same shapes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Final, TypedDict

from samplicator.readings import Domain, FlowField, FlowTemplate

_VARIABLE: Final = 65535
_REVERSE: Final = 29305  # the private enterprise number of RFC 5103
_V9_SCOPES: Final = {1: "system", 2: "interface", 3: "lineCard", 4: "cache", 5: "template"}


class Field(TypedDict):
    """A field of a template."""

    name: Annotated[str, "IANA's name; eENTERPRISE/NUMBER for other enterprises, NUMBER for numbers without a name."]
    element: int
    enterprise: Annotated[int, "0 = IANA."]
    bytes: Annotated[int | None, "null = variable length."]
    scope: bool


class Template(TypedDict):
    """A template or options template."""

    id: int
    kind: Annotated[str, "template or options_template."]
    first_seen_unix: float
    last_seen_unix: float
    record_bytes: Annotated[int | None, "null = variable length."]
    fields: list[Field]


class TaughtBy(TypedDict):
    """The observation domain that sent templates."""

    place: Annotated[str, "WORKER.NUMBER; a domain that continues in the next row or page has the same value there."]
    exporter: str
    port: int
    protocol: str
    domain: int
    options_data: Annotated[int, "Options data records stored."]


class Taught(TaughtBy):
    """An observation domain with its templates."""

    templates: list[Template]


class TemplatePage(TypedDict):
    """A page of observation domains with their templates."""

    domains: list[Taught]
    after: Annotated[str | None, "Start of the next page, which can be inside a domain; null on the last page."]


@functools.cache
def element_names() -> Mapping[int, str]:
    """IANA's names of IPFIX information elements."""
    text = resources.files("samplicator").joinpath("elements.txt").read_text(encoding="ascii")
    pairs = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return {int(number): name for number, name in pairs}


def field_name(field: FlowField, protocol: str) -> str:
    """See Field."""
    if field.enterprise == _REVERSE:
        name = element_names().get(field.element, str(field.element))
        return f"reverse{name[:1].upper()}{name[1:]}"
    if field.enterprise:
        return f"e{field.enterprise}/{field.element}"
    if field.scope and protocol == "netflow9":
        return _V9_SCOPES.get(field.element, str(field.element))
    return element_names().get(field.element, str(field.element))


def taught_by(session: Domain) -> TaughtBy:
    """What stands before the templates of a domain."""
    return {
        "place": f"{session.worker}.{session.number}",
        "exporter": session.address,
        "port": session.port,
        "protocol": session.protocol,
        "domain": session.domain,
        "options_data": session.options_data,
    }


def template(item: FlowTemplate, protocol: str) -> Template:
    """One of them, its fields in order."""
    return {
        "id": item.id,
        "kind": item.kind,
        "first_seen_unix": item.first_seen_unix,
        "last_seen_unix": item.last_seen_unix,
        "record_bytes": item.record_bytes or None,
        "fields": [
            {
                "name": field_name(field, protocol),
                "element": field.element,
                "enterprise": field.enterprise,
                "bytes": None if field.length == _VARIABLE else field.length,
                "scope": field.scope,
            }
            for field in item.fields
        ],
    }
