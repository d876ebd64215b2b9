"""The grammar of a `samplicate` rule file, and of its receivers on the command line.

Purpose: text -> LegacyRule, line by line, every problem of a file in one run. The manual page samplicate(8) describes
the lines. Forms that the original program misread are errors here, and the error text has the right form. Called by
config.legacy. Raises only ConfigError (a file) and ValueError (one text); resolves no name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from samplicator.config.address import (
    EVERYTHING,
    ParsedSource,
    address_text,
    check_host_name,
    endpoint_text,
    parse_ip,
    parse_port,
    parse_source,
    parse_target,
)
from samplicator.config.fields import Family
from samplicator.config.files import MAX_FILE_BYTES, TooLarge, read_regular
from samplicator.config.legacy.services import port_by_name
from samplicator.errors import ConfigError, Problem

DEFAULT_PORT = 2000
COMMAND_LINE = "command line"
PortByName = Callable[[str], int | None]

_BLANKS = re.compile(r"[ \t\v\f\r]+")
_BLANK_SET = " \t\v\f\r"
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)
_RANGE = re.compile(r"(\d{1,18})([-+])(\d{1,18})", re.ASCII)
_BARE_IPV6 = re.compile(r"([0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*?)(/\d+)?[ \t]*:(?=[ \t]|$)")


@dataclass(frozen=True, slots=True)
class Settings:
    """The options that receivers read from now on get."""

    spoof: bool = False
    checksum: bool = True
    pause_us: int = 0
    family: Family = "any"


@dataclass(frozen=True, slots=True)
class LegacyReceiver:
    """One receiver as written; a port range is several. to: as in TOML. name: HOST/PORT."""

    name: str
    to: str
    freq: int
    ttl: int
    settings: Settings


@dataclass(frozen=True, slots=True)
class LegacyRule:
    """One rule as written. line: 0 on the command line."""

    source: ParsedSource
    receivers: tuple[LegacyReceiver, ...]
    file: str
    line: int


def parse_rule_file(path: str, settings: Settings | None = None, ports: PortByName = port_by_name) -> list[LegacyRule]:
    """The rules of the file at `path`; ConfigError with all its problems."""
    return parse_rules(read_rule_file(path), path, settings, ports)


def read_rule_file(path: str) -> bytes:
    """The bytes of a rule file; ConfigError when it cannot be read."""
    try:
        return read_regular(path, MAX_FILE_BYTES)
    except TooLarge as error:
        raise ConfigError([Problem(path, 0, "", str(error.strerror))]) from None
    except (OSError, ValueError) as error:
        why = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ConfigError([Problem(path, 0, "", why)]) from None


def parse_rules(
    data: bytes, path: str, settings: Settings | None = None, ports: PortByName = port_by_name
) -> list[LegacyRule]:
    """The rules in `data`; `path` is only used in messages."""
    settings = settings or Settings()
    rules: list[LegacyRule] = []
    problems: list[Problem] = []
    for number, text in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        whys: list[str] = []
        rule = _parse_line(text, path, number, settings, ports, whys)
        problems += [Problem(path, number, "", why) for why in whys]
        if rule:
            rules.append(rule)
    if problems:
        raise ConfigError(problems)
    return rules


def _parse_line(
    text: str, path: str, number: int, settings: Settings, ports: PortByName, whys: list[str]
) -> LegacyRule | None:
    """The rule of a line; None when there is none or when it is broken, then `whys` says all that is wrong."""
    text = text.strip(_BLANK_SET)
    if not text or text.startswith("#"):
        return None
    if bare := _BARE_IPV6.match(text):
        whys.append(f"{bare[0]!r}: an IPv6 source must be in brackets; write [{bare[1]}]{bare[2] or ''}:")
        return None
    colon = text.find(":", text.find("]") if text.startswith("[") and "]" in text else 0)
    if colon < 0 or "#" in text[:colon]:
        whys.append(
            f"{text.partition('#')[0].strip()!r}: the colon after the source is missing; write SOURCE: RECEIVER"
        )
        return None
    try:
        source = parse_rule_source(text[:colon], settings.family)
    except ValueError as error:
        whys.append(str(error))
        source = EVERYTHING
    receivers: list[LegacyReceiver] = []
    for word in _words(text[colon + 1 :]):
        try:
            receivers += parse_receiver(word, settings, ports)
        except ValueError as error:
            whys.append(str(error))
    return None if whys else LegacyRule(source, tuple(receivers), path, number)


def _words(text: str) -> Iterator[str]:
    """The receivers of a rule, up to a comment. "#" begins a comment only at the beginning of a word, as there."""
    for word in _BLANKS.split(text):
        if word.startswith("#"):
            return
        if word:
            yield word


def parse_rule_source(text: str, family: Family = "any") -> ParsedSource:
    """The left side of a rule. 0.0.0.0 with any mask and [::]/0 are everything, of both families."""
    addr, slash, mask = text.partition("/")
    addr = addr.strip(_BLANK_SET)
    if addr.startswith("["):
        if not addr.endswith("]"):
            fix = text.replace("[", "").replace("]", "").strip().partition("/")
            raise ValueError(f"{text.strip()!r}: one bracket is missing or too many; write [{fix[0]}]{fix[1]}{fix[2]}:")
        addr = addr[1:-1]
    elif ":" in addr:
        raise ValueError(f"{text.strip()!r}: an IPv6 source must be in brackets; write [2001:db8::]/32:")
    if slash and mask != mask.strip(_BLANK_SET):
        raise ValueError(f"{text!r}: there must be no blank before or after the mask; write {addr}/{mask.strip()}:")
    if not addr:
        raise ValueError("the source before the colon is missing; write 0.0.0.0 for every exporter")
    source = parse_source(addr + slash + mask)
    if addr == "0.0.0.0" or (source.family == 6 and not any(source.address + source.mask) and not source.host):
        return replace(EVERYTHING, text=source.text)
    if source.host and family != "any" and not slash:
        return replace(source, family=4 if family == "ipv4" else 6)
    return source


def parse_receiver(text: str, settings: Settings, ports: PortByName = port_by_name) -> list[LegacyReceiver]:
    """HOST[/PORT[/[FREQ][,TTL]]]: one receiver, or one for each port of a range."""
    host, rest = _receiver_host(text)
    literal = parse_ip(host)
    if literal is None:
        check_host_name(host)
    else:
        host = address_text(literal[1]) + (f"%{literal[2]}" if literal[2] else "")
    if "#" in text:
        raise ValueError(f"{text!r}: a comment must have a blank before its #; add a blank")
    port, slash, tail = rest[1:].partition("/")
    numbers = _ports(text, port, ports) if rest else range(DEFAULT_PORT, DEFAULT_PORT + 1)
    freq, ttl = _freq_ttl(text, tail) if slash else (1, 64)
    parse_target(endpoint_text(host, numbers[0]))
    kept = settings if literal is None else replace(settings, family="any")
    return [LegacyReceiver(f"{host}/{number}", endpoint_text(host, number), freq, ttl, kept) for number in numbers]


def _receiver_host(text: str) -> tuple[str, str]:
    """(host, what follows it, from the slash on)."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise ValueError(f"{text!r}: the closing bracket is missing; write [ADDRESS]/PORT")
        if rest and not rest.startswith("/"):
            raise ValueError(f"{text!r}: the port must come after a slash; write [{host}]/{rest.lstrip(':,')}")
    else:
        host, slash, tail = text.partition("/")
        rest = slash + tail
        if host.count(":") == 1:
            raise ValueError(f"{text!r}: the port must come after a slash; write {host.replace(':', '/')}{rest}")
        if ":" in host:
            raise ValueError(f"{text!r}: an IPv6 address must be in brackets; write [{host}]{rest}")
    return host, rest


def _ports(text: str, port: str, ports: PortByName) -> range:
    if _DIGITS.fullmatch(port):
        number = parse_port(port)
        return range(number, number + 1)
    if match := _RANGE.fullmatch(port):
        low = parse_port(match[1])
        high = parse_port(match[3]) if match[2] == "-" else low + int(match[3]) - 1
        if high < low:
            why = "has no port in it; write a count of 1 or more"
            if match[2] == "-":
                why = f"must begin with the lower port; write {high}-{low}"
            raise ValueError(f"{text!r}: the port range {port} {why}")
        if high > 65535:
            raise ValueError(f"{text!r}: the port range {port} ends at {high}; the last port can be 65535")
        return range(low, high + 1)
    if "," in port:
        raise ValueError(f"{text!r}: the ttl must come after the frequency; write PORT/FREQ,TTL or PORT/,TTL")
    found = ports(port) if port else None
    if found is None:
        why = f"{port!r} is not a port and not a service name" if port else "the port after the slash is missing"
        raise ValueError(f"{text!r}: {why}; write a number 1..65535")
    return range(found, found + 1)


def _freq_ttl(text: str, tail: str) -> tuple[int, int]:
    freq, comma, ttl = tail.partition(",")
    if freq and not (_DIGITS.fullmatch(freq) and 1 <= int(freq) <= 2**32 - 1):
        hint = "; write a port range as PORT-PORT or PORT+COUNT" if freq[0] in "+-" else ""
        raise ValueError(f"{text!r}: the frequency {freq!r} must be a number 1..4294967295{hint}")
    if comma and not (_DIGITS.fullmatch(ttl) and 1 <= int(ttl) <= 255):
        raise ValueError(f"{text!r}: the ttl {ttl!r} must be a number 1..255")
    return int(freq) if freq else 1, int(ttl) if comma else 64
