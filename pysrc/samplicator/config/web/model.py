"""What a web-config file says, checked. Plain data; the HTTP interface acts on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ClientCert = Literal["none", "optional", "required"]


@dataclass(frozen=True, slots=True)
class Tls:
    """The TLS of the server. Paths are absolute, or relative to the directory that the process runs in; client_ca_file:
    "" = none. min_version, max_version: TLS10 .. TLS13. ciphers: as OpenSSL names them, empty = OpenSSL's own; those of
    TLS 1.3 cannot be chosen. curve: as OpenSSL names it, "" = OpenSSL's own. names: a client's certificate must have
    one of these subject alternative names; empty = any.
    """

    cert_file: str
    key_file: str
    client_ca_file: str = ""
    client_cert: ClientCert = "none"
    min_version: str = "TLS12"
    max_version: str = "TLS13"
    ciphers: tuple[str, ...] = ()
    prefer_server_ciphers: bool = True
    curve: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WebConfig:
    """A web-config file. users: (name, bcrypt hash). headers: (name, value) of every answer. files: the file itself and
    those that it names. digest: of their bytes, so that two of these are equal only if no file has changed.
    """

    path: str
    tls: Tls | None = None
    users: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    files: tuple[str, ...] = ()
    digest: str = ""
