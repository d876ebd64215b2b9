"""The pods of a Kubernetes Service, as the planner knows them.

Pure and frozen. Made by cluster, which follows a Service; read by planner and by those who show what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from samplicator.config.kubernetes import ServicePort


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that is ready. number: its place among the pods, kept while it is there; the pod that comes after it gets
    the place. uid: which pod it is: one with the same name and address can be another one. address: 4 or 16 bytes.
    node: the host that it runs on, "" = not known.
    """

    number: int
    name: str
    uid: str
    address: bytes
    port: int
    node: str = ""


@dataclass(frozen=True, slots=True)
class Pods:
    """The ready pods of a Service, by number. why: why there is none, for people, "" when there are some. warning: what
    is wrong although there are some, "" = nothing.
    """

    pods: tuple[Pod, ...] = ()
    why: str = ""
    warning: str = ""


PodsOf = Callable[[ServicePort, int], Pods]
"""(port of a Service, address family wanted: 0 any, 4 or 6) -> its pods. Any thread; never waits."""

NO_CLUSTER: Final = "nobody has asked the cluster for its pods"


def no_pods(wanted: ServicePort, family: int) -> Pods:
    """Of a planner that knows no cluster."""
    return Pods(why=NO_CLUSTER)
