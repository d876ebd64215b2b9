"""Fuzz of both readers, round trips through TOML, lines of values, the meaning of rule files against a slow model."""

from __future__ import annotations

import ipaddress
import tomllib
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samplicator.config.address import MAPPED, ParsedSource
from samplicator.config.convert import to_toml
from samplicator.config.diff import diff
from samplicator.config.legacy import parse_command_line
from samplicator.config.lines import Lines
from samplicator.config.model import Config, Loaded, json_schema, parsed_sources
from samplicator.config.rulefile import Settings, parse_rules
from samplicator.config.toml import parse_toml
from samplicator.errors import ConfigError, Problem

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# --- texts that are nearly right -------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *[
            "1.2.3.4",
            "10.0.0.0",
            "0.0.0.0",
            "::1",
            "2001:db8::",
            "fe80::1%lo",
            "host.example",
            "syslog",
            "9995",
            "0",
            "70000",
            "24",
            "128",
        ],
        *["255.0.255.0", "64", "010", "/", ":", "[", "]", ",", "-", "+", "#", "%", "é"],
        *(": ", " ", "\t", "\r", "\n", "\0"),
    ]
)
RULE_TEXT = st.lists(PIECES, max_size=30).map("".join)
OPTION = st.sampled_from(
    [
        "-S",
        "-n",
        "-d",
        "-x",
        "-b",
        "-u",
        "-p",
        "-s",
        "-t",
        "-m",
        "-4",
        "-6",
        "-f",
        "-c",
        "--",
        "--http",
        "--workers",
        "--control=/x",
        "--check",
        "-h",
        "-q",
        "-",
        "--x=",
        "-dS",
        "-p9",
    ]
)
TOML_KEYS = st.sampled_from(
    [
        "name",
        "to",
        "from",
        "listen",
        "listener",
        "receiver",
        "rule",
        "service",
        "datapath",
        "stop",
        "checksum",
        "workers",
        "freq",
        "ttl",
        "spoof",
        "source",
        "http",
        "control",
        "cpus",
        "multicast",
        "interface",
        "family",
        "engine",
        "x",
    ]
)
TOML_WORDS = st.sampled_from(
    [
        "a",
        "b",
        "192.0.2.1:9",
        "[::1]:9",
        "0.0.0.0:2055",
        "0.0.0.0:9-12",
        "10.0.0.0/8",
        "::/0",
        "auto",
        "keep",
        "64MiB",
        "",
    ]
)
TOML_VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-5, 70000), TOML_WORDS, st.text(max_size=8), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TOML_KEYS, inner, max_size=3)),
    max_leaves=8,
)


def toml_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08X}" if not c.isalnum() else c for c in value) + '"'
    if isinstance(value, list):
        return "[" + ",\n ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value)


@st.composite
def toml_texts(draw: Any) -> str:
    """Tables and keys of the configuration with values that may be anything."""
    lines = []
    for _ in range(draw(st.integers(0, 6))):
        table = draw(
            st.sampled_from(["[service]", "[datapath]", "[[listener]]", "[[receiver]]", "[[rule]]", "[rule.x]"])
        )
        lines.append(table)
        for key, value in draw(st.dictionaries(TOML_KEYS, TOML_VALUES, max_size=4)).items():
            lines.append(f"{key} = {toml_value(value)}  # {draw(st.sampled_from(['', 'x = [']))}")
    return "\n".join(lines)


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
    lines = to_toml(Loaded(data.draw(CONFIGS), {})).splitlines()
    number = data.draw(st.sampled_from([n for n, line in enumerate(lines) if " = " in line and line[0] != "#"]))
    value = toml_value(data.draw(TOML_VALUES)).replace("\n", "")
    lines[number] = f"{lines[number].partition(' = ')[0]} = {value}"
    survives(parse_toml, "\n".join(lines).encode(), "f")


# --- good configurations ---------------------------------------------------------------------------


def entries(model: dict[str, Any], **optional: Any) -> Any:
    return st.fixed_dictionaries(model, optional=optional)


NAMES = st.sampled_from(["a", "b", "nfdump", 'q"\\', "192.0.2.1/9#2", "é x"])
LISTENERS = st.lists(
    entries(
        {"name": NAMES},
        interface=st.sampled_from(["", "eth1"]),
        multicast=st.just(["239.1.1.1"]),
        family=st.sampled_from(["any", "ipv4"]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda listener: listener["name"],
)
RECEIVERS = st.lists(
    st.one_of(
        entries(
            {"name": NAMES, "to": st.sampled_from(["192.0.2.1:9995", "h.example:1"])},
            checksum=st.booleans(),
            ttl=st.sampled_from([1, 64, 255, "keep"]),
            tos=st.sampled_from([0, 255, "keep"]),
            spoof=st.booleans(),
            engine=st.sampled_from(["auto", "raw"]),
            freq=st.sampled_from([1, 2, 2**32 - 1]),
        ),
        entries(
            {"name": NAMES, "to": st.just("[2001:db8::1%eth0]:9")},
            source=st.sampled_from(["", "2001:db8::9", "[::1]:8"]),
            engine=st.sampled_from(["udp"]),
            pause_us=st.sampled_from([0, 9]),
        ),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda receiver: receiver["name"],
)
FROM = st.lists(
    st.sampled_from(["10.0.0.0/8", "::/0", "0.0.0.0/0", "10.0.5.0/255.0.255.0", "h.example", "2001:db8::1"]), min_size=1
)


@st.composite
def configs(draw: Any) -> Config:
    listeners, receivers = draw(LISTENERS), draw(RECEIVERS)
    for index, listener in enumerate(listeners):
        listener["listen"] = [f"0.0.0.0:{2055 + index}", f"[::]:{100 * index + 5000}-{100 * index + 5009}"]
    names = st.lists(st.sampled_from([receiver["name"] for receiver in receivers]), unique=True)
    heard = st.lists(st.sampled_from([listener["name"] for listener in listeners]), unique=True)
    rules = st.lists(entries({"to": names}, **{"from": FROM, "listener": heard, "stop": st.booleans()}), max_size=4)
    service = entries({}, http=st.sampled_from(["", "0.0.0.0:9", "[::1]:9"]), control=st.just("/a b/\\c"),
                      log_format=st.just("json"), resolve_interval=st.sampled_from([0.5, 1e3, 7]))  # fmt: skip
    datapath = entries({}, workers=st.sampled_from([1, 2, "auto"]), cpus=st.just([3, 1]), batch=st.just(512),
                       receive_buffer=st.sampled_from([1, 4096, "3MB", "7 KiB", "1GiB"]))  # fmt: skip
    return Config.model_validate(
        {"listener": listeners, "receiver": receivers, "rule": draw(rules), "service": draw(service),
         "datapath": draw(datapath)}
    )  # fmt: skip


CONFIGS = configs()


@FUZZ
@given(CONFIGS)
def test_good_configurations_round_trip(config: Config) -> None:
    loaded = Loaded(config, parsed_sources(config))
    check_round_trip(loaded)
    again = parse_toml(to_toml(loaded).encode(), "f")
    assert again.sources == loaded.sources
    assert again.origin == "toml"


# --- lines -----------------------------------------------------------------------------------------


def paths_of(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, item in value.items():
            found |= paths_of(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found |= paths_of(item, (*path, index))
    return found


@FUZZ
@given(toml_texts())
@example(
    'a.b = 1\n[a.c]\n"x\\u0041" = """\n]\n"""\n[[l]]\n[l.m]\ny = \'\'\'\n\'\'\'\n[[l]]\nz = {p.q = 1, r = [1.5, [2]]}\n'
)
@example("d = 1979-05-27 07:32:00.5\nl = [ # ]\n 1, # ,\n\n 2\n]\n'k' . \"m\" = 0x1F")
def test_every_value_has_its_line(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert Lines(text).paths() == paths_of(data)


def test_lines_of_entries() -> None:
    text = '# c\n[[rule]]\nto = [\n  "a", # x\n\n  "b", "c",\n]\nfrom = """\n"""\nstop = true\n'
    lines = Lines(text)
    wanted = {
        ("rule", 0): 2,
        ("rule", 0, "to"): 3,
        ("rule", 0, "to", 0): 4,
        ("rule", 0, "to", 2): 6,
        ("rule", 0, "stop"): 10,
    }
    assert {path: lines.of(path) for path in wanted} == wanted
    assert lines.of(("rule", 0, "nothing")) == 2
    assert lines.of(("nothing",)) == 0


# --- round trips -----------------------------------------------------------------------------------


def alive(loaded: Loaded) -> Config:
    """The configuration without the rules that can never match: TOML refuses those, convert makes comments of them."""
    rules = [rule for index, rule in enumerate(loaded.config.rule) if not any(s.never for s in loaded.sources[index])]
    return loaded.config.model_copy(update={"rule": rules})


def check_round_trip(loaded: Loaded) -> None:
    text = to_toml(loaded)
    again = parse_toml(text.encode(), "again")
    assert again.config == alive(loaded), text
    assert again.sources.keys() == parsed_sources(again.config).keys()


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
    import samplicator.config.legacy as module

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
    assert "perhaps 10.1.2.0/24 was meant" in text
    assert "# f:1" in text


# --- diff ------------------------------------------------------------------------------------------


def config(**tables: Any) -> Config:
    return Config.model_validate(tables)


def receiver(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "to": "192.0.2.1:9", **keys}


DIFFS: list[dict[str, Any]] = [
    {"description": "nothing", "in": ({}, {}), "expected": "nothing changed"},
    {
        "description": "receivers",
        "in": (
            {"receiver": [receiver("a"), receiver("b"), receiver("c")]},
            {"receiver": [receiver("c"), receiver("b", ttl=9), receiver("d")]},
        ),
        "expected": "receivers +d -a ~b",
    },
    {
        "description": "rules and live settings",
        "in": ({}, {"rule": [{"to": []}], "datapath": {"workers": 2}}),
        "expected": "rules changed; datapath.workers: 1 -> 2",
    },
    {
        "description": "settings that need a restart",
        "in": ({}, {"service": {"http": "", "log_level": "debug"}}),
        "expected": "service.log_level: info -> debug; service.http: 127.0.0.1:9420 ->  (needs a restart)",
    },
]


@pytest.mark.parametrize("case", DIFFS, ids=[case["description"] for case in DIFFS])
def test_diff(case: dict[str, Any]) -> None:
    old, new = (config(**tables) for tables in case["in"])
    change = diff(old, new)
    assert change.text() == case["expected"]
    assert bool(change) == (old != new)


def test_diff_keeps() -> None:
    change = diff(config(receiver=[receiver("a"), receiver("b")]), config(receiver=[receiver("b"), receiver("a")]))
    assert change.receivers.kept == ("b", "a")
    assert not change


# --- schema ----------------------------------------------------------------------------------------


def test_schema_is_json_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for argv in (["192.0.2.1"], ["-Sn", "-b", "65536", "192.0.2.1/9/3,5"]):
        loaded = parse_command_line(argv).loaded
        assert loaded is not None
        validator.validate(tomllib.loads(to_toml(loaded)))
    assert list(validator.iter_errors({"rule": [{"too": []}], "datapath": {"workers": 0}}))
