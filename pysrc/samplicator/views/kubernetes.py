"""The Kubernetes Services that receivers are, and their pods, as they are shown.

Pure: readings in, plain values out. Called by http; the command line draws the same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypedDict

from samplicator.readings import ServiceReading


class ReadyPod(TypedDict):
    """A pod that gets copies."""

    receiver: Annotated[str, "Name of the receiver that the pod is, as /api/v1/receivers has it."]
    pod: str
    node: Annotated[str, "Node that the pod runs on; empty if it is not known."]
    address: str
    port: int


class KubernetesService(TypedDict):
    """A receiver that is a Kubernetes Service."""

    receiver: str
    service: Annotated[str, "The Service and its port, as the configuration has it."]
    followed: Annotated[bool, "true while the API server reports changes; otherwise the last known pods stay in use."]
    why: Annotated[str, "What is wrong; empty if nothing is."]
    since_unix: Annotated[float, "When `followed` became what it is."]
    waiting: Annotated[int, "Pods that are not ready."]
    pods: list[ReadyPod]


def services(readings: Sequence[ServiceReading]) -> list[KubernetesService]:
    """All of them, in the order of the configuration."""
    return [
        {
            "receiver": item.receiver,
            "service": item.service,
            "followed": item.followed,
            "why": item.why,
            "since_unix": item.since_unix,
            "waiting": item.waiting,
            "pods": [
                {
                    "receiver": pod.receiver,
                    "pod": pod.pod,
                    "node": pod.node,
                    "address": pod.address,
                    "port": pod.port,
                }
                for pod in item.pods
            ],
        }
        for item in readings
    ]
