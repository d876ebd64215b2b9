"""The ledger: one balance from the exporters to the receivers. Where was a datagram lost?

`LedgerSum` takes observation domains one by one, so that the memory it needs does not grow with their number. Pure:
readings in, plain values out. Called by http; the command line draws the same shapes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Annotated, Final, TypedDict

from samplicator.readings import Domain, Readings, Unmatched
from samplicator.views import flow
from samplicator.views.exporters import agent
from samplicator.views.receivers import failed_by_reason

MOST: Final = 1000
"""Exporters with losses that an answer has at most; all are counted."""


class Loser(TypedDict):
    """An observation domain with losses or restarts."""

    exporter: str
    port: int
    protocol: str
    domain: Annotated[int, "Domain in the header; for sFlow the number of the sub-agent."]
    agent: Annotated[str | None, "sFlow: the agent's address in the header."]
    unit: Annotated[str, "Unit of `units` and `lost`."]
    units: int
    lost: int
    restarts: int


class Here(TypedDict):
    """A listener, in datagrams: datagrams = truncated + denied + unmatched + matched."""

    listener: str
    kernel_drops: Annotated[int, "Datagrams that the kernel dropped; `datagrams` does not include them."]
    datagrams: int
    truncated: int
    unmatched: int
    denied: int
    matched: int
    offloaded: Annotated[int, "Of the matched: copied by the kernel where they came in."]
    unseen: Annotated[int, "Of the offloaded: not seen by samplicator, so what their exporters lost is not known."]


class After(TypedDict):
    """A receiver, in copies: offered = skipped + sent + all of failed."""

    receiver: str
    up: bool
    offered: int
    skipped: int
    sent: int
    failed: Annotated[dict[str, int], "Copies that failed, by reason."]


class Ledger(TypedDict):
    """One balance from the exporters to the receivers."""

    before: Annotated[
        dict[str, flow.Protocol], "Lost before samplicator, by protocol, including domains that are forgotten."
    ]
    unmatched: flow.WithoutRule
    exporters: Annotated[list[Loser], "Domains with losses or restarts, the most lost first."]
    exporter_count: Annotated[int, "Domains with losses or restarts; `exporters` may have fewer."]
    here: list[Here]
    after: list[After]
    templates_made_here: Annotated[int, "Offered copies that are datagrams with replayed templates."]


class LedgerSum:
    """Adds up observation domains; then `result` once. limit: rows of `exporters` at most."""

    def __init__(self, limit: int = MOST) -> None:
        self._limit = limit
        self._ending: dict[str, int] = {}  # protocol -> units missing before the last datagrams of silent domains
        self._worst: list[tuple[int, int, Loser]] = []  # a heap: the least lost first, of equals the last that came
        self._count = 0

    def add(self, session: Domain) -> None:
        """One domain. Its losses that have settled are in the totals of its protocol already."""
        settled = session.counters["lost"]
        self._ending[session.protocol] = self._ending.get(session.protocol, 0) + session.lost - settled
        if not session.lost and not session.counters["restarts"]:
            return
        self._count += 1
        if len(self._worst) < self._limit or session.lost > self._worst[0][0]:
            entry = (session.lost, -self._count, _loser(session))
            if len(self._worst) < self._limit:
                heapq.heappush(self._worst, entry)
            else:
                heapq.heapreplace(self._worst, entry)

    def result(self, readings: Readings, strangers: Sequence[Unmatched]) -> Ledger:
        """strangers: exporters that no rule matches."""
        return {
            "before": {
                name: {**row, "lost": row["lost"] + self._ending.get(name, 0)}
                for name, row in flow.protocols(readings.flow).items()
                if row["datagrams"]
            },
            "unmatched": flow.without_rule(strangers),
            "exporters": [loser for _, _, loser in sorted(self._worst, key=lambda entry: entry[:2], reverse=True)],
            "exporter_count": self._count,
            "here": [
                {
                    "listener": item.name,
                    "kernel_drops": item.kernel_drops,
                    "datagrams": item.counters["datagrams"],
                    "truncated": item.counters["truncated"],
                    "unmatched": item.counters["unmatched"],
                    "denied": item.counters["denied"],
                    "matched": item.counters["matched"],
                    "offloaded": item.counters["offloaded"],
                    "unseen": item.counters["unseen"],
                }
                for item in readings.listeners
            ],
            "after": [
                {
                    "receiver": item.name,
                    "up": item.up,
                    "offered": item.counters["offered"],
                    "skipped": item.counters["skipped"],
                    "sent": item.counters["sent"],
                    "failed": failed_by_reason(item.counters),
                }
                for item in readings.receivers
            ],
            "templates_made_here": readings.flow.counters.get("replayed_datagrams", 0),
        }


def _loser(session: Domain) -> Loser:
    about = {"domain": session.domain, **agent(session)}
    return {
        "exporter": session.address,
        "port": session.port,
        "protocol": session.protocol,
        "domain": about["domain"],
        "agent": about["agent"],
        "unit": flow.unit(session),
        "units": session.counters["units"],
        "lost": session.lost,
        "restarts": session.counters["restarts"],
    }
