"""Gates: at which interfaces the kernel copies sessions' datagrams, and for which listeners (replicate = "tcx").

Called by Supervisor, under its lock, when a plan runs. What cannot be had is logged once, and the sockets receive.
"""

from __future__ import annotations

import logging

from samplicator.health.running import Running

log = logging.getLogger(__name__)


def follow(running: Running) -> None:
    """The program of ingress offload is where the listeners of the running plan are reached."""
    offload, spec = running.offload, running.spec
    if offload is None or spec is None:
        return
    states = [(running.listeners[wanted.name], wanted) for wanted in spec.listeners]
    gates = [(state.slot, gate) for state, wanted in states for gate in wanted.gates]
    try:
        without = offload.follow(gates)
    except OSError as error:
        log.warning('replicate = "tcx": %s; the sockets receive', error.strerror or error)
        without = {state.slot: "" for state, _ in states}
    for state, wanted in states:
        why = without.get(state.slot)
        if why:
            log.warning('listener %r: replicate = "tcx" is not used: %s', wanted.name, why)
        for intake in state.sockets():
            intake.rx.set_offload(bool(wanted.gates) and why is None)
