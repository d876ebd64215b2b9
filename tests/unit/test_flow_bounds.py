"""What arriving datagrams may have us send: templates that are new and no others, and so many bytes a domain, receiver
and second; and what exporters that no rule matches may take from the others.
"""

from __future__ import annotations

import pytest
from samplicator import _inside_flow as probe
from support import flows as model
from support.flows import IPFIX, V9

ADDRESS, PORT = b"\x0a\0\0\1", 2055
START = 1_700_000_000 * 10**9
SECOND = 10**9


def new(octets: int = 1 << 22, **bounds: int) -> probe.Flow:
    flow = probe.Flow(octets, **bounds)
    probe.tick(flow, START)
    return flow


def counters(flow: probe.Flow) -> dict[str, int]:
    return dict(zip(probe.FLOW_COUNTER_FIELDS, flow.counters()[0], strict=True))


def teach(kind: int, sequence: int, *identities: int, fields: int = 3) -> bytes:
    records = [model.template(i, [(8, 4)] * fields) for i in identities]
    sets = [model.a_set(0 if kind == V9 else 2, *records[:200]), model.a_set(0 if kind == V9 else 2, *records[200:])]
    return (model.v9 if kind == V9 else model.ipfix)(sequence, 1, *sets)


def told(flow: probe.Flow, number: int, since: int) -> list[int]:
    """Ids of the templates that a member of a pool would be told now."""
    found = []
    for payload in probe.replay(flow, number, 5, probe.ONLY_TEMPLATES, probe.REFRESH, 1400, since)[0]:
        message = model.parse(payload)
        assert message is not None
        found += [one.identity for each in message.sets for one in each.records if isinstance(one, model.Template)]
    return found


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_only_what_is_new_is_told(kind: int) -> None:
    """New among repeated ones, a redefinition, nothing new; and a datagram that only comes after news."""
    flow = new()
    number = probe.observe(flow, ADDRESS, PORT, teach(kind, 0, *range(256, 1256))).number
    for step, (identities, fields, want) in enumerate(
        [
            ([2000], 3, [2000]),
            ([256, 2001, 257], 3, [2001]),
            ([300, 2001], 4, [300, 2001]),
            ([300, 301], 4, [301]),
            ([300, 2001], 4, []),
        ]
    ):
        since = probe.serial(flow)
        probe.observe(flow, ADDRESS, PORT, teach(kind, 1 + step, *identities, fields=fields))
        if want:
            assert sorted(told(flow, number, since)) == want
        else:
            assert probe.serial(flow) == since
    since = probe.serial(flow)
    probe.observe(flow, ADDRESS, PORT, model.v9(9, 1) if kind == V9 else model.ipfix(0, 1))
    assert told(flow, number, since) == []


def test_cost_of_news_is_that_of_the_datagram() -> None:
    """Datagrams of 32 bytes against a domain of 2000 templates: as many bytes leave as came."""
    flow = new()
    number = probe.observe(flow, ADDRESS, PORT, teach(V9, 0, *range(256, 2200))).number
    sent = 0
    for n in range(20):
        since = probe.serial(flow)
        probe.observe(flow, ADDRESS, PORT, teach(V9, 1 + n, 3000 + n, fields=1))
        replayed = probe.replay(flow, number, 5, probe.ONLY_TEMPLATES, probe.REFRESH, 1400, since)[0]
        assert [len(payload) for payload in replayed] == [32]
        sent += len(replayed)
    assert sent == 20


def test_bytes_per_domain_and_second() -> None:
    """However often a replay is asked for: so many bytes a second, and what was refused is owed."""
    flow = new()
    number = probe.observe(flow, ADDRESS, PORT, teach(V9, 0, *range(256, 956), fields=20)).number
    spent = [0] * 20
    owed = 0
    for ms in range(0, 20_000, 2):
        probe.tick(flow, START + ms * 10**6)
        wanted = probe.owed(flow, number, 5) or probe.allowed(flow, number, 5)
        owed += not wanted
        if wanted:
            payloads = probe.replay(flow, number, 5, probe.EVERYTHING, probe.REFRESH, 1400)[0]
            assert payloads
            spent[ms // 1000] += sum(len(payload) + 256 for payload in payloads)
    whole = max(spent)
    assert owed > 9000
    assert sum(spent) <= 20 * 262_144 + 2 * whole
    assert sum(spent) >= 10 * 262_144
    assert all(spent), "and no second without any"


def test_refresh_by_packets_is_bounded() -> None:
    flow = new()
    number = probe.observe(flow, ADDRESS, PORT, teach(V9, 0, *range(256, 956), fields=20)).number
    replays = 0
    for n in range(5000):
        probe.tick(flow, START + n * 10**6)
        seen = probe.observe(flow, ADDRESS, PORT, model.v9(1 + n, 1))
        if probe.due(flow, seen, 5, 1, 0, probe.LIST_TEMPLATES):
            assert probe.replay(flow, number, 5, probe.ONLY_TEMPLATES, probe.REFRESH, 1400)[0]
            replays += 1
    assert 5 <= replays <= 5 * 262_144 // 58_000 + 5


# ---- exporters that no rule matches


def other(n: int) -> bytes:
    return b"\xc6\x12" + n.to_bytes(2, "big")


def unmatched(flow: probe.Flow) -> int:
    return sum(1 for row in flow.sessions() if row[probe.FLOW_SESSION_FIELDS.index("unmatched")])


def test_unmatched_is_learnt_and_marked() -> None:
    flow = new()
    number = probe.observe(flow, ADDRESS, PORT, teach(V9, 0, 256), 1, False).number
    assert number
    assert [row[0] for row in flow.items(number)] == [256]
    assert counters(flow)["unmatched"] == unmatched(flow) == 1
    seen = probe.observe(flow, ADDRESS, PORT, model.v9(1, 1, model.a_set(256, bytes(12))), 1, True)
    assert seen.number == number
    assert not seen.flags & (probe.UNKNOWN | probe.RESTART)
    assert counters(flow)["unmatched"] == unmatched(flow) == 0
    # by a listener where none matches: the other's state is let alone
    assert probe.observe(flow, ADDRESS, PORT, model.v9(700, 1), 2, False).number == 0
    assert counters(flow)["unmatched"] == 0
    # the rule is gone
    assert probe.observe(flow, ADDRESS, PORT, model.v9(2, 1), 1, False).number == number
    assert counters(flow)["unmatched"] == unmatched(flow) == 1
    probe.tick(flow, START + 25 * 3600 * SECOND)
    probe.age(flow, flow.capacity[0])
    assert counters(flow)["unmatched"] == counters(flow)["domains"] == 0


def test_unmatched_takes_nothing_from_others() -> None:
    """Unmatched exporters in any number, however steady: each exporter that is matched, even one seen once, keeps its
    templates, and each new one that is matched finds room.
    """
    flow = new(1 << 20)
    for n in range(30):
        probe.observe(flow, other(n), PORT, teach(V9, 0, *range(256, 266)), 0, True)
    for beat in range(12):
        probe.tick(flow, START + beat * SECOND)
        for n in range(1000, 1000 + 3 * flow.capacity[0]):
            probe.observe(flow, other(n), PORT, teach(V9, beat, *range(256, 356)), 0, False)
    assert 0 < counters(flow)["unmatched"] <= flow.capacity[0]
    for n in range(30):
        seen = probe.observe(flow, other(n), PORT, model.v9(1, 1, model.a_set(265, bytes(12))), 0, True)
        assert not seen.flags & probe.UNKNOWN
    for n in range(30, 200):
        assert probe.observe(flow, other(n), PORT, teach(V9, 0, *range(256, 266)), 0, True).number
        seen = probe.observe(flow, other(n), PORT, model.v9(1, 1, model.a_set(265, bytes(12))), 0, True)
        assert not seen.flags & probe.UNKNOWN
