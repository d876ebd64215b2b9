"""Tables, durations and texts for the commands that show something, and the steps from request to print.

Called by the other modules of cli. Standard library only. The daemon computes what is shown.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from samplicator.cli.control import control_path
from samplicator.errors import Unreachable

if TYPE_CHECKING:
    from samplicator.views.flow import WithoutRule

UNMATCHED: Final = 5
"""Exporters without a rule that are named."""

T = TypeVar("T")


def show(options: Namespace, get: Callable[[str], T], lines: Callable[[T], list[str]]) -> int:
    """Asks the daemon and prints the answer, as JSON or as lines. 0 = shown, 1 = the daemon cannot be reached."""

    def write(path: str) -> None:
        value = get(path)
        print(json.dumps(value, indent=2) if options.json else "\n".join(lines(value)))

    return asked(options, write)


def asked(options: Namespace, write: Callable[[str], None]) -> int:
    """Calls write with the path of the control socket. 0 = done, 1 = the daemon cannot be reached."""
    try:
        write(control_path(options.control, options.config))
    except Unreachable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Columns padded with blanks; numbers to the right."""
    text = [list(head), *([f"{cell}" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in text) for column in range(len(head))]
    right = [bool(rows) and all(isinstance(row[column], int) for row in rows) for column in range(len(head))]
    return [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in text
    ]


def plain(value: object) -> str:
    """Text in which nothing is hidden: what is not printable is written as an escape."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode("ascii")
        for letter in text
    )


def duration(seconds: float) -> str:
    """90061 -> "1d 1h 1m"."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m")]
    told = " ".join(f"{number}{unit}" for number, unit in parts if number)
    return told or f"{whole}s"


def unmatched_lines(value: WithoutRule) -> list[str]:
    """Lines about exporters that no rule matches."""
    if not value["count"]:
        return []
    shown = [f"{row['exporter']} ({row['datagrams']} on {row['listener']})" for row in value["exporters"][:UNMATCHED]]
    more = value["count"] - len(shown)
    names = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    many = "1 exporter" if value["count"] == 1 else f"{value['count']} exporters"
    return [
        f"NO RULE MATCHES {many}; these datagrams are not forwarded: {names}",
        "  name them in `from` of a rule, or, to drop them on purpose, of a rule with to = [] and stop = true",
    ]


def gateway_lines(gateways: Sequence[Mapping[str, Any]], up: set[str]) -> Iterator[str]:
    """Backups in use; and receivers (of those that are up) that have no collector, because nothing has failed yet."""
    for row in gateways:
        sessions: Mapping[str, int] = row["sessions"]
        number = sum(sessions.values())
        if row["backups_in_use"]:
            yield f"{row['name']} uses its backup for {row['backups_in_use']} of {number} sessions"
        elif row["side"] == "out" and row["name"] in up and number and not sessions.get("connected"):
            states = ", ".join(f"{count} {state}" for state, count in sorted(sessions.items()))
            yield f"{row['name']} has no collector connected; sessions: {states}"


def where(row: Mapping[str, Any]) -> str:
    """ADDRESS:PORT of the exporter of a row."""
    return f"[{row['exporter']}]:{row['port']}" if ":" in row["exporter"] else f"{row['exporter']}:{row['port']}"


def domain_word(row: Mapping[str, Any]) -> object:
    """The number; of sFlow, which has none, AGENT/SUB-AGENT."""
    return f"{row['agent']}/{row['domain']}" if row["agent"] else row["domain"]
