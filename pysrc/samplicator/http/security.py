"""Who may ask over TCP: the name in the request, credentials, certificates. The control socket is protected by its file
mode alone.

Purpose: `refusal` says no, or nothing. Reading needs a user of the web-config file, if it has users; everything that
changes something needs a bearer token, always. Invariants: what is refused is counted, logged once a minute with the
number of others, and answered at a bounded cost (attempts, passwords); no answer depends on how much of a secret is
right. The state is that of the configuration that runs: a reload changes it from the next request and connection on.
Called by app for each request and by front for each connection.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from aiohttp import web

from samplicator.config.address import parse_bind
from samplicator.http.attempts import Attempts, client_of
from samplicator.http.passwords import Busy, Passwords
from samplicator.logs import RateGate

if TYPE_CHECKING:
    from samplicator.config.web.model import WebConfig
    from samplicator.views.service import ServiceState

log = logging.getLogger(__name__)

SAFE: Final = ("GET", "HEAD")
MAX_CREDENTIALS: Final = 1024
"""Bytes of a header Authorization that are looked at."""
NAME_WITHOUT_DOT: Final = re.compile(r"[a-z0-9_-]*")
REALM: Final = 'realm="samplicator"'
TOKENS: Final = "service.reload_token_file"


class Security:
    """Of one server."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state
        self._attempts = Attempts()
        self._gate = RateGate()
        self._web: WebConfig | None = None
        self._passwords: Passwords | None = None
        self._names: frozenset[str] = frozenset()
        self._headers: dict[str, str] = {}
        self._own = frozenset((socket.gethostname().lower(),))
        self._context: ssl.SSLContext | None = None
        self._context_of: WebConfig | None = None
        self._opening = asyncio.Lock()

    def start(self) -> None:
        """Before the first request by TCP. A name server may take long to tell the full name of this host."""
        threading.Thread(target=self._learn, name="own-name", daemon=True).start()

    def _learn(self) -> None:
        full = socket.getfqdn().lower().rstrip(".")
        if full.startswith(socket.gethostname().lower().partition(".")[0] + "."):
            self._own |= {full}

    def close(self) -> None:
        """At the end."""
        if self._passwords is not None:
            self._passwords.close()

    # ------------------------------------------------------------------ connections

    async def context(self) -> ssl.SSLContext | None:
        """The TLS of a new connection; None = it is plain. Raises OSError or ValueError when there is none although
        there should be: never is a connection plain then.
        """
        async with self._opening:
            current = self._state.loaded.web
            if current != self._context_of:
                made = None
                if current is not None and current.tls is not None:
                    from samplicator.config.web import certificates

                    try:
                        made = await asyncio.to_thread(certificates.context, current.tls)
                        self._names = await asyncio.to_thread(certificates.host_names, current.tls.cert_file)
                    except (OSError, ValueError) as error:  # the files changed since they were checked
                        if self._say("certificates"):
                            log.error("the certificate cannot be opened; samplicator tries again: %s", error)
                        if self._context is None:
                            raise
                        return self._context
                self._context, self._context_of = made, current
            return self._context

    # ------------------------------------------------------------------ requests

    @property
    def headers(self) -> Mapping[str, str]:
        """What the web-config file adds to each answer over TCP; "" takes a header away."""
        self._follow()
        return self._headers

    async def refusal(self, request: web.Request, *, guarded: bool) -> web.Response | None:
        """The answer to a request over TCP that may not be; None = it may. guarded: it changes something."""
        self._follow()
        client = client_of(request.transport.get_extra_info("peername") if request.transport is not None else None)
        named = host_of(request.headers.get("Host", ""))
        if not self._knows(named):
            if count := self._count("host"):
                log.warning(
                    "HTTP requests for a host name that is not known here: %d, the last one for %.80r from %s; "
                    "if the name is right, add it to service.http_hosts",
                    *(count, named, client),
                )
            return _no(421, f"{named[:80]!r} is no name of this host; add it to service.http_hosts, or use an address")
        if not self._has_name(request):
            if count := self._count("certificate"):
                log.warning("HTTP clients whose certificate has no name in client_allowed_sans: %d", count)
            return _no(403, "the certificate of the client has none of the names in client_allowed_sans")
        if self._passwords is None and not guarded:
            return None
        return await self._credentials(request, client, guarded)

    def _follow(self) -> None:
        """The configuration that runs now."""
        current = self._state.loaded.web
        if current != self._web:
            self.close()
            self._passwords = Passwords(dict(current.users)) if current is not None and current.users else None
            self._headers = dict(current.headers) if current is not None else {}
            self._web = current

    def _knows(self, named: str) -> bool:
        """A page of another host can make a browser ask here under that host's name (DNS rebinding), but not under an
        address: the browser would call it another page; nor under a name without a dot, which only the resolver of the
        browser's own network can know.
        """
        service = self._state.loaded.config.service
        bound = parse_bind(service.http).host.lower() if service.http else ""
        if NAME_WITHOUT_DOT.fullmatch(named) or named == bound or named in self._own or named in self._names:
            return True
        if named in service.http_hosts or "*" in service.http_hosts:
            return True
        if named.endswith(".localhost") or f"*.{named.partition('.')[2]}" in self._names:
            return True
        try:
            ipaddress.ip_address(named.partition("%")[0])
        except ValueError:
            return False
        return True

    def _has_name(self, request: web.Request) -> bool:
        wanted = self._web.tls.names if self._web is not None and self._web.tls is not None else ()
        transport = request.transport
        if not wanted or transport is None:
            return True
        shown = transport.get_extra_info("peercert") or {}
        names = [value for _, value in shown.get("subjectAltName", ())]
        return not shown or any(name in wanted for name in names)

    async def _credentials(self, request: web.Request, client: str, guarded: bool) -> web.Response | None:
        header = request.headers.get("Authorization", "")
        scheme, _, given = header.partition(" ")
        scheme, given = scheme.lower(), given.strip()
        users, tokens = self._passwords, self._state.tokens
        if guarded and not tokens and (users is None or not header):
            self._state.http_refused["credentials"] += 1
            return _no(403, f"changes over TCP are off; use the control socket (`samplicator reload`) or set {TOKENS}")
        if not header:
            return self._ask(guarded)
        now = time.monotonic()
        if len(header) <= MAX_CREDENTIALS:
            basic = _basic(given) if scheme == "basic" and users is not None else None
            known = users.known(*basic) if users is not None and basic is not None else None
            if known is not None:
                return self._allowed(guarded) if known else self._wrong(client, guarded)
            if wait := self._attempts.wait(client, now):
                return self._later(client, wait)
            if scheme == "bearer" and _is_one_of(given, tokens):
                return None
            if users is not None and basic is not None:
                try:
                    if await users.check(*basic):
                        return self._allowed(guarded)
                except Busy:
                    return self._later(client, 5.0)
        self._attempts.failed(client, now)
        return self._wrong(client, guarded)

    def _wrong(self, client: str, guarded: bool) -> web.Response:
        if count := self._say("credentials"):
            log.warning("HTTP requests with wrong credentials: %d, the last one from %s", count, client)
        return self._ask(guarded)

    def _allowed(self, guarded: bool) -> web.Response | None:
        """A user of the web-config file is known; a user may read."""
        if not guarded:
            return None
        if not self._state.tokens:
            self._state.http_refused["credentials"] += 1
            return _no(403, f"a user may only read; use the control socket (`samplicator reload`) or set {TOKENS}")
        return self._ask(guarded)

    def _ask(self, guarded: bool) -> web.Response:
        self._state.http_refused["credentials"] += 1
        if guarded:
            refused = _no(401, f"this request needs a bearer token of {TOKENS}")
            refused.headers["WWW-Authenticate"] = f"Bearer {REALM}"
        else:
            refused = _no(401, "this request needs a user and password of service.web_config")
            refused.headers["WWW-Authenticate"] = f'Basic {REALM}, charset="UTF-8"'
        return refused

    def _later(self, client: str, seconds: float) -> web.Response:
        if count := self._count("attempts"):
            log.warning(
                "HTTP requests refused after too many wrong credentials: %d, the last one from %s", count, client
            )
        refused = _no(429, "too many wrong credentials; wait before you try again")
        refused.headers["Retry-After"] = str(math.ceil(seconds))
        return refused

    def _count(self, reason: str) -> int:
        """One refusal more; how many to log now, 0 = none."""
        self._state.http_refused[reason] += 1
        return self._say(reason)

    def _say(self, what: str) -> int:
        return self._gate.add((what,), 1, time.monotonic())


def host_of(text: str) -> str:
    """The name or address in a header Host, without port and brackets, in lower case."""
    text = text.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    name, colon, port = text.rpartition(":")
    return (name if colon and port.isdigit() else text).rstrip(".")


def _basic(given: str) -> tuple[str, bytes] | None:
    """User and password (RFC 7617)."""
    try:
        user, colon, password = base64.b64decode(given, validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None


def _is_one_of(given: str, tokens: tuple[str, ...]) -> bool:
    """Of digests, so that neither length nor content shows in the time that it takes."""
    said = hashlib.sha256(given.encode(errors="surrogatepass")).digest()
    found = False
    for token in tokens:
        found |= hmac.compare_digest(said, hashlib.sha256(token.encode()).digest())
    return found and bool(given)


def _no(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)
