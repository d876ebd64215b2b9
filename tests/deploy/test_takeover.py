"""A process takes over from another one while exporters send: nothing is lost, repeated or out of order, the counters
go on, the templates are kept. `make verify-deploy` does it twenty times in a row at 20,000 datagrams per second.
"""

from __future__ import annotations

import sys

import pytest
from support.lab import Lab, Relay
from support.offload import give_way, skip_without
from support.takeover import Chain, Flows, Scraper, configuration, load, more
from support.telemetry import ROWS

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def templates(relay: Relay) -> set[tuple[str, str]]:
    """Who has sent which."""
    rows = relay.api("templates")["domains"]
    return {(row["exporter"], str([(each["id"], each["fields"]) for each in row["templates"]])) for row in rows}


def chain(lab: Lab, receive: str, times: int, rate: int, replicate: str = "off") -> None:
    """The proof. What it saw goes to standard error, for people."""
    text = configuration(lab, receive=receive, replicate=replicate)
    relays = Chain(lab, text)
    if receive == "ring":
        assert relays.relay.api("listeners")[0]["receive"] == "ring"
    flows = Flows(lab)
    sink, loader = load(lab, rate)
    flows.start()
    more(relays.relay, rate // 2)
    known = templates(relays.relay)
    scraper = Scraper(lambda: relays.relay.get("/metrics"))
    try:
        for _ in range(times):
            relays.over(text)
            more(relays.relay, rate // 4)
    finally:
        scraper.end()
        loader.kill()
        flows.stop()
    got = lab.tally(sink)
    metrics = relays.relay.check_laws()
    whole, sampled, unique = flows.judge()
    pauses = sorted(relays.pauses)
    sys.stderr.write(
        f"\n{times} take-overs ({receive}): {got['received']} datagrams, lost {got['lost']}, repeated "
        f"{got['repeated']}, reordered {got['reordered']}; nobody read for {pauses[0]:.0f}..{pauses[-1]:.0f} ms, "
        f"median {pauses[len(pauses) // 2]:.0f}; {scraper.answers} scrapes, the longest {scraper.longest * 1e3:.0f} "
        f"ms; at most {max(relays.queues)} KiB waited in a socket\n"
    )
    assert got["received"] > rate // 4 * times
    assert (got["lost"], got["repeated"], got["reordered"], got["corrupt"]) == (0, 0, 0, 0)
    assert metrics.value("receive_datagrams_total", listener="in") == got["received"] + flows.sent
    assert metrics.value("receive_kernel_drops_total", listener="in") == 0
    assert (metrics.value("receive_offloaded_datagrams_total", listener="in") > 0) == (replicate in ("tcx", "xdp"))
    assert scraper.failures == []
    assert relays.relay.api("listeners")[0]["receive"] == receive
    assert templates(relays.relay) == known
    assert len(known) == len(flows.exporters)
    assert metrics.total("flow_sequence_lost_datagrams_total") == 0
    assert metrics.total("flow_sequence_lost_records_total") == 0
    assert metrics.total("flow_sequence_resets_total") == 0
    records = (flows.sent - len(flows.exporters)) * ROWS
    assert (whole.sequence_errors, whole.unknown_sets, whole.records) == (0, 0, records)
    assert (unique.sequence_errors, unique.unknown_sets, unique.records) == (0, 0, records)
    assert len({domain for _, _, domain in unique.expected}) == len(flows.exporters), "the same domains as before"
    for relay in lab.relays:
        said = relay.stderr()
        assert "will not survive" not in said, said
        assert "Traceback" not in said, said
    assert (sampled.sequence_errors, sampled.unknown_sets) == (0, 0)
    assert abs(sampled.records - records / 3) <= 2 * ROWS * len(flows.exporters)


@pytest.mark.parametrize("receive", ["recvmmsg", pytest.param("ring", marks=pytest.mark.deploy_heavy)])
def test_three_times_in_a_row(lab: Lab, receive: str) -> None:
    chain(lab, receive, 3, 3000)


@pytest.mark.parametrize("replicate", ["tcx", "xdp"])
def test_three_times_in_a_row_while_the_kernel_copies(lab: Lab, replicate: str) -> None:
    """The numbered datagrams, whose receiver takes them as they are."""
    skip_without(lab, express=replicate == "xdp")
    if replicate == "xdp":
        give_way(lab)
    chain(lab, "recvmmsg", 3, 3000, replicate)


@pytest.mark.deploy_heavy
@pytest.mark.alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize("receive", ["recvmmsg", "ring"])
def test_twenty_times_in_a_row(lab: Lab, receive: str) -> None:
    chain(lab, receive, 20, 20_000)
