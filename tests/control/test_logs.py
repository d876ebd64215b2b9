"""Log lines, their counts, and the once-a-minute lines about what the kernel refused."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from samplicator import logs
from samplicator.logs import RateGate
from samplicator.readings import ListenerReading, Readings, ReceiverReading, Unmatched
from samplicator.service.trouble import RECEIVE, SEND, Trouble


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    logging.getLogger("samplicator").setLevel(logging.NOTSET)


def test_json_lines_are_one_object_each(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    counts = logs.setup("info", "json", stream)
    log = logging.getLogger("samplicator.test")
    log.debug("not this")
    log.info("two\nlines %s", 'and "quotes"')
    log.warning("with fields", extra={"fields": {"receiver": "siem"}})
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("failed")
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [entry["level"] for entry in entries] == ["info", "warning", "error"]
    assert entries[0]["message"] == 'two\nlines and "quotes"'
    assert entries[1]["receiver"] == "siem"
    assert "boom" in entries[2]["exception"]
    assert counts == {"debug": 0, "info": 1, "warning": 1, "error": 1}


def test_text_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    stream = io.StringIO()
    logs.setup("debug", "text", stream)
    logging.getLogger("samplicator.test").debug("hello\nthere")
    first, second = stream.getvalue().splitlines()
    assert first.split()[1:] == ["debug", "hello"]
    assert second == "    there"


def test_journal_gets_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    stream = io.StringIO()
    logs.setup("info", "text", stream)
    logging.getLogger("samplicator.test").error("bad\nworse")
    assert stream.getvalue() == "<3>bad\n<3>    worse\n"


@pytest.mark.parametrize("format_", ["text", "json"])
def test_the_journal_is_known_by_its_stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format_: str) -> None:
    """JOURNAL_STREAM is inherited by whatever a unit starts: only the stream that it names goes to the journal."""
    with (tmp_path / "log").open("w+") as stream:
        status = os.fstat(stream.fileno())
        heads = []
        for place in (f"{status.st_dev}:{status.st_ino}", f"{status.st_dev}:{status.st_ino + 1}", ""):
            monkeypatch.setenv("JOURNAL_STREAM", place)
            stream.seek(0)
            stream.truncate()
            logs.setup("info", format_, stream)
            logging.getLogger("samplicator.test").warning("bad")
            stream.seek(0)
            heads.append(stream.read()[:3])
            monkeypatch.setattr("sys.stderr", stream)
            logs.print_error("no such file")
            stream.flush()
            stream.seek(0)
            assert stream.read().endswith(("<3>" if heads[-1] == "<4>" else "\n") + "error: no such file\n")
        assert heads[0] == "<4>"
        assert not any(head.startswith("<") for head in heads[1:])


def test_level_and_format_change_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    stream = io.StringIO()
    counts = logs.setup("warning", "text", stream)
    log = logging.getLogger("samplicator.test")
    log.info("no")
    logs.adjust("info", "json")
    log.info("yes")
    assert json.loads(stream.getvalue())["message"] == "yes"
    assert counts["info"] == 1


def test_gate_lets_one_through_a_minute_and_adds_up() -> None:
    gate = RateGate(60)
    key = ("a", "refused")
    assert gate.add(key, 5, 0) == 5
    assert gate.add(key, 7, 30) == 0
    assert gate.add(key, 0, 59) == 0
    assert gate.add(key, 1, 60) == 8
    assert gate.add(key, 0, 200) == 0
    assert gate.add(("b", "refused"), 2, 61) == 2
    gate.forget("a")
    assert gate.add(key, 3, 62) == 3


def readings(refused: int, kernel_drops: int, name: str = "r") -> Readings:
    listener = ListenerReading("in", (("::", 2055),), dict.fromkeys(RECEIVE, 0), (), 0, 0, kernel_drops, True)
    receiver = ReceiverReading(name, "c", "192.0.2.1", 9, "own", "udp", "", dict.fromkeys(SEND, 0), True, 1)
    receiver = replace(receiver, counters={**receiver.counters, "failed_refused": refused})
    return Readings(1, (listener,), (receiver,), (), (), 0, 0.0)


def test_trouble_is_told_once_a_minute_per_reason(caplog: pytest.LogCaptureFixture) -> None:
    trouble = Trouble(60)
    with caplog.at_level(logging.WARNING):
        trouble.report(readings(0, 0), 0)
        for second in range(5, 100, 5):
            trouble.report(readings(second * 10, 0), second)
        trouble.report(readings(1000, 3), 101)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 3
    assert "receiver 'r' at 192.0.2.1:9: 50 copies failed: the receiver's port is closed" in texts[0]
    assert "600 copies" in texts[1]
    assert "the kernel dropped 3 datagrams" in texts[2]


def test_trouble_forgets_receivers_that_went(caplog: pytest.LogCaptureFixture) -> None:
    trouble = Trouble(60)
    with caplog.at_level(logging.WARNING):
        trouble.report(readings(10, 0), 0)
        trouble.report(readings(0, 0, name="other"), 5)
        trouble.report(readings(4, 0), 10)
    assert ["10 copies" in caplog.records[0].getMessage(), "4 copies" in caplog.records[1].getMessage()] == [True, True]


def unmatched(count: int) -> Readings:
    whole = readings(0, 0)
    return replace(
        whole, listeners=(replace(whole.listeners[0], counters={**whole.listeners[0].counters, "unmatched": count}),)
    )


def test_exporters_without_a_rule_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """At once, at most once a minute while others join, and once an hour while nothing changes."""
    trouble = Trouble(60)
    first = [Unmatched(f"198.18.0.{n}", "in", 10) for n in range(1, 8)]
    told = []
    with caplog.at_level(logging.WARNING):
        for second in range(0, 7300, 5):
            exporters = [*first[: 1 if second < 30 else 7], Unmatched("198.18.1.1", "other", 1)]
            caplog.clear()
            trouble.report(unmatched(17 + second), second, exporters)
            told += [(second, record.getMessage()) for record in caplog.records]
    assert [second for second, _ in told] == [0, 60, 3660, 7260]
    assert "listener 'in': 17 datagrams of 198.18.0.1 match no rule" in told[0][1]
    assert "60 datagrams" not in told[0][1]
    assert "198.18.0.5 and 2 more match no rule" in told[1][1]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for second in range(7300, 20000, 500):
            trouble.report(unmatched(17 + 7300), second, first)
    assert len(caplog.records) <= 1, "no datagrams, no warning"


def test_datagrams_without_a_rule_where_flow_is_off(caplog: pytest.LogCaptureFixture) -> None:
    trouble = Trouble(60)
    with caplog.at_level(logging.WARNING):
        trouble.report(unmatched(0), 0)
        trouble.report(unmatched(17), 5)
    assert "listener 'in': 17 datagrams match no rule" in caplog.records[0].getMessage()
