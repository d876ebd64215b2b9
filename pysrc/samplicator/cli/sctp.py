"""The command that shows SCTP associations in a router's words.

Called by cli.main with the parsed options; returns the exit status: 0 = shown, 1 = the daemon cannot be reached.
Standard library only. The daemon computes; here it is only drawn.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from samplicator.cli.control import get_json
from samplicator.cli.drawing import plain, show, table

if TYPE_CHECKING:
    from samplicator.views.sctp import SctpCollector, SctpExport, SctpPage

MOST: Final = 100_000
"""Associations that are asked for."""
HEAD: Final = ("receiver", "exporter", "collector", "status", "flows", "messages", "dropped", "fail-overs")


def sctp(options: Namespace) -> int:
    """Associations of exporters, and to collectors and their backups."""
    return show(options, _all, verbose_lines if options.verbose else lines)


def _all(path: str) -> SctpPage:
    found: SctpPage = {"exporters": [], "exports": [], "after": None}
    after: int | None = 0
    while after is not None and after < MOST:
        page: SctpPage = get_json(path, f"/api/v1/sctp?after={after}")
        found["exporters"] += page["exporters"]
        found["exports"] += page["exports"]
        after = page["after"]
    found["after"] = after
    return found


def lines(value: SctpPage) -> list[str]:
    """A line for each association."""
    rows: list[list[object]] = []
    for export in value["exports"]:
        for one in export["collectors"]:
            first = one["role"] == "primary"
            dropped = export["dropped_resources"] + export["dropped_failure"] if first else 0
            rows.append(
                [
                    plain(export["receiver"]),
                    export["exporter"],
                    one["place"] if first else f"{one['place']} (backup)",
                    one["state"],
                    one["flows"],
                    one["messages"],
                    dropped,
                    export["fail_overs"] if not first else 0,
                ]
            )
    text = table(HEAD, rows) if rows else ["no association to a collector"]
    rows = [
        [plain(one["listener"]), one["exporter"], one["state"], one["streams"], one["messages"], one["octets"]]
        for one in value["exporters"]
    ]
    if rows:
        text += ["", *table(("listener", "exporter", "status", "streams", "messages", "bytes"), rows)]
    return [*text, *_more(value)]


def verbose_lines(value: SctpPage) -> list[str]:
    """All there is to say of each."""
    text = [line for export in value["exports"] for line in _export(export)]
    for one in value["exporters"]:
        text += [
            f"listener {plain(one['listener'])}, exporter {one['exporter']}",
            f"  status: {one['state']}",
            f"  {one['messages']} sctp messages received on {one['streams']} streams, {one['octets']} bytes",
        ]
    return [*(text or ["no association"]), *_more(value)]


def _export(export: SctpExport) -> Iterator[str]:
    primary, *backup = export["collectors"]
    how = export["reliability"]
    if how in ("full", "partial"):
        how += f", buffer-limit: {export['buffer_limit']}"
    name = f"receiver {plain(export['receiver'])}, exporter {export['exporter']}"
    yield f"{name}: exporting to {primary['place']}{f', {how}' if how else ''}"
    yield from (f"  {line}" for line in _status(primary))
    if backup:
        yield f"  backup mode: {export['mode']}"
    yield from (f"  {line}" for line in _sent(primary))
    yield f"  {export['waiting']} flows waiting"
    yield f"  {export['dropped_resources']} packets dropped due to lack of SCTP resources"
    if not backup:
        yield f"  {export['dropped_failure']} packets dropped due to primary & backup failure"
        return
    yield f"  fail-over time: {export['fail_over_ms']} milli-seconds"
    yield f"  restore time: {export['restore_s']} seconds"
    yield f"  backup: {backup[0]['place']}"
    yield from (f"    {line}" for line in _status(backup[0]))
    yield f"    fail-overs: {export['fail_overs']}"
    yield from (f"    {line}" for line in _sent(backup[0]))
    yield f"    {export['dropped_failure']} packets dropped due to primary & backup failure"


def _status(one: SctpCollector) -> Iterator[str]:
    yield f"status: {one['state']}"
    if one["why"] and one["state"] not in ("connected", "fail-over"):
        yield f"last error: {plain(one['why'])}"


def _sent(one: SctpCollector) -> Iterator[str]:
    yield f"{one['flows']} flows exported in {one['messages']} sctp messages"
    if one["given_up"]:
        yield f"{one['given_up']} of these flows given up"


def _more(value: SctpPage) -> list[str]:
    return [] if value["after"] is None else [f"only the first {MOST} associations are shown"]
