"""The command `top`: from its arguments to a screen, to lines for a pipe, or to JSON.

Called by cli.main with the parsed options. Exit status: 0 = ended by the operator or after -n refreshes; 1 = the daemon
cannot be reached at the start, or could not be at the last refresh; 2 = wrong arguments; 128 + N = ended by signal N.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from samplicator.cli.api import WrongArguments, asked_for
from samplicator.cli.drawing import plain
from samplicator.cli.top.fetcher import Fetcher
from samplicator.cli.top.pages import BLOCKS, PAGES, Page, arranged
from samplicator.cli.top.screen import State, compose, listing
from samplicator.cli.top.terminal import Terminal
from samplicator.cli.top.view import View
from samplicator.cli.top.watch import Snapshot, Watch
from samplicator.errors import Unreachable

DEFAULT_PAGE: Final = "receivers"
EVERY: Final = ("receivers", "listeners", "exporters", "sessions")
"""Pages that are in JSON if none is named; that of templates has the rows of exporters."""
LATE_SECONDS: Final = 2.0
"""An answer that takes so long is said to be missing."""
UNEXPECTED: Final = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""What an answer of an unexpected form leads to."""


def top(options: Namespace) -> int:
    """See above."""
    try:
        api = asked_for(options)
        page, sort = _order(options)
    except WrongArguments as error:
        print(f"error: {plain(error)}", file=sys.stderr)
        return 2
    except Unreachable as error:
        print(f"error: {plain(error)}", file=sys.stderr)
        return 1
    pair = None if options.batch or options.json else _terminal()
    try:
        if pair is None:
            return _batch(Watch(api, patient=False), options, page, sort)
        return _interactive(Watch(api), options, page, sort, *pair)
    except Unreachable as error:
        print(f"error: {plain(error)}", file=sys.stderr)
        return 1


def _order(options: Namespace) -> tuple[Page, str]:
    """The page, and the column that it is sorted by. Raises WrongArguments."""
    page = PAGES[options.page or DEFAULT_PAGE]
    sort = (options.sort or page.sort).replace(" ", "-")
    names = [column.name for column in page.columns]
    if sort not in names:
        raise WrongArguments(f"--sort must be a column of the page {page.name}: {', '.join(names)}")
    return page, sort


def _terminal() -> tuple[int, int] | None:
    """Descriptors to read keys from and to draw on; None = standard output is no terminal, or one that cannot do it."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return None
    if sys.stdin.isatty():
        return sys.stdin.fileno(), sys.stdout.fileno()
    try:
        return os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC), sys.stdout.fileno()
    except OSError:
        return None


def _unicode() -> bool:
    """Whether standard output can write what is drawn; what it cannot write is escaped."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        return False
    return True


# ---------------------------------------------------------------------------------------------------- a pipe or a file


def _batch(watch: Watch, options: Namespace, page: Page, sort: str) -> int:
    """Lines, every `delay` seconds. The first ones come after `delay` seconds too: a rate needs two looks."""
    tables = {PAGES[name].table for name in (EVERY if options.json and not options.page else [page.name])}
    trends = [page.table] if page.trend and not options.json else []
    state = State(watch.name, unicode=_unicode())
    watch.look(tables)
    number, trouble, due = 0, False, time.monotonic()
    while not options.iterations or number < options.iterations:
        due = max(due + options.delay, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        number += 1
        try:
            snapshot = watch.look(tables, trends)
            if trouble and snapshot.seconds is None and number != options.iterations:
                trouble = False
                continue  # it is back: rates come with the next look
        except Unreachable as error:
            if not trouble:
                print(f"error: {plain(error)}", file=sys.stderr, flush=True)
            trouble = True
            continue
        trouble = False
        if options.json:
            print(json.dumps(_as_json(snapshot, options, page, sort)), flush=True)
        else:
            print("\n".join(listing(page, snapshot, state, sort, options.reverse, options.filter)), flush=True)
    return 1 if trouble else 0


def _as_json(snapshot: Snapshot, options: Namespace, page: Page, sort: str) -> dict[str, Any]:
    """One line. Rows are those of the API, with `rates`. The page that is named, or EVERY."""
    status = snapshot.status
    names = [page.name] if options.page else EVERY

    def rows(name: str) -> list[Any]:
        shown = PAGES[name]
        order = sort if shown is page else shown.sort
        reverse = options.reverse and shown is page
        return arranged(shown, snapshot.rows[shown.table], order, reverse, options.filter)

    return {
        "time_unix": round(snapshot.unix, 3),
        "seconds": None if snapshot.seconds is None else round(snapshot.seconds, 3),
        "version": status["version"],
        "uptime_seconds": status["uptime_seconds"],
        "ready": status["ready"],
        "healthy": status["healthy"],
        "attention": list(snapshot.notes),
        "rates": snapshot.rates,
        "latency_seconds": _latency(snapshot),
        **{name: rows(name) for name in names},
    }


def _latency(snapshot: Snapshot) -> dict[str, float | None] | None:
    """Mean, and the bound that 99 % of the datagrams were below; null above all bounds."""
    if snapshot.latency is None:
        return None
    mean, most = snapshot.latency
    return {"mean": mean, "p99": None if most == float("inf") else most}


# ---------------------------------------------------------------------------------------------------- a terminal


def _interactive(watch: Watch, options: Namespace, page: Page, sort: str, source: int, target: int) -> int:
    """The screen. Raises Unreachable when the daemon cannot be reached at the start."""
    view = View(page, options.delay, wanted=options.filter)
    view.sort[page.name], view.reverse[page.name] = sort, options.reverse
    first = watch.look({page.table}, [page.table] if page.trend else [])
    state = State(watch.name, unicode=_unicode())
    with Terminal(source, target) as terminal:
        fetcher = Fetcher(watch, terminal.wake, first, page.name, options.delay)
        fetcher.start()
        try:
            _loop(view, state, terminal, fetcher, options.iterations)
        finally:
            fetcher.end()
    if fetcher.crash is not None:
        raise fetcher.crash
    return 128 + terminal.ended if terminal.ended else 0


def _loop(view: View, state: State, terminal: Terminal, fetcher: Fetcher, iterations: int) -> None:
    """Until the operator, a signal, an error or the number of refreshes ends it."""
    snapshot, trouble, since = fetcher.snapshot, "", 0.0
    while not (view.quit or terminal.ended or terminal.hung_up or fetcher.crash):
        if not view.paused or view.page.table not in snapshot.rows:
            snapshot, trouble, since = fetcher.snapshot, fetcher.trouble, fetcher.since
            begun = fetcher.begun
            if begun and not trouble and time.time() - begun >= LATE_SECONDS:
                trouble, since = "the request is not answered yet", begun
        state = replace(state, trouble=trouble, since=since, detail=fetcher.detail)
        _draw(view, snapshot, state, terminal)
        if iterations and fetcher.count > iterations:
            return
        pressed = terminal.wait(1.0 if trouble else LATE_SECONDS)
        _guarded(partial(_press, view, snapshot, pressed))
        detail = "" if state.trouble else _place(view, snapshot)
        fetcher.want(view.page.name, detail, view.delay, view.paused and view.page.table in snapshot.rows)


def _press(view: View, snapshot: Snapshot, pressed: list[str]) -> None:
    for key in pressed:
        view.press(key, snapshot)


def _place(view: View, snapshot: Snapshot) -> str:
    """Of the observation domain whose templates are shown."""
    if not view.detail or view.page.table != "exporters":
        return ""
    with contextlib.suppress(*UNEXPECTED):
        row = view.selected(snapshot)
        return str(row["place"]) if row is not None else ""
    return ""


def _draw(view: View, snapshot: Snapshot, state: State, terminal: Terminal) -> None:
    from rich.text import Text

    columns, lines = terminal.size
    trouble = _guarded(lambda: terminal.draw(compose(view, snapshot, state, columns, lines)))
    if trouble:
        terminal.draw([Text(line[:columns]) for line in (trouble, "q quit")][:lines])


def _guarded(do: Callable[[], object]) -> str:
    """Why an answer of the daemon cannot be shown, "" = it can. A daemon of another version, or what is none, may send
    anything; that is no reason to end.
    """
    try:
        do()
    except UNEXPECTED as error:
        return plain(f"an answer has an unexpected form ({type(error).__name__}: {error})")
    return ""
