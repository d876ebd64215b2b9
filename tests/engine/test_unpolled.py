"""Sockets that epoll does not take (epoll_ctl(2): ENOSPC, the user's watches are used up; ENOMEM): the worker looks at
them itself, and nothing is lost.

Here epoll refuses because the descriptor is a regular file's (EPERM) when the plan is adopted; then the file is
replaced by the listener's socket, which epoll takes at the next look.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import socket
import tempfile
import threading
from pathlib import Path

import pytest
from samplicator import _fastpath
from samplicator._fastpath import Plan, RxCounters, RxSocket, Tx, TxCounters, Worker
from support.worker import wait_until


def test_a_socket_that_epoll_refuses_is_read_all_the_same() -> None:
    everything = [([(0, bytes(16), bytes(16))], None, [0], False)]
    with (
        tempfile.TemporaryFile() as file,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(10)
        way.connect(collector.getsockname())
        way.setblocking(False)
        received, sent = RxCounters(), TxCounters()
        fd = os.dup(file.fileno())
        rx = RxSocket(fd, received, 0)
        port = collector.getsockname()[1]
        tx = Tx(_fastpath.ENGINE_UDP, way.fileno(), sent, bytes([127, 0, 0, 1]), port)
        worker = Worker()
        worker.publish(Plan(1, [rx], [tx], everything))
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            wait_until(lambda: worker.generation == 1, "the plan")
            assert worker.unpolled == 1
            exporter.sendto(b"waits in the socket", listener.getsockname())
            os.dup2(listener.fileno(), fd)
            assert collector.recv(100) == b"waits in the socket"
            wait_until(lambda: worker.unpolled == 0, "epoll to take it")
            exporter.sendto(b"polled", listener.getsockname())
            assert collector.recv(100) == b"polled"
        finally:
            worker.stop()
            thread.join(10)
            os.close(fd)
        assert not thread.is_alive()
        assert received.read()[_fastpath.RX_FIELDS.index("datagrams")] == 2
        assert sent.read()[_fastpath.TX_FIELDS.index("sent")] == 2


def polled() -> set[int]:
    """The descriptors that some epoll of this process waits on (proc(5), /proc/pid/fdinfo)."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(link) == "anon_inode:[eventpoll]":
                lines = Path(f"/proc/self/fdinfo/{link.name}").read_text().splitlines()
                found |= {int(line.split()[1]) for line in lines if line.startswith("tfd:")}
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="doorbells are for processors that store in order")
def test_epoll_waits_on_the_doorbell_of_a_ring_and_leaves_it_with_its_ring() -> None:
    """The ring itself tells of blocks that are closed only, after the long timer; and an entry that stayed would point
    to a socket that is gone.
    """
    doorbell = os.eventfd(0, os.EFD_NONBLOCK)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ring,
    ):
        way.connect(("127.0.0.1", 9))
        way.setblocking(False)
        tx = Tx(_fastpath.ENGINE_UDP, way.fileno(), TxCounters(), bytes([127, 0, 0, 1]), 9)
        blocks, bell = mmap.mmap(-1, 2 * 65536), mmap.mmap(-1, 4096)
        rx = RxSocket(ring.fileno(), RxCounters(), 0, ring=blocks, block_bytes=65536, bell=bell, bell_fd=doorbell)
        worker = Worker()
        worker.publish(Plan(1, [rx], [tx], []))
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            wait_until(lambda: worker.generation == 1, "the plan")
            assert {doorbell, ring.fileno()} & polled() == {doorbell}
            worker.publish(Plan(2, [], [tx], []))
            wait_until(lambda: worker.generation == 2, "the plan without the ring")
            assert not {doorbell, ring.fileno()} & polled()
        finally:
            worker.stop()
            thread.join(10)
            os.close(doorbell)
        assert not thread.is_alive()
