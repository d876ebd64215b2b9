"""What needs attention in the answers of a daemon, in sentences: the lines above every table of `top`.

Called by watch. Pure. The sentences are those of `samplicator status`, and some about gateways.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from samplicator.cli.drawing import duration, unmatched_lines


def notes(
    status: Mapping[str, Any],
    listeners: Sequence[Mapping[str, Any]],
    receivers: Sequence[Mapping[str, Any]],
    gateways: Sequence[Mapping[str, Any]],
) -> list[str]:
    """The most urgent first. Empty = all is well."""
    found = []
    if not status["healthy"]:
        found.append(f"NOT HEALTHY: {status['healthy_why']}")
    if not status["ready"]:
        found.append(f"NOT READY: {status['ready_why']}")
    if not status["config"]["last_reload_successful"]:
        found.append("the last reload FAILED; the previous configuration keeps running")
    found += [f"{row['name']} is {row['state']}: {row['state_why']}" for row in listeners if not row["up"]]
    for row in receivers:
        if not row["up"]:
            since = duration(max(0.0, time.time() - row["state_since_unix"]))
            found.append(f"{row['name']} is {row['state']} for {since}: {row['state_why']}")
    found += _of_gateways(gateways, {row["name"] for row in receivers if row["up"]})
    found += unmatched_lines(status["unmatched"])[:1]
    if status["state_file"]["why"]:
        found.append(f"state file {status['state_file']['path']} CANNOT BE WRITTEN: {status['state_file']['why']}")
    return [str(line) for line in found]


def _of_gateways(gateways: Sequence[Mapping[str, Any]], up: set[str]) -> Iterator[str]:
    """Backups in use; and receivers that have no collector and are still up, because nothing has failed yet."""
    for row in gateways:
        sessions: Mapping[str, int] = row["sessions"]
        number = sum(sessions.values())
        if row["backups_in_use"]:
            yield f"{row['name']} uses its backup for {row['backups_in_use']} of {number} sessions"
        elif row["side"] == "out" and row["name"] in up and number and not sessions.get("connected"):
            states = ", ".join(f"{count} {state}" for state, count in sorted(sessions.items()))
            yield f"{row['name']} has no collector connected; sessions: {states}"
