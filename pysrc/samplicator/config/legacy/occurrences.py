"""Rules of the original program -> receivers and rules of a configuration.

Purpose: in the original program every matching rule fires, and a receiver in two rules gets two copies, each with its
own countdown; in a configuration a datagram gets one copy per receiver of its route. So each occurrence becomes its own
Receiver (HOST/PORT, then HOST/PORT#2, ...). Occurrences that send every datagram, with the same parameters, share a
Receiver if no datagram can match both of their rules. Called by config.legacy. Raises nothing.
"""

from __future__ import annotations

from samplicator.config.address import EVERYTHING, ParsedSource
from samplicator.config.legacy.rulefile import LegacyReceiver, LegacyRule
from samplicator.config.model.loaded import Path
from samplicator.config.model.receiver import Receiver
from samplicator.config.model.rule import Rule

MAX_GROUPS = 64
"""Receivers of equal parameters that are tried before a new one is made."""
MAX_MASKS = 256
"""With more different masks than this in one file, no receiver is shared: finding out would take too long."""


class _Group:
    """One shared receiver: the sources of the rules it stands in, so that no datagram gets its copy twice.

    Two sources overlap when they agree in every bit that both masks select. For each pair of masks the addresses, cut
    to the common bits, are kept; looking one up is then one set per mask of the group.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.everything = False
        self.cut: dict[tuple[int, int, int], set[int]] = {}
        self.masks: set[tuple[int, int]] = set()

    def overlaps(self, source: ParsedSource) -> bool:
        if self.everything or source.any or source.host:
            return self.everything or bool(self.masks)
        family, address, mask = _key(source)
        return any(
            address & mask & other in self.cut[(family, other, mask)] for known, other in self.masks if known == family
        )

    def add(self, source: ParsedSource, masks: set[tuple[int, int]]) -> None:
        if source.any or source.host:
            self.everything = True
            return
        family, address, mask = _key(source)
        self.masks.add((family, mask))
        for known, other in masks:
            if known == family:
                self.cut.setdefault((family, mask, other), set()).add(address & mask & other)


def _key(source: ParsedSource) -> tuple[int, int, int]:
    return source.family, int.from_bytes(source.address, "big"), int.from_bytes(source.mask, "big")


class Occurrences:
    """Rules as written -> receivers and rules of the configuration."""

    def __init__(self, rules: list[LegacyRule]) -> None:
        self.receivers: list[Receiver] = []
        self.rules: list[Rule] = []
        self.sources: list[tuple[ParsedSource, ...]] = []
        self.places: dict[Path, tuple[str, int]] = {}
        self.names: dict[str, int] = {}
        self.groups: dict[LegacyReceiver, list[_Group]] = {}
        self.masks = {(family, mask) for rule in rules for family, _, mask in [_key(rule.source)]}
        for rule in rules:
            if rule.receivers:
                self.rule(rule)

    def rule(self, rule: LegacyRule) -> None:
        number = len(self.rules)
        to = list(dict.fromkeys(self.receiver(receiver, rule) for receiver in rule.receivers))
        everything = rule.source.any
        names = {"to": [self.receivers[index].name for index in to]}
        self.rules.append(Rule.model_validate(names if everything else {"from": [rule.source.text], **names}))
        self.sources.append((EVERYTHING if everything else rule.source,))
        self.places[("rule", number)] = (rule.file, rule.line)

    def receiver(self, receiver: LegacyReceiver, rule: LegacyRule) -> int:
        """Index of the receiver that stands for this occurrence."""
        if receiver.freq > 1 or len(self.masks) > MAX_MASKS:
            return self.new(receiver, rule)
        groups = self.groups.setdefault(receiver, [])
        for group in groups[:MAX_GROUPS]:
            if rule.source.never or not group.overlaps(rule.source):
                break
        else:
            group = _Group(self.new(receiver, rule))
            groups.append(group)
        if not rule.source.never:
            group.add(rule.source, self.masks)
        return group.index

    def new(self, receiver: LegacyReceiver, rule: LegacyRule) -> int:
        index = len(self.receivers)
        count = self.names[receiver.name] = self.names.get(receiver.name, 0) + 1
        settings = receiver.settings
        self.receivers.append(
            Receiver(
                name=receiver.name if count == 1 else f"{receiver.name}#{count}",
                to=receiver.to,
                spoof=settings.spoof,
                checksum=settings.checksum or not settings.spoof or receiver.to.startswith("["),
                freq=receiver.freq,
                ttl=receiver.ttl,
                pause_us=settings.pause_us,
                family=settings.family,
                # the ancestor sends copies and nothing else; unspoofed receivers are only asked while they refuse
                probe="off" if settings.spoof else "auto",
            )
        )
        self.places[("receiver", index)] = (rule.file, rule.line)
        return index
