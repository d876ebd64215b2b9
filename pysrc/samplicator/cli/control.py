"""The client of the control socket: one HTTP request over a local socket, with errors that say what to do.

Called by cli.running and the demo. Standard library only, so that `samplicator status` is quick. It must never change
anything itself; only the daemon does.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import socket
import tomllib
from typing import Any

from samplicator.cli.arguments import DEFAULT_CONTROL
from samplicator.config.files import read_regular
from samplicator.errors import Unreachable


class Local(http.client.HTTPConnection):
    """HTTP over a local socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class NoControl(Unreachable):
    """The configuration switches the control socket off."""


def control_path(control: str, config: str, *, faulty: bool = False, own: bool = False) -> str:
    """The path to use: given, or service.control of the configuration (service.own_control if that is off), or the
    default. faulty: the default also for a configuration that cannot be read: the daemon that runs read another one.
    own: first service.own_control, then service.control. Raises Unreachable.
    """
    if control:
        return control
    if not config:
        return DEFAULT_CONTROL
    try:
        values = tomllib.loads(read_regular(config).decode())
        service = values.get("service", {})
        paths = [service.get("control", DEFAULT_CONTROL), service.get("own_control", "")]
        path = next(filter(None, reversed(paths) if own else paths), "")
    except OSError as error:
        if faulty:
            return DEFAULT_CONTROL
        raise Unreachable(f"{config}: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        if faulty:
            return DEFAULT_CONTROL
        raise Unreachable(f"{config}: the file cannot be read ({error}); run samplicator check -c {config}") from error
    if not path:
        raise NoControl(f'{config}: service.control and own_control are "", so the daemon has no control socket')
    return str(path)


def request(path: str, method: str, page: str, *, timeout: float = 10.0) -> tuple[int, bytes]:
    """(status, body) of one request. Raises Unreachable."""
    connection = Local(path, timeout)
    try:
        connection.request(method, page, headers={"Accept": "*/*"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"control socket {path}: {trouble(path, error, timeout)}") from error
    finally:
        connection.close()


def trouble(path: str, error: Exception, timeout: float) -> str:
    """Why a control socket did not answer, and what to do."""
    match error:
        case FileNotFoundError():
            return (
                "the socket does not exist; start the daemon, or name its service.control or own_control with --control"
            )
        case PermissionError():
            return f"permission denied: {_owner(path)}"
        case ConnectionRefusedError():
            return "no daemon answers; the socket file is left from a daemon that has ended"
        case TimeoutError():
            return f"no answer in {timeout:g} s"
    return str(error) or type(error).__name__


def get_json(path: str, page: str, *, timeout: float = 10.0) -> Any:
    """The JSON value of a page. Raises Unreachable."""
    status, body = request(path, "GET", page, timeout=timeout)
    if status != 200:
        raise Unreachable(
            f"control socket {path}: {page} answered {status}: {body[:200].decode(errors='replace').strip()}"
        )
    try:
        return json.loads(body)
    except ValueError as error:
        raise Unreachable(f"control socket {path}: the answer to {page} is not JSON") from error


def _owner(path: str) -> str:
    """Who owns the socket and what to do. If this user cannot enter the folder, the text is about the folder."""
    facts = None
    for place in (path, os.path.dirname(os.path.abspath(path))):
        with contextlib.suppress(OSError):
            facts = os.stat(place)
            break
    if facts is None:
        return "run this with sudo"
    try:
        user = pwd.getpwuid(facts.st_uid).pw_name
    except KeyError:
        user = str(facts.st_uid)
    group = _group(facts.st_gid)
    text = f"{place} belongs to user {user}, group {group}, mode {facts.st_mode & 0o777:o}; run this with sudo"
    joinable = facts.st_gid and not group.isdigit()  # systemd's DynamicUser has a group that nobody can join
    return f"{text} or as a member of group {group}" if joinable else text


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
