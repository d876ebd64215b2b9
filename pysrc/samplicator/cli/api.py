"""The client of a daemon's API that asks again and again: over the control socket, or over HTTP and HTTPS by a URL.

Purpose: JSON values of pages, over one connection that is kept, and the lines of an answer that goes on; what a daemon
answers is bounded in bytes and seconds.
Invariants: credentials come from the environment or a file, never from the command line, which every user of the host
can read; no redirect is followed, so that credentials go nowhere else. Called by cli.top and cli.tap.
Standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import ssl
import time
from argparse import Namespace
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from samplicator.cli.control import Local, control_path, trouble
from samplicator.config.files import read_regular
from samplicator.errors import Unreachable

MOST_BYTES: Final = 16 << 20
"""Of one answer. Pages of lists have a little more than 1 MiB."""
SECONDS: Final = 10.0
MOST_LINE_BYTES: Final = 256 << 10
"""Of one line of an answer that goes on."""
SILENT_SECONDS: Final = 5.0
"""Without a line, an answer that goes on is lost."""
VARIABLE: Final = "SAMPLICATOR_AUTH"
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1


class WrongArguments(Exception):
    """What was given on the command line, in the environment or in a file is wrong; the text says what and why."""


class Refused(Unreachable):
    """The daemon answered, but not with what was asked for. status: of HTTP. told: what its answer says, for people."""

    def __init__(self, text: str, status: int, told: str) -> None:
        super().__init__(text)
        self.status = status
        self.told = told


class Api:
    """One daemon. name: of it, for people. connect: makes a connection with a time limit in seconds."""

    def __init__(
        self,
        name: str,
        connect: Callable[[float], http.client.HTTPConnection],
        explain: Callable[[Exception], str],
        *,
        prefix: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._connect = connect
        self._explain = explain
        self._prefix = prefix
        self._headers = {"Accept": "application/json", **(headers or {})}
        self._connection: http.client.HTTPConnection | None = None

    def get(self, page: str) -> Any:
        """The JSON value of a page. Raises Unreachable."""
        kept = self._connection is not None
        try:
            try:
                status, body = self._ask(page)
            except (ConnectionError, http.client.RemoteDisconnected, http.client.CannotSendRequest):
                self.close()
                if not kept:
                    raise
                status, body = self._ask(page)  # the daemon closes connections that were silent for long
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(f"{self.name}: {self._explain(error)}") from error
        if status != 200:
            self.close()
            raise Refused(f"{self.name}: {page} answered {status}{_reason(status, body)}", status, _told(body))
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            self.close()
            raise Unreachable(f"{self.name}: the answer to {page} is not JSON") from error

    def stream(self, page: str) -> Generator[bytes, None, None]:
        """The lines of an answer that goes on, without their ends, over a connection of its own; ends where the daemon
        ends the answer. Raises Unreachable, also when no line comes for SILENT_SECONDS.
        """
        connection = self._connect(SECONDS)
        try:
            connection.request("GET", self._prefix + page, headers=self._headers)
            sock = connection.sock
            answer = connection.getresponse()
            if answer.status != 200:
                body = answer.read1(1 << 16)
                text = f"{self.name}: {page} answered {answer.status}{_reason(answer.status, body)}"
                raise Refused(text, answer.status, _told(body))
            sock.settimeout(SILENT_SECONDS)
            yield from self._lines(answer)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self.name}: {self._explain(error)}") from error
        finally:
            with contextlib.suppress(OSError):
                connection.close()

    def _lines(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        """Raises Unreachable, OSError and HTTPException."""
        held = bytearray()
        while True:
            deadline = time.monotonic() + SILENT_SECONDS
            while b"\n" not in held:
                if len(held) > MOST_LINE_BYTES:
                    raise Unreachable(f"{self.name}: a line has more than {MOST_LINE_BYTES >> 10} KiB")
                try:
                    piece = answer.read1(1 << 16)
                except TimeoutError:
                    piece, deadline = b"", 0.0
                if time.monotonic() > deadline:
                    raise Unreachable(f"{self.name}: nothing came for {SILENT_SECONDS:g} s; the connection is lost")
                if not piece:
                    return
                held += piece
            *lines, rest = held.split(b"\n")
            held = rest
            yield from map(bytes, lines)

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _ask(self, page: str) -> tuple[int, bytes]:
        """Raises OSError and HTTPException."""
        if self._connection is None:
            self._connection = self._connect(SECONDS)
        deadline = time.monotonic() + 2 * SECONDS
        self._connection.request("GET", self._prefix + page, headers=self._headers)
        answer = self._connection.getresponse()
        pieces, size = [], 0
        while piece := answer.read1(1 << 20):
            pieces.append(piece)
            size += len(piece)
            if size > MOST_BYTES:
                raise OSError(f"the answer to {page} has more than {MOST_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError
        if answer.length:  # http.client sees it only when it reads all at once
            raise http.client.IncompleteRead(b"", answer.length)
        answer.close()  # else the connection does not take another request
        if answer.will_close:
            self.close()
        return answer.status, b"".join(pieces)


def asked_for(options: Namespace) -> Api:
    """The daemon that the options of a command name. Raises WrongArguments and Unreachable."""
    if options.url:
        if options.control or options.config:
            raise WrongArguments("--url cannot be combined with --control or --config")
        return at_url(options.url, auth_file=options.auth_file, ca_file=options.ca_file)
    if options.auth_file or options.ca_file:
        raise WrongArguments("--auth-file and --ca-file need --url; the control socket asks for no credentials")
    return at_control(control_path(options.control, options.config))


def at_control(path: str) -> Api:
    """The daemon with this control socket."""
    return Api(
        f"control socket {path}", lambda seconds: Local(path, seconds), lambda error: trouble(path, error, SECONDS)
    )


def at_url(url: str, *, auth_file: str = "", ca_file: str = "") -> Api:
    """The daemon at http://HOST[:PORT][/PREFIX] or https://... auth_file: see `authorization`. ca_file: certificates
    to trust in place of the system's. Raises WrongArguments.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise WrongArguments(f"--url: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise WrongArguments("--url must be http://HOST:PORT or https://HOST:PORT")
    if "@" in parts.netloc:
        raise WrongArguments(
            f"--url must not have a user or password in it, because other users can read it; "
            f"write USER:PASSWORD to a file and use --auth-file, or set {VARIABLE}"
        )
    if not re.fullmatch(r"[!-~]*", parts.path + host):
        raise WrongArguments("--url must be ASCII without blanks")
    headers = authorization(auth_file)
    shown = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    connect: Callable[[float], http.client.HTTPConnection]
    if parts.scheme == "https":
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
            if ca_file:  # an authority of one's own often lacks extensions that Python asks for since 3.13
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        except (OSError, ssl.SSLError) as error:
            raise WrongArguments(f"--ca-file {ca_file}: no certificates can be read ({error})") from error

        def connect(seconds: float) -> http.client.HTTPConnection:
            return http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
    elif ca_file:
        raise WrongArguments("--ca-file is for https:// only")
    else:

        def connect(seconds: float) -> http.client.HTTPConnection:
            return http.client.HTTPConnection(host, port, timeout=seconds)

    return Api(shown, connect, _why, prefix=parts.path.rstrip("/"), headers=headers)


def authorization(auth_file: str) -> dict[str, str]:
    """The header with the credentials of a file, or else of the environment, if there are any: a line USER:PASSWORD
    (basic authentication, RFC 7617), or a bearer token, which has no colon (RFC 6750). Raises WrongArguments.
    """
    if auth_file:
        where = f"--auth-file {auth_file}"
        try:
            text = read_regular(auth_file).decode().strip()
        except OSError as error:
            raise WrongArguments(f"{where}: {error.strerror or error}") from error
        except ValueError as error:
            raise WrongArguments(f"{where}: the file is not UTF-8") from error
    else:
        where, text = VARIABLE, os.environ.get(VARIABLE, "")
        if not text:
            return {}
    if ":" in text and text.isprintable():
        return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}
    if _TOKEN.fullmatch(text):
        return {"Authorization": f"Bearer {text}"}
    raise WrongArguments(f"{where} must be one line: USER:PASSWORD, or a bearer token")


def _why(error: Exception) -> str:
    """Of a connection over TCP."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); name the authority's file with --ca-file"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or error}); does it speak https there?"
    if isinstance(error, TimeoutError):
        return f"no answer in {SECONDS:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; the daemon does not run, or service.http names another port"
    if isinstance(error, http.client.BadStatusLine):
        return "the answer is not HTTP; is it https?"
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__


def _reason(status: int, body: bytes) -> str:
    """What the answer says, and what to do."""
    told = _told(body)
    if status == 401:
        return f": the credentials are missing or wrong; set {VARIABLE} or use --auth-file"
    if status == 404:
        return f": {told or 'not found'}; is this a samplicator of the same version?"
    return f": {told}" if told else ""


def _told(body: bytes) -> str:
    """The `error` of an answer, or else its beginning."""
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        return str(json.loads(body)["error"])[:200]
    return body[:200].decode(errors="replace").strip()
