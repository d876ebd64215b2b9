"""Copies change their way under load, again and again: frames or sockets, made by the worker or by the kernel, beside
receivers that come, go and sample. The receivers that stay lose nothing, get nothing twice, and all in order.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable

import pytest
from samplicator.host import copier
from support.lab import Lab
from support.offload import give_way, skip_without
from support.pace import Pace
from support.process import wait_for
from support.relay import Relay
from support.runs import acquaint, wait_link

EXPORTERS = 8
OTHERS = {
    "none": "",
    "plain": 'probe = "off"\nspoof = true',
    "sampled": 'probe = "off"\nspoof = true\nfreq = 3',
    "zero": 'probe = "off"\nspoof = true\nchecksum = false',
    "own": 'probe = "off"',
    "refusing": "spoof = true",
}
"""Nobody is there: the one that is looked after is found to refuse, and gets no more until it is another."""
RULE = (
    "add table ip t; add chain ip t c { type filter hook output priority 0; }; "
    "add rule ip t c udp dport 9001-9003 accept"
)


def config(lab: Lab, replicate: str, other: str) -> str:
    text = f'[datapath]\nworkers = 2\nreceive_buffer = "256MiB"\nreplicate = "{replicate}"\n'
    text += '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
    stays = 'probe = "off"\nspoof = true'
    rows = {"one": (1, 9001, stays), "two": (2, 9002, stays), "other": (3, 9003, OTHERS[other])}
    if other == "none":
        del rows["other"]
    for name, (host, port, extra) in rows.items():
        text += f'[[receiver]]\nname = "{name}"\nto = "{lab.peer4(host)}:{port}"\n{extra}\n'
    return lab.with_service(text + f"[[rule]]\nto = {list(rows)}\n".replace("'", '"'))


class Host:
    """What is changed of the relay's host and configuration, and back."""

    def __init__(self, lab: Lab, relay: Relay, replicate: str) -> None:
        self.lab, self.relay, self.replicate = lab, relay, replicate
        self.others = itertools.cycle([name for name in OTHERS if name != "none"])

    def _reload(self, other: str) -> None:
        before = self.relay.metrics().value("config_generation")
        self.relay.write(config(self.lab, self.replicate, other))
        self.relay.send_signal(signal.SIGHUP)
        wait_for(lambda: self.relay.metrics().value("config_generation") > before, "the new plan")

    def comes(self) -> None:
        self._reload(next(self.others))

    def goes(self) -> None:
        self._reload("none")

    def firewall(self) -> None:
        self.lab.relay.run("nft", RULE)
        wait_link(self.relay, "would bypass", "one", 60)

    def no_firewall(self) -> None:
        self.lab.relay.run("nft", "delete table ip t")
        wait_link(self.relay, "^r1, ", "one", 60)

    def large(self) -> None:
        self.lab.relay.ip("link", "set", "r1", "mtu", "9000")
        wait_link(self.relay, "MTU 9000", "one", 60)

    def small(self) -> None:
        self.lab.relay.ip("link", "set", "r1", "mtu", "1500")
        wait_link(self.relay, "MTU 1500", "one", 60)

    def down(self) -> None:
        self.lab.relay.ip("link", "set", "r3", "down")

    def up(self) -> None:
        self.lab.relay.ip("link", "set", "r3", "up")

    def fixed(self) -> None:
        words = self.lab.relay.ip("neigh", "show", self.lab.peer4(1), "dev", "r1").split()
        address = words[words.index("lladdr") + 1]
        self.lab.relay.ip("neigh", "replace", self.lab.peer4(1), "lladdr", address, "dev", "r1", "nud", "permanent")

    def learnt(self) -> None:
        words = self.lab.relay.ip("neigh", "show", self.lab.peer4(1), "dev", "r1").split()
        address = words[words.index("lladdr") + 1]
        self.lab.relay.ip("neigh", "replace", self.lab.peer4(1), "lladdr", address, "dev", "r1", "nud", "stale")


@pytest.mark.parametrize("replicate", ["off", "copier", "tcx", "xdp"])
@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        pytest.param(36, 20_000, id="36"),
        *(pytest.param(250, 50_000, id=f"250-{n}", marks=pytest.mark.deploy_heavy) for n in range(4)),
    ],
)
def test_nothing_is_lost_or_repeated_while_ways_change(
    make_lab: Callable[..., Lab], changes: int, rate: int, replicate: str
) -> None:
    lab = make_lab(collectors=3)
    if replicate != "off":
        try:
            lab.relay.call(lambda: copier.Copier().close())
        except OSError as error:
            pytest.skip(f"no copier here: {error}")
    if replicate in ("tcx", "xdp"):
        skip_without(lab, express=replicate == "xdp")
    if replicate == "xdp":
        give_way(lab)
    relay = lab.samplicator(config(lab, replicate, "none"))
    acquaint(lab, lab.relay4())
    for name in ("one", "two"):
        wait_link(relay, "^r[12], ", name)
    sinks = [lab.sink(n, f"{lab.peer4(n)}:{9000 + n}") for n in (1, 2)]
    load = lab.load(
        "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.64.0", "--exporters", EXPORTERS,
        "--source-port", 50_000, "--seconds", 270, "--rate", rate, "--size", "64-400", "--run", 1,
        "--catch-up-ms", 50,
    )  # fmt: skip
    pace = Pace(load, [relay, *sinks])
    host = Host(lab, relay, replicate)
    steps: list[Callable[[], None]] = [
        host.firewall, host.comes, host.no_firewall, host.down, host.goes, host.up, host.large, host.comes, host.fixed,
        host.down, host.small, host.up, host.firewall, host.goes, host.no_firewall, host.learnt, host.comes, host.goes,
    ]  # fmt: skip
    for step in itertools.islice(itertools.cycle(steps), changes):
        before = relay.metrics().value("send_datagrams_total", receiver="one")
        step()
        wait_for(
            lambda n=before: relay.metrics().value("send_datagrams_total", receiver="one") > n + 300, "them to flow", 60
        )
    pace.end()
    load.send_signal(signal.SIGINT)
    sent = load.result(20)["sent"]
    for sink in sinks:
        got = lab.tally(sink)
        wrong = {name: got[name] for name in ("lost", "repeated", "reordered", "corrupt", "sink_drops")}
        assert wrong == dict.fromkeys(wrong, 0)
        assert got["received"] == sent
    relay.check_laws()
