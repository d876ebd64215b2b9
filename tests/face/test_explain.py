"""Explain: the readable twin of the compiled matching says the same, and its text is what the manual promises."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplicator.config.model.loaded import Loaded
from samplicator.config.model.rule import sources_of
from samplicator.config.model.whole import Config
from samplicator.datapath.rules import dry_plan
from samplicator.plan.explain import explain, lines, parse_exporter
from samplicator.plan.planner import compile
from samplicator.plan.spec import Capabilities, PlanSpec

RECEIVERS = [
    {"name": "a", "to": "192.0.2.1:9", "spoof": True},
    {"name": "b", "to": "[2001:db8::b]:9", "spoof": True},
    {"name": "c", "to": "192.0.2.3:9", "source": "198.51.100.7:2055", "freq": 10, "checksum": False, "ttl": "keep"},
    {"name": "d", "to": "192.0.2.4:9", "tos": 184, "pause_us": 5},
    {"name": "e", "to": "192.0.2.5:9", "standby_for": "a"},
]
POOLS = [
    {"name": "p", "members": ["a", "b"], "weight": {"b": 2}},
    {"name": "q", "members": ["d"], "balance": "round-robin"},
]
LISTENERS = [
    {"name": "one", "listen": ["0.0.0.0:2055", "[::]:2055"]},
    {"name": "two", "listen": ["[::]:6343"]},
    {"name": "three", "listen": ["127.0.0.1:2055"]},
]
# few addresses and many prefixes of them, so that rules do match
EXPORTERS = ["10.0.0.1", "10.0.5.9", "10.1.5.9", "192.0.2.77", "2001:db8::1", "2001:db8:5::1", "fe80::1"]
SOURCES = ["10.0.0.0/8", "10.0.0.0/16", "10.0.5.0/255.0.255.0", "10.0.0.1", "0.0.0.0/0", "192.0.2.64/26", "10.1.2.3/24"]
SOURCES += ["::/0", "2001:db8::/32", "2001:db8::1", "2001:db8:5::/48"]

rules = st.lists(
    st.builds(
        lambda sources, listeners, to, stop: {"from": sources, "listener": listeners, "to": to, "stop": stop},
        st.lists(st.sampled_from(SOURCES), max_size=3),
        st.lists(st.sampled_from(["one", "two", "three"]), max_size=2, unique=True),
        st.lists(st.sampled_from("abcdepq"), max_size=4, unique=True),
        st.booleans(),
    ),
    max_size=6,
)


def plan_of(rule_tables: list[dict[str, object]]) -> PlanSpec:
    config = Config.model_validate({"listener": LISTENERS, "receiver": RECEIVERS, "pool": POOLS, "rule": rule_tables})
    loaded = Loaded(config, tuple(sources_of(rule) for rule in config.rule))
    return compile(loaded, {}, Capabilities(net_raw=True))


@settings(max_examples=300, deadline=None)
@given(rules, st.sampled_from(EXPORTERS), st.sampled_from([2055, 6343]))
def test_says_what_the_compiled_plan_does(rule_tables: list[dict[str, object]], exporter: str, port: int) -> None:
    spec = plan_of(rule_tables)
    address, _ = parse_exporter(exporter)
    plan = dry_plan(spec)
    for answer in explain(spec, address, 5000, port):
        listener = next(item.index for item in spec.listeners if item.name == answer.listener)
        matching, ways, denied = plan.route(address.packed, listener)
        assert tuple(rule.number - 1 for rule in answer.rules if rule.matches) == matching
        receivers = [spec.receivers[way].name for way in sorted(ways) if way < len(spec.receivers)]
        pools = [spec.pools[way - len(spec.receivers)].name for way in sorted(ways) if way >= len(spec.receivers)]
        assert [copy.receiver for copy in answer.copies] == receivers
        assert [pool.pool for pool in answer.pools] == pools
        assert answer.denied == denied


@pytest.mark.parametrize(
    ("exporter", "port", "sockets"),
    [
        ("10.0.0.1", 2055, ["0.0.0.0:2055", "127.0.0.1:2055"]),
        ("2001:db8::1", 2055, ["[::]:2055"]),
        ("10.0.0.1", 6343, ["[::]:6343"]),
        ("10.0.0.1", 9, []),
    ],
)
def test_only_sockets_that_can_take_it(exporter: str, port: int, sockets: list[str]) -> None:
    address, _ = parse_exporter(exporter)
    assert [answer.socket for answer in explain(plan_of([]), address, None, port)] == sockets


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("192.0.2.1", "192.0.2.1", None),
        ("192.0.2.1:5000", "192.0.2.1", 5000),
        ("2001:db8::1", "2001:db8::1", None),
        ("[2001:db8::1]", "2001:db8::1", None),
        ("[2001:db8::1]:5000", "2001:db8::1", 5000),
        ("::ffff:192.0.2.1", "192.0.2.1", None),
        ("fe80::1%eth0", "fe80::1", None),
    ],
)
def test_exporter_texts(text: str, address: str, port: int | None) -> None:
    assert parse_exporter(text) == (ipaddress.ip_address(address), port)


@pytest.mark.parametrize("text", ["", "router", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:70000", "[::1]5", "1.2.3"])
def test_exporter_texts_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        parse_exporter(text)


APART = (
    "the collector can mix up templates of several exporters of NetFlow v9 and IPFIX; "
    'set spoof = true, source_port = "per-session" or domain = "unique"'
)
TRANSPARENT_WHY = "runs are sent in one call by sockets bound to exporters' ports, the rest by a raw socket"
GOLDEN = f"""\
10.1.2.3:5000 -> port 2055: listener one (0.0.0.0:2055)
  rule 1 does not match: 2001:db8::/32 -> a
      the rule's sources are IPv6, the exporter is IPv4 [x.toml:1]
  rule 2 does not match: everything -> a
      the rule is only for listener two [x.toml:2]
  rule 3 matches: 10.0.0.0/8 -> a, b, c, d (stop)
      10.1.2.3 is in 10.0.0.0/8; stop = true: later rules are not evaluated [x.toml:3]
  rule 4 is not evaluated: everything -> a
      rule 3 matches and has stop = true [x.toml:4]
  4 copies are sent, 1 more while another receiver is down:
    a: to 192.0.2.1:9
      from 10.1.2.3:5000: the exporter's address, spoofed
      engine transparent: spoofed: {TRANSPARENT_WHY}
      ttl 64, tos 0
    b: to [2001:db8::b]:9
      from this host's address: not spoofed: an IPv6 packet cannot have an IPv4 source
      {APART}
      engine udp: copies that cannot be spoofed are sent through a UDP socket
      ttl 64, tos 0
    c: to 192.0.2.3:9
      from 198.51.100.7:2055: configured by `source`
      {APART}
      engine raw: 198.51.100.7 is not an address of this host, so samplicator writes the headers
      ttl kept, tos 0, 1 datagram in 10, and all templates, UDP checksum 0
    d: to 192.0.2.4:9
      from this host's address: not spoofed
      {APART}
      engine udp: not spoofed: a UDP socket connected to the receiver costs least
      ttl 64, tos 184, a pause of 5 us after each copy
    e: to 192.0.2.5:9
      from this host's address: not spoofed
      {APART}
      engine udp: not spoofed: a UDP socket connected to the receiver costs least
      only while a is down, templates first, ttl 64, tos 0
"""


def test_text() -> None:
    spec = plan_of(
        [
            {"from": ["2001:db8::/32"], "to": ["a"]},
            {"listener": ["two"], "to": ["a"]},
            {"from": ["10.0.0.0/8"], "to": ["a", "b", "c", "d"], "stop": True},
            {"to": ["a"]},
        ]
    )
    address, port = parse_exporter("10.1.2.3:5000")
    answers = explain(spec, address, port, 2055, [f"x.toml:{n}" for n in range(1, 5)])
    text = "\n".join(lines(answers[:1], address, port, 2055)) + "\n"
    assert text == GOLDEN


def test_text_when_nobody_gets_a_copy(tmp_path: Path) -> None:
    address, port = parse_exporter("10.1.2.3")
    spec = plan_of([{"from": ["10.0.0.0/8"], "to": [], "stop": True}])
    denied = lines(explain(spec, address, port, 6343), address, port, 6343)
    assert denied[-1].strip() == (
        "no copy is sent: a rule with stop = true denies it (counted as receive_rejected_datagrams_total, reason acl)"
    )
    unmatched = lines(explain(plan_of([]), address, port, 6343), address, port, 6343)
    assert "no rule matches" in unmatched[-1]
    assert "reason no_route_rule" in unmatched[-1]
    assert "no listener takes this" in lines((), address, port, 9)[0]


def test_pools_and_standbys_in_words() -> None:
    address, port = parse_exporter("10.0.0.1:5000")
    spec = plan_of([{"from": ["10.0.0.0/8"], "listener": ["one"], "to": ["a", "p", "q"], "stop": False}])
    answers = explain(spec, address, port, 2055)
    text = lines(answers[:1], address, port, 2055)
    assert "  3 copies are sent, 1 more while another receiver is down:" in text
    assert "    pool p: one of a (weight 1), b (weight 2), by exporter-hash" in text
    assert "      a: to 192.0.2.1:9" in text
    assert "      b: to [2001:db8::b]:9" in text
    assert "    pool q: one of d, by round-robin" in text
    assert any("only while a is down, templates first" in line for line in text)
    assert "    e: to 192.0.2.5:9" in text
    assert [copy.receiver for copy in answers[0].pools[0].members] == ["a", "b"]
    assert answers[0].pools[0].weights == (1, 2)
    assert not answers[0].denied


def test_a_pool_alone_is_no_denial() -> None:
    address, port = parse_exporter("10.0.0.1:5000")
    spec = plan_of([{"from": [], "listener": [], "to": ["q"], "stop": True}])
    answer = explain(spec, address, port, 2055)[0]
    assert (answer.copies, len(answer.pools), answer.denied) == ((), 1, False)
    assert "  1 copy is sent:" in lines([answer], address, port, 2055)
