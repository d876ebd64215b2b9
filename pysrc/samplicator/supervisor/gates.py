"""Gates: at which interfaces the kernel copies sessions' datagrams, and for which listeners (replicate = "tcx").

Called by Supervisor, follow() under its lock, when a plan runs. What cannot be had is logged and shown, and the sockets receive.
"""

from __future__ import annotations

import logging
from typing import Final

from samplicator.health.running import Running

log = logging.getLogger(__name__)

NOT: Final = 'replicate = "tcx" is not used'


def follow(running: Running) -> None:
    """The program of ingress offload is where the listeners of the running plan are reached."""
    offload, spec = running.offload, running.spec
    if spec is None or not any(wanted.gates for wanted in spec.listeners):
        if offload is not None:
            offload.follow(())
        return
    states = [(running.listeners[wanted.name], wanted) for wanted in spec.listeners if wanted.gates]
    without = {state.slot: "the kernel cannot do it" for state, _ in states}
    if offload is not None:
        try:
            without = dict(offload.follow([(state.slot, gate) for state, wanted in states for gate in wanted.gates]))
        except OSError as error:
            without = {state.slot: error.strerror or str(error) for state, _ in states}
    for state, wanted in states:
        why = without.get(state.slot)
        for intake in state.sockets():
            intake.rx.set_offload(why is None)
        if why is not None:
            before, state.receive_why = state.receive_why, f"{NOT}: {why}"
            if offload is not None and before != state.receive_why:
                log.warning("listener %r: %s", wanted.name, state.receive_why)


def again(running: Running) -> None:
    """Rules of this host have changed: what the kernel copies has to come through them again. Called by any thread."""
    if running.offload is not None:
        for worker in list(running.workers):
            worker.worker.offload_again()
