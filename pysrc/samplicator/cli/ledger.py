"""The commands that draw a balance: ledger, from the exporters to the receivers, and export, in a router's words.

Called by cli.main, each with the parsed options; each returns the exit status: 0 = shown, 1 = the daemon cannot be
reached. Standard library only. The daemon adds up; here it is only drawn.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Final

from samplicator.cli.control import get_json
from samplicator.cli.drawing import domain_word, show, table, unmatched_lines, where

if TYPE_CHECKING:
    from samplicator.views.export import Export
    from samplicator.views.ledger import Ledger

SHOWN_LOSSES: Final = 20
SECONDS: Final = 20.0
"""How long to wait: the daemon goes through all observation domains it knows."""


def ledger(options: Namespace) -> int:
    """One balance from the exporters to the receivers."""

    def get(path: str) -> Ledger:
        found: Ledger = get_json(path, "/api/v1/ledger", timeout=SECONDS)
        return found

    return show(options, get, ledger_lines)


def export(options: Namespace) -> int:
    """The counters in the words of a router."""

    def get(path: str) -> Export:
        found: Export = get_json(path, "/api/v1/export", timeout=SECONDS)
        return found

    return show(options, get, export_lines)


def _nothing_seen(value: Ledger) -> list[str]:
    unmatched = sum(row["unmatched"] for row in value["here"])
    if unmatched:
        return [f"  no flow telemetry that a rule matches was seen; {unmatched} datagrams matched no rule"]
    return ["  no flow telemetry was seen"]


def ledger_lines(value: Ledger) -> list[str]:
    lines = ["lost before samplicator, by the exporters' sequence numbers"]
    rows: list[list[object]] = [
        [f"  {name}", row["datagrams"], row["lost"], row["unit"], row["restarts"], row["malformed"]]
        for name, row in value["before"].items()
    ]
    head = ["  protocol", "datagrams", "lost", "unit", "restarts", "malformed"]
    lines += table(head, rows) if rows else _nothing_seen(value)
    lines += [f"  {line}" for line in unmatched_lines(value["unmatched"])]
    if value["exporters"]:
        rows = [
            [
                f"  {where(row)}",
                row["protocol"],
                domain_word(row),
                row["lost"],
                row["unit"],
                row["units"],
                row["restarts"],
            ]
            for row in value["exporters"][:SHOWN_LOSSES]
        ]
        lines += ["", *table(["  exporter", "protocol", "domain", "lost", "unit", "came", "restarts"], rows)]
        more = value["exporter_count"] - min(SHOWN_LOSSES, len(value["exporters"]))
        lines += [f"  and {more} more"] if more > 0 else []
    rows = [
        [
            f"  {here['listener']}",
            here["kernel_drops"],
            here["datagrams"],
            here["truncated"],
            here["denied"],
            here["unmatched"],
            here["matched"],
        ]
        for here in value["here"]
    ]
    head = ["  listener", "kernel drops", "read", "- truncated", "- denied", "- unmatched", "= matched"]
    lines += ["", "in samplicator, in datagrams", *table(head, rows)]
    for here in value["here"]:
        if here.get("offloaded"):
            unseen = f", {here['unseen']} of them unseen" if here["unseen"] else ""
            lines.append(
                f"  {here['listener']}: {here['offloaded']} were copied by the kernel where they came in{unseen}"
            )
    rows = [
        [f"  {after['receiver']}", after["offered"], after["skipped"], sum(after["failed"].values()), after["sent"]]
        for after in value["after"]
    ]
    head = ["  receiver", "offered", "- skipped", "- failed", "= sent"]
    lines += ["", "to the receivers, in copies", *table(head, rows)]
    for after in value["after"]:
        reasons = [f"{count} {reason}" for reason, count in after["failed"].items() if count]
        lines += [f"  {after['receiver']}: failed: {', '.join(reasons)}"] if reasons else []
    if value["templates_made_here"]:
        lines.append(f"  {value['templates_made_here']} of the offered copies are replayed templates")
    return lines


def export_lines(value: Export) -> list[str]:
    lines = [f"{value['flows']} flows received, exported in {value['datagrams']} udp datagrams"]
    for row in value["receivers"]:
        lines += ["", f"{row['receiver']}: {row['datagrams']} udp datagrams"]
        lines += [f"  {count} export packets were dropped due to {words}" for words, count in row["drops"].items()]
        refresh = row["refresh"]
        for what, packets, minutes in (
            ("template", refresh["template_refresh_packets"], refresh["template_refresh_minutes"]),
            ("options", refresh["options_refresh_packets"], refresh["options_refresh_minutes"]),
        ):
            told = f"{packets or 'no'} packets, timeout {minutes or 'no'} minutes"
            lines.append(f"  {what} refresh rate {told}")
        lines.append(f"  all templates were replayed {row['replays']} times")
    templates = value["templates"]
    lines += [
        "",
        f"{templates['active']} flow templates active, {templates['options_active']} option templates active",
        f"{templates['added']} templates added, {templates['received']} received",
    ]
    return lines
