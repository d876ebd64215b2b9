"""Every row of the compatibility tables of samplicate(8), one case each: what a rule line and a command line mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from samplicator.config.address import ParsedSource, address_text
from samplicator.config.legacy.command_line import NO_RECEIVER, parse_command_line
from samplicator.config.model.loaded import Loaded
from samplicator.errors import ConfigError

ANY = "any"
IPV4 = "255.255.255.255"


def source_text(source: ParsedSource) -> str:
    """`ADDRESS mask MASK`, or "any"."""
    if source.any:
        return ANY
    mask = source.mask
    if source.family == 6:
        return f"{address_text(source.address)} mask /{bin(int.from_bytes(mask, 'big')).count('1')}"
    assert mask[:12] == b"\xff" * 12
    return f"{address_text(source.address)} mask {'.'.join(map(str, mask[12:]))}"


def copies(loaded: Loaded, rule: int) -> list[tuple[str, int, int]]:
    """(to, freq, ttl) of the receivers of a rule."""
    named = {receiver.name: receiver for receiver in loaded.config.receiver}
    return [(named[n].to, named[n].freq, int(named[n].ttl)) for n in loaded.config.rule[rule].to]


ROWS: list[dict[str, Any]] = [
    {
        "description": "1: prefix length, port, defaults",
        "in": "1.2.3.4/30: 6.7.8.9/1234",
        "expected": ("1.2.3.4 mask 255.255.255.252", [("6.7.8.9:1234", 1, 64)]),
    },
    {
        "description": "2: dotted mask, freq, ttl",
        "in": "1.2.3.4/255.255.255.252: 6.7.8.9/1234/10,237",
        "expected": ("1.2.3.4 mask 255.255.255.252", [("6.7.8.9:1234", 10, 237)]),
    },
    {
        "description": "3: host mask, default port",
        "in": "2.3.4.5: 7.8.9.0",
        "expected": (f"2.3.4.5 mask {IPV4}", [("7.8.9.0:2000", 1, 64)]),
    },
    {
        "description": "4: no blank after the colon",
        "in": "10.0.0.0/8:192.168.0.2/515 192.168.0.8/1514",
        "expected": ("10.0.0.0 mask 255.0.0.0", [("192.168.0.2:515", 1, 64), ("192.168.0.8:1514", 1, 64)]),
    },
    {
        "description": "5: catch-all with a mask of zero",
        "in": "0.0.0.0/0.0.0.0: 10.1.1.1/1162",
        "expected": (ANY, [("10.1.1.1:1162", 1, 64)]),
    },
    {
        "description": "6: catch-all whatever its mask",
        "in": "0.0.0.0/32: 10.1.1.1",
        "expected": (ANY, [("10.1.1.1:2000", 1, 64)]),
    },
    {
        "description": "6b: catch-all without a mask",
        "in": "0.0.0.0: 10.1.1.1",
        "expected": (ANY, [("10.1.1.1:2000", 1, 64)]),
    },
    {
        "description": "7: IPv6 catch-all takes IPv4 too",
        "in": "[::]/0: [2001:db8::1]/1234/10,34",
        "expected": (ANY, [("[2001:db8::1]:1234", 10, 34)]),
    },
    {
        "description": "8: IPv6 host mask",
        "in": "[2001:db8:0:4::]: [2001:db8::1]",
        "expected": ("2001:db8:0:4:: mask /128", [("[2001:db8::1]:2000", 1, 64)]),
    },
    {"description": "9: mask in the brackets", "in": "[2001:db8::/32]: 10.1.1.1", "expected": "bracket"},
    {"description": "10: IPv6 without brackets", "in": "2001:db8::/32: 10.1.1.1", "expected": "must be in brackets"},
    {
        "description": "11: host bits set, accepted, never matches",
        "in": "10.1.2.3/24: 10.9.9.9",
        "expected": ("10.1.2.3 mask 255.255.255.0", [("10.9.9.9:2000", 1, 64)]),
        "warning": "never matches.*write 10.1.2.0/24",
    },
    {
        "description": "12: comment",
        "in": "1.2.3.4: 5.6.7.8/9000 # core",
        "expected": (f"1.2.3.4 mask {IPV4}", [("5.6.7.8:9000", 1, 64)]),
    },
    {
        "description": "13: comment without a blank",
        "in": "1.2.3.4: 5.6.7.8/9000#core",
        "expected": "blank before its #",
    },
    {
        "description": "14: blank after the mask",
        "in": "1.2.3.4/24 : 5.6.7.8",
        "expected": "no blank before or after the mask",
    },
    {
        "description": "14b: blank before the colon",
        "in": "1.2.3.4 : 5.6.7.8",
        "expected": (f"1.2.3.4 mask {IPV4}", [("5.6.7.8:2000", 1, 64)]),
    },
    {
        "description": "15: no colon",
        "in": "1.2.3.4/30+ 6.7.8.9/1234",
        "expected": "the colon after the source is missing",
    },
    {"description": "16: prefix length over 32", "in": "1.2.3.4/33: x", "expected": "prefix length '33'.*0..32"},
    {"description": "16b: no prefix length", "in": "1.2.3.4/: x", "expected": "prefix length ''"},
    {"description": "16c: prefix length over 128", "in": "[::1]/129: x", "expected": "prefix length '129'.*0..128"},
    {
        "description": "17: non-contiguous mask",
        "in": "10.0.5.0/255.0.255.0: 5.6.7.8",
        "expected": ("10.0.5.0 mask 255.0.255.0", [("5.6.7.8:2000", 1, 64)]),
    },
    {
        "description": "18: port range",
        "in": "1.2.3.4: 6.7.8.9/1200-1210",
        "expected": (f"1.2.3.4 mask {IPV4}", [(f"6.7.8.9:{port}", 1, 64) for port in range(1200, 1211)]),
    },
    {
        "description": "19: port and count",
        "in": "1.2.3.4: 6.7.8.9/1200+10",
        "expected": (f"1.2.3.4 mask {IPV4}", [(f"6.7.8.9:{port}", 1, 64) for port in range(1200, 1210)]),
    },
    {
        "description": "20: range with freq and ttl",
        "in": "1.2.3.4: 6.7.8.9/7000-7002/10,5",
        "expected": (f"1.2.3.4 mask {IPV4}", [(f"6.7.8.9:{port}", 10, 5) for port in (7000, 7001, 7002)]),
    },
    {
        "description": "21: backward range",
        "in": "1.2.3.4: 6.7.8.9/7010-7000",
        "expected": "must begin with the lower port",
    },
    {"description": "21b: empty range", "in": "1.2.3.4: 6.7.8.9/7000+0", "expected": "no port in it"},
    {"description": "22: negative freq", "in": "1.2.3.4: 6.7.8.9/9000/-5", "expected": "frequency '-5'"},
    {"description": "22b: freq with a plus", "in": "1.2.3.4: 6.7.8.9/9000/+10", "expected": r"frequency '\+10'"},
    {
        "description": "23: ttl without freq",
        "in": "1.2.3.4: 6.7.8.9/9000/,64",
        "expected": (f"1.2.3.4 mask {IPV4}", [("6.7.8.9:9000", 1, 64)]),
    },
    {"description": "24: ttl after the port", "in": "1.2.3.4: 6.7.8.9/9000,64", "expected": "PORT/,TTL"},
    *(
        {"description": f"25: freq {freq}", "in": f"1.2.3.4: 6.7.8.9/9000/{freq}", "expected": "frequency"}
        for freq in ("0", "5x", "5/6")
    ),
    *(
        {"description": f"26: ttl {ttl}", "in": f"1.2.3.4: 6.7.8.9/9000/5{ttl}", "expected": "the ttl"}
        for ttl in (",0", ",256", ",", ",64,7")
    ),
    {"description": "27: colon before an IPv6 port", "in": "1.2.3.4: [::1]:9995", "expected": r"write \[::1\]/9995"},
    {"description": "28: colon before an IPv4 port", "in": "1.2.3.4: 6.7.8.9:9995", "expected": "write 6.7.8.9/9995"},
    {
        "description": "29: service names, host name",
        "in": "1.2.3.4: 6.7.8.9/syslog host.example/snmptrap",
        "expected": (f"1.2.3.4 mask {IPV4}", [("6.7.8.9:514", 1, 64), ("host.example:162", 1, 64)]),
    },
    {"description": "30: no receiver", "in": "1.2.3.4:", "expected": None, "warning": "no effect"},
    {
        "description": "31: port over 65535",
        "in": "1.2.3.4: 6.7.8.9/70000",
        "expected": "port 70000 must be in 1..65535",
    },
    {
        "description": "32: octal",
        "in": "010.1.1.0/24: 6.7.8.9",
        "expected": "octal.*10.1.1.0, or 8.1.1.0 if the numbers are octal",
    },
    {"description": "empty line", "in": " \t", "expected": None},
    {"description": "comment line", "in": "  # 1.2.3.4: 5.6.7.8", "expected": None},
    {
        "description": "IPv4 in brackets",
        "in": "[10.0.0.0]/8: [6.7.8.9]/99",
        "expected": ("10.0.0.0 mask 255.0.0.0", [("6.7.8.9:99", 1, 64)]),
    },
    {
        "description": "IPv4-mapped source is an IPv4 source",
        "in": "[::ffff:10.0.0.0]/104: 6.7.8.9",
        "expected": ("10.0.0.0 mask 255.0.0.0", [("6.7.8.9:2000", 1, 64)]),
    },
    {
        "description": "port without digits",
        "in": "1.2.3.4: 6.7.8.9/",
        "expected": "the port after the slash is missing",
    },
    {
        "description": "unknown service",
        "in": "1.2.3.4: 6.7.8.9/nope",
        "expected": "is not a port and not a service name",
    },
    {"description": "bracket not closed", "in": "1.2.3.4: [::1", "expected": "closing bracket"},
    {"description": "short address", "in": "10.1: 6.7.8.9", "expected": "not an IPv4 address"},
]


@pytest.mark.parametrize("row", ROWS, ids=[row["description"] for row in ROWS])
def test_rule_line(row: dict[str, Any], tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text(f"# first line\n{row['in']}\n")
    expected = row["expected"]
    argv = ["-c", str(rules), "192.0.2.99/99"]
    if isinstance(expected, str):
        with pytest.raises(ConfigError) as raised:
            parse_command_line(argv)
        [problem] = raised.value.problems
        assert (problem.file, problem.line) == (str(rules), 2)
        assert re.search(expected, problem.why), problem.why
        return
    loaded = parse_command_line(argv).loaded
    assert loaded is not None
    if expected is None:
        assert len(loaded.config.rule) == 1
    else:
        [source] = loaded.sources[0]
        assert (source_text(source), copies(loaded, 0)) == expected
        assert loaded.locate(("rule", 0, "to")) == (str(rules), 2)
        assert copies(loaded, 1) == [("192.0.2.99:99", 1, 64)], "the command line is the last rule"
        assert loaded.sources[1][0].any
    warnings = [w for w in loaded.warnings if w.line == 2]
    assert [bool(re.search(row.get("warning", ""), w.why)) for w in warnings] == [True] * ("warning" in row)


def config_of(*argv: str) -> Any:
    loaded = parse_command_line(argv).loaded
    assert loaded is not None
    return loaded.config


LINES: list[dict[str, Any]] = [
    {
        "description": "the article's line: two receivers, debugging on",
        "in": "-s 192.168.3.2 -S -p 2055 -d 192.168.4.1/2055 192.168.5.1/2055",
        "expected": {
            "listen": "192.168.3.2:2055",
            "to": ["192.168.4.1:2055", "192.168.5.1:2055"],
            "spoof": [True, True],
            "debug": 1,
        },
    },
    {
        "description": "defaults: 0.0.0.0 port 2000, nothing else open",
        "in": "192.0.2.1",
        "expected": {
            "listen": "0.0.0.0:2000",
            "to": ["192.0.2.1:2000"],
            "spoof": [False],
            "http": "",
            "control": "",
            "debug": 0,
            "timeout_ms": 0,
            "background": False,
            "pid_file": "",
            "max_datagram": 65535,
            "receive_buffer": 64 << 20,
            "checksum": [True],
            "pause_us": [0],
        },
    },
    {"description": "-p: the last one wins", "in": "-p 1 -p 2 x", "expected": {"listen": "0.0.0.0:2"}},
    {"description": "-p: a service name", "in": "-psyslog x", "expected": {"listen": "0.0.0.0:514"}},
    {"description": "-p: 0", "in": "-p 0 x", "expected": ("-p", "1..65535")},
    {"description": "-p: unknown name", "in": "-p nope x", "expected": ("-p", "is not a port and not a service name")},
    {"description": "-s: IPv6", "in": "-s ::1 x", "expected": {"listen": "[::1]:2000"}},
    {"description": "-s: host name", "in": "-s lo.example x", "expected": {"listen": "lo.example:2000"}},
    {"description": "-6 without -s", "in": "-6 x", "expected": {"listen": "[::]:2000", "family": ["ipv6"]}},
    {"description": "-4 wins when last", "in": "-64 x", "expected": {"listen": "0.0.0.0:2000", "family": ["ipv4"]}},
    {"description": "-4 leaves literals alone", "in": "-4 [::1]/9", "expected": {"to": ["[::1]:9"], "family": ["any"]}},
    {
        "description": "-b: both buffers",
        "in": "-b 65536 x",
        "expected": {"receive_buffer": 65536, "send_buffer": 65536},
    },
    {"description": "-b: no number", "in": "-b 64k x", "expected": ("-b", "'64k'")},
    {"description": "-u", "in": "-u 1500 x", "expected": {"max_datagram": 1500}},
    {"description": "-u: its default there", "in": "-u 65536 x", "expected": {"max_datagram": 65535}},
    {"description": "-u: 0", "in": "-u 0 x", "expected": ("-u", "'0'")},
    {
        "description": "-S -n: spoofed copies without checksum",
        "in": "-Sn 192.0.2.1",
        "expected": {"spoof": [True], "checksum": [False]},
    },
    {
        "description": "-n acts on spoofed copies only",
        "in": "-n x",
        "expected": {"checksum": [True]},
        "warning": "only on spoofed copies",
    },
    {
        "description": "-n and IPv6",
        "in": "-Sn [2001:db8::1]/9",
        "expected": {"checksum": [True]},
        "warning": "because IPv6 needs them",
    },
    {"description": "-x", "in": "-x 250 x", "expected": {"pause_us": [250]}, "warning": "delays all receivers"},
    {"description": "-t", "in": "-t 5000 x", "expected": {"timeout_ms": 5000}},
    {"description": "-d with a level", "in": "-d 3 x", "expected": {"debug": 3, "to": ["x:2000"]}},
    {"description": "-d with level 0", "in": "-d 0 x", "expected": {"debug": 0, "to": ["x:2000"]}},
    {"description": "-d before an option", "in": "-d -S x", "expected": {"debug": 1, "spoof": [True]}},
    {"description": "-d at the end", "in": "x -d", "expected": {"debug": 1, "to": ["x:2000"]}},
    {"description": "-d attached", "in": "-d7 x", "expected": {"debug": 7}},
    {"description": "-d attached, no number", "in": "-dx y", "expected": ("-d", "must be a number")},
    {
        "description": "-f -m",
        "in": "-fm /run/x.pid x",
        "expected": {"background": True, "pid_file": "/run/x.pid", "to": ["x:2000"]},
    },
    {
        "description": "options and receivers interleaved",
        "in": "a -S b -p 9 c",
        "expected": {"to": ["a:2000", "b:2000", "c:2000"], "spoof": [True] * 3, "listen": "0.0.0.0:9"},
    },
    {
        "description": "-- ends the options",
        "in": "-S -- a -n",
        "expected": ("", "'-n' is not an address and not a host name"),
    },
    {"description": "unknown option", "in": "-q x", "expected": ("-q", "there is no such option")},
    {"description": "missing argument", "in": "x -p", "expected": ("-p", "needs an argument")},
    {"description": "no receiver", "in": "-S", "expected": ("", NO_RECEIVER)},
    {"description": "broken receiver", "in": "192.0.2.1:9", "expected": ("", "write 192.0.2.1/9")},
    {
        "description": "the same receiver twice gets two copies",
        "in": "192.0.2.1/9 192.0.2.1/9",
        "expected": {"to": ["192.0.2.1:9", "192.0.2.1:9"], "names": ["192.0.2.1/9", "192.0.2.1/9#2"]},
    },
    {
        "description": "long options",
        "in": "--http 127.0.0.1:9421 --control=/run/c.sock --workers 2 --check x",
        "expected": {"http": "127.0.0.1:9421", "control": "/run/c.sock", "workers": 2, "check": True},
    },
    {"description": "--workers auto", "in": "--workers auto x", "expected": {"workers": "auto"}},
    {"description": "--workers 0", "in": "--workers 0 x", "expected": ("--workers", "1..256")},
    {"description": "--http without port", "in": "--http lo x", "expected": ("--http", "port is missing")},
    {"description": "--control relative", "in": "--control c x", "expected": ("--control", "absolute path")},
    {"description": "long option misspelt", "in": "--htp x y", "expected": ("--htp", "did you mean '--http'")},
    {"description": "-h", "in": "-p 9 -h", "expected": {"help": True}},
    {"description": "--help", "in": "--help", "expected": {"help": True}},
    {"description": "--version", "in": "--version x", "expected": {"version": True}},
]


@pytest.mark.parametrize("row", LINES, ids=[row["description"] for row in LINES])
def test_command_line(row: dict[str, Any]) -> None:
    argv, expected = row["in"].split(), row["expected"]
    if isinstance(expected, tuple):
        with pytest.raises(ConfigError) as raised:
            parse_command_line(argv)
        [problem] = raised.value.problems
        assert (problem.file, problem.line, problem.key) == ("command line", 0, expected[0])
        assert expected[1] in problem.why
        return
    options = parse_command_line(argv)
    seen: dict[str, Any] = {key: value for key, value in vars(options).items() if key != "loaded"}
    if options.loaded:
        config = options.loaded.config
        assert [rule.to for rule in config.rule] == [[receiver.name for receiver in config.receiver]]
        seen |= {key: getattr(config.service, key) for key in ("http", "control")}
        seen |= {key: getattr(config.datapath, key) for key in type(config.datapath).model_fields}
        seen |= {key: [getattr(r, key) for r in config.receiver] for key in type(config.receiver[0]).model_fields}
        seen |= {"names": seen["name"], "listen": ",".join(config.listener[0].listen)}
    assert {key: seen[key] for key in expected} == expected
    warnings = [str(w) for w in options.loaded.warnings] if options.loaded else []
    assert any(row.get("warning", "") in w for w in warnings) or not (warnings or "warning" in row), warnings


def test_options_after_a_rule_file_do_not_act_on_it(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("192.0.2.0/24: 198.51.100.1/9\n")
    late = parse_command_line(["-c", str(rules), "-S", "-n", "-x", "7", "198.51.100.2"]).loaded
    assert late is not None
    first, second = late.config.receiver
    assert (first.spoof, first.checksum, first.pause_us) == (False, True, 0)
    assert (second.spoof, second.checksum, second.pause_us) == (True, False, 7)
    text = "\n".join(map(str, late.warnings))
    assert "write -S before -c" in text
    assert "write -n before -c" in text
    assert "-x: this option acts only on receivers of the command line" in text
    early = parse_command_line(["-Sn", "-c", str(rules), "-Sn"]).loaded
    assert early is not None
    assert (early.config.receiver[0].spoof, early.config.receiver[0].checksum) == (True, False)
    assert early.warnings == []


def test_rule_files_append_and_all_problems_come_at_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("10.0.0.0/8: 192.0.2.1\n")
    two.write_text("11.0.0.0/8: 192.0.2.2\n")
    loaded = parse_command_line(["-c", str(one), "-c", str(two)]).loaded
    assert loaded is not None
    assert [rule.from_ for rule in loaded.config.rule] == [["10.0.0.0/8"], ["11.0.0.0/8"]]
    assert loaded.files == (str(one), str(two))
    one.write_text("nonsense\n1.2.3.4/40: 1.1.1.1/0 2.2.2.2/x\n")
    with pytest.raises(ConfigError) as raised:
        parse_command_line(["-c", str(one), "-q", "-c", str(tmp_path / "none")])
    where = [(p.file, p.line, p.key) for p in raised.value.problems]
    assert where == [
        (str(one), 1, ""), (str(one), 2, ""), (str(one), 2, ""), (str(one), 2, ""),
        ("command line", 0, "-q"), (str(tmp_path / "none"), 0, ""),
    ]  # fmt: skip


def test_hash_follows_files_and_arguments(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("10.0.0.0/8: 192.0.2.1\n")
    argv = ["-c", str(rules)]
    hashes = {parse_command_line(argv).loaded.text_hash}  # type: ignore[union-attr]
    hashes.add(parse_command_line(argv).loaded.text_hash)  # type: ignore[union-attr]
    assert len(hashes) == 1
    hashes.add(parse_command_line(["-S", *argv]).loaded.text_hash)  # type: ignore[union-attr]
    rules.write_text("10.0.0.0/8: 192.0.2.2\n")
    hashes.add(parse_command_line(argv).loaded.text_hash)  # type: ignore[union-attr]
    assert len(hashes) == 3


@pytest.mark.parametrize(("options", "probe"), [(["-S"], "off"), ([], "auto")])
def test_a_spoofed_receiver_gets_nothing_but_copies(options: list[str], probe: str) -> None:
    """The ancestor sends no probes; unspoofed receivers are asked only while they refuse."""
    loaded = parse_command_line([*options, "-p", "2055", "192.0.2.1/9995"]).loaded
    assert loaded is not None
    assert [receiver.probe for receiver in loaded.config.receiver] == [probe]
