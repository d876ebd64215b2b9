"""What `samplicator tap` says of payloads: held against tshark for real exporters, against the slow model for sets, and
against any bytes at all: no exception, bounded work, bounded lines.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplicator.cli.tap import decode as decoding
from samplicator.cli.tap import memory as memories
from samplicator.cli.tap.decode import count_records, decode, shape_of
from samplicator.cli.tap.events import Datagram, Open
from samplicator.cli.tap.facts import Facts, Flows, Other, Sets, Sflow, Snmp, Syslog
from samplicator.cli.tap.lines import WIDTH, line, told
from samplicator.cli.tap.memory import Known, Memory
from samplicator.demo.traffic import payloads
from support import flows as model
from support.flows import IPFIX, V9
from support.process import tool
from support.work import calls_of

CAPTURES = Path(memories.__file__).parents[2] / "captures"
EXPORTER = ip_address("192.0.2.1")
FIELDS: list[tuple[int, ...]] = [(8, 4), (12, 4), (1, 8)]


def memory() -> Memory:
    return Memory(lambda exporter: iter(()), lambda text: None)


def session() -> Known:
    return memory().session(EXPORTER, 2055)


def text(payload: bytes) -> str:
    return told(decode(payload, session()), len(payload))


# ---------------------------------------------------------------------------------------------------- real exporters


def tshark(name: str, port: int, protocol: str, *fields: str) -> list[list[str]]:
    """Fields of every datagram of a capture; values of a field that is there several times by commas."""
    argv = [tool("tshark"), "-r", str(CAPTURES / f"{name}.pcap"), "-d", f"udp.port=={port},{protocol}", "-T", "fields"]
    argv += [word for field in fields for word in ("-e", field)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    return [row.split("\t") for row in done.stdout.splitlines()]


def numbers(cell: str) -> list[int]:
    return [int(word) for word in cell.split(",") if word]


def test_netflow5_as_tshark_has_it() -> None:
    fields = ("count", "sequence", "engine_type", "engine_id")
    rows = tshark("netflow5", 2055, "cflow", *(f"cflow.{field}" for field in fields))
    known = session()
    found = [decode(payload, known) for payload in payloads("netflow5")]
    assert found == [
        Flows("netflow5", int(count), int(sequence), f"{int(kind)}/{int(number)}")
        for count, sequence, kind, number in rows
    ]
    assert sum(facts.records for facts in found if isinstance(facts, Flows)) > 1000


def test_sflow_as_tshark_has_it() -> None:
    names = ("agent", "sub_agent_id", "sequence_number", "sampletype")
    rows = tshark("sflow", 6343, "sflow", *(f"sflow_245.{field}" for field in names))
    found = [decode(payload, session()) for payload in payloads("sflow")]
    total: Counter[str] = Counter()
    for facts, (agent, sub_agent, sequence, kinds) in zip(found, rows, strict=True):
        assert isinstance(facts, Sflow)
        assert (facts.agent, facts.sub_agent, facts.sequence) == (agent, int(sub_agent), int(sequence))
        assert facts.samples == Counter({1: "flow", 2: "counter"}[kind] for kind in numbers(kinds))
        assert not facts.fault
        total.update(facts.samples)
    assert total["flow"] > 400
    assert total["counter"] > 0


@pytest.mark.parametrize(("name", "port", "domain"), [("netflow9", 9995, "source_id"), ("ipfix", 4739, "od_id")])
def test_sets_as_tshark_has_them(name: str, port: int, domain: str) -> None:
    """Sequences, domains, templates with the numbers of their fields, and the records of every data set."""
    fields = ("sequence", domain, "template_id", "template_field_count", "flowset_id")
    rows = tshark(name, port, "cflow", *(f"cflow.{field}" for field in fields))
    done = subprocess.run(
        [tool("tshark"), "-r", str(CAPTURES / f"{name}.pcap"), "-d", f"udp.port=={port},cflow", "-V"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    frames = re.split(r"^Frame \d+: ", done.stdout, flags=re.MULTILINE)[1:]
    known, records, templates = session(), 0, 0
    for payload, row, frame in zip(payloads(name), rows, frames, strict=True):
        facts = decode(payload, known)
        assert isinstance(facts, Sets)
        assert (facts.sequence, facts.domain, facts.fault) == (int(row[0]), int(row[1]), "")
        sets = numbers(row[4])
        assert Counter({data.id: data.sets for data in facts.data}) == Counter(s for s in sets if s >= 256)
        assert {template.id for template in facts.templates} <= set(numbers(row[2]))
        assert [t.fields for t in facts.templates if not t.options] == numbers(row[3])[: len(facts.templates)]
        flows = re.findall(r"^        Flow \d+$", frame, re.MULTILINE)
        assert sum(data.records for data in facts.data) == len(flows)
        assert not any(data.uncounted for data in facts.data)
        records += len(flows)
        templates += len(facts.templates)
    assert records > 1000
    assert templates > 4


def test_names_of_fields_are_ianas() -> None:
    first = decode(payloads("ipfix")[0], session())
    assert isinstance(first, Sets)
    names = {template.id: template.names for template in first.templates}
    assert names[1024][:4] == [
        "sourceIPv4Address", "destinationIPv4Address", "flowStartSysUpTime", "flowEndSysUpTime"
    ]  # fmt: skip
    assert [template.id for template in first.templates if template.options] == [256]


# ---------------------------------------------------------------------------------------------------- sets


def sets(kind: int, *some: bytes) -> bytes:
    return model.v9(1234, 7, *some) if kind == V9 else model.ipfix(1234, 7, *some)


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_templates_options_templates_and_data(kind: int) -> None:
    plain, options = (0, 1) if kind == V9 else (2, 3)
    known = session()
    scope, field = (1, 4), (34, 4)
    payload = sets(
        kind,
        model.a_set(plain, model.template(256, FIELDS), model.template(257, [(4, 1)] * 20)),
        model.a_set(options, model.options_template(kind, 258, [scope], [field]), pad=4),
        model.a_set(256, bytes(32)),
        model.a_set(258, bytes(8)),
        model.a_set(256, bytes(16), pad=4),
        model.a_set(300, bytes(16)),
    )
    head = "v9 domain 7 seq 1234" if kind == V9 else "IPFIX domain 7 seq 1234"
    first = "system" if kind == V9 else "octetDeltaCount"
    assert told(decode(payload, known), len(payload)) == (
        f"{head} len {len(payload)}: templates 256 (sourceIPv4Address destinationIPv4Address octetDeltaCount), "
        f"257 ({'protocolIdentifier ' * 6}... 20 fields), options templates 258 ({first} samplingInterval), "
        "data 256 x3, data 258 x1, data 300 (template not seen)"
    )
    later = sets(kind, model.a_set(256, bytes(16)))
    assert told(decode(later, known), len(later)).endswith(": data 256 x1")
    assert told(decode(later, session()), len(later)).endswith(": data 256 (template not seen)")


def test_enterprise_fields_withdrawals_and_variable_length() -> None:
    known = session()
    fields = [(1, 8), (95, 65535), (12232, 65535, 6876), (1, 8, 29305)]
    first = model.ipfix(0, 1, model.a_set(2, model.template(256, fields), model.withdrawal(300), model.withdrawal(2)))
    assert told(decode(first, known), len(first)).endswith(
        "templates 256 (octetDeltaCount applicationId e6876/12232 reverseOctetDeltaCount), 2 templates withdrawn"
    )
    records = [bytes(8) + b"\3abc" + b"\xff\1\0" + bytes(256) + bytes(8), bytes(8) + b"\0" + b"\0" + bytes(8)]
    data = model.ipfix(1, 1, model.a_set(256, *records, *records, pad=4))
    assert told(decode(data, known), len(data)).endswith(": data 256 x4")


def test_domains_and_sessions_have_templates_of_their_own() -> None:
    known = memory()
    decode(model.v9(1, 7, model.a_set(0, model.template(256, FIELDS))), known.session(EXPORTER, 1))
    data = model.v9(2, 7, model.a_set(256, bytes(16)))
    assert "x1" in told(decode(data, known.session(EXPORTER, 1)), 1)
    assert "not seen" in told(decode(data, known.session(EXPORTER, 2)), 1)
    assert "not seen" in told(decode(model.v9(2, 8, model.a_set(256, bytes(16))), known.session(EXPORTER, 1)), 1)


@given(st.lists(st.sampled_from([0, 1, 3, 8, 65535]), max_size=8), st.integers(0, 9))
def test_records_are_counted(lengths: list[int], count: int) -> None:
    """Fixed and variable, with padding shorter than the shortest record (RFC 7011, 3.3.1)."""
    record = b"".join(b"\2ab" if length == 65535 else bytes(length) for length in lengths)
    found = count_records(record * count, shape_of(lengths))
    assert found == (count if record else None)
    if sum(1 if length == 65535 else length for length in lengths) > 3:
        assert count_records(record * count + bytes(3), shape_of(lengths)) == count


# ---------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (model.v5(1, 30)[:-1], "v5 engine 0/0 seq 1 len 1463: 30 records, MALFORMED: 30 records need 1464 bytes"),
        (b"\0\5\0\1", "v5 len 4: 0 records, MALFORMED: the header is cut short"),
        (b"\0\x09\0\1", "v9 domain 0 seq 0 len 4: no set, MALFORMED: the header is cut short"),
        (model.ipfix(1, 2)[:-1] + b"", "IPFIX domain 0 seq 0 len 15: no set, MALFORMED: the header is cut short"),
        (model.ipfix(1, 2, model.a_set(256, b"abcd"))[:-1], "MALFORMED: the header says 24 bytes"),
        (model.ipfix(1, 2) * 2, "no set, MALFORMED: a second message follows"),
        (model.v9(1, 2, b"\1\0\0\3"), "no set, MALFORMED: set 1 says 3 bytes, 4 are left"),
        (model.v9(1, 2, b"\1\0\0\x08abcd", b"\1\0\0\x09abcd"), "MALFORMED: set 2 says 9 bytes, 8 are left"),
        (model.v9(1, 2, model.a_set(0, b"\1\0\0\5")), "no set, MALFORMED: set 1: template 256 is cut short"),
        (model.ipfix(1, 2, model.a_set(2, b"\0\5\0\1", bytes(4))), "set 1: a template has the number 5"),
        (model.ipfix(1, 2, model.a_set(3, b"\1\0\0\1\0\2", bytes(4))), "set 1: more scopes than fields"),
        (model.sflow(1)[:20], "MALFORMED: the header is cut short"),
        (b"\0\0\0\5\0\0\0\3" + bytes(60), "MALFORMED: the agent has address type 3"),
        (model.sflow(1, samples=2)[:-8], "sub-agent 0 seq 1 len 36: 1 flow sample, MALFORMED: 2 samples are told"),
        (model.sflow(1)[:-4] + b"\0\0\0\1", "no sample, MALFORMED: sample 1 says 1 bytes, 0 are left"),
    ],
)
def test_what_breaks_the_rules(payload: bytes, words: str) -> None:
    assert words in text(payload)


def test_zeros_that_fill_up_are_no_fault() -> None:
    payload = model.v9(1, 2, model.a_set(256, b"abcd")) + bytes(40)
    assert text(payload) == f"v9 domain 2 seq 1 len {len(payload)}: data 256 (template not seen)"


# ---------------------------------------------------------------------------------------------------- other protocols


def ber(tag: int, value: bytes) -> bytes:
    size = bytes([len(value)]) if len(value) < 128 else b"\x82" + len(value).to_bytes(2, "big")
    return bytes([tag]) + size + value


def snmp(version: int, pdu: int) -> bytes:
    return ber(0x30, ber(2, bytes([version])) + ber(4, b"s3cret") + ber(pdu, bytes(200)))


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (model.fixed(1, 0, 3, 52), "v1 len 172: 3 records"),
        (model.fixed(7, 9, 1, 52), "v7 seq 9 len 76: 1 record"),
        (model.fixed(8, 9, 2, 28, b"\1\2\1\2" + bytes(4)), "v8 engine 1/2 aggregation 1 seq 9 len 84: 2 records"),
        (model.sflow(5, bytes(15) + b"\1", 3, 2), "sFlow agent ::1 sub-agent 3 seq 5 len 56: 2 flow samples"),
        (b"<0>x", "syslog kern.emerg len 4: x"),
        (b"<191>1 - a\x1b[0m\xff\n", "syslog local7.debug len 16: 1 - a\\x1b[0m\\xff"),
        (b"<192>x", "6 bytes"),
        (b"<007>x", "6 bytes"),
        (snmp(0, 0xA4), f"SNMP v1 trap len {len(snmp(0, 0xA4))}"),
        (snmp(1, 0xA7), f"SNMP v2c trap len {len(snmp(1, 0xA7))}"),
        (snmp(1, 0xA6), f"SNMP v2c inform len {len(snmp(1, 0xA6))}"),
        (ber(0x30, ber(2, b"\3") + ber(0x30, bytes(13))), "SNMP v3 len 20"),
        (snmp(1, 0xA7)[:-1], f"{len(snmp(1, 0xA7)) - 1} bytes"),
        (snmp(2, 0xA7), f"{len(snmp(2, 0xA7))} bytes"),
        (b"", "0 bytes"),
        (b"\0", "1 bytes"),
        (bytes(1400), "1400 bytes"),
    ],
)
def test_other_protocols(payload: bytes, words: str) -> None:
    assert text(payload) == words


def test_a_community_is_not_told() -> None:
    facts = decode(snmp(1, 0xA7), session())
    assert isinstance(facts, Snmp)
    assert "s3cret" not in repr(facts)


def test_samples_of_other_formats() -> None:
    samples = b"".join(tag.to_bytes(4, "big") + bytes(4) for tag in (1, 2, 3, 4, 5, 4413 << 12 | 1))
    payload = model.sflow(1, samples=0)[:-4] + (6).to_bytes(4, "big") + samples
    assert text(payload).endswith(": 2 flow samples, 2 counter samples, 1 e0/5 sample, 1 e4413/1 sample")


# ---------------------------------------------------------------------------------------------------- any bytes

HEADS = [
    b"",
    b"\0\1",
    b"\0\5",
    b"\0\7",
    b"\0\x08",
    b"\0\x09",
    b"\0\x0a",
    b"\0\0\0\5",
    b"\0\0\0\5\0\0\0\1",
    b"<34>",
    b"0\x82",
]
SETS = st.builds(
    lambda number, body, extra: number.to_bytes(2, "big") + (len(body) + 4 + extra).to_bytes(2, "big") + body,
    st.sampled_from([0, 1, 2, 3, 4, 255, 256, 257]),
    st.binary(max_size=60),
    st.sampled_from([0, 0, 0, 1, -1]),
)
MESSAGES = st.builds(lambda kind, some: sets(kind, *some), st.sampled_from([V9, IPFIX]), st.lists(SETS, max_size=8))
BYTES = st.one_of(st.builds(bytes.__add__, st.sampled_from(HEADS), st.binary(max_size=300)), MESSAGES)


def shown(payload: bytes, known: Known) -> tuple[Facts, str]:
    facts = decode(payload, known)
    event = Datagram("in", 1, EXPORTER, 1, "flows", "", "", "", 1, 0, len(payload), payload)
    return facts, line(event, facts, Open({}, {}))


@settings(max_examples=250, deadline=None)
@given(st.lists(BYTES, max_size=4))
def test_no_bytes_are_an_error(some: Sequence[bytes]) -> None:
    """One after the other, so that templates of any bytes meet data of any bytes."""
    known = session()
    for payload in some:
        facts, shown_line = shown(payload, known)
        assert shown_line.isprintable()
        assert len(shown_line) <= WIDTH
        assert asdict(facts)["protocol"]
        if isinstance(facts, Other | Syslog | Snmp):
            assert payload[:2] not in (b"\0\x09", b"\0\x0a") or len(payload) < 4


def worst() -> dict[str, list[bytes]]:
    """Payloads as long as UDP has them, which ask for as much work as possible."""
    size = 65400
    variable = model.template(256, [(95, 65535)] * 16000)
    tiny = model.a_set(256) * (size // 4)
    return {
        "templates": [model.v9(1, 1, model.a_set(0, *[model.template(256 + n, [(1, 0)]) for n in range(8000)]))],
        "withdrawals": [model.ipfix(1, 1, model.a_set(2, *[model.withdrawal(256)] * (size // 4)))],
        "one template": [model.v9(1, 1, model.a_set(0, model.template(256, [(1, 0)] * 16000)))],
        "many sets": [model.v9(1, 1, *[model.a_set(256 + n) for n in range(16000)])],
        "sets of a long template": [model.ipfix(1, 1, model.a_set(2, variable)), model.ipfix(1, 1, tiny)],
        "records of one byte": [
            model.ipfix(1, 1, model.a_set(2, model.template(256, [*[(1, 0)] * 15000, (95, 65535)]))),
            model.ipfix(1, 1, model.a_set(256, bytes(size))),
        ],
        "records of no byte": [
            model.ipfix(1, 1, model.a_set(2, model.template(256, [(1, 0)]))),
            model.ipfix(1, 1, model.a_set(256, bytes(size))),
        ],
        "samples": [model.sflow(1, samples=8000)],
        "samples of no end": [model.sflow(1)[:24] + b"\xff" * 4 + bytes(size)],
        "syslog": [b"<0>" + b"\x1b" * size],
        "zeros": [bytes(size)],
    }


@pytest.mark.parametrize("name", worst())
def test_work_is_bounded_by_the_bytes(name: str) -> None:
    """Four calls per byte at most, whatever the machine; 2.5 are the most there are now."""
    known, some = session(), worst()[name]

    def decode() -> None:
        for payload in some:
            assert len(payload) < 65536
            facts, shown_line = shown(payload, known)
            assert len(shown_line) <= WIDTH
            assert len(repr(facts)) < 2_000_000

    assert calls_of(decode) < 1000 + 4 * sum(map(len, some))


def test_templates_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "MOST_WEIGHT", 100)
    known = memory()
    for number in range(1000):
        known.learn(("x", 1, 9, 0, number), shape_of([65535] * (number % 7)))
        known.find(("x", 1, 9, 0, 990))
    kept = [known.find(("x", 1, 9, 0, number)) for number in range(1000)]
    assert 10 < sum(shape is not None for shape in kept) <= 100
    assert kept[999] is not None
    known.learn(("x", 1, 9, 0, 5), shape_of([65535] * 200))  # too long to be kept at all
    assert known.find(("x", 1, 9, 0, 5)) is None


def test_a_template_that_changes_is_still_that_of_all_domains() -> None:
    known = memory()
    for shape in ((8,), (9,)):
        known.learn(("x", 1, 9, 5, 256), shape)
        assert known.find(("x", 1, 9, 6, 256), any_domain=True) == shape
        assert known.find(("x", 1, 9, 6, 256)) is None
    known.learn(("x", 1, 9, 7, 256), (10,))
    assert known.find(("x", 1, 9, 6, 256), any_domain=True) is None
    assert known.find(("x", 1, 9, 7, 256), any_domain=True) == (10,)


def test_facts_of_a_datagram_are_bounded() -> None:
    (payload,) = worst()["templates"]
    facts = decode(payload, session())
    assert isinstance(facts, Sets)
    assert len(facts.templates) == decoding.MOST_TEMPLATES
    assert facts.more_templates == 8000 - decoding.MOST_TEMPLATES
    assert f"{facts.more_templates} more templates" in told(facts, len(payload))
