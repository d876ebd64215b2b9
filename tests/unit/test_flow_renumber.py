"""Receivers that sample or were injected into: the collector model decodes what was sent and counts no error; all
others get the same bytes.
"""

from __future__ import annotations

import itertools
import random
import subprocess
from pathlib import Path

import pytest
from samplicator import _inside_flow as probe
from support import flows as model
from support.flows import IPFIX, V9, Collector
from support.sampled import ADDRESS, FIELDS, PORT, SECOND, START, Receiver, counters, new, run, stream, template_sets


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("freq", [2, 3, 10])
@pytest.mark.parametrize("start", [0, 2**32 - 700])
def test_the_table_of_the_experiments(kind: int, freq: int, start: int) -> None:
    """FLOW.md: 120 data datagrams, 2400 records: everything; plain sampling; template-safe; template-safe and
    renumbered.
    """
    flow = new()
    payloads = stream(kind, 120, start)
    everything = Receiver(flow, 1)
    plain = Receiver(flow, 2, freq, safe=False, renumbers=False)
    safe = Receiver(flow, 3, freq, renumbers=False)
    ours = Receiver(flow, 4, freq)
    run(flow, payloads, [everything, plain, safe, ours])
    assert (everything.collector.records, everything.collector.sequence_errors) == (2400, 0)
    assert everything.got == payloads
    assert plain.collector.sequence_errors > 0
    assert (safe.collector.records, safe.collector.unknown_sets) == (safe.data_sent * 20, 0)
    assert safe.collector.sequence_errors > 10
    assert (ours.collector.records, ours.collector.sequence_errors, ours.collector.unknown_sets) == (2400 // freq, 0, 0)


@pytest.mark.parametrize("freq", [2, 3, 10])
@pytest.mark.parametrize("start", [0, 2**32 - 900])
def test_netflow5(freq: int, start: int) -> None:
    flow = new()
    generator = random.Random(freq)
    receiver = Receiver(flow, 1, freq)
    sequence = start
    for _ in range(300):
        count = generator.randrange(1, 31)
        payload = model.v5(sequence, count)
        receiver.take(probe.observe(flow, ADDRESS, PORT, payload), payload)
        sequence += count
    expected = None
    for payload in receiver.got:
        number, count = int.from_bytes(payload[16:20], "big"), int.from_bytes(payload[2:4], "big")
        assert expected in (None, number)
        expected = (number + count) % 2**32
    assert len(receiver.got) == 300 // freq


@pytest.mark.parametrize("agent", [bytes([198, 51, 100, 1]), bytes(range(16))])
@pytest.mark.parametrize("freq", [2, 3, 10])
@pytest.mark.parametrize("start", [0, 2**32 - 100])
def test_sflow(agent: bytes, freq: int, start: int) -> None:
    """The number of the datagram, which counts those of one sub-agent: two sub-agents, and nothing but the number."""
    flow = new()
    receiver = Receiver(flow, 1, freq)
    where = 12 + len(agent)
    for i in range(240):
        payload = model.sflow(start + i // 2, agent, i % 2, samples=i % 5, uptime=i)
        before = len(receiver.got)
        receiver.take(probe.observe(flow, ADDRESS, PORT, payload), payload)
        for out in receiver.got[before:]:
            assert out[:where] + out[where + 4 :] == payload[:where] + payload[where + 4 :]
    for sub_agent in (0, 1):
        mine = [out for out in receiver.got if out[where - 1] == sub_agent]
        numbers = [int.from_bytes(out[where : where + 4], "big") for out in mine]
        assert all((b - a) % 2**32 == 1 for a, b in itertools.pairwise(numbers))
    assert len(receiver.got) == 240 // freq


def test_loss_of_sflow_before_us_stays_a_gap() -> None:
    flow = new()
    receiver = Receiver(flow, 1, 3)
    for i in [*range(30), *range(37, 67)]:
        payload = model.sflow(i, bytes(4))
        receiver.take(probe.observe(flow, ADDRESS, PORT, payload), payload)
    numbers = [int.from_bytes(out[16:20], "big") for out in receiver.got]
    assert sum(b - a - 1 for a, b in itertools.pairwise(numbers)) == 7


@pytest.mark.parametrize(
    "payload",
    [model.fixed(1, 0, 1, 52), b"<13>syslog", model.v9(1, 1)[:18], model.ipfix(1, 1) + bytes(16)],
)
def test_never_touched(payload: bytes) -> None:
    """v1, other things and malformed ones, whatever was left out before."""
    flow = new()
    for i in range(4):
        other = model.v9(i, 1)
        probe.leave_out(flow, probe.observe(flow, ADDRESS, PORT, other), 1)
    seen = probe.observe(flow, ADDRESS, PORT, payload)
    probe.leave_out(flow, seen, 1)
    assert probe.keep(flow, probe.observe(flow, ADDRESS, PORT, payload), 1, payload) is payload


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_real_loss_stays_visible(kind: int) -> None:
    """Gaps before us are as many errors at a renumbered collector as at one that gets everything."""
    generator = random.Random(kind)
    flow = new()
    payloads = [p for i, p in enumerate(stream(kind, 400)) if i % 21 == 0 or generator.random() > 0.05]
    everything, ours = Receiver(flow, 1), Receiver(flow, 2, 3)
    run(flow, payloads, [everything, ours])
    last = [int.from_bytes(r.got[-1][12 if kind == V9 else 8 :][:4], "big") for r in (everything, ours)]
    sent = sum(1 if kind == V9 else Collector.take(everything.collector, 9, p) or 0 for p in ours.got[:-1])
    # what the sampling collector misses by number = what was lost before us
    first = int.from_bytes(ours.got[0][12 if kind == V9 else 8 :][:4], "big")
    whole = sum(
        1 if kind == V9 else Collector.take(everything.collector, 8, p) or 0
        for p in everything.got[: everything.got.index(payloads[-1])]
    )
    lost_before = last[0] - whole
    assert 0 <= last[1] - first - sent <= lost_before
    assert ours.collector.sequence_errors <= everything.collector.sequence_errors
    assert ours.collector.sequence_errors > 0


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_restart_begins_anew(kind: int) -> None:
    flow = new()
    ours = Receiver(flow, 1, 3)
    run(flow, stream(kind, 60, 500_000), [ours])
    errors = ours.collector.sequence_errors
    run(flow, stream(kind, 60), [ours])
    assert errors == 0
    assert ours.collector.sequence_errors <= 2
    assert int.from_bytes(ours.got[-1][12 if kind == V9 else 8 :][:4], "big") < 60 * 20


def test_unknown_template_needs_no_guess() -> None:
    """IPFIX whose templates never came: what passes keeps its offset, what was left out is known from the next number:
    no error is possible at a collector that knows the template."""
    flow = new()
    payloads = stream(IPFIX, 100, every=1000)
    ours = Receiver(flow, 1, 3)
    ours.collector.take(0, payloads[0])
    run(flow, payloads[1:], [ours])
    assert ours.collector.sequence_errors == 0
    assert counters(flow)["kept_unknown"] > 0


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_states_are_bounded(kind: int) -> None:
    flow = new(300_000)
    limit = flow.capacity[3]
    for n in range(3 * limit):
        payload = model.v9(0, n)
        probe.leave_out(flow, probe.observe(flow, ADDRESS, 1 + n % 60000, payload), n % 7)
    assert counters(flow)["states"] <= limit


def test_a_receiver_that_is_gone_leaves_no_state() -> None:
    flow = new()
    for domain in range(40):
        seen = probe.observe(flow, ADDRESS, PORT, model.v9(0, domain))
        for receiver in (1, 2, 3):
            probe.leave_out(flow, seen, receiver)
    probe.forget_receiver(flow, 2)
    assert counters(flow)["states"] == 80
    payload = model.v9(1, 7)
    seen = probe.observe(flow, ADDRESS, PORT, payload)
    assert probe.keep(flow, seen, 2, payload) is payload
    assert probe.keep(flow, seen, 3, payload) == model.v9(0, 7)


def test_exporter_mode() -> None:
    addresses = [bytes([10, 0, i // 256, i % 256]) for i in range(4000)]
    for freq in (1, 2, 3, 10):
        kept = sum(probe.keeps_exporter(a, freq) for a in addresses)
        assert abs(kept - 4000 / freq) < 4 * (4000 / freq) ** 0.5 + 1
    assert all(probe.keeps_exporter(a, 1) for a in addresses)


# ---- replay


def numbers(flow: probe.Flow) -> list[int]:
    return [row[0] for row in flow.sessions()]


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("start", [0, 2**32 - 1005])
@pytest.mark.parametrize("payload_bytes", [512, 1400])
def test_a_receiver_that_joins(kind: int, start: int, payload_bytes: int) -> None:
    """Templates first, counted up to the stream, which goes on untouched: all that remained decodes, no error
    (FLOW.md's table).
    """
    flow = new()
    payloads = stream(kind, 120, start, every=1000)
    run(flow, payloads[:109], [])
    late = Receiver(flow, 9)
    (number,) = numbers(flow)
    datagrams, skipped = probe.replay(flow, number, 9, probe.EVERYTHING, probe.JOIN, payload_bytes)
    assert skipped == 0
    assert datagrams
    for datagram in datagrams:
        late.deliver(datagram)
    run(flow, payloads[109:], [late])
    assert (late.collector.records, late.collector.sequence_errors, late.collector.unknown_sets) == (240, 0, 0)
    assert late.collector.options_records == 1
    assert late.got[len(datagrams) :] == payloads[109:], "the stream itself is untouched"
    assert counters(flow)["states"] == 0


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("freq", [1, 3])
def test_refresh_in_a_running_stream(kind: int, freq: int) -> None:
    flow = new()
    receiver, other = Receiver(flow, 1, freq), Receiver(flow, 2)
    payloads = stream(kind, 200)
    for i, payload in enumerate(payloads):
        run(flow, [payload], [receiver, other])
        if i % 17 == 16:
            what = probe.ONLY_TEMPLATES if i % 2 else probe.EVERYTHING
            for datagram in probe.replay(flow, numbers(flow)[0], 1, what, probe.REFRESH, 1400)[0]:
                receiver.deliver(datagram)
    assert (receiver.collector.sequence_errors, receiver.collector.unknown_sets) == (0, 0)
    assert receiver.collector.records == receiver.data_sent * 20
    assert other.got == payloads


@pytest.mark.parametrize("kind", [V9, IPFIX])
@pytest.mark.parametrize("payload_bytes", [512, 1000, 1472, 8972])
def test_many_templates_are_split(kind: int, payload_bytes: int) -> None:
    """Every current template and options record, each once, byte for byte; clocks moved on; nothing beyond the
    given size.
    """
    flow = new()
    generator = random.Random(payload_bytes)
    expected = Collector()
    for n in range(60):
        fields = [(generator.randrange(1, 400), 4) for _ in range(generator.randrange(1, 40))]
        records = [model.template(256 + n, fields)]
        options = model.options_template(kind, 400 + n, [(1, 4)] * generator.randrange(1, 3), fields)
        sets = [model.a_set(0 if kind == V9 else 2, *records), model.a_set(1 if kind == V9 else 3, options, pad=4)]
        width = 4 * (
            len(fields)
            + int.from_bytes(options[2:4] if kind == V9 else options[4:6], "big") // (4 if kind == V9 else 1)
        )
        rows = [generator.randbytes(width) for _ in range(2)]
        sets.append(model.a_set(400 + n, *rows))
        payload = model.v9(n, 5, *sets) if kind == V9 else model.ipfix(2 * n, 5, *sets)
        expected.take(0, payload)
        probe.observe(flow, ADDRESS, PORT, payload)
    probe.tick(flow, START + 90 * SECOND)
    (number,) = numbers(flow)
    datagrams, skipped = probe.replay(flow, number, 9, probe.EVERYTHING, probe.JOIN, payload_bytes)
    assert skipped == 0
    assert all(len(d) <= payload_bytes for d in datagrams)
    got = Collector()
    for datagram in datagrams:
        got.take(0, datagram)
        message = model.parse(datagram)
        assert message is not None
        assert message.seconds == 1700000090
        assert message.uptime == (91000 if kind == V9 else 0)
        if kind == V9:
            n = sum(
                len(s.records) or len(model.split(V9, got.templates[(0, 9, 5, s.identity)], s.body) or [])
                for s in message.sets
            )
            assert message.count == n
            assert all((len(s.body) + 4) % 4 == 0 for s in message.sets)
    assert {k: one.raw for k, one in got.templates.items()} == {k: one.raw for k, one in expected.templates.items()}
    assert got.options == expected.options
    assert (got.sequence_errors, got.unknown_sets) == (0, 0)


def test_options_data_of_an_old_definition_are_not_replayed() -> None:
    flow = new()
    first = model.a_set(1, model.options_template(V9, 257, [(1, 4)], [(34, 4)]), pad=4)
    second = model.a_set(1, model.options_template(V9, 257, [(1, 4)], [(34, 8)]), pad=4)
    probe.observe(flow, ADDRESS, PORT, model.v9(0, 1, first, model.a_set(257, bytes(8))))
    seen = probe.observe(flow, ADDRESS, PORT, model.v9(1, 1, second))
    datagrams, _ = probe.replay(flow, seen.number, 1, probe.EVERYTHING, probe.JOIN, 1400)
    collector = Collector()
    collector.take(0, datagrams[0])
    assert collector.options_records == 0
    assert {one.raw[-2:] for one in collector.templates.values()} == {b"\0\x08"}


def test_a_template_longer_than_a_datagram_is_skipped_and_said() -> None:
    flow = new()
    payload = model.v9(0, 1, model.a_set(0, model.template(256, [(8, 4)] * 300), model.template(257, FIELDS)))
    seen = probe.observe(flow, ADDRESS, PORT, payload)
    datagrams, skipped = probe.replay(flow, seen.number, 1, probe.EVERYTHING, probe.JOIN, 600)
    assert (len(datagrams), skipped) == (1, 1)


def test_refresh_is_due_by_copies_and_by_time() -> None:
    flow = new()
    payloads = stream(V9, 100, every=1000)
    run(flow, payloads[:2], [])
    by_copies = [
        i
        for i, p in enumerate(payloads[2:50])
        if probe.due(flow, probe.observe(flow, ADDRESS, PORT, p), 1, 20, 0, probe.LIST_TEMPLATES)
    ]
    assert by_copies == [19, 39]
    seen = probe.observe(flow, ADDRESS, PORT, payloads[50])
    assert not probe.due(flow, seen, 2, 0, 60_000, probe.LIST_OPTIONS)
    probe.tick(flow, START + 60 * SECOND)
    assert probe.due(flow, seen, 2, 0, 60_000, probe.LIST_OPTIONS)
    assert not probe.due(flow, seen, 2, 0, 60_000, probe.LIST_OPTIONS)


def test_going_round_all_exporters_in_steps() -> None:
    flow = new()
    numbers_of = set()
    for n in range(100):
        with_template = model.v9(0, 1, *(template_sets(V9) if n % 2 else []))
        seen = probe.observe(flow, bytes([10, 0, 0, n]), PORT, with_template)
        if n % 2:
            numbers_of.add(seen.number)
    found, rounds = probe.replayable(flow, 7)
    assert sorted(found) == sorted(numbers_of)
    assert rounds == 15  # of 100 domains, 7 a round


@pytest.mark.parametrize("name", ["netflow9", "ipfix"])
def test_tshark_reads_a_replay(name: str, tmp_path: Path) -> None:
    """A real exporter's templates, replayed: tshark finds them all and nothing malformed; then decodes data with
    them.
    """
    flow = new()
    rows = model.capture_payloads(model.CAPTURES / f"{name}.pcap")
    for address, port, payload in rows:
        probe.observe(flow, address, port, payload)
    (number,) = numbers(flow)
    datagrams, _ = probe.replay(flow, number, 1, probe.EVERYTHING, probe.JOIN, 512)
    data = next(p for _, _, p in reversed(rows) if not probe.scan(p).always)
    path = tmp_path / "replay.pcap"
    out = b"\xd4\xc3\xb2\xa1\2\0\4\0" + bytes(8) + (65535).to_bytes(4, "little") + (101).to_bytes(4, "little")
    for payload in [*datagrams, data]:
        udp = (9995).to_bytes(2, "big") * 2 + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
        packet = (
            b"\x45\0"
            + (20 + len(udp)).to_bytes(2, "big")
            + bytes(4)
            + b"\x40\x11\0\0"
            + b"\xc6\x12\0\1\xc6\x12\0\2"
            + udp
        )
        out += bytes(8) + len(packet).to_bytes(4, "little") * 2 + packet
    path.write_bytes(out)
    text = subprocess.run(
        ["tshark", "-r", str(path), "-d", "udp.port==9995,cflow", "-V"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert "Malformed" not in text
    assert "No template found" not in text
    raws = {row[0] for row in flow.items(number) if row[1] != "options_data"}
    for identity in raws:
        assert f"Template Id: {identity}" in text or f"(Id = {identity}" in text
    assert "SrcAddr" in text
