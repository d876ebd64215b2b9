"""Pools, standbys and probes: every error text with its line, what is only doubtful, what is read."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from samplicator.config.address import parse_target
from samplicator.config.convert import to_toml
from samplicator.config.diff import diff
from samplicator.config.model.loaded import Loaded
from samplicator.config.model.whole import Config, json_schema
from samplicator.config.probe import Probe, parse_probe
from samplicator.config.toml.load import parse_toml
from samplicator.errors import ConfigError

HEAD = """\
[[listener]]
name = "in"
listen = ["0.0.0.0:2055"]
[[receiver]]
name = "alpha"
to = "192.0.2.1:9995"
[[receiver]]
name = "beta"
to = "192.0.2.2:9995"
"""
RULE = '[[rule]]\nto = ["alpha", "beta"]\n'


def loaded(text: str) -> Loaded:
    return parse_toml(text.encode(), "f")


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        loaded(text)
    return [str(problem).removeprefix("f:") for problem in raised.value.problems]


def pool(*lines: str, to: str = "p") -> str:
    return "\n".join(["[[pool]]", 'name = "p"', *lines, "[[rule]]", f'to = ["{to}"]', ""])


MEMBERS = 'members = ["alpha", "beta"]'

ERRORS: list[dict[str, Any]] = [
    {
        "description": "a member nobody knows",
        "in": HEAD + pool('members = ["alpa", "beta"]'),
        "expected": ["12: pool[0].members[0]: unknown receiver 'alpa'; did you mean 'alpha'?"],
    },
    {
        "description": "a member twice",
        "in": HEAD + pool('members = ["alpha", "beta", "alpha"]'),
        "expected": ["12: pool[0].members[2]: 'alpha' is named twice; a larger share is its `weight`"],
    },
    {
        "description": "no members",
        "in": HEAD + pool("members = []"),
        "expected": ["12: pool[0].members: want at least one entry"],
    },
    {
        "description": "members left out",
        "in": HEAD + pool(),
        "expected": ["10: pool[0].members: this key is required"],
    },
    {
        "description": "a pool in a pool",
        "in": HEAD + pool(MEMBERS, to='q", "p') + '[[pool]]\nname = "q"\nmembers = ["p"]\n',
        "expected": ["17: pool[1].members[0]: 'p' is a pool; pools have receivers as members: name those"],
    },
    {
        "description": "the name of a receiver",
        "in": HEAD + pool(MEMBERS, to="alpha").replace('name = "p"', 'name = "alpha"'),
        "expected": [
            "11: pool[0].name: 'alpha' is already the name of receiver[0]; a rule could not tell which is meant"
        ],
    },
    {
        "description": "the name of a pool",
        "in": HEAD + pool(MEMBERS) + f'[[pool]]\nname = "p"\n{MEMBERS}\n',
        "expected": ["16: pool[1].name: 'p' is already the name of pool[0]"],
    },
    {
        "description": "too few weights",
        "in": HEAD + pool(MEMBERS, "weight = [2]"),
        "expected": [
            "13: pool[0].weight: 1 weight for 2 members; want one for each, or a table, as { alpha = 2 }, with the "
            "others at 1"
        ],
    },
    {
        "description": "a weight for nobody",
        "in": HEAD + pool(MEMBERS, "weight = { alpa = 2 }"),
        "expected": ["13: pool[0].weight.alpa: 'alpa' is not among the members; did you mean 'alpha'?"],
    },
    *(
        {
            "description": f"weight {value}",
            "in": HEAD + pool(MEMBERS, f"weight = {value}"),
            "expected": [
                "13: pool[0].weight: want whole numbers 1..1000, one for each member, as [2, 1], or a table, as "
                "{ NAME = 2 }"
            ],
        }
        for value in ("2", "[1, 0]", "[1, 1001]", "[1, true]", '[1, "2"]', "[1, 1.5]", "{ alpha = 0 }", '"2"')
    ),
    {
        "description": "an unknown balance",
        "in": HEAD + pool(MEMBERS, 'balance = "round_robin"'),
        "expected": [
            "13: pool[0].balance: want 'exporter-hash' or 'round-robin'",
        ],
    },
    {
        "description": "an unknown key",
        "in": HEAD + pool(MEMBERS, "weights = [1, 2]"),
        "expected": ["13: pool[0].weights: unknown key; did you mean 'weight'?"],
    },
    {
        "description": "single brackets",
        "in": HEAD + pool(MEMBERS).replace("[[pool]]", "[pool]"),
        "expected": [
            "10: pool: want [[pool]], with double brackets, once for each pool",
            "14: rule[0].to[0]: unknown receiver or pool 'p' (known: alpha, beta)",
        ],
    },
    {
        "description": "a rule to nobody",
        "in": HEAD + pool(MEMBERS, to="pp"),
        "expected": ["14: rule[0].to[0]: unknown receiver or pool 'pp'; did you mean 'p'?"],
    },
    {
        "description": "a standby as member",
        "in": HEAD + 'standby_for = "alpha"\n' + pool('members = ["beta"]', to='p", "alpha'),
        "expected": [
            "13: pool[0].members[0]: 'beta' is a standby (receiver[1].standby_for), which waits, and a member works; "
            "leave out one of the two"
        ],
    },
    {
        "description": "standby for nobody",
        "in": HEAD + 'standby_for = "alpa"\n' + RULE,
        "expected": ["10: receiver[1].standby_for: unknown receiver 'alpa'; did you mean 'alpha'?"],
    },
    {
        "description": "standby for itself",
        "in": HEAD + 'standby_for = "beta"\n' + RULE,
        "expected": [
            "10: receiver[1].standby_for: it cannot be its own standby; name the receiver whose copies it shall take "
            "over"
        ],
    },
    {
        "description": "standby for a standby",
        "in": HEAD
        + 'standby_for = "alpha"\n[[receiver]]\nname = "c"\nto = "192.0.2.3:1"\nstandby_for = "beta"\n'
        + RULE,
        "expected": [
            "14: receiver[2].standby_for: 'beta' (receiver[1]) is a standby itself, for 'alpha'; name that one"
        ],
    },
    {
        "description": "two for each other",
        "in": HEAD.replace('1:9995"', '1:9995"\nstandby_for = "beta"') + 'standby_for = "alpha"\n' + RULE,
        "expected": [
            "7: receiver[0].standby_for: 'beta' (receiver[1]) is a standby itself, for 'alpha'; name that one",
            "11: receiver[1].standby_for: 'alpha' (receiver[0]) is a standby itself, for 'beta'; name that one",
        ],
    },
    {
        "description": "standby for a pool",
        "in": HEAD + '[[receiver]]\nname = "c"\nto = "192.0.2.3:1"\nstandby_for = "p"\n' + pool(MEMBERS, to='p", "c'),
        "expected": [
            "13: receiver[2].standby_for: 'p' is a pool, which takes a member that is down out by itself; name a "
            "receiver"
        ],
    },
    {
        "description": "standby for one that is never asked",
        "in": HEAD.replace('1:9995"', '1:9995"\nprobe = "off"') + 'standby_for = "alpha"\n' + RULE,
        "expected": [
            "11: receiver[1].standby_for: 'alpha' (receiver[0]) has probe = \"off\", so nobody would notice that it is "
            "down; leave its probe out"
        ],
    },
    {
        "description": "all at once",
        "in": HEAD + 'standby_for = "x"\nprobe = "icmp"\n' + pool('members = ["x"]', "weight = [0]", to="y"),
        "expected": [
            "10: receiver[1].standby_for: unknown receiver 'x'",
            '11: receiver[1].probe: \'icmp\': want "auto", "udp", "ipfix", "off", "tcp://HOST:PORT" or '
            '"http://HOST:PORT/PATH" (without HOST: the receiver\'s own)',
            "14: pool[0].members[0]: unknown receiver 'x'",
            "15: pool[0].weight: want whole numbers 1..1000, one for each member, as [2, 1], or a table, as "
            "{ NAME = 2 }",
            "17: rule[0].to[0]: unknown receiver or pool 'y' (known: alpha, beta, p)",
        ],
    },
]


@pytest.mark.parametrize("case", ERRORS, ids=[case["description"] for case in ERRORS])
def test_errors(case: dict[str, Any]) -> None:
    assert problems(case["in"]) == case["expected"]


WARNINGS: list[dict[str, Any]] = [
    {"description": "members are used", "in": HEAD + pool(MEMBERS), "expected": []},
    {
        "description": "a standby is used",
        "in": HEAD + 'standby_for = "alpha"\n[[rule]]\nto = ["alpha"]\n',
        "expected": [],
    },
    {
        "description": "a pool that no rule names",
        "in": HEAD + pool(MEMBERS, to='alpha", "beta'),
        "expected": ["10: pool[0]: no rule sends to 'p': it gets nothing"],
    },
    {
        "description": "and its members",
        "in": HEAD + pool(MEMBERS, to="alpha"),
        "expected": [
            "7: receiver[1]: no rule sends to 'beta': it gets nothing",
            "10: pool[0]: no rule sends to 'p': it gets nothing",
        ],
    },
    {
        "description": "a primary that only a pool reaches",
        "in": HEAD + '[[receiver]]\nname = "c"\nto = "192.0.2.3:1"\nstandby_for = "alpha"\n' + pool(MEMBERS),
        "expected": [
            "10: receiver[2]: no rule sends to 'c': it gets nothing",
            "13: receiver[2].standby_for: no rule names 'alpha' itself, so there are no copies to take over",
        ],
    },
    {
        "description": "a member that is never asked",
        "in": HEAD + 'probe = "off"\n' + pool(MEMBERS),
        "expected": ["13: pool[0].members[1]: 'beta' has probe = \"off\": it keeps its exporters when it is down"],
    },
    {
        "description": "no templates are known",
        "in": HEAD.replace('2055"]', '2055"]\nflow = "off"') + pool(MEMBERS),
        "expected": [
            '11: pool[0]: every listener has flow = "off": a member that takes over an exporter is not sent its '
            "templates"
        ],
    },
]


@pytest.mark.parametrize("case", WARNINGS, ids=[case["description"] for case in WARNINGS])
def test_warnings(case: dict[str, Any]) -> None:
    assert [str(warning).removeprefix("f:") for warning in loaded(case["in"]).warnings] == case["expected"]


# ---- probes

HOST = parse_target("192.0.2.9:80")
PROBES: list[dict[str, Any]] = [
    *({"in": word, "expected": Probe(word)} for word in ("auto", "udp", "ipfix", "off")),
    {"in": "tcp://192.0.2.9:80", "expected": Probe("tcp", HOST, 80)},
    {"in": "tcp://:4739", "expected": Probe("tcp", None, 4739)},
    {"in": "http://192.0.2.9:80", "expected": Probe("http", HOST, 80, "/")},
    {"in": "http://:8080/health?deep=1", "expected": Probe("http", None, 8080, "/health?deep=1")},
    {
        "in": "http://[2001:db8::1]:8080/a/b",
        "expected": Probe("http", parse_target("[2001:db8::1]:8080"), 8080, "/a/b"),
    },
    {"in": "tcp://c.example:1", "expected": Probe("tcp", parse_target("c.example:1"), 1)},
    {"in": "upd", "expected": "did you mean 'udp'"},
    {"in": "UDP", "expected": 'want "auto"'},
    {"in": "tcp", "expected": 'Write "tcp://:PORT"'},
    {"in": "http", "expected": 'Write "http://:PORT/"'},
    {"in": "https://:443/", "expected": "TLS is not spoken here"},
    {"in": "udp://:1", "expected": 'want "auto"'},
    {"in": "tcp://:80/", "expected": "a connection has no path; write tcp://:80"},
    {"in": "tcp://:0", "expected": "port 0 is not in 1..65535"},
    {"in": "tcp://:", "expected": "the port is missing"},
    {"in": "tcp://192.0.2.9", "expected": "the port is missing"},
    {"in": "tcp://0.0.0.0:1", "expected": "is no address one can send to"},
    {"in": "tcp://2001:db8::1:80", "expected": "2001:db8::1:80"},
    {"in": "http://user@192.0.2.9:80/", "expected": "want http://HOST:PORT/PATH"},
    {"in": "http://:80/a b", "expected": "the path has blanks"},
    {"in": "http://:80/\r\nX: y", "expected": "the path has blanks"},
    {"in": "http://:80/" + "a" * 1000, "expected": "more than 1000"},
]


@pytest.mark.parametrize("case", PROBES, ids=[case["in"][:40] for case in PROBES])
def test_probes(case: dict[str, Any]) -> None:
    if isinstance(case["expected"], Probe):
        assert parse_probe(case["in"]) == case["expected"]
        return
    with pytest.raises(ValueError) as raised:
        parse_probe(case["in"])
    assert case["expected"] in str(raised.value)
    escaped = case["in"].replace("\r", r"\r").replace("\n", r"\n")
    found = problems(HEAD + f'probe = "{escaped}"\n' + RULE)
    assert len(found) == 1
    assert found[0].startswith("10: receiver[1].probe: ")


# ---- what is read


def test_weights_in_the_order_of_members() -> None:
    for weight, expected in (("[3, 1]", (3, 1)), ("{ beta = 7 }", (1, 7)), ("[]", (1, 1))):
        (read,) = loaded(HEAD + pool(MEMBERS, f"weight = {weight}")).config.pool
        assert (read.weights, read.balance) == (expected, "exporter-hash")


def test_pools_round_trip_and_fit_the_schema() -> None:
    text = HEAD + 'probe = "http://:80/x"\n' + pool(MEMBERS, "weight = { beta = 2 }", 'balance = "round-robin"')
    text += '[[receiver]]\nname = "c"\nto = "192.0.2.3:1"\nstandby_for = "alpha"\n'
    one = loaded(text)
    again = to_toml(one)
    assert loaded(again).config == one.config
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(tomllib.loads(again))
    for wrong in ("weight = [0]", "weight = { alpha = 1001 }", "members = []", 'balance = "hash"'):
        assert list(validator.iter_errors({"pool": [{"name": "p", "members": ["a"], **tomllib.loads(wrong)}]})), wrong


def test_what_a_reload_changes() -> None:
    def config(*pools: dict[str, Any]) -> Config:
        return Config.model_validate({"pool": list(pools)})

    old = config({"name": "p", "members": ["a"]}, {"name": "q", "members": ["a"]})
    new = config({"name": "q", "members": ["a", "b"]}, {"name": "r", "members": ["a"]})
    assert diff(old, new).text() == "pools +r -p ~q"
    assert diff(old, old).text() == "nothing changed"
