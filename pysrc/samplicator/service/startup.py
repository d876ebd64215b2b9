"""Startup: the paragraph that the start logs: what runs, and what was configured but not granted. `samplicator explain`
shows which engine sends the copies, and why.

Pure text from a plan and readings. Called by service; the same text is in the status page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samplicator.config.address import endpoint_text, size_text
from samplicator.plan.spec import PlanSpec
from samplicator.readings import Readings

SOURCES = {"spoof": "spoofed", "own": "from this host's address", "beside": "each with its exporter's address"}
"""Of copies, by ReceiverReading.source."""
DEGRADED = "degraded: "
"""Prefix of lines that need an action of the operator; they are logged as warnings."""
SHOWN = 12
"""Receivers and listeners named one by one; more are counted."""


def paragraph(
    version: str,
    spec: PlanSpec,
    readings: Readings,
    grants: Mapping[str, tuple[int, int]],
    degraded: Sequence[str],
    served: Sequence[str] = (),
) -> str:
    """The whole paragraph, one fact per line. served: addresses of the HTTP interface, as text."""
    lines = [f"samplicator {version}: generation {readings.generation}"]
    lines += _listeners(spec, readings, grants)
    lines.append(", ".join(_worker(worker.index, worker.cpu) for worker in readings.workers))
    lines += _receivers(readings)
    lines += [f"metrics, status: {', '.join(served)}"] if served else []
    lines += [f"{DEGRADED}{why}" for why in [*short_buffers(grants), *degraded]]
    return "\n".join(lines)


def short_buffers(grants: Mapping[str, tuple[int, int]]) -> list[str]:
    """One line per listener that got less receive buffer than it asked for."""
    return [
        f"listener {name!r}: the kernel grants {size_text(got)} of {size_text(asked)} of receive buffer per socket; "
        f"raise the limit with: sysctl -w net.core.rmem_max={asked} (or grant CAP_NET_ADMIN)"
        for name, (asked, got) in grants.items()
        if got < asked
    ]


def _listeners(spec: PlanSpec, readings: Readings, grants: Mapping[str, tuple[int, int]]) -> list[str]:
    lines = []
    how = {reading.name: reading for reading in readings.listeners}
    for listener in spec.listeners[:SHOWN]:
        places = [*(endpoint_text(s.address, s.port) for s in listener.sockets), *listener.unresolved]
        places += [text for door in listener.doors for text in door.texts()]
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        asked, got = grants.get(listener.name, (0, 0))
        buffer = f"; receive buffer {size_text(got)} of {size_text(asked)}" if listener.sockets else ""
        now = how.get(listener.name)
        received = f"; {now.receive} ({now.receive_why})" if now is not None and now.receive_why else ""
        if now is not None and now.state_why:
            received += f"; {now.state.upper()} now ({now.state_why}), samplicator keeps trying"
        lines.append(f"listener {listener.name}: {', '.join(places[:4])}{more}{buffer}{received}")
    if len(spec.listeners) > SHOWN:
        lines.append(f"and {len(spec.listeners) - SHOWN} more listeners")
    return lines


def _receivers(readings: Readings) -> list[str]:
    lines = []
    for receiver in readings.receivers[:SHOWN]:
        place = receiver.place
        down = "" if receiver.up else f"; {receiver.state.upper()} now ({receiver.state_why}), samplicator keeps trying"
        down += f"; standby for {receiver.standby_for}" if receiver.standby_for else ""
        source = SOURCES[receiver.source]
        lines.append(f"receiver {receiver.name}: {place}, {source}{down}")
    if len(readings.receivers) > SHOWN:
        lines.append(f"and {len(readings.receivers) - SHOWN} more receivers")
    for pool in readings.pools[:SHOWN]:
        lines.append(f"pool {pool.name}: one of {', '.join(m.receiver for m in pool.members)}, by {pool.balance}")
    return lines


def _worker(index: int, cpu: int | None) -> str:
    return f"worker {index} on {'any CPU' if cpu is None else f'CPU {cpu}'}"
