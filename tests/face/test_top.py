"""`samplicator top` without a terminal: what it writes of values, how it sorts and filters, what fits on a screen of
any size, what a key does, the rates between two looks, and what it prints to a pipe.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from samplicator.cli.api import at_control
from samplicator.cli.drawing import plain
from samplicator.cli.main import main
from samplicator.cli.top.pages import EXPORTERS, PAGES, RECEIVERS, SESSIONS, age, amount, arranged, count, curve, span
from samplicator.cli.top.screen import State, compose, listing
from samplicator.cli.top.terminal import keys
from samplicator.cli.top.view import HELP, View
from samplicator.cli.top.watch import EXPORTER_RATES, Meter, Snapshot, Watch
from samplicator.errors import Unreachable
from support.process import wait_for
from support.stage import Stage
from support.state import make_sessions

HOSTILE = "\x1b[31m[red]x[/]\u202eevil\u2066\x07\r\n<img src=x onerror=alert(1)>"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path / "control") as made:
        yield made


def watch(stage: Stage) -> Watch:
    return Watch(at_control(str(stage.where)))


# ---------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (0.01, "<0.1"), (0.3, "0.3"), (3, "3"), (42, "42"), (999.4, "999"), (999.6, "1k"),
     (1234, "1.23k"), (12345, "12.3k"), (193_000, "193k"), (999_600, "1M"), (1.5e9, "1.5G"), (2e15, "2P")],
)  # fmt: skip
def test_amounts(value: float | None, text: str) -> None:
    assert amount(value) == text


def test_other_values() -> None:
    assert [count(n) for n in (None, 0, 999_999, 1_234_567)] == ["-", "0", "999999", "1.23M"]
    assert [age(s) for s in (None, 0.4, 59.9, 310, 11_220, 1_050_000)] == ["-", "0s", "59s", "5m10s", "3h07m", "12d3h"]
    assert [span(s) for s in (3.5e-5, 1.25e-3, 0.25, 2.0)] == ["35us", "1.25ms", "250ms", "2s"]


def test_curves() -> None:
    assert curve([0.0, 1.0, None, 8.0], 6) == "  ▁▁ █"
    assert curve([5.0] * 30, 4, "_.") == "...."
    assert (curve(None, 6), curve([], 6)) == ("", "")
    assert curve([0.0, 0.0], 2) == "▁▁"


def test_nothing_is_hidden_in_a_text() -> None:
    text = plain(HOSTILE)
    assert text.isprintable()
    assert text == r"\x1b[31m[red]x[/]\u202eevil\u2066\x07\r\n<img src=x onerror=alert(1)>"
    assert plain("Zürich 東京") == "Zürich 東京"
    assert plain("\ud800") == r"\ud800"


# ---------------------------------------------------------------------------------------------------- rates


def test_rates_between_two_looks() -> None:
    meter = Meter(("a", "b"))
    assert meter.take(10.0, {"x": (5, 5)}, {}) == {"x": {"a": None, "b": None}}
    assert meter.take(12.0, {"x": (9, 5)}, {}) == {"x": {"a": 2.0, "b": 0.0}}
    assert meter.take(14.0, {"x": (4, 4)}, {}) == {"x": {"a": 2.0, "b": 2.0}}  # it restarted
    assert meter.take(14.3, {"x": (9, 9)}, {}, least=0.5) == {"x": {"a": 2.0, "b": 2.0}}  # too soon
    assert meter.take(15.0, {"x": (9, 9)}, {}, least=0.5) == {"x": {"a": 5.0, "b": 5.0}}
    meter.forget()
    assert meter.take(16.0, {"x": (9, 9)}, {}) == {"x": {"a": None, "b": None}}


def test_a_row_that_is_new_counts_from_its_beginning() -> None:
    meter = Meter(("a",))
    meter.take(10.0, {}, {})
    rates = meter.take(12.0, {"young": (6,), "old": (6,), "unknown": (6,)}, {"young": 1.5, "old": 99.0})
    assert rates == {"young": {"a": 3.0}, "old": {"a": None}, "unknown": {"a": None}}


def test_the_daemon_knows_best_how_much_time_has_passed() -> None:
    """An answer that comes late does not change a rate."""
    meter = Meter(("a",))
    meter.take(10.0, {"x": (100,), "y": (9,)}, {"x": 50.0, "y": 7.0})
    rates = meter.take(12.5, {"x": (120,), "y": (30,)}, {"x": 52.0, "y": 1.0})
    assert rates == {"x": {"a": 10.0}, "y": {"a": 21 / 2.5}}  # y has begun again


TABLES = ("exporters", "sessions")


def looked(stage: Stage, trends: Sequence[str] = ()) -> Snapshot:
    """The second look, half a second after the first."""
    asking = Watch(at_control(str(stage.where)), patient=False)
    asking.look(TABLES)
    time.sleep(0.5)
    return asking.look(TABLES, trends)


def test_rates_are_those_of_the_daemon(stage: Stage) -> None:
    stage.play.failing["six"] = 60.0
    stage.play.lost["192.0.2.3"] = 40.0
    snapshot = looked(stage)
    assert snapshot.rates["datagrams"] == pytest.approx(500, rel=0.2)
    assert snapshot.rates["sent"] == pytest.approx(500, rel=0.2)
    assert snapshot.rates["failed"] == pytest.approx(60, rel=0.2)
    assert {row["name"]: row["rates"]["sent"] for row in snapshot.rows["receivers"]} == {
        "nfdump": pytest.approx(400, rel=0.2),
        "six": pytest.approx(100, rel=0.2),
    }
    rates = {row["exporter"]: row["rates"] for row in snapshot.rows["exporters"]}
    assert rates["192.0.2.7"]["datagrams"] == pytest.approx(70, rel=0.2)
    assert rates["192.0.2.3"]["lost"] == pytest.approx(40, rel=0.2)
    assert rates["192.0.2.7"]["lost"] == 0
    assert snapshot.latency is not None
    assert snapshot.latency[0] == pytest.approx(70e-6, rel=0.1)
    assert snapshot.latency[1] == 100e-6


def test_a_daemon_that_restarts_begins_anew(stage: Stage) -> None:
    asking = watch(stage)
    asking.look({"exporters"})
    stage.stop()
    with pytest.raises(Unreachable, match="the socket does not exist"):
        asking.look({"exporters"})
    stage.play.restart()
    stage.start()
    assert asking.look({"exporters"}).rates["sent"] is None  # a rate over the time when nobody knows would be wrong


def test_many_exporters_are_not_asked_for_at_every_look(stage: Stage) -> None:
    asking = watch(stage)
    for _ in range(20):
        asking.look({"exporters"})
    assert 1 <= stage.play.asked < 10
    before = stage.play.asked
    asking.look(())
    assert stage.play.asked == before
    impatient = Watch(at_control(str(stage.where)), patient=False)
    impatient.look({"exporters"})
    impatient.look({"exporters"})
    assert stage.play.asked == before + 2


def test_sessions_are_asked_for_where_they_are_shown(stage: Stage) -> None:
    stage.play.sessions = dict.fromkeys(make_sessions(), 40.0)
    assert "sessions" not in watch(stage).look({"exporters"}).rows
    rows = looked(stage).rows["sessions"]
    assert {(row["gateway"], row["exporter"]) for row in rows} == {
        (item.gateway, item.exporter) for item in stage.play.sessions
    }
    for row in rows:
        assert row["rates"]["messages"] == pytest.approx(40, rel=0.2)
        assert row["rates"]["octets"] == pytest.approx(4000, rel=0.2)


def test_sessions_come_in_pages(stage: Stage) -> None:
    begin = make_sessions()[0]
    stage.play.sessions = {replace(begin, exporter=f"192.0.2.1:{port}"): 1.0 for port in range(1, 2501)}
    rows = watch(stage).look({"sessions"}).rows["sessions"]
    assert {row["exporter"] for row in rows} == {item.exporter for item in stage.play.sessions}
    assert len(rows) == 2500


def test_templates_of_one_domain(stage: Stage) -> None:
    assert [item["id"] for item in watch(stage).templates("0.3")] == [256, 257]
    assert watch(stage).templates("0.99") == []


# ---------------------------------------------------------------------------------------------------- order


def rows_of(**rates: float | None) -> list[dict[str, Any]]:
    return [
        {"name": name, "rates": dict.fromkeys(("sent", "bytes", "failed", "skipped"), rate), "failed": 0, "up": True,
         "state": "up", "standby_for": "", "engine": "udp", "address": "192.0.2.1", "port": 1, "source": "own",
         "state_since_unix": 0.0}
        for name, rate in rates.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sort", "reverse", "names"),
    [("sent/s", False, "dabec"), ("sent/s", True, "eabdc"), ("receiver", False, "abcde"), ("receiver", True, "edcba")],
)
def test_numbers_from_the_largest_words_from_a(sort: str, reverse: bool, names: str) -> None:
    """Equals are in the order of their names, what is not known comes last, whichever way it goes."""
    rows = rows_of(e=1.0, b=2.0, a=2.0, d=3.0, c=None)
    assert "".join(row["name"] for row in arranged(RECEIVERS, rows, sort, reverse, "")) == names


def test_filter_looks_at_words_only() -> None:
    rows = rows_of(Alpha=192.0, beta=1.0)
    rows[1]["state"], rows[1]["up"] = "refusing", False
    assert [row["name"] for row in arranged(RECEIVERS, rows, "receiver", False, "ALPHA")] == ["Alpha"]
    assert [row["name"] for row in arranged(RECEIVERS, rows, "receiver", False, "refus")] == ["beta"]
    assert len(arranged(RECEIVERS, rows, "receiver", False, "192.0.2.1")) == 2
    assert arranged(RECEIVERS, rows, "receiver", False, "192k") == []


# ---------------------------------------------------------------------------------------------------- the screen


def crowded(stage: Stage) -> Snapshot:
    stage.play.exporters |= {"2001:db8::1": 5.0, "203.0.113.255": 1.0}
    stage.play.receivers |= {HOSTILE: 7.0, "収集器" * 9: 1.0, "n" * 64: 1.0}
    stage.play.down = {HOSTILE: f"why {HOSTILE}", "six": "x" * 300, "nfdump": "no"}
    stage.play.lost["192.0.2.1"] = 3.0
    first, *others = make_sessions()
    said = replace(first, name=HOSTILE, why=HOSTILE, exporter=HOSTILE, peer=HOSTILE, state=HOSTILE)
    stage.play.sessions = dict.fromkeys([said, *others], 2.0)
    return looked(stage, trends=("receivers", "exporters"))


def test_every_size_fits(stage: Stage) -> None:
    snapshot = crowded(stage)
    state = State(f"control socket {HOSTILE}", trouble=f"gone {HOSTILE}", since=1.0)
    for page in PAGES.values():
        for detail, help_ in ((False, False), (True, False), (False, True)):
            for width in (1, 2, 7, 20, 39, 40, 63, 64, 80, 119, 200):
                for height in (1, 2, 3, 4, 6, 11, 12, 24, 60):
                    view = View(page, 1.0, detail=detail, help=help_, cursor={page.name: "?"}, paused=True)
                    lines = compose(view, snapshot, state, width, height)
                    assert len(lines) == height
                    assert all(line.cell_len <= width for line in lines), (page.name, width, height)
                    assert all(line.plain.isprintable() for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 132, 180])
def test_what_matters_most_stays_where_there_is_little_room(stage: Stage, width: int) -> None:
    stage.play.lost["192.0.2.1"] = 3.0
    stage.play.sessions = dict.fromkeys(make_sessions(), 2.0)
    snapshot = looked(stage)
    for name, wanted in (
        ("receivers", "sent/s"), ("exporters", "datagrams/s"), ("sessions", "messages/s"), ("listeners", "datagrams/s"),
    ):  # fmt: skip
        lines = [line.plain for line in compose(View(PAGES[name], 1.0), snapshot, State("x"), width, 24)]
        assert sum(wanted in line for line in lines) == 1, lines
    head = next(line for line in lines if "datagrams/s" in line)
    assert width < 180 or all(column.title in head for column in PAGES["listeners"].columns)


def test_markup_and_control_characters_are_text(stage: Stage) -> None:
    snapshot = crowded(stage)
    for page in (RECEIVERS, SESSIONS):
        text = "\n".join(line.plain for line in compose(View(page, 1.0), snapshot, State("x"), 1000, 40))
        assert plain(HOSTILE) in text
        assert f"{plain(HOSTILE)} is refusing for" in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    row = next(line for line in text.split("\n") if line.startswith(plain(HOSTILE)) and "refusing" not in line)
    assert row.count(plain(HOSTILE)) == 4  # name, exporter, peer, why; and the state, in capitals


def test_columns_stand_below_each_other(stage: Stage) -> None:
    """Also with letters that are two cells wide."""
    lines = [line.plain for line in compose(View(RECEIVERS, 1.0), crowded(stage), State("x"), 240, 40)]
    begin = next(number for number, line in enumerate(lines) if line.startswith("receiver"))
    at = cell_len(lines[begin].split("state")[0])
    for line in lines[begin + 1 : begin + 6]:
        before = ""
        while cell_len(before) < at:
            before += line[len(before)]
        assert line[len(before) :].startswith(("up", "REFUSING")), line


def test_what_needs_attention_is_said(stage: Stage) -> None:
    stage.play.down = {f"r{n}": "gone" for n in range(20)}
    stage.play.receivers = dict.fromkeys(stage.play.down, 1.0)
    lines = [line.plain for line in compose(View(EXPORTERS, 1.0), looked(stage), State("x"), 100, 30)]
    assert sum("is refusing for" in line for line in lines) == 4
    assert any("and 16 more that need attention" in line for line in lines)
    lines = [line.plain for line in compose(View(EXPORTERS, 1.0), looked(stage), State("x"), 100, 8)]
    assert any(line.startswith("192.0.2.7:2055") for line in lines)  # the table has room in a low terminal, too


def test_backups_and_missing_collectors_need_attention(stage: Stage) -> None:
    """One that is down is named with its reason, and once."""
    incoming, refused, on_backup, well = make_sessions()
    stage.play.sessions = dict.fromkeys((incoming, refused, on_backup, well), 1.0)
    assert looked(stage).notes == [
        "nfdump has no collector connected; sessions: 1 not connected",
        "six uses its backup for 1 of 2 sessions",
    ]
    stage.play.down["nfdump"] = "not connected: Connection refused"
    del stage.play.sessions[on_backup]
    (note,) = looked(stage).notes
    assert note.startswith("nfdump is refusing for 1m")
    stage.play.down.clear()
    stage.play.sessions = dict.fromkeys((incoming, well, replace(well, state="initialising")), 1.0)
    assert looked(stage).notes == []  # somebody has it
    stage.play.sessions = {replace(incoming, state="re-establishing"): 1.0}
    assert looked(stage).notes == []  # whoever sends to us is no collector of ours


def test_sessions_that_need_attention_come_first(stage: Stage) -> None:
    stage.play.sessions = dict.fromkeys(make_sessions(), 1.0)
    lines = [line.plain for line in compose(View(SESSIONS, 1.0), looked(stage), State("x"), 240, 40)]
    begin = next(number for number, line in enumerate(lines) if line.startswith("name"))
    rows = [" ".join(line.split()) for line in lines[begin + 1 : begin + 5]]
    assert rows[0].startswith("six sctp out 192.0.2.2:2055 BACKUP IN USE")
    assert rows[0].endswith("192.0.2.11:9000 the network lost it")
    assert rows[1].startswith("nfdump tls out 192.0.2.1:2055 NOT CONNECTED")
    assert rows[1].endswith("4.1k 192.0.2.10:4740 Connection refused")
    assert [row.split()[4] for row in rows[2:]] == ["connected", "connected"]
    stage.play.sessions = {}
    lines = [line.plain for line in compose(View(SESSIONS, 1.0), looked(stage), State("x"), 80, 24)]
    assert SESSIONS.empty in lines


def test_trouble_is_said_on_every_screen(stage: Stage) -> None:
    state = State("x", trouble="nobody there", since=1.0)
    for height in (3, 5, 10, 40):
        lines = [line.plain for line in compose(View(EXPORTERS, 1.0), looked(stage), state, 80, height)]
        assert any("NO ANSWER for" in line and "nobody there" in line for line in lines)


def test_a_terminal_without_unicode(stage: Stage) -> None:
    state = State("x", unicode=False)
    text = "\n".join(line.plain for line in compose(View(EXPORTERS, 1.0), looked(stage), state, 60, 24))
    assert text.isascii()


# ---------------------------------------------------------------------------------------------------- keys


def test_keys_of_bytes() -> None:
    assert keys(b"q/\r\x7f\t\x15") == ["q", "/", "enter", "backspace", "tab", "erase"]
    assert keys(b"\x1b[A\x1bOB\x1b[5~\x1b[Z\x1b") == ["up", "down", "pageup", "backtab", "esc"]
    assert keys(b"\x1b[1;5Cx\x1b[999z") == ["x"]  # sequences that are not known
    assert keys("ü東".encode()) == ["ü", "東"]
    assert keys(b"\xff\x00\x1b\x1b") == ["esc", "esc"]


def names(view: View, snapshot: Snapshot) -> list[str]:
    return [row["name"] if "name" in row else row["exporter"].split(".")[-1] for row in view.rows(snapshot)]


def press(view: View, snapshot: Snapshot, *pressed: str) -> None:
    for key in pressed:
        view.press(key, snapshot)


def test_sort_filter_and_pages(stage: Stage) -> None:
    snapshot, view = looked(stage), View(RECEIVERS, 1.0)
    assert names(view, snapshot) == ["nfdump", "six"]
    press(view, snapshot, "r")
    assert names(view, snapshot) == ["six", "nfdump"]
    press(view, snapshot, "s", "s")
    assert view.sort["receivers"] == "sent/s"
    assert names(view, snapshot) == ["nfdump", "six"]
    press(view, snapshot, "1")
    assert names(view, snapshot) == list("7654321")
    press(view, snapshot, "/", *"192.0.2.4")
    assert names(view, snapshot) == ["4"]  # while it is written
    press(view, snapshot, "backspace", "backspace", "enter", "r")
    assert names(view, snapshot) == list("1234567")
    press(view, snapshot, "/", "erase", *"nobody", "enter")
    assert names(view, snapshot) == []
    press(view, snapshot, "down", "enter", "end", "esc")
    assert names(view, snapshot) == list("1234567")
    press(view, snapshot, *["tab"] * len(PAGES))
    assert view.page is EXPORTERS
    press(view, snapshot, "backtab")
    assert view.page is SESSIONS
    press(view, snapshot, "4", "5", "6", "0")
    assert view.page is SESSIONS
    assert not view.quit
    press(view, snapshot, "/", "q", "p", "esc")
    assert (view.quit, view.paused, view.wanted) == (False, False, "")
    press(view, snapshot, "q")
    assert view.quit


def test_the_cursor_stays_at_its_exporter(stage: Stage) -> None:
    snapshot, view = looked(stage), View(EXPORTERS, 1.0)
    press(view, snapshot, "down", "down", "down")
    row = view.selected(snapshot)
    assert row is not None
    assert row["exporter"] == "192.0.2.5"
    press(view, snapshot, "/", *"192", "enter")
    table = snapshot.tables["exporters"]
    changed = replace(snapshot, unix=snapshot.unix + 1, tables={"exporters": replace(table, number=table.number + 1)},
                      rows=snapshot.rows | {"exporters": snapshot.rows["exporters"][::-1][:4]})  # fmt: skip
    row = view.selected(changed)
    assert row is not None
    assert row["exporter"] == "192.0.2.5"
    press(view, changed, "end")
    assert view.place(changed) == 3
    press(view, changed, "pageup", "up", "up")
    assert view.place(changed) == 0
    press(view, changed, "G", "home")
    assert view.cursor == {}


def test_delay_and_pause_and_help() -> None:
    snapshot: Any = None
    view = View(RECEIVERS, 1.0)
    press(view, snapshot, "+")
    assert view.delay == 0.5
    press(view, snapshot, *"------")
    assert view.delay == 60.0
    press(view, snapshot, *"+" * 20)
    assert view.delay == 0.2
    view.delay = 3.0
    press(view, snapshot, "+")
    assert view.delay == 2.0
    press(view, snapshot, "p")
    assert view.paused
    press(view, snapshot, " ", "?")
    assert (view.paused, view.help) == (False, True)
    press(view, snapshot, "x")
    assert (view.help, view.quit) == (False, False)
    press(view, snapshot, "?", "q")
    assert view.quit
    assert {"q", "p", "s", "r", "/"} <= {key for words, _ in HELP for key in words.replace(",", " ").split()}


# ---------------------------------------------------------------------------------------------------- a pipe


def top(stage: Stage, *words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "samplicator", "top", "--control", str(stage.where), *words],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_json_lines(stage: Stage) -> None:
    stage.play.receivers[HOSTILE] = 7.0
    stage.play.sessions = dict.fromkeys(make_sessions(), 20.0)
    rows = [json.loads(line) for line in top(stage, "--json", "-n", "2", "-d", "0.5")]
    assert len(rows) == 2
    for row in rows:
        assert row["seconds"] == pytest.approx(0.5, abs=0.4)
        assert row["rates"]["sent"] == pytest.approx(507, rel=0.2)
        assert {each["name"]: each["rates"]["sent"] for each in row["receivers"]}["six"] == pytest.approx(100, rel=0.2)
        assert HOSTILE in {each["name"] for each in row["receivers"]}
        assert {each["exporter"] for each in row["exporters"]} == set(stage.play.exporters)
        assert set(row["exporters"][0]["rates"]) == set(EXPORTER_RATES)
        assert row["latency_seconds"]["p99"] == 1e-4
        assert {each["exporter"] for each in row["sessions"]} == {item.exporter for item in make_sessions()}
        assert "six uses its backup for 1 of 2 sessions" in row["attention"]
    (only,) = [json.loads(line) for line in top(stage, "--json", "-n", "1", "-d", "0.2", "--page", "listeners")]
    assert "receivers" not in only
    assert [each["name"] for each in only["listeners"]] == ["netflow"]


def test_lines_for_a_pipe(stage: Stage) -> None:
    """No control sequence, every column, every row, as often as asked; without -b too, where there is no terminal."""
    stage.play.receivers[HOSTILE] = 7.0
    for words in (["-b"], []):
        lines = top(stage, *words, "-n", "2", "-d", "0.3")
        assert sum(line.startswith("receiver") for line in lines) == 2
        assert "\x1b" not in "".join(lines)
        assert sum(plain(HOSTILE) in line for line in lines) == 2
    lines = top(stage, "-b", "-n", "1", "-d", "0.2", "--page", "exporters", "--sort", "exporter", "--reverse")
    assert [line[8] for line in lines if line.startswith("192.0.2.")] == list("7654321")
    lines = top(stage, "-b", "-n", "1", "-d", "0.2", "--page", "exporters", "--filter", "2.3:")
    assert [line.split()[0] for line in lines if line.startswith("192.")] == ["192.0.2.3:2055"]
    stage.play.sessions = dict.fromkeys(make_sessions(), 20.0)
    lines = top(stage, "-b", "-n", "1", "-d", "0.2", "--page", "sessions", "--sort", "exporter", "--filter", "SCTP")
    assert [line.split()[3] for line in lines if " sctp " in line] == ["192.0.2.2:2055", "192.0.2.3:2055"]
    assert not any(line.startswith(("netflow", "nfdump  ")) for line in lines)


def test_wide_listing_has_all_columns(stage: Stage) -> None:
    stage.play.sessions = dict.fromkeys(make_sessions(), 20.0)
    for page in PAGES.values():
        lines = listing(page, looked(stage), State("x"), page.sort, False, "")
        head = next(line for line in lines if line.startswith(page.columns[0].title))
        assert all(column.title in head for column in page.columns)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--sort", "sent"], "--sort must be a column of the page receivers: receiver, state, sent/s,"),
        (["--url", "http://a:1", "-c", "x.toml"], "--url cannot be combined"),
        (["--auth-file", "x"], "need --url"),
        (["--url", "http://me:secret@a:1"], "must not have a user or password"),
        (["--url", "ftp://a"], "must be http://HOST:PORT"),
        (["--url", "http://a:99999999"], "--url: "),
        (["--url", "http://a:1", "--ca-file", "x"], "for https:// only"),
        (["--url", "https://a:1", "--ca-file", "/nowhere"], "no certificates can be read"),
        (["--url", "http://a:1", "--auth-file", "/nowhere"], "No such file"),
    ],
)
def test_wrong_arguments(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", *words]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert "secret" not in error


@pytest.mark.parametrize("page", PAGES)
def test_every_page_can_be_named(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--page", page, "--sort", "nothing"]) == 2
    names = ", ".join(column.name for column in PAGES[page].columns)
    assert f"--sort must be a column of the page {page}: {names}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-d", "0"], ["-d", "x"], ["-n", "0"], ["--page", "all"], ["-d", "nan"]])
def test_wrong_numbers(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["top", *words])
    assert end.value.code == 2


def test_no_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--control", str(tmp_path / "none"), "--json"]) == 1
    assert "the socket does not exist" in capsys.readouterr().err


def test_a_pipe_outlives_a_daemon_that_is_gone_for_a_while(stage: Stage) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "samplicator", "top", "--control", str(stage.where), "--json", "-d", "0.2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())["rates"]["sent"] > 0
            stage.stop()
            assert "error: control socket" in process.stderr.readline()  # once, however long it takes
            stage.play.restart()
            stage.start()
            assert wait_for(lambda: json.loads(process.stdout.readline())["rates"]["sent"], "rates") < 2000
        finally:
            process.kill()
        assert process.stderr.read() == ""
