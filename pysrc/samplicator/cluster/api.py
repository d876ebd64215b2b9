"""The API server of the cluster that this process runs in: one connection, requests to read.

Purpose: a pod's account (token, certificate authority, address) and GET requests. Invariants: the token is read anew
for each request, since the kubelet replaces it every hour; the server must have a certificate of the cluster's own
authority; what is read of an answer is bounded, in bytes and in time. Called by follower, on its thread: every function
waits. It must never write to the cluster. Source of files and variables: "Accessing the Kubernetes API from a Pod",
kubernetes.io.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlencode

from samplicator import __version__

FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
CONNECT_SECONDS: Final = 10.0
"""To connect, and for each part of an answer that is not a watch."""
ANSWER_SECONDS: Final = 60.0
"""For a whole answer that is not a watch."""
MAX_ANSWER: Final = 8 << 20
"""Bytes of an answer, and of an event."""
MAX_ERROR: Final = 1 << 16
MAX_TOKEN: Final = 1 << 16
KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""A server that went away without a word is noticed after half a minute."""


class ApiError(Exception):
    """An answer that is not what was asked for. status: of HTTP, 0 = the answer cannot be read. retry_seconds: when the
    server wants to be asked again, 0 = it does not say.
    """

    def __init__(self, status: int, why: str, retry_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.status = status
        self.retry_seconds = retry_seconds


@dataclass(frozen=True, slots=True)
class Account:
    """Where a pod finds the API server and what it shows there. folder: has `token` and `ca.crt`. environ: has the
    server's address.
    """

    folder: str = FOLDER
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def lacks(self) -> str:
        """Why there is no API server to ask, "" = there is one."""
        for name in ("token", "ca.crt"):
            if not os.path.exists(os.path.join(self.folder, name)):
                return (
                    f"samplicator does not run in a pod with a service account ({self.folder}/{name} is missing); run "
                    "it in the cluster with automountServiceAccountToken: true, or write HOST:PORT in `to`"
                )
        if not self.environ.get("KUBERNETES_SERVICE_HOST"):
            return "KUBERNETES_SERVICE_HOST is not set, so the API server is not known; run samplicator as a pod"
        return ""

    def token(self) -> str:
        """As it is now. Raises OSError, ApiError."""
        with open(os.path.join(self.folder, "token"), "rb") as file:
            token = file.read(MAX_TOKEN + 1).strip()
        if not token or len(token) > MAX_TOKEN or not token.isascii() or not token.decode("ascii").isprintable():
            raise ApiError(0, f"{self.folder}/token does not hold a token")
        return token.decode("ascii")


class Connection:
    """To the API server; one request at a time. Any thread may close it, which ends a waiting request."""

    def __init__(self, account: Account) -> None:
        """Raises OSError (no connection, no valid certificate) or ApiError."""
        lacks = account.lacks()
        if lacks:
            raise ApiError(0, lacks)
        self._account = account
        host = account.environ["KUBERNETES_SERVICE_HOST"]
        port = account.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ApiError(0, f"KUBERNETES_SERVICE_PORT is {port!r}, which is no port")
        context = ssl.create_default_context(cafile=os.path.join(account.folder, "ca.crt"))
        # a default since Python 3.13; the CAs of many clusters lack the extensions of RFC 5280 that it asks for
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._http = HTTPSConnection(host.strip("[]"), int(port), context=context, timeout=CONNECT_SECONDS)
        self._http.auto_open = 0
        self._connect()

    def _connect(self) -> None:
        self._http.connect()
        self._socket: socket.socket = self._http.sock  # HTTPConnection lets go of it when the server closes
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            self._socket.setsockopt(socket.IPPROTO_TCP, option, value)

    def close(self) -> None:
        """Ends whatever waits for an answer."""
        with contextlib.suppress(OSError, ValueError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # SSLSocket's own would take its state away

    def end(self) -> None:
        """Called by the thread that asks, when it has done."""
        with contextlib.suppress(OSError):
            self._http.close()
            self._socket.close()

    def get(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The object that a path answers. Raises ApiError, OSError, HTTPException."""
        response = self._ask(path, query)
        return as_object(self._whole(response, MAX_ANSWER))

    def watch(self, path: str, query: Mapping[str, str], seconds: float) -> HTTPResponse:
        """The answer of a watch, to read with `event`, which waits `seconds` at most. Raises as get."""
        response = self._ask(path, query)
        self._socket.settimeout(seconds)
        return response

    def _ask(self, path: str, query: Mapping[str, str]) -> HTTPResponse:
        headers = {
            "Authorization": f"Bearer {self._account.token()}",
            "Accept": "application/json",
            "User-Agent": f"samplicator/{__version__}",
        }
        if self._http.sock is None:  # a server, or what stands before it, may close after each answer
            self._connect()
        self._socket.settimeout(CONNECT_SECONDS)
        self._http.request("GET", f"{path}?{urlencode(query)}", headers=headers)
        response = self._http.getresponse()
        if response.status != 200:
            raise self._error(response)
        return response

    def _error(self, response: HTTPResponse) -> ApiError:
        message = ""
        with contextlib.suppress(ApiError, OSError, HTTPException):
            message = clean(as_object(self._whole(response, MAX_ERROR)).get("message"))
        wait = response.headers.get("Retry-After", "")
        seconds = float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else 0.0
        return ApiError(response.status, message or clean(response.reason) or "no reason given", seconds)

    @staticmethod
    def _whole(response: HTTPResponse, limit: int) -> bytes:
        until = time.monotonic() + ANSWER_SECONDS
        parts, size = [], 0
        while part := response.read1(1 << 16):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise ApiError(0, f"the API server's answer is larger than {limit >> 10} KiB")
            if time.monotonic() > until:
                raise ApiError(0, f"the API server's answer takes longer than {ANSWER_SECONDS:g} s")
        response.close()  # read1() does not notice the end; the connection is free for the next request
        return b"".join(parts)


def event(response: HTTPResponse) -> dict[str, Any] | None:
    """The next event of a watch; None when the server has ended it. Raises ApiError, OSError, HTTPException."""
    line = response.readline(MAX_ANSWER + 1)
    if len(line) > MAX_ANSWER:
        raise ApiError(0, f"an event of the API server is larger than {MAX_ANSWER >> 10} KiB")
    if not line.endswith(b"\n"):
        return None  # cut off: the next watch begins where this one was
    return as_object(line)


def as_object(text: bytes) -> dict[str, Any]:
    """JSON that must be an object. Raises ApiError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ApiError(0, "the API server's answer is not JSON") from None
    if not isinstance(value, dict):
        raise ApiError(0, "the API server's answer is not an object")
    return value


def clean(text: object, length: int = 300) -> str:
    """Text of others, for people: one line, printable."""
    return "".join(c for c in text[:length] if c.isprintable()) if isinstance(text, str) else ""
