"""Certificates and keys of the TLS server: checked while a configuration is read, and made ready for use.

Invariants: nothing is asked at a terminal (a key with a passphrase is an error); `context` opens what `faults` has
checked. Called by config.web.load, and by http for each new context. Imported only when TLS is configured.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from samplicator.config.files import read_regular
from samplicator.config.web.model import Tls

MAX_PEM_BYTES: Final = 4 << 20
VERSIONS: Final = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}
_WHAT: Final = {
    "cert_file": ("a certificate", b"-----BEGIN CERTIFICATE-----"),
    "key_file": ("a private key", b"PRIVATE KEY-----"),
    "client_ca_file": ("a certificate", b"-----BEGIN CERTIFICATE-----"),
}
_ALT_NAME: Final = bytes.fromhex("0603551d11")
"""Object identifier 2.5.29.17, subjectAltName (RFC 5280 section 4.2.1.6), in DER."""
_DNS_NAME: Final = 0x82


class _Locked(ValueError):
    """The key has a passphrase."""


def _no_passphrase() -> str:
    raise _Locked("the key has a passphrase; write it without one (`openssl pkey -in OLD -out NEW`)")


def context(tls: Tls) -> ssl.SSLContext:
    """A context of the server. Raises OSError (ssl.SSLError is one) or ValueError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version, made.maximum_version = VERSIONS[tls.min_version], VERSIONS[tls.max_version]
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if tls.prefer_server_ciphers:
        made.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        made.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if tls.ciphers:
        made.set_ciphers(":".join(tls.ciphers))
    if tls.curve:
        made.set_ecdh_curve(tls.curve)
    made.load_cert_chain(tls.cert_file, tls.key_file, _no_passphrase)
    if tls.client_cert != "none":
        made.load_verify_locations(tls.client_ca_file)
        made.verify_mode = ssl.CERT_REQUIRED if tls.client_cert == "required" else ssl.CERT_OPTIONAL
    return made


def faults(tls: Tls) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of the files."""
    unfit = False
    for key, (what, mark) in _WHAT.items():
        path = getattr(tls, key)
        if not path:
            continue
        try:
            data = read_regular(path, MAX_PEM_BYTES)
        except (OSError, ValueError) as error:
            who = "; let the user that samplicator runs as read it" if isinstance(error, PermissionError) else ""
            yield key, f"{path} cannot be read: {getattr(error, 'strerror', None) or error}{who}"
            unfit = True
            continue
        if mark not in data:
            yield key, f"{path} has no PEM block of {what} ({mark.decode()}); name such a file"
            unfit = True
    if unfit:
        return
    try:
        context(tls)
    except _Locked as error:
        yield "key_file", f"{tls.key_file}: {error}"
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason == "KEY_VALUES_MISMATCH":
            yield "key_file", f"{tls.key_file} is not the key of {tls.cert_file}; name the two files of one pair"
        elif reason in ("NO_CIPHER_MATCH", "NO_CIPHERS_AVAILABLE"):
            yield "cipher_suites", "this OpenSSL has none of them; remove the key"
        else:
            yield "cert_file", f"{tls.cert_file}, {tls.key_file}: OpenSSL cannot use them: {reason or error}"
    except (OSError, ValueError) as error:
        yield "cert_file", f"{tls.cert_file}, {tls.key_file} cannot be used: {error}"


def doubts(tls: Tls, now: datetime | None = None) -> Iterator[tuple[str, str]]:
    """(key, what is doubtful) of files without faults: a certificate that has expired, or is about to."""
    ends = _not_after(tls.cert_file)
    if ends is not None:
        left = ends - (now or datetime.now(UTC))
        if left.total_seconds() < 0:
            yield "cert_file", f"{tls.cert_file} expired at {ends:%Y-%m-%d %H:%M} UTC; clients refuse it; renew it"
        elif left.days < 7:
            yield "cert_file", f"{tls.cert_file} expires at {ends:%Y-%m-%d %H:%M} UTC; renew it"


def _not_after(path: str) -> datetime | None:
    """The end of the first certificate's validity: the second of two times in its DER (RFC 5280 section 4.1.2.5)."""
    der = _first(path)
    for place in range(len(der) - 32):
        begin = _time(der, place)
        if begin is not None and (end := _time(der, place + 2 + der[place + 1])) is not None:
            return end
    return None


def _time(der: bytes, place: int) -> datetime | None:
    kinds = {(0x17, 13): "%y%m%d%H%M%SZ", (0x18, 15): "%Y%m%d%H%M%SZ"}
    form = kinds.get((der[place], der[place + 1])) if place + 2 < len(der) else None
    if form is None:
        return None
    try:
        return datetime.strptime(der[place + 2 : place + 2 + der[place + 1]].decode("ascii"), form).replace(tzinfo=UTC)
    except ValueError:
        return None


def host_names(path: str) -> frozenset[str]:
    """The DNS names, in lower case, of the first certificate in a file; empty when there are none."""
    der, found = _first(path), set[str]()
    place = der.find(_ALT_NAME)
    while place >= 0 and not found:
        found |= _dns_names(der, place + len(_ALT_NAME))
        place = der.find(_ALT_NAME, place + 1)
    return frozenset(found)


def _dns_names(der: bytes, place: int) -> set[str]:
    """Of OCTET STRING { SEQUENCE { GeneralName ... } } at a place; `critical` may come before."""
    found: set[str] = set()
    if der[place : place + 2] == b"\x01\x01":
        place += 3
    for kind in (0x04, 0x30):
        if place + 2 > len(der) or der[place] != kind:
            return found
        length, place = _length(der, place + 1)
    end = min(place + length, len(der))
    while place + 2 <= end:
        kind = der[place]
        length, place = _length(der, place + 1)
        if kind == _DNS_NAME and place + length <= end:
            found.add(der[place : place + length].decode("ascii", "replace").lower())
        place += length
    return found


def _length(der: bytes, place: int) -> tuple[int, int]:
    """A length in DER, and the place behind it."""
    first = der[place]
    if first < 0x80:
        return first, place + 1
    count = first & 0x7F
    return int.from_bytes(der[place + 1 : place + 1 + count], "big"), place + 1 + count


def _first(path: str) -> bytes:
    """The first certificate of a PEM file in DER; empty when it has none."""
    try:
        text = read_regular(path, MAX_PEM_BYTES).decode("ascii", "replace")
        begin, end = text.index(ssl.PEM_HEADER), text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
        return ssl.PEM_cert_to_DER_cert(text[begin:end])
    except (OSError, ValueError):
        return b""
