"""Makes the lines of a screen: a Snapshot and what the operator has chosen to see, as so many lines as there is room.

Purpose: `compose` for a terminal of any size, however small; `listing` for a pipe, a file or a log. Invariants: no line
is wider than the terminal, no text of a daemon is read as markup or as control characters (pages.plain). Called by
command. Pure, but for the clock.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from samplicator.cli.drawing import plain
from samplicator.cli.exporters import template_lines
from samplicator.cli.top.pages import (
    BLOCKS,
    PAGES,
    PLAIN_BLOCKS,
    Column,
    Page,
    Row,
    age,
    amount,
    arranged,
    curve,
    span,
)
from samplicator.cli.top.view import HELP, View
from samplicator.cli.top.watch import Snapshot, Table

GAP: Final = "  "
TREND: Final = "trend"
LEAST_TREND, MOST_TREND = 8, 24
BAD: Final = "bold red"
DIM: Final = "dim"
KEYS: Final = "q quit  ? help  1-5 page  s sort  r reverse  / filter  p pause  +/- delay  Enter details"


@dataclass(frozen=True, slots=True)
class State:
    """What is said of the daemon beside the snapshot. trouble: why the last look failed, since: when that began.
    unicode: the terminal can write blocks and ellipses. detail: (place, templates) as they came last.
    """

    name: str
    trouble: str = ""
    since: float = 0.0
    unicode: bool = True
    detail: tuple[str, list[dict[str, Any]]] | None = None


def compose(view: View, snapshot: Snapshot, state: State, width: int, height: int) -> list[Text]:
    """`height` lines."""
    width, height = max(1, width), max(1, height)
    head = _head(view, snapshot, state, width, height)
    foot = _foot(view, width)
    room = height - len(head) - 1
    if room < 1:
        return _fitted([*head[: height - 1], foot] if height > 1 else head[:1], width, height, state)
    if view.help:
        body = _help(width)[:room]
    elif view.detail and (row := view.selected(snapshot)) is not None:
        lines = [Text(plain(line)) for line in _detail(view.page, row, state)]
        view.tall = max(1, room)
        view.detail_first = max(0, min(view.detail_first, len(lines) - room))
        body = lines[view.detail_first : view.detail_first + room]
    else:
        body = _table(view, snapshot, state, width, room)
    return _fitted([*head, *body, *([Text()] * (room - len(body))), foot], width, height, state)


def _fitted(lines: Sequence[Text], width: int, height: int, state: State) -> list[Text]:
    """Exactly so many lines, none too long."""
    fitted = []
    for line in lines[:height]:
        if line.cell_len > width:
            line = line.copy()
            line.truncate(width, overflow="ellipsis" if state.unicode else "crop")
        fitted.append(line)
    return fitted + [Text()] * (height - len(fitted))


# ---------------------------------------------------------------------------------------------------- around the table


def _head(view: View, snapshot: Snapshot, state: State, width: int, height: int) -> list[Text]:
    status = snapshot.status
    at = time.strftime("%H:%M:%S", time.localtime(snapshot.unix))
    title = [
        (f"samplicator {plain(status['version'])}", "bold"),
        (f"up {age(status['uptime_seconds'])}", ""),
        (at, ""),
        (f"every {view.delay:g}s", DIM),
        (plain(state.name.removeprefix("control socket ")), ""),
    ]
    if view.paused:
        title.insert(0, ("PAUSED", "bold reverse"))
    lines = _flow(title, width, 2 if height >= 12 else 1)
    if state.trouble:
        gone = f"NO ANSWER for {age(time.time() - state.since)}: {plain(state.trouble)}"
        lines += [Text(part, style=BAD) for part in textwrap.wrap(gone, width)[: 1 + max(0, height - 6) // 4]]
    if height >= 6:
        lines += _flow(list(_sums(snapshot)), width, 3 if height >= 16 else 1)
    if height >= 16 and snapshot.trends:
        lines += _flow(_curves(snapshot, state, width), width, 1)
    most = max(0, min(5, (height - 14) // 3))
    shown = snapshot.notes[: most if len(snapshot.notes) <= most else max(0, most - 1)]
    lines += [Text(plain(note), style=BAD) for note in shown]
    if most and len(snapshot.notes) > len(shown):
        lines.append(Text(f"and {len(snapshot.notes) - len(shown)} more that need attention", style=BAD))
    if height >= 4:
        lines.append(_tabs(view, snapshot, width))
    return lines


def _sums(snapshot: Snapshot) -> Iterable[tuple[str, str]]:
    rates = snapshot.rates

    def bad(name: str) -> str:
        return BAD if rates[name] else ""

    yield f"in {amount(rates['datagrams'])}/s", "bold cyan"
    yield f"{amount(rates['bytes'])}B/s", ""
    yield f"kernel drops {amount(rates['kernel_drops'])}/s", bad("kernel_drops")
    yield f"rejected {amount(rates['rejected'])}/s", bad("rejected")
    yield f"out {amount(rates['sent'])}/s", "bold green"
    yield f"{amount(rates['sent_bytes'])}B/s", ""
    yield f"failed {amount(rates['failed'])}/s", bad("failed")
    yield f"skipped {amount(rates['skipped'])}/s", ""
    if snapshot.latency is not None:
        mean, most = snapshot.latency
        below = f"99% under {span(most)}" if most != float("inf") else "some over 1s"
        yield f"latency {span(mean)}, {below}", ""


def _curves(snapshot: Snapshot, state: State, width: int) -> list[tuple[str, str]]:
    each = max(4, min(MOST_TREND, (width - 24) // 3))
    blocks = BLOCKS if state.unicode else PLAIN_BLOCKS
    parts = []
    for label, name in (("in", "received"), ("out", "sent"), ("dropped", "lost")):
        parts.append((f"{label} {curve(snapshot.trends.get(name), each, blocks)}", DIM))
    return parts


def _tabs(view: View, snapshot: Snapshot, width: int) -> Text:
    line = Text()
    for number, page in enumerate(PAGES.values(), 1):
        words = f" {number} {page.name} " if width >= 64 or page is view.page else f" {number} "
        line.append(words, style="bold reverse" if page is view.page else DIM)
    rows, shown = snapshot.rows.get(view.page.table), view.rows(snapshot)
    if rows is not None:
        table = snapshot.tables.get(view.page.table, Table())
        every = f", read every {table.period:.0f}s" if table.period > 1.5 * view.delay else ""
        line.append(f"  {len(shown)} of {len(rows)}{' and more' if table.cut else ''}{every}", style=DIM)
    if view.wanted and view.typing is None:
        line.append(f"  filter: {plain(view.wanted)}", style="bold yellow")
    return line


def _foot(view: View, width: int) -> Text:
    if view.typing is not None:
        return Text(f"/{plain(view.typing)}", style="bold yellow").append("_", style="blink")
    if view.help or view.detail:
        return Text("any key: back" if view.help else "Esc back  Up Down PgUp PgDn", style=DIM)
    return Text(KEYS, style=DIM)


def _help(width: int) -> list[Text]:
    wide = max(len(keys) for keys, _ in HELP)
    if width < wide + 30:
        return [Text(line) for keys, words in HELP for line in (keys, f"  {words}")]
    return [Text(f"{keys.ljust(wide)}  {words}") for keys, words in HELP]


def _flow(parts: Sequence[tuple[str, str]], width: int, most: int) -> list[Text]:
    """Parts one after the other, in at most so many lines; what does not fit is left out."""
    lines = [Text()]
    for words, style in parts:
        if lines[-1] and lines[-1].cell_len + len(GAP) + cell_len(words) > width:
            if len(lines) == most:
                break
            lines.append(Text())
        if lines[-1]:
            lines[-1].append(GAP)
        lines[-1].append(words, style=style)
    return lines


# ---------------------------------------------------------------------------------------------------- the table


def _table(view: View, snapshot: Snapshot, state: State, width: int, room: int) -> list[Text]:
    """The head of the columns, and as many rows as there is room for."""
    page = view.page
    if page.table not in snapshot.rows:
        return [Text("asking ...", style=DIM)]
    rows = view.rows(snapshot)
    view.tall = max(1, room - 1)
    place = view.place(snapshot)
    first = max(0, min(view.first.get(page.name, 0), place, len(rows) - view.tall))
    first = max(first, place - view.tall + 1)
    view.first[page.name] = first
    if not rows:
        nothing = page.empty if not snapshot.rows[page.table] else "no row has this text in it"
        return [Text(nothing, style=DIM)]
    visible = rows[first : first + view.tall]
    cells = _cells(page, visible)
    heads = _titles(page, view.sort[page.name], view.reverse[page.name], state.unicode)
    for column, name in enumerate(heads):
        widest = max([cell_len(name), *(cell_len(row[column][0]) for row in cells)])
        view.widths[page.columns[column].name] = max(widest, view.widths.get(page.columns[column].name, 0))
    chosen, curve_width = _fit(page, view.widths, width)
    trend = TREND.rjust(curve_width) if curve_width else ""
    lines = [_line(page, chosen, [(name, "") for name in heads], trend, "reverse", width)]
    blocks = BLOCKS if state.unicode else PLAIN_BLOCKS
    for number, (row, texts) in enumerate(zip(visible, cells, strict=True), first):
        drawn = curve(row.get("trend"), curve_width, blocks) if curve_width else ""
        selected = page.name in view.cursor and number == place
        lines.append(_line(page, chosen, texts, drawn, "reverse" if selected else "", width))
    return lines[:room]


def _cells(page: Page, rows: Sequence[Row]) -> list[list[tuple[str, str]]]:
    """(text, style) of each column of each row."""

    def cell(column: Column, row: Row) -> tuple[str, str]:
        value = column.value(row)
        return column.text(value), BAD if column.bad(value) else ""

    return [[cell(column, row) for column in page.columns] for row in rows]


def _titles(page: Page, sort: str, reverse: bool, unicode: bool) -> list[str]:
    """The one that the table is sorted by has an arrow."""
    down, up = ("▼", "▲") if unicode else ("v", "^")

    def title(column: Column) -> str:
        if column.name != sort:
            return column.title
        return column.title + (down if column.numeric != reverse else up)

    return [title(column) for column in page.columns]


def _fit(page: Page, widths: Mapping[str, int], width: int) -> tuple[dict[int, int], int]:
    """Column -> its width, for those that there is room for; and the width of the curve. The first column is cut when
    it would take more than half of a narrow terminal.
    """
    natural = [widths[column.name] for column in page.columns]
    fits = sum(natural) + len(GAP) * (len(natural) - 1) <= width
    chosen = {0: min(width, natural[0] if fits else min(natural[0], max(width // 2, 12)))}
    left = width - chosen[0]
    for number in sorted(range(1, len(natural)), key=lambda each: page.columns[each].rank):
        if natural[number] + len(GAP) <= left:
            chosen[number] = natural[number]
            left -= natural[number] + len(GAP)
    more = min(left, natural[0] - chosen[0])
    chosen[0] += more
    left -= more + len(GAP)
    return dict(sorted(chosen.items())), min(left, MOST_TREND) if page.trend and left >= LEAST_TREND else 0


def _line(
    page: Page,
    chosen: Mapping[int, int],
    texts: Sequence[tuple[str, str]],
    drawn: str,
    style: str,
    width: int,
) -> Text:
    line = Text(style=style)
    for number, room in chosen.items():
        words, how = texts[number]
        if number:
            line.append(GAP)
        short = cell_len(words)
        if short > room:
            words = set_cell_size(words, room)
        elif page.columns[number].numeric:
            words = " " * (room - short) + words
        else:
            words += " " * (room - short)
        line.append(words, style=how or None)
    if drawn:
        line.append(GAP + drawn, style=None if style else "cyan")
    if style:
        line.append(" " * max(0, width - line.cell_len))
    return line


# ---------------------------------------------------------------------------------------------------- one row


def _detail(page: Page, row: Row, state: State) -> list[str]:
    """Everything about it."""
    lines = [page.columns[0].text(page.columns[0].value(row)), ""]
    fields = sorted(row.items(), key=lambda item: isinstance(item[1], Mapping))  # counters and rates last
    lines += [line for key, value in fields for line in _field(key, value, "  ")]
    if page.table == "exporters":
        known = state.detail[1] if state.detail is not None and state.detail[0] == row["place"] else None
        if known is None:
            lines += ["", "asking ..."]
        else:
            taught: Any = {**row, "templates": known}
            lines += ["", *(template_lines({"domains": [taught]}) if known else ["no template is known"])]
    return lines


def _field(key: str, value: object, indent: str) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{indent}{key}", *(line for name, each in value.items() for line in _field(name, each, indent + "  "))]
    if key in ("trend", "batch_counts"):
        return []
    if isinstance(value, float):
        words = (
            age(value) if key.endswith("_seconds") else time.ctime(value) if key.endswith("_unix") else f"{value:.1f}"
        )
    elif isinstance(value, list):
        words = ", ".join(map(str, value))
    else:
        words = "-" if value is None else str(value)
    return [f"{indent}{key.replace('_', ' ')}: {words}"]


# ---------------------------------------------------------------------------------------------------- no terminal


def listing(page: Page, snapshot: Snapshot, state: State, sort: str, reverse: bool, wanted: str) -> list[str]:
    """The same as lines of any width, with all columns and rows."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.unix))
    version, up = plain(snapshot.status["version"]), age(snapshot.status["uptime_seconds"])
    lines = [f"{at}  samplicator {version}  {plain(state.name)}  up {up}"]
    lines.append(GAP.join(words for words, _ in _sums(snapshot)))
    lines += [plain(note) for note in snapshot.notes]
    rows = arranged(page, snapshot.rows.get(page.table, []), sort, reverse, wanted)
    if not rows:
        return [*lines, "", "no row has this text in it" if snapshot.rows.get(page.table) else page.empty, ""]
    cells = _cells(page, rows)
    heads = _titles(page, sort, reverse, state.unicode)
    chosen = {
        number: max([cell_len(name), *(cell_len(row[number][0]) for row in cells)]) for number, name in enumerate(heads)
    }
    blocks = BLOCKS if state.unicode else PLAIN_BLOCKS
    lines += ["", _line(page, chosen, [(n, "") for n in heads], TREND if page.trend else "", "", 0).plain.rstrip()]
    for row, texts in zip(rows, cells, strict=True):
        drawn = curve(row.get("trend"), MOST_TREND, blocks) if page.trend else ""
        lines.append(_line(page, chosen, texts, drawn, "", 0).plain.rstrip())
    return [*lines, ""]
