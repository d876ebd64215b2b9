"""Checks of what comes and goes by transports other than UDP: keys that mean nothing there, certificates, `allow`.

Purpose: findings for a Draft, as config.validate, which calls it. Never raises, never reads a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from samplicator.config.address import parse_source
from samplicator.config.draft import Draft, Finding
from samplicator.config.model.listener import Listener
from samplicator.config.model.receiver import Receiver
from samplicator.config.model.table import Table
from samplicator.config.transport import SCTP

TLS_FILES: Final = ("tls_cert_file", "tls_key_file", "tls_ca_file")
TLS_KEYS: Final = (*TLS_FILES, "tls_names")
UDP_ONLY: Final = (
    "spoof",
    "source",
    "source_port",
    "checksum",
    "ttl",
    "tos",
    "mtu",
    "engine",
    "pause_us",
)
"""Keys of a receiver that say how datagrams are sent."""
SOCKET_ONLY: Final = ("interface", "multicast", "receive")
"""Keys of a listener that say how datagrams are received."""
SCTP_ONLY: Final = ("reliability", "buffer_limit", "streams", "backup")
"""Keys of a receiver that say how associations are used."""
REFRESH: Final = (
    "template_refresh_packets",
    "template_refresh_minutes",
    "options_refresh_packets",
    "options_refresh_minutes",
)


def check_streams(draft: Draft) -> Iterator[Finding]:
    """All findings of listeners and receivers."""
    for index, listener in enumerate(draft.listener):
        if listener is not None:
            yield from _listener(index, listener)
    for index, receiver in enumerate(draft.receiver):
        if receiver is not None:
            yield from _receiver(index, receiver)


def _listener(index: int, listener: Listener) -> Iterator[Finding]:
    schemes = {endpoint.scheme for endpoint in listener.endpoints}
    yield from _tls("listener", index, listener, "tls" in schemes, "listen")
    for key in SOCKET_ONLY:
        if "" not in schemes and _written(listener, key):
            why = f"no entry of `listen` is UDP, and `{key}` is for UDP; remove `{key}`"
            yield Finding(("listener", index, key), why)
    for key in ("allow", "split_bytes"):
        if schemes == {""} and _written(listener, key):
            extra = "; a rule's `from` selects exporters" if key == "allow" else ""
            why = f"`{key}` has no effect without a tcp://, tls:// or sctp:// entry in `listen`; remove `{key}`{extra}"
            yield Finding(("listener", index, key), why)
    if SCTP not in schemes and _written(listener, "streams"):
        why = "`streams` has no effect without an sctp:// entry in `listen`; remove `streams`"
        yield Finding(("listener", index, "streams"), why)
    for entry, text in enumerate(listener.allow):
        source = parse_source(text)
        if source.host:
            why = f"{text!r} must be an address or a prefix, such as 10.0.0.0/8; host names are not allowed here"
            yield Finding(("listener", index, "allow", entry), why)
        elif source.never:
            why = f"{source.text} has bits outside its mask and would never match; write {source.corrected}"
            yield Finding(("listener", index, "allow", entry), why)
    places: dict[tuple[bool, bytes, str, int], int] = {}
    for entry, endpoint in enumerate(listener.endpoints):
        if endpoint.scheme:  # tcp and tls are both TCP ports
            name = endpoint.address or endpoint.host.encode()
            place = (endpoint.scheme == SCTP, name, endpoint.scope, endpoint.port)
            other = places.setdefault(place, entry)
            if other != entry:
                why = f"{endpoint.host} port {endpoint.port} is already in listen[{other}]; remove one of the two"
                yield Finding(("listener", index, "listen", entry), why)


def _receiver(index: int, receiver: Receiver) -> Iterator[Finding]:
    scheme = receiver.endpoint.scheme
    yield from _tls("receiver", index, receiver, scheme == "tls", "to")
    yield from _sctp(index, receiver)
    if not scheme:
        return
    for key in UDP_ONLY:
        if _written(receiver, key):
            why = f"`to` is {scheme}://, and `{key}` is for UDP; remove `{key}`"
            yield Finding(("receiver", index, key), why)
    if receiver.probe in ("udp", "ipfix"):
        why = f"`to` is {scheme}://, which shows by itself whether the receiver is there; remove `probe`"
        yield Finding(("receiver", index, "probe"), why)


def _sctp(index: int, receiver: Receiver) -> Iterator[Finding]:
    if receiver.endpoint.scheme != SCTP:
        for key in SCTP_ONLY:
            if _written(receiver, key):
                why = f"`{key}` has no effect without sctp:// in `to`; remove `{key}`"
                yield Finding(("receiver", index, key), why)
        return
    for key in REFRESH:
        if _written(receiver, key):
            why = f"`to` is sctp://, which loses no template, so that nothing is to be sent again; remove `{key}`"
            yield Finding(("receiver", index, key), why)
    backup, own = receiver.backup, receiver.endpoint
    if backup is not None and (backup.endpoint.host, backup.endpoint.port) == (own.host, own.port):
        yield Finding(("receiver", index, "backup", "to"), "the backup is the receiver itself; write another place")
    if receiver.reliability == "none" and _written(receiver, "buffer_limit"):
        why = 'reliability = "none" sends at once and keeps nothing; remove `buffer_limit`'
        yield Finding(("receiver", index, "buffer_limit"), why)


def _written(table: Table, key: str) -> bool:
    info = type(table).model_fields[key]
    return bool(getattr(table, key) != info.get_default(call_default_factory=True))


def _tls(name: str, index: int, table: Listener | Receiver, wanted: bool, where: str) -> Iterator[Finding]:
    for key in TLS_KEYS:
        there = bool(getattr(table, key))
        if there and not wanted:
            yield Finding((name, index, key), f"`{key}` has no effect without tls:// in `{where}`; remove `{key}`")
        elif wanted and not there and key in TLS_FILES:
            why = f"tls:// needs `{key}`: both sides show certificates (RFC 7011 section 11.3); add `{key}`"
            yield Finding((name, index, where), why)
