"""replicate = "tcx" and "xdp" in a storm: many sessions, and far more forged ones that come once each. What is on stays
on, who comes later gets a place, nothing is lost, and neither the kernel's maps nor the process grow.

Forged datagrams have an address and port of their own each, so none of them is offloaded: what the listener `in` counts
as offloaded is of the exporter under test alone. A receiver that only it has counts how many of it came.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from samplicator.host import offload
from support.lab import Lab, Relay
from support.offload import give_way, skip_without
from support.pace import Pace
from support.process import Process, wait_for
from support.runs import acquaint, in_order, payloads, wait_link

BPF_MAP_TYPE_RINGBUF = 27
STEADY, STEADY_RATE = "198.18.64.1", 200
NEWCOMERS, STEPS = 32, 40
BATCH = 32
"""Of one that is larger than 63, few sessions are considered (fastpath/rx/socket.pxd): forged ones take more places so.
"""
MANY, FORGED, ADDRESSES = "198.18.66.0", "198.18.66.0", 100_000
"""Sessions and forged ones have other ports."""
FLOW_BYTES = 16 << 20
BOUND = FLOW_BYTES + (8 << 20)
"""Of what the process may grow by, with that of each worker: flow_memory, and what the control plane keeps."""
WORKER_BOUND = 131_072 * 32 + offload.SESSIONS * (80 + 16)
"""The cache of sessions (fastpath/route/session.pxd), and the places of ingress offload with their words, mapped
(fastpath/worker/offload.pxi, fastpath/bpf/offload.h).
"""


@pytest.fixture(params=["tcx", "xdp"])
def mode(request: pytest.FixtureRequest, lab: Lab) -> str:
    skip_without(lab, express=request.param == "xdp")
    if request.param == "xdp":
        give_way(lab)
    return str(request.param)


def begin(lab: Lab, mode: str, workers: int, own: str) -> tuple[Relay, list[Process]]:
    """A relay and its collectors: `one` and `two` get all that comes, `own` what comes from these addresses, too."""
    text = f'[datapath]\nreplicate = "{mode}"\nworkers = {workers}\nbatch = {BATCH}\nflow_memory = {FLOW_BYTES}\n'
    for name, port in (("in", 2055), ("many", 2056)):
        text += f'[[listener]]\nname = "{name}"\nlisten = ["0.0.0.0:{port}"]\n'
    for name, host, port in (("one", 1, 9001), ("two", 2, 9002), ("own", 1, 9003)):
        text += f'[[receiver]]\nname = "{name}"\nto = "{lab.peer4(host)}:{port}"\nspoof = true\nprobe = "off"\n'
    text += f'[[rule]]\nto = ["one", "two"]\n[[rule]]\nfrom = ["{own}"]\nlistener = ["in"]\nto = ["own"]\n'
    sinks = [lab.sink(n, f"{lab.peer4(n)}:{9000 + n}") for n in (1, 2)]
    sinks.append(lab.sink(1, f"{lab.peer4(1)}:9003", label="sink-own"))
    relay = lab.samplicator(text)
    acquaint(lab, lab.relay4())
    for name in ("one", "two", "own"):
        wait_link(relay, "^r[12], ", name)
    return relay, sinks


def load(lab: Lab, port: int, *words: object) -> Process:
    return lab.load("--to", f"{lab.relay4()}:{port}", "--size", "64-400", "--catch-up-ms", 50, *words)


def forge(lab: Lab, followers: Sequence[Process], count: int, rate: int, look: Callable[[], object]) -> int:
    """Sends from so many addresses and ports, once each, and looks again and again meanwhile; returns how many."""
    sent, addresses = 0, min(count, ADDRESSES)
    for port in range(20_000, 20_000 + count // addresses):
        flood = load(
            lab, 2055, "--source-base", FORGED, "--exporters", addresses, "--source-port", port,
            "--count", addresses, "--rate", rate,
        )  # fmt: skip
        pace = Pace(flood, followers)
        end = time.monotonic() + 250
        while flood.alive and time.monotonic() < end:
            look()
        pace.end()
        sent += flood.result(20)["sent"]
    return sent


def figures(relay: Relay) -> tuple[int, int]:
    """Datagrams of the exporter under test that have come, and those of them that were copied where they came in."""
    metrics = relay.metrics()
    return (
        metrics.value("send_datagrams_total", receiver="own"),
        metrics.value("receive_offloaded_datagrams_total", listener="in"),
    )


def arrived(relay: Relay, count: int) -> bool:
    return figures(relay)[0] == count


class Watch:
    """longest: seconds for which datagrams of the exporter under test came to the sockets, and none was offloaded."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.longest = 0.0
        self.came, self.offloaded = self.first = figures(relay)
        self.since = time.monotonic()

    def look(self) -> float:
        came, offloaded = figures(self.relay)
        now = time.monotonic()
        if came > self.came and offloaded == self.offloaded:
            self.longest = max(self.longest, now - self.since)
        else:
            self.since = now
        self.came, self.offloaded = came, offloaded
        return self.longest

    def passed(self) -> int:
        """Datagrams that came to the sockets, since the beginning."""
        return (self.came - self.first[0]) - (self.offloaded - self.first[1])


class Share:
    """Of the sessions' datagrams, those that were offloaded."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.first = self.figures()

    def figures(self) -> tuple[int, int]:
        metrics = self.relay.metrics()
        names = ("receive_datagrams_total", "receive_offloaded_datagrams_total")
        return metrics.value(names[0], listener="many"), metrics.value(names[1], listener="many")

    def of(self, least: int) -> float:
        """0 as long as less than that has come."""
        came, offloaded = (now - then for now, then in zip(self.figures(), self.first, strict=True))
        return offloaded / came if came >= least else 0.0


def share_of_a_round(relay: Relay, sessions: int) -> float:
    """What is offloaded of as many datagrams as there are sessions: one of each."""
    share = Share(relay)
    wait_for(lambda: share.figures()[0] >= share.first[0] + sessions, "a datagram of each session", 60)
    return share.of(sessions)


def kernel_maps(relay: Relay) -> list[tuple[str, str]]:
    """Entries and bytes of all BPF maps that the relay has, but for ring buffers (proc(5): /proc/PID/fdinfo)."""
    found = []
    for path in Path(f"/proc/{relay.pid}/fdinfo").iterdir():
        try:
            words = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        except OSError:  # closed meanwhile
            continue
        if "map_type" in words and int(words["map_type"]) != BPF_MAP_TYPE_RINGBUF:
            found.append((words["max_entries"].strip(), words["memlock"].strip()))
    return sorted(found)


def delivered(lab: Lab, sinks: Sequence[Process], counts: Sequence[int]) -> None:
    """All of it, once, and in the order of each session."""
    for sink, count in zip(sinks, counts, strict=True):
        got = lab.tally(sink)
        wrong = {name: got[name] for name in ("lost", "repeated", "reordered", "corrupt", "sink_drops")}
        assert wrong == dict.fromkeys(wrong, 0)
        assert got["received"] == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sessions", "forged", "workers"),
    [
        (2_000, 60_000, 1),
        pytest.param(2_000, 1_000_000, 1, marks=pytest.mark.deploy_heavy),
        pytest.param(100_000, 1_000_000, 2, marks=pytest.mark.deploy_heavy),
    ],
)
def test_who_is_offloaded_stays_so_in_a_storm_of_forged_ones(
    lab: Lab, mode: str, sessions: int, forged: int, workers: int
) -> None:
    relay, sinks = begin(lab, mode, workers, STEADY)
    rate = max(2_000, sessions // 4)  # a session has its place while it is not silent for 10 s
    loads = [
        load(lab, 2055, "--source-base", STEADY, "--source-port", 4000, "--rate", STEADY_RATE, "--seconds", 280),
        load(
            lab, 2056, "--source-base", MANY, "--exporters", sessions, "--source-port", 4001,
            "--rate", rate, "--seconds", 280,
        ),
    ]  # fmt: skip
    paces = [Pace(one, [relay, *sinks]) for one in loads[1:]]
    wait_for(lambda: figures(relay)[1], "the exporter to be offloaded")
    wait_for(lambda: share_of_a_round(relay, sessions) > 0.8, "the sessions to be offloaded", 120)
    before, resident, maps = share_of_a_round(relay, sessions), relay.rss(), kernel_maps(relay)
    watch, share = Watch(relay), Share(relay)
    sent = forge(lab, [relay, *sinks], forged, 10_000 if forged < ADDRESSES else 20_000, watch.look)
    meanwhile, after = share.of(1), share_of_a_round(relay, sessions)
    watch.look()
    for pace in paces:
        pace.end()
    for one in loads:
        one.send_signal(2)
    steady, many = (one.result(20)["sent"] for one in loads)
    metrics = relay.check_laws()
    grown = relay.rss() - resident
    print(
        f"forged {sent}, sessions {many} datagrams, offloaded {before:.3f} {meanwhile:.3f} {after:.3f}; "
        f"exporter: {watch.came} came, {watch.passed()} passed, out for {watch.longest:.3f} s at most; "
        f"resident {resident >> 10} KiB, and {grown >> 10} KiB more"
    )
    assert sent == forged
    assert watch.longest < 1
    assert watch.passed() <= STEADY_RATE
    assert min(meanwhile, after) > before - 0.1
    assert kernel_maps(relay) == maps
    assert max(int(entries) for entries, _ in maps) == offload.SESSIONS * workers
    assert grown < BOUND + workers * WORKER_BOUND
    assert metrics.total("receive_kernel_drops_total") == 0
    delivered(lab, sinks, [steady + many + sent, steady + many + sent, steady])


@pytest.mark.slow
def test_who_comes_when_forged_ones_have_all_places_is_offloaded_soon(lab: Lab, mode: str) -> None:
    """They came once, and would hold their places for 10 s. An exporter with a new port is such a newcomer, too."""
    relay, sinks = begin(lab, mode, 1, "198.18.64.0/24")
    tap = lab.tap(1, lambda seen: seen.port == 9003)
    sent = forge(lab, [relay, *sinks], ADDRESSES, 50_000, relay.metrics)
    begun = time.monotonic()
    newcomers = [lab.exporter_socket(f"198.18.64.{n + 1}", 5000 + n) for n in range(NEWCOMERS)]
    for number in range(STEPS):
        for index, newcomer in enumerate(newcomers):
            newcomer.sendto(payloads(index, number, 1)[0], (lab.relay4(), 2055))
        came = (number + 1) * NEWCOMERS
        wait_for(partial(arrived, relay, came), "them")
    offloaded = figures(relay)[1]
    print(f"forged {sent}, newcomers: {offloaded} of {came} offloaded, in {time.monotonic() - begun:.1f} s")
    in_order(tap.collect(came), newcomers, STEPS)
    # by chance: with its fourth datagram on the average it has a place, with its tenth it is on
    assert offloaded > came // 2
    assert relay.check_laws().total("receive_kernel_drops_total") == 0
    assert [lab.tally(sink)["received"] for sink in sinks] == [sent + came, sent + came, came]
