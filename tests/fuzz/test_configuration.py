"""Both configuration parsers under arbitrary input: a Loaded or a ConfigError with a place, nothing else, in bounded
time.

Three kinds of input: noise, good files with damage, and generated good files, whose meaning is compared with the
oracle (tests/model.py) through planner and compiled match.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from model import from_rule_file, from_toml
from samplicator._fastpath import ENGINE_UDP, Plan, Tx, TxCounters
from samplicator.config.convert import to_toml
from samplicator.config.legacy.command_line import parse_command_line
from samplicator.config.legacy.rulefile import Settings, parse_rules
from samplicator.config.model.loaded import Loaded
from samplicator.config.toml.load import parse_toml
from samplicator.errors import ConfigError
from samplicator.plan.planner import compile
from samplicator.plan.spec import Capabilities, PlanSpec

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
THOROUGH = settings(QUICK, max_examples=400)

GOOD_TOML = """
[service]
http = "127.0.0.1:9420"
[datapath]
workers = 2
receive_buffer = "64MiB"
[[listener]]
name = "netflow"
listen = ["0.0.0.0:2055", "[::]:2055", "0.0.0.0:9990-9999"]
[[receiver]]
name = "nfdump"
to = "192.0.2.10:9995"
spoof = true
freq = 3
ttl = "keep"
[[rule]]
from = ["10.0.0.0/8", "2001:db8::/32", "10.0.5.0/255.0.255.0"]
listener = ["netflow"]
to = ["nfdump"]
stop = false
"""
GOOD_RULES = """# rules
1.2.3.4/30: 6.7.8.9/1234
1.2.3.4/255.255.255.252: 6.7.8.9/1234/10,237
0.0.0.0/0.0.0.0: 10.1.1.1/1162
[::]/0: [2001:db8::1]/1234/10,34
[2001:db8:0:4::]: [2001:db8::1]
1.2.3.4: 6.7.8.9/7000-7002/10,5 5.6.7.8/9000+3   # more
"""
PIECES = """: / ,
# [ ] [[ ]] = " ' { } - + . 0 1 255 65535 65536 99999999999999999999 1.2.3.4 ::1 [::] 0.0.0.0 /0 /33 /129
syslog host.example name to from listen rule receiver listener stop true keep ü \\u"""
FRAGMENTS = st.sampled_from([*PIECES.split(), "\n", " ", "\t", "\r", "\0"])
NOISE = st.one_of(st.binary(max_size=300), st.lists(FRAGMENTS, max_size=60).map(lambda parts: "".join(parts).encode()))


@st.composite
def damaged(draw: st.DrawFn, good: str) -> bytes:
    """A good text with one to four cuts, insertions or doublings."""
    data = bytearray(good.encode())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 12)))
        piece = draw(
            st.one_of(st.just(b""), st.binary(max_size=6), FRAGMENTS.map(str.encode), st.just(bytes(data[at:end])))
        )
        data[at:end] = piece if draw(st.booleans()) else bytes(data[at:end]) + piece
    return bytes(data)


def check_error(error: ConfigError, name: str, data: bytes) -> None:
    """Every problem names the file, a line of it (0: none) and says something in one line."""
    lines = data.count(b"\n") + data.count(b"\r") + 1
    for problem in error.problems:
        assert problem.file == name
        assert 0 <= problem.line <= lines
        assert problem.why
        assert "\n" not in str(problem)


def compiled(loaded: Loaded) -> PlanSpec | None:
    """What passed the parser goes through the planner as well: a plan, or a ConfigError."""
    try:
        return compile(loaded, {}, Capabilities(net_raw=True))
    except ConfigError:
        return None


@QUICK
@given(st.one_of(NOISE, damaged(GOOD_TOML)))
@example(GOOD_TOML.encode())
@example(b'[[rule]]\nto = ["' + b"\\ud800" + b'"]')
def test_any_toml_ends_in_a_configuration_or_in_problems(data: bytes) -> None:
    try:
        loaded = parse_toml(data, "some.toml")
    except ConfigError as error:
        check_error(error, "some.toml", data)
    else:
        compiled(loaded)


@QUICK
@given(st.one_of(NOISE, damaged(GOOD_RULES)))
@example(GOOD_RULES.encode())
def test_any_rule_file_ends_in_rules_or_in_problems(data: bytes) -> None:
    try:
        rules = parse_rules(data, "some.rules", Settings(spoof=True), lambda name: 514 if name == "syslog" else None)
    except ConfigError as error:
        check_error(error, "some.rules", data)
    else:
        for rule in rules:
            assert all(1 <= receiver.ttl <= 255 and receiver.freq >= 1 for receiver in rule.receivers)


OPTIONS = """-S -n -p 2055 -s :: -d -x 5 -t -b -u -f -4 -6 -m -- --http --control=/x --workers --check
1.2.3.4/2055 [::1]/9000/2,3 1.2.3.4/1-3"""
WORDS = st.one_of(st.sampled_from(OPTIONS.split()), st.text(max_size=12))


@QUICK
@given(st.lists(WORDS, max_size=10))
def test_any_command_line_ends_in_options_or_in_problems(words: list[str]) -> None:
    try:
        options = parse_command_line(words, lambda name: None)
    except ConfigError as error:
        if not all(problem.why and problem.file for problem in error.problems):
            raise
    else:
        if options.loaded is not None:
            compiled(options.loaded)


# --- meaning ---------------------------------------------------------------------------------------------------------

IPV4 = st.one_of(
    st.sampled_from(["10.0.5.1", "10.9.5.7", "10.0.0.0", "192.0.2.1", "255.255.255.255", "0.0.0.1", "172.16.3.3"]),
    st.integers(1, 2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number))),
)
IPV6 = st.one_of(
    st.sampled_from(["2001:db8::1", "2001:db8:0:4::", "2001:db8:8000::1", "fe80::1", "ff02::1", "::1"]),
    st.integers(2**33, 2**128 - 1).map(lambda number: str(ipaddress.IPv6Address(number))),
)
EXPORTER = st.one_of(IPV4, IPV6, IPV4.map(lambda text: "::ffff:" + text))


@st.composite
def source(draw: st.DrawFn) -> str:
    """A source without bits outside its mask (those never match, and TOML refuses them)."""
    if draw(st.booleans()):
        address, width = int(ipaddress.IPv4Address(draw(IPV4))), 32
        if draw(st.integers(0, 3)) == 0:
            mask = draw(st.integers(0, 2**32 - 1))
            return f"{ipaddress.IPv4Address(address & mask)}/{ipaddress.IPv4Address(mask)}"
    else:
        address, width = int(ipaddress.IPv6Address(draw(IPV6))), 128
    length = draw(st.integers(0, width))
    if width == 128 and length < 96 and address >> 32 == 0xFFFF:
        length = 128
    masked = address >> (width - length) << (width - length) if length else 0
    text = str(ipaddress.IPv4Address(masked) if width == 32 else ipaddress.IPv6Address(masked))
    return f"{text}/{length}" if length < width or draw(st.booleans()) else text


def quoted(items: list[str]) -> str:
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"


@st.composite
def toml_text(draw: st.DrawFn) -> str:
    text = ""
    for number, name in enumerate(("one", "two")):
        text += f'[[listener]]\nname = "{name}"\nlisten = ["0.0.0.0:{2055 + number}", "[::]:{2055 + number}"]\n'
    names = [f"r{number}" for number in range(draw(st.integers(1, 70)))]
    for number, name in enumerate(names):
        text += f'[[receiver]]\nname = "{name}"\nto = "192.0.2.9:{9000 + number}"\n'
    for _ in range(draw(st.integers(1, 8))):
        stop = draw(st.booleans())
        to = draw(st.lists(st.sampled_from(names), min_size=0 if stop else 1, max_size=5))
        text += f"[[rule]]\nto = {quoted(to)}\nstop = {str(stop).lower()}\n"
        if draw(st.integers(0, 4)):
            text += f"from = {quoted(draw(st.lists(source(), min_size=1, max_size=5)))}\n"
        if draw(st.booleans()):
            text += f"listener = {quoted(draw(st.lists(st.sampled_from(['one', 'two']), min_size=1, max_size=2)))}\n"
    return text


def dry(spec: PlanSpec) -> Plan:
    """The compiled form, without sockets."""
    txs = [Tx(ENGINE_UDP, -1, TxCounters(), row.udp.address, row.udp.port) for row in spec.receivers]
    rules = [
        ([(src.family, src.address, src.mask) for src in rule.sources], rule.listeners, rule.receivers, rule.stop)
        for rule in spec.rules
    ]
    return Plan(0, [], txs, rules)


def packed(exporter: str) -> bytes:
    return ipaddress.ip_address(exporter).packed


@THOROUGH
@given(toml_text(), st.lists(EXPORTER, min_size=1, max_size=8))
def test_a_toml_configuration_means_what_the_oracle_says(text: str, exporters: list[str]) -> None:
    spec = compile(parse_toml(text.encode(), "some.toml"), {}, Capabilities(net_raw=True))
    plan, model = dry(spec), from_toml(text)
    aimed = [rule.sources[0].address for rule in model.rules if rule.sources and rule.sources[0].address is not None]
    for exporter in [*exporters, *map(str, aimed)]:
        for index, listener in enumerate(("one", "two")):
            fired, receivers, denied = plan.route(packed(exporter), index)
            names = [spec.receivers[number].name for number in receivers]
            wanted = model.route(exporter, listener)
            assert (list(fired), sorted(names), denied) == (wanted[0], sorted(wanted[1]), wanted[2]), (
                exporter,
                listener,
            )


@st.composite
def rule_text(draw: st.DrawFn) -> str:
    text = ""
    for _ in range(draw(st.integers(1, 8))):
        src = draw(st.one_of(source(), st.just("0.0.0.0"), st.just("0.0.0.0/32")))
        if ":" in src:
            host, _, length = src.partition("/")
            src = f"[{host}]" + (f"/{length}" if length else "")
        words = []
        for _ in range(draw(st.integers(0, 4))):
            host = draw(st.sampled_from(["192.0.2.1", "192.0.2.2", "[2001:db8::9]"]))
            port = draw(st.sampled_from(["9000", "9001", "9000-9003", "9001+2"]))
            options = draw(st.sampled_from(["", "", "/1", "/2", "/3,9", "/,20", "/1,64"]))
            words.append(f"{host}/{port}{options}")
        text += f"{src}:{draw(st.sampled_from(['', ' ', '  ']))}{' '.join(words)}\n"
    return text


def destinations(spec: PlanSpec, exporter: str) -> Counter[tuple[str, int, int, int]]:
    _, receivers, _ = dry(spec).route(packed(exporter), 0)
    rows = [spec.receivers[number] for number in receivers]
    return Counter((str(ipaddress.ip_address(row.udp.address)), row.udp.port, row.freq, row.udp.ttl) for row in rows)


@THOROUGH
@given(rule_text(), st.lists(EXPORTER, min_size=1, max_size=6))
def test_a_rule_file_gives_one_copy_per_occurrence(tmp_path_factory, text: str, exporters: list[str]) -> None:
    path = tmp_path_factory.mktemp("rules") / "rules"
    path.write_text(text)
    try:
        loaded = parse_command_line(["-c", str(path), "192.0.2.77/4739"]).loaded
    except ConfigError as error:  # the one thing the generator may write that is refused: nothing
        pytest.fail(f"{error}\n{text}")
    assert loaded is not None
    spec = compile(loaded, {}, Capabilities(net_raw=True))
    again = compile(parse_toml(to_toml(loaded).encode(), "converted.toml"), {}, Capabilities(net_raw=True))
    model = from_rule_file(text, command_line=("192.0.2.77/4739",))
    for exporter in exporters:
        rows = [model.receivers[name] for name in model.route(exporter, "samplicate")[1]]
        wanted = Counter((str(row.address), row.port, row.freq, row.ttl) for row in rows)
        assert destinations(spec, exporter) == wanted, exporter
        assert destinations(again, exporter) == wanted, f"{exporter}, after convert"
