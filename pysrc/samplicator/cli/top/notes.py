"""What needs attention in the answers of a daemon, in sentences: the lines above every table of `top`.

Called by watch. Pure. The sentences are those of `samplicator status`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from samplicator.cli.drawing import duration, gateway_lines, unmatched_lines


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
    found += gateway_lines(gateways, {row["name"] for row in receivers if row["up"]})
    found += unmatched_lines(status["unmatched"])[:1]
    if status["state_file"]["why"]:
        found.append(f"state file {status['state_file']['path']} CANNOT BE WRITTEN: {status['state_file']['why']}")
    return [str(line) for line in found]
