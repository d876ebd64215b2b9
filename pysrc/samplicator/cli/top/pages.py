"""The pages of `top`: which columns a table has, how their values are written, sorted and filtered.

Purpose: a Page for each table, and `arranged`, the rows in the order in which they are shown. Invariants: whatever a
daemon says is written as plain text, with control characters and what changes the direction of writing escaped; a value
that is not known is a dash and comes last. Called by screen, command and fetcher. Pure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from samplicator.cli.drawing import domain_word, plain, where
from samplicator.cli.running import place_text, state_word

Row = Mapping[str, Any]
SILENT_SECONDS: Final = 60.0
"""An exporter that sent nothing for so long is called silent."""
BLOCKS: Final = "▁▂▃▄▅▆▇█"
PLAIN_BLOCKS: Final = "_.-=+*%#"


# ---------------------------------------------------------------------------------------------------- values as text


def amount(value: float | None) -> str:
    """Three digits and a factor of 1000: 0, 0.3, 42, 1.23k, 45.6M. What is not zero is not written as zero."""
    if value is None:
        return "-"
    if value < 10:
        return f"{value:.1f}" if value >= 0.05 and value % 1 else "<0.1" if 0 < value < 0.05 else f"{value:.0f}"
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.0f}{unit}" if not unit or value >= 99.95 else f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}P"


def count(value: int | None) -> str:
    """Exact up to a million."""
    return "-" if value is None else str(value) if value < 1_000_000 else amount(value)


def age(seconds: float | None) -> str:
    """The two largest units: 42s, 5m10s, 3h07m, 12d4h."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24}h"


def span(seconds: float | None) -> str:
    """A short time: 35us, 1.2ms, 2s."""
    if seconds is None:
        return "-"
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{seconds * factor:.3g}{unit}"
    return f"{seconds:.3g}s"


def curve(values: Sequence[float | None] | None, width: int, blocks: str = BLOCKS) -> str:
    """The last `width` values, from zero to the largest of them; a blank where one is not known."""
    if not values:
        return ""
    shown = list(values)[-width:]
    top = max((value for value in shown if value is not None), default=0.0)
    return "".join(
        " "
        if value is None
        else blocks[0 if top <= 0 else min(len(blocks) - 1, int(value / top * (len(blocks) - 0.5)))]
        for value in shown
    ).rjust(width)


# ---------------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True, slots=True)
class Column:
    """title: in the head; name: for sorting, on the command line. value: of a row, for sorting. text: of a value. bad:
    whether a value needs attention. rank: columns with higher ranks are left out first where there is no room. numeric:
    written to the right, and the largest first.
    """

    title: str
    value: Callable[[Row], Any]
    text: Callable[[Any], str] = plain
    rank: int = 5
    bad: Callable[[Any], bool] = lambda value: False
    numeric: bool = True

    @property
    def name(self) -> str:
        return self.title.replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Page:
    """table: where the rows are. sort: name of the column that it is sorted by at first. trend: the last column is a
    curve. detail: lines about one row.
    """

    name: str
    table: str
    columns: tuple[Column, ...]
    sort: str
    trend: bool
    key: Callable[[Row], str]
    empty: str

    def column(self, name: str) -> Column:
        """Raises KeyError."""
        return {column.name: column for column in self.columns}[name]


def _word(title: str, value: Callable[[Row], Any], rank: int, bad: Callable[[Any], bool] = lambda v: False) -> Column:
    return Column(title, value, plain, rank, bad, numeric=False)


def _rate(title: str, name: str, rank: int, *, bad: bool = False) -> Column:
    return Column(
        title, lambda row: row["rates"][name], amount, rank, (lambda v: bool(v)) if bad else (lambda v: False)
    )


def _count(title: str, value: Callable[[Row], Any], rank: int, *, bad: bool = False) -> Column:
    return Column(title, value, count, rank, (lambda v: bool(v)) if bad else (lambda v: False))


def exporter_state(row: Row) -> str:
    """NO RULE, silent, LOSING or sending."""
    if not row["matched"]:
        return "NO RULE"
    if row["silent_seconds"] >= SILENT_SECONDS:
        return "silent"
    return "LOSING" if row["rates"]["lost"] else "sending"


def _loud(word: str) -> bool:
    """A state that is written in capitals needs attention."""
    return word.split(",")[0].isupper()


def _since(row: Row) -> float | None:
    """Seconds that a receiver is in its state."""
    return max(0.0, time.time() - row["state_since_unix"]) if row["state_since_unix"] else None


def _listener_state(row: Row) -> str:
    return str(row["state"]) if row["state"] == "up" else str(row["state"]).upper()


def session_state(row: Row) -> str:
    """connected, initialising, NOT CONNECTED, RE-ESTABLISHING or BACKUP IN USE."""
    if row["backup_in_use"]:
        return "BACKUP IN USE"
    return str(row["state"]) if row["state"] in ("connected", "initialising") else str(row["state"]).upper()


RECEIVERS: Final = Page(
    "receivers",
    "receivers",
    (
        _word("receiver", lambda row: row["name"], 0),
        _word("state", state_word, 1, _loud),
        _rate("sent/s", "sent", 0),
        _rate("bytes/s", "bytes", 5),
        _rate("failed/s", "failed", 1, bad=True),
        _count("failed", lambda row: row["failed"], 3),
        _rate("skipped/s", "skipped", 6),
        _word("to", place_text, 4),
        _word("source", lambda row: row["source"], 9),
        _word("engine", lambda row: row["engine"], 8),
        Column("since", _since, age, 7),
    ),
    "receiver",
    True,
    lambda row: str(row["name"]),
    "no receiver is configured",
)
LISTENERS: Final = Page(
    "listeners",
    "listeners",
    (
        _word("listener", lambda row: row["name"], 0),
        _word("state", _listener_state, 1, _loud),
        _rate("datagrams/s", "datagrams", 0),
        _rate("bytes/s", "bytes", 5),
        _rate("kernel drops/s", "kernel_drops", 1, bad=True),
        _count("kernel drops", lambda row: row["kernel_drops"], 3),
        _rate("rejected/s", "rejected", 2, bad=True),
        _rate("truncated/s", "truncated", 4, bad=True),
        Column(
            "queue",
            lambda row: row["queue_bytes"] / row["buffer_bytes"] if row["buffer_bytes"] else None,
            lambda value: "-" if value is None else f"{value:.0%}",
            4,
            lambda value: value is not None and value > 0.5,
        ),
        _word("receive", lambda row: row["receive"], 8),
        _word("listens on", lambda row: ", ".join(map(str, row["sockets"])), 7),
    ),
    "listener",
    True,
    lambda row: str(row["name"]),
    "no listener is configured",
)
EXPORTERS: Final = Page(
    "exporters",
    "exporters",
    (
        _word("exporter", where, 0),
        _word("state", exporter_state, 2, _loud),
        _rate("datagrams/s", "datagrams", 0),
        _rate("bytes/s", "bytes", 5),
        _rate("lost/s", "lost", 1, bad=True),
        _count("lost", lambda row: row["lost"], 3),
        _word("unit", lambda row: row["unit"], 8),
        _word("protocol", lambda row: row["protocol"], 4),
        _word("domain", domain_word, 6),
        _word("listener", lambda row: row["listener"] or "-", 9),
        _count("restarts", lambda row: row["restarts"], 10),
        _count("malformed", lambda row: row["malformed"], 10, bad=True),
        Column("silent", lambda row: row["silent_seconds"], age, 7),
    ),
    "datagrams/s",
    True,
    lambda row: f"{row['place']} {where(row)} {row['domain']}",
    "no exporter of flow telemetry was seen",
)
TEMPLATES: Final = Page(
    "templates",
    "exporters",
    (
        _word("exporter", where, 0),
        _word("protocol", lambda row: row["protocol"], 3),
        _word("domain", domain_word, 2),
        _count("templates", lambda row: row["templates"], 0),
        _count("options", lambda row: row["options_templates"], 1),
        _count("options data", lambda row: row["options_data"], 5),
        _rate("added/s", "templates_added", 4),
        _count("added", lambda row: row["templates_added"], 7),
        _rate("unknown/s", "unknown", 2, bad=True),
        _count("unknown", lambda row: row["unknown"], 6, bad=True),
        _rate("datagrams/s", "datagrams", 6),
        Column("silent", lambda row: row["silent_seconds"], age, 7),
    ),
    "unknown/s",
    False,
    EXPORTERS.key,
    "no exporter of flow telemetry was seen",
)
SESSIONS: Final = Page(
    "sessions",
    "sessions",
    (
        _word("name", lambda row: row["name"], 0),
        _word("transport", lambda row: row["gateway"], 4),
        _word("side", lambda row: row["side"], 6),
        _word("exporter", lambda row: row["exporter"], 2),
        _word("state", session_state, 1, _loud),
        _rate("messages/s", "messages", 0),
        _rate("bytes/s", "octets", 8),
        _count("messages", lambda row: row["messages"], 9),
        Column("bytes", lambda row: row["octets"], amount, 10),
        Column("waiting bytes", lambda row: row["queue_bytes"], amount, 7),
        _word("peer", lambda row: row["peer"], 5),
        _word("why", lambda row: row["why"], 3),
    ),
    "state",
    False,
    lambda row: f"{row['side']} {row['gateway']} {row['name']} {row['exporter']} {row['peer']}",
    "there is no session by TCP, TLS or SCTP",
)
PAGES: Final = {page.name: page for page in (EXPORTERS, RECEIVERS, LISTENERS, TEMPLATES, SESSIONS)}


# ---------------------------------------------------------------------------------------------------- order


def arranged(page: Page, rows: Sequence[Row], sort: str, reverse: bool, wanted: str) -> list[Row]:
    """Rows that contain `wanted` in a column of words, sorted by a column: words from A to Z, numbers from the largest
    to the smallest, or the other way round; equals by the first column, and what is not known last.
    """
    column, first = page.column(sort), page.columns[0]
    if wanted:
        words = [each for each in page.columns if not each.numeric]
        needle = wanted.casefold()
        rows = [row for row in rows if any(needle in each.text(each.value(row)).casefold() for each in words)]
    known: list[tuple[Any, str, Row]] = []
    unknown: list[tuple[str, Row]] = []
    for row in rows:
        value = column.value(row)
        if value is None:
            unknown.append((str(first.value(row)), row))
        else:
            known.append((value if column.numeric else str(value), str(first.value(row)), row))
    known.sort(key=lambda item: item[1])
    known.sort(key=lambda item: item[0], reverse=column.numeric != reverse)
    unknown.sort(key=lambda item: item[0])
    return [row for _, _, row in known] + [row for _, row in unknown]
