"""Texts that name a port of a Kubernetes Service, read strictly: k8s://NAMESPACE/SERVICE:PORT.

Pure: text in, frozen value out; every refusal is a ValueError that says what to write instead. Called by config.fields,
config.model and config.validate. It must never ask a cluster anything: whether the Service exists is found out later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

SCHEME: Final = "k8s://"
MUST_BE: Final = "must be k8s://NAMESPACE/SERVICE:PORT, such as k8s://monitoring/collector:netflow"
MEMBER: Final = "/"
"""Between the name of such a receiver and the number of a pod: "siem/0"."""
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_PORT_NAME: Final = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_LIKE_SCHEME: Final = re.compile(r"(k8s|kubernetes|kube|service|svc):/*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a Service. port: the number that its pods listen at, 0 = `port_name`, the name of the Service's port.
    text: as written.
    """

    namespace: str
    service: str
    port: int
    port_name: str
    text: str

    @property
    def host(self) -> str:
        """The Service's name as in the cluster's DNS, for people."""
        return f"{self.service}.{self.namespace}.svc"

    @property
    def place(self) -> str:
        """The Service, for people."""
        return f"{self.namespace}/{self.service}"


def names_service(text: str) -> bool:
    """Whether the text is to name a Service."""
    return text.startswith(SCHEME)


@lru_cache(maxsize=4096)
def parse_service_port(text: str) -> ServicePort:
    """k8s://NAMESPACE/SERVICE:PORT; PORT is a number or the name of the Service's port. Names: RFC 1123 labels, the
    port's as in RFC 6335 section 5.1, both in lower case, as Kubernetes has them.
    """
    rest = text.removeprefix(SCHEME)
    where, colon, port = rest.rpartition(":")
    namespace, slash, service = where.partition("/")
    if not colon or not slash or not namespace or not service:
        raise ValueError(f"{text!r} {MUST_BE}")
    for what, name in (("namespace", namespace), ("Service name", service)):
        if not _LABEL.fullmatch(name):
            example = "monitoring" if what == "namespace" else "collector"
            why = f"must have 1..63 lower-case letters, digits and hyphens, such as {example}"
            raise ValueError(f"{text!r}: the {what} {name!r} {why}")
    if _NUMBER.fullmatch(port):
        if not 1 <= int(port) <= 65535:
            raise ValueError(f"{text!r}: port {port} must be in 1..65535")
        return ServicePort(namespace, service, int(port), "", text)
    if not _PORT_NAME.fullmatch(port):
        why = "must be a number 1..65535 or the name of the Service's port, such as netflow"
        raise ValueError(f"{text!r}: the port {port!r} {why}")
    return ServicePort(namespace, service, 0, port, text)


def check_scheme(text: str) -> None:
    """Refuses what looks like another way to name a Service."""
    if not names_service(text) and _LIKE_SCHEME.match(text):
        raise ValueError(f"{text!r} {MUST_BE}")


def member_name(receiver: str, number: int) -> str:
    """Name of the receiver that one of its pods is."""
    return f"{receiver}{MEMBER}{number}"


def is_member_of(name: str, receiver: str) -> bool:
    """Whether this can be the name of one of its pods."""
    number = name.removeprefix(f"{receiver}{MEMBER}")
    return number != name and bool(_NUMBER.fullmatch(number)) and str(int(number)) == number
