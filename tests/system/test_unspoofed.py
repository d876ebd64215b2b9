"""Copies that are not spoofed, to collectors that tell exporters by port (source_port = "per-session") or by nothing
but the domain (domain = "unique"): twenty exporters of one domain and one template number, each with other templates.
Every flow has to come out right, and no sequence error may be counted.
"""

from __future__ import annotations

from typing import Any

import pytest
from apart import Exporter, Judge, Nfacctd, Nfcapd, expected, flock, rounds
from flow_model import IPFIX, V9
from lab import Lab
from process import wait_for
from relay import Relay

KINDS = pytest.mark.parametrize("kind", [V9, IPFIX], ids=["netflow9", "ipfix"])
MANY = 20


def configuration(lab: Lab, more: str, *, workers: int = 2, freq: int = 1, second: bool = True) -> str:
    to = [("one", f"{lab.peer4(1)}:9995"), ("two", f"{lab.peer4(2)}:9996")][: 2 if second else 1]
    receivers = "".join(f'[[receiver]]\nname = "{name}"\nto = "{where}"\nfreq = {freq}\n{more}\n' for name, where in to)
    names = ", ".join(f'"{name}"' for name, _ in to)
    listener = f'[datapath]\nworkers = {workers}\n[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
    return f"{listener}{receivers}[[rule]]\nto = [{names}]\n"


def come(relay: Relay, exporters: list[Exporter], before: int = 0) -> None:
    count = sum(exporter.datagrams for exporter in exporters) - before
    wait_for(lambda: relay.metrics().total("receive_datagrams_total") >= count, f"{count} datagrams to come", 20)
    relay.at_rest()


def domains(relay: Relay) -> list[dict[str, Any]]:
    rows, after = [], "0.0"
    while after:
        page = relay.api(f"domains?after={after}&limit=7")
        rows += page["domains"]
        after = page["after"]
    return rows


def by_exporter(relay: Relay) -> dict[tuple[str, str, int], int]:
    return {(row["exporter"], row["protocol"], row["domain"]): row["unique"] for row in domains(relay)}


@KINDS
def test_unique_domains(lab: Lab, kind: int) -> None:
    """To nfcapd and nfacctd, which know exporters by address and domain: with a reload and a restart of the relay."""
    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    text = configuration(lab, 'domain = "unique"')
    relay = lab.samplicator(text)
    exporters = flock(lab, MANY, kind)
    rounds(exporters, 15)
    come(relay, exporters)
    numbers = by_exporter(relay)
    assert len(set(numbers.values())) == len(numbers) == MANY
    assert 0 not in numbers.values()
    relay.hangup(text.replace("workers = 2", "workers = 1"))
    rounds(exporters, 15)
    come(relay, exporters)
    assert by_exporter(relay) == numbers
    before = sum(exporter.datagrams for exporter in exporters)
    relay.check_laws()
    relay.end()
    relay = lab.samplicator(text)
    rounds(exporters, 15)
    come(relay, exporters, before)
    assert by_exporter(relay) == numbers
    for flows, errors in (nfcapd.end(), nfacctd.end()):
        assert flows == expected(exporters)
        assert errors == 0


@KINDS
def test_a_port_for_each_session(lab: Lab, kind: int) -> None:
    tap, _collector = lab.tap(1, lambda seen: seen.port == 9995), lab.collector_socket(1, 9995)
    text = configuration(lab, 'source_port = "per-session"', second=False)
    relay = lab.samplicator(text)
    exporters = flock(lab, MANY, kind)
    judge = Judge()
    rounds(exporters, 13)
    come(relay, exporters)
    relay.hangup(text.replace("workers = 2", "workers = 2\nbatch = 512\nmax_delay = 0"))
    rounds(exporters, 13)
    come(relay, exporters)
    for seen in tap.collect(26 * MANY):
        assert seen.checksum == "good"
        judge.take(seen.exporter, seen.payload)
    assert judge.flows == expected(exporters)
    assert (judge.sequence_errors, judge.unknown) == (0, 0)
    assert judge.domains == {0}
    assert len(judge.sources) == MANY
    assert relay.api("receivers")[0]["counters"]["shared_port"] == 0
