"""`samplicator top` in a terminal: driven by keys in tmux, read from its screen; and whatever ends it, the terminal is
given back: the shell's screen, its cursor, and the settings that stty shows.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from samplicator.cli.drawing import plain
from support.pane import Pane, pane
from support.process import wait_for
from support.stage import Play, Stage
from support.state import make_sessions

HOSTILE = "\x1b[31m[red]x[/]\u202eevil\x07\r\n\x1b]0;title\x07"

RATE = r"  out (4[5-9]|5[0-4])\d/s"
"""Copies per second, of both receivers, on a busy machine."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path / "control") as made:
        yield made


def argv(stage: Stage, *words: str) -> list[str]:
    return [sys.executable, "-m", "samplicator", "top", "--control", str(stage.where), "-d", "0.5", *words]


def first_column(text: str, head: str) -> list[str]:
    """The first word of the rows of the table."""
    lines = text.split("\n")
    begin = next(number for number, line in enumerate(lines) if line.startswith(head))
    rows = lines[begin + 1 :]
    return [line.split()[0] for line in rows[: next(n for n, line in enumerate(rows) if not line)]]


# ---------------------------------------------------------------------------------------------------- keys


def test_sort_filter_pause_help_pages_and_quit(stage: Stage, tmp_path: Path) -> None:
    with pane(tmp_path, ["sh", "-c", shlex.join(argv(stage)) + "; echo status $?; sleep 1000"]) as top:
        text = top.match(r"^nfdump +up +(3[5-9]|4[0-4])\d ")
        assert "receiver▲" in text
        assert first_column(text, "receiver") == ["nfdump", "six"]
        top.press("r")
        assert first_column(top.wait("receiver▼"), "receiver") == ["six", "nfdump"]

        top.press("1")
        top.wait("192.0.2.7:2055  sending", "7 of 7")
        top.match(r"^192\.0\.2\.7:2055  sending +(6[89]|7[012]) ")
        assert first_column(top.text, "exporter") == [f"192.0.2.{n}:2055" for n in range(7, 0, -1)]
        top.press("r")
        text = top.wait("datagrams/s▲")
        assert first_column(text, "exporter") == [f"192.0.2.{n}:2055" for n in range(1, 8)]
        top.press("S", "S")
        assert first_column(top.wait("exporter▲"), "exporter")[0] == "192.0.2.1:2055"

        top.press("/")
        top.write("2.3:q")  # a letter that is a key otherwise
        top.wait("no row has this text in it", "/2.3:q_")
        top.press("BSpace")
        assert first_column(top.wait("1 of 7"), "exporter") == ["192.0.2.3:2055"]
        top.press("Enter")
        top.wait("filter: 2.3:", "q quit")
        top.press("Escape")
        top.wait("7 of 7", without="filter:")

        top.press("p")
        before = top.wait("PAUSED")
        time.sleep(1.2)
        assert top.text == before
        stage.play.down["six"] = "it says no"
        top.press("2")
        top.wait("receiver▼", without="REFUSING")  # what is shown stays, pages turn
        top.press("p")
        top.wait("six is refusing", "it says no", "REFUSING", without="PAUSED")

        top.press("?")
        top.wait("sort by the next column", "any key: back")
        top.press("x")
        top.wait("receiver▼")
        top.press("3")
        top.wait("listener▲", "netflow", "recvmmsg")
        top.press("4")
        top.wait("options data", "unknown/s")
        top.press("5")
        top.wait("there is no session by TCP, TLS or SCTP")
        stage.play.sessions = dict.fromkeys(make_sessions(), 1.0)
        top.wait("state▲", "BACKUP IN USE", "six uses its backup for 1 of 2 sessions", "4 of 4")
        top.press("Down", "Enter")
        top.wait("backup in use: True", "why: the network lost it")
        top.press("4")
        top.wait("options data")
        top.press("+")
        top.wait("every 0.2s")

        top.press("q")
        top.wait("status 0")
        assert (top.fact("alternate_on"), top.fact("cursor_flag"), top.fact("wrap_flag")) == ("0", "1", "1")


def test_a_row_with_all_that_is_known(stage: Stage, tmp_path: Path) -> None:
    with pane(tmp_path, argv(stage, "--page", "exporters", "--filter", "192.0.2.4:"), lines=60) as top:
        top.wait("192.0.2.4:2055")
        top.press("Down", "Enter")
        top.wait("template 256: 3 fields", "e9/40001 (variable)", "options template 257")
        top.press("Escape")
        top.wait("datagrams/s▼", without="template 256")
        top.press("2", "Escape", "Down", "Down", "Enter")
        top.wait("failed no route: 0", "engine why: because", "six")


def test_moving_in_a_long_table(stage: Stage, tmp_path: Path) -> None:
    stage.play.exporters = {f"198.51.100.{n}": float(n) for n in range(1, 201)}
    with pane(tmp_path, argv(stage, "--page", "exporters"), lines=20) as top:
        top.wait("198.51.100.200:", "200 of 200")
        top.press("G")
        top.wait("198.51.100.1:", without="198.51.100.200:")
        top.press("PPage")
        top.wait(without="198.51.100.1:")
        top.press("g")
        top.wait("198.51.100.200:")


def test_resize(stage: Stage, tmp_path: Path) -> None:
    """Columns come and go with the width, rows with the height; no size ends it, and none leaves old text behind."""
    with pane(tmp_path, argv(stage, "--page", "exporters"), columns=180) as top:
        top.wait("malformed", "trend", "192.0.2.1:2055")
        for columns, lines in ((100, 30), (60, 12), (38, 7), (10, 3), (2, 2), (1, 1), (70, 16)):
            top.resize(columns, lines)
            if columns >= 38:
                head = top.wait("datagrams/s", "192.0.2.7:2055", without="malformed")
                assert "trend" not in head or columns == 100
                assert max(map(len, top.lines)) <= columns
        top.resize(180, 30)
        text = top.wait("malformed", "192.0.2.1:2055")
        assert len(first_column(text, "exporter")) == 7
        wait_for(lambda: top.lines[29].startswith("q quit"), "the last line")


# ---------------------------------------------------------------------------------------------------- colors, names


def test_colors_and_no_color(stage: Stage, tmp_path: Path) -> None:
    stage.play.down["six"] = "no"
    color = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pane(tmp_path / "a", argv(stage)) as top:
        top.wait("six is refusing")
        assert color.search(top.colors)
    with pane(tmp_path / "b", argv(stage), env={"NO_COLOR": "1"}) as top:
        top.wait("six is refusing")
        assert not color.search(top.colors)


def test_names_from_the_network_are_text(stage: Stage, tmp_path: Path) -> None:
    stage.play.receivers[HOSTILE] = 7.0
    stage.play.down[HOSTILE] = HOSTILE
    with pane(tmp_path, argv(stage), columns=180) as top:
        before = top.fact("pane_title")
        text = top.wait(plain(HOSTILE))
        assert f"{plain(HOSTILE)} is refusing" in text
        top.press("Down", "Enter")  # it is the first by its name
        top.wait(f"state why: {plain(HOSTILE)}")
        assert top.fact("pane_title") == before


def test_a_terminal_that_is_none(stage: Stage, tmp_path: Path) -> None:
    """TERM=dumb: lines, and no control sequence."""
    with pane(tmp_path, ["env", "TERM=dumb", "sh", "-c", shlex.join(argv(stage, "-n", "2")) + "; sleep 1000"]) as top:
        top.wait("receiver▲", "nfdump")
        assert top.fact("alternate_on") == "0"


def test_keys_come_from_the_terminal_when_something_is_piped_in(stage: Stage, tmp_path: Path) -> None:
    with pane(tmp_path, ["sh", "-c", f"echo x | {shlex.join(argv(stage))}; echo status $?; sleep 1000"]) as top:
        top.wait("nfdump")
        top.press("q")
        top.wait("status 0")


def test_a_number_of_refreshes(stage: Stage, tmp_path: Path) -> None:
    with pane(tmp_path, ["sh", "-c", shlex.join(argv(stage, "-n", "3")) + "; echo status $?; sleep 1000"]) as top:
        top.wait("status 0")


@pytest.mark.deploy_heavy
@pytest.mark.parametrize(
    ("page", "row"),
    [("exporters", r"  96     9\.6k       0 "), ("sessions", r"10\.0\.0\.120:2055 +connected +2[1-5] ")],
)
def test_ten_thousand_cost_little(page: str, row: str, tmp_path: Path) -> None:
    """With a filter and a cursor too; every exporter is there. Less than 5 % of a CPU; 2 to 3.5 measured."""
    play = Play()
    rates = {f"10.0.{n >> 8}.{n & 255}": float(n % 97) for n in range(10_000)}
    one = make_sessions()[0]
    play.exporters = rates
    play.sessions = {replace(one, exporter=f"{address}:2055"): rate for address, rate in rates.items()}
    words = ("--page", page, "-d", "1")
    with Stage(tmp_path / "control", play, step=5.0) as stage, pane(tmp_path, argv(stage, *words), lines=50) as top:
        top.press("/")
        top.write(":2055")
        top.press("Enter")
        top.wait("10000 of 10000", "filter: :2055")
        text = top.match(row)
        top.press("Down")
        process = int(top.fact("pane_pid"))
        begin, before = time.monotonic(), cpu_seconds(process)
        time.sleep(8.0)  # no condition to wait for: this is what it costs while nothing happens
        used = (cpu_seconds(process) - before) / (time.monotonic() - begin)
        assert used < 0.05, f"{used:.1%}\n{text}"


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------------------------------------------- gone and back


def test_the_daemon_goes_and_comes_back(stage: Stage, tmp_path: Path) -> None:
    with pane(tmp_path, argv(stage), columns=240) as top:  # so that no text of an error is broken
        top.match(RATE)
        stage.stop()
        top.wait("NO ANSWER for", "does not exist; start the daemon", "nfdump")  # what was seen last stays
        top.press("1")
        top.wait("asking ...")
        top.press("2", "?")
        top.wait("sort by the next column")  # keys are answered meanwhile
        top.press("x")
        stage.play.restart()
        stage.start()
        top.wait("nfdump", without="NO ANSWER")
        top.match(RATE)
        top.press("1")
        top.wait("192.0.2.7:2055  sending")


def test_a_daemon_that_hangs(stage: Stage, tmp_path: Path) -> None:
    """It takes the request and does not answer: said soon, and keys are answered."""
    with pane(tmp_path, argv(stage), columns=240) as top:
        top.match(RATE)
        stage.play.hangs.clear()
        top.wait("NO ANSWER for", "the request is not answered yet", "nfdump")
        top.press("3")
        top.wait("listener▲", "NO ANSWER")
        stage.play.hangs.set()
        top.wait("netflow", without="NO ANSWER")


# ---------------------------------------------------------------------------------------------------- the terminal back


class Shell:
    """An interactive shell in a Pane, with the settings of the terminal before."""

    def __init__(self, top: Pane, tmp_path: Path) -> None:
        self.top = top
        self.before = tmp_path / "before"
        self.count = 0
        top.wait("shell>")
        self.run(f"stty -a > {shlex.quote(str(self.before))}")

    def start(self, words: list[str]) -> int:
        """Runs top; its process."""
        self.top.write(shlex.join(words))
        self.top.press("Enter")
        self.top.wait("nfdump", "receiver▲")
        assert self.top.fact("alternate_on") == "1"
        assert self.top.fact("cursor_flag") == "0"
        shell = int(self.top.fact("pane_pid"))
        children = Path(f"/proc/{shell}/task/{shell}/children")
        return int(wait_for(lambda: children.read_text().split(), "the process")[-1])

    def run(self, line: str) -> str:
        """A line, and the text when it is done."""
        self.count += 1
        self.top.write(f"{line}; echo done {self.count}.")
        self.top.press("Enter")
        return self.top.wait(f"\ndone {self.count}.")

    def has_its_terminal(self) -> None:
        wait_for(lambda: self.top.fact("alternate_on") == "0", "the shell's screen")
        assert (self.top.fact("cursor_flag"), self.top.fact("wrap_flag")) == ("1", "1")
        assert "same" in self.run(f"stty -a | cmp - {shlex.quote(str(self.before))} && echo same")


@pytest.fixture
def shell(stage: Stage, tmp_path: Path) -> Iterator[Shell]:
    (tmp_path / "rc").write_text("PS1='shell> '\n")
    with pane(tmp_path, ["bash", "--rcfile", "rc", "-i"], env={"HISTFILE": ""}) as top:
        yield Shell(top, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_gives_the_terminal_back(stage: Stage, shell: Shell, number: signal.Signals) -> None:
    process = shell.start(argv(stage))
    os.kill(process, number)
    shell.top.wait("shell>")
    shell.has_its_terminal()


def test_ctrl_c(stage: Stage, shell: Shell) -> None:
    shell.start(argv(stage))
    shell.top.press("C-c")
    shell.top.wait("shell>")
    shell.has_its_terminal()


def test_stopped_and_continued(stage: Stage, shell: Shell) -> None:
    shell.start(argv(stage))
    for _ in range(2):
        shell.top.press("C-z")
        shell.top.wait("Stopped")
        shell.has_its_terminal()
        shell.top.write("clear; fg")
        shell.top.press("Enter")
        shell.top.wait("receiver▲", "nfdump")
        assert (shell.top.fact("alternate_on"), shell.top.fact("cursor_flag")) == ("1", "0")
    shell.top.press("q")
    shell.has_its_terminal()


FAILS = """\
import signal
import sys
from samplicator.cli.main import main
from samplicator.cli.top import command, terminal, watch

def fail(*words):
    raise RuntimeError("made up")

signal.signal(signal.SIGUSR1, lambda *words: setattr({0}, "{1}", fail))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("owner", "name"), [("command", "compose"), ("terminal", "keys"), ("watch.Watch", "look")])
def test_an_error_of_our_own_gives_the_terminal_back(stage: Stage, shell: Shell, owner: str, name: str) -> None:
    """While it draws, reads keys, and in the thread that asks; and the error is shown."""
    script = shell.before.with_name("fail.py")
    script.write_text(FAILS.format(owner, name))
    os.kill(shell.start([sys.executable, str(script), *argv(stage)[3:]]), signal.SIGUSR1)
    wait_for(lambda: (shell.top.press("s"), shell.top.fact("alternate_on") == "0")[1], "the end", 30, 0.2)
    # a key that came too late stands anywhere between
    wait_for(lambda: "RuntimeError: made up" in shell.top.text.replace("s", ""), "the error", 30)
    shell.top.press("C-u")
    shell.has_its_terminal()


def test_a_terminal_that_goes_away_ends_it(stage: Stage, tmp_path: Path) -> None:
    """As when the connection breaks: no process is left behind."""
    with pane(tmp_path, argv(stage)) as top:
        top.wait("nfdump")
        process = int(top.fact("pane_pid"))
    wait_for(lambda: not Path(f"/proc/{process}").exists(), "its end")


def test_a_terminal_that_takes_nothing_more_does_not_hold_it(stage: Stage, shell: Shell) -> None:
    """Ctrl-S stops the output; a signal ends it all the same."""
    process = shell.start(argv(stage, "-d", "0.2"))
    shell.top.press("C-s")
    time.sleep(1.0)  # several refreshes, of which nothing can be seen
    os.kill(process, signal.SIGTERM)
    wait_for(lambda: not Path(f"/proc/{process}").exists() or "Z" in state(process), "its end", 20)
    shell.top.press("C-q")
    shell.top.wait("shell>")


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
