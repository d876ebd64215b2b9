"""Who is unresolved, against the kernel's own neighbor table in a namespace of its own."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable

import pytest
from samplicator.host.neighbors import PATIENCE_SECONDS, Neighbors, attributes

CLONE_NEWNET = 0x40000000


def in_namespace(work: Callable[[], None]) -> None:
    """Runs `work` in a thread with a network namespace of its own, which goes with the thread."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("six", [False, True])
def test_a_dead_next_hop_is_found_and_forgotten_when_it_answers(six: bool) -> None:
    def work() -> None:
        ip("link", "set", "lo", "up")
        ip("link", "add", "a0", "type", "veth", "peer", "name", "a1")
        own, dead, behind = (
            ("2001:db8::1", "2001:db8::9", "2001:db8:1::7") if six else ("198.18.0.1", "198.18.0.9", "198.19.0.7")
        )
        ip("addr", "add", own + ("/64" if six else "/24"), "dev", "a0", *(["nodad"] if six else []))
        ip("link", "set", "a0", "up")
        ip("link", "set", "a1", "up")
        ip("route", "add", behind, "via", dead)
        family = socket.AF_INET6 if six else socket.AF_INET
        receivers = {
            "dead": (socket.inet_pton(family, dead), 0),
            "behind": (socket.inet_pton(family, behind), 0),
            "own": (socket.inet_pton(family, own), 0),
        }
        table = Neighbors()
        assert table.look(receivers) == set()
        with socket.socket(family, socket.SOCK_DGRAM) as sock:

            def seen() -> set[str]:
                sock.sendto(b"x", (behind, 9))
                return table.look(receivers)

            begun = time.monotonic()
            assert wait_for(lambda: bool(seen()), 5)
            assert time.monotonic() - begun >= PATIENCE_SECONDS * 0.9
            assert seen() == {"dead", "behind"}
            ip("neigh", "replace", dead, "lladdr", "02:00:00:00:00:09", "dev", "a0")
            assert seen() == set()

    in_namespace(work)


def test_broken_attributes_end_the_walk() -> None:
    assert list(attributes(b"\x08\x00\x01\x00abcd\x03\x00", 0)) == [(1, b"abcd")]
    assert list(attributes(b"\x02\x00\x01\x00", 0)) == []
    assert list(attributes(b"\xff\x00\x01\x00", 0)) == []
