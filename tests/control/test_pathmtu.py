"""The path MTU of a receiver, asked by echo requests: routers that take less, hosts that do not answer, paths that
change.

The network is played: a path is a list of links' MTUs, and whether the far host answers.
"""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from samplicator.host import pathmtu
from samplicator.host.pathmtu import ROUND_SECONDS, SILENT_ROUNDS, PathMtu

ADDRESS = bytes.fromhex("20010db8000000000000000000000002")


class Network:
    """links: MTUs from our interface on; black: a link that drops what is too long and says nothing."""

    def __init__(self, *links: int, answers: bool = True, black: int = 0) -> None:
        self.links = list(links)
        self.answers = answers
        self.black = black
        self.sent: list[int] = []
        self.errors: list[tuple[int, int]] = []
        self.replies: list[bytes] = []
        self.unreachable = False
        self.is_open = False

    def open(self, address: bytes, scope_id: int) -> Network:
        assert address == ADDRESS
        if self.unreachable:
            raise OSError(errno.ENETUNREACH, "")
        self.errors, self.replies = [], []
        self.is_open = True
        return self

    def send(self, packet: bytes) -> None:
        size = len(packet) + 40
        if size > self.links[0]:
            self.errors.append((1, self.links[0]))
            raise OSError(errno.EMSGSIZE, "")
        self.sent.append(size)
        for mtu in self.links[1:]:
            if size > mtu:
                if mtu != self.black:
                    self.errors.append((3, mtu))
                return
        if self.answers:
            self.replies.append(b"\x81\0\0\0" + packet[4:8])

    def recvmsg(self, _: int, __: int, flags: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        if not self.errors:
            raise BlockingIOError(errno.EAGAIN, "")
        origin, info = self.errors.pop(0)
        return b"", [(41, 25, struct.pack("=IBBBBII", errno.EMSGSIZE, origin, 2, 0, 0, info, 0) + bytes(28))], 0, None

    def recv(self, size: int) -> bytes:
        if not self.replies:
            raise BlockingIOError(errno.EAGAIN, "")
        return self.replies.pop(0)[:size]

    def close(self) -> None:
        self.is_open = False


class Clock:
    def __init__(self, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pathmtu, "_open", network.open)
        self.network = network
        self.path = PathMtu(ADDRESS, 0)
        self.now = 1000.0
        self.changes = 0

    def run(self, seconds: float) -> tuple[int, bool]:
        end = self.now + seconds
        while self.now < end:
            self.changes += self.path.step(self.now)
            self.now += 0.1
        return self.path.learned, self.path.doubtful


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize(
    ("links", "learned"),
    [
        ((1500,), 0),
        ((1500, 1500, 9000), 0),
        ((1500, 1400), 1400),
        ((9000, 4000, 1500, 1300), 1300),
        ((1500, 576), 1280),
    ],
)
def test_what_routers_say(monkeypatch: pytest.MonkeyPatch, links: tuple[int, ...], learned: int, answers: bool) -> None:
    clock = Clock(Network(*links, answers=answers), monkeypatch)
    assert clock.run(1.0) == (learned, False)
    for _ in range(30):  # half an hour later nothing has changed
        assert clock.run(ROUND_SECONDS) == (learned, False)
    assert len(clock.network.sent) <= 31 * pathmtu.ROUND_LIMIT
    assert max(clock.network.sent) == links[0]


@pytest.mark.parametrize("answers", [True, False])
def test_nothing_is_open_between_two_rounds(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    clock = Clock(Network(1500, 1400, answers=answers), monkeypatch)
    for _ in range(3):
        clock.run(0.2)
        sent = len(clock.network.sent)
        clock.run(ROUND_SECONDS / 2)
        assert sent
        assert not clock.network.is_open
        clock.run(ROUND_SECONDS / 2)


def test_a_path_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(Network(1500, 1400), monkeypatch)
    assert clock.run(1.0) == (1400, False)
    clock.network.links = [1500, 1300]
    assert clock.run(ROUND_SECONDS + 1) == (1300, False)
    clock.network.links = [1500, 1450]
    assert clock.run(ROUND_SECONDS + 1) == (1450, False)
    clock.network.links = [1500]
    assert clock.run(ROUND_SECONDS + 1) == (0, False)
    assert clock.changes == 4


def test_a_host_that_never_answers_and_a_path_that_gets_wider(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(Network(1500, 1400, answers=False), monkeypatch)
    assert clock.run(1.0) == (1400, False)
    clock.network.links = [1500, 1500]
    assert clock.run(ROUND_SECONDS * (SILENT_ROUNDS - 2)) == (1400, False)
    assert clock.run(ROUND_SECONDS * 4) == (0, False)


def test_long_ones_lost_without_a_word_are_told_and_not_acted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(Network(1500, 1400, black=1400), monkeypatch)
    assert clock.run(10.0) == (0, True)
    clock.network.links = [1500]
    assert clock.run(ROUND_SECONDS) == (0, False)
    assert clock.changes == 2


def test_no_route_now_and_one_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(Network(1500, 1400), monkeypatch)
    clock.network.unreachable = True
    assert clock.run(1.0) == (0, False)
    clock.network.unreachable = False
    assert clock.run(ROUND_SECONDS + 1) == (1400, False)


@pytest.mark.parametrize("mtu", [65536, 65535, 1280])
def test_the_loopback_and_the_smallest_links_are_not_asked(monkeypatch: pytest.MonkeyPatch, mtu: int) -> None:
    clock = Clock(Network(mtu), monkeypatch)
    assert clock.run(5.0) == (0, False)
    assert clock.network.sent == []


def test_answers_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's echo reply, a stale one, a short packet: all from the receiver's address."""
    clock = Clock(Network(1500, 1400, answers=False), monkeypatch)
    clock.path.step(clock.now)
    clock.network.errors.clear()
    clock.network.replies += [b"", b"\x81", b"\x81\0\0\0\0\0\0\0", bytes(8)]
    assert clock.run(0.5) == (0, False)
