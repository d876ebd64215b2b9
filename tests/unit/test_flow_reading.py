"""Readings while the worker writes: never torn, never blocking it. And what the handle says of a session and its
templates.
"""

from __future__ import annotations

import threading

from samplicator import _inside_flow as probe
from samplicator._inside_flow import FLOW_ITEM_FIELDS, FLOW_SESSION_FIELDS
from support import flows as model
from support.flows import IPFIX

START = 1_700_000_000 * 10**9


def test_session_and_items() -> None:
    flow = probe.Flow(1 << 22)
    probe.tick(flow, START)
    fields = [(8, 4), (82, 65535), (1, 4, 4242)]
    options = model.options_template(IPFIX, 257, [(149, 4)], [(34, 4)])
    payload = model.ipfix(
        7,
        3,
        model.a_set(2, model.template(256, fields)),
        model.a_set(3, options),
        model.a_set(257, bytes(3) + b"\3" + bytes(3) + b"\x64"),
    )
    seen = probe.observe(flow, b"\x0a\0\0\1", 2055, payload, 4)
    row = dict(zip(FLOW_SESSION_FIELDS, flow.session(seen.number), strict=True))
    assert (row["address"], row["port"], row["kind"], row["domain"]) == (b"\x0a\0\0\1", 2055, "ipfix", 3)
    assert (row["listener"], row["first_ns"], row["seen_ns"], row["header"]) == (4, START, START, payload[:16])
    assert (row["sequence"], row["units"], row["datagrams"], row["bytes"]) == (8, 1, 1, len(payload))
    assert (row["templates"], row["options_templates"], row["options_data"]) == (1, 1, 1)
    items = [dict(zip(FLOW_ITEM_FIELDS, item, strict=True)) for item in flow.items(seen.number)]
    assert [(item["id"], item["kind"], item["record_bytes"]) for item in items] == [
        (256, "template", 0),
        (257, "options_template", 8),
        (257, "options_data", 0),
    ]
    assert probe.flow_field_list(items[0]["raw"], True, False) == ((8, 4, 0), (82, 65535, 0), (1, 4, 4242))


def test_address_of_ipv6() -> None:
    flow = probe.Flow(1 << 22)
    probe.observe(flow, bytes(15) + b"\1", 9, model.v5(0, 1))
    assert [row[1:4] for row in flow.sessions()] == [(bytes(15) + b"\1", 9, "netflow5")]


def test_no_such_session() -> None:
    flow = probe.Flow(1 << 22)
    assert flow.session(0) is None
    assert flow.session(1) is None
    assert flow.session(2**32 - 1) is None
    assert flow.items(0) == flow.items(2**32 - 1) == ()


def test_never_torn() -> None:
    """One thread redefines templates and evicts domains as fast as it can, this one reads: every raw record is one that
    was sent whole, every header belongs to its domain."""
    flow = probe.Flow(1 << 20, exporter_domains=4)
    payloads, raws = [], set()
    for n in range(64):
        records = [model.template(256 + k, [(n + 1, 4)] * (1 + (n * 7 + k) % 60)) for k in range(6)]
        raws.update(records)
        payloads.append(model.v9(n, n % 8, model.a_set(0, *records), uptime=n % 8))
    probe.tick(flow, START)
    writer = threading.Thread(target=probe.time_of, args=(payloads, True, 20_000, flow))
    writer.start()
    reads = whole = 0
    while writer.is_alive():
        for row in flow.sessions():
            reads += 1
            domain, header = row[4], row[9]
            assert header in (b"",) or int.from_bytes(header[16:20], "big") == domain
            found = {item[7] for item in flow.items(row[0])}
            assert found <= raws
            whole += bool(found)
    writer.join()
    assert reads > 0
    assert {row[3] for row in flow.sessions()} == {"netflow9"}
