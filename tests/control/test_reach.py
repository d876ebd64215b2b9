"""Whether a receiver's port is open: real sockets on loopback, time made up."""

from __future__ import annotations

import socket
import time

import pytest
from samplicator.plan import ReceiverSpec
from samplicator.reach import IPFIX_EMPTY, Reach


def closed_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def spec(port: int, probe: str) -> ReceiverSpec:
    return ReceiverSpec(
        name="r", address=bytes([127, 0, 0, 1]), port=port, family=4, scope_id=0, host="", engine="raw", engine_why="",
        spoof=True, source=None, checksum=True, freq=1, ttl=64, tos=0, pause_us=0, probe=probe,
    )  # fmt: skip


def run(reach: Reach, now: float, seconds: float) -> list[float]:
    """Steps of 0.1 s; the times at which it came back."""
    back = []
    end = now + seconds
    while now < end:
        if reach.step(now):
            back.append(now)
        now += 0.1
        time.sleep(0.002)  # loopback answers within microseconds
    return back


@pytest.mark.parametrize(("probe", "payload"), [("udp", b""), ("ipfix", IPFIX_EMPTY)])
def test_closed_and_open_again(probe: str, payload: bytes) -> None:
    port = closed_port()
    reach = Reach(spec(port, probe))
    assert run(reach, 100.0, 3.0) == []
    assert reach.refusing
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        back = run(reach, 103.0, 5.0)
        assert len(back) == 1
        assert back[0] - 103.0 < 1.0
        assert not reach.refusing
        sock.settimeout(1)
        assert sock.recv(100) == payload
    reach.close()


def test_auto_asks_only_while_copies_are_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        reach = Reach(spec(sock.getsockname()[1], "auto"))
        assert run(reach, 100.0, 5.0) == []
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(10)
        reach.refused(105.0)
        assert reach.refusing
        assert len(run(reach, 105.0, 3.0)) == 1
        assert run(reach, 108.0, 3.0) == []
    reach.close()


def test_one_that_relapses_is_believed_later() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        reach = Reach(spec(sock.getsockname()[1], "auto"))
        waits, now = [], 100.0
        for _ in range(6):
            reach.refused(now)
            (back,) = run(reach, now, 40.0)[:1]
            waits.append(back - now)
            now = back + 0.5
        assert waits[0] < 1.0
        assert waits[1:] == sorted(waits[1:])
        assert waits[5] >= 16.0
    reach.close()


def test_off_never_asks() -> None:
    reach = Reach(spec(closed_port(), "off"))
    reach.refused(100.0)
    assert run(reach, 100.0, 5.0) == []
    assert not reach.refusing
