"""The messages of a take-over and its token, over a pair of sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from samplicator.service.taking import Refused, Taker
from samplicator.service.talk import FDS, LONGEST, Declined, Ended, Garbled, Silent, Talk, Token, close_all, may_take


@pytest.fixture
def pair() -> Iterator[tuple[Talk, socket.socket]]:
    """A Talk, and the other end as it is."""
    ours, theirs = socket.socketpair()
    talk = Talk(ours)
    yield talk, theirs
    talk.close()
    theirs.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def packed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def test_a_message_and_its_descriptors(pair: tuple[Talk, socket.socket]) -> None:
    talk, theirs = pair
    other = Talk(theirs.dup())
    before = descriptors()
    null = os.open(os.devnull, os.O_RDONLY)
    other.send("sockets", [null] * FDS, labels=["x" * 99] * FDS)
    other.send("all", sockets=FDS)
    message, fds = talk.receive(5, fds=FDS)
    assert (message["say"], len(message["labels"]), len(fds)) == ("sockets", FDS, FDS)
    assert all(os.fstat(fd).st_rdev == os.fstat(null).st_rdev and not os.get_inheritable(fd) for fd in fds)
    close_all([*fds, null])
    assert talk.expect("all", 5) == ({"say": "all", "sockets": FDS}, [])
    assert descriptors() == before
    other.close()


def test_a_message_that_comes_in_parts(pair: tuple[Talk, socket.socket]) -> None:
    """However it is cut, and however often it is looked for in between."""
    talk, theirs = pair
    whole = packed(b'{"say":"working"}')
    for cut in range(1, len(whole)):
        theirs.sendall(whole[:cut])
        with pytest.raises(Silent):
            talk.receive(0.001)
        theirs.sendall(whole[cut:])
        assert talk.receive(5)[0] == {"say": "working"}


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"\0\0\0\1x",
        (LONGEST + 1).to_bytes(4, "big"),
        b"\xff\xff\xff\xff",
        packed(b"hello"),
        packed(b"[1]"),
        packed(b'{"say":1}'),
        packed(b"[" * 100_000),
        packed(b"\xff\xfe"),
    ],
)
def test_nonsense(pair: tuple[Talk, socket.socket], data: bytes) -> None:
    talk, theirs = pair
    theirs.sendall(data)
    with pytest.raises(Garbled):
        talk.receive(5)


def test_descriptors_that_nobody_asked_for(pair: tuple[Talk, socket.socket]) -> None:
    talk, theirs = pair
    before = descriptors()
    null = os.open(os.devnull, os.O_RDONLY)
    socket.send_fds(theirs, [packed(b'{"say":"one"}')], [null] * 250)
    socket.send_fds(theirs, [packed(b'{"say":"two"}')], [null] * 250)
    socket.send_fds(theirs, [packed(b"nonsense")], [null] * 250)
    os.close(null)
    assert talk.receive(5)[1] == []
    _, fds = talk.receive(5, fds=2)
    assert len(fds) == 2
    close_all(fds)
    with pytest.raises(Garbled):
        talk.receive(5, fds=250)
    assert descriptors() == before


def test_no_and_the_end(pair: tuple[Talk, socket.socket]) -> None:
    talk, theirs = pair
    other = Talk(theirs.dup())
    other.send("no", why="because", again=True)
    other.send("working")
    with pytest.raises(Declined, match="because") as declined:
        talk.receive(5)
    assert declined.value.again
    with pytest.raises(Garbled, match="'working' in place of 'hello'"):
        talk.expect("hello", 5)
    other.close()
    theirs.close()
    with pytest.raises(Ended):
        talk.receive(5)
    with pytest.raises(Ended):
        talk.send("working")


def test_a_reader_that_does_not_read(pair: tuple[Talk, socket.socket]) -> None:
    talk, _ = pair

    def fill() -> None:
        for _ in range(1000):
            talk.send("sockets", labels=["x" * 200_000], seconds=0.01)

    with pytest.raises(Silent):
        fill()


def test_one_of_two_gets_the_token() -> None:
    first = Token.new()
    second = Token(os.dup(first.fileno()))
    assert second.take()
    assert second.take()
    assert not first.take()
    assert not first.take()
    first.close()
    second.close()


def test_the_token_outlives_who_made_it() -> None:
    first = Token.new()
    second = Token(os.dup(first.fileno()))
    first.close()
    assert second.take()
    second.close()


def test_who_may_take() -> None:
    assert may_take(os.geteuid())
    assert may_take(0)
    assert not may_take(os.geteuid() + 1)


def test_what_was_said_before_hanging_up_is_heard() -> None:
    """The other process goes on: it must not be taken for one that has ended."""
    ours, theirs = socket.socketpair()
    other, token = Talk(theirs), Token.new()
    other.send("no", why="it is tired of waiting")
    other.close()
    with pytest.raises(Refused, match=r"does not hand over: .*tired of waiting"):
        Taker(Talk(ours), token, 0, "x").ask()
