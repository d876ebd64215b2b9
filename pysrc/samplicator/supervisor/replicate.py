"""Replicate: what makes copies in the kernel, as the first plan wants it, and where: at the loopback device for frames
(copier), and at the interfaces that listeners are reached by for whole sessions (tcx).

Called by Build and Supervisor, under the supervisor's lock, but for again(). What cannot be had is logged and shown;
the workers make the copies then.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Mapping
from typing import Final

from samplicator._fastpath import Worker
from samplicator.health.running import Running
from samplicator.host.copier import Copier
from samplicator.host.offload import Offload
from samplicator.plan.spec import PlanSpec

log = logging.getLogger(__name__)

EXPRESS_SECONDS: Final = 10.0
NOT: Final = 'replicate = "{}" is not used'


def begin(running: Running, spec: PlanSpec) -> None:
    """Has this process's programs loaded, from its start on, if they are wanted and this host can have them."""
    if running.workers or spec.replicate == "off":
        return
    try:
        running.copier = running.copier or Copier()
    except OSError as error:
        _lacks(spec, error, "the workers make the copies")
    try:
        if spec.replicate in ("tcx", "xdp"):
            express = spec.replicate == "xdp"
            running.offload = running.offload or Offload(spec.workers, spec.ring_buffer, express=express)
    except OSError as error:
        running.no_offload = error.strerror or str(error)
        _lacks(spec, error, "all datagrams come to the sockets")


def _lacks(spec: PlanSpec, error: OSError, instead: str) -> None:
    hint = "; install the unit's drop-in copier.conf" if error.errno in (errno.EPERM, errno.EACCES) else ""
    log.warning('replicate = "%s": %s; %s%s', spec.replicate, error.strerror or error, instead, hint)


def serve(running: Running, worker: Worker, index: int) -> None:
    """A worker that does not run yet gets its part of them."""
    copier, offload = running.copier, running.offload
    try:
        if copier is not None:
            worker.copy_in_kernel(copier.receivers, copier.counters, index, copier.device, copier.token)
        if offload is not None and index >= offload.workers:
            log.warning("replicate: worker %d reads all its datagrams until samplicator is restarted", index)
        elif offload is not None:
            ring, octets, xdp = offload.rings[index], offload.ring_bytes, offload.broadcasts(index)
            worker.offload(offload.maps, ring, octets, index, offload.workers, xdp)
            worker.offload_outputs(offload.express.outputs if offload.express is not None else {})
    except (OSError, ValueError) as error:
        log.warning("replicate: worker %d makes its copies itself: %s", index, error)


def follow(running: Running) -> None:
    """When a plan runs: the program of ingress offload is where its listeners are reached."""
    offload, spec = running.offload, running.spec
    if spec is None:
        return
    for wanted in spec.listeners:
        for intake in running.listeners[wanted.name].sockets() if not wanted.gates else ():
            intake.rx.set_offload(False)
    if not any(wanted.gates for wanted in spec.listeners):
        if offload is not None:
            offload.follow(())
        return
    before_outputs = offload.express.outputs if offload is not None and offload.express is not None else {}
    states = [(running.listeners[wanted.name], wanted) for wanted in spec.listeners if wanted.gates]
    without = {state.slot: running.no_offload for state, _ in states}
    if offload is not None:
        try:
            without = dict(offload.follow([(state.slot, gate) for state, wanted in states for gate in wanted.gates]))
        except OSError as error:
            without = {state.slot: error.strerror or str(error) for state, _ in states}
    _follow_express(running, before_outputs)
    for state, wanted in states:
        why = without.get(state.slot)
        at = offload.interfaces if offload is not None else ()
        served = ", ".join(gate.interface for gate in wanted.gates if gate.interface in at)
        if why is None and not served:
            why = "none of its interfaces carries Ethernet frames"
        for intake in state.sockets():
            intake.rx.set_offload(why is None)
        before = state.receive_why
        how = f"{_kind(running)}: the kernel copies on {served}, before the firewall"
        state.receive_why = f"{NOT.format(spec.replicate)}: {why}" if why else how
        if why and offload is not None and before != state.receive_why:
            log.warning("listener %r: %s", wanted.name, state.receive_why)


def _kind(running: Running) -> str:
    """What copies: XDP where it can, tcx beside it."""
    offload = running.offload
    if offload is None or offload.express is None or not offload.express.interfaces or not offload.express.outputs:
        return "tcx"
    return "xdp and tcx" if offload.no_express else "xdp"


def _follow_express(running: Running, before: Mapping[int, int]) -> None:
    """XDP may send by other interfaces than before."""
    offload, spec = running.offload, running.spec
    if offload is None or spec is None or spec.replicate != "xdp":
        return
    running.express_tried = time.monotonic()
    if offload.express is not None:
        for worker in list(running.workers):
            worker.worker.offload_outputs(offload.express.outputs)
            if before.items() - offload.express.outputs.items():
                worker.worker.offload_again()
    if offload.no_express != running.no_express and offload.no_express:
        log.warning('replicate = "xdp": %s; tcx copies there', "; ".join(offload.no_express))
    running.no_express = offload.no_express


def tidy(running: Running, now: float) -> None:
    """Every few seconds: XDP is tried again, at interfaces where another program was before, or that could not send."""
    offload = running.offload
    if offload is not None and offload.express is not None and now - running.express_tried > EXPRESS_SECONDS:
        follow(running)


def again(running: Running) -> None:
    """Rules of this host have changed: what the kernel copies has to come through them again. Called by any thread."""
    if running.offload is not None:
        for worker in list(running.workers):
            worker.worker.offload_again()


def leave(running: Running) -> None:
    """Before the workers end: all datagrams come to the sockets."""
    if running.offload is not None:
        running.offload.leave()


def close(running: Running) -> None:
    """When the workers have ended."""
    for part in (running.copier, running.offload):
        if part is not None:
            part.close()
