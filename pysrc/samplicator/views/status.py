"""The state of the service in one answer: what runs, what was counted, the configuration, the outcome of a reload.

Reads ServiceState and readings, changes nothing. Called by http; the command line draws the same shapes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from samplicator.views import flow
from samplicator.views.latency import Latency, latency
from samplicator.views.receivers import failed

if TYPE_CHECKING:
    from samplicator.readings import Readings, Unmatched
    from samplicator.supervisor.reload import ReloadResult
    from samplicator.views.service import ServiceState


class Running(TypedDict):
    """Which configuration runs, and the results of reloads."""

    origin: str
    files: list[str]
    sha256: Annotated[str, "SHA-256 of the text of the configuration."]
    generation: int
    reloads: int
    reload_failures: int
    last_reload_successful: bool
    last_reload_success_unix: float
    warnings: list[str]


class Received(TypedDict):
    """Sums over all listeners, in datagrams: datagrams = matched + truncated + denied + unmatched."""

    datagrams: int
    bytes: int
    matched: int
    truncated: int
    denied: int
    unmatched: int
    kernel_drops: Annotated[int, "Datagrams that the kernel dropped; no other sum includes them."]


class Sent(TypedDict):
    """Sums over all receivers, in copies: offered = sent + skipped + errors."""

    offered: int
    sent: int
    bytes: int
    skipped: int
    failed: int


class Worker(TypedDict):
    """A forwarding thread."""

    index: int
    cpu: Annotated[int | None, "CPU that the worker runs on; null = any CPU."]
    counters: Mapping[str, int]
    generation: Annotated[int, "Generation of the plan that the worker runs."]


class StateFile(TypedDict):
    """The file that keeps what was learnt over a restart."""

    path: Annotated[str, 'Path; "" = there is none.']
    ok: Annotated[bool, "false when it could not be written last time."]
    why: Annotated[str, "Why it could not be written."]
    saved_unix: Annotated[float, "When it was written last; 0 = not since the start."]
    domains: Annotated[int, "Observation domains in it."]
    left_out: Annotated[int, "Observation domains that it has no room for."]


class Status(TypedDict):
    """What the daemon does. Counts are totals since the start of what is configured now."""

    version: str
    pid: int
    started_unix: float
    uptime_seconds: float
    ready: bool
    ready_why: str
    healthy: bool
    healthy_why: str
    startup: Annotated[str, "Text that the start logged: what runs, and what is degraded."]
    config: Running
    received: Received
    unmatched: flow.WithoutRule
    sent: Sent
    latency: Latency
    listeners: Annotated[int, "Number of listeners."]
    receivers: Annotated[int, "Number of receivers."]
    pools: Annotated[int, "Number of pools."]
    workers: list[Worker]
    state_file: StateFile


class Configuration(TypedDict):
    """The configuration that runs, with all defaults filled in."""

    origin: str
    files: list[str]
    sha256: str
    warnings: list[str]
    config: Annotated[
        dict[str, Any], "The configuration, in the format of the JSON Schema that `samplicator schema` prints."
    ]


class Reloaded(TypedDict):
    """The result of a reload."""

    ok: bool
    generation: Annotated[int, "Generation of the plan that runs now."]
    diff: Annotated[str, "Changes, in one line."]
    problems: Annotated[list[str], "All errors, with file and line if known."]
    seconds: float
    warnings: Annotated[list[str], "What this host lacks for the new plan, and other warnings."]
    published: Annotated[bool, "true when the reload failed but its plan already runs and cannot be taken back."]


def status(state: ServiceState, readings: Readings, without_rule: Sequence[Unmatched] = ()) -> Status:
    """without_rule: exporters that no rule matches."""
    ready, ready_why = state.ready()
    healthy, healthy_why = state.healthy()
    return {
        "version": state.version,
        "pid": os.getpid(),
        "started_unix": state.started_unix,
        "uptime_seconds": time.monotonic() - state.started,
        "ready": ready,
        "ready_why": ready_why,
        "healthy": healthy,
        "healthy_why": healthy_why,
        "startup": state.startup,
        "config": _running(state, readings.generation),
        "received": _received(readings),
        "unmatched": flow.without_rule(without_rule),
        "sent": _sent(readings),
        "latency": latency(readings),
        "listeners": len(readings.listeners),
        "receivers": len(readings.receivers),
        "pools": len(readings.pools),
        "workers": [
            {"index": each.index, "cpu": each.cpu, "counters": each.counters, "generation": each.generation}
            for each in readings.workers
        ],
        "state_file": {
            "path": state.state_file.path,
            "ok": not state.state_file.why,
            "why": state.state_file.why,
            "saved_unix": state.state_file.saved_unix,
            "domains": state.state_file.domains,
            "left_out": state.state_file.left_out,
        },
    }


def configuration(state: ServiceState) -> Configuration:
    """The running one."""
    loaded = state.loaded
    return {
        "origin": loaded.origin,
        "files": list(loaded.files),
        "sha256": loaded.text_hash,
        "warnings": [str(warning) for warning in loaded.warnings],
        "config": loaded.config.model_dump(mode="json", by_alias=True),
    }


def reloaded(result: ReloadResult) -> Reloaded:
    """The outcome of a reload."""
    return {
        "ok": result.ok,
        "generation": result.generation,
        "diff": result.diff,
        "problems": list(result.problems),
        "seconds": result.seconds,
        "warnings": list(result.warnings),
        "published": result.published,
    }


def _running(state: ServiceState, generation: int) -> Running:
    reloader = state.reloader
    return {
        "origin": state.loaded.origin,
        "files": list(state.loaded.files),
        "sha256": state.loaded.text_hash,
        "generation": generation,
        "reloads": reloader.reloads_total,
        "reload_failures": reloader.failures_total,
        "last_reload_successful": bool(reloader.last_successful),
        "last_reload_success_unix": reloader.last_success_timestamp,
        "warnings": [str(warning) for warning in state.loaded.warnings],
    }


def _received(readings: Readings) -> Received:
    counters = [item.counters for item in readings.listeners]
    return {
        "datagrams": sum(c["datagrams"] for c in counters),
        "bytes": sum(c["bytes"] for c in counters),
        "matched": sum(c["matched"] for c in counters),
        "truncated": sum(c["truncated"] for c in counters),
        "denied": sum(c["denied"] for c in counters),
        "unmatched": sum(c["unmatched"] for c in counters),
        "kernel_drops": sum(item.kernel_drops for item in readings.listeners),
    }


def _sent(readings: Readings) -> Sent:
    counters = [item.counters for item in readings.receivers]
    return {
        "offered": sum(c["offered"] for c in counters),
        "sent": sum(c["sent"] for c in counters),
        "bytes": sum(c["sent_bytes"] for c in counters),
        "skipped": sum(c["skipped"] for c in counters),
        "failed": sum(failed(c) for c in counters),
    }
