"""The oracle: a plain, slow model of which copies must leave for which datagram.

It says what the documents say, in the fewest steps, and shares no line with the product: whole configuration in, one
datagram after another in, the copies that must leave out. Readers of well-formed TOML and of well-formed rule files
are here too, so that a test hands the very same text to the daemon and to the oracle. Used by tests/system,
tests/fuzz and tests/engine. Must never import samplicator.

    every matching rule fires, up to and including the first matching one with stop     (issue: configuration)
    TOML: a receiver gets one copy of a datagram however many rules name it             (union)
    rule file: one copy per occurrence, each occurrence with a countdown of its own     (COMPATIBILITY: rule file)
    freq N: the first datagram is sent, the next N-1 are not
    spoof: exporter's address and port, when it is of the receiver's family; otherwise the relay's own
    checksum = false: none on every copy over IPv4, always one over IPv6; -n: only where -S acts
    an IPv4-mapped IPv6 exporter is an IPv4 exporter
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
KEEP = "keep"


def address_of(text: str) -> Address:
    """An address as the relay sees it: IPv4-mapped ones are IPv4."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@dataclass(frozen=True)
class Source:
    """What a rule compares with: (exporter & mask) == address, in the family of `address`; None = everything."""

    address: Address | None = None
    mask: int = 0

    def matches(self, exporter: Address) -> bool:
        if self.address is None:
            return True
        return exporter.version == self.address.version and int(exporter) & self.mask == int(self.address)


@dataclass(frozen=True)
class Receiver:
    """address None: a gateway, which gets who sent a datagram, its TTL and TOS beside it, whatever the family."""

    name: str
    address: Address | None
    port: int
    spoof: bool = False
    checksum: bool = True
    freq: int = 1
    ttl: int | str = 64
    tos: int | str = 0
    source: tuple[Address, int] | None = None


@dataclass(frozen=True)
class Rule:
    sources: tuple[Source, ...]
    receivers: tuple[str, ...]
    listeners: tuple[str, ...] | None = None
    stop: bool = False

    def matches(self, exporter: Address, listener: str) -> bool:
        if self.listeners is not None and listener not in self.listeners:
            return False
        return any(source.matches(exporter) for source in self.sources)


@dataclass(frozen=True)
class Datagram:
    """What arrived at a listener."""

    exporter: str
    port: int
    payload: bytes = field(repr=False)
    listener: str = "netflow"
    ttl: int = 64
    tos: int = 0


@dataclass(frozen=True)
class Copy:
    """What must leave. source None: the relay's own address and a port of its choice. zero: no UDP checksum."""

    receiver: str
    source: tuple[str, int] | None
    destination: str
    port: int
    ttl: int
    tos: int
    zero: bool
    payload: bytes = field(repr=False)


@dataclass
class Model:
    receivers: dict[str, Receiver]
    rules: list[Rule]
    max_datagram: int = 65535
    counts: Counter[str] = field(default_factory=Counter)
    countdown: dict[str, int] = field(default_factory=dict)

    def route(self, exporter: str, listener: str) -> tuple[list[int], list[str], bool]:
        """(indexes of the matching rules, receivers that get a copy in order of first mention, denied)."""
        address = address_of(exporter)
        fired, names, stopped = [], [], False
        for index, rule in enumerate(self.rules):
            if not rule.matches(address, listener):
                continue
            fired.append(index)
            for name in rule.receivers:
                if name not in names:
                    names.append(name)
            if rule.stop:
                stopped = True
                break
        return fired, names, stopped and not names

    def offer(self, datagram: Datagram) -> list[Copy]:
        """The copies of one datagram. Counts as the daemon must: received, truncated, matched, acl, no_route_rule, and
        by receiver offered, skipped, sent.
        """
        self.counts["received"] += 1
        if len(datagram.payload) > self.max_datagram:
            self.counts["truncated"] += 1
            return []
        _, names, denied = self.route(datagram.exporter, datagram.listener)
        if not names:
            self.counts["acl" if denied else "no_route_rule"] += 1
            return []
        self.counts["matched"] += 1
        copies = []
        for name in names:
            receiver = self.receivers[name]
            self.counts[f"offered {name}"] += 1
            left = self.countdown.get(name, 0)
            if left > 0:
                self.countdown[name] = left - 1
                self.counts[f"skipped {name}"] += 1
                continue
            self.countdown[name] = receiver.freq - 1
            self.counts[f"sent {name}"] += 1
            copies.append(self.copy(receiver, datagram))
        return copies

    @staticmethod
    def copy(receiver: Receiver, datagram: Datagram) -> Copy:
        exporter = address_of(datagram.exporter)
        source: tuple[str, int] | None = None
        if receiver.source is not None:
            source = (str(receiver.source[0]), receiver.source[1])
        elif receiver.address is None or (receiver.spoof and exporter.version == receiver.address.version):
            source = (str(exporter), datagram.port)
        return Copy(
            receiver.name,
            source,
            str(receiver.address or ""),
            receiver.port,
            datagram.ttl if receiver.ttl == KEEP else int(receiver.ttl),
            datagram.tos if receiver.tos == KEEP else int(receiver.tos),
            not receiver.checksum and receiver.address is not None and receiver.address.version == 4,
            datagram.payload,
        )


# --- readers of well-formed text --------------------------------------------------------------------------------------


def source_of(text: str) -> Source:
    """`ADDR`, `ADDR/LENGTH` or `ADDR/MASK`."""
    host, _, mask = text.partition("/")
    address = address_of(host)
    width = address.max_prefixlen
    if not mask:
        bits = (1 << width) - 1
    elif "." in mask:
        bits = int(ipaddress.IPv4Address(mask))
    else:
        length = int(mask) - (96 if width == 32 and ":" in host else 0)  # of an IPv4-mapped one it counts 96 bits more
        bits = ((1 << length) - 1) << (width - length)
    return Source(address, bits)


def host_port(text: str) -> tuple[Address, int]:
    host, _, port = text.rpartition(":")
    return address_of(host.strip("[]")), int(port)


def from_toml(text: str) -> Model:
    """Reads a configuration that is known to be good; addresses only, no host names."""
    data: dict[str, Any] = tomllib.loads(text)
    receivers = {}
    for row in data.get("receiver", []):
        address, port = host_port(row["to"])
        extra = {key: row[key] for key in ("spoof", "checksum", "freq", "ttl", "tos") if key in row}
        if row.get("source"):
            extra["source"] = host_port(row["source"])
        receivers[row["name"]] = Receiver(row["name"], address, port, **extra)
    rules = []
    for row in data.get("rule", []):
        sources = tuple(source_of(source) for source in row["from"]) if "from" in row else (Source(),)
        listeners = tuple(row["listener"]) if row.get("listener") else None
        rules.append(Rule(sources, tuple(row["to"]), listeners, row.get("stop", False)))
    return Model(receivers, rules, data.get("datapath", {}).get("max_datagram", 65535))


def ports_of(text: str) -> list[int]:
    """`P`, `LO-HI` or `LO+COUNT`."""
    if found := re.fullmatch(r"(\d+)-(\d+)", text):
        return list(range(int(found[1]), int(found[2]) + 1))
    if found := re.fullmatch(r"(\d+)\+(\d+)", text):
        return list(range(int(found[1]), int(found[1]) + int(found[2])))
    return [int(text)]


def from_rule_file(
    text: str, *, spoof: bool = False, checksum: bool = True, command_line: tuple[str, ...] = ()
) -> Model:
    """Reads a rule file that is known to be good, addresses and numbers only. `spoof`, `checksum`: -S and -n given
    before -c. The receivers of the command line are one last rule that matches everything.
    """
    receivers: dict[str, Receiver] = {}
    rules = []

    def receivers_of(words: list[str]) -> tuple[str, ...]:
        names = []
        for word in words:
            if word.startswith("["):
                host, _, rest = word[1:].partition("]")
                rest = rest.lstrip("/")
            else:
                host, _, rest = word.partition("/")
            ports, _, options = rest.partition("/")
            freq, _, ttl = options.partition(",")
            for port in ports_of(ports or "2000"):
                name = f"{len(receivers)}"
                receivers[name] = Receiver(
                    name, address_of(host), port, spoof, checksum or not spoof, int(freq or 1), int(ttl or 64)
                )  # fmt: skip
                names.append(name)
        return tuple(names)

    for line in text.splitlines():
        rule = re.sub(r"(^|\s)#.*", "", line).strip()
        if not rule:
            continue
        found = re.match(r"(\[[^]]*\](?:/\d+)?|[^:]*):(.*)", rule)
        assert found, f"not a rule: {line!r}"
        source = source_of(re.sub(r"[\[\]\s]", "", found[1]))
        everything = source.address is not None and (
            (source.address.version == 4 and int(source.address) == 0)
            or (source.address.version == 6 and source.mask == 0)
        )
        rules.append(Rule((Source() if everything else source,), receivers_of(found[2].split())))
    if command_line:
        rules.append(Rule((Source(),), receivers_of(list(command_line))))
    return Model(receivers, rules)
