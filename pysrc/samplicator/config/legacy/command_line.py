"""The command line of `samplicate` and its rule files, as a configuration.

Purpose: arguments -> LegacyOptions with a Loaded that does the same as the original program (see config.occurrences).
As in the original, an option acts on what comes after it, and receivers are read last. Called by the command line and
by reload. Raises only ConfigError; resolves no name; opens only the rule files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from pydantic import ValidationError

from samplicator.config.address import EVERYTHING, endpoint_text, parse_listen, parse_port
from samplicator.config.draft import Finding, Suggest
from samplicator.config.fields import MAX_SOCKET_BUFFER
from samplicator.config.legacy.occurrences import Occurrences
from samplicator.config.legacy.rulefile import (
    COMMAND_LINE,
    DEFAULT_PORT,
    LegacyReceiver,
    LegacyRule,
    PortByName,
    Settings,
    parse_receiver,
    parse_rules,
    read_rule_file,
)
from samplicator.config.legacy.services import port_by_name
from samplicator.config.model.datapath import Datapath
from samplicator.config.model.listener import Listener
from samplicator.config.model.loaded import Loaded, Path
from samplicator.config.model.service import Service
from samplicator.config.model.whole import Config
from samplicator.config.validate import check_ipfix, check_loops
from samplicator.errors import ConfigError, Problem

LISTENER = "samplicate"
"""Name of the one listener."""
NO_RECEIVER = "You have to specify at least one receiver, exiting"
WITH_ARGUMENT = "ubtmpsxcd"
FLAGS = "hfSn46"
LONG_WITH_ARGUMENT = ("http", "control", "workers")
LONG_FLAGS = ("check", "version", "help")


T = TypeVar("T", Service, Datapath)


@dataclass(frozen=True)
class LegacyOptions:
    """What `samplicate` was asked to do. loaded is None with help and version only.

    debug: level of -d, 0 = off. timeout_ms: of -t, 0 = off. pid_file: of -m, "" = none. background: -f. check: --check.
    The configuration has the rest: http and control are "" unless given, so that only UDP sockets are opened.
    """

    loaded: Loaded | None
    debug: int = 0
    timeout_ms: int = 0
    background: bool = False
    pid_file: str = ""
    help: bool = False
    version: bool = False
    check: bool = False


def parse_command_line(argv: Sequence[str], ports: PortByName = port_by_name) -> LegacyOptions:
    """The meaning of the arguments (without the program's name). ConfigError with every problem found in them and in
    the files."""
    reading = _Reading(ports)
    reading.read(list(argv))
    if reading.ends_early and not reading.problems:
        return LegacyOptions(None, help=reading.help, version=reading.version)
    loaded = reading.finish(list(argv))
    return LegacyOptions(
        loaded,
        debug=reading.debug,
        timeout_ms=reading.timeout_ms,
        background=reading.background,
        pid_file=reading.pid_file,
        check=reading.check,
    )


@dataclass
class _Reading:
    """One pass over the arguments, in order: an option acts on what comes after it, receivers are read last."""

    ports: PortByName
    settings: Settings = field(default_factory=Settings)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    rules: list[LegacyRule] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    digest: bytes = b""
    words: list[str] = field(default_factory=list)
    service: dict[str, object] = field(default_factory=lambda: {"http": "", "control": ""})
    datapath: dict[str, object] = field(default_factory=dict)
    address: str = ""
    port: int = DEFAULT_PORT
    debug: int = 0
    timeout_ms: int = 0
    pid_file: str = ""
    background: bool = False
    help: bool = False
    version: bool = False
    check: bool = False

    @property
    def ends_early(self) -> bool:
        return self.help or self.version

    def problem(self, key: str, why: str) -> None:
        self.problems.append(Problem(COMMAND_LINE, 0, key, why))

    def warn(self, key: str, why: str) -> None:
        self.warnings.append(Problem(COMMAND_LINE, 0, key, why))

    def read(self, left: list[str]) -> None:
        """Options and receivers, interleaved as getopt allows it; "--" ends the options."""
        left.reverse()
        while left and not self.ends_early:
            word = left.pop()
            if word == "--":
                self.words += reversed(left)
                return
            if word.startswith("--"):
                self.long_option(word, left)
            elif word.startswith("-") and len(word) > 1:
                self.short_options(word[1:], left)
            else:
                self.words.append(word)

    def short_options(self, letters: str, left: list[str]) -> None:
        for position, letter in enumerate(letters):
            if letter in FLAGS:
                self.flag(letter)
                if self.ends_early:
                    return
            elif letter in WITH_ARGUMENT:
                attached = letters[position + 1 :]
                if letter == "d" and not attached and not (left and _is_number(left[-1])):
                    self.debug = (
                        1  # `-d` before a receiver, as in the article's command line: the next word is looked at again
                    )
                elif attached or left:
                    self.argument(letter, attached or left.pop())
                else:
                    self.problem(f"-{letter}", "this option needs an argument; samplicate -h shows which")
                return
            else:
                self.problem(f"-{letter}", "there is no such option; samplicate -h lists the options")

    def long_option(self, word: str, left: list[str]) -> None:
        name, equals, value = word[2:].partition("=")
        if name in LONG_FLAGS and not equals:
            if name == "check":
                self.check = True
            else:
                self.help, self.version = name == "help", name == "version"
        elif name in LONG_WITH_ARGUMENT and (equals or left):
            value = value if equals else left.pop()
            if name == "workers":
                self.datapath["workers"] = int(value) if _is_number(value) else value
            else:
                self.service[name] = value
        elif name in LONG_WITH_ARGUMENT:
            self.problem(f"--{name}", "this option needs an argument; samplicate -h shows which")
        elif name in LONG_FLAGS:
            self.problem(f"--{name}", f"this option takes no argument; write --{name} alone")
        else:
            near = Suggest()(f"--{name}", [f"--{known}" for known in (*LONG_FLAGS, *LONG_WITH_ARGUMENT)])
            self.problem(f"--{name}", f"there is no such option{near or '; samplicate -h lists the options'}")

    def flag(self, letter: str) -> None:
        if letter == "h":
            self.help = True
        elif letter == "f":
            self.background = True
        elif letter in "46":
            self.settings = replace(self.settings, family="ipv4" if letter == "4" else "ipv6")
        else:
            already = self.settings.spoof if letter == "S" else not self.settings.checksum
            files = ", ".join(dict.fromkeys(rule.file for rule in self.rules if rule.receivers))
            if files and not already:
                what = "are not spoofed" if letter == "S" else "keep their checksums"
                self.warn(
                    f"-{letter}",
                    f"this option comes after -c, so copies to receivers of {files} {what}; write -{letter} before -c",
                )
            self.settings = replace(
                self.settings,
                spoof=self.settings.spoof or letter == "S",
                checksum=self.settings.checksum and letter != "n",
            )

    def argument(self, letter: str, value: str) -> None:
        key = f"-{letter}"
        if letter == "c":
            self.rule_file(value)
        elif letter == "m":
            self.pid_file = value
        elif letter == "s":
            self.address = value
        elif letter == "p":
            self.port = self.service_port(value) or self.port
        elif letter == "d":
            self.debug = abs(self.number(key, value, -(2**31), 2**31 - 1))
        elif letter == "t":
            self.timeout_ms = self.number(key, value, 0, 2**31 - 1)
        elif letter == "x":
            self.settings = replace(self.settings, pause_us=self.number(key, value, 0, 1_000_000))
        elif letter == "b":
            size = self.number(key, value, 1, MAX_SOCKET_BUFFER, 1)
            self.datapath.update(receive_buffer=size, send_buffer=size)
        elif letter == "u":
            self.datapath["max_datagram"] = min(self.number(key, value, 1, 2**31 - 1, 1), 65535)

    def number(self, key: str, value: str, low: int, high: int, fallback: int = 0) -> int:
        if _is_number(value) and low <= int(value) <= high:
            return int(value)
        self.problem(key, f"{value!r} must be a number" + (f" {low}..{high}" if low >= 0 else ""))
        return fallback

    def service_port(self, value: str) -> int | None:
        try:
            found = parse_port(value) if _is_number(value) else self.ports(value)
        except ValueError as error:
            self.problem("-p", str(error))
            return None
        if found is None:
            self.problem("-p", f"{value!r} is not a port and not a service name; write a number 1..65535")
        return found

    def rule_file(self, path: str) -> None:
        self.files.append(path)
        try:
            data = read_rule_file(path)
            self.digest += hashlib.sha256(data).digest()
            self.rules += parse_rules(data, path, replace(self.settings, pause_us=0), self.ports)
        except ConfigError as error:
            self.problems += error.problems

    def finish(self, argv: list[str]) -> Loaded:
        """The configuration, once all is read."""
        receivers: list[LegacyReceiver] = []
        for word in self.words:
            try:
                receivers += parse_receiver(word, self.settings, self.ports)
            except ValueError as error:
                self.problem("", str(error))
        service = self.checked(Service, self.service)
        datapath = self.checked(Datapath, self.datapath)
        listener = self.listener()
        if not self.problems and not receivers and not any(rule.receivers for rule in self.rules):
            self.problem("", NO_RECEIVER)
        if self.problems or service is None or datapath is None or listener is None:
            raise ConfigError(self.problems, self.warnings)
        if receivers:
            self.rules.append(LegacyRule(EVERYTHING, tuple(receivers), COMMAND_LINE, 0))
        self.doubts(receivers)
        build = Occurrences(self.rules)
        config = Config(
            service=service, datapath=datapath, listener=[listener], receiver=build.receivers, rule=build.rules
        )
        locate = partial(_locate, build.places)
        for finding in (*check_loops(config.listener, config.receiver), *check_ipfix(config.listener, config.receiver)):
            self.warnings.append(_warning(finding, config, locate))
        digest = hashlib.sha256("\0".join(argv).encode("utf-8", "backslashreplace") + b"\0" + self.digest)
        return Loaded(
            config, tuple(build.sources), self.warnings, tuple(self.files), digest.hexdigest(), "legacy", locate
        )

    def checked(self, model: type[T], values: dict[str, object]) -> T | None:
        try:
            return model.model_validate(values)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                self.problem(f"--{item['loc'][0]}", str(item.get("ctx", {}).get("error", item["msg"])))
            return None

    def listener(self) -> Listener | None:
        """-s and -p. Without -s: every IPv4 address, or with -6 every IPv6 address."""
        address = self.address.removeprefix("[").removesuffix("]")
        if not address:
            address = "::" if self.settings.family == "ipv6" else "0.0.0.0"
        listen = endpoint_text(address, self.port)
        try:
            endpoint = parse_listen(listen)
        except ValueError as error:
            self.problem("-s", str(error))
            return None
        family = "any" if endpoint.literal else self.settings.family
        return Listener(name=LISTENER, listen=[listen], family=family)

    def doubts(self, receivers: list[LegacyReceiver]) -> None:
        """Warnings about input that is valid but probably a mistake."""
        for rule in self.rules:
            if rule.source.never:
                why = f"{rule.source.text} has bits outside its mask and never matches; write {rule.source.corrected}"
                self.warnings.append(Problem(rule.file, rule.line, "", why))
            if not rule.receivers:
                why = "the rule has no receiver and no effect; write receivers after the colon"
                self.warnings.append(Problem(rule.file, rule.line, "", why))
        if self.settings.pause_us and len(self.rules) > bool(receivers):
            self.warn("-x", "this option acts only on receivers of the command line, not on those of rule files")
        if self.settings.pause_us and receivers:
            self.warn("-x", "the wait after each copy delays all receivers and can lose datagrams")
        if not self.settings.checksum and not self.settings.spoof:
            self.warn(
                "-n", "this option acts only on spoofed copies (-S); the kernel writes the checksums of all others"
            )
        dry = [r for rule in self.rules for r in rule.receivers if r.settings.spoof and not r.settings.checksum]
        if any(r.to.startswith("[") for r in dry):
            self.warn("-n", "IPv6 copies keep their checksums, because IPv6 needs them (RFC 8200 section 8.1)")


def _is_number(text: str) -> bool:
    digits = text[1:] if text[:1] in ("-", "+") else text
    return digits.isascii() and digits.isdigit() and len(digits) <= 18


def _locate(places: dict[Path, tuple[str, int]], path: Path) -> tuple[str, int]:
    for length in range(len(path), 0, -1):
        if path[:length] in places:
            return places[path[:length]]
    return COMMAND_LINE, 0


def _warning(finding: Finding, config: Config, locate: Callable[[Path], tuple[str, int]]) -> Problem:
    """A finding for a command line: with the receiver in place of a path."""
    file, line = locate(finding.path)
    number = finding.path[1]
    return Problem(file, line, config.receiver[number].name if isinstance(number, int) else "", finding.why)
