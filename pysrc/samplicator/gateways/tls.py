"""TLS for IPFIX (RFC 7011 section 11): contexts in which both sides show a certificate, and why one was refused.

Invariants: TLS 1.2 or later; no session without a certificate of the peer that the authorities signed; files are read
again for new sessions when they have changed, and if they cannot be read then, the last good ones hold. Called by
stream. It must never say more of a key than the path of its file.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from typing import Final

from samplicator.plan.sessions import Tls

_Stamp = tuple[tuple[int, int, int], ...]
NO_PASSWORD: Final = b""


class Contexts:
    """The context of each Tls and side, made when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[tuple[Tls, bool], tuple[_Stamp, ssl.SSLContext]] = {}

    def get(self, tls: Tls, *, server: bool) -> ssl.SSLContext:
        """Raises OSError when the files cannot be used and never could."""
        key = tls, server
        known = self._made.get(key)
        stamp = _stamp(tls)
        if known is not None and (known[0] == stamp or not stamp):
            return known[1]
        try:
            context = new_context(tls, server=server)
        except OSError:
            if known is None:
                raise
            return known[1]
        self._made[key] = stamp, context
        return context


def _stamp(tls: Tls) -> _Stamp:
    try:
        found = [os.stat(path) for path in (tls.cert_file, tls.key_file, tls.ca_file)]
    except OSError:
        return ()
    return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)


def new_context(tls: Tls, *, server: bool) -> ssl.SSLContext:
    """Raises OSError with a text for the operator."""
    for path in (tls.cert_file, tls.key_file, tls.ca_file):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise OSError(error.errno, f"{path}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = not server and not tls.names
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: NO_PASSWORD)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise OSError(f"{tls.key_file} is not the key of {tls.cert_file}; name the two files of one pair") from None
        raise OSError(f"{tls.cert_file}, {tls.key_file}: OpenSSL cannot use them: {error.reason or error}") from None
    try:
        context.load_verify_locations(tls.ca_file)
    except ssl.SSLError as error:
        raise OSError(f"{tls.ca_file}: OpenSSL finds no certificate in it: {error.reason or error}") from None
    return context


def names_in(certificate: object) -> list[str]:
    """The DNS names and addresses that a certificate (SSLObject.getpeercert()) is for."""
    found = certificate.get("subjectAltName", ()) if isinstance(certificate, dict) else ()
    return [str(value) for kind, value in found if kind in ("DNS", "IP Address")]


def why_not(certificate: object, wanted: tuple[str, ...]) -> str:
    """Why a peer with this certificate is refused, "" = it has one of the names. wanted: () = any will do."""
    names = names_in(certificate)
    if not wanted or any(_matches(name, one) for name in names for one in wanted):
        return ""
    shown = "".join(c if c.isprintable() else "?" for c in ", ".join(names[:4]))[:200]
    return f"the peer's certificate is for {shown or 'no name'}, not for {' or '.join(wanted[:4])}"


def _matches(name: str, wanted: str) -> bool:
    """RFC 9525: `*` stands for the whole first label; addresses are compared as such."""
    name, wanted = name.lower().rstrip("."), wanted.lower().rstrip(".")
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(wanted)
    except ValueError:
        pass
    if name.startswith("*."):
        return wanted.partition(".")[2] == name[2:] and bool(wanted.partition(".")[0])
    return name == wanted


def reason(error: BaseException) -> str:
    """Why a handshake failed or a session broke, for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        text = (error.reason or str(error)).lower().replace("_", " ")
        if "alert" in text:
            return f"the peer refuses: TLS {text[text.index('alert') :]}"
        if text == "peer did not return a certificate":
            return "the peer shows no certificate"
        if text in ("wrong version number", "http request", "unknown protocol"):
            return "the peer does not speak TLS"
        return f"TLS: {text}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionResetError | EOFError) and not getattr(error, "strerror", ""):
        return "the peer closed the connection"
    if isinstance(error, OSError):
        said = os.strerror(error.errno) if error.errno else error.strerror  # event loops write texts of their own
        return said or str(error) or type(error).__name__
    return str(error) or type(error).__name__
