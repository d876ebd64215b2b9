"""The commands that show what the daemon knows of exporters: exporters, templates, domains.

Called by cli.main, each with the parsed options; each returns the exit status: 0 = shown, 1 = the daemon cannot be
reached. Standard library only. The daemon's answers come in pages; a command reads at most MOST domains.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from samplicator.cli.control import get_json
from samplicator.cli.drawing import asked, domain_word, duration, show, table, where

if TYPE_CHECKING:
    from samplicator.views.exporters import Alias, Exporter
    from samplicator.views.templates import Taught

MOST: Final = 100_000
SHOWN_INTERVALS: Final = 3


def exporters(options: Namespace) -> int:
    """Who sends what, and what is missing."""

    def write(path: str) -> None:
        rows = _Rows()
        for row in _pages(path, "exporters", options.exporter):
            key = (":" in row["exporter"], _place(row["exporter"]), row["port"], row["domain"])
            rows.add(key, json.dumps(row, indent=2) if options.json else exporter_cells(row))
        if options.json:
            _print_list("exporters", rows.sorted())
        else:
            print("\n".join(exporter_table(list(rows.sorted()))))

    return asked(options, write)


def templates(options: Namespace) -> int:
    """Templates by exporter and domain, fields by name, as they come: nothing is held back but one domain."""

    def write(path: str) -> None:
        domains = _whole(_pages(path, "templates", options.exporter, "domains"))
        if options.json:
            _print_list("domains", (json.dumps(row, indent=2) for row in domains))
            return
        none = True
        for row in domains:
            none = False
            print("\n".join(template_lines({"domains": [row]})))
        if none:
            print("no template is known")

    return asked(options, write)


def domains(options: Namespace) -> int:
    """Who has which number instead of its domain."""

    def get(path: str) -> dict[str, Any]:
        rows = [row for row in _pages(path, "domains") if not options.exporter or row["exporter"] == options.exporter]
        rows.sort(key=lambda row: (":" in row["exporter"], _place(row["exporter"]), row["port"], row["domain"]))
        return {"domains": rows}

    return show(options, get, domain_lines)


class _Rows:
    """Rows to sort, each as what will be printed of it."""

    def __init__(self) -> None:
        self._rows: list[tuple[Any, Any]] = []

    def add(self, key: tuple[object, ...], row: object) -> None:
        self._rows.append((key, row))

    def sorted(self) -> Iterator[Any]:
        self._rows.sort(key=lambda pair: pair[0])
        return (row for _, row in self._rows)


def _pages(path: str, page: str, exporter: str = "", key: str = "") -> Iterator[Any]:
    """Rows of all pages. A note on stderr where there are more than MOST domains."""
    after, count = "0.0", 0
    wanted = f"&exporter={quote(exporter)}" if exporter else ""
    while after and count < MOST:
        answer = get_json(path, f"/api/v1/{page}?after={after}{wanted}")
        rows = answer[key or page]
        count += len(rows)
        yield from rows
        after = answer["after"]
    if after:
        print(f"only the first {count} observation domains are shown", file=sys.stderr)


def _whole(rows: Iterator[Taught]) -> Iterator[Taught]:
    """Domains that came in several rows, each in one."""
    held: Taught | None = None
    for row in rows:
        if held is not None and row["place"] == held["place"]:
            held["templates"] += row["templates"]
            continue
        if held is not None:
            yield held
        held = row
    if held is not None:
        yield held


def _print_list(key: str, rows: Iterable[str]) -> None:
    """An object with one list, printed row by row."""
    first = True
    for row in rows:
        print(f'{{\n  "{key}": [' if first else ",", flush=False)
        print("    " + row.replace("\n", "\n    "), end="")
        first = False
    print(f'{{\n  "{key}": []\n}}' if first else "\n  ]\n}")


def _place(address: str) -> tuple[object, ...]:
    return tuple(int(part) for part in address.split(".")) if "." in address and ":" not in address else (address,)


# ---------------------------------------------------------------------------------------------------- exporters


EXPORTER_HEAD: Final = [
    *("exporter", "protocol", "domain", "listener", "datagrams", "per second", "bytes each", "lost", "unit"),
    *("late", "restarts", "templates", "sampling", "clock skew", "uptime", "silent"),
]


def exporter_cells(row: Exporter) -> list[object]:
    """Cells of one line, behind EXPORTER_HEAD."""
    return [
        where(row),
        row["protocol"],
        domain_word(row),
        (row["listener"] or "-") + ("" if row["matched"] else ", no rule"),
        row["datagrams"],
        f"{row['datagrams_per_second']:.1f}",
        f"{row['mean_bytes']:.0f}",
        row["lost"],
        row["unit"],
        row["late"],
        row["restarts"],
        row["templates"] + row["options_templates"],
        _sampling(row["sampling_intervals"]),
        "-" if row["clock_skew_seconds"] is None else f"{row['clock_skew_seconds']:+.1f}s",
        "-" if row["uptime_seconds"] is None else duration(row["uptime_seconds"]),
        duration(row["silent_seconds"]),
    ]


def exporter_table(rows: Sequence[Sequence[object]]) -> list[str]:
    return table(EXPORTER_HEAD, rows) if rows else ["no exporter of flow telemetry was seen"]


def _sampling(intervals: Sequence[float]) -> str:
    """1:N of each sampler; the first few where they differ."""
    more = len(intervals) - SHOWN_INTERVALS
    told = ", ".join(f"1:{interval}" for interval in intervals[:SHOWN_INTERVALS])
    return (told + (f" and {more} more" if more > 0 else "")) or "-"


# ---------------------------------------------------------------------------------------------------- templates


def template_lines(value: Mapping[str, Sequence[Taught]]) -> list[str]:
    lines: list[str] = []
    for domain in value["domains"]:
        lines.append(f"{where(domain)} {domain['protocol']} domain {domain['domain']}")
        for item in domain["templates"]:
            size = f"{item['record_bytes']} bytes" if item["record_bytes"] else "variable length"
            age = duration(max(0.0, time.time() - item["last_seen_unix"]))
            kind = "options template" if item["kind"] == "options_template" else "template"
            lines.append(f"  {kind} {item['id']}: {len(item['fields'])} fields, {size}, repeated {age} ago")
            for field in item["fields"]:
                width = "variable" if field["bytes"] is None else str(field["bytes"])
                lines.append(f"    {field['name']} ({width}){' scope' if field['scope'] else ''}")
    return lines or ["no template is known"]


# ---------------------------------------------------------------------------------------------------- domains


def domain_lines(value: Mapping[str, Sequence[Alias]]) -> list[str]:
    rows = [
        [
            row["unique"],
            f"0x{row['unique']:08x}",
            where(row),
            row["protocol"],
            row["domain"],
            row["held_by"],
            duration(row["silent_seconds"]),
        ]
        for row in value["domains"]
    ]
    head = ["in copies", "hex", "exporter", "protocol", "its domain", "exporter", "silent"]
    return table(head, rows) if rows else ["no exporter has a domain assigned by samplicator"]
