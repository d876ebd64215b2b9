"""Types of the configuration's values: what each value must be, with the error text.

Called by config.model, which puts them into tables. Stricter than pydantic; a type has its own JSON schema if its
checking function has none. Never imports socket or asyncio.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from samplicator.config.address import (
    parse_bind,
    parse_ip,
    parse_own_source,
    parse_size,
    parse_source,
)
from samplicator.config.kubernetes import check_scheme, names_service, parse_service_port
from samplicator.config.probe import parse_probe
from samplicator.config.transport import SCTP, parse_peer, parse_place

MAX_SOCKET_BUFFER = 2**31 - 1
MAX_WEIGHT = 1000
HOST_NAME = re.compile(r"(?!.{254})[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    def check(value: str) -> str:
        parse(value)
        return value

    return check


def _name(value: str) -> str:
    if not value or len(value) > 300 or value != value.strip() or not value.isprintable():
        raise ValueError("a name must have 1..300 printable characters, without blanks before or after")
    return value


def _target(value: str) -> str:
    check_scheme(value)
    (parse_service_port if names_service(value) else parse_peer)(value)
    return value


def _backup(value: str) -> str:
    if parse_peer(value).scheme != SCTP:
        raise ValueError(f"{value!r}: a backup is reached as the receiver is; write sctp://HOST:PORT")
    return value


def check_http(value: str) -> str:
    if value:
        parse_bind(value)
    return value


def check_host_name(value: str) -> str:
    if value != "*" and not HOST_NAME.fullmatch(value):
        raise ValueError(
            f'{value!r} is not a host name; write a name without port, such as relay.example.net, or "*" for every name'
        )
    return value.lower()


def check_control(value: str) -> str:
    if value and not value.startswith("/"):
        raise ValueError(f'{value!r} must be an absolute path; write "" for no control socket')
    if not value.isprintable() or len(value.encode()) > 107:
        raise ValueError("the path must have printable characters only, and at most 107 bytes")
    return value


def check_file(value: str) -> str:
    if not value.isprintable():
        raise ValueError("the path must have printable characters only")
    return value


def check_state_file(value: str) -> str:
    if value and (not value.startswith("/") or value.endswith("/")):
        raise ValueError(f'{value!r} must be the absolute path of a file; write "" for no state file')
    return check_file(value)


def check_interface(value: str) -> str:
    if value and (len(value) > 15 or "/" in value or not value.isprintable() or " " in value):
        raise ValueError(f"{value!r} is not an interface name; write 1..15 characters without blanks, such as eth0")
    return value


def check_group(value: str) -> str:
    literal = parse_ip(value)
    first = literal[1][0] if literal else 0
    if literal is None or not (224 <= first <= 239 if literal[0] == 4 else first == 0xFF):
        raise ValueError(f"{value!r} is not a multicast group; write a group such as 239.1.1.1 or ff05::1")
    return value


def _workers(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 256):
        return value
    raise ValueError('must be a whole number 1..256 or "auto"')


def _number_or(word: str, low: int, high: int) -> Callable[[object], object]:
    def check(value: object) -> object:
        if value == word or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
            return value
        raise ValueError(f'must be a whole number {low}..{high} or "{word}"')

    return check


def _either(low: int, high: int, word: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, {"const": word}]})


def _weights(value: object) -> object:
    values: list[object] | None = None
    if isinstance(value, dict):
        values = list(value.values())
    elif isinstance(value, list):
        values = value
    numbers = [w for w in values or () if isinstance(w, int) and not isinstance(w, bool)]
    if values is None or len(numbers) < len(values) or any(not 1 <= w <= MAX_WEIGHT for w in numbers):
        raise ValueError(
            f"must be whole numbers 1..{MAX_WEIGHT}, one per member, such as [2, 1], or a table, such as {{ NAME = 2 }}"
        )
    return value


_WEIGHT = {"type": "integer", "minimum": 1, "maximum": MAX_WEIGHT}
HostName = Annotated[str, AfterValidator(check_host_name)]
Name = Annotated[str, AfterValidator(_name)]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(ge=1, le=MAX_SOCKET_BUFFER),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_SOCKET_BUFFER},
                {"type": "string", "pattern": "^[0-9]{1,18} ?(B|KiB|MiB|GiB|kB|MB|GB)?$"},
            ]
        }
    ),
]
Workers = Annotated[int | Literal["auto"], BeforeValidator(_workers), _either(1, 256, "auto")]
Ttl = Annotated[int | Literal["keep"], BeforeValidator(_number_or("keep", 1, 255)), _either(1, 255, "keep")]
Tos = Annotated[int | Literal["keep"], BeforeValidator(_number_or("keep", 0, 255)), _either(0, 255, "keep")]
Mtu = Annotated[int | Literal["auto"], BeforeValidator(_number_or("auto", 68, 65535)), _either(68, 65535, "auto")]
Delay = Annotated[int | Literal["auto"], BeforeValidator(_number_or("auto", 0, 100_000)), _either(0, 100_000, "auto")]
ListenText = Annotated[str, AfterValidator(_checked(parse_place))]
TargetText = Annotated[str, AfterValidator(_target)]
BackupText = Annotated[str, AfterValidator(_backup)]
SourceText = Annotated[str, AfterValidator(_checked(parse_source))]
OwnSourceText = Annotated[str, AfterValidator(lambda text: _checked(parse_own_source)(text) if text else text)]
Family = Literal["any", "ipv4", "ipv6"]
Refresh = Annotated[int, Field(ge=0, le=2**32 - 1)]
Minutes = Annotated[int, Field(ge=0, le=10080)]
ProbeText = Annotated[str, AfterValidator(_checked(parse_probe))]
Weights = Annotated[
    list[int] | dict[str, int],
    BeforeValidator(_weights),
    WithJsonSchema(
        {"anyOf": [{"type": "array", "items": _WEIGHT}, {"type": "object", "additionalProperties": _WEIGHT}]}
    ),
]
