"""IPFIX over TCP and TLS between real programs: softflowd by TCP to nfcapd and nfacctd, and a relay to another by TLS.

What collectors decode behind the relay is what they decode when softflowd sends to them directly.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from pathlib import Path

import pytest
from support import decoders
from support import flows as model
from support.decoders import Nfacctd, Nfcapd
from support.flows import IPFIX
from support.lab import Lab
from support.pki import make_pair
from support.process import command, tool, wait_for
from system.test_flows import DIRECT, DIRECT_ACCT, RELAYED, RELAYED_ACCT, Collectors, capture  # noqa: F401

pytestmark = pytest.mark.xdist_group("flows")  # one capture for all


def softflowd(lab: Lab, capture: Path, transport: str, *targets: str) -> None:  # noqa: F811
    argv = [tool("softflowd"), "-d", "-6", "-r", str(capture), "-v", "10", "-P", transport, "-n", ",".join(targets)]
    argv += ["-p", str(lab.directory / f"softflowd-{transport}.pid"), "-c", "none"]
    assert lab.start(argv, lab.exporter, f"softflowd-{transport}").wait(60) == 0


def test_softflowd_by_tcp_to_nfcapd_and_nfacctd_by_udp(lab: Lab, capture: Path) -> None:  # noqa: F811
    collectors = Collectors(lab)
    relay = lab.samplicator(
        '[[listener]]\nname = "in"\nlisten = ["tcp://0.0.0.0:4739"]\nallow = ["198.18.0.0/16"]\n'
        f'[[receiver]]\nname = "one"\nto = "{lab.peer4(1)}:{RELAYED}"\nspoof = true\n'
        f'[[receiver]]\nname = "two"\nto = "{lab.peer4(2)}:{RELAYED_ACCT}"\nspoof = true\n'
        '[[rule]]\nto = ["one", "two"]\n'
    )
    softflowd(lab, capture, "tcp", f"{lab.relay4()}:4739")
    softflowd(lab, capture, "udp", f"{lab.peer4(1)}:{DIRECT}", f"{lab.peer4(2)}:{DIRECT_ACCT}")
    wait_for(lambda: relay.api("gateways")[0]["sessions"] == {"connected": 0}, "the session to end", 20)
    metrics = relay.check_laws()
    (row,) = relay.api("gateways")
    assert row["place"] == "tcp://0.0.0.0:4739"
    assert row["counters"]["opened"] == 1
    assert row["counters"]["messages"] == row["counters"]["datagrams"] > 5
    assert (row["counters"]["malformed"], row["counters"]["broken"], row["counters"]["lost"]) == (0, 0, 0)
    assert metrics.value("listener_messages_total", gateway="tcp", listener="in") == row["counters"]["messages"]
    assert metrics.total("receive_datagrams_total") == row["counters"]["datagrams"]
    collectors.end()
    direct, relayed = collectors.nfdump(DIRECT), collectors.nfdump(RELAYED)
    assert len(direct) > 500
    # without begin, end and duration: softflowd counts them from its own start, and it ran twice
    assert sorted(row[3:] for row in relayed) == sorted(row[3:] for row in direct)
    assert collectors.nfacct(RELAYED_ACCT) == collectors.nfacct(DIRECT_ACCT)


def test_one_relay_to_another_by_tls(lab: Lab) -> None:
    """UDP -> relay -> TLS -> relay -> UDP: every flow arrives, no sequence is wrong, exporters stay apart."""
    make_pair(lab.directory, "a", more=f"IP:{lab.relay4(1)}")
    make_pair(lab.directory, "b", more=f"IP:{lab.peer4(1)}")

    def keys(own: str, other: str) -> str:
        files = {"cert": f"{own}c", "key": f"{own}k", "ca": f"{other}c"}
        return "".join(f'tls_{key}_file = "{lab.directory}/{file}.pem"\n' for key, file in files.items())

    nfcapd, nfacctd = Nfcapd(lab), Nfacctd(lab)
    far = lab.directory / "far.toml"
    far.write_text(
        f'[service]\nhttp = ""\ncontrol = "{lab.directory}/far.sock"\n'
        f'[[listener]]\nname = "in"\nlisten = ["tls://{lab.peer4(1)}:4740"]\n{keys("b", "a")}'
        f'[[receiver]]\nname = "one"\nto = "127.0.0.1:{decoders.PORT}"\n[[rule]]\nto = ["one"]\n'
    )
    lab.start([command("samplicator"), "run", "-c", str(far)], lab.collectors[0], "far")
    near = lab.samplicator(
        '[[listener]]\nname = "in"\nlisten = ["0.0.0.0:2055"]\n'
        f'[[receiver]]\nname = "far"\nto = "tls://{lab.peer4(1)}:4740"\n{keys("a", "b")}'
        f'[[receiver]]\nname = "two"\nto = "{lab.peer4(2)}:{decoders.ACCT}"\nspoof = true\n'
        '[[rule]]\nto = ["far", "two"]\n'
    )
    payloads = [payload for payload, _ in itertools.islice(decoders.stream(IPFIX), 500)]
    decoders.send(lab, payloads)
    decoders.come(near, 500)
    wait_for(lambda: near.api("receivers")[0]["state"] == "up", "the session", 20)
    (session,) = near.api("sessions")["sessions"]
    assert (session["gateway"], session["side"], session["exporter"]) == ("tls", "out", "198.18.70.1:50001")
    flows = 20 * sum(payload[16:18] != b"\0\2" for payload in payloads)
    data = flows // 20 + 1  # by TLS the template goes once
    wait_for(lambda: near.api("sessions")["sessions"][0]["messages"] == data, "all messages", 20)
    near.check_laws()
    wait_for(lambda: near.api("sessions")["sessions"][0]["queue_bytes"] == 0, "nothing to wait", 20)
    counted = near.api("gateways")[0]["counters"]
    assert counted["templates_left_out"] == len(payloads) - data
    assert nfacctd.end() == (flows, 0)
    lab.settle()
    assert nfcapd.end() == (flows, 0)


class ByTcp:
    """An exporter that connects again when its session has ended, and begins with its template."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.sequence = 0
        self.sock: socket.socket | None = None

    def send(self, message: bytes) -> None:
        """The session may have ended without our knowing: then the message is lost, as on any network."""
        if self.sock is None or self.ended():
            self.connect()
        assert self.sock is not None
        self.sock.sendall(message)

    def ended(self) -> bool:
        assert self.sock is not None
        try:
            return self.sock.recv(1, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def connect(self) -> None:
        def connected() -> bool:
            self.sock = self.lab.exporter.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                self.sock.connect((self.lab.relay4(), 4739))
            except OSError:
                self.sock.close()
                return False
            return True

        wait_for(connected, "a session", 20)
        self.sock.sendall(model.ipfix(self.sequence, 1, model.a_set(2, model.template(256, [(8, 4), (12, 4)]))))

    def data(self) -> None:
        self.send(model.ipfix(self.sequence, 1, model.a_set(256, self.sequence.to_bytes(8, "big"))))
        self.sequence += 1


@pytest.mark.parametrize("how", ["takeover", "restart"])
def test_sessions_begin_again_with_the_next_process(lab: Lab, how: str) -> None:
    """Exporters connect again, and the collector's session begins with templates; nothing is undecodable."""
    text = (
        f'[service]\nhttp = "127.0.0.1:9420"\ncontrol = "{lab.directory}/control.sock"\n'
        f'state_file = "{lab.directory}/state"\n'
        '[[listener]]\nname = "in"\nlisten = ["tcp://0.0.0.0:4739"]\n'
        f'[[receiver]]\nname = "udp"\nto = "{lab.peer4(1)}:{decoders.PORT}"\nspoof = true\n'
        f'[[receiver]]\nname = "tcp"\nto = "tcp://{lab.peer4(1)}:4739"\n[[rule]]\nto = ["udp", "tcp"]\n'
    )
    sink = lab.collector_socket(1, decoders.PORT)
    listening = lab.collectors[0].socket(socket.AF_INET, socket.SOCK_STREAM)
    lab.closers.append(listening.close)
    listening.bind((lab.peer4(1), 4739))
    listening.listen()
    exporter, by_udp = ByTcp(lab), model.Collector()
    first = lab.samplicator(text)
    for _ in range(50):
        exporter.data()
    wait_for(lambda: first.metrics().value("send_datagrams_total", receiver="tcp") >= 51, "the first fifty", 20)
    if how == "restart":
        assert first.end() == 0
        second = lab.samplicator(text)
    else:
        second = lab.samplicator(text, "--takeover", ready=False)
        wait_for(lambda: first.popen.poll() is not None, "the first to end", 20)
        assert first.popen.returncode == 0
        second.wait_ready()
    before = exporter.sequence

    def arrives() -> bool:
        exporter.data()
        return any(row["counters"]["messages"] > 2 for row in second.api("gateways") if row["side"] == "out")

    wait_for(arrives, "the second to send", 20, 0.05)
    second.check_laws()
    sink.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while True:
            payload, source = sink.recvfrom(65535)
            by_udp.take(source, payload)
    assert by_udp.unknown_sets == 0
    assert by_udp.records > before
    sessions = []
    for _ in range(2):
        connection, _ = listening.accept()
        connection.settimeout(1)
        received, collector = b"", model.Collector()
        with contextlib.suppress(TimeoutError):
            while fresh := connection.recv(65536):
                received += fresh
        connection.close()
        while received:
            size = int.from_bytes(received[2:4], "big")
            collector.take(0, received[:size])
            received = received[size:]
        assert (collector.unknown_sets, collector.sequence_errors) == (0, 0)
        sessions.append(collector.records)
    assert sessions[0] == before
    assert sessions[1] > 0
