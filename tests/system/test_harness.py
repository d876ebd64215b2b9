"""The laboratory itself, proven with real parts and without our daemon: a fault of the harness must not look like
one of the product.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from support import turns
from support.lab import Lab, Metrics
from support.process import wait_for
from support.witness import checksum_state


def test_every_pair_talks_over_both_families(lab: Lab) -> None:
    for link, family, address in ((1, socket.AF_INET, lab.peer4(1)), (2, socket.AF_INET6, lab.peer6(2))):
        receiver = lab.collector_socket(link, 9995, six=family == socket.AF_INET6)
        sender = lab.relay.socket(family)
        sender.sendto(b"hello", (address, 9995))
        assert receiver.recv(100) == b"hello"


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 9000, 65507])
@pytest.mark.parametrize("six", [False, True])
def test_witness_sees_what_the_kernel_sends(lab: Lab, size: int, six: bool) -> None:
    tap = lab.tap(1)
    address = lab.peer6(1) if six else lab.peer4(1)
    lab.collector_socket(1, 9995, six=six)
    sender = lab.relay.socket(socket.AF_INET6 if six else socket.AF_INET)
    payload = os.urandom(size)
    sender.sendto(payload, (address, 9995))
    (seen,) = tap.collect(1)
    assert (seen.payload, seen.checksum, seen.port, seen.ttl) == (payload, "good", 9995, 64)
    assert seen.fragments == (1 if size + (48 if six else 28) <= 1500 else seen.fragments)


def test_exporter_pool_is_local(lab: Lab) -> None:
    receiver = lab.relay.socket(socket.AF_INET)
    receiver.bind(("0.0.0.0", 2055))
    receiver.settimeout(5)
    for address in ("198.18.64.1", "198.18.200.7", "198.19.255.254"):
        lab.exporter_socket(address, 50001).sendto(b"x", (lab.relay4(), 2055))
        assert receiver.recvfrom(10)[1] == (address, 50001)


def test_tshark_tells_good_checksums_from_bad_ones(lab: Lab) -> None:
    shark = lab.tshark(1).on()
    lab.collector_socket(1, 9995)
    sender = lab.relay.socket(socket.AF_INET)
    sender.sendto(b"good", (lab.peer4(1), 9995))
    sender.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
    sender.sendto(b"none", (lab.peer4(1), 9995))
    raw = lab.relay.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    raw.sendto(bytes.fromhex("07d0270b000b1234") + b"bad", (lab.peer4(1), 9995))
    rows = {bytes.fromhex(row["udp.payload"]): row["udp.checksum.status"] for row in shark.rows()}
    assert rows == {b"good": "1", b"none": "3", b"bad": "0"}


def test_checksum_oracle() -> None:
    datagram = bytes.fromhex("07d0270b000b0000") + b"abc"
    assert checksum_state(bytes(4), bytes(4), datagram) == "zero"
    assert checksum_state(bytes(16), bytes(16), datagram) == "bad"


LAWFUL = """
samplicator_receive_datagrams_total{listener="in"} 10.0
samplicator_receive_truncated_datagrams_total{listener="in"} 1.0
samplicator_receive_matched_datagrams_total{listener="in"} 6.0
samplicator_receive_rejected_datagrams_total{listener="in",reason="acl"} 1.0
samplicator_receive_rejected_datagrams_total{listener="in",reason="no_route_rule"} 2.0
samplicator_send_offered_datagrams_total{receiver="one"} 6.0
samplicator_send_skipped_datagrams_total{receiver="one",reason="freq"} 2.0
samplicator_send_datagrams_total{receiver="one"} 3.0
samplicator_send_failed_datagrams_total{receiver="one",reason="refused"} 1.0
"""


def test_the_laws_are_really_looked_at() -> None:
    assert Metrics(LAWFUL).law_violations() == []
    for line in LAWFUL.strip().splitlines():
        series, _, value = line.rpartition(" ")
        broken = LAWFUL.replace(line, f"{series} {float(value) + 1}")
        assert len(Metrics(broken).law_violations()) == 1, line
    assert Metrics("").law_violations() == ["no listener in /metrics"]


def test_nothing_is_left_behind() -> None:
    lab = Lab()
    names, directory = lab.names, lab.directory
    sleeper = lab.start(["sleep", "1000"], lab.relay, "sleeper")
    lab.close()
    assert not sleeper.alive
    assert not directory.exists()
    assert not any(Path("/run/netns", name).exists() for name in names)


def test_who_wants_the_machine_alone_gets_it_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody comes in before it, who is in is not disturbed, and then those who waited go on."""
    for name in ("GATE", "MACHINE"):
        (tmp_path / name).touch()
        monkeypatch.setattr(turns, name, tmp_path / name)
    said: list[str] = []

    def use(name: str, alone: bool) -> threading.Thread:
        def work() -> None:
            with turns.turn(alone):
                said.append(f"{name} in")
                time.sleep(0.05)
                said.append(f"{name} out")

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def gate_is_shut() -> bool:
        with turns.opened(turns.GATE) as gate:
            try:
                fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    with turns.turn(False):
        with turns.turn(False):  # two share it
            threads = [use("alone", True)]
            wait_for(gate_is_shut, "the gate to be shut")
            threads.append(use("shares", False))
        assert said == []
    for thread in threads:
        thread.join(10)
    assert said == ["alone in", "alone out", "shares in", "shares out"]
