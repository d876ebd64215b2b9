"""`probe` of a receiver: how its state is asked for.

Purpose: text -> Probe, or a sentence that says what to write. Called by config.fields (to check) and planner (to carry
it into the plan). Never resolves a name, never opens a socket.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from samplicator.config.address import Endpoint, parse_port, parse_target

WORDS: Final = ("auto", "udp", "ipfix", "off")
WANT: Final = (
    'want "auto", "udp", "ipfix", "off", "tcp://HOST:PORT" or "http://HOST:PORT/PATH" (without HOST: the '
    "receiver's own)"
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
            raise ValueError(f'{text!r}: where to? Write "{text}://:PORT{"/" if text == "http" else ""}"')
        near = difflib.get_close_matches(text, WORDS, 1)
        raise ValueError(f"{text!r}: {WANT}" + (f"; did you mean {near[0]!r}?" if near else ""))
    kind, rest = url[1], url[2]
    if kind not in ("tcp", "http"):
        hint = "; TLS is not spoken here: ask a port without it, or with tcp://" if kind in ("https", "tls") else ""
        raise ValueError(f"{text!r}: {WANT}{hint}")
    where, slash, path = rest.partition("/")
    path = slash + path
    if kind == "tcp" and path:
        raise ValueError(f"{text!r}: a connection has no path; write tcp://{where}")
    if path and (len(path) > MAX_PATH or not _PATH.fullmatch(path)):
        raise ValueError(f"{text!r}: the path has blanks or other than ASCII characters, or more than {MAX_PATH}")
    if "?" in where or "#" in where or "@" in where:
        raise ValueError(f"{text!r}: want {kind}://HOST:PORT{'/PATH' if kind == 'http' else ''}")
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
