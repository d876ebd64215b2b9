"""Services: the Kubernetes Services that a configuration names, each followed, and their pods with a number each.

Purpose: what planner asks for pods. Invariants: a pod keeps its number while it is ready, and the one that comes after
it gets the number, so that names of receivers, and with them metrics, are few; nothing waits for the API server but
wait(). Called by reload (begin, wait, adopt), by planner through Capabilities (pods), by views (readings) and by the
command line. Thread-safe.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from samplicator.cluster.api import Account
from samplicator.cluster.follower import Follower, Picture
from samplicator.cluster.slices import Chosen, Endpoint, choose
from samplicator.config.address import address_text
from samplicator.config.kubernetes import ServicePort
from samplicator.config.model.loaded import Loaded
from samplicator.plan.names import FAMILIES
from samplicator.plan.pods import Pod, Pods
from samplicator.plan.spec import ReceiverSpec
from samplicator.readings import PodReading, ServiceReading, wall_ns

MAX_PODS: Final = 128
"""Pods of a Service that get copies; each is a receiver with sockets of its own."""
_NUMBERS: Final = re.compile(r"(\d+)")


class Services:
    """Those in use. changed: called when the pods of one may be others, on a thread of its own."""

    def __init__(self, changed: Callable[[], None] = lambda: None, account: Account | None = None) -> None:
        self._changed = changed
        self._account = account or Account()
        self._lock = threading.Lock()
        self._followers: dict[tuple[str, str], Follower] = {}
        self._numbers: dict[tuple[str, int], dict[str, int]] = {}
        self._troubles: dict[tuple[str, int], str] = {}
        self._waiting: dict[tuple[str, int], int] = {}
        self._used: list[tuple[str, ServicePort, int]] = []  # by the plan that runs
        self._receiving: tuple[ReceiverSpec, ...] = ()  # the pods of that plan
        self._closed = False

    def begin(self, loaded: Loaded) -> None:
        """Follows the Services that a configuration names, and goes on with the others."""
        for _, wanted, _ in named(loaded):
            key = (wanted.namespace, wanted.service)
            with self._lock:
                if self._closed or key in self._followers:
                    continue
                follower = self._followers[key] = Follower(*key, self._account, self._changed)
            follower.start()

    def wait(self, seconds: float) -> None:
        """Until each has answered once, or failed once, at most `seconds`."""
        until = time.monotonic() + seconds
        with self._lock:
            followers = list(self._followers.values())
        for follower in followers:
            follower.answered.wait(max(0.0, until - time.monotonic()))

    def adopt(self, loaded: Loaded, receivers: Sequence[ReceiverSpec] = ()) -> None:
        """These are in use from now on; all others are forgotten. receivers: of the plan that runs."""
        used = named(loaded)
        keys = {(wanted.namespace, wanted.service) for _, wanted, _ in used}
        with self._lock:
            self._used = used
            self._receiving = tuple(receiver for receiver in receivers if receiver.pod is not None)
            gone = [self._followers.pop(key) for key in self._followers.keys() - keys]
            kept = {(wanted.text, family) for _, wanted, family in used}
            for table in (self._numbers, self._troubles, self._waiting):
                for place in table.keys() - kept:
                    del table[place]
        for follower in gone:
            follower.stop()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            followers = list(self._followers.values())
        for follower in followers:
            follower.stop()

    def pods(self, wanted: ServicePort, family: int) -> Pods:
        """As Capabilities.pods: its ready pods now, each with its number."""
        with self._lock:
            follower = self._followers.get((wanted.namespace, wanted.service))
            picture = follower.picture if follower is not None else Picture(why="it is not followed")
            if picture.slices is None:
                found, chosen = Pods(why=f"the pods of {wanted.place} are not known: {picture.why}"), Chosen({})
            else:
                chosen = choose(picture.slices, wanted, family)
                found = self._numbered(wanted, family, chosen, left_out=picture.left_out)
            self._troubles[wanted.text, family] = found.why or found.warning
            self._waiting[wanted.text, family] = chosen.waiting
            return found

    def _numbered(self, wanted: ServicePort, family: int, chosen: Chosen, *, left_out: bool) -> Pods:
        numbers = self._numbers.setdefault((wanted.text, family), {})
        for uid in numbers.keys() - chosen.pods.keys():
            del numbers[uid]
        free = iter(sorted(set(range(MAX_PODS)) - set(numbers.values())))
        for uid in sorted(chosen.pods, key=lambda uid: _order(chosen.pods[uid][0])):
            if uid not in numbers and (number := next(free, None)) is not None:
                numbers[uid] = number
        warning = ""
        if len(chosen.pods) > len(numbers) or left_out:
            warning = f"the Service {wanted.place} has more than {len(numbers)} ready pods; the others get no copies"
        found = sorted((number, uid) for uid, number in numbers.items())
        return Pods(tuple(_pod(number, *chosen.pods[uid]) for number, uid in found), chosen.why, warning)

    def readings(self) -> tuple[ServiceReading, ...]:
        """Those that the running plan uses, with the pods that it sends to, in the order of the configuration."""
        with self._lock:
            return tuple(self._reading(*each) for each in self._used)

    def _reading(self, receiver: str, wanted: ServicePort, family: int) -> ServiceReading:
        follower = self._followers.get((wanted.namespace, wanted.service))
        picture = follower.picture if follower is not None else Picture()
        pods = [(each.name, each.pod) for each in self._receiving if each.written == receiver]
        return ServiceReading(
            receiver=receiver,
            service=wanted.text,
            followed=not picture.why,
            why=picture.why or self._troubles.get((wanted.text, family), ""),
            since_unix=wall_ns(int(picture.since * 1e9)) / 1e9,
            waiting=self._waiting.get((wanted.text, family), 0),
            pods=tuple(
                PodReading(name, pod.name, pod.node, address_text(pod.address), pod.port)
                for name, pod in pods
                if pod is not None
            ),
        )


def named(loaded: Loaded) -> list[tuple[str, ServicePort, int]]:
    """(receiver, port of a Service, address family) of each receiver that is a Service."""
    found = []
    for receiver in loaded.config.receiver:
        wanted, own = receiver.service_port, receiver.own_source
        if wanted is not None:
            found.append((receiver.name, wanted, FAMILIES[receiver.family] or (own[0] if own is not None else 0)))
    return found


def services_once(loaded: Loaded, seconds: float = 5.0) -> Services:
    """For the command line: asks for the pods of a configuration once; to be closed."""
    services = Services()
    services.begin(loaded)
    services.wait(seconds)
    services.adopt(loaded)
    return services


def _pod(number: int, endpoint: Endpoint, port: int) -> Pod:
    return Pod(number, endpoint.name, endpoint.uid, endpoint.address, port, endpoint.node)


def _order(endpoint: Endpoint) -> tuple[list[tuple[int, str]], bytes]:
    """collector-2 before collector-10."""
    parts = _NUMBERS.split(endpoint.name)
    return [(int(p), "") if p.isdigit() and len(p) < 18 else (-1, p) for p in parts], endpoint.address
