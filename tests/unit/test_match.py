"""Routes against a slow oracle: every rule looked at one by one, in Python, with integers.

Covers what the hash tables could get wrong: non-contiguous masks, families, listeners, stop, fallback ways, more rules
and ways than a machine word has bits, and a memo of routes that overflows.
"""

from __future__ import annotations

import ipaddress
import random
from dataclasses import dataclass

import pytest
from samplicator import _inside

MAPPED = bytes(10) + b"\xff\xff"
Source = tuple[int, bytes, bytes]


@dataclass(frozen=True)
class Rule:
    sources: tuple[Source, ...]
    listeners: tuple[int, ...] | None
    txs: tuple[int, ...]
    stop: bool

    def handed(self) -> tuple[tuple[Source, ...], tuple[int, ...] | None, tuple[int, ...], bool]:
        return self.sources, self.listeners, self.txs, self.stop


def number(octets: bytes) -> int:
    return int.from_bytes(octets, "big")


def oracle(rules: list[Rule], exporter: bytes, listener: int) -> tuple[list[int], list[int], bool]:
    """(rules that match, receivers in order of first mention, denied)."""
    family = 4 if exporter.startswith(MAPPED) else 6
    fired: list[int] = []
    txs: list[int] = []
    for index, rule in enumerate(rules):
        if rule.listeners is not None and listener not in rule.listeners:
            continue
        if not any(
            kind in (0, family) and number(exporter) & number(mask) == number(address)
            for kind, address, mask in rule.sources
        ):
            continue
        fired.append(index)
        for tx in rule.txs:
            if tx not in txs:
                txs.append(tx)
        if rule.stop:
            return fired, txs, not txs
    return fired, txs, False


def make_txs(families: list[tuple[int, bool]]) -> list[_inside.Tx]:
    """One Tx per (family, has a fallback of the other family); those without one write a source of their own."""
    txs = []
    for family, fallback in families:
        counters = _inside.TxCounters()
        address, other = (bytes(4), bytes(16)) if family == 4 else (bytes(16), bytes(4))
        second = _inside.Tx(_inside.ENGINE_UDP, -1, counters, other, 1) if fallback else None
        source = None if fallback else (address, 1)
        txs.append(_inside.Tx(_inside.ENGINE_RAW, -1, counters, address, 1, source=source, fallback=second))
    return txs


def plan_of(rules: list[Rule], families: list[tuple[int, bool]]) -> _inside.Plan:
    return _inside.Plan(1, [], make_txs(families), [rule.handed() for rule in rules])


def source(text: str, mask: str | None = None) -> Source:
    """`10.0.5.0`, `255.0.255.0`; `10.0.0.0/8`; `2001:db8::/32`; `any`."""
    if text == "any":
        return 0, bytes(16), bytes(16)
    if mask is not None:
        return 4, MAPPED + ipaddress.ip_address(text).packed, b"\xff" * 12 + ipaddress.ip_address(mask).packed
    net = ipaddress.ip_network(text)
    if net.version == 4:
        return 4, MAPPED + net.network_address.packed, b"\xff" * 12 + net.netmask.packed
    return 6, net.network_address.packed, net.netmask.packed


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


# ---- by hand


@pytest.mark.parametrize(
    ("exporter", "listener", "expected"),
    [
        ("10.1.1.1", 0, ((0, 3), (0, 1, 2), False)),
        ("10.7.5.9", 0, ((0, 1, 3), (0, 1, 2), False)),
        ("11.1.1.1", 0, ((3,), (2,), False)),
        ("192.0.2.7", 0, ((2,), (), True)),
        ("192.0.2.7", 1, ((3,), (2,), False)),
        ("2001:db8:1:2::3", 0, ((3, 4), (2, 1), False)),
        ("2001:db8:2:2::3", 0, ((3,), (2,), False)),
        ("::ffff:10.1.1.1", 0, ((0, 3), (0, 1, 2), False)),
        ("::10.1.1.1", 0, ((3,), (2,), False)),
    ],
)
def test_rules_by_hand(exporter: str, listener: int, expected: object) -> None:
    rules = [
        Rule((source("10.0.0.0/8"),), None, (0, 1), False),
        Rule((source("10.0.5.0", "255.0.255.0"),), None, (1,), False),
        Rule((source("192.0.2.0/24"),), (0,), (), True),
        Rule((source("any"),), None, (2,), False),
        Rule((source("2001:db8:1::/48"),), (0, 70), (1,), False),
    ]
    assert plan_of(rules, [(4, False)] * 3).route(packed(exporter), listener) == expected


def test_ipv4_everything_is_not_ipv6_everything() -> None:
    plan = plan_of([Rule((source("0.0.0.0/0"),), None, (0,), False)], [(4, False)])
    assert plan.route(packed("1.2.3.4"), 0)[1] == (0,)
    assert plan.route(packed("2001:db8::1"), 0)[1] == ()
    plan = plan_of([Rule((source("::/0"),), None, (0,), False)], [(4, False)])
    assert plan.route(packed("1.2.3.4"), 0)[1] == ()
    assert plan.route(packed("2001:db8::1"), 0)[1] == (0,)


def test_host_bits_in_a_source_never_match() -> None:
    """`10.1.2.3/24` as in the rule file of old."""
    rule = (4, MAPPED + packed("10.1.2.3"), b"\xff" * 15 + b"\0")
    plan = plan_of([Rule((rule,), None, (0,), False)], [(4, False)])
    assert all(plan.route(packed(f"10.1.2.{n}"), 0)[1] == () for n in range(256))


def test_stop_with_receivers_is_no_denial() -> None:
    rules = [
        Rule((source("any"),), None, (1,), False),
        Rule((source("10.0.0.0/8"),), None, (), True),
        Rule((source("any"),), None, (0,), False),
    ]
    plan = plan_of(rules, [(4, False)] * 2)
    assert plan.route(packed("10.0.0.1"), 0) == ((0, 1), (1,), False)
    assert plan.route(packed("11.0.0.1"), 0) == ((0, 2), (1, 0), False)


def test_fallback_takes_the_other_family_only() -> None:
    plan = plan_of([Rule((source("any"),), None, (0, 1, 2), False)], [(4, True), (6, True), (4, False)])
    assert _inside.memo_route(plan, MAPPED + packed("10.0.0.1"), 0)[1] == ((0, False), (1, True), (2, False))
    assert _inside.memo_route(plan, packed("2001:db8::1"), 0)[1] == ((0, True), (1, False), (2, False))
    assert plan.route(packed("2001:db8::1"), 0) == ((0,), (0, 1, 2), False)


def test_empty_plan() -> None:
    plan = _inside.Plan(7, [], [], [])
    assert plan.generation == 7
    assert plan.route(packed("1.2.3.4"), 0) == ((), (), False)
    assert _inside.memo_route(plan, bytes(16), 0) == (_inside.UNMATCHED, (), False)


# ---- at random


def random_source(generator: random.Random) -> Source:
    """Of a small world, so that rules overlap: the low byte and the second of the address vary."""
    family = generator.choice((0, 4, 4, 6, 6))
    if family == 0:
        return source("any")
    kind = generator.random()
    if kind < 0.5:
        bits = generator.choice((8, 16, 24, 28, 30, 32) if family == 4 else (16, 32, 48, 64, 124, 127, 128))
        mask = ((1 << bits) - 1) << ((32 if family == 4 else 128) - bits)
    else:
        mask = generator.getrandbits(32 if family == 4 else 128)
    size = 4 if family == 4 else 16
    address = random_exporter(generator, family)[16 - size :]
    value = number(address) & mask if generator.random() < 0.95 else number(address)
    prefix, ones = (MAPPED, b"\xff" * 12) if family == 4 else (b"", b"")
    return family, prefix + value.to_bytes(size, "big"), ones + mask.to_bytes(size, "big")


def random_exporter(generator: random.Random, family: int) -> bytes:
    low = bytes([generator.randrange(3), generator.randrange(256)])
    if family == 4:
        return MAPPED + b"\x0a" + bytes([generator.randrange(2)]) + low
    return bytes([0x20, 1, 0x0D, 0xB8, 0, generator.randrange(3)]) + bytes(8) + low


@pytest.mark.parametrize("seed", range(80))
def test_against_the_oracle(seed: int) -> None:
    generator = random.Random(seed)
    way_count = generator.choice((1, 3, 64, 65, 200))
    families = [(generator.choice((4, 6)), generator.random() < 0.5) for _ in range(way_count)]
    listeners = [0, 1, 63, 64, 130]
    rules = [
        Rule(
            tuple(random_source(generator) for _ in range(generator.choice((0, 1, 1, 2, 5)))),
            None if generator.random() < 0.6 else tuple(generator.sample(listeners, generator.randrange(4))),
            tuple(generator.choices(range(way_count), k=generator.choice((0, 1, 2, 5)))),
            generator.random() < 0.1,
        )
        for _ in range(generator.choice((1, 5, 64, 65, 150)))
    ]
    plan = plan_of(rules, families)
    seen: dict[int, object] = {}
    for _ in range(150):
        family = generator.choice((4, 6))
        exporter, listener = random_exporter(generator, family), generator.choice(listeners)
        fired, txs, denied = oracle(rules, exporter, listener)
        expected = (tuple(fired), tuple(txs), denied)
        assert plan.route(exporter[12:] if family == 4 else exporter, listener) == expected
        assert plan.route(exporter, listener) == expected, "IPv4-mapped is IPv4"
        route, ways, forgot = _inside.memo_route(plan, exporter, listener)
        assert not forgot
        assert ways == tuple((tx, families[tx][1] and families[tx][0] != family) for tx in txs)
        if not txs:
            assert route == (_inside.DENIED if denied else _inside.UNMATCHED)
        else:
            assert route >= _inside.FIRST
            assert seen.setdefault(route, ways) == ways, "one route, one set of ways"


def bit_rules(bits: int) -> list[Rule]:
    """Way i gets what has bit i of the address set: 2**bits exporters, all with routes of their own."""
    rules = []
    for bit in range(bits):
        mask = (1 << bit).to_bytes(4, "big")
        rules.append(Rule(((4, MAPPED + mask, b"\xff" * 12 + mask),), None, (bit,), False))
    return rules


def test_memo_overflow_by_ways() -> None:
    """2**17 distinct routes of 8.5 ways each do not fit; the memo begins anew and every answer stays right."""
    bits = 17
    plan = plan_of(bit_rules(bits), [(4, False)] * bits)
    resets = 0
    live: dict[int, tuple[tuple[int, bool], ...]] = {}
    for value in range(1, 1 << bits):
        expected = tuple((bit, False) for bit in range(bits) if value >> bit & 1)
        route, ways, forgot = _inside.memo_route(plan, MAPPED + value.to_bytes(4, "big"), 0)
        assert ways == expected
        if forgot:
            resets += 1
            live.clear()
        assert route not in live
        live[route] = expected
    assert resets >= 2
    assert all(_inside.memo_ways(plan, route) == ways for route, ways in live.items())


def test_memo_overflow_by_number() -> None:
    """More than 65,536 routes of one or two ways: the table of routes fills before the pool of ways does."""
    count = 400
    rules = []
    for index in range(count):
        high = source(f"10.{index // 200}.{index % 200}.0", "255.255.255.0")
        rules.append(Rule((high,), None, (index,), False))
    for index in range(200):
        low = (4, MAPPED + bytes([10, 0, 0, index]), b"\xff" * 12 + bytes([255, 0, 0, 255]))
        rules.append(Rule((low,), None, (count + index,), False))
    plan = plan_of(rules, [(4, False)] * (count + 200))
    resets = 0
    for index in range(count):
        for last in range(200):
            exporter = MAPPED + bytes([10, index // 200, index % 200, last])
            _, ways, forgot = _inside.memo_route(plan, exporter, 0)
            assert ways == ((index, False), (count + last, False))
            resets += forgot
    assert resets == 1
