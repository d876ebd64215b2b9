"""Retry: finds out whether something that this host lacked exists now, by opening a socket and closing it again.

Called by the supervisor, under its lock. Invariants: sockets of one listener take turns, a bounded number at a time;
what is opened here is closed here. It must never keep a socket.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from samplicator._fastpath import TxCounters
from samplicator.datapath.doors import Gateways
from samplicator.datapath.intakes import ListenerState
from samplicator.host import listening
from samplicator.plan.spec import ReceiverSpec
from samplicator.supervisor.outgoing import new_path
from samplicator.supervisor.ports import try_listening

log = logging.getLogger(__name__)

RETRIES: Final = 32
"""Sockets of one listener that are tried again in one go."""


def could_send(wanted: ReceiverSpec, gateways: Gateways) -> bool:
    """Whether a receiver's socket can be opened now."""
    try:
        path = new_path(wanted, None, gateways)
        try:
            path.open_way(TxCounters(), 4096, 0).close()
        finally:
            path.close()
    except OSError:
        return False
    return True


def could_open(
    state: ListenerState,
    on_port: Mapping[int, Sequence[socket.socket]],
    begin: int,
    withhold: Callable[[int], bool],
) -> bool:
    """Whether a socket that a listener lacks can be opened now. on_port: our sockets by port; begin: where to begin in
    the list; withhold: see try_listening.
    """
    keys = list(state.missing)
    begin %= len(keys)
    for key in (keys[begin:] + keys[:begin])[:RETRIES]:
        beside = on_port.get(key.port, ())
        alone = listening.unshared(beside)
        try:
            try_listening(key, beside, withhold)
        except OSError as error:
            why = listening.why_not_listening(key, error)
            if why != state.missing[key]:
                state.missing[key] = why
                log.warning("listener %r is still down: %s; samplicator keeps trying", state.name, why)
        else:
            return True
        finally:
            listening.unshare(alone)
    return False
