"""Guard: keeps what comes in from going round, by what this host's addresses and routes say now.

Two judgements, both made when a plan is to run and again whenever the host changes: which receiver is this host itself
(its copies stop until it is not any more), and which socket takes a broadcast (groupcast). Invariants: no judgement is
better than none: when the host cannot be asked, the last one holds. Called by Supervisor, under its lock. It must never
wait for a worker.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from functools import partial

from samplicator.datapath.intakes import Intake, ListenerState
from samplicator.health.receiver import ReceiverState
from samplicator.host.delivery import Host
from samplicator.plan import loops
from samplicator.plan.groupcast import Casts
from samplicator.plan.spec import PlanSpec
from samplicator.supervisor.build import casts_of

log = logging.getLogger(__name__)


def judge_receivers(spec: PlanSpec, receivers: Mapping[str, ReceiverState]) -> None:
    """Tells the ways of every receiver whether it is this host itself. Their states follow at the next look."""
    ports = {socket.port for listener in spec.listeners for socket in listener.sockets}
    sockets = [socket for listener in spec.listeners for socket in listener.sockets]
    try:
        with Host() as host:
            for state in receivers.values():
                wanted = state.spec
                if wanted.missing or wanted.port not in ports:  # missing: nothing is sent, and its address may be none
                    state.set_own("")
                    continue
                source = wanted.source[0] if wanted.source is not None else b""
                deliver = partial(host.delivery, scope_id=wanted.scope_id)
                hit = loops.loops_into(sockets, wanted.address, wanted.port, source, deliver)
                name = spec.listeners[hit.listener].name if hit is not None else ""
                state.set_own(loops.words(wanted.address, hit, name) if hit is not None else "")
    except OSError as error:
        log.warning("whether receivers are this host cannot be found out now: %s", error)


def share_casts(casts: Casts, listeners: Iterable[ListenerState]) -> None:
    """Has each socket leave broadcast and multicast to the one that is to take them: first those that take less."""
    wanted: list[tuple[Intake, bytes]] = []
    for state in listeners:
        for spec, group in state.intakes.items():
            wanted += [(intake, casts.program(spec, rank)) for rank, intake in enumerate(group)]
        wanted += [(intake, casts.nothing) for intake in state.leaving if isinstance(intake, Intake)]
    for intake, program in sorted(wanted, key=lambda item: not item[1]):
        with contextlib.suppress(OSError):
            intake.filter(program)


def follow_host(spec: PlanSpec, receivers: Mapping[str, ReceiverState], listeners: Iterable[ListenerState]) -> None:
    """The host has changed, or may have."""
    judge_receivers(spec, receivers)
    share_casts(casts_of(spec), listeners)
