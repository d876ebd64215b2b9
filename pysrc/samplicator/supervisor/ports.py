"""Ports: what the sockets of one port have to do with each other, and with the workers' own sockets there.

Called by build, retry and guard. It must never keep a socket.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Final

from samplicator.datapath.intakes import socket_key
from samplicator.datapath.thread import WorkerThread
from samplicator.host import abilities, listening
from samplicator.host.delivery import Host
from samplicator.plan.groupcast import Casts
from samplicator.plan.spec import PlanSpec, SocketSpec

log = logging.getLogger(__name__)

WITHHOLD_SECONDS: Final = 2.0
"""How long the workers may take to let go of a port."""


def withhold_ports(workers: Sequence[WorkerThread], ports: Set[int]) -> None:
    """Makes the workers close their sockets on these ports (for exporters that send from them, for sessions) and open
    none there; waits briefly, because a worker does this between two batches.
    """
    for worker in workers:
        worker.worker.withhold(*ports)
    deadline = time.monotonic() + WITHHOLD_SECONDS
    while time.monotonic() < deadline and not all(w.failed or w.worker.let_go for w in workers):
        time.sleep(0.0005)


def try_listening(key: SocketSpec, beside: Sequence[socket.socket], withhold: Callable[[int], bool]) -> None:
    """Opens a listener's socket and closes it again. When the port is in use, withhold(port) says whether a second try
    makes sense. Raises OSError.
    """
    for again in (False, True):
        try:
            listening.open_listener(key, receive_buffer=4096, ttl=False, tos=False, beside=beside).close()
            return
        except OSError as error:
            if again or error.errno != errno.EADDRINUSE or not withhold(key.port):
                raise


def place_of(key: SocketSpec) -> SocketSpec:
    """The socket as configured, independent of the index that its interface has now."""
    return replace(key, listener=0, index=0, joins=())


def casts_of(spec: PlanSpec) -> Casts:
    """Which socket of a plan takes which broadcast and multicast datagrams, with the host's addresses and interfaces
    now."""
    broadcasts: frozenset[bytes] = frozenset()
    try:
        with Host() as host:
            broadcasts = host.broadcasts()
    except OSError as error:
        log.warning("the broadcast addresses of this host cannot be read: %s", error)
    found = [socket_key(socket) for listener in spec.listeners for socket in listener.sockets]
    return Casts(found, broadcasts, abilities.interface_index)
