"""Flow awareness with real collectors: sampling that they can decode, templates for those that come late or come
back, and a ledger that says exactly what was lost before the relay.

nfcapd (collector 1) and nfacctd (collector 2) judge: nfcapd says at its end how many flows it decoded and how many
sequence errors it counted, nfacctd logs what it expected and prints the flows it counted. The exporter is
tests/support/flows.py's encoders on real sockets.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.decoders import (
    ACCT,
    EXPORTER,
    NAMES,
    PORT,
    ROWS,
    Nfacctd,
    Nfcapd,
    a_template,
    come,
    configuration,
    plain,
    send,
    stream,
)
from support.flows import IPFIX, V9
from support.lab import Lab
from support.process import command, wait_for
from support.relay import Relay

SLACK_SECONDS = 4.0
"""For a machine that has other things to do."""


# ---------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("kind", [V9, IPFIX], ids=["netflow9", "ipfix"])
@pytest.mark.parametrize("freq", [2, 3, 10])
def test_sampled_and_decoded(lab: Lab, kind: int, freq: int) -> None:
    """Decoded = exactly the records of the data datagrams that were sent on; no sequence error, no unknown template."""
    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    taps = [lab.tap(link, lambda seen: seen.source == EXPORTER) for link in (1, 2)]
    relay = lab.samplicator(configuration(lab, freq=freq))
    feed = list(itertools.islice(stream(kind), 126))
    templates = sum(carries for _, carries in feed)
    send(lab, [payload for payload, _ in feed])
    come(relay, 126)
    data = -(-(126 - templates) // freq)
    for tap in taps:
        assert len(tap.collect(templates + data)) == templates + data
        assert {seen.exporter for seen in tap.seen} == {(EXPORTER, 50001)}
        assert {seen.checksum for seen in tap.seen} == {"good"}
    assert (data, templates) == (120 // freq, 6)
    assert nfcapd.end() == (data * ROWS, 0)
    assert nfacctd.end() == (data * ROWS, 0)
    metrics = relay.at_rest()
    assert metrics.value("flow_datagrams_total", protocol=NAMES[kind]) == 126
    assert metrics.total("flow_sequence_lost_datagrams_total") == 0
    assert metrics.total("flow_sequence_lost_records_total") == 0
    assert metrics.value("flow_templates", kind="data") == 1


@pytest.mark.parametrize("kind", [V9, IPFIX], ids=["netflow9", "ipfix"])
def test_control_sampled_without_flow(lab: Lab, kind: int) -> None:
    """What every relay did so far: flow = "off"."""
    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    relay = lab.samplicator(configuration(lab, freq=3, flow="off"))
    feed = [payload for payload, _ in itertools.islice(stream(kind), 126)][1:]
    send(lab, feed)
    come(relay, 125)
    relay.at_rest()
    flows, errors = nfcapd.end()
    judged = nfacctd.end()
    assert flows < 40 * ROWS or errors > 20, (flows, errors)
    assert judged != (40 * ROWS, 0)
    assert relay.metrics().total("flow_datagrams_total") == 0


def test_bytes_of_others_are_untouched(lab: Lab) -> None:
    """A receiver that samples beside one that does not: the second gets every byte as it came."""
    text = configuration(lab, freq=1).replace("freq = 1\n", "freq = 3\n", 1)
    tap, came = lab.tap(2, lambda seen: seen.port == ACCT), lab.tap(0, lambda seen: seen.port == 2055)
    relay = lab.samplicator(text)
    mixed = [payload for payload, _ in itertools.islice(stream(V9), 63)] + [b"", b"\x00\x09", b"text" * 300]
    mixed += [payload[:-3] for payload, _ in itertools.islice(stream(IPFIX), 10)]
    send(lab, mixed)
    come(relay, len(mixed))
    tap.collect(len(mixed))
    came.collect(len(mixed))
    assert [seen.payload for seen in tap.seen] == [seen.payload for seen in came.seen] == mixed


# ---------------------------------------------------------------------------------------------------- late, and back


def feed_until(lab: Lab, feed: Iterator[tuple[bytes, bool]], sock: socket.socket, done: Callable[[], bool]) -> float:
    """Sends data every 10 ms until done; returns the seconds that took."""
    start = time.monotonic()
    while not done():
        assert time.monotonic() - start < 10, "waited in vain"
        send(lab, [next(feed)[0]], sock, 0.01)
    return time.monotonic() - start


def shows(place: Path, nfdump: str, least: int) -> bool:
    done = subprocess.run([nfdump, "-R", str(place), "-q", "-o", "csv"], capture_output=True, text=True, timeout=20)
    return sum(line[:2] in ("19", "20") for line in done.stdout.splitlines()) >= least


@pytest.mark.parametrize("kind", [V9, IPFIX], ids=["netflow9", "ipfix"])
def test_added_by_a_reload(lab: Lab, kind: int) -> None:
    """Templates come once, at the start; a receiver that joins much later decodes from its first datagram on."""
    relay = lab.samplicator(configuration(lab, second=True).replace('to = ["one", "two"]', 'to = ["two"]').replace(
        f'[[receiver]]\nname = "one"\nto = "{lab.peer4(1)}:{PORT}"\nspoof = true\nfreq = 1\n', ""
    ))  # fmt: skip
    feed = stream(kind, every=1_000_000)
    sock = send(lab, [next(feed)[0] for _ in range(101)])
    come(relay, 101)
    nfcapd = Nfcapd(lab)
    tap = lab.tap(1, lambda seen: seen.port == PORT)
    start = time.monotonic()
    relay.write(lab.with_service(configuration(lab)))
    relay.send_signal(signal.SIGHUP)
    wait_for(lambda: tap.drain(), "the templates", 20, 0.005)
    assert time.monotonic() - start < 1.0 + SLACK_SECONDS
    (first,) = tap.collect(1)
    assert first.exporter == (EXPORTER, 50001)
    assert a_template(kind) in first.payload
    send(lab, [next(feed)[0] for _ in range(50)], sock)
    tap.collect(51)
    assert nfcapd.end() == (50 * ROWS, 0)
    assert relay.metrics().value("receiver_template_replays_total", receiver="one") == 1


@pytest.mark.parametrize(
    ("spoof", "probe"), [("true", "ipfix"), ("true", "udp"), ("false", "auto")], ids=["ipfix", "udp", "own-address"]
)
def test_stopped_for_five_seconds(lab: Lab, spoof: str, probe: str) -> None:
    """A collector that was away knows no templates any more: they are there within a second of its return."""
    text = configuration(lab, second=False, more=f'probe = "{probe}"\n').replace("spoof = true", f"spoof = {spoof}")
    first = Nfcapd(lab, name="first")
    relay = lab.samplicator(text)
    feed = stream(V9, every=1_000_000)
    sock = send(lab, [next(feed)[0] for _ in range(51)])
    come(relay, 51)
    tap = lab.tap(1, lambda seen: seen.port == PORT and a_template(V9) in seen.payload)
    first.end()
    gone = time.monotonic()
    feed_until(lab, feed, sock, lambda: relay.metrics().value("receiver_up", receiver="one") == 0)
    feed_until(lab, feed, sock, lambda: time.monotonic() - gone > 5)
    again = Nfcapd(lab, name="again")
    tap.clear()
    took = feed_until(lab, feed, sock, lambda: bool(tap.drain()))
    assert took < 15, took  # it is back by evidence: three silent probes, more than a second apart
    wait_for(lambda: relay.metrics().value("receiver_up", receiver="one") == 1, "it to be up", 20)
    send(lab, [next(feed)[0] for _ in range(20)], sock)
    relay.at_rest()
    flows, _ = again.end()
    assert flows >= 20 * ROWS


# ---------------------------------------------------------------------------------------------------- the ledger


def ledger(relay: Relay) -> dict[str, object]:
    argv = [command("samplicator"), "ledger", "--json", "--control", str(relay.control_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    value: dict[str, object] = json.loads(done.stdout)
    return value


def drop_some(lab: Lab, every: int) -> Callable[[], int]:
    """Removes one in `every` datagrams before the relay's stack; returns how to count them."""
    lab.relay.run("nft", "add", "table", "netdev", "loss")
    hook = "{ type filter hook ingress device r0 priority -500 ; }"
    lab.relay.run("nft", "add", "chain", "netdev", "loss", "in", hook)
    rule = f"udp dport 2055 numgen inc mod {every} 1 counter drop"
    lab.relay.run("nft", "add", "rule", "netdev", "loss", "in", *rule.split())

    def count() -> int:
        found = re.search(r"counter packets (\d+)", lab.relay.run("nft", "list", "table", "netdev", "loss"))
        assert found is not None
        return int(found[1])

    return count


@pytest.mark.parametrize(
    ("kind", "each"), [("netflow5", 30), ("netflow9", 1), ("ipfix", ROWS), ("sflow5", 1)], ids=lambda value: str(value)
)
def test_loss_before_us_is_told_exactly(lab: Lab, kind: str, each: int) -> None:
    tap = lab.tap(1)
    relay = lab.samplicator(configuration(lab, second=False))
    if kind in ("netflow9", "ipfix"):
        number = {name: number for number, name in NAMES.items()}[kind]
        feed = (payload for payload, _ in stream(number, every=1_000_000))
    else:
        feed = plain(kind)
    sock = send(lab, [next(feed) for _ in range(20)])
    come(relay, 20)
    count = drop_some(lab, 17)
    send(lab, [next(feed) for _ in range(400)], sock)
    removed = 400 // 17 + (400 % 17 > 1)
    come(relay, 420 - removed)  # the last ones may be on their way after send() has returned
    assert count() == removed
    lab.relay.run("nft", "delete", "table", "netdev", "loss")
    send(lab, [next(feed) for _ in range(20)], sock)
    come(relay, 440 - removed)
    time.sleep(2.1)  # nothing comes late any more
    value = ledger(relay)
    assert value["before"][kind]["lost"] == removed * each  # type: ignore[index]
    assert value["before"][kind]["restarts"] == 0  # type: ignore[index]
    (row,) = value["exporters"]  # type: ignore[misc]
    assert (row["exporter"], row["lost"], row["unit"]) == (EXPORTER, removed * each, value["before"][kind]["unit"])  # type: ignore[index]
    assert len(tap.collect(440 - removed)) == 440 - removed


@pytest.mark.parametrize("kind", ["netflow5", "netflow9", "ipfix", "sflow5"])
def test_reordering_is_no_loss_and_a_reboot_neither(lab: Lab, kind: str) -> None:
    """5 % of the datagrams late by up to 15 places: 0 lost; a sequence that begins anew: a restart, 0 lost."""
    relay = lab.samplicator(configuration(lab, second=False))

    def make() -> list[bytes]:
        if kind in ("netflow5", "sflow5"):
            return list(itertools.islice(plain(kind), 400))
        number = {name: number for number, name in NAMES.items()}[kind]
        return [payload for payload, _ in itertools.islice(stream(number), 400)]

    feed = make()
    for place in range(40, 380, 20):
        feed.insert(place + place % 15 + 1, feed.pop(place))
    sock = send(lab, feed)
    come(relay, 400)
    time.sleep(2.1)
    before = ledger(relay)["before"][kind]  # type: ignore[index]
    assert (before["lost"], before["restarts"]) == (0, 0)
    send(lab, make()[:50], sock)
    come(relay, 450)
    time.sleep(2.1)
    before = ledger(relay)["before"][kind]  # type: ignore[index]
    assert (before["lost"], before["restarts"]) == (0, 1)


def test_commands_show_what_is_known(lab: Lab) -> None:
    """exporters, templates and export, as text and as JSON."""
    relay = lab.samplicator(configuration(lab, second=False))
    send(lab, [payload for payload, _ in itertools.islice(stream(IPFIX), 21)])
    come(relay, 21)

    def run(name: str, *words: str) -> str:
        argv = [command("samplicator"), name, "--control", str(relay.control_path), *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (row,) = json.loads(run("exporters", "--json"))["exporters"]
    assert (row["exporter"], row["port"], row["protocol"], row["domain"]) == (EXPORTER, 50001, "ipfix", 1)
    assert (row["datagrams"], row["units"], row["lost"], row["listener"]) == (21, 20 * ROWS, 0, "in")
    assert EXPORTER in run("exporters")
    assert run("exporters", "--exporter", "198.18.70.9").startswith("no exporter")
    text = run("templates")
    assert "template 256: 7 fields, 21 bytes" in text
    names = "sourceIPv4Address destinationIPv4Address sourceTransportPort destinationTransportPort protocolIdentifier"
    for name in [*names.split(), "packetDeltaCount", "octetDeltaCount"]:
        assert f"    {name} (" in text
    text = run("export")
    assert text.startswith("400 flows received, exported in 21 udp datagrams\n")
    assert "0 export packets were dropped due to no fib" in text
    assert "1 flow templates active" in text
    assert "= sent" in run("ledger")
