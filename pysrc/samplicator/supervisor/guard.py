"""Guard: prevents loops and duplicates, from the addresses and routes that this host has now.

Three judgments, made when a plan is to run and again whenever the host changes: which receiver is this host itself (no
copies are sent while it is), which socket takes a broadcast (groupcast), and which socket receives nothing because its
address was removed. Invariants: when the host cannot be asked, the last judgment stays. Called by Supervisor, under its
lock. It must never wait for a worker.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Iterable, Mapping
from functools import partial

from samplicator.datapath.intakes import Intake, ListenerState
from samplicator.health.receiver import ReceiverState
from samplicator.host.delivery import Host
from samplicator.plan import loops
from samplicator.plan.groupcast import Casts
from samplicator.plan.spec import PlanSpec, SocketSpec
from samplicator.supervisor.ports import casts_of

log = logging.getLogger(__name__)


def judge_receivers(spec: PlanSpec, receivers: Mapping[str, ReceiverState]) -> None:
    """Tells the ways of every receiver whether it is this host itself. Their states follow at the next look."""
    ports = {socket.port for listener in spec.listeners for socket in listener.sockets}
    sockets = [socket for listener in spec.listeners for socket in listener.sockets]
    try:
        with Host() as host:
            for state in receivers.values():
                wanted = state.spec.network
                if wanted is None or wanted.port not in ports:
                    state.set_own("")
                    continue
                source = wanted.source[0] if wanted.source is not None else b""
                deliver = partial(host.delivery, scope_id=wanted.scope_id)
                hit = loops.loops_into(sockets, wanted.address, wanted.port, source, deliver)
                name = spec.listeners[hit.listener].name if hit is not None else ""
                state.set_own(loops.words(wanted.address, hit, name) if hit is not None else "")
    except OSError as error:
        log.warning("the kernel does not say now which receivers are addresses of this host: %s", error)


def judge_listeners(listeners: Iterable[ListenerState]) -> None:
    """Finds the sockets whose address was removed from this host. They stay bound, and receive again when the address
    is back, as with a pair of routers (VRRP). An IPv4 address whose interface is down is still this host's.
    """
    try:
        with Host() as host:
            for state in listeners:
                before = state.down_why()
                state.absent = {key: absent(key) for key in list(state.intakes) if not _hears(host, key)}
                say_listener(state, before)
    except OSError as error:
        log.warning("the kernel does not say now which listening addresses this host has: %s", error)


def absent(key: SocketSpec) -> str:
    return f"{key.address} is not an address of this host now"


def _hears(host: Host, key: SocketSpec) -> bool:
    """Whether datagrams to the socket's address come to this host: by its own routes, or by those of its interface (a
    VRF has others).
    """
    address = ipaddress.ip_address(key.address.partition("%")[0])
    if address.is_unspecified or address.is_multicast:
        return True
    indexes = {0, key.index} if "%" not in key.address else {key.index}
    return any(host.delivery(loops.unmapped(address.packed), index).kind != loops.AWAY for index in indexes)


def say_listener(listener: ListenerState, before: str) -> None:
    """Logs what a listener lacks, when that is news. before: down_why() until now."""
    now = listener.down_why()
    if now and now != before:
        log.warning("listener %r is %s: %s; samplicator keeps trying", listener.name, listener.state, now)
    elif before and not now:
        log.info("listener %r is up; all its sockets are open", listener.name)


def share_casts(casts: Casts, listeners: Iterable[ListenerState]) -> None:
    """Sets the filters that leave broadcast and multicast to one socket; first those of sockets that take less."""
    wanted: list[tuple[Intake, bytes]] = []
    for state in listeners:
        for spec, group in state.intakes.items():
            wanted += [(intake, casts.program(spec, rank)) for rank, intake in enumerate(group)]
        gone = [intake for intake in state.leaving if isinstance(intake, Intake) and not intake.passed_on]
        wanted += [(intake, casts.nothing) for intake in gone]
    for intake, program in sorted(wanted, key=lambda item: not item[1]):
        with contextlib.suppress(OSError):
            intake.filter(program)


def follow_host(spec: PlanSpec, receivers: Mapping[str, ReceiverState], listeners: Iterable[ListenerState]) -> None:
    """The host has changed, or may have."""
    listeners = list(listeners)
    judge_receivers(spec, receivers)
    judge_listeners(listeners)
    share_casts(casts_of(spec), listeners)
