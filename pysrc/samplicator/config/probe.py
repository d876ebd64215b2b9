"""`probe` of a receiver: how samplicator finds out its state.

Purpose: text -> Probe, or an error that says what to write. Called by config.fields (to check) and planner (to carry it
into the plan). Never resolves a name, never opens a socket.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from samplicator.config.address import Endpoint, parse_port, parse_target

WORDS: Final = ("auto", "udp", "ipfix", "off")
MUST_BE: Final = (
    'must be "auto", "udp", "ipfix", "off", "tcp://HOST:PORT" or "http://HOST:PORT/PATH" (without HOST: the '
    "receiver's own host)"
)
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_PATH: Final = re.compile(r"/[!-~]*")
MAX_PATH: Final = 1000


@dataclass(frozen=True, slots=True)
class Probe:
    """kind: auto | udp | ipfix | off | tcp | http. For tcp and http: endpoint (None = the receiver's own host), port
    and path ("" for tcp).
    """

    kind: str
    endpoint: Endpoint | None = None
    port: int = 0
    path: str = ""


@lru_cache(maxsize=4096)
def parse_probe(text: str) -> Probe:
    """The probe that `text` names. Raises ValueError with what to write instead."""
    if text in WORDS:
        return Probe(text)
    url = _URL.fullmatch(text)
    if url is None:
        if text in ("tcp", "http"):
            raise ValueError(f'{text!r}: the port is missing; write "{text}://:PORT{"/" if text == "http" else ""}"')
        near = difflib.get_close_matches(text, WORDS, 1)
        raise ValueError(f"{text!r} {MUST_BE}" + (f"; did you mean {near[0]!r}?" if near else ""))
    kind, rest = url[1], url[2]
    if kind not in ("tcp", "http"):
        if kind in ("https", "tls"):
            raise ValueError(f"{text!r}: TLS probes are not supported; use a plain port or tcp://")
        raise ValueError(f"{text!r} {MUST_BE}")
    where, slash, path = rest.partition("/")
    path = slash + path
    if kind == "tcp" and path:
        raise ValueError(f"{text!r}: a tcp probe has no path; write tcp://{where}")
    if path and (len(path) > MAX_PATH or not _PATH.fullmatch(path)):
        raise ValueError(
            f"{text!r}: the path must have at most {MAX_PATH} characters, all of them ASCII without blanks"
        )
    if "?" in where or "#" in where or "@" in where:
        raise ValueError(f"{text!r} must be {kind}://HOST:PORT{'/PATH' if kind == 'http' else ''}")
    endpoint = None
    try:
        if where.startswith(":"):
            port = parse_port(where[1:])
        else:
            endpoint = parse_target(where)
            port = endpoint.port
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    return Probe(kind, endpoint, port, (path or "/") if kind == "http" else "")
