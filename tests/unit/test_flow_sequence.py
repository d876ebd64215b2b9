"""Loss before us: exact for every format, reordering is none, a restart is none; the incoming sequence against
lists of what was removed.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from samplicator import _inside_flow as probe
from samplicator._inside_flow import FLOW_SESSION_FIELDS
from support import flows as model
from support.flows import IPFIX, V9

ADDRESS, PORT = b"\x0a\0\0\1", 2055
START = 1_700_000_000 * 10**9
KINDS = ["netflow5", "netflow7", "netflow8", "netflow9", "ipfix", "sflow"]


def stream(
    name: str, n: int, generator: random.Random, start: int = 0, uptime: int = 10_000
) -> list[tuple[bytes, int]]:
    """(payload, units) of n datagrams in order; IPFIX and v9 begin with a template."""
    out: list[tuple[bytes, int]] = []
    sequence = start
    for i in range(n):
        count = generator.randrange(1, 30)
        up = uptime + 100 * i
        if name == "netflow5":
            payload, units = model.v5(sequence, count, uptime=up), count
        elif name == "netflow7":
            payload, units = model.fixed(7, sequence, count, 52, uptime=up), count
        elif name == "netflow8":
            payload, units = model.fixed(8, sequence, count, 28, b"\0\0\1\1" + bytes(4), uptime=up), count
        elif name == "sflow":
            payload, units = model.sflow(sequence, uptime=up), 1
        else:
            kind = V9 if name == "netflow9" else IPFIX
            sets = [model.a_set(256, bytes(8 * count))]
            if i == 0:
                sets.insert(0, model.a_set(0 if kind == V9 else 2, model.template(256, [(8, 4), (12, 4)])))
            payload = model.v9(sequence, 1, *sets, uptime=up) if kind == V9 else model.ipfix(sequence, 1, *sets)
            units = 1 if kind == V9 else count
        out.append((payload, units))
        sequence += units
    return out


def feed(flow: probe.Flow, payloads: list[bytes]) -> dict[str, int]:
    number = 0
    for payload in payloads:
        number = probe.observe(flow, ADDRESS, PORT, payload).number
    return dict(zip(FLOW_SESSION_FIELDS, flow.session(number), strict=True))


def new() -> probe.Flow:
    flow = probe.Flow(1 << 22)
    probe.tick(flow, START)
    return flow


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("start", [0, 2**31 - 500, 2**32 - 500])
def test_nothing_lost(name: str, start: int) -> None:
    rows = stream(name, 300, random.Random(name), start)
    row = feed(new(), [p for p, _ in rows])
    assert (row["lost"], row["pending"], row["late"], row["repeated"], row["restarts"]) == (0, 0, 0, 0, 0)
    assert row["units"] == sum(units for _, units in rows)
    assert row["sequence"] == (start + sum(units for _, units in rows)) % 2**32


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("start", [0, 2**32 - 500])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_lost_exactly(name: str, start: int, share: float) -> None:
    generator = random.Random(f"{name}{start}{share}")
    rows = stream(name, 600, generator, start)
    gone = {i for i in range(1, 599) if generator.random() < share}
    row = feed(new(), [p for i, (p, _) in enumerate(rows) if i not in gone])
    assert row["lost"] + row["pending"] == sum(rows[i][1] for i in gone)
    assert (row["late"], row["repeated"], row["restarts"]) == (0, 0, 0)


def test_a_gap_is_final_after_the_window_or_silence() -> None:
    rows = stream("netflow5", 30, random.Random(1))
    flow = new()
    row = feed(flow, [p for i, (p, _) in enumerate(rows[:21]) if i != 2])
    assert (row["lost"], row["pending"]) == (rows[2][1], 0)
    row = feed(flow, [p for p, _ in rows[22:24]])
    assert (row["lost"], row["pending"]) == (rows[2][1], rows[21][1])
    probe.tick(flow, START + 2 * 10**9)
    probe.age(flow, flow.capacity[0])
    row = dict(zip(FLOW_SESSION_FIELDS, flow.session(row["number"]), strict=True))
    assert (row["lost"], row["pending"]) == (rows[2][1] + rows[21][1], 0)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("late", range(1, 17))
def test_one_late_is_not_lost(name: str, late: int) -> None:
    payloads = [p for p, _ in stream(name, 60, random.Random(name))]
    payloads.insert(20 + late, payloads.pop(20))
    row = feed(new(), payloads)
    assert (row["lost"], row["pending"], row["late"], row["repeated"], row["restarts"]) == (0, 0, 1, 0, 0)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_reordered_is_not_lost(name: str, seed: int) -> None:
    """5 % of the datagrams up to 16 places late (never the first: it holds the template)."""
    generator = random.Random(f"{name}{seed}")
    payloads = [p for p, _ in stream(name, 1000, generator, 2**32 - 3000)]
    order = sorted(range(1000), key=lambda i: i + (generator.uniform(1, 15) if i and generator.random() < 0.05 else 0))
    row = feed(new(), [payloads[i] for i in order])
    assert (row["lost"], row["pending"], row["restarts"]) == (0, 0, 0)
    assert row["late"] > 20


@pytest.mark.parametrize("name", KINDS)
def test_reordered_and_lost(name: str) -> None:
    generator = random.Random(name)
    rows = stream(name, 1000, generator)
    gone = {i for i in range(1, 980) if generator.random() < 0.03}
    order = sorted(range(1000), key=lambda i: i + (generator.uniform(1, 10) if i and generator.random() < 0.05 else 0))
    row = feed(new(), [rows[i][0] for i in order if i not in gone])
    assert row["lost"] + row["pending"] == sum(rows[i][1] for i in gone)


@pytest.mark.parametrize("name", KINDS)
def test_repeated_is_not_lost(name: str) -> None:
    payloads = [p for p, _ in stream(name, 60, random.Random(name))]
    row = feed(new(), [p for i, payload in enumerate(payloads) for p in [payload] * (1 + (i % 7 == 3))])
    assert (row["lost"], row["pending"], row["restarts"]) == (0, 0, 0)
    assert row["repeated"] == sum(i % 7 == 3 for i in range(60))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("before", [40, 400])
def test_restart_is_not_lost(name: str, before: int) -> None:
    """From far along back to 0, the uptime too; then some real loss after it."""
    first = stream(name, before, random.Random(1), 100_000, uptime=10**7)
    second = stream(name, 100, random.Random(2))
    row = feed(new(), [p for p, _ in first] + [p for i, (p, _) in enumerate(second) if i != 50])
    assert (row["lost"] + row["pending"], row["restarts"]) == (second[50][1], 1)
    assert row["sequence"] == sum(units for _, units in second)


@pytest.mark.parametrize("name", ["netflow5", "netflow9", "sflow"])
@pytest.mark.parametrize("start", [0, 5, 10**6])
def test_uptime_back_is_a_restart_at_once(name: str, start: int) -> None:
    """Also where the number happens to jump ahead, or back by little."""
    flow = new()
    feed(flow, [p for p, _ in stream(name, 12, random.Random(1), uptime=10**7)])
    row = feed(flow, [stream(name, 1, random.Random(2), start)[0][0]])
    assert (row["lost"] + row["pending"], row["restarts"]) == (0, 1)


def test_uptime_wraps() -> None:
    """After 49.7 days sysUptime begins at 0: no restart."""
    row = feed(new(), [model.v9(i, 1, uptime=(2**32 - 5000 + 1000 * i) % 2**32) for i in range(20)])
    assert (row["lost"], row["pending"], row["restarts"], row["repeated"]) == (0, 0, 0, 0)


def test_one_stray_is_no_restart() -> None:
    """A datagram of long ago, later than the window: counted as repeated, the stream goes on without loss."""
    payloads = [p for p, _ in stream("netflow5", 100, random.Random(3))]
    row = feed(new(), [*payloads[:80], payloads[2], *payloads[80:]])
    assert (row["lost"], row["pending"], row["restarts"], row["repeated"]) == (0, 0, 0, 1)


def test_domains_count_apart() -> None:
    flow = new()
    for i in range(50):
        probe.observe(flow, ADDRESS, PORT, model.v9(i, 1))
        probe.observe(flow, ADDRESS, PORT, model.v9(10 * i, 2))
    rows = [dict(zip(FLOW_SESSION_FIELDS, row, strict=True)) for row in flow.sessions()]
    assert {row["domain"]: row["lost"] + row["pending"] for row in rows} == {1: 0, 2: 49 * 9}


def test_unknown_ipfix_records_are_not_loss() -> None:
    """Without the template nobody can count: the next number says how many there were; what is really missing then
    stays unseen.
    """
    rows = stream("ipfix", 50, random.Random(4))
    row = feed(new(), [p for p, _ in rows[1:]])
    assert (row["lost"], row["pending"], row["unknown"]) == (0, 0, 49)


def test_malformed_is_not_loss() -> None:
    payloads = [model.v9(i, 1, model.a_set(256, bytes(8))) for i in range(30)]
    payloads[10] = payloads[10][:-3]
    flow = new()
    row = feed(flow, [payloads[0]])
    for payload in payloads[1:]:
        probe.observe(flow, ADDRESS, PORT, payload)
    row = dict(zip(FLOW_SESSION_FIELDS, flow.session(row["number"]), strict=True))
    assert (row["lost"], row["pending"], row["malformed"], row["datagrams"]) == (0, 0, 1, 29)


def ipfix_style(style: int) -> Callable[[int, list[int]], list[bytes]]:
    """An IPFIX exporter that counts as style says: bit 0 the message's own records too, bit 1 no records of
    options data.
    """

    def make(n: int, units: list[int]) -> list[bytes]:
        generator = random.Random(style)
        total, out = 0, []
        template = model.a_set(2, model.template(256, [(8, 4)]))
        options = model.a_set(3, model.options_template(IPFIX, 257, [(149, 4)], [(34, 4)]))
        for i in range(n):
            rows, extra = generator.randrange(1, 30), 1 if i % 16 == 0 else 0
            sets = [model.a_set(256, bytes(4 * rows))]
            if extra:
                sets = [template, options, model.a_set(257, bytes(8)), *sets]
            step = rows + (0 if style & 2 else extra)
            out.append(model.ipfix(total + (step if style & 1 else 0), 1, *sets))
            total += step
            units.append(step)
        return out

    return make


@pytest.mark.parametrize("style", range(4))
@pytest.mark.parametrize("share", [0.0, 0.05])
def test_ipfix_exporters_that_count_differently(style: int, share: float) -> None:
    units: list[int] = []
    payloads = ipfix_style(style)(800, units)
    generator = random.Random(style)
    gone = {i for i in range(64, 790) if i % 16 and generator.random() < share}
    row = feed(new(), [p for i, p in enumerate(payloads) if i not in gone])
    lost = row["lost"] + row["pending"]
    assert lost == sum(units[i] for i in gone)
    assert row["restarts"] == 0


@pytest.mark.parametrize("name", ["netflow5", "netflow9", "ipfix", "sflow"])
def test_captures_have_no_loss(name: str) -> None:
    flow = new()
    for address, port, payload in model.capture_payloads(model.CAPTURES / f"{name}.pcap"):
        probe.observe(flow, address, port, payload)
    for values in flow.sessions():
        row = dict(zip(FLOW_SESSION_FIELDS, values, strict=True))
        assert (row["lost"], row["pending"], row["late"], row["repeated"], row["restarts"], row["unknown"]) == (0,) * 6
