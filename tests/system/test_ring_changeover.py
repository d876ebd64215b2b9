"""A listener changes between its sockets and its rings while datagrams come: each is forwarded once, and in order.

The generator numbers the datagrams of each exporter; the sink counts what is lost, repeated or out of order. The
sockets and the rings of a listener are read by several workers, and an exporter's socket and its ring often belong to
different ones.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
from collections.abc import Callable

import pytest
from support.lab import Lab, Relay
from support.process import Process, wait_for

PIDFD_GETFD = 438
SOL_UDP, UDP_GRO = 17, 104
RATE = 10_000
HEAVY = pytest.mark.deploy_heavy
RIGHT = {"lost": 0, "repeated": 0, "reordered": 0, "corrupt": 0}


def config(
    lab: Lab, receive: str, *, workers: int = 2, ports: tuple[int, ...] = (2055,), six: bool = False, more: str = ""
) -> str:
    listen = ", ".join(f'"0.0.0.0:{port}", "[::]:{port}"' for port in ports)
    to = f"[{lab.peer6(1)}]" if six else lab.peer4(1)
    text = f"""[datapath]
workers = {workers}
[[listener]]
name = "in"
listen = [{listen}]
receive = "{receive}"
[[receiver]]
name = "one"
to = "{to}:9001"
spoof = true
{more}
[[rule]]
to = ["one"]
"""
    return lab.with_service(text, "samplicator")


def flood(
    lab: Lab, *, six: bool = False, rate: int = 8000, run: int = 4, segment: bool = False, seconds: int = 200
) -> Process:
    """Datagrams of 40 exporters until it is killed, or so long."""
    to, base = (f"[{lab.relay6()}]", "2001:db8:8000::1") if six else (lab.relay4(), "198.18.64.1")
    return lab.load(
        "--to", f"{to}:2055", "--source-base", base, "--exporters", 40, "--source-port", 5000,
        "--rate", rate, "--seconds", seconds, "--size", 300, "--run", run, *(["--segment"] if segment else []),
    )  # fmt: skip


def received(relay: Relay) -> int:
    return relay.metrics().value("receive_datagrams_total", listener="in")


def more(relay: Relay, load: Process, datagrams: int = 1500) -> None:
    """Waits until so many more have been received."""
    before = received(relay)
    wait_for(lambda: received(relay) > before + datagrams, "datagrams", 60)
    assert load.alive


def judged(lab: Lab, sink: Process) -> tuple[int, dict[str, int]]:
    """What the sink got, and what is wrong with it."""
    got = lab.tally(sink)
    return got["received"], {name: got[name] for name in RIGHT}


@pytest.mark.parametrize(
    ("workers", "six", "run", "segment", "offload"),
    [
        pytest.param(2, False, 4, False, False, marks=HEAVY),
        pytest.param(3, True, 1, False, False, marks=HEAVY),
        pytest.param(1, False, 20, True, True, marks=HEAVY),
        (2, True, 20, True, True),  # several datagrams a packet, and coalesced again by the sockets
    ],
)
def test_reloads_turn_rings_on_and_off(
    make_lab: Callable[..., Lab], workers: int, six: bool, run: int, segment: bool, offload: bool
) -> None:
    lab = make_lab(offload=offload)
    relay = lab.samplicator(config(lab, "recvmmsg", workers=workers, six=six))
    sink = lab.sink(1, f"[{lab.peer6(1)}]:9001" if six else f"{lab.peer4(1)}:9001")
    load = flood(lab, six=six, run=run, segment=segment)
    for receive in ("ring", "recvmmsg", "ring", "recvmmsg", "auto", "recvmmsg", "ring"):
        more(relay, load)
        relay.hangup(config(lab, receive, workers=workers, six=six))
        assert relay.api("listeners")[0]["receive"] == ("recvmmsg" if receive == "recvmmsg" else "ring")
    more(relay, load)
    load.kill()
    count, wrong = judged(lab, sink)
    assert wrong == RIGHT
    assert received(relay) == count


@HEAVY
def test_what_the_rings_take_changes(lab: Lab) -> None:
    """Ports come and go, the number of workers changes with them, and another listener joins."""
    relay = lab.samplicator(config(lab, "ring"))
    sink = lab.sink(1, f"{lab.peer4(1)}:9001")
    load = flood(lab)
    for ports, workers in (((2055, 2056), 2), ((2055,), 3), ((2055, 2057), 1), ((2054, 2055), 2), ((2055,), 2)):
        more(relay, load)
        relay.hangup(config(lab, "ring", ports=ports, workers=workers))
    other = f'[[listener]]\nname = "other"\nlisten = ["{lab.relay4()}:2060"]\nreceive = "ring"\n'
    more(relay, load)
    relay.hangup(config(lab, "ring", more=other))
    more(relay, load)
    load.kill()
    count, wrong = judged(lab, sink)
    assert wrong == RIGHT
    assert received(relay) == count


@pytest.mark.parametrize("six", [False, pytest.param(True, marks=HEAVY)])
def test_the_end_repeats_nothing_and_leaves_no_gap(lab: Lab, six: bool) -> None:
    relay = lab.samplicator(config(lab, "ring", six=six))
    sink = lab.sink(1, f"[{lab.peer6(1)}]:9001" if six else f"{lab.peer4(1)}:9001")
    load = flood(lab, six=six)
    more(relay, load)
    relay.send_signal(signal.SIGTERM)
    relay.popen.wait(20)
    assert load.alive
    count, wrong = judged(lab, sink)
    assert count > 1500
    assert wrong == RIGHT


def copied_sockets(pid: int, port: int) -> list[socket.socket]:
    """The process's own UDP sockets on a port: a service manager would have kept them."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    found = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            is_socket = os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:")
        except FileNotFoundError:  # closed meanwhile
            continue
        descriptor = libc.syscall(PIDFD_GETFD, pidfd, int(number), 0) if is_socket else -1
        if is_socket and descriptor < 0 and ctypes.get_errno() == errno.EPERM:
            pytest.skip("a filter of system calls, as of a container, refuses pidfd_getfd(2)")
        if descriptor < 0:
            continue
        sock = socket.socket(fileno=descriptor)
        inet = sock.family in (socket.AF_INET, socket.AF_INET6)
        if inet and sock.type == socket.SOCK_DGRAM and sock.getsockname()[1] == port:
            found.append(sock)
        else:
            sock.close()
    os.close(pidfd)
    return found


def held(sock: socket.socket) -> int:
    """Datagrams that wait in a socket."""
    count = 0
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(65536, 256, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return count
        sizes = [int.from_bytes(value[:4], "little") for *kind, value in ancillary if kind == [SOL_UDP, UDP_GRO]]
        count += -(-len(data) // sizes[0]) if sizes else 1


def killed(make_lab: Callable[..., Lab], receive: str) -> int:
    """Datagrams that are lost when the process is killed."""
    lab = make_lab()
    relay = lab.samplicator(config(lab, receive), expected=(0, -signal.SIGKILL))  # 0: where the test is skipped
    sink = lab.sink(1, f"{lab.peer4(1)}:9001")
    load = flood(lab, rate=RATE, seconds=5)
    more(relay, load)
    kept = copied_sockets(relay.popen.pid, 2055)
    relay.send_signal(signal.SIGKILL)
    relay.popen.wait(20)
    sent = load.result(60)["sent"]
    got = lab.tally(sink)
    waits = sum(held(sock) for sock in kept)
    for sock in kept:
        sock.close()
    assert waits > RATE // 10
    assert {name: got[name] for name in RIGHT} == RIGHT
    return int(sent - got["received"] - waits)


def test_the_sockets_receive_as_soon_as_the_process_is_killed(make_lab: Callable[..., Lab]) -> None:
    """What was in a ring, and in a worker's hands, is lost. The rule goes before the memory of the process is given
    back, which takes longer than all the rest; how long, in the best of a few rounds: a thread must run to end.
    """
    lost: list[int] = []
    while len(lost) < 5 and not (lost and min(lost) <= RATE // 200):
        lost.append(killed(make_lab, "ring"))
    assert 0 <= min(lost) <= RATE // 200, lost
