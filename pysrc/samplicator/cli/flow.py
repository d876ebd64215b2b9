"""The commands that show what the daemon knows of flow telemetry: exporters, templates, domains, ledger, export.

Called by cli.main, each with the parsed options; each returns the exit status: 0 = shown, 1 = the daemon cannot be
reached. Standard library only. The daemon's answers come in pages; a command reads at most MOST domains.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from samplicator.cli.control import Unreachable, control_path, get_json
from samplicator.cli.running import duration, table, unmatched_lines

MOST: Final = 100_000
SHOWN_LOSSES: Final = 20
SHOWN_INTERVALS: Final = 3
LEDGER_KEYS: Final = ("exporter", "port", "protocol", "domain", "agent", "unit", "units", "lost", "restarts")
CISCO_DROPS: Final = (
    ("no fib", ("no_route",)),
    ("adjacency issues", ("no_neighbor",)),
    ("fragmentation failures", ("message_too_long",)),
    ("lack of export packet", ("no_buffer_space",)),
    ("port closed at the collector", ("refused",)),
    ("not permitted", ("permission",)),
    ("loops", ("loop",)),
    ("other errors", ("other",)),
)
"""The words of `show ip flow export`, and the reasons they stand for here; the last three have no word there."""


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

    return _asked(options, write)


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

    return _asked(options, write)


def domains(options: Namespace) -> int:
    """Who has which number instead of its domain."""

    def get(path: str) -> dict[str, Any]:
        rows = [row for row in _pages(path, "domains") if not options.exporter or row["exporter"] == options.exporter]
        rows.sort(key=lambda row: (":" in row["exporter"], _place(row["exporter"]), row["port"], row["domain"]))
        return {"domains": rows}

    return _show(options, get, domain_lines)


def ledger(options: Namespace) -> int:
    """One balance from the exporters to the receivers."""
    return _show(options, lambda path: balance(*_facts(path), _pages(path, "exporters")), ledger_lines)


def export(options: Namespace) -> int:
    """The counters in the words of a router."""

    def get(path: str) -> dict[str, Any]:
        flow, _, receivers = _facts(path)
        config = get_json(path, "/api/v1/config")["config"]
        return export_of(flow, receivers, config["receiver"], _pages(path, "exporters"))

    return _show(options, get, export_lines)


def _show(options: Namespace, get: Callable[[str], dict[str, Any]], lines: Callable[[Any], list[str]]) -> int:
    def write(path: str) -> None:
        value = get(path)
        print(json.dumps(value, indent=2) if options.json else "\n".join(lines(value)))

    return _asked(options, write)


def _asked(options: Namespace, write: Callable[[str], None]) -> int:
    try:
        write(control_path(options.control, options.config))
    except Unreachable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _facts(path: str) -> tuple[Any, Any, Any]:
    flow, listeners, receivers = (get_json(path, f"/api/v1/{page}") for page in ("flow", "listeners", "receivers"))
    return flow, listeners, receivers


class _Rows:
    """Rows to sort, each as what will be printed of it."""

    def __init__(self) -> None:
        self._rows: list[tuple[Any, Any]] = []

    def add(self, key: tuple[object, ...], row: object) -> None:
        self._rows.append((key, row))

    def sorted(self) -> Iterator[Any]:
        self._rows.sort(key=lambda pair: pair[0])
        return (row for _, row in self._rows)


def _pages(path: str, page: str, exporter: str = "", key: str = "") -> Iterator[dict[str, Any]]:
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


def _whole(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Domains that came in several rows, each in one."""
    held: dict[str, Any] | None = None
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


def _where(row: Mapping[str, Any]) -> str:
    return f"[{row['exporter']}]:{row['port']}" if ":" in row["exporter"] else f"{row['exporter']}:{row['port']}"


# ---------------------------------------------------------------------------------------------------- exporters


EXPORTER_HEAD: Final = [
    *("exporter", "protocol", "domain", "listener", "datagrams", "a second", "bytes each", "lost", "unit"),
    *("late", "restarts", "templates", "sampling", "clock skew", "uptime", "silent"),
]


def exporter_cells(row: Mapping[str, Any]) -> list[object]:
    """Cells of one line, behind EXPORTER_HEAD."""
    return [
        _where(row),
        row["protocol"],
        _domain(row),
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


def _domain(row: Mapping[str, Any]) -> object:
    """The number; of sFlow, which has none, AGENT/SUB-AGENT."""
    return f"{row['agent']}/{row['domain']}" if row["agent"] else row["domain"]


def _sampling(intervals: Sequence[float]) -> str:
    """1:N of each sampler; the first few where they differ."""
    more = len(intervals) - SHOWN_INTERVALS
    told = ", ".join(f"1:{interval}" for interval in intervals[:SHOWN_INTERVALS])
    return (told + (f" and {more} more" if more > 0 else "")) or "-"


# ---------------------------------------------------------------------------------------------------- templates


def template_lines(value: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for domain in value["domains"]:
        lines.append(f"{_where(domain)} {domain['protocol']} domain {domain['domain']}")
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


def domain_lines(value: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            row["unique"],
            f"0x{row['unique']:08x}",
            _where(row),
            row["protocol"],
            row["domain"],
            row["held_by"],
            duration(row["silent_seconds"]),
        ]
        for row in value["domains"]
    ]
    head = ["in copies", "hex", "exporter", "protocol", "its domain", "exporter", "silent"]
    return table(head, rows) if rows else ["no exporter has a domain assigned by samplicator"]


# ---------------------------------------------------------------------------------------------------- ledger


def balance(flow: Any, listeners: Any, receivers: Any, domains: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One balance from exporter to receiver. lost, by protocol: also of domains that are gone."""
    ending: dict[str, int] = {}
    losers = []
    for domain in domains:
        ending[domain["protocol"]] = ending.get(domain["protocol"], 0) + domain["lost_last"]
        if domain["lost"] or domain["restarts"]:
            losers.append({key: domain[key] for key in LEDGER_KEYS})
    protocols = {
        name: {**row, "lost": row["lost"] + ending.get(name, 0)}
        for name, row in flow["protocols"].items()
        if row["datagrams"]
    }
    return {
        "before": protocols,
        "unmatched": flow["unmatched"],
        "exporters": sorted(losers, key=lambda domain: -domain["lost"]),
        "here": [
            {
                "listener": item["name"],
                "kernel_drops": item["kernel_drops"],
                **{key: item["counters"][key] for key in ("datagrams", "truncated", "unmatched", "denied", "matched")},
            }
            for item in listeners
        ],
        "after": [
            {
                "receiver": item["name"],
                "up": item["up"],
                **{key: item["counters"][key] for key in ("offered", "sampled_out", "sent")},
                "failed": {
                    key.removeprefix("dropped_"): count
                    for key, count in item["counters"].items()
                    if key.startswith("dropped_")
                },
            }
            for item in receivers
        ],
        "templates_made_here": flow["replayed_datagrams"],
    }


def _nothing_seen(value: Mapping[str, Any]) -> list[str]:
    unmatched = sum(row["unmatched"] for row in value["here"])
    if unmatched:
        return [f"  no flow telemetry that a rule matches was seen; {unmatched} datagrams matched no rule"]
    return ["  no flow telemetry was seen"]


def ledger_lines(value: Mapping[str, Any]) -> list[str]:
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
                f"  {_where(row)}",
                row["protocol"],
                _domain(row),
                *(row[key] for key in ("lost", "unit", "units", "restarts")),
            ]
            for row in value["exporters"][:SHOWN_LOSSES]
        ]
        lines += ["", *table(["  exporter", "protocol", "domain", "lost", "unit", "came", "restarts"], rows)]
        more = len(value["exporters"]) - SHOWN_LOSSES
        lines += [f"  and {more} more"] if more > 0 else []
    keys = ["kernel_drops", "datagrams", "truncated", "denied", "unmatched", "matched"]
    rows = [[f"  {row['listener']}", *(row[key] for key in keys)] for row in value["here"]]
    head = ["  listener", "kernel drops", "read", "- truncated", "- denied", "- unmatched", "= matched"]
    lines += ["", "in samplicator, in datagrams", *table(head, rows)]
    rows = [
        [f"  {row['receiver']}", row["offered"], row["sampled_out"], sum(row["failed"].values()), row["sent"]]
        for row in value["after"]
    ]
    head = ["  receiver", "offered", "- skipped", "- failed", "= sent"]
    lines += ["", "to the receivers, in copies", *table(head, rows)]
    for row in value["after"]:
        reasons = [f"{count} {reason}" for reason, count in row["failed"].items() if count]
        lines += [f"  {row['receiver']}: failed: {', '.join(reasons)}"] if reasons else []
    if value["templates_made_here"]:
        lines.append(f"  {value['templates_made_here']} of the offered copies are replayed templates")
    return lines


# ---------------------------------------------------------------------------------------------------- export


def export_of(
    flow: Any, receivers: Any, configured: Sequence[Mapping[str, Any]], domains: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """What `show ip flow export` and `show ip flow export template` show, for the relay."""
    settings = {item["name"]: item for item in configured}
    flows = added = received = 0
    for row in domains:
        flows += row["units"] if row["unit"] in ("flows", "records") else 0
        added += row["templates_added"]
        received += row["templates_seen"]
    return {
        "flows": flows,
        "datagrams": sum(item["counters"]["sent"] for item in receivers),
        "templates": {
            "active": flow["templates"],
            "options_active": flow["options_templates"],
            "added": added,
            "received": received,
        },
        "receivers": [
            {
                "receiver": item["name"],
                "datagrams": item["counters"]["sent"],
                "drops": {
                    words: sum(item["counters"][f"dropped_{reason}"] for reason in reasons)
                    for words, reasons in CISCO_DROPS
                },
                "replays": item["counters"]["replays"],
                "refresh": {
                    key: settings.get(item["name"], {}).get(key, 0)
                    for key in (
                        "template_refresh_packets",
                        "template_refresh_minutes",
                        "options_refresh_packets",
                        "options_refresh_minutes",
                    )
                },
            }
            for item in receivers
        ],
    }


def export_lines(value: Mapping[str, Any]) -> list[str]:
    lines = [f"{value['flows']} flows received, exported in {value['datagrams']} udp datagrams"]
    for row in value["receivers"]:
        lines += ["", f"{row['receiver']}: {row['datagrams']} udp datagrams"]
        lines += [f"  {count} export packets were dropped due to {words}" for words, count in row["drops"].items()]
        refresh = row["refresh"]
        for what in ("template", "options"):
            packets, minutes = refresh[f"{what}_refresh_packets"], refresh[f"{what}_refresh_minutes"]
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
