"""Sequences of what gateways make of messages: of sessions that follow each other, of streams that share a count."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from samplicator.gateways import heard
from samplicator.gateways.apart import Apart
from samplicator.gateways.budget import Budget
from samplicator.gateways.heard import Heard
from samplicator.gateways.told import Told
from support import flows as model
from support.flows import Collector, a_set, options_template, template

FIXED: list[tuple[int, ...]] = [(8, 4), (12, 4), (1, 8)]


@pytest.mark.parametrize("make", [model.ipfix, model.v9])
def test_numbers_never_step_back_when_an_exporter_starts_again(make: Callable[..., bytes]) -> None:
    """A collector by UDP sees one exporter, not its sessions: what follows a new start follows the last number."""
    numbers, budget, collector = heard.Numbers(), Budget(), Collector()
    kind = 2 if make is model.ipfix else 0
    step = 3 if make is model.ipfix else 1
    payloads: list[bytes] = []
    for streams in (1, 3, 1):
        session = Heard(1452, budget, b"\xc6\x12\0\1", numbers)
        own = dict.fromkeys(range(streams), 0)
        taught = make(0, 5, a_set(kind, template(256, [(8, 4), (12, 4)])))
        payloads += session.take(taught)
        own[0] = 1 if make is model.v9 else 0
        for n in range(30):
            stream = n % streams
            payloads += session.take(
                make(own[stream], 5, a_set(256, *[bytes([n, k]) * 4 for k in range(3)], pad=4)), stream
            )
            own[stream] += step
        payloads += session.templates()
        session.close()
        session.close()  # does nothing more
    for payload in payloads:
        collector.take(0, payload)
    assert collector.sequence_errors == collector.unknown_sets == 0
    assert collector.records == 3 * 30 * 3
    assert budget.left == Budget().left


def test_numbers_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard, "MAX_NUMBERS", 10)
    numbers = heard.Numbers()
    for domain in range(100):
        numbers.keep(b"", 16, domain, domain)
    assert [numbers.take(b"", 16, domain) for domain in range(85, 100)] == [None] * 5 + list(range(90, 100))
    assert numbers.take(b"", 16, 99) is None


@pytest.mark.parametrize("first", [0, 1000, 2**32 - 50])
@pytest.mark.parametrize("lost", [0, 1])
def test_streams_of_netflow_9_that_share_a_count(first: int, lost: int) -> None:
    """One counter for all streams, which overtake each other: what arrives late is no loss, what does not come is."""
    session, collector, r = Heard(1452), Collector(), random.Random(first)
    queues: list[list[bytes]] = [[], [], []]
    gone = 0
    for n in range(600):
        own = (first + n) % 2**32
        if n % 20 == 0:
            queues[0].append(model.v9(own, 7, a_set(0, template(256, FIXED))))
        elif lost and n % 50 == 3:
            gone += 1
        else:
            queues[1 + n % 2].append(model.v9(own, 7, a_set(256, bytes(16))))
    out = session.take(queues[0].pop(0), 0)
    while any(queues):
        # none is more than some twenty messages behind the others
        oldest = min(
            (queue[0][12:16] for queue in queues if queue), key=lambda raw: (int.from_bytes(raw) - first) % 2**32
        )
        near = [
            (stream, queue)
            for stream, queue in enumerate(queues)
            if queue and (int.from_bytes(queue[0][12:16]) - int.from_bytes(oldest)) % 2**32 < 20
        ]
        stream, queue = r.choice(near)
        out += session.take(queue.pop(0), stream)
    missing, previous = 0, None
    for payload in out:
        collector.take(0, payload)
        number = int.from_bytes(payload[12:16], "big")
        missing += (number - previous - 1) % 2**32 if previous is not None else 0
        previous = number
    assert missing == gone - (gone > 0 and lost and (600 // 50) * 50 + 3 > 600 - 64)
    assert collector.unknown_sets == 0
    assert bool(collector.sequence_errors) == bool(gone)


@pytest.mark.parametrize("seed", range(4))
def test_netflow_9_on_streams_is_one_count_without_what_is_left_out(seed: int) -> None:
    """Templates that are known are left out, messages of both kinds become two; data go on no stream that gives up."""
    r = random.Random(seed)
    state, plain, whole = Told(), Collector(), Collector()
    apart = Apart(4, state.template)
    sequence, last, seen = r.choice((0, 2**32 - 40)), None, set()
    for n in range(150):
        sets, count = [], 0
        if n % 10 == 0:
            sets.append(a_set(0, template(256, FIXED), pad=4))
            sets.append(a_set(1, options_template(model.V9, 258, [(1, 4)], [(10, 4)]), pad=4))
            count += 2
        if n % 10 == 5:
            sets.append(a_set(258, bytes(8), pad=4))
            count += 1
        if n % 10 not in (0, 5) or r.random() < 0.5:
            sets.append(a_set(256, *[r.randbytes(16) for _ in range(5)], pad=4))
            count += 5
        copy = model.v9((sequence + n) % 2**32, 7, *sets, count=count)
        plain.take(0, copy)
        for message in state.take(copy):
            for stream, made in apart.take(message):
                found = model.parse(made)
                assert found is not None
                assert last is None or found.sequence == (last + 1) % 2**32
                last = found.sequence
                kinds = {one.identity for one in found.sets}
                assert kinds == {256} if stream else kinds <= {0, 1, 258}
                assert found.count == 5 if stream else found.count <= 2
                seen.add(stream)
                whole.take(0, made)
    assert seen == {0, 1 + 7 % 3}
    assert (whole.records, whole.options_records) == (plain.records, plain.options_records)
    assert (whole.sequence_errors, whole.unknown_sets) == (0, 0)
    assert state.unchanged >= 20
