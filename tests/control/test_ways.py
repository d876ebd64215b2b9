"""What the kernel refuses a receiver: told once, and when it works again; next hops reach every way."""

from __future__ import annotations

import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from samplicator import _fastpath
from samplicator.health.reach import Reach
from samplicator.health.receiver import ReceiverState
from samplicator.host.interfaces import neighbor_of
from samplicator.host.links import Link
from samplicator.host.netlink import messages
from samplicator.plan.planner import compile
from samplicator.supervisor.supervisor import Supervisor
from support.hosts import Load, free_port, host


def text(port: int, extra: str = "") -> str:
    return f"""[datapath]
workers = 2
[[listener]]
name = "in"
listen = ["127.0.0.1:{port}"]
[[receiver]]
name = "r"
to = "127.0.0.1:9"
{extra}
[[rule]]
to = ["r"]
"""


class Refusing:
    """A way whose kernel refused something."""

    def __init__(self, bits: int) -> None:
        self.gave_up = bits
        self.tx = SimpleNamespace(refusing=False, down=False, unresolved=False)
        self.fallback = None
        self.looped = False
        self.links: list[Link | None] = []

    def set_link(self, link: Link | None) -> None:
        self.links.append(link)

    def close(self) -> None:
        pass


def state_of(load: Load, bits: int) -> ReceiverState:
    spec = compile(load(text(free_port())), {}, host("192.0.2.1"))
    path: Any = SimpleNamespace(link=None, link_words="", mtu=1500, mtu_why="of the route")
    ways: Any = [Refusing(0), Refusing(bits)]
    return ReceiverState(spec.receivers[0], path, 1, 1, {}, ways, Reach(spec.receivers[0]))


def test_a_feature_is_told_once(load: Load) -> None:
    state = state_of(load, _fastpath.GAVE_UP_SEGMENT)
    assert state.newly_given_up() == ("segment",)
    assert state.newly_given_up() == ()
    way: Any = state.ways[0]
    way.gave_up = _fastpath.GAVE_UP_TRANSPARENT | _fastpath.GAVE_UP_SEGMENT
    assert state.newly_given_up() == ("transparent",)
    assert state.read().gave_up == ("segment", "transparent")


def test_a_feature_that_works_again_is_told_once(load: Load) -> None:
    """Asked for again, with copies leaving and not refused: a retry that fails, or an idle receiver, is no news."""
    state = state_of(load, _fastpath.GAVE_UP_SEGMENT)
    counts: Any = SimpleNamespace(sent=0)
    place = _fastpath.TX_FIELDS.index("sent")
    totals = lambda: tuple(counts.sent if i == place else 0 for i in range(len(_fastpath.TX_FIELDS)))  # noqa: E731
    state.counters = {0: SimpleNamespace(read=totals)}  # type: ignore[dict-item]
    way: Any = state.ways[1]
    assert state.newly_given_up() == ("segment",)
    assert state.newly_regained(100.0) == ()
    way.gave_up = 0
    assert state.newly_regained(160.0) == ()
    way.gave_up = _fastpath.GAVE_UP_SEGMENT
    assert (state.newly_given_up(), state.newly_regained(165.0)) == ((), ())
    way.gave_up = 0
    assert state.newly_regained(300.0) == ()
    assert state.newly_regained(320.0) == ()  # nothing was sent
    counts.sent = 5
    assert state.newly_regained(330.0) == ("segment",)
    assert state.newly_regained(340.0) == ()
    way.gave_up = _fastpath.GAVE_UP_SEGMENT
    assert state.newly_given_up() == ("segment",)


def test_a_link_reaches_every_way(load: Load) -> None:
    state = state_of(load, 0)
    link = Link(3, bytes(14), 1500, "eth0")
    state.set_link(link, "words")
    ways: Any = state.ways
    assert [way.links for way in ways] == [[link], [link]]
    assert state.read().link == "words"


def test_housekeeping_logs_one_line(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor()
    supervisor.apply(compile(load(text(free_port())), {}, host()))
    state = supervisor._running.receivers["r"]
    ways, path = state.ways, state.path
    stands: Any = SimpleNamespace(
        refresh=lambda ways: True,
        look=lambda now, ways, counters: None,
        routed=True,
        fault="",
        link_words="",
        mtu=1500,
        mtu_why="",
    )
    wrong: Any = Refusing(_fastpath.GAVE_UP_SEGMENT)
    try:
        state.path = stands
        state.ways = [*ways, wrong]
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                supervisor.housekeeping()
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 1
        assert "receiver 'r': the kernel refuses segmented sends" in lines[0]
        assert supervisor.view.readings().receivers[0].gave_up == ("segment",)
    finally:
        state.ways, state.path = ways, path
        supervisor.drain_and_stop(0.1)


def test_mtu_reaches_udp_and_fallback(load: Load) -> None:
    """The path over loopback: 65536 is more than an IP packet can be."""
    if not host().net_raw or not _can_raw():
        pytest.skip("needs CAP_NET_RAW")
    for extra in ("", "spoof = true"):
        supervisor = Supervisor()
        supervisor.apply(compile(load(text(free_port(), extra)), {}, host()))
        try:
            for way in supervisor._running.receivers["r"].ways:
                assert way.tx.mtu == 65535
                assert way.fallback is None or way.fallback.mtu == 65535
        finally:
            supervisor.drain_and_stop(0.1)


def _can_raw() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()
    except OSError:
        return False
    return True


def test_netlink_messages_are_taken_apart() -> None:
    body = bytes([2, 0, 0, 0]) + (7).to_bytes(4, "little") + bytes(4) + bytes([8, 0, 1, 0, 192, 0, 2, 1])
    one = (16 + len(body)).to_bytes(4, "little") + bytes([28, 0]) + bytes(10) + body
    assert list(messages(one + one)) == [(28, 0, body)] * 2
    assert neighbor_of(body) == (7, bytes([192, 0, 2, 1]))
    assert list(messages(one[:30])) == []
    assert neighbor_of(body[:12]) == (7, b"")
    assert neighbor_of(body[:12] + bytes(4)) == (7, b"")
