"""EndpointSlices: what the API server tells of the pods of a Service, and which of them get copies.

Pure: objects as the API server sends them in, frozen values out. Nothing in them is trusted: what is not as it must be
is left out. Called by follower and services. Source: discovery.k8s.io/v1 and v1beta1, staging/src/k8s.io/api/discovery
of Kubernetes; "EndpointSlices" on kubernetes.io.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from samplicator.cluster.api import clean
from samplicator.config.kubernetes import ServicePort

FAMILIES: Final = {"IPv4": 4, "IPv6": 6}
MAX_ENDPOINTS: Final = 1000
"""Of one slice, as the API server has it (maxEndpoints)."""
MAX_PORTS: Final = 100
NAMED: Final = 8
"""Ports that a text for people names."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One pod, or what stands for it. uid: which pod it is, its address if that is not known. ready: it takes traffic.
    serving: it is shutting down and still takes traffic.
    """

    address: bytes
    ready: bool
    serving: bool
    name: str
    uid: str
    node: str


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the Service: its name, and the number that the pods listen at."""

    name: str
    protocol: str
    number: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Pods of one address family with the same ports. ports: None = they listen at any."""

    family: int
    endpoints: tuple[Endpoint, ...]
    ports: tuple[Port, ...] | None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The pods that get copies, by uid: endpoint and port. why: why there is none, for people. waiting: pods that are
    not ready.
    """

    pods: Mapping[str, tuple[Endpoint, int]]
    why: str = ""
    waiting: int = 0


def read_slice(item: Mapping[str, Any]) -> tuple[str, Slice]:
    """(name, content) of an EndpointSlice; the name is "" if it has none."""
    metadata = item.get("metadata")
    name = clean(metadata.get("name"), 253) if isinstance(metadata, Mapping) else ""
    family = FAMILIES.get(str(item.get("addressType")), 0)
    rows = item.get("endpoints")
    endpoints = _endpoints(rows[:MAX_ENDPOINTS], family) if isinstance(rows, list) and family else ()
    return name, Slice(family, tuple(endpoints), _ports(item.get("ports")))


def _endpoints(rows: Iterable[Any], family: int) -> Iterable[Endpoint]:
    for row in rows:
        if not isinstance(row, Mapping):
            continue
        addresses = row.get("addresses")
        address = _address(addresses[0], family) if isinstance(addresses, list) and addresses else b""
        if not address:
            continue
        conditions, target, topology = (_mapping(row, key) for key in ("conditions", "targetRef", "topology"))
        ending = conditions.get("terminating") is True
        ready = conditions.get("ready") is not False and not ending  # not known counts as ready
        serving = ending and conditions.get("serving") is True
        node = clean(row.get("nodeName") or topology.get("kubernetes.io/hostname"), 253)
        name = clean(target.get("name"), 253) or str(ipaddress.ip_address(address))
        yield Endpoint(address, ready, serving, name, clean(target.get("uid"), 64) or address.hex(), node)


def _mapping(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = row.get(key)
    return value if isinstance(value, Mapping) else {}


def _address(text: object, family: int) -> bytes:
    """b"": no address that a pod can have (validation.ValidateNonSpecialIP has the same list)."""
    try:
        address = ipaddress.ip_address(text) if isinstance(text, str) and len(text) < 64 else None
    except ValueError:
        return b""
    if address is None or address.version != family or (address.version == 6 and address.ipv4_mapped is not None):
        return b""
    special = address.is_unspecified or address.is_loopback or address.is_link_local or address.is_multicast
    return b"" if special or address == ipaddress.ip_address("255.255.255.255") else address.packed


def _ports(rows: object) -> tuple[Port, ...] | None:
    """None: no port is named (a headless Service without any), or one without a number, which means all."""
    if not isinstance(rows, list) or not rows:
        return None
    found = []
    for row in rows[:MAX_PORTS]:
        number = row.get("port") if isinstance(row, Mapping) else 0
        if number is None and row.get("protocol") == "UDP":
            return None
        if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= 65535:
            found.append(Port(clean(row.get("name"), 63), clean(row.get("protocol"), 8) or "TCP", number))
    return tuple(found)


def choose(slices: Iterable[Slice], wanted: ServicePort, family: int) -> Chosen:
    """Who gets copies. A pod that is in several slices counts once, with its IPv4 address if it has both (family 0).
    While no pod is ready, those that are shutting down and still serve are taken, as kube-proxy does.
    """
    usable = sorted((s for s in slices if s.family and family in (0, s.family)), key=lambda item: item.family)
    ready: dict[str, tuple[Endpoint, int]] = {}
    serving: dict[str, tuple[Endpoint, int]] = {}
    waiting, seen = set(), set()
    others: dict[Port, None] = {}
    for item in usable:
        port = _port(item, wanted)
        if port is None:
            others.update(dict.fromkeys(item.ports or ()))
        for endpoint in item.endpoints:
            seen.add(endpoint.uid)
            if port is None:
                continue
            if endpoint.ready:
                ready.setdefault(endpoint.uid, (endpoint, port))
            elif endpoint.serving:
                serving.setdefault(endpoint.uid, (endpoint, port))
            else:
                waiting.add(endpoint.uid)
    waiting -= ready.keys()
    if ready or serving:
        return Chosen(ready or serving, waiting=len(waiting))
    return Chosen({}, _why(wanted, family, waiting=len(waiting), seen=bool(seen), others=others), len(waiting))


def _port(item: Slice, wanted: ServicePort) -> int | None:
    """Where the pods of a slice listen for it; None: they do not."""
    if item.ports is None:
        return wanted.port or None
    for port in item.ports:
        fits = port.number == wanted.port if wanted.port else port.name == wanted.port_name
        if fits and port.protocol == "UDP":
            return port.number
    return None


def _why(wanted: ServicePort, family: int, *, waiting: int, seen: bool, others: Iterable[Port]) -> str:
    service = f"the Service {wanted.place}"
    if waiting:
        return f"{service} has no ready pod ({waiting} {'is' if waiting == 1 else 'are'} not ready)"
    if not seen:
        kind = f"IPv{family} pod" if family else "pod"
        return f"{service} has no {kind}, or there is no such Service"
    which = f"UDP port {wanted.port or repr(wanted.port_name)}"
    named = [f"{port.number}{f' ({port.name})' if port.name else ''}" for port in others if port.protocol == "UDP"]
    if named:
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        return f"the pods of {wanted.place} have no {which}; write the port that they listen at: " + (
            ", ".join(named[:NAMED]) + more
        )
    return f"the pods of {wanted.place} have no {which}, and {service} has no port with protocol: UDP"
