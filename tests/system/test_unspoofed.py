"""Copies that are not spoofed, to collectors that tell exporters by port (source_port = "per-session") or by nothing
but the domain (domain = "unique"): twenty exporters of one domain and one template number, each with other templates.
Every flow has to come out right, and no sequence error may be counted.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.apart import Exporter, Judge, Nfacctd, Nfcapd, expected, exporter, flock, rounds
from support.flows import IPFIX, V9
from support.lab import Lab
from support.process import command, tool, wait_for
from support.relay import Relay

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


@KINDS
def test_a_restart_keeps_the_ports(lab: Lab, kind: int) -> None:
    """Templates are sent once, before the restart; the collector goes on with what it knows."""
    tap, _collector = lab.tap(1, lambda seen: seen.port == 9995), lab.collector_socket(1, 9995)
    text = configuration(lab, 'source_port = "per-session"', second=False)
    relay = lab.samplicator(text)
    exporters = flock(lab, MANY, kind, every=1_000_000)
    rounds(exporters, 10)
    come(relay, exporters)
    before = sum(exporter.datagrams for exporter in exporters)
    relay.check_laws()
    relay.end()
    relay = lab.samplicator(text)
    rounds(exporters, 10)
    come(relay, exporters, before)
    judge = Judge()
    for seen in tap.collect(20 * MANY):
        judge.take(seen.exporter, seen.payload)
    assert judge.flows == expected(exporters)
    assert (judge.sequence_errors, judge.unknown, len(judge.sources)) == (0, 0, MANY)


@KINDS
def test_sampled_and_shared_out(lab: Lab, kind: int) -> None:
    """freq 3, and a pool whose members know exporters by the domain: what is there is right, no number is missed."""
    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    text = configuration(lab, 'domain = "unique"', freq=3)
    text = text.replace('to = ["one", "two"]', 'to = ["both"]') + '[[pool]]\nname = "both"\nmembers = ["one", "two"]\n'
    relay = lab.samplicator(text)
    exporters = flock(lab, MANY, kind, every=4)
    rounds(exporters, 24)
    come(relay, exporters)
    judged = [nfcapd.end(), nfacctd.end()]
    assert [errors for _, errors in judged] == [0, 0]
    flows = judged[0][0] + judged[1][0]
    assert not flows - expected(exporters)
    assert sum(flows.values()) == relay_data(relay)
    assert all(found for found, _ in judged)


def relay_data(relay: Relay) -> int:
    """Flows in the copies that were sent: all but the datagrams with templates, four flows each."""
    metrics = relay.metrics()
    sent = metrics.total("send_datagrams_total")
    templates = 24 // 4 * MANY
    told = metrics.total("flow_replayed_datagrams_total")
    return (sent - templates - told) * 4


def test_sessions_of_one_address(lab: Lab) -> None:
    """Exporters behind one address (NAT) with one domain: a number each, which is theirs after a restart, whoever comes
    first then.
    """
    nfcapd = Nfcapd(lab)
    text = configuration(lab, 'domain = "unique"', second=False)
    relay = lab.samplicator(text)
    exporters = [exporter(lab, "198.18.99.1", 50000 + n, V9, n, every=1_000_000) for n in range(8)]
    rounds(exporters, 10)
    come(relay, exporters)
    numbers = {(row["exporter"], row["port"]): row["unique"] for row in domains(relay)}
    assert len(set(numbers.values())) == 8
    before = sum(each.datagrams for each in exporters)
    relay.check_laws()
    relay.end()
    relay = lab.samplicator(
        text.replace("[datapath]", f'[service]\nhttp = "127.0.0.1:9420"\ncontrol = "{relay.control_path}"\n[datapath]')
    )
    rounds(exporters[::-1], 10)
    come(relay, exporters, before)
    assert {(row["exporter"], row["port"]): row["unique"] for row in domains(relay)} == numbers
    flows, errors = nfcapd.end()
    assert flows == expected(exporters)
    assert errors == 0


def test_a_reload_sets_the_key(lab: Lab) -> None:
    """A receiver that gets domains of their own while data flow, and then ports: templates come again each time."""
    tap, _collector = lab.tap(1, lambda seen: seen.port == 9995), lab.collector_socket(1, 9995)
    plain = configuration(lab, "", second=False)
    relay = lab.samplicator(plain)
    exporters = flock(lab, 6, IPFIX, every=1_000_000)
    rounds(exporters, 5)
    come(relay, exporters)
    tap.collect(30)
    tap.clear()
    for each in exporters:
        each.flows.clear()  # templates met: nobody knows what a collector made of these
    for keys in ('domain = "unique"', 'source_port = "per-session"', 'source_port = "per-session"\ndomain = "unique"'):
        relay.hangup(lab.with_service(configuration(lab, keys, second=False)))
        rounds(exporters, 5)
        come(relay, exporters)
    judge = Judge()
    for seen in tap.collect(90):
        judge.take(seen.exporter, seen.payload)
    assert judge.flows == expected(exporters)
    assert (judge.sequence_errors, judge.unknown) == (0, 0)


def test_rules_that_masquerade_are_named(lab: Lab) -> None:
    """check where something is spoofed, explain always."""
    rules = lab.directory / "nat.nft"
    hook = "type nat hook postrouting priority 100"
    rules.write_text(f'table ip nat {{\nchain out {{\n{hook}\noifname "r1" masquerade\n}}\n}}\n')
    config = lab.directory / "spoofed.toml"
    config.write_text(configuration(lab, "spoof = true"))

    def said(*words: str) -> str:
        done = lab.start([command("samplicator"), *words, "-c", str(config)], lab.relay, words[0])
        assert done.wait(20) == 0, done.tail()
        return done.stdout() + done.stderr()

    asked = ("explain", "--from", "198.18.110.1:50001", "--to-port", "2055")
    assert "rewrites source addresses" not in said("check") + said(*asked)
    assert lab.start([tool("nft"), "-f", str(rules)], lab.relay, "nft").wait(20) == 0
    for text in (said("check"), said(*asked)):
        assert 'nft: table ip nat chain out: oifname "r1" masquerade' in text
        assert 'write engine = "packet"' in text


def test_control_without_either(lab: Lab) -> None:
    """What every relay did so far, so that these judges are known to see it."""
    nfcapd, tap = Nfcapd(lab), lab.tap(1, lambda seen: seen.port == 9995)
    relay = lab.samplicator(configuration(lab, "", second=False))
    assert "the collector can mix up their templates" in relay.stderr()
    exporters = flock(lab, MANY, V9)
    rounds(exporters, 15)
    come(relay, exporters)
    judge = Judge()
    for seen in tap.collect(15 * MANY):
        judge.take(seen.exporter, seen.payload)
    wanted = expected(exporters)
    for flows, errors in (nfcapd.end(), (judge.flows, judge.sequence_errors)):
        wrong = sum((wanted - flows).values())
        print(f"{wrong} of {sum(wanted.values())} flows wrong or missing, {errors} sequence errors")
        assert wrong > 100
        assert errors > 10
