"""The template cache against the slow model: what is learnt, replaced, withdrawn, forgotten; counts of IPFIX
records; bounds under attack.
"""

from __future__ import annotations

import random

import pytest
from samplicator import _inside_flow as probe
from samplicator._inside_flow import FLOW_COUNTER_FIELDS, FLOW_SESSION_FIELDS
from support import flows as model
from support.flows import IPFIX, V9

ADDRESS, PORT = b"\x0a\0\0\1", 2055
START = 1_700_000_000 * 10**9
SECOND = 10**9


def new(octets: int = 1 << 22, **bounds: int) -> probe.Flow:
    flow = probe.Flow(octets, **bounds)
    probe.tick(flow, START)
    return flow


def session(flow: probe.Flow, number: int) -> dict[str, object]:
    return dict(zip(FLOW_SESSION_FIELDS, flow.session(number), strict=True))


def counters(flow: probe.Flow) -> dict[str, int]:
    return dict(zip(FLOW_COUNTER_FIELDS, flow.counters()[0], strict=True))


def templates(flow: probe.Flow, number: int) -> dict[int, bytes]:
    return {row[0]: row[7] for row in flow.items(number) if row[1] != "options_data"}


def options_data(flow: probe.Flow, number: int) -> set[tuple[int, bytes]]:
    return {(row[0], row[7]) for row in flow.items(number) if row[1] == "options_data"}


def message(kind: int, sequence: int, *sets: bytes, domain: int = 1) -> bytes:
    return (model.v9 if kind == V9 else model.ipfix)(sequence, domain, *sets)


def template_set(kind: int, *records: bytes) -> bytes:
    return model.a_set(0 if kind == V9 else 2, *records)


def options_set(kind: int, *records: bytes) -> bytes:
    return model.a_set(1 if kind == V9 else 3, *records, pad=4 if kind == V9 else 1)


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_learn_repeat_redefine(kind: int) -> None:
    flow = new()
    first, second = model.template(300, [(8, 4), (12, 4)]), model.template(300, [(8, 4), (12, 4), (1, 8)])
    number = probe.observe(flow, ADDRESS, PORT, message(kind, 0, template_set(kind, first))).number
    assert templates(flow, number) == {300: first}
    probe.tick(flow, START + SECOND)
    probe.observe(flow, ADDRESS, PORT, message(kind, 1, template_set(kind, first)))
    assert [row[2:4] for row in flow.items(number)] == [(START // SECOND, START // SECOND + 1)]
    probe.observe(flow, ADDRESS, PORT, message(kind, 2, template_set(kind, second)))
    assert templates(flow, number) == {300: second}
    row = session(flow, number)
    assert (row["templates_added"], row["templates_seen"], row["templates"]) == (2, 3, 1)
    assert counters(flow)["templates"] == 1


def test_fields_by_number() -> None:
    raw = model.options_template(IPFIX, 256, [(149, 4)], [(34, 4), (7, 65535, 4242)])
    assert probe.flow_field_list(raw, True, True) == ((149, 4, 0), (34, 4, 0), (7, 65535, 4242))
    assert probe.flow_field_list(model.template(256, [(8, 4), (0x8001, 2)]), False, False) == (
        (8, 4, 0),
        (0x8001, 2, 0),
    )


@pytest.mark.parametrize(
    "other",
    [{"address": b"\x0a\0\0\2"}, {"port": 2056}, {"domain": 2}, {"kind": IPFIX}, {"address": bytes(15) + b"\1"}],
)
def test_what_makes_a_key(other: dict[str, object]) -> None:
    flow = new()
    kind = int(other.get("kind", V9))
    number = probe.observe(flow, ADDRESS, PORT, message(V9, 0, template_set(V9, model.template(256, [(8, 4)])))).number
    payload = message(kind, 0, model.a_set(256, bytes(4)), domain=int(other.get("domain", 1)))
    seen = probe.observe(flow, other.get("address", ADDRESS), int(other.get("port", PORT)), payload)
    assert seen.number not in (0, number)
    assert seen.flags & probe.UNKNOWN
    assert session(flow, seen.number)["unknown"] == 1
    assert not probe.observe(flow, ADDRESS, PORT, message(V9, 1, model.a_set(256, bytes(4)))).flags & probe.UNKNOWN


def test_withdrawal() -> None:
    flow = new()
    records = [model.template(i, [(8, 4)]) for i in (256, 257, 258)]
    options = model.options_template(IPFIX, 259, [(149, 4)], [(34, 4)])
    number = probe.observe(
        flow, ADDRESS, PORT, message(IPFIX, 0, template_set(IPFIX, *records), options_set(IPFIX, options))
    ).number
    probe.observe(flow, ADDRESS, PORT, message(IPFIX, 0, template_set(IPFIX, model.withdrawal(257))))
    assert set(templates(flow, number)) == {256, 258, 259}
    probe.observe(flow, ADDRESS, PORT, message(IPFIX, 0, template_set(IPFIX, model.withdrawal(2))))
    assert set(templates(flow, number)) == {259}
    probe.observe(flow, ADDRESS, PORT, message(IPFIX, 0, options_set(IPFIX, model.withdrawal(3))))
    assert templates(flow, number) == {}
    assert session(flow, number)["withdrawn"] == 4
    assert counters(flow)["blocks"] == 0


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_options_data_by_scope(kind: int) -> None:
    flow = new()
    options = model.options_template(kind, 259, [(1, 4)], [(34, 2)])
    number = probe.observe(flow, ADDRESS, PORT, message(kind, 0, options_set(kind, options))).number
    pad = 4 if kind == V9 else 1
    seen = probe.observe(flow, ADDRESS, PORT, message(kind, 0, model.a_set(259, b"aaaa11", b"bbbb22", pad=pad)))
    assert seen.flags & probe.OPTIONS_DATA
    assert options_data(flow, number) == {(259, b"aaaa11"), (259, b"bbbb22")}
    probe.observe(flow, ADDRESS, PORT, message(kind, 0, model.a_set(259, b"bbbb33", pad=pad)))
    assert options_data(flow, number) == {(259, b"aaaa11"), (259, b"bbbb33")}


def test_options_data_of_variable_length() -> None:
    flow = new()
    options = model.options_template(IPFIX, 259, [(82, 65535)], [(34, 2), (83, 65535)])
    number = probe.observe(flow, ADDRESS, PORT, message(IPFIX, 0, options_set(IPFIX, options))).number
    one, two = b"\x03eth" + b"00" + b"\x02up", b"\xff\x00\x04eth1" + b"00" + b"\x00"
    assert probe.observe(flow, ADDRESS, PORT, message(IPFIX, 0, model.a_set(259, one, two))).units == 2
    probe.observe(flow, ADDRESS, PORT, message(IPFIX, 2, model.a_set(259, b"\x03eth" + b"99" + b"\x04down")))
    assert options_data(flow, number) == {(259, two), (259, b"\x03eth99\x04down")}


def test_templates_expire() -> None:
    flow = new(template_ms=60_000)
    number = probe.observe(
        flow, ADDRESS, PORT, message(V9, 0, template_set(V9, *[model.template(i, [(8, 4)]) for i in (256, 257)]))
    ).number
    probe.tick(flow, START + 40 * SECOND)
    probe.observe(flow, ADDRESS, PORT, message(V9, 1, template_set(V9, model.template(257, [(8, 4)]))))
    probe.tick(flow, START + 61 * SECOND)
    probe.age(flow, flow.capacity[0])
    assert set(templates(flow, number)) == {257}
    assert counters(flow)["expired_items"] == 1


def test_domains_are_forgotten() -> None:
    flow = new(forget_ms=60_000)
    probe.observe(flow, ADDRESS, PORT, message(V9, 0, template_set(V9, model.template(256, [(8, 4)]))))
    probe.tick(flow, START + 60 * SECOND)
    probe.age(flow, flow.capacity[0])
    assert flow.sessions() == []
    now = counters(flow)
    assert (now["forgotten_domains"], now["domains"], now["exporters"], now["blocks"], now["templates"]) == (
        1,
        0,
        0,
        0,
        0,
    )


def a_field(generator: random.Random) -> tuple[int, ...]:
    length = generator.choice([1, 2, 4, 8, 16, 65535])
    return (
        (generator.randrange(1, 400), length, 4242)
        if generator.random() < 0.2
        else (generator.randrange(1, 400), length)
    )


def value(length: int, kind: int, generator: random.Random) -> bytes:
    if length != 65535 or kind == V9:
        return generator.randbytes(length)
    n = generator.choice([0, 1, 7, 254, 255, 300])
    return (
        bytes([n]) if n < 255 or (generator.random() < 0.3 and n < 255) else b"\xff" + n.to_bytes(2, "big")
    ) + generator.randbytes(n)


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("seed", range(6))
def test_against_the_model(kind: int, seed: int) -> None:
    """Random templates, options, withdrawals and data, some of it unknown: the same templates, options data and
    record counts.
    """
    generator = random.Random(seed * 2 + kind)
    flow, collector = new(), model.Collector()
    number = sequence = 0
    for _ in range(400):
        sets = []
        for _ in range(generator.randrange(1, 4)):
            identity = generator.randrange(256, 264)
            fields = [a_field(generator) for _ in range(generator.randrange(1, 6))]
            if kind == V9:
                fields = [(element, length if length != 65535 else 3) for element, length, *_ in fields]
            known = collector.templates.get((0, kind, 1, identity))
            draw = generator.random()
            if draw < 0.15:
                sets.append(template_set(kind, model.template(identity, fields)))
            elif draw < 0.25:
                sets.append(options_set(kind, model.options_template(kind, identity, fields[:1], fields[1:])))
            elif draw < 0.28 and kind == IPFIX:
                sets.append(options_set(kind, model.withdrawal(generator.choice([identity, 3]))))
            elif known is not None:
                rows = [
                    b"".join(value(length, kind, generator) for _, length, _ in known.fields)
                    for _ in range(generator.randrange(4))
                ]
                sets.append(model.a_set(identity, *rows))
            else:
                sets.append(model.a_set(identity, generator.randbytes(12)))
        payload = message(kind, sequence, *sets)
        seen = probe.observe(flow, ADDRESS, PORT, payload)
        number = seen.number or number
        units = collector.take(0, payload)
        sequence += 1 if kind == V9 else units or 0
        assert bool(seen.flags & probe.UNKNOWN) == (units is None) or kind == V9
        if kind == IPFIX and units is not None:
            assert seen.units + (seen.options if seen.units != units else 0) == units
    assert templates(flow, number) == {key[3]: one.raw for key, one in collector.templates.items()}
    current = {(key[3], record) for key, record in collector.options.items() if key[:4] in collector.templates}
    assert current <= options_data(flow, number), "void ones may linger, current ones are all there"


# ---- bounds


def forged(n: int) -> bytes:
    return n.to_bytes(4, "big")


def hostile(generator: random.Random, n: int) -> bytes:
    fields = [(generator.randrange(1, 30000), generator.randrange(1, 60)) for _ in range(generator.randrange(1, 40))]
    records = [model.template(generator.randrange(256, 65536), fields) for _ in range(generator.randrange(1, 4))]
    return message(V9, n, template_set(V9, *records), domain=generator.randrange(1 << 32))


def test_forged_sources_evict_no_active_exporter() -> None:
    """Sixty times the table in forged exporters: 50 legitimate ones keep every template, memory stays what it was
    at creation.
    """
    flow = new(4 << 20)
    generator = random.Random(7)
    legitimate = [bytes([192, 0, 2, i]) for i in range(50)]
    payloads = {a: message(V9, 0, template_set(V9, model.template(256, [(8, 4)] * (1 + a[3])))) for a in legitimate}
    for beat in range(12):
        probe.tick(flow, START + beat * SECOND)
        for a in legitimate:
            probe.observe(
                flow, a, PORT, payloads[a] if beat == 0 else message(V9, beat, model.a_set(256, bytes(4 * (1 + a[3]))))
            )
    for n in range(60 * flow.capacity[0]):
        if n % 1000 == 0:
            probe.tick(flow, START + 12 * SECOND + n * 10**5)
        probe.observe(flow, forged(generator.randrange(1 << 32)), generator.randrange(1, 65536), hostile(generator, n))
    for a in legitimate:
        seen = probe.observe(flow, a, PORT, message(V9, 12, model.a_set(256, bytes(4 * (1 + a[3])))))
        assert not seen.flags & probe.UNKNOWN
        assert session(flow, seen.number)["datagrams"] == 13
        assert session(flow, seen.number)["lost"] == 0
    now = counters(flow)
    assert now["evicted_domains"] > 0
    assert now["domains"] <= flow.capacity[0]
    assert now["blocks"] <= flow.capacity[2]


def test_default_is_bounded() -> None:
    assert probe.Flow().bytes <= 64 << 20
    with pytest.raises(ValueError, match="too few"):
        probe.Flow(1000)


def test_one_exporter_is_bounded() -> None:
    """Its forged domains push out its own one-shot domains, not its established ones, and not its neighbor's."""
    flow = new(exporter_domains=8)
    for beat in range(10):
        probe.tick(flow, START + beat * SECOND)
        probe.observe(flow, ADDRESS, PORT, message(V9, beat, domain=1))
        probe.observe(flow, b"\x0a\0\0\2", PORT, message(V9, beat, domain=1))
    for n in range(1000):
        probe.observe(
            flow, ADDRESS, PORT, message(V9, 0, template_set(V9, model.template(256, [(8, 4)])), domain=1000 + n)
        )
    mine = probe.domains_of(flow, ADDRESS, PORT)
    assert len(mine) == 8
    assert session(flow, mine[0])["domain"] == 1
    assert len(probe.domains_of(flow, b"\x0a\0\0\2", PORT)) == 1


def test_items_of_a_domain_are_bounded() -> None:
    """The least recently repeated goes first; options data before templates."""
    flow = new(domain_items=10)
    options = model.options_template(V9, 300, [(1, 4)], [(34, 4)])
    number = probe.observe(flow, ADDRESS, PORT, message(V9, 0, options_set(V9, options))).number
    for n in range(30):
        probe.observe(flow, ADDRESS, PORT, message(V9, 0, model.a_set(300, n.to_bytes(8, "big"))))
    assert len(flow.items(number)) <= 10
    assert set(templates(flow, number)) == {300}
    for n in range(301, 400):
        probe.observe(flow, ADDRESS, PORT, message(V9, 0, template_set(V9, model.template(n, [(8, 4)]))))
    assert set(templates(flow, number)) == set(range(390, 400))
    assert counters(flow)["evicted_items"] > 0


def test_record_bytes_of_an_exporter_are_bounded() -> None:
    flow = new(exporter_blocks=16)
    number = 0
    for n in range(256, 300):
        payload = message(V9, 0, template_set(V9, model.template(n, [(8, 4)] * 90)))
        number = probe.observe(flow, ADDRESS, PORT, payload).number
    assert set(templates(flow, number)) == set(range(295, 300))
    assert counters(flow)["blocks"] == 15
    probe.observe(flow, ADDRESS, PORT, message(V9, 0, template_set(V9, model.template(500, [(8, 4)] * 900))))
    assert counters(flow)["refused_items"] == 1
