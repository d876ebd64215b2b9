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
        "expected": ["12: pool[0].members[0]: there is no receiver 'alpa'; did you mean 'alpha'?"],
    },
    {
        "description": "a member twice",
        "in": HEAD + pool('members = ["alpha", "beta", "alpha"]'),
        "expected": [
            "12: pool[0].members[2]: 'alpha' is named twice; remove one, and write `weight` for a larger share"
        ],
    },
    {
        "description": "no members",
        "in": HEAD + pool("members = []"),
        "expected": ["12: pool[0].members: must have at least one entry"],
    },
    {
        "description": "members left out",
        "in": HEAD + pool(),
        "expected": ["10: pool[0].members: this key is required; add it"],
    },
    {
        "description": "a pool in a pool",
        "in": HEAD + pool(MEMBERS, to='q", "p') + '[[pool]]\nname = "q"\nmembers = ["p"]\n',
        "expected": [
            "17: pool[1].members[0]: 'p' is a pool, and the members of a pool must be receivers; name receivers"
        ],
    },
    {
        "description": "the name of a receiver",
        "in": HEAD + pool(MEMBERS, to="alpha").replace('name = "p"', 'name = "alpha"'),
        "expected": ["11: pool[0].name: 'alpha' is already the name of receiver[0]; write another name"],
    },
    {
        "description": "the name of a pool",
        "in": HEAD + pool(MEMBERS) + f'[[pool]]\nname = "p"\n{MEMBERS}\n',
        "expected": ["16: pool[1].name: 'p' is already the name of pool[0]; write another name"],
    },
    {
        "description": "too few weights",
        "in": HEAD + pool(MEMBERS, "weight = [2]"),
        "expected": [
            "13: pool[0].weight: `weight` must have 2 entries, one per member, but it has 1; or "
            "write a table, such as { alpha = 2 }, in which other members have 1",
        ],
    },
    {
        "description": "a weight for nobody",
        "in": HEAD + pool(MEMBERS, "weight = { alpa = 2 }"),
        "expected": ["13: pool[0].weight.alpa: 'alpa' is not a member of this pool; did you mean 'alpha'?"],
    },
    *(
        {
            "description": f"weight {value}",
            "in": HEAD + pool(MEMBERS, f"weight = {value}"),
            "expected": [
                "13: pool[0].weight: must be whole numbers 1..1000, one per member, such as [2, 1], "
                "or a table, such as { NAME = 2 }"
            ],
        }
        for value in ("2", "[1, 0]", "[1, 1001]", "[1, true]", '[1, "2"]', "[1, 1.5]", "{ alpha = 0 }", '"2"')
    ),
    {
        "description": "an unknown balance",
        "in": HEAD + pool(MEMBERS, 'balance = "round_robin"'),
        "expected": [
            "13: pool[0].balance: must be 'exporter-hash' or 'round-robin'; did you mean 'round-robin'?",
        ],
    },
    {
        "description": "an unknown key",
        "in": HEAD + pool(MEMBERS, "weights = [1, 2]"),
        "expected": ["13: pool[0].weights: there is no such key; did you mean 'weight'?"],
    },
    {
        "description": "single brackets",
        "in": HEAD + pool(MEMBERS).replace("[[pool]]", "[pool]"),
        "expected": [
            "10: pool: must be written with double brackets, [[pool]], once for each pool",
            "14: rule[0].to[0]: there is no receiver or pool 'p'; write one of: alpha, beta",
        ],
    },
    {
        "description": "a rule to nobody",
        "in": HEAD + pool(MEMBERS, to="pp"),
        "expected": ["14: rule[0].to[0]: there is no receiver or pool 'pp'; did you mean 'p'?"],
    },
    {
        "description": "a standby as member",
        "in": HEAD + 'standby_for = "alpha"\n' + pool('members = ["beta"]', to='p", "alpha'),
        "expected": [
            "13: pool[0].members[0]: 'beta' (receiver[1]) is a standby, and a standby cannot be a "
            "pool member; remove 'beta' here or its `standby_for`"
        ],
    },
    {
        "description": "standby for nobody",
        "in": HEAD + 'standby_for = "alpa"\n' + RULE,
        "expected": ["10: receiver[1].standby_for: there is no receiver 'alpa'; did you mean 'alpha'?"],
    },
    {
        "description": "standby for itself",
        "in": HEAD + 'standby_for = "beta"\n' + RULE,
        "expected": [
            "10: receiver[1].standby_for: a receiver cannot be its own standby; name the receiver "
            "whose copies it takes over"
        ],
    },
    {
        "description": "standby for a standby",
        "in": HEAD
        + 'standby_for = "alpha"\n[[receiver]]\nname = "c"\nto = "192.0.2.3:1"\nstandby_for = "beta"\n'
        + RULE,
        "expected": [
            "14: receiver[2].standby_for: 'beta' (receiver[1]) is itself a standby for 'alpha'; name 'alpha' here"
        ],
    },
    {
        "description": "two for each other",
        "in": HEAD.replace('1:9995"', '1:9995"\nstandby_for = "beta"') + 'standby_for = "alpha"\n' + RULE,
        "expected": [
            "7: receiver[0].standby_for: 'beta' (receiver[1]) is itself a standby for 'alpha'; name 'alpha' here",
            "11: receiver[1].standby_for: 'alpha' (receiver[0]) is itself a standby for 'beta'; name 'beta' here",
        ],
    },
    {
        "description": "standby for a pool",
        "in": HEAD + '[[receiver]]\nname = "c"\nto = "192.0.2.3:1"\nstandby_for = "p"\n' + pool(MEMBERS, to='p", "c'),
        "expected": [
            "13: receiver[2].standby_for: 'p' is a pool; pools already leave out members that are down. Name a receiver"
        ],
    },
    {
        "description": "standby for one that is never asked",
        "in": HEAD.replace('1:9995"', '1:9995"\nprobe = "off"') + 'standby_for = "alpha"\n' + RULE,
        "expected": [
            "11: receiver[1].standby_for: 'alpha' (receiver[0]) has probe = \"off\", so the standby "
            "would not see that it is down; remove that `probe`"
        ],
    },
    {
        "description": "all at once",
        "in": HEAD + 'standby_for = "x"\nprobe = "icmp"\n' + pool('members = ["x"]', "weight = [0]", to="y"),
        "expected": [
            "10: receiver[1].standby_for: there is no receiver 'x'",
            '11: receiver[1].probe: \'icmp\' must be "auto", "udp", "ipfix", "off", '
            '"tcp://HOST:PORT" or "http://HOST:PORT/PATH" (without HOST: the receiver\'s own host)',
            "14: pool[0].members[0]: there is no receiver 'x'",
            "15: pool[0].weight: must be whole numbers 1..1000, one per member, such as [2, 1], "
            "or a table, such as { NAME = 2 }",
            "17: rule[0].to[0]: there is no receiver or pool 'y'; write one of: alpha, beta, p",
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
        "expected": ["10: pool[0]: no rule sends to 'p'; name it in `to` of a rule"],
    },
    {
        "description": "and its members",
        "in": HEAD + pool(MEMBERS, to="alpha"),
        "expected": [
            "7: receiver[1]: no rule sends to 'beta'; name it in `to` of a rule",
            "10: pool[0]: no rule sends to 'p'; name it in `to` of a rule",
        ],
    },
    {
        "description": "a primary that only a pool reaches",
        "in": HEAD + '[[receiver]]\nname = "c"\nto = "192.0.2.3:1"\nstandby_for = "alpha"\n' + pool(MEMBERS),
        "expected": [
            "10: receiver[2]: no rule sends to 'c'; name it in `to` of a rule",
            "13: receiver[2].standby_for: no rule names 'alpha', so the standby never gets "
            "copies; name 'alpha' in `to` of a rule",
        ],
    },
    {
        "description": "a member that is never asked",
        "in": HEAD + 'probe = "off"\n' + pool(MEMBERS),
        "expected": [
            "13: pool[0].members[1]: 'beta' has probe = \"off\", so the pool keeps sending to it "
            "while it is down; remove that `probe`"
        ],
    },
    {
        "description": "no templates are known",
        "in": HEAD.replace('2055"]', '2055"]\nflow = "off"') + pool(MEMBERS),
        "expected": [
            '11: pool[0]: every listener has flow = "off", so a member that takes over an '
            "exporter does not get its templates"
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
    {"in": "UDP", "expected": 'must be "auto"'},
    {"in": "tcp", "expected": 'write "tcp://:PORT"'},
    {"in": "http", "expected": 'write "http://:PORT/"'},
    {"in": "https://:443/", "expected": "TLS probes are not supported; use a plain port or tcp://"},
    {"in": "udp://:1", "expected": 'must be "auto"'},
    {"in": "tcp://:80/", "expected": "a tcp probe has no path; write tcp://:80"},
    {"in": "tcp://:0", "expected": "port 0 must be in 1..65535"},
    {"in": "tcp://:", "expected": "the port is missing"},
    {"in": "tcp://192.0.2.9", "expected": "the port is missing"},
    {"in": "tcp://0.0.0.0:1", "expected": "copies cannot be sent to 0.0.0.0"},
    {"in": "tcp://2001:db8::1:80", "expected": "2001:db8::1:80"},
    {"in": "http://user@192.0.2.9:80/", "expected": "must be http://HOST:PORT/PATH"},
    {"in": "http://:80/a b", "expected": "ASCII without blanks"},
    {"in": "http://:80/\r\nX: y", "expected": "ASCII without blanks"},
    {"in": "http://:80/" + "a" * 1000, "expected": "at most 1000 characters"},
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
