"""Texts of addresses, endpoints, sources and sizes, read strictly.

Purpose: the only module that knows how operators write addresses. Pure functions: text in, frozen values out. Every
refusal is a ValueError whose text says what is wrong and what to write instead; no other exception is raised. Called by
config.model (field checks), config.legacy, config.validate and the planner. Never resolves a name and never imports
socket: a host name stays text here.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from functools import lru_cache

MAPPED = b"\0" * 10 + b"\xff\xff"
"""First 12 bytes of an IPv4 address in its IPv4-mapped form."""
ALL_ONES = b"\xff" * 16
ANY = bytes(16)
MAX_LISTEN_PORTS = 4096
"""Largest number of ports in one `listen` entry."""

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", re.ASCII)
_NUMERIC = re.compile(r"(0[xX][0-9A-Fa-f]*|\d+)(\.(0[xX][0-9A-Fa-f]*|\d+))*\.?", re.ASCII)
_OCTAL = re.compile(r"(\d+\.)*0\d+(\.\d+)*", re.ASCII)
_SCOPE = re.compile(r"[!-~]{1,15}", re.ASCII)
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)
_SIZE = re.compile(r"(\d{1,18}) ?([A-Za-z]*)", re.ASCII)
_UNITS = {
    "": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "kB": 1000, "MB": 1000**2, "GB": 1000**3,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ParsedSource:
    """The exporters that a rule's source selects: those with `(exporter & mask) == address`, of that family.

    family: 0 any, 4 or 6. address, mask: 16 bytes; IPv4 is held IPv4-mapped (::ffff:a.b.c.d) with a mask of 96 one bits
    and the IPv4 mask. "Any" is family 0 and all zero. Masks may be non-contiguous. text: as written. host: "" for a
    literal. A host name otherwise: then address is all zero, mask is the mask to apply to each address the name
    resolves to (all ones = that address alone), family the wanted family (0 = both); the control plane resolves it.
    """

    family: int
    address: bytes
    mask: bytes
    text: str
    host: str = ""

    @property
    def any(self) -> bool:
        """Matches every exporter of both families."""
        return self.family == 0 and not self.host

    @property
    def never(self) -> bool:
        """Host bits are set outside the mask: no exporter can ever match."""
        return bool(int.from_bytes(self.address, "big") & ~int.from_bytes(self.mask, "big"))

    def selects(self, address: bytes) -> bool:
        """Whether an address of 4 or 16 bytes is one of these exporters'. Of a host name: never."""
        if self.family not in (0, 4 if len(address) == 4 else 6) or self.host:
            return False
        wide = int.from_bytes(address if len(address) == 16 else MAPPED + address, "big")
        return wide & int.from_bytes(self.mask, "big") == int.from_bytes(self.address, "big")

    @property
    def corrected(self) -> str:
        """The same source with its host bits cleared, as text."""
        base = (int.from_bytes(self.address, "big") & int.from_bytes(self.mask, "big")).to_bytes(16, "big")
        tail = self.text.partition("/")[2]
        return f"{address_text(base)}/{tail}" if tail else address_text(base)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`HOST:PORT` or `HOST:LO-HI`. host: address in its shortest form, without brackets and scope, or a host name.

    family: 4 or 6 for a literal (an IPv4-mapped one counts as IPv4), 0 for a host name. address: 4 or 16 bytes, b"" for
    a name. ports: low and high end, equal for one port. scope: the interface after "%", "" when none. scheme: the
    transport, "" = UDP (config.transport).
    """

    host: str
    family: int
    address: bytes
    port: int
    last_port: int
    scope: str = field(default="")
    scheme: str = ""

    @property
    def literal(self) -> bool:
        return self.family != 0

    @property
    def unspecified(self) -> bool:
        """0.0.0.0 or [::]."""
        return self.literal and not any(self.address)


def address_text(address: bytes) -> str:
    """Shortest text of a 4 or 16 byte address; an IPv4-mapped one is written as IPv4."""
    if len(address) == 16 and address.startswith(MAPPED):
        address = address[12:]
    return str(ipaddress.ip_address(address))


def address_bytes(text: str) -> bytes:
    """4 or 16 bytes of an address that is known to be one; its scope is ignored."""
    return ipaddress.ip_address(text.partition("%")[0]).packed


def endpoint_text(host: str, port: int | str) -> str:
    """`HOST:PORT`, with brackets where the host has colons."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_ip(text: str) -> tuple[int, bytes, str] | None:
    """(family, 4 or 16 bytes, scope) of a literal; None when it cannot be one (a host name). ValueError for a malformed
    literal."""
    if ":" in text:
        try:
            six = ipaddress.IPv6Address(text)
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv6 address; write it as 2001:db8::1") from None
        if six.ipv4_mapped is not None and not six.scope_id:
            return 4, six.ipv4_mapped.packed, ""
        if six.scope_id and not _SCOPE.fullmatch(six.scope_id):
            raise ValueError(f"{text!r}: {six.scope_id!r} is not an interface name; write fe80::1%eth0")
        return 6, six.packed, six.scope_id or ""
    if not _NUMERIC.fullmatch(text):
        return None
    try:
        return 4, ipaddress.IPv4Address(text).packed, ""
    except ValueError:
        if _OCTAL.fullmatch(text):
            why = "some programs read a number with a leading zero as octal"
            raise ValueError(f"{text!r}: {why}; write {_decimal(text)}") from None
        raise ValueError(f"{text!r} is not an IPv4 address; write four numbers 0..255, such as 192.0.2.1") from None


def _decimal(text: str) -> str:
    """What a text with leading zeros can mean."""
    parts = text.split(".")
    plain = ".".join(part.lstrip("0") or "0" for part in parts)
    if any(len(part) > 1 and part[0] == "0" and set(part) & set("89") for part in parts):
        return plain
    octal = ".".join(str(int(part, 8)) if part[0] == "0" else part for part in parts)
    return f"{plain}, or {octal} if the numbers are octal" if octal != plain else plain


def check_host_name(text: str) -> str:
    """The text, when it can be a host name."""
    if not text:
        raise ValueError("the host is missing; write an address or a host name before the colon")
    if not text.isascii():
        raise ValueError(f"{text!r}: a host name must be ASCII; write its xn--... form")
    bare = text.removesuffix(".")
    if len(bare) > 253 or not all(_LABEL.fullmatch(label) for label in bare.split(".")):
        raise ValueError(
            f"{text!r} is not an address and not a host name; write 192.0.2.1, 2001:db8::1 or host.example"
        )
    return text


def parse_port(text: str) -> int:
    """A port number, 1..65535."""
    if not _DIGITS.fullmatch(text):
        raise ValueError(
            f"port {text!r} must be a number 1..65535" if text else "the port is missing; write a number 1..65535"
        )
    port = int(text)
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} must be in 1..65535")
    return port


def split_endpoint(text: str, wanted: str) -> tuple[str, bool, str]:
    """(host, bracketed, text after the colon) of HOST:PORT or [HOST]:PORT. `wanted`: the right form, for the error
    text."""
    if "://" in text:
        raise ValueError(f"{text!r} is a URL; write {wanted}")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ValueError(f"{text!r} must be {wanted}")
        return host, True, rest[1:]
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r}: the port is missing; write {wanted}")
    if ":" in host:
        if _is_six(text) and "%" not in host:  # after "%" anything is an interface, a colon too
            why = "an IPv6 address must be in brackets and followed by a port"
            raise ValueError(f"{text!r}: {why}; write [{text}]:2055")
        if _is_six(host):
            raise ValueError(f"{text!r}: an IPv6 address must be in brackets; write [{host}]:{port}")
        raise ValueError(f"{text!r} must be {wanted}")
    return host, False, port


def _is_six(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _endpoint(text: str, wanted: str, *, port_range: bool) -> Endpoint:
    host, bracketed, ports = split_endpoint(text, wanted)
    literal = parse_ip(host) if host else None
    if bracketed and ":" not in host:
        raise ValueError(f"{text!r}: only IPv6 addresses are written in brackets; write {host}:{ports}")
    low, dash, high = ports.partition("-") if port_range else (ports, "", "")
    first = parse_port(low)
    last = parse_port(high) if dash else first
    if last < first:
        raise ValueError(f"port range {ports} must begin with the lower port; write {last}-{first}")
    if last - first >= MAX_LISTEN_PORTS:
        count = last - first + 1
        raise ValueError(f"port range {ports} has {count} ports; one entry can have at most {MAX_LISTEN_PORTS}")
    if literal is None:
        return Endpoint(check_host_name(host), 0, b"", first, last)
    family, address, scope = literal
    return Endpoint(address_text(address), family, address, first, last, scope)


@lru_cache(maxsize=4096)
def parse_listen(text: str) -> Endpoint:
    """A `listen` entry: ADDR:PORT, ADDR:LO-HI, [v6]:PORT. A host name is allowed; it is resolved once, at start."""
    return _endpoint(text, "ADDRESS:PORT, such as 0.0.0.0:2055, 0.0.0.0:9990-9999 or [::]:2055", port_range=True)


@lru_cache(maxsize=65536)
def parse_target(text: str) -> Endpoint:
    """A receiver's `to`: HOST:PORT or [v6]:PORT."""
    endpoint = _endpoint(text, "HOST:PORT, such as 192.0.2.10:9995 or [2001:db8::1]:9995", port_range=False)
    if endpoint.unspecified:
        raise ValueError(f"{text!r}: copies cannot be sent to {endpoint.host}; write the receiver's own address")
    return endpoint


def parse_bind(text: str) -> Endpoint:
    """The address of a TCP service: HOST:PORT or [v6]:PORT, 0.0.0.0 and [::] allowed."""
    return _endpoint(text, "HOST:PORT, such as 127.0.0.1:9420 or [::1]:9420", port_range=False)


def parse_own_source(text: str) -> tuple[int, bytes, int]:
    """A receiver's `source`: (family, address, port; 0 = the kernel chooses) of ADDR, ADDR:PORT, [v6] or [v6]:PORT."""
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} must be ADDRESS or ADDRESS:PORT, such as 192.0.2.1:2055 or [2001:db8::1]:2055")
        port = rest
    elif text.count(":") == 1:
        host, colon, number = text.partition(":")
        port = colon + number
    literal = parse_ip(host) if host else None
    if literal is None or literal[2]:
        why = "must be a literal address, with or without a port, such as 192.0.2.1:2055 or [2001:db8::1]:2055"
        raise ValueError(f"{text!r} {why}")
    if not any(literal[1]):
        raise ValueError(f"{text!r}: the unspecified address cannot be a source; remove `source`")
    return literal[0], literal[1], parse_port(port[1:]) if port else 0


def source_of(family: int, address: bytes, mask: str | None, text: str) -> ParsedSource:
    """A literal source from its parts. mask: None = that host alone, decimal prefix length, or (IPv4) dotted. Host bits
    may be set."""
    width = 32 if family == 4 else 128
    if mask is None:
        bits = (1 << width) - 1
    elif family == 4 and "." in mask:
        try:
            bits = int(ipaddress.IPv4Address(mask))
        except ValueError:
            raise ValueError(f"{text!r}: {mask!r} is not an IPv4 mask; write a mask such as 255.255.255.0") from None
    elif not _DIGITS.fullmatch(mask) or int(mask) > width:
        raise ValueError(f"{text!r}: the prefix length {mask!r} must be a number 0..{width}")
    else:
        bits = ((1 << int(mask)) - 1) << (width - int(mask))
    if family == 4:
        return ParsedSource(4, MAPPED + address, _mask(b"\xff" * 12, bits), text)
    return ParsedSource(6, address, _mask(b"", bits), text)


@lru_cache(512)
def _mask(head: bytes, bits: int) -> bytes:
    """16 bytes that end in `bits`; equal ones are one object."""
    return head + bits.to_bytes(16 - len(head), "big")


EVERYTHING = ParsedSource(0, ANY, ANY, "")
"""The source of a rule that names none."""


def _host_source(host: str, mask: str | None, text: str) -> ParsedSource:
    if mask is None:
        return ParsedSource(0, ANY, ALL_ONES, text, host)
    if host[0].isdigit():
        raise ValueError(f"{text!r} must be an IPv4 or IPv6 prefix, such as 10.0.0.0/8 or 2001:db8::/32")
    family = 6 if _DIGITS.fullmatch(mask) and int(mask) > 32 else 4
    literal = source_of(family, bytes(4 if family == 4 else 16), mask, text)
    return ParsedSource(family, ANY, literal.mask, text, host)


@lru_cache(maxsize=65536)
def parse_source(text: str) -> ParsedSource:
    """An entry of `from`: ADDRESS, ADDRESS/PREFIX, IPv4/MASK, or a host name. Host bits are kept (see
    ParsedSource.never)."""
    addr, slash, mask = text.partition("/")
    if not addr:
        raise ValueError(f"{text!r} must be an address or a prefix, such as 10.0.0.0/8 or 2001:db8::/32")
    if addr.startswith("["):
        bare = text.replace("[", "").replace("]", "")
        raise ValueError(f"{text!r}: an address in `from` is written without brackets; write {bare}")
    literal = parse_ip(addr)
    if literal is None:
        return _host_source(check_host_name(addr), mask if slash else None, text)
    family, address, scope = literal
    if scope:
        raise ValueError(
            f"{text!r}: a source cannot name an interface; remove the % part and name the rule's `listener`"
        )
    if (
        family == 4 and ":" in addr and slash
    ):  # IPv4-mapped: the prefix length counts the 96 bits before the IPv4 address
        if not _DIGITS.fullmatch(mask) or not 96 <= int(mask) <= 128:
            raise ValueError(f"{text!r}: this is an IPv4 source; write it as IPv4, {address_text(address)}/LENGTH")
        mask = str(int(mask) - 96)
    return source_of(family, address, mask if slash else None, text)


def parse_size(value: object) -> int:
    """Bytes: a whole number, or text with a unit, as "64MiB"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in _UNITS:
        raise ValueError('must be a number of bytes or a size with its unit, such as 67108864, "64MiB" or "512KiB"')
    return int(match[1]) * _UNITS[match[2]]


def size_text(size: int) -> str:
    """The shortest exact text of a size."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
