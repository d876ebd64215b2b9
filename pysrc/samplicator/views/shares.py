"""Shares: what each exporter's observation domain gave to one receiver, for a witness at the receiver.

A row has what a witness needs to find the same moment in what arrives there: the header of the last datagram that was
looked at. Row by row the values belong to one moment (flow/reading.pxd); rows of a page do not. Pure: readings in,
plain values out. Called by http.
"""

from __future__ import annotations

from typing import Annotated, TypedDict

from samplicator.readings import Domain, Readings, Route
from samplicator.views.exporters import agent
from samplicator.views.flow import unit
from samplicator.views.receivers import failed_by_reason


class Given(TypedDict):
    """A receiver, in copies: offered = skipped + sent + all of failed."""

    receiver: str
    address: Annotated[str, "Address that copies are sent to now."]
    port: int
    source: Annotated[str, "Source address of copies: own or spoof."]
    offered: int
    skipped: int
    sent: int
    failed: Annotated[dict[str, int], "Copies that failed, by reason."]


class Dropped(TypedDict):
    """What the kernel dropped in front of a listener."""

    listener: str
    kernel_drops: int
    queue_bytes: Annotated[int, "Kernel memory used by datagrams that wait to be read."]


class Share(TypedDict):
    """An observation domain whose exporter has the receiver in its rules."""

    place: Annotated[str, "WORKER.NUMBER, the value for `after`."]
    exporter: str
    port: int
    protocol: str
    domain: Annotated[int, "Domain in the header; for sFlow the number of the sub-agent."]
    agent: Annotated[str | None, "sFlow: the agent's address in the header."]
    listener: str
    pool: Annotated[str, "Name of the pool through which the receiver gets copies; empty if a rule names the receiver."]
    unit: Annotated[str, "Unit of `units` and `missing`."]
    numbered: Annotated[bool, "true when the exporter sends sequence numbers."]
    datagrams: int
    bytes: int
    units: int
    missing: Annotated[int, "Units missing before the last datagram; late datagrams can still fill gaps."]
    late: int
    restarts: int
    header: Annotated[str, "Header of the last datagram, in hexadecimal."]


class SharePage(TypedDict):
    """A page of shares. Receiver and listeners are read when the page begins."""

    receiver: Given
    listeners: list[Dropped]
    shares: list[Share]
    after: Annotated[str | None, "Start of the next page; null on the last page."]


def given(readings: Readings, name: str) -> Given | None:
    """The receiver with this name, None = there is none."""
    for item in readings.receivers:
        if item.name == name:
            return {
                "receiver": item.name,
                "address": item.address,
                "port": item.port,
                "source": item.source,
                "offered": item.counters["offered"],
                "skipped": item.counters["skipped"],
                "sent": item.counters["sent"],
                "failed": failed_by_reason(item.counters),
            }
    return None


def dropped(readings: Readings) -> list[Dropped]:
    """All listeners, in the order of the configuration."""
    return [
        {"listener": item.name, "kernel_drops": item.kernel_drops, "queue_bytes": item.queue_bytes}
        for item in readings.listeners
    ]


def pools_of(readings: Readings, receiver: str) -> frozenset[str]:
    """Names of the pools that the receiver is a member of."""
    return frozenset(pool.name for pool in readings.pools if any(m.receiver == receiver for m in pool.members))


def share(session: Domain, listener: str, route: Route, receiver: str, pools: frozenset[str]) -> Share | None:
    """None: the rules do not send this exporter's datagrams to the receiver."""
    pool = "" if receiver in route.receivers else next((name for name in route.pools if name in pools), None)
    if pool is None or route.denied:
        return None
    about = {"domain": session.domain, **agent(session)}
    counters = session.counters
    return {
        "place": f"{session.worker}.{session.number}",
        "exporter": session.address,
        "port": session.port,
        "protocol": session.protocol,
        "domain": about["domain"],
        "agent": about["agent"],
        "listener": listener,
        "pool": pool,
        "unit": unit(session),
        "numbered": session.style != "none",
        "datagrams": counters["datagrams"],
        "bytes": counters["bytes"],
        "units": counters["units"],
        "missing": counters["lost"] + counters["pending"],
        "late": counters["late"],
        "restarts": counters["restarts"],
        "header": session.header.hex(),
    }
