"""The TOML reader: every problem at once, on its line, with the fix; warnings; speed."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from samplicator.config.model.loaded import Loaded
from samplicator.config.model.whole import Config, json_schema, restart_settings
from samplicator.config.toml.load import load_toml, parse_toml
from samplicator.errors import ConfigError

GOOD = """\
[[listener]]
name = "netflow"
listen = ["0.0.0.0:2055", "[::]:2055"]

[[receiver]]
name = "nfdump"
to = "192.0.2.10:9995"

[[rule]]
from = ["10.0.0.0/8", "2001:db8::/32"]
to = ["nfdump"]
"""


def problems(text: str) -> list[str]:
    """`LINE key: why` of every error."""
    with pytest.raises(ConfigError) as raised:
        parse_toml(text.encode(), "f")
    return [str(problem).removeprefix("f:").strip() for problem in raised.value.problems]


def loaded(text: str) -> Loaded:
    return parse_toml(text.encode(), "f")


def test_the_documented_example_loads() -> None:
    config = loaded(
        """
[service]
http = "127.0.0.1:9420"
control = "/run/samplicator/control.sock"
log_level = "info"
[datapath]
workers = "auto"
receive_buffer = "64MiB"
max_datagram = 65535
[[listener]]
name = "netflow"
listen = ["0.0.0.0:2055", "[::]:2055", "0.0.0.0:9990-9999"]
interface = "eth1"
multicast = ["239.1.1.1"]
[[receiver]]
name = "nfdump"
to = "192.0.2.10:9995"
spoof = true
checksum = true
freq = 1
ttl = 64
engine = "auto"
[[rule]]
from = ["10.0.0.0/8", "2001:db8::/32"]
listener = ["netflow"]
to = ["nfdump"]
stop = false
"""
    ).config
    assert config.datapath.receive_buffer == 64 << 20
    assert config.rule[0].from_ == ["10.0.0.0/8", "2001:db8::/32"]


def test_sources() -> None:
    result = loaded(GOOD.replace('from = ["10.0.0.0/8", "2001:db8::/32"]\n', ""))
    assert [s.any for s in result.sources[0]] == [True]
    result = loaded(GOOD.replace('"10.0.0.0/8"', '"0.0.0.0/0", "::/0", "10.0.5.0/255.0.255.0", "::ffff:10.0.0.0/104"'))
    assert [s.family for s in result.sources[0]] == [4, 6, 4, 4, 6]
    assert result.sources[0][2].mask == b"\xff" * 12 + bytes([255, 0, 255, 0])
    assert result.sources[0][3].mask == b"\xff" * 12 + bytes([255, 0, 0, 0])
    assert result.text_hash != loaded(GOOD).text_hash
    assert result.locate(("rule", 0, "from", 3)) == ("f", 10)


CASES: list[dict[str, Any]] = [
    {
        "description": "unknown key",
        "in": GOOD.replace('to = "192', 'too = "192'),
        "expected": [
            "5: receiver[0].to: this key is required; add it",
            "7: receiver[0].too: there is no such key; did you mean 'to'?",
        ],
    },
    {
        "description": "unknown table",
        "in": GOOD.replace("[[rule]]", "[[rules]]"),
        "expected": [
            "9: rules: there is no table of this name; did you mean 'rule'?",
        ],
    },
    {
        "description": "key of another table",
        "in": GOOD.replace("listen =", "max_datagrams = 1\nlisten ="),
        "expected": [
            "3: listener[0].max_datagrams: there is no such key here; did you mean 'max_datagram' of [datapath]?",
        ],
    },
    {
        "description": "single brackets",
        "in": '[listener]\nname = "x"\n' + GOOD,
        "expected": ["3: TOML syntax: Cannot overwrite a value"],
    },
    {
        "description": "single brackets only",
        "in": GOOD.replace("[[listener]]", "[listener]"),
        "expected": [
            "1: listener: must be written with double brackets, [[listener]], once for each listener",
        ],
    },
    {
        "description": "the name of the attribute is no key",
        "in": GOOD.replace("from =", "from_ ="),
        "expected": [
            "10: rule[0].from_: there is no such key; did you mean 'from'?",
        ],
    },
    {
        "description": "duplicate names",
        "in": GOOD + '[[receiver]]\nname = "nfdump"\nto = "192.0.2.11:1"\n',
        "expected": [
            "13: receiver[1].name: 'nfdump' is already the name of receiver[0]; write another name",
        ],
    },
    {
        "description": "unknown receiver and listener",
        "in": GOOD.replace('to = ["nfdump"]', 'to = ["nfdmp"]\nlistener = ["x"]'),
        "expected": [
            "11: rule[0].to[0]: there is no receiver 'nfdmp'; did you mean 'nfdump'?",
            "12: rule[0].listener[0]: there is no listener 'x'; write one of: netflow",
        ],
    },
    {
        "description": "host bits set",
        "in": GOOD.replace('"10.0.0.0/8"', '\n  "10.1.2.3/24",\n  "2001:db8:1::1/48", "10.1.5.0/255.0.255.0"'),
        "expected": [
            "11: rule[0].from[0]: 10.1.2.3/24 has bits outside its mask and would never match; write 10.1.2.0/24",
            "12: rule[0].from[1]: 2001:db8:1::1/48 has bits outside its mask and would never "
            "match; write 2001:db8:1::/48",
            "12: rule[0].from[2]: 10.1.5.0/255.0.255.0 has bits outside its mask and would never "
            "match; write 10.0.5.0/255.0.255.0",
        ],
    },
    {
        "description": "bad prefixes",
        "in": GOOD.replace(
            '"10.0.0.0/8"', '"10.0.0.0/33", "[::1]", "10.0.0/8", "010.0.0.0/8", "10.0.0.O/8", "10.9.9.9/31"'
        ),
        "expected": [
            "10: rule[0].from[0]: '10.0.0.0/33': the prefix length '33' must be a number 0..32",
            "10: rule[0].from[1]: '[::1]': an address in `from` is written without brackets; write ::1",
            "10: rule[0].from[2]: '10.0.0' is not an IPv4 address; write four numbers 0..255, such as 192.0.2.1",
            "10: rule[0].from[3]: '010.0.0.0': some programs read a number with a leading zero as "
            "octal; write 10.0.0.0, or 8.0.0.0 if the numbers are octal",
            "10: rule[0].from[4]: '10.0.0.O/8' must be an IPv4 or IPv6 prefix, such as 10.0.0.0/8 or 2001:db8::/32",
            "10: rule[0].from[5]: 10.9.9.9/31 has bits outside its mask and would never match; write 10.9.9.8/31",
        ],
    },
    {
        "description": "empty from",
        "in": GOOD.replace('["10.0.0.0/8", "2001:db8::/32"]', "[]"),
        "expected": [
            "10: rule[0].from: an empty list selects no exporter; remove `from` to select every exporter",
        ],
    },
    {
        "description": "zero checksum over IPv6",
        "in": GOOD.replace('"192.0.2.10:9995"', '"[2001:db8::1]:9995"\nchecksum = false'),
        "expected": [
            "8: receiver[0].checksum: IPv6 needs UDP checksums (RFC 8200 section 8.1): collectors "
            "drop copies without; write checksum = true",
        ],
    },
    {
        "description": "source that does not go with the rest",
        "in": GOOD.replace('9995"', '9995"\nsource = "2001:db8::9"\nspoof = true\nengine = "udp"'),
        "expected": [
            "8: receiver[0].source: a spoofed copy has the exporter's source; remove `source`, or write spoof = false",
            "8: receiver[0].source: the source is IPv6 but the receiver is IPv4; write an IPv4 "
            "source or remove `source`",
            '10: receiver[0].engine: engine "udp" cannot send spoofed copies; write engine = '
            '"auto" or "raw", or spoof = false',
        ],
    },
    {
        "description": "addresses of receivers",
        "in": GOOD.replace('"192.0.2.10:9995"', '"2001:db8::1:9995"')
        + '[[receiver]]\nname = "b"\nto = "192.0.2.10"\n[[receiver]]\nname = "c"\nto = "192.0.2.300:1"\n'
        + '[[receiver]]\nname = "d"\nto = "0.0.0.0:1"\n[[receiver]]\nname = "e"\nto = "[fe80::1]:1"\n'
        + '[[receiver]]\nname = "f"\nto = "a b:1"\n[[receiver]]\nname = "g"\nto = "host:0"\n',
        "expected": [
            "7: receiver[0].to: '2001:db8::1:9995': an IPv6 address must be in brackets and "
            "followed by a port; write [2001:db8::1:9995]:2055",
            "14: receiver[1].to: '192.0.2.10': the port is missing; write HOST:PORT, such as "
            "192.0.2.10:9995 or [2001:db8::1]:9995",
            "17: receiver[2].to: '192.0.2.300' is not an IPv4 address; write four numbers 0..255, such as 192.0.2.1",
            "20: receiver[3].to: '0.0.0.0:1': copies cannot be sent to 0.0.0.0; write the receiver's own address",
            "23: receiver[4].to: a link-local address needs its interface; write [fe80::1%eth0]:1",
            "26: receiver[5].to: 'a b' is not an address and not a host name; write 192.0.2.1, "
            "2001:db8::1 or host.example",
            "29: receiver[6].to: port 0 must be in 1..65535",
        ],
    },
    {
        "description": "listeners that overlap",
        "in": GOOD + '[[listener]]\nname = "b"\nlisten = ["0.0.0.0:2050-2060", "[0::0]:2055", "127.0.0.1:2055"]\n',
        "expected": [
            "14: listener[1].listen[0]: 0.0.0.0 port 2055 is already in listener[0].listen[0]; remove one of the two",
            "14: listener[1].listen[1]: :: port 2055 is already in listener[0].listen[1]; remove one of the two",
        ],
    },
    {
        "description": "port ranges",
        "in": GOOD.replace('"[::]:2055"', '"0.0.0.0:99-90", "0.0.0.0:1-65535", "[::]:70000"'),
        "expected": [
            "3: listener[0].listen[1]: port range 99-90 must begin with the lower port; write 90-99",
            "3: listener[0].listen[2]: port range 1-65535 has 65535 ports; one entry can have at most 4096",
            "3: listener[0].listen[3]: port 70000 must be in 1..65535",
        ],
    },
    {
        "description": "multicast",
        "in": GOOD.replace(', "[::]:2055"]', ']\nmulticast = ["10.1.1.1", "ff05::1"]'),
        "expected": [
            "4: listener[0].multicast[0]: '10.1.1.1' is not a multicast group; write a group such "
            "as 239.1.1.1 or ff05::1",
            "4: listener[0].multicast[1]: ff05::1 is an IPv6 group, but `listen` has no IPv6 entry; add [::]:PORT",
        ],
    },
    {
        "description": "types and ranges",
        "in": '[datapath]\nworkers = 0\nreceive_buffer = "64 QiB"\nbatch = 1000\ncpus = [-1, "x"]\nmax_datagram = 1.5\n'
        '[service]\nlog_level = "inof"\nhttp = 1\ncontrol = "run.sock"\nresolve_interval = nan\ndrain_timeout = 301\n'
        + GOOD,
        "expected": [
            '2: datapath.workers: must be a whole number 1..256 or "auto"',
            "3: datapath.receive_buffer: must be a number of bytes or a size with its unit, such "
            'as 67108864, "64MiB" or "512KiB"',
            "4: datapath.batch: must be a number 1..512",
            "5: datapath.cpus[0]: must be at least 0",
            "5: datapath.cpus[1]: must be a whole number",
            "6: datapath.max_datagram: must be a whole number",
            "8: service.log_level: must be 'debug', 'info', 'warning' or 'error'; did you mean 'info'?",
            "9: service.http: must be text in quotes",
            "10: service.control: 'run.sock' must be an absolute path; write \"\" for no control socket",
            "11: service.resolve_interval: must be a finite number",
            "12: service.drain_timeout: must be a number 0..300",
        ],
    },
    {
        "description": "nothing",
        "in": "",
        "expected": [
            'listener: there is no listener; add [[listener]] with name = "netflow", listen = ["0.0.0.0:2055"]',
            'receiver: there is no receiver; add [[receiver]] with name = "nfdump", to = "192.0.2.10:9995"',
        ],
    },
    {
        "description": "syntax",
        "in": GOOD + "[[rule\n",
        "expected": ["12: TOML syntax: Expected ']]' at the end of an array declaration"],
    },
    {"description": "text without end", "in": '# x\na = """b\n\n', "expected": ["2: TOML syntax: Unterminated string"]},
]


@pytest.mark.parametrize("case", CASES, ids=[case["description"] for case in CASES])
def test_problems(case: dict[str, Any]) -> None:
    assert problems(case["in"]) == [line.removeprefix("0: ") for line in case["expected"]]


def test_not_utf8() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_toml(b"# a\n# \xff\n", "f")
    assert [str(p) for p in raised.value.problems] == ["f:2: the file is not UTF-8 text; save it as UTF-8"]


@pytest.mark.parametrize("name", ["none.toml", "nul\0.toml", ""])
def test_unreadable(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="the file cannot be read"):
        load_toml(str(tmp_path / name))


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000, "\ufeff" + GOOD])
def test_odd_texts(text: str) -> None:
    with suppress(ConfigError):
        parse_toml(text.encode(), "f")


WARNINGS: list[dict[str, Any]] = [
    {
        "description": "receiver without a rule",
        "in": GOOD + '[[receiver]]\nname = "spare"\nto = "192.0.2.11:1"\n',
        "expected": [
            "12: receiver[1]: no rule sends to 'spare'; name it in `to` of a rule",
        ],
    },
    {
        "description": "listener without a rule",
        "in": GOOD + 'listener = ["netflow"]\n[[listener]]\nname = "b"\nlisten = ["0.0.0.0:1"]\n',
        "expected": [
            "13: listener[1]: no rule takes datagrams of listener 'b', so all of them are dropped; name it in a rule",
        ],
    },
    {
        "description": "stopped before",
        "in": GOOD + 'stop = true\n[[rule]]\nfrom = ["10.1.0.0/16"]\nto = ["nfdump"]\n[[rule]]\nto = ["nfdump"]\n',
        "expected": [
            "13: rule[1]: this rule never fires, because rule[0] with stop = true matches first; "
            "move this rule before it",
        ],
    },
    {
        "description": "stopped family by family",
        "in": GOOD.replace('["10.0.0.0/8", "2001:db8::/32"]', '["0.0.0.0/0"]')
        + 'stop = true\n[[rule]]\nfrom = ["::/0"]\nto = []\nstop = true\n[[rule]]\nto = ["nfdump"]\n',
        "expected": [
            "17: rule[2]: this rule never fires, because rule[0], rule[1] with stop = true matches "
            "first; move this rule before it",
        ],
    },
    {
        "description": "stopped for the only listener",
        "in": GOOD.replace('from = ["10.0.0.0/8", "2001:db8::/32"]', 'listener = ["netflow"]')
        + 'stop = true\n[[rule]]\nto = ["nfdump"]\n',
        "expected": [
            "13: rule[1]: this rule never fires, because rule[0] with stop = true matches first; "
            "move this rule before it",
        ],
    },
    {
        "description": "not stopped: another listener",
        "in": GOOD.replace("from =", 'listener = ["netflow"]\nfrom =')
        + 'stop = true\n[[rule]]\nto = ["nfdump"]\n[[listener]]\nname = "b"\nlisten = ["0.0.0.0:1"]\n',
        "expected": [],
    },
    {
        "description": "zero checksum for IPFIX",
        "in": GOOD.replace('9995"', '4739"\nchecksum = false'),
        "expected": [
            "8: receiver[0].checksum: without UDP checksums a damaged IPFIX message goes "
            "unnoticed; write checksum = true",
        ],
    },
    {
        "description": "copies that come back",
        "in": GOOD.replace("192.0.2.10:9995", "127.0.0.1:2055"),
        "expected": [
            "7: receiver[0].to: listener[0] listens at 127.0.0.1:2055: copies would come back in a loop; change `to`",
        ],
    },
    {
        "description": "rule that does nothing, receiver named twice",
        "in": GOOD.replace('["nfdump"]', '["nfdump", "nfdump"]') + "[[rule]]\nto = []\n",
        "expected": [
            "11: rule[0].to[1]: 'nfdump' is named twice but gets one copy; remove one",
            "13: rule[1].to: the rule has no effect; name receivers in `to`, or write stop = true "
            "to drop what it matches",
        ],
    },
    {"description": "deny is no mistake", "in": GOOD + "[[rule]]\nto = []\nstop = true\n", "expected": []},
    {
        "description": "no rule",
        "in": GOOD[: GOOD.index("[[rule]]")],
        "expected": [
            "rule: there is no rule, so no datagram is forwarded; add [[rule]] with to = [...]",
        ],
    },
]


@pytest.mark.parametrize("case", WARNINGS, ids=[case["description"] for case in WARNINGS])
def test_warnings(case: dict[str, Any]) -> None:
    assert [str(w).removeprefix("f:").removeprefix(" ") for w in loaded(case["in"]).warnings] == case["expected"]


def test_warnings_come_with_errors() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_toml((GOOD.replace('"nfdump"]', '"nfdump", "nfdump", "x"]')).encode(), "f")
    assert len(raised.value.problems) == len(raised.value.warnings) == 1


def test_ten_thousand_rules_load_in_a_few_seconds() -> None:
    rules = "".join(
        f'[[rule]]\nfrom = ["10.{i >> 8}.{i & 255}.0/24", "2001:db8:{i:x}::/48"]\nto = ["nfdump"]\nstop = true\n'
        for i in range(10_000)
    )
    start = time.monotonic()
    result = loaded(GOOD.replace("10.0.0.0/8", "192.0.2.0/24").replace("2001:db8::/32", "2001:db9::/32") + rules)
    assert result.warnings == []
    assert result.locate(("rule", 10_000, "stop")) == ("f", 11 + 4 * 10_000)
    assert time.monotonic() - start < 10


def test_schema_and_reload_tiers() -> None:
    schema = json_schema()
    assert "from" in schema["$defs"]["Rule"]["properties"]
    for name, model in schema["$defs"].items():
        for key, field in model["properties"].items():
            assert field.get("description"), f"{name}.{key} has no description"
            assert field.get("reload") in ("live", "restart"), f"{name}.{key} does not say how it reloads"
    assert ("service", "http") in restart_settings()
    assert ("datapath", "workers") not in restart_settings()


def test_models_are_frozen() -> None:
    with pytest.raises(ValueError):
        Config().rule = []


def test_what_keeps_exporters_apart() -> None:
    def receiver(keys: str) -> str:
        return GOOD.replace('to = "192.0.2.10:9995"\n', f'to = "192.0.2.10:9995"\n{keys}\n')

    (plain,) = loaded(GOOD).config.receiver
    assert (plain.source_port, plain.domain) == ("shared", "keep")
    (both,) = loaded(receiver('source_port = "per-session"\ndomain = "unique"')).config.receiver
    assert (both.source_port, both.domain) == ("per-session", "unique")
    (why,) = problems(receiver('source_port = "per-session"\nspoof = true'))
    assert why.startswith("8: receiver[0].source_port: a spoofed copy has the exporter's port; remove `source_port`")
    (why,) = problems(receiver('source_port = "per-session"\nengine = "raw"'))
    assert why.startswith('8: receiver[0].source_port: "per-session" cannot be combined with engine "raw"')
    (why,) = problems(receiver('source_port = "per-session"\nsource = "192.0.2.1:99"'))
    assert why.startswith('9: receiver[0].source: "per-session" needs many source ports')
    off = receiver('domain = "unique"').replace('"[::]:2055"]\n', '"[::]:2055"]\nflow = "off"\n')
    (warning,) = loaded(off).warnings
    assert "copies keep their domains" in str(warning)
