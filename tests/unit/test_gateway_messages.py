"""What gateways do to IPFIX messages, against the collector of tests/support/flows.py: splitting, counting, templates.

A message that came by a session and what leaves for the workers must say the same to a collector; so must what copies
say and what a session is told.
"""

from __future__ import annotations

import random
import struct

import pytest
from samplicator.gateways import heard, ipfix, netflow9, told
from samplicator.gateways.apart import Apart
from samplicator.gateways.budget import Budget
from samplicator.gateways.heard import Heard
from samplicator.gateways.told import Told
from support import flows as model
from support.flows import VARIABLE, Collector, a_set, options_template, template, withdrawal

FIXED: list[tuple[int, ...]] = [(8, 4), (12, 4), (1, 8)]
STRINGS: list[tuple[int, ...]] = [(8, 4), (371, VARIABLE), (12, 4), (95, VARIABLE, 9)]
OPTIONS: list[tuple[int, ...]] = [(10, 4)]
NAMES: list[tuple[int, ...]] = [(82, VARIABLE)]


def text(length: int) -> bytes:
    return bytes([length]) if length < 255 else b"\xff" + struct.pack(">H", length)


def strings(r: random.Random) -> bytes:
    a, b = r.choice((0, 1, 30, 254, 255, 300)), r.randrange(40)
    return r.randbytes(4) + text(a) + r.randbytes(a) + r.randbytes(4) + text(b) + r.randbytes(b)


def names(r: random.Random, number: int) -> bytes:
    size = r.randrange(60)
    return struct.pack(">I", number) + text(size) + r.randbytes(size)


class Stream:
    """An exporter's stream with true numbers. sequence: by domain."""

    def __init__(self, seed: int, domains: int = 2) -> None:
        self.random = random.Random(seed)
        self.sequence = [self.random.choice((0, 7, 2**32 - 50)) for _ in range(domains)]
        self.taught: set[int] = set()

    def message(self, size: int) -> bytes:
        """Of about so many bytes: each kind of set, in any order, behind the templates."""
        r = self.random
        domain = r.randrange(len(self.sequence))
        sets, records, used = [], 0, 16
        if domain not in self.taught or r.random() < 0.1:
            self.taught.add(domain)
            sets.append(a_set(2, template(256, FIXED), template(257, STRINGS), pad=4))
            sets.append(a_set(3, options_template(model.IPFIX, 258, OPTIONS, NAMES), pad=4))
        while used < size:
            kind = r.choice((256, 257, 258))
            count = r.randrange(1, 60)
            if kind == 256:
                rows = [r.randbytes(16) for _ in range(count)]
            else:
                rows = [strings(r) if kind == 257 else names(r, n) for n in range(count)]
            one = a_set(kind, *rows, pad=4 if kind == 256 else 1)
            if used + len(one) > 60000:
                break
            sets.append(one)
            used += len(one)
            records += count
        made = model.ipfix(self.sequence[domain], domain, *sets)
        self.sequence[domain] = (self.sequence[domain] + records) % 2**32
        return made


def seen_by_collector(payloads: list[bytes]) -> tuple[object, ...]:
    collector = Collector()
    for payload in payloads:
        collector.take(0, payload)
    assert (collector.sequence_errors, collector.unknown_sets, collector.undecodable) == (0, 0, 0)
    return (
        collector.records,
        collector.options_records,
        collector.options,
        {k: t.raw for k, t in collector.templates.items()},
    )


def rows_of(payloads: list[bytes]) -> list[tuple[int, int, bytes]]:
    """Every data record in order: domain, template, bytes."""
    templates: dict[tuple[int, int], model.Template] = {}
    found = []
    for payload in payloads:
        message = model.parse(payload)
        assert message is not None
        for one in message.sets:
            for record in one.records:
                if isinstance(record, model.Template):
                    templates[message.domain, record.identity] = record
            if one.identity >= 256:
                rows = model.split(model.IPFIX, templates[message.domain, one.identity], one.body)
                assert rows is not None
                found += [(message.domain, one.identity, row) for _, row in rows]
    return found


@pytest.mark.parametrize("limit", [512, 1452, 9000])
@pytest.mark.parametrize("seed", range(8))
def test_pieces_say_what_the_message_said(seed: int, limit: int) -> None:
    stream, session = Stream(seed), Heard(limit)
    messages = [stream.message(stream.random.choice((10, 400, 3000, 40000))) for _ in range(25)]
    pieces = [piece for message in messages for piece in session.take(message)]
    assert session.split_up > 0
    assert rows_of(pieces) == rows_of(messages)
    assert seen_by_collector(pieces) == seen_by_collector(messages)
    longest = max(len(row) for _, _, row in rows_of(messages))
    assert max(map(len, pieces)) <= max(limit, 20 + longest)
    assert session.malformed == 0


@pytest.mark.parametrize("seed", range(4))
def test_short_messages_pass_untouched(seed: int) -> None:
    stream, session = Stream(seed), Heard(65507)
    for _ in range(50):
        message = stream.message(800)
        assert session.take(message) == [message]


def test_withdrawals_stay_here_and_all_else_goes_on() -> None:
    session = Heard(1452)
    session.take(model.ipfix(0, 1, a_set(2, template(256, FIXED), template(257, STRINGS))))
    mixed = model.ipfix(0, 1, a_set(2, withdrawal(256), template(300, FIXED)), a_set(300, bytes(16)))
    assert session.take(mixed) == [model.ipfix(0, 1, a_set(2, template(300, FIXED)), a_set(300, bytes(16)))]
    assert session.take(model.ipfix(1, 1, a_set(2, withdrawal(257)))) == []
    assert session.withdrawn == 2
    again = Collector()
    for payload in session.templates():
        again.take(0, payload)
    assert [key[3] for key in again.templates] == [300]
    assert session.take(model.ipfix(1, 1, a_set(2, withdrawal(2)))) == []
    assert list(session.templates()) == []


def test_what_is_repeated_has_the_number_of_what_comes_next() -> None:
    stream, session = Stream(3, 1), Heard(1452)
    payloads = [p for _ in range(5) for p in session.take(stream.message(500))]
    payloads += list(session.templates())
    payloads += session.take(stream.message(500))
    seen_by_collector(payloads)


@pytest.mark.parametrize("seed", range(6))
def test_streams_that_count_apart_become_one_count(seed: int) -> None:
    """RFC 7011 section 3.1: a count per stream. A message that a stream has lost leaves as large a gap."""
    r = random.Random(seed)
    session, collector = Heard(1452), Collector()
    numbers = [r.randrange(2**32) for _ in range(4)]
    for payload in session.take(model.ipfix(numbers[0], 9, a_set(2, template(256, FIXED))), 0):
        collector.take(0, payload)
    records = 0
    for _ in range(200):
        stream, count = r.randrange(4), r.randrange(1, 300)
        message = model.ipfix(numbers[stream], 9, a_set(256, bytes(16) * count))
        numbers[stream] = (numbers[stream] + count) % 2**32
        records += count
        for payload in session.take(message, stream):
            collector.take(0, payload)
    assert (collector.records, collector.sequence_errors, collector.unknown_sets) == (records, 0, 0)
    before = collector.expected[0, 10, 9]
    assert before is not None
    lost = (numbers[2] + 17) % 2**32  # 17 records of stream 2 never came
    (late,) = session.take(model.ipfix(lost, 9, a_set(256, bytes(16))), 2)
    found = model.parse(late)
    assert found is not None
    assert (found.sequence - before) % 2**32 == 17


@pytest.mark.parametrize("seed", range(10))
def test_hostile_messages_are_left_out_and_bounded(seed: int) -> None:
    stream, session = Stream(seed), Heard(1452)
    r = stream.random
    for _ in range(300):
        message = bytearray(stream.message(r.choice((20, 3000))))
        for _ in range(r.randrange(4)):
            message[r.randrange(16, len(message))] = r.choice((0, 1, 2, 3, 255, r.randrange(256)))
        try:
            made = session.take(bytes(message), r.randrange(2))
        except OverflowError:
            continue
        for piece in made:
            ipfix.sets_of(piece)
    for length in range(60):
        session.take(r.randbytes(length))
    assert session.malformed > 50


def test_a_session_that_teaches_too_much_ends() -> None:
    wide = template(256, [(1, 1)] * 16000)
    floods = {
        "templates": [
            model.ipfix(0, n % 8, a_set(2, template(256 + n // 8, FIXED))) for n in range(heard.MAX_TEMPLATES + 1)
        ],
        "domains": [model.ipfix(0, n) for n in range(heard.MAX_DOMAINS + 1)],
        "bytes": [model.ipfix(0, n, a_set(2, wide)) for n in range(30)],
    }
    for what, messages in floods.items():
        with pytest.raises(OverflowError, match=what):
            list(map(Heard(1452).take, messages))


def test_sessions_share_memory_for_templates() -> None:
    budget = Budget(4000)
    first, second = Heard(1452, budget), Heard(1452, budget)
    for session in (first, second):
        session.take(model.ipfix(0, 1, a_set(2, *[template(256 + n, FIXED) for n in range(2)])))
    alone = (4000 - budget.left) // 2
    assert 0 < budget.left < 1500
    with pytest.raises(OverflowError, match="all sessions"):
        second.take(model.ipfix(0, 1, a_set(2, *[template(300 + n, FIXED) for n in range(5)])))
    second.close()
    assert budget.left == 4000 - alone
    before = budget.left
    first.take(model.ipfix(0, 1, a_set(2, withdrawal(256), withdrawal(257))))
    assert budget.left > before
    first.close()
    assert budget.left == 4000


# ---- NetFlow v9, which SCTP carries


def v9_stream(seed: int, count: int) -> list[bytes]:
    """Numbers count messages; templates and options now and then."""
    r = random.Random(seed)
    sequence, made = r.choice((0, 2**32 - 20)), []
    for n in range(count):
        sets, records = [], 0
        if n % 10 == 0:
            sets.append(a_set(0, template(256, FIXED), template(257, [(8, 4), (4, 1)]), pad=4))
            sets.append(a_set(1, options_template(model.V9, 258, [(1, 4)], [(34, 4)]), pad=4))
            records += 3
        for _ in range(r.randrange(1, 4)):
            kind, size = r.choice(((256, 16), (257, 5), (258, 8)))
            rows = r.choice((1, 4, 20, 400))
            sets.append(a_set(kind, *[b"\1" + r.randbytes(size - 1) for _ in range(rows)], pad=4))
            records += rows
        made.append(model.v9(sequence + n, 7, *sets, count=records))
    return made


@pytest.mark.parametrize("limit", [512, 1452])
@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_netflow_9(seed: int, limit: int) -> None:
    session, whole, cut = Heard(limit), Collector(), Collector()
    for n, message in enumerate(v9_stream(seed, 60)):
        whole.take(0, message)
        pieces = session.take(message)
        if n % 20 == 19:
            pieces += session.templates()
        for piece in pieces:
            assert len(piece) <= limit
            cut.take(0, piece)
            found = model.parse(piece)
            assert found is not None
            records = sum(len(one.records) for one in found.sets)
            known = {key[3]: one for key, one in cut.templates.items()}
            for one in found.sets:
                if one.identity >= 256:
                    records += len(model.split(model.V9, known[one.identity], one.body) or ())
            assert found.count == records
    assert session.split_up > 5
    assert (cut.records, cut.options, cut.sequence_errors) == (whole.records, whole.options, 0)


@pytest.mark.parametrize("seed", range(3))
def test_short_messages_of_netflow_9_pass_untouched(seed: int) -> None:
    session = Heard(65507)
    for message in v9_stream(seed, 40):
        assert session.take(message) == [message]


def test_streams_of_netflow_9_become_one_count() -> None:
    session, collector, r = Heard(1452), Collector(), random.Random(5)
    numbers = [r.randrange(2**32) for _ in range(3)]
    teach = model.v9(numbers[0], 7, a_set(0, template(256, FIXED)))
    for n in range(200):
        stream = r.randrange(3) if n else 0
        message = model.v9(numbers[stream], 7, a_set(256, bytes(16) * r.choice((1, 200)))) if n else teach
        numbers[stream] = (numbers[stream] + 1) % 2**32
        for piece in session.take(message, stream):
            collector.take(0, piece)
    assert (collector.sequence_errors, collector.unknown_sets) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_hostile_netflow_9_is_left_out(seed: int) -> None:
    r, session = random.Random(seed), Heard(1452)
    for message in v9_stream(seed, 200):
        broken = bytearray(message)
        for _ in range(r.randrange(4)):
            broken[r.randrange(20, min(len(broken), 120))] = r.choice((0, 1, 2, 255, r.randrange(256)))
        for piece in session.take(bytes(broken[: r.choice((len(broken), r.randrange(len(broken))))])):
            netflow9.sets_of(piece)
    assert session.malformed > 20


# ---- what a collector is told


class Strict(Collector):
    """A collector at the end of a session: no template comes twice, none changes without being withdrawn."""

    def take(self, exporter: object, payload: bytes) -> int | None:
        message = model.parse(payload)
        assert message is not None
        known = {key[2:4]: one for key, one in self.templates.items()}
        for one in message.sets:
            for record in one.records:
                if isinstance(record, model.Template):
                    assert (message.domain, record.identity) not in known, "told twice, or changed"
                    known[message.domain, record.identity] = record
                else:
                    assert (message.domain, record[0]) in known, "what was never told is withdrawn"
        return super().take(exporter, payload)


def changing(seed: int, count: int) -> list[bytes]:
    """Copies: templates come again and again, change, and change their kind."""
    r = random.Random(seed)
    shapes: dict[int, list[tuple[int, ...]]] = {}
    sequence, made = 0, []
    for n in range(count):
        number = r.choice((256, 257, 258))
        sets = []
        if number not in shapes or r.random() < 0.3:
            if number not in shapes or r.random() < 0.3:
                shapes[number] = r.choice((FIXED, [(8, 4)], [(1, 8), (2, 8)]))
            if number == 258 and n % 2:
                sets.append(a_set(3, options_template(model.IPFIX, number, OPTIONS, shapes[number]), pad=4))
                shapes[number] = [*OPTIONS, *shapes[number]]
            else:
                sets.append(a_set(2, template(number, shapes[number]), pad=4))
        if r.random() < 0.7 or not sets:
            rows = r.randrange(1, 5)
            sets.append(a_set(number, *[r.randbytes(sum(f[1] for f in shapes[number])) for _ in range(rows)]))
        made.append(model.ipfix(sequence, 5, *sets))
        sequence += rows if sets[-1][:2] == number.to_bytes(2, "big") else 0
        if number == 258 and len(shapes[number]) > 3:
            del shapes[number]
    return made


@pytest.mark.parametrize("seed", range(12))
def test_a_session_is_told_each_template_once(seed: int) -> None:
    copies = changing(seed, 200)
    state, strict, plain = Told(), Strict(), Collector()
    for copy in copies:
        plain.take(0, copy)
        for message in state.take(copy):
            strict.take(0, message)
    assert state.unchanged > 5
    assert state.withdrawn > 5
    assert (strict.records, strict.options_records) == (plain.records, plain.options_records)
    assert {k: t.raw for k, t in strict.templates.items()} == {k: t.raw for k, t in plain.templates.items()}
    assert strict.sequence_errors == plain.sequence_errors == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_new_session_begins_with_all_templates(seed: int) -> None:
    state, r = Told(), random.Random(seed)
    strict = Strict()
    records = 0
    for n, copy in enumerate(changing(seed, 200)):
        if n and r.random() < 0.1:
            strict = Strict()
            for message in state.begin():
                strict.take(0, message)
        before = strict.records + strict.options_records
        for message in state.take(copy):
            strict.take(0, message)
        records += strict.records + strict.options_records - before
        assert strict.unknown_sets == 0
    assert records > 200


def test_what_is_more_than_is_kept_passes() -> None:
    state = Told()
    for n in range(told.MAX_TEMPLATES + 10):
        copy = model.ipfix(0, n % 2, a_set(2, template(256 + n // 2, FIXED)))
        assert state.take(copy) == [copy]
    assert state.full == 10
    assert state.take(copy) == [copy]  # again, since nobody knows that it was told
    assert state.take(model.ipfix(0, 0, a_set(2, template(256, FIXED)))) == []
    changed = model.ipfix(0, 0, a_set(2, template(257, STRINGS)))
    (gone, sent) = state.take(changed)
    assert (sent, model.parse(gone).sets[0].records) == (changed, [(257, False)])  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="version 5"):
        state.take(model.v5(0, 1))


@pytest.mark.parametrize("seed", range(3))
def test_netflow_9_passes_and_begins_with_templates(seed: int) -> None:
    """The numbers of what is sent first end where those of the copies go on."""
    state, copies = Told(), v9_stream(seed, 25)
    for copy in copies[:15]:
        assert state.take(copy) == [copy]
    collector = Collector()
    first = state.begin()
    for message in (*first, *(made for copy in copies[15:] for made in state.take(copy))):
        collector.take(0, message)
    assert len(first) == 2  # templates, options templates
    assert (collector.sequence_errors, collector.unknown_sets) == (0, 0)
    assert collector.records > 0


# ---- several streams


@pytest.mark.parametrize("seed", range(6))
def test_each_stream_counts_by_itself_and_data_have_none_of_stream_0(seed: int) -> None:
    """What the streams say together is what the copies said; a gap before us is a gap in the stream of the data."""
    source, state, plain = Stream(seed), Told(), Collector()
    apart = Apart(4, state.template)
    numbers: dict[tuple[int, int], int | None] = {}
    whole = Collector()
    lost = {0: 0, 1: 0}
    gaps = {0: 0, 1: 0}
    for n in range(120):
        copy = source.message(500)
        if n > 40 and n % 10 == 0 and model.parse(copy).sets[0].identity > 3:  # type: ignore[union-attr]
            lost[model.parse(copy).domain] += plain.take(0, copy) or 0  # type: ignore[union-attr]
            continue  # it never came to us
        plain.take(0, copy)
        for message in state.take(copy):
            for stream, made in apart.take(message):
                parsed = model.parse(made)
                assert parsed is not None
                units = whole.take(0, made)
                options = {key[3] for key, one in whole.templates.items() if one.options}
                for one in parsed.sets:
                    assert (stream == 0) == (one.identity < 256 or one.identity in options)
                key = parsed.domain, stream
                expected = numbers.get(key)
                assert units is not None
                if expected is not None:
                    gaps[parsed.domain] += (parsed.sequence - expected) % 2**32 if stream else 0
                    assert stream or parsed.sequence == expected
                numbers[key] = (parsed.sequence + units) % 2**32
    assert whole.unknown_sets == 0
    assert whole.records + whole.options_records + sum(lost.values()) == plain.records + plain.options_records
    assert sum(lost.values()) > 0
    assert gaps == lost
