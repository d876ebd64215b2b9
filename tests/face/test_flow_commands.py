"""exporters, templates, ledger and export: what they make of the daemon's answers, for people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from face_state import make_readings, make_session, make_templates
from samplicator import flowview
from samplicator.cli import flow
from samplicator.config.model import Receiver
from samplicator.http import listeners_of, receivers_of


def answer(value: object) -> Any:
    return orjson.loads(orjson.dumps(value))


def domains() -> Any:
    sessions = [make_session(1), replace(make_session(2), lost=0, counters={**make_session(2).counters, "lost": 0})]
    return answer([flowview.exporter(session, {4: "netflow"}, make_templates()) for session in sessions])


def test_ledger_adds_up() -> None:
    readings = make_readings()
    totals = answer(flowview.totals(readings.flow))
    value = flow.balance(totals, answer(listeners_of(readings)), answer(receivers_of(readings)), domains())
    assert value["before"]["netflow9"]["lost"] == readings.flow.lost["netflow9"] + 1  # and a gap that is not settled
    assert value["before"]["ipfix"]["lost"] == readings.flow.lost["ipfix"]
    assert [(row["exporter"], row["lost"]) for row in value["exporters"]] == [("192.0.2.1", 3)]
    for row in value["here"]:
        assert row["datagrams"] == row["truncated"] + row["denied"] + row["unmatched"] + row["matched"]
    for row in value["after"]:
        assert row["offered"] == row["sampled_out"] + row["sent"] + sum(row["failed"].values())
    text = "\n".join(flow.ledger_lines(value))
    assert "192.0.2.1:2055  netflow9" in text
    assert "nfdump: failed: " in text
    assert " no_route" in text


def test_export_speaks_as_a_router_does() -> None:
    readings = make_readings()
    configured = [Receiver(name="nfdump", to="192.0.2.10:9995", template_refresh_packets=20).model_dump()]
    value = flow.export_of(
        answer(flowview.totals(readings.flow)), answer(receivers_of(readings)), configured, domains()
    )  # fmt: skip
    counters = readings.receivers[0].counters
    assert value["receivers"][0]["drops"]["no fib"] == counters["dropped_no_route"]
    assert value["receivers"][0]["drops"]["lack of export packet"] == counters["dropped_no_buffer_space"]
    assert sum(value["receivers"][0]["drops"].values()) == sum(
        count for key, count in counters.items() if key.startswith("dropped_")
    )
    text = "\n".join(flow.export_lines(value))
    assert f"{counters['dropped_no_neighbor']} export packets were dropped due to adjacency issues" in text
    assert "template refresh rate 20 packets, timeout no minutes" in text
    assert "602 flow templates active, 603 option templates active" in text


def test_lines_of_exporters_and_templates() -> None:
    (head, first, second) = flow.exporter_table([flow.exporter_cells(row) for row in domains()])
    assert head.split()[:3] == ["exporter", "protocol", "domain"]
    assert first.split()[:4] == ["192.0.2.1:2055", "netflow9", "7", "netflow"]
    assert "1:512" in second
    who = {"exporter": "2001:db8::1", "port": 9, "protocol": "netflow9", "domain": 7, "options_data": 1}
    items = [flowview.template(item, "netflow9") for item in make_templates()[:2]]
    lines = flow.template_lines({"domains": [{**who, "templates": answer(items)}]})
    assert lines[0] == "[2001:db8::1]:9 netflow9 domain 7"
    assert lines[1].startswith("  template 256: 3 fields, 9 bytes, repeated ")
    assert "    e9/40001 (variable)" in lines
    assert "    interface (4) scope" in lines
    assert flow.exporter_table([]) == ["no exporter of flow telemetry has been seen"]
