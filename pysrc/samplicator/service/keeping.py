"""Keeping: what lives on when the process ends: the sockets of the listeners, which systemd holds meanwhile, and the
state file.

Purpose: a restart loses no datagram, since they wait in the sockets, and for collectors it looks like a short silence.
Invariants: systemd has each socket that it takes, under the label of the socket, and no other; a socket that it does
not have is read out before the process ends; a state file that cannot be written is shown, said once in the log, and
hinders nothing. Called by service, on any thread.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

from samplicator.config.model.service import Service
from samplicator.host.bound import worker_of
from samplicator.host.sockets import cookie
from samplicator.host.sources import HandedIn
from samplicator.host.systemd import Notifier, take_sockets
from samplicator.supervisor.supervisor import Supervisor
from samplicator.views.service import StateFile

log = logging.getLogger(__name__)

SAVE_SECONDS: Final = 60.0
"""How often the state file is written: so much of what was learnt is lost at most when the process is killed."""
STATE_NAME: Final = "samplicator.state"


def state_path(service: Service, environ: Mapping[str, str] | None = None) -> str:
    """Path of the state file, "" = none. Where the operator says nothing, it is in the first directory of
    StateDirectory= of the systemd unit.
    """
    if "state_file" in service.model_fields_set:
        return service.state_file
    folder = (os.environ if environ is None else environ).get("STATE_DIRECTORY", "").partition(":")[0]
    return os.path.join(folder, STATE_NAME) if folder else ""


class Kept:
    """The sockets that systemd holds. source: the sockets that it passed to this process."""

    def __init__(self, notifier: Notifier, given: Sequence[tuple[str, socket.socket]] | None = None) -> None:
        """given: None = what systemd has passed, which can be taken once."""
        self._notifier = notifier
        taken = take_sockets() if given is None else given
        self._units = frozenset(label for label, _ in taken if worker_of(label) < 0)  # a socket unit holds them
        self._stored = {label: cookie(sock) for label, sock in taken if label not in self._units}
        self._came = dict(self._stored)
        self._said = 0
        self._lock = threading.Lock()
        self._left = False
        self.source = HandedIn(taken)

    def store(self, supervisor: Supervisor) -> None:
        """Has systemd hold the sockets that run, as far as it takes them, and no others. Nothing after leave(): the
        sockets are closed then, and systemd is to keep them.
        """
        if self._notifier.store_limit == 0:
            return
        with self._lock:
            if self._left:
                return
            ours = sorted((each for each in supervisor.sockets() if each[0] not in self._units), key=_rank)
            limit = self._notifier.store_limit
            wanted = dict(ours[:limit] if limit > 0 else ours)
            now = {label: _number(sock) for label, sock in wanted.items()}
            for label in [label for label, number in self._stored.items() if now.get(label) != number]:
                if self._left or not self._notifier.unstore(label):
                    break  # a manager that does not read: each further message would wait as long
                del self._stored[label]
            for label, sock in wanted.items():
                if label not in self._stored and now[label]:
                    if self._left or not self._notifier.store(label, sock):
                        break
                    self._stored[label] = now[label]
            if self._left:
                return
            missing = len(ours) - sum(label in self._stored for label, _ in ours)
            if missing and missing != self._said:
                text = (
                    "%d of %d sockets are not in systemd's file descriptor store: datagrams that come for them while "
                    "the process restarts are lost; set FileDescriptorStoreMax=%d or more in the unit"
                )
                log.warning(text, missing, len(ours), len(ours))
            self._said = missing

    def leave(self, supervisor: Supervisor, timeout: float) -> None:
        """The end of the datapath. What systemd holds keeps its datagrams; all else is forwarded before, for at most
        `timeout` seconds. A store() under way on another thread ends before: which sockets are held must not change.
        """
        self._left = True
        with self._lock:
            held = self._held()
            if self._units or (held and held == self._stored.keys()):
                supervisor.leave({*self._units, *held})
            else:
                supervisor.drain_and_stop(timeout, refuse=not self._stored)

    def _held(self) -> set[str]:
        """What systemd holds for certain. Before version 254 it does not say how many it takes, and tells only the
        journal when it refuses one; then it is sure of those that it has passed to this process.
        """
        if self._notifier.store_limit > 0:
            return set(self._stored)
        return {label for label, number in self._stored.items() if self._came.get(label) == number}


def _number(sock: socket.socket) -> int:
    """Its cookie; 0: a reload has closed it meanwhile, after which store() is called again."""
    try:
        return cookie(sock)
    except OSError:
        return 0


def _rank(labeled: tuple[str, socket.socket]) -> tuple[int, str]:
    """First sockets first: of each listener one is to be stored, if there is not room for all."""
    return worker_of(labeled[0]), labeled[0]


def save(supervisor: Supervisor, shown: StateFile) -> None:
    """Writes the state file, if there is one. Says a failure once, and what is well again, too."""
    if not shown.path:
        return
    try:
        saved = supervisor.save_state()
    except OSError as error:
        why = error.strerror or str(error)
        if why != shown.why:
            log.warning("state file %s cannot be written: %s; samplicator goes on without it", shown.path, why)
        shown.why = why
        return
    if saved is not None:
        if shown.why:
            log.info("state file %s is written again", shown.path)
        shown.why = ""
        shown.saved_unix, shown.domains, shown.left_out = time.time(), saved.domains, saved.left_out
