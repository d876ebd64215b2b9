"""Rings: when listeners change between their sockets and their rings, and which.

The listener's sockets are always open: they receive before its rings take over, and after. Called by Supervisor, under
its lock, while the running plan names all these intakes. It must never stop the supervisor: if a worker hangs, that is
logged, and the sockets receive.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from samplicator.datapath.changeover import Changeover
from samplicator.datapath.intakes import Intake, RingGroup
from samplicator.health.running import Running
from samplicator.supervisor.build import RingPart

log = logging.getLogger(__name__)


def to_sockets(running: Running, staying: Collection[int] = ()) -> None:
    """Gives the datagrams of all rings that take any back to the sockets, but of groups whose id() stays."""
    groups = [group for group in _groups(running) if group.taking and id(group) not in staying]
    if not groups:
        return
    change = Changeover(running.workers, groups, _sockets(running, groups))
    try:
        change.to_sockets()
        _say("the sockets took over from packet rings", change)
    except TimeoutError as error:
        log.error("packet rings were given up while workers hang, so datagrams may be repeated: %s", error)


def to_rings(running: Running, parts: Sequence[RingPart]) -> None:
    """New rings get their share, and what takes nothing yet takes what its part says."""
    for part in parts:
        if not part.group.taking:
            part.group.spec = part.spec
            part.group.give_back()  # a ring that was opened while the others took something
        try:
            part.group.select()
        except OSError as error:
            log.error("the new rings on %s get no share: %s", part.spec.interface, error.strerror)
    for worker in running.workers if parts else ():
        worker.worker.wake()
    resume(running)


def resume(running: Running) -> None:
    """All rings that take nothing take their datagrams from now on."""
    groups = [group for group in _groups(running) if not group.taking]
    if not groups:
        return
    change = Changeover(running.workers, groups, _sockets(running, groups))
    try:
        for group, error in change.to_rings():
            text = "the ring on %s is not used, and the sockets receive: %s"
            log.error(text, group.spec.interface, error.strerror or error)
        _say("packet rings took over from the sockets", change)
    except TimeoutError as error:
        log.error("packet rings took over while workers hang, so datagrams may be repeated: %s", error)


def _say(what: str, change: Changeover) -> None:
    _, unnoted, left_out = change.read()
    log.debug("%s; %d datagrams came both ways and were forwarded once", what, left_out)
    if unnoted:
        log.warning("%s; %d datagrams more came in that moment than can be noted, and may be repeated", what, unnoted)


def _groups(running: Running) -> list[RingGroup]:
    return [group for state in running.listeners.values() for group in state.rings.values()]


def _sockets(running: Running, groups: Sequence[RingGroup]) -> list[Intake]:
    """Those of the listeners that these rings belong to."""
    chosen = {id(group) for group in groups}
    listeners = [
        state for state in running.listeners.values() if any(id(group) in chosen for group in state.rings.values())
    ]
    return [intake for state in listeners for intake in state.sockets()]
