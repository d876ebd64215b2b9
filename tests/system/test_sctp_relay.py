"""SCTP through a relay that runs: exporters' associations to collectors by UDP, and UDP to a collector with a backup.

Scenarios 2, 9, 10 and 11 of the table in the issue, and a relay to another one with real collectors behind. With the
kernel's SCTP where there is one (`SCTP_BACKEND`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from samplicator.gateways.transport import Options, Session, Transport
from support import decoders
from support import flows as model
from support.associations import PORT, backend, place, transport_in
from support.decoders import Nfacctd, Nfcapd
from support.flows import IPFIX, V9, a_set, template, withdrawal
from support.lab import Lab
from support.namespace import run
from support.process import PATIENCE, command, wait_for
from support.relay import Relay
from support.sctp import Log

T = TypeVar("T")
FIELDS: list[tuple[int, ...]] = [(8, 4), (12, 4)]
OTHER: list[tuple[int, ...]] = [(1, 8), (2, 8)]


class Peers:
    """SCTP beside the relay: an exporter and two collectors, in one event loop of this process."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.loop = asyncio.new_event_loop()
        self.exporter = self.within(lab.exporter)
        self.made: list[Transport] = [self.exporter]
        self.logs = [Log(), Log()]

    def within(self, namespace: Any) -> Transport:
        return transport_in(namespace, self.loop, backend())

    def collectors(self) -> None:
        for number, log in enumerate(self.logs):
            made = self.within(self.lab.collectors[number])
            self.made.append(made)
            made.listen(place("0.0.0.0", PORT + number), log, Options(streams=8))

    def session(self, streams: int = 4) -> Session:
        """Of the exporter, to the relay."""
        log = Log()
        found = self.exporter.connect(place(self.lab.relay4(), 4739), log, Options(streams=streams))
        self.until(lambda: bool(log.sessions))
        return found

    def send(self, session: Session, message: bytes, stream: int = 0) -> None:
        self.until(lambda: bool(session.send(message, stream) or session.why))
        assert not session.why

    def until(self, condition: Callable[[], bool], seconds: float = 30.0 * PATIENCE) -> float:
        """Returns how long it took."""
        begun = time.monotonic()

        async def wait() -> None:
            while not condition():
                assert time.monotonic() - begun < seconds, f"not within {seconds} s"
                await asyncio.sleep(0.002)

        self.loop.run_until_complete(wait())
        return time.monotonic() - begun

    def beside(self, work: Callable[[], T]) -> T:
        """Something that takes long, while the peers go on answering."""
        return self.loop.run_until_complete(self.loop.run_in_executor(None, work))

    def run(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def cut(self, number: int, *rules: str) -> None:
        """What reaches a collector; none: everything does again."""
        text = "table ip cut\ndelete table ip cut\n"
        if rules:
            text += (
                f"table ip cut {{ chain c {{ type filter hook prerouting priority -300; {'; '.join(rules)}; }}\n}}\n"
            )
        run("ip", "netns", "exec", self.lab.collectors[number].name, "nft", "-f", "-", stdin=text)

    def close(self) -> None:
        for one in self.made:
            one.close()
        self.loop.run_until_complete(asyncio.sleep(0.05))
        self.loop.close()


@pytest.fixture
def peers(lab: Lab) -> Iterator[Peers]:
    made = Peers(lab)
    yield made
    made.close()


def receive(sock: socket.socket, count: int) -> list[bytes]:
    """So many datagrams, and no more."""
    sock.settimeout(20)
    found = [sock.recv(65535) for _ in range(count)]
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sock.recv(65535)
    return found


def to_udp(lab: Lab, more: str = "") -> Relay:
    return lab.samplicator(
        f'[sctp]\nbackend = "{backend()}"\n'
        '[[listener]]\nname = "in"\nlisten = ["sctp://0.0.0.0:4739"]\nallow = ["198.18.0.0/15"]\n'
        f'[[receiver]]\nname = "udp"\nto = "{lab.peer4(1)}:{decoders.PORT}"\nspoof = true\n{more}'
        '[[rule]]\nto = ["udp"]\n'
    )


def counters(relay: Relay, name: str) -> dict[str, int]:
    found: dict[str, int] = next(row["counters"] for row in relay.api("gateways") if row["name"] == name)
    return found


def test_long_messages_on_several_streams_become_datagrams(lab: Lab, peers: Peers) -> None:
    """9: 64 KiB to UDP over an MTU of 1500, several streams in one count: nothing is lost, no sequence is wrong."""
    sink = lab.collector_socket(1, decoders.PORT)
    relay = to_udp(lab)
    session = peers.session()
    peers.send(session, model.ipfix(0, 1, a_set(2, template(256, FIELDS))))
    own, sent = [0] * 4, 0
    for stream, count in zip(itertools.cycle((1, 2, 3)), (8000, 1, 5000, 100, 8000, 8000, 3, 181, 182), strict=False):
        records = [(sent + n).to_bytes(8, "big") for n in range(count)]
        peers.send(session, model.ipfix(own[stream], 1, a_set(256, *records)), stream)
        own[stream] += count
        sent += count
    made = 0

    def whole() -> bool:
        nonlocal made
        made = counters(relay, "in")["datagrams"]
        return counters(relay, "in")["messages"] == 10

    peers.until(whole)
    collector = model.Collector()
    found = receive(sink, made)
    for payload in found:
        collector.take(0, payload)
    assert max(map(len, found)) <= 1452
    assert (collector.records, collector.sequence_errors, collector.unknown_sets) == (sent, 0, 0)
    numbers = [int.from_bytes(p[at : at + 8], "big") for p in found[1:] for at in range(20, len(p), 8)]
    assert sorted(numbers) == list(range(sent))
    relay.check_laws()


def test_templates_that_are_withdrawn_and_numbers_that_are_used_again(lab: Lab, peers: Peers) -> None:
    """11, in: a withdrawal does not go on; what follows is decoded by the new template."""
    sink = lab.collector_socket(1, decoders.PORT)
    relay = to_udp(lab)
    session = peers.session()
    for n, fields in enumerate((FIELDS, OTHER, FIELDS)):
        peers.send(session, model.ipfix(10 * n, 1, a_set(2, template(256, fields))))
        size = sum(field[1] for field in fields)
        peers.send(session, model.ipfix(10 * n, 1, a_set(256, *[bytes([n]) * size] * 10)))
        peers.send(session, model.ipfix(10 * n + 10, 1, a_set(2, withdrawal(256))))
    peers.until(lambda: counters(relay, "in")["withdrawn"] == 3)
    collector = model.Collector()
    for payload in receive(sink, 6):
        assert payload[16:24] != bytes.fromhex("0002000801000000")
        collector.take(0, payload)
    assert (collector.records, collector.sequence_errors, collector.unknown_sets) == (30, 0, 0)
    relay.check_laws()


@pytest.mark.parametrize("abort", [True, False], ids=["abort", "shutdown"])
def test_an_exporter_that_starts_again(lab: Lab, peers: Peers, abort: bool) -> None:
    """10: what the session knew is gone, its numbers go on, and the stable port is the association's."""
    sink = lab.collector_socket(1, decoders.PORT)
    relay = to_udp(lab)
    collector = model.Collector()
    for life in range(3):
        session = peers.session()
        peers.send(session, model.ipfix(0, 1, a_set(2, template(256, FIELDS))))
        for n in range(20):
            peers.send(session, model.ipfix(5 * n, 1, a_set(256, *[bytes(8)] * 5)), 1)
        peers.until(lambda: counters(relay, "in")["messages"] == 21 * (life + 1))  # noqa: B023
        session.close(abort=abort)
        peers.until(lambda: relay.api("sctp")["exporters"] == [])
        sink.settimeout(20)
        sources = set()
        for _ in range(21):
            payload, source = sink.recvfrom(65535)
            collector.take(0, payload)
            sources.add(source)
        assert len(sources) == 1
        assert {address for address, _ in sources} == {lab.peer4(0)}
    assert (collector.records, collector.sequence_errors, collector.unknown_sets) == (300, 0, 0)
    relay.check_laws()


def test_a_stranger_is_refused(lab: Lab, peers: Peers) -> None:
    """12: whose address is not in `allow` gets no association, and is counted."""
    relay = lab.samplicator(
        f'[sctp]\nbackend = "{backend()}"\n'
        '[[listener]]\nname = "in"\nlisten = ["sctp://0.0.0.0:4739"]\nallow = ["192.0.2.0/24"]\n'
        f'[[receiver]]\nname = "udp"\nto = "{lab.peer4(1)}:{decoders.PORT}"\n[[rule]]\nto = ["udp"]\n'
    )
    log = Log()
    peers.exporter.connect(place(lab.relay4(), 4739), log, Options())
    peers.until(lambda: counters(relay, "in")["refused_prefix"] > 0)
    peers.until(lambda: bool(log.closed_), 60)
    assert log.messages == []
    assert relay.api("sctp") == {"exporters": [], "exports": [], "after": None}
    assert "is refused: its address is not in `allow`" in relay.stderr()


class Flow:
    """UDP to the relay: a template, and data every few milliseconds."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.sock = lab.exporter_socket(decoders.EXPORTER, 50001)
        self.sent = 0
        self.sequence = 0
        self.teach(FIELDS)

    def send(self, payload: bytes) -> None:
        self.sock.sendto(payload, (self.lab.relay4(), 2055))

    def teach(self, fields: list[tuple[int, ...]]) -> None:
        self.send(model.ipfix(self.sequence, 1, a_set(2, template(256, fields))))

    def data(self, size: int = 8) -> None:
        self.send(model.ipfix(self.sequence, 1, a_set(256, self.sequence.to_bytes(size, "big"))))
        self.sequence += 1


def to_sctp(lab: Lab, mode: str, more: str = "") -> Relay:
    """fail_over_ms: longer than the collectors, which are in this process, may be kept from answering."""
    return lab.samplicator(
        f'[sctp]\nbackend = "{backend()}"\n'
        f'[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
        f'[[receiver]]\nname = "core"\nto = "sctp://{lab.peer4(1)}:{PORT}"\nbuffer_limit = 2000\n{more}'
        f'backup = {{ to = "sctp://{lab.peer4(2)}:{PORT + 1}", mode = "{mode}", fail_over_ms = 1500, restore_s = 2 }}\n'
        '[[rule]]\nto = ["core"]\n'
    )


def records(log: Log) -> list[int]:
    """Of data, in the order of arrival."""
    data = [message for _, stream, message in log.messages if stream]
    return [int.from_bytes(message[20:28], "big") for message in data]


def exports(relay: Relay) -> Any:
    (found,) = relay.api("sctp")["exports"]
    return found


def states(relay: Relay) -> list[str]:
    return [one["state"] for one in exports(relay)["collectors"]]


def shown(lab: Lab, relay: Relay, *words: str) -> str:
    return lab.relay.run(command("samplicator"), "sctp", *words, "--control", str(relay.control_path))


def test_a_collector_and_its_backup(lab: Lab, peers: Peers) -> None:
    """2 and 5, of a relay that runs: what is shown is what happened, and every record is somewhere."""
    peers.collectors()
    relay = to_sctp(lab, "redundant")
    flow = Flow(lab)
    peers.until(lambda: len(peers.logs[1].messages) > 0)

    def flows(condition: Callable[[], bool], seconds: float = 30.0) -> float:
        def step() -> bool:
            flow.data()
            return condition()

        return peers.until(step, seconds)

    flows(lambda: flow.sequence >= 100)
    peers.until(lambda: len(records(peers.logs[0])) == flow.sequence)
    assert records(peers.logs[1]) == []
    assert states(relay) == ["connected", "connected"]
    peers.cut(0, "meta l4proto { sctp, udp } drop")
    flows(lambda: bool(records(peers.logs[1])))
    assert states(relay) == ["re-establishing", "fail-over"]
    assert relay.api("gateways")[0]["backups_in_use"] == 1
    assert [one["backup_in_use"] for one in relay.api("sessions")["sessions"]] == [True]
    peers.cut(0)
    flows(lambda: states(relay) == ["connected", "connected"] and len(records(peers.logs[0])) > 100)
    peers.until(lambda: len({*records(peers.logs[0]), *records(peers.logs[1])}) == flow.sequence)
    assert relay.api("gateways")[0]["backups_in_use"] == 0
    assert exports(relay)["fail_overs"] == counters(relay, "core")["fail_overs"] == 1
    assert relay.metrics().value("receiver_sctp_fail_overs_total", gateway="sctp", receiver="core") == 1
    for number in (0, 1):
        peers.cut(number, "meta l4proto { sctp, udp } drop")
    few = flow.sequence + 200  # they fit, however long it takes

    def both_down() -> bool:
        if flow.sequence < few:
            flow.data()
        return states(relay) == ["re-establishing", "re-establishing"]

    peers.until(both_down)
    for _ in range(300):
        for _ in range(10):
            flow.data()
        peers.run(0.005)
    peers.until(lambda: exports(relay)["dropped_failure"] > 0)
    assert exports(relay)["dropped_resources"] == 0
    peers.until(lambda: relay.api("receivers")[0]["state"] != "up")
    for number in (0, 1):
        peers.cut(number)
    last = flow.sequence

    def arrived() -> int:
        return len({*records(peers.logs[0]), *records(peers.logs[1])})

    # whichever collector is there again first
    flows(lambda: any(last in records(log) for log in peers.logs), 60)

    def dropped() -> int:  # some may not fit when what was not delivered comes back, and a collector is there again
        found = exports(relay)
        return int(found["dropped_failure"] + found["dropped_resources"])

    peers.until(lambda: arrived() + dropped() == flow.sequence)
    assert exports(relay)["waiting"] == 0
    assert counters(relay, "core")["no_collector_flows"] == exports(relay)["dropped_failure"]
    relay.check_laws()


def test_a_template_that_changes_is_withdrawn_first(lab: Lab, peers: Peers) -> None:
    """11, out: by SCTP a template goes once; one that changes is withdrawn before (RFC 7011 section 8.1)."""
    peers.collectors()
    relay = to_sctp(lab, "redundant", "streams = 3\n")
    flow = Flow(lab)
    flow.data()
    peers.until(lambda: len(peers.logs[0].messages) == 2 and len(peers.logs[1].messages) == 1)
    for _ in range(5):
        flow.teach(FIELDS)
        flow.data()
    flow.teach(OTHER)
    flow.data(16)
    peers.until(lambda: sum(1 for _, stream, _ in peers.logs[0].messages if stream) == 7)
    for log in peers.logs:
        control = [message[16:] for _, stream, message in log.messages if stream == 0]
        assert control == [
            a_set(2, template(256, FIELDS)),
            a_set(2, withdrawal(256)),
            a_set(2, template(256, OTHER)),
        ]
    assert {stream for _, stream, _ in peers.logs[0].messages} == {0, 2}
    relay.check_laws()


@pytest.mark.parametrize("kind", [V9, IPFIX])
def test_one_relay_to_another(lab: Lab, kind: int) -> None:
    """UDP -> relay -> SCTP -> relay -> UDP: nfcapd and nfacctd have all flows and no sequence error."""
    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    far = lab.directory / "far.toml"
    far.write_text(
        f'[service]\nhttp = ""\ncontrol = "{lab.directory}/far.sock"\n[sctp]\nbackend = "{backend()}"\n'
        f'[[listener]]\nname = "in"\nlisten = ["sctp://0.0.0.0:4739"]\n'
        f'[[receiver]]\nname = "one"\nto = "127.0.0.1:{decoders.PORT}"\n[[rule]]\nto = ["one"]\n'
    )
    lab.start([command("samplicator"), "run", "-c", str(far)], lab.collectors[0], "far")
    near = lab.samplicator(
        f'[sctp]\nbackend = "{backend()}"\n[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
        f'[[receiver]]\nname = "far"\nto = "sctp://{lab.peer4(1)}:4739"\nbuffer_limit = 65535\n'
        f'[[receiver]]\nname = "two"\nto = "{lab.peer4(2)}:{decoders.ACCT}"\nspoof = true\n'
        '[[rule]]\nto = ["far", "two"]\n'
    )
    payloads = [payload for payload, _ in itertools.islice(decoders.stream(kind), 500)]
    decoders.send(lab, payloads)
    decoders.come(near, 500)
    flows = 20 * sum(not taught for _, taught in itertools.islice(decoders.stream(kind), 500))
    wait_for(lambda: states(near) == ["connected"] and exports(near)["collectors"][0]["flows"] == flows, "all", 30)
    assert exports(near)["waiting"] == 0
    near.check_laws()
    assert nfacctd.end() == (flows, 0)
    lab.settle()
    assert nfcapd.end() == (flows, 0)


def test_what_is_shown(lab: Lab, peers: Peers) -> None:
    """`samplicator sctp`, of a relay that runs."""
    peers.collectors()
    relay = to_sctp(lab, "fail-over")
    flow = Flow(lab)
    flow.data()
    peers.until(lambda: records(peers.logs[0]) == [0])
    peers.until(lambda: states(relay) == ["connected", "not connected"])
    text = peers.beside(lambda: shown(lab, relay, "--verbose"))
    assert text.startswith(
        f"receiver core, exporter {decoders.EXPORTER}:50001: exporting to {lab.peer4(1)}:{PORT}, full, "
        "buffer-limit: 2000\n  status: connected\n  backup mode: fail-over\n"
    )
    assert re.search(r"^  1 flows exported in 2 sctp messages$", text, re.MULTILINE), text
    assert f"  backup: {lab.peer4(2)}:{PORT + 1}\n    status: not connected\n    fail-overs: 0\n" in text
    rows = [line.split() for line in peers.beside(lambda: shown(lab, relay)).splitlines()[1:]]
    exporter = f"{decoders.EXPORTER}:50001"
    assert rows == [
        ["core", exporter, f"{lab.peer4(1)}:{PORT}", "connected", "1", "2", "0", "0"],
        ["core", exporter, f"{lab.peer4(2)}:{PORT + 1}", "(backup)", "not", "connected", "0", "0", "0", "0"],
    ]


class Persistent:
    """An exporter that connects again when its association has ended, and begins with its template."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.sequence = 0
        self._log = Log()
        self._session: Session | None = None
        self._own = -1  # its template is not sent yet

    def data(self) -> None:
        """One record, if it is connected; lost when the association has ended without our knowing."""
        if self._session is None or self._log.closed_:
            self._log, self._own = Log(), -1
            where = place(self.peers.lab.relay4(), 4739)
            self._session = self.peers.exporter.connect(where, self._log, Options(streams=2))
        if self._own < 0 and self._log.sessions:
            self._own += self._session.send(model.ipfix(0, 1, a_set(2, template(256, FIELDS))))
        elif self._own >= 0:
            one = model.ipfix(self._own, 1, a_set(256, self.sequence.to_bytes(8, "big")))
            if self._session.send(one, 1):
                self.sequence += 1
                self._own += 1


@pytest.mark.parametrize("how", ["takeover", "restart"])
def test_associations_begin_again_with_the_next_process(lab: Lab, peers: Peers, how: str) -> None:
    """Exporters connect again and collectors get templates first: nothing is undecodable, and what is lost is told."""
    peers.collectors()
    text = (
        f'[service]\nhttp = "127.0.0.1:9420"\ncontrol = "{lab.directory}/control.sock"\n'
        f'state_file = "{lab.directory}/state"\n[sctp]\nbackend = "{backend()}"\n'
        '[[listener]]\nname = "in"\nlisten = ["sctp://0.0.0.0:4739"]\n'
        f'[[receiver]]\nname = "udp"\nto = "{lab.peer4(1)}:{decoders.PORT}"\nspoof = true\n'
        f'[[receiver]]\nname = "core"\nto = "sctp://{lab.peer4(1)}:{PORT}"\n'
        f'backup = {{ to = "sctp://{lab.peer4(2)}:{PORT + 1}", fail_over_ms = 1000 }}\n'
        '[[rule]]\nto = ["udp", "core"]\n'
    )
    sink = lab.collector_socket(1, decoders.PORT)
    exporter = Persistent(peers)
    first = lab.samplicator(text)

    def sends(condition: Callable[[], bool]) -> None:
        def step() -> bool:
            exporter.data()
            return condition()

        peers.until(step, 60)

    sends(lambda: exporter.sequence >= 50)
    peers.until(lambda: len(records(peers.logs[0])) == exporter.sequence)
    assert len(peers.logs[0].sessions) == 1
    if how == "restart":  # a process that another thread starts ends with it: so not `beside`
        assert peers.beside(first.end) == 0
        second = lab.samplicator(text)
    else:
        second = lab.samplicator(text, "--takeover", ready=False)
        peers.until(lambda: first.popen.poll() is not None, 200)  # a guest without acceleration is slow
        assert first.popen.returncode == 0
        peers.beside(second.wait_ready)
    before = len(records(peers.logs[0]))
    sends(lambda: len(records(peers.logs[0])) > before + 50)

    def streams(log: Log) -> list[list[int]]:
        """Of each session that is open, or got something."""
        gone = [session for session, _ in log.closed_]
        found = [(one, [stream for of, stream, _ in log.messages if of is one]) for one in log.sessions]
        return [had for session, had in found if had or session not in gone]

    peers.until(lambda: all(had for log in peers.logs for had in streams(log)))
    assert {had[0] for log in peers.logs for had in streams(log)} == {0}  # templates came first
    assert len(streams(peers.logs[0])) >= 2
    got = records(peers.logs[0])
    assert got == sorted(set(got))
    by_udp = model.Collector()
    sink.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while True:
            payload, source = sink.recvfrom(65535)
            by_udp.take(source, payload)
    assert (by_udp.unknown_sets, by_udp.undecodable) == (0, 0)
    assert by_udp.records > before
    second.check_laws()


def test_a_thousand_associations(lab: Lab, peers: Peers) -> None:
    """12: memory is bounded, each exporter is known, and all is given back when they have ended."""
    sink = lab.collector_socket(1, decoders.PORT)
    relay = to_udp(lab)
    before = relay.rss()
    sessions = []
    for n in range(1000):
        log = Log()
        sessions.append(peers.exporter.connect(place(lab.relay4(), 4739), log, Options(streams=2)))
        if n % 50 == 49:
            peers.until(lambda: counters(relay, "in")["opened"] == len(sessions))
    for session in sessions:
        peers.send(session, model.ipfix(0, 1, a_set(2, template(256, FIELDS))))
        peers.send(session, model.ipfix(0, 1, a_set(256, bytes(8))), 1)
    peers.until(lambda: counters(relay, "in")["messages"] == 2000)
    assert len(relay.api("sctp?limit=2000")["exporters"]) >= 1000
    each = (relay.rss() - before) / 1000 / 1024
    assert each < 100
    collector = model.Collector()
    sink.settimeout(10)
    while collector.records < 1000:  # templates can have been sent again meanwhile, by the minute
        payload, source = sink.recvfrom(65535)
        collector.take(source, payload)
    assert (collector.records, collector.sequence_errors, collector.unknown_sets) == (1000, 0, 0)
    for session in sessions:
        session.close(abort=True)
    peers.until(lambda: relay.api("sctp")["exporters"] == [])
    relay.check_laws()
