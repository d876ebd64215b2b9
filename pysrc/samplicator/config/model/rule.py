"""[[rule]]: which copies are made.

A rule's `from` is the attribute `from_`; build rules with `Rule.model_validate({"from": [...], "to": [...]})`.
"""

from __future__ import annotations

from pydantic import Field

from samplicator.config.address import (
    EVERYTHING,
    ParsedSource,
    parse_source,
)
from samplicator.config.fields import (
    SourceText,
)
from samplicator.config.model.table import LIVE, Table


class Rule(Table):
    """Which exporters' datagrams go to which receivers. Every matching rule fires, in order, until one with `stop`."""

    from_: list[SourceText] = Field(
        default=[],
        alias="from",
        description="Addresses or prefixes of exporters; without this key: every exporter.",
        json_schema_extra=LIVE,
    )
    listener: list[str] = Field(
        default=[], description="Names of listeners; without this key: all listeners.", json_schema_extra=LIVE
    )
    to: list[str] = Field(
        description="Names of receivers and pools that get a copy; [] with `stop = true` drops the datagram.",
        json_schema_extra=LIVE,
    )
    stop: bool = Field(
        False, description="true = when this rule matches, later rules are not evaluated.", json_schema_extra=LIVE
    )


def sources_of(rule: Rule) -> tuple[ParsedSource, ...]:
    """The entry of `Loaded.sources` for a rule as TOML means it."""
    return tuple(parse_source(text) for text in rule.from_) or (EVERYTHING,)


class SharedValues:
    """Makes equal lists of names one object, which saves a few hundred bytes per rule. The lists are never changed."""

    def __init__(self) -> None:
        self._lists: dict[tuple[str, ...], list[str]] = {}
        self._keys: dict[frozenset[str], set[str]] = {}

    def share(self, rule: Rule) -> None:
        """Called right after a rule is made, so that the next rule can use the memory that this frees."""
        for key in ("to", "listener"):
            names: list[str] = rule.__dict__[key]
            rule.__dict__[key] = self._lists.setdefault(tuple(names), names)
        given = self._keys.setdefault(frozenset(rule.model_fields_set), rule.model_fields_set)
        object.__setattr__(rule, "__pydantic_fields_set__", given)
