"""Texts that name a transport other than UDP, read strictly: tcp://HOST:PORT, tls://HOST:PORT, sctp://HOST:PORT.

Pure: text in, frozen value out; every refusal is a ValueError that says what to write instead. A text without a scheme
is UDP. Called by config.fields, config.model and config.validate. Never resolves a name.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from functools import lru_cache
from typing import Final

from samplicator.config.address import Endpoint, parse_bind, parse_listen, parse_target

SCHEMES: Final = ("tcp", "tls", "sctp")
"""Each is the name of a gateway."""
SCTP: Final = "sctp"
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def split_scheme(text: str) -> tuple[str, str]:
    """(scheme, the rest); ("", text) when there is no scheme."""
    url = _URL.fullmatch(text)
    if url is None:
        return "", text
    if url[1] not in SCHEMES:
        if url[1] == "udp":
            raise ValueError(f"{text!r}: UDP is written without udp://; write {url[2]}")
        near = difflib.get_close_matches(url[1].lower(), SCHEMES, 1)
        hint = f"; did you mean {near[0]}://?" if near else ""
        raise ValueError(f"{text!r} must be HOST:PORT (UDP), or tcp://, tls:// or sctp://HOST:PORT{hint}")
    if "/" in url[2]:
        raise ValueError(f"{text!r}: there is no path here; write {url[1]}://{url[2].partition('/')[0]}")
    return url[1], url[2]


@lru_cache(maxsize=4096)
def parse_place(text: str) -> Endpoint:
    """A `listen` entry, with or without a scheme. One with a scheme has no range of ports."""
    scheme, rest = split_scheme(text)
    if not scheme:
        return parse_listen(text)
    try:
        return replace(parse_bind(rest), scheme=scheme)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None


@lru_cache(maxsize=65536)
def parse_peer(text: str) -> Endpoint:
    """A receiver's `to`, with or without a scheme."""
    scheme, rest = split_scheme(text)
    if not scheme:
        return parse_target(text)
    try:
        return replace(parse_target(rest), scheme=scheme)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
