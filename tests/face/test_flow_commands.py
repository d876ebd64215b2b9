"""exporters, templates, ledger and export: what the daemon answers, and what the commands draw of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from samplicator.cli import exporters as draw
from samplicator.cli.ledger import export_lines, ledger_lines
from samplicator.config.model.receiver import Receiver
from samplicator.readings import AliasReading, Domain, Readings, Unmatched
from samplicator.views import exporters, templates
from samplicator.views.export import ExportSum
from samplicator.views.ledger import LedgerSum
from support.state import make_readings, make_session, make_templates


def answer(value: object) -> Any:
    return orjson.loads(orjson.dumps(value))


def sessions() -> list[Domain]:
    """Two of them; the second has lost nothing."""
    return [make_session(1), replace(make_session(2), lost=0, counters={**make_session(2).counters, "lost": 0})]


def domains() -> Any:
    return answer([exporters.exporter(session, {4: "netflow"}, make_templates()) for session in sessions()])


def ledger(readings: Readings, found: list[Domain], *strangers: Unmatched, limit: int = 1000) -> Any:
    total = LedgerSum(limit)
    for session in found:
        total.add(session)
    return answer(total.result(readings, strangers))


def test_ledger_adds_up() -> None:
    readings = make_readings()
    value = ledger(readings, sessions())
    assert value["before"]["netflow9"]["lost"] == readings.flow.lost["netflow9"] + 1  # and a gap that is not settled
    assert value["before"]["ipfix"]["lost"] == readings.flow.lost["ipfix"]
    assert [(row["exporter"], row["lost"]) for row in value["exporters"]] == [("192.0.2.1", 3)]
    for row in value["here"]:
        assert row["datagrams"] == row["truncated"] + row["denied"] + row["unmatched"] + row["matched"]
    for row in value["after"]:
        assert row["offered"] == row["skipped"] + row["sent"] + sum(row["failed"].values())
    text = "\n".join(ledger_lines(value))
    assert "192.0.2.1:2055  netflow9" in text
    assert "nfdump: failed: " in text
    assert " no_route" in text


def test_ledger_keeps_the_worst_and_counts_all() -> None:
    losses = [5, 90, 0, 7, 90, 1, 30]
    found = [replace(make_session(n), lost=lost) for n, lost in enumerate(losses, 1)]
    value = ledger(make_readings(), found, limit=3)
    assert value["exporter_count"] == 6
    assert [(row["exporter"], row["lost"]) for row in value["exporters"]] == [
        ("192.0.2.2", 90), ("192.0.2.5", 90), ("192.0.2.7", 30),
    ]  # fmt: skip
    assert "  and 3 more" in ledger_lines(value)


def test_export_speaks_as_a_router_does() -> None:
    readings = make_readings()
    total = ExportSum()
    for session in sessions():
        total.add(session)
    value = answer(total.result(readings, [Receiver(name="nfdump", to="192.0.2.10:9995", template_refresh_packets=20)]))
    counters = readings.receivers[0].counters
    assert value["receivers"][0]["drops"]["no fib"] == counters["failed_no_route"]
    assert value["receivers"][0]["drops"]["lack of export packet"] == counters["failed_no_buffer_space"]
    assert sum(value["receivers"][0]["drops"].values()) == sum(
        count for key, count in counters.items() if key.startswith("failed_")
    )
    text = "\n".join(export_lines(value))
    assert f"{counters['failed_no_neighbor']} export packets were dropped due to adjacency issues" in text
    assert "template refresh rate 20 packets, timeout no minutes" in text
    assert "602 flow templates active, 603 option templates active" in text


def test_lines_of_domains() -> None:
    row = AliasReading(4000000001, "2001:db8::1", 2055, "ipfix", 7, True, 61.0)
    text = draw.domain_lines({"domains": [answer(exporters.domain(row))]})
    assert text[0].split() == ["in", "copies", "hex", "exporter", "protocol", "its", "domain", "exporter", "silent"]
    assert text[1].split() == ["4000000001", "0xee6b2801", "[2001:db8::1]:2055", "ipfix", "7", "exporter", "1m"]
    assert draw.domain_lines({"domains": []}) == ["no exporter has a domain assigned by samplicator"]


def test_lines_of_exporters_and_templates() -> None:
    (head, first, second) = draw.exporter_table([draw.exporter_cells(row) for row in domains()])
    assert head.split()[:3] == ["exporter", "protocol", "domain"]
    assert first.split()[:4] == ["192.0.2.1:2055", "netflow9", "7", "netflow"]
    assert "1:512" in second
    who = {"exporter": "2001:db8::1", "port": 9, "protocol": "netflow9", "domain": 7, "options_data": 1}
    items = [templates.template(item, "netflow9") for item in make_templates()[:2]]
    lines = draw.template_lines({"domains": [{**who, "templates": answer(items)}]})
    assert lines[0] == "[2001:db8::1]:9 netflow9 domain 7"
    assert lines[1].startswith("  template 256: 3 fields, 9 bytes, repeated ")
    assert "    e9/40001 (variable)" in lines
    assert "    interface (4) scope" in lines
    assert draw.exporter_table([]) == ["no exporter of flow telemetry was seen"]


def test_exporters_without_a_rule_are_told() -> None:
    """`ledger` does not say that nothing has been seen when all of it matched no rule."""
    readings = make_readings(zero=True)
    text = "\n".join(ledger_lines(ledger(readings, sessions(), Unmatched("198.18.0.1", "netflow", 17))))
    assert "NO RULE MATCHES 1 exporter; these datagrams are not forwarded: 198.18.0.1 (17 on netflow)" in text
    first, *others = readings.listeners
    first = replace(first, counters={**first.counters, "datagrams": 17, "unmatched": 17})
    text = "\n".join(ledger_lines(ledger(replace(readings, listeners=(first, *others)), [])))
    assert "no flow telemetry that a rule matches was seen; 17 datagrams matched no rule" in text


def test_sflow_shows_agent_and_sub_agent() -> None:
    header = bytes.fromhex("00000005 00000001 c6336401 00000007 00000001 000003e8 00000001")
    session = replace(make_session(1), protocol="sflow5", header=header, options_data=0, unmatched=True)
    row = answer(exporters.exporter(session, {4: "netflow"}))
    assert (row["agent"], row["domain"], row["matched"]) == ("198.51.100.1", 7, False)
    cells = draw.exporter_cells(row)
    assert (cells[2], cells[3]) == ("198.51.100.1/7", "netflow, no rule")
    header = header[:7] + b"\2" + bytes(15) + b"\1" + header[12:]
    row = exporters.exporter(replace(session, header=header), {})
    assert (row["agent"], row["domain"]) == ("::1", 7)


def test_pages_are_followed_and_put_together() -> None:
    rows = [{"place": place, "templates": [n]} for n, place in enumerate(["0.1", "0.1", "0.2", "1.2", "1.2"])]
    assert [row["templates"] for row in draw._whole(iter(rows))] == [[0, 1], [2], [3, 4]]
