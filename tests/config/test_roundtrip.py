"""Fuzz of both readers, round trips through TOML, the meaning of rule files against a slow model."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import example, given
from hypothesis import strategies as st
from samplicator.config.address import MAPPED, ParsedSource
from samplicator.config.convert import to_toml
from samplicator.config.legacy.command_line import parse_command_line
from samplicator.config.legacy.rulefile import Settings, parse_rules
from samplicator.config.model.loaded import Loaded
from samplicator.config.model.rule import sources_of
from samplicator.config.model.service import Service
from samplicator.config.model.whole import Config
from samplicator.config.toml.load import parse_toml
from samplicator.errors import ConfigError, Problem
from support.texts import CONFIGS, FUZZ, OPTION, RULE_TEXT, TOML_VALUES, toml_texts, toml_value

T = TypeVar("T")


def survives(read: Callable[..., T], *arguments: Any) -> tuple[T | None, list[Problem]]:
    """What `read` returns, or the problems of its ConfigError. Anything else it raises fails the test."""
    try:
        return read(*arguments), []
    except ConfigError as error:
        return None, error.problems


@FUZZ
@given(RULE_TEXT)
@example("[::1] 1.2.3.4: 1.1.1.1")
@example("[fe80::1%\x7f]: [fe80::1%\x7f]/9")
def test_rule_files_raise_only_config_error(text: str) -> None:
    rules, problems = survives(parse_rules, text.encode(), "f")
    assert (rules is None) == bool(problems)
    for problem in problems:
        assert problem.file == "f"
        assert 1 <= problem.line <= text.count("\n") + 1
        assert "\n" not in str(problem)


@FUZZ
@given(st.binary(max_size=80))
def test_rule_files_of_any_bytes(data: bytes) -> None:
    survives(parse_rules, data, "f", Settings(spoof=True))


@FUZZ
@given(st.lists(st.one_of(OPTION, RULE_TEXT.filter(lambda t: not t.startswith("/")), st.text(max_size=5)), max_size=8))
def test_command_lines_raise_only_config_error(argv: list[str]) -> None:
    options, _ = survives(parse_command_line, argv)
    if options and options.loaded:
        check_round_trip(options.loaded)


@FUZZ
@given(toml_texts())
def test_toml_raises_only_config_error(text: str) -> None:
    loaded, problems = survives(parse_toml, text.encode(), "f")
    assert all(0 <= problem.line <= text.count("\n") + 1 for problem in problems)
    if loaded:
        check_round_trip(loaded)


@FUZZ
@given(st.one_of(st.binary(max_size=60), RULE_TEXT.map(str.encode)))
def test_toml_of_any_bytes(data: bytes) -> None:
    survives(parse_toml, data, "f")


@FUZZ
@given(st.data())
def test_toml_with_one_broken_value(data: st.DataObject) -> None:
    """A good file with one value replaced by anything: an error on the line of that value, or a configuration."""
    config = data.draw(CONFIGS)
    lines = to_toml(Loaded(config, tuple(sources_of(rule) for rule in config.rule))).splitlines()
    number = data.draw(st.sampled_from([n for n, line in enumerate(lines) if " = " in line and line[0] != "#"]))
    value = toml_value(data.draw(TOML_VALUES)).replace("\n", "")
    lines[number] = f"{lines[number].partition(' = ')[0]} = {value}"
    survives(parse_toml, "\n".join(lines).encode(), "f")


@FUZZ
@given(CONFIGS)
def test_good_configurations_round_trip(config: Config) -> None:
    loaded = Loaded(config, tuple(sources_of(rule) for rule in config.rule))
    check_round_trip(loaded)
    again = parse_toml(to_toml(loaded).encode(), "f")
    assert again.sources == loaded.sources
    assert again.origin == "toml"


# --- round trips -----------------------------------------------------------------------------------


def alive(loaded: Loaded) -> Config:
    """The configuration without the rules that can never match: TOML refuses those, convert makes comments of them.
    Converted from samplicate it has the pages and the control socket that samplicate does not have.
    """
    rules = [rule for index, rule in enumerate(loaded.config.rule) if not any(s.never for s in loaded.sources[index])]
    update: dict[str, object] = {"rule": rules}
    if loaded.origin == "legacy" and not (loaded.config.service.http or loaded.config.service.control):
        opened = {key: Service.model_fields[key].default for key in ("http", "control")}
        update["service"] = loaded.config.service.model_copy(update=opened)
    return loaded.config.model_copy(update=update)


def check_round_trip(loaded: Loaded) -> None:
    text = to_toml(loaded)
    again = parse_toml(text.encode(), "again")
    assert again.config == alive(loaded), text
    assert len(again.sources) == len(again.config.rule)


OCTET = st.sampled_from([0, 1, 10, 128, 255])
MASK4 = st.one_of(
    st.integers(0, 32).map(str), st.lists(OCTET, min_size=4, max_size=4).map(lambda m: ".".join(map(str, m)))
)
SOURCE4 = st.tuples(st.lists(OCTET, min_size=4, max_size=4), st.none() | MASK4).map(
    lambda t: ".".join(map(str, t[0])) + (f"/{t[1]}" if t[1] else "")
)
SOURCE6 = st.tuples(st.sampled_from(["::", "2001:db8::", "2001:db8:1::", "::1"]), st.none() | st.integers(0, 128)).map(
    lambda t: f"[{t[0]}]" + ("" if t[1] is None else f"/{t[1]}")
)
RECEIVER = st.tuples(
    st.sampled_from(["192.0.2.1", "192.0.2.2", "[2001:db8::1]", "host.example"]),
    st.sampled_from(["", "/9995", "/syslog", "/9995-9997", "/9995+2", "/9995/3", "/9995/,5", "/9995/2,5"]),
).map("".join)
RULE = st.tuples(st.one_of(SOURCE4, SOURCE6, st.just("h.example")), st.lists(RECEIVER, max_size=3)).map(
    lambda t: f"{t[0]}: {' '.join(t[1])}"
)


def legacy(lines: list[str], *argv: str) -> Loaded:
    """What `samplicate ARGV -c FILE 192.0.2.9` means, with the file in memory."""
    import samplicator.config.legacy.command_line as module

    original = module.read_rule_file
    module.read_rule_file = lambda path: "\n".join(lines).encode()  # type: ignore[assignment]
    try:
        loaded = parse_command_line([*argv, "-c", "f", "192.0.2.9"]).loaded
    finally:
        module.read_rule_file = original
    assert loaded is not None
    return loaded


@FUZZ
@given(st.lists(RULE, max_size=6), st.sampled_from([(), ("-S",), ("-Sn",), ("-6",), ("-b", "65536")]))
def test_rule_files_round_trip_through_toml(lines: list[str], argv: tuple[str, ...]) -> None:
    check_round_trip(legacy(lines, *argv))


def matches(source: ParsedSource, exporter: int) -> bool:
    mapped = int.from_bytes(MAPPED, "big") << 32
    family = 4 if exporter >> 32 == mapped >> 32 else 6
    same = exporter & int.from_bytes(source.mask, "big") == int.from_bytes(source.address, "big")
    return source.family in (0, family) and same


@FUZZ
@given(
    st.lists(RULE.filter(lambda r: "h.example" not in r.partition(":")[0]), min_size=1, max_size=8),
    st.lists(OCTET, min_size=4, max_size=4) | st.sampled_from(["2001:db8::", "2001:db8:1::", "::1"]),
)
def test_the_union_sends_what_the_classic_program_sent(lines: list[str], exporter: list[int] | str) -> None:
    """There: every matching rule sends to each of its receivers. Here: the union of receivers, one copy each."""
    if isinstance(exporter, str):
        address = int(ipaddress.IPv6Address(exporter))
    else:
        address = int.from_bytes(MAPPED + bytes(exporter), "big")
    classic: Counter[tuple[str, int, int]] = Counter()
    for rule in parse_rules("\n".join(lines).encode(), "f"):
        if matches(rule.source, address):
            classic.update((receiver.to, receiver.freq, receiver.ttl) for receiver in rule.receivers)
    classic[("192.0.2.9:2000", 1, 64)] += 1
    loaded = legacy(lines)
    named = {receiver.name: receiver for receiver in loaded.config.receiver}
    assert len(named) == len(loaded.config.receiver)
    union: dict[str, int] = Counter()
    for index, rule in enumerate(loaded.config.rule):
        if any(matches(source, address) for source in loaded.sources[index]):
            for name in rule.to:
                union[name] += 1
    assert Counter((named[n].to, named[n].freq, int(named[n].ttl)) for n in union) == classic
    assert all(count == 1 or named[name].freq == 1 for name, count in union.items())
    assert max(union.values()) == 1, "a shared receiver was reached by two rules"


def test_disjoint_rules_share_their_receiver() -> None:
    loaded = legacy([f"10.0.{i}.0/24: 192.0.2.1/9" for i in range(200)])
    assert [receiver.name for receiver in loaded.config.receiver] == ["192.0.2.1/9", "192.0.2.9/2000"]
    loaded = legacy(["10.0.0.0/24: 192.0.2.1/9/2", "10.0.1.0/24: 192.0.2.1/9/2"])
    assert len(loaded.config.receiver) == 3, "each rule has its own countdown"


def test_convert_comments_out_what_never_matches() -> None:
    text = to_toml(legacy(["10.1.2.3/24: 192.0.2.1/9"]))
    assert '# from = ["10.1.2.3/24"]' in text
    assert "never matches; you perhaps mean 10.1.2.0/24." in text
    assert "# f:1" in text


def test_convert_of_a_rule_file_alone_says_what_is_missing() -> None:
    loaded = legacy(["10.0.0.0/8: 192.0.2.1/9"])
    assert "samplicator convert -- -S -p 2055 -c RULEFILE" in to_toml(loaded, rules_only=True)
    assert "convert --" not in to_toml(loaded)


def test_convert_leaves_pages_and_control_socket_on() -> None:
    """The commands that the manual names work with a converted file; how to switch them off stands in a comment."""
    text = to_toml(legacy(["10.0.0.0/8: 192.0.2.1/9"]))
    service = parse_toml(text.encode(), "again").config.service
    assert (service.http, service.control) == (Service().http, Service().control)
    assert '# http = ""' in text
