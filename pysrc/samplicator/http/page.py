"""The status page below /ui/: files of the folder ui, as they are, from memory.

Purpose: one page for a browser, which reads the API and changes nothing. Invariants: only the files that are there at
the first request are served, by their exact names; a policy (Content-Security-Policy) lets the browser load nothing
from elsewhere and run no text as code. Called by the application, by way of the table in routes. It must never read
a path that a client names.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from aiohttp import web

TYPES: Final[Mapping[str, str]] = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
START: Final = "index.html"


@dataclass(frozen=True, slots=True)
class File:
    """A file of the page. tag: changes with its bytes."""

    body: bytes
    packed: bytes
    content_type: str
    tag: str


@cache
def files() -> Mapping[str, File]:
    """All of them, by the name below /ui/."""
    return dict(_files(resources.files("samplicator.http").joinpath("ui"), ""))


def _files(folder: Traversable, prefix: str) -> list[tuple[str, File]]:
    found: list[tuple[str, File]] = []
    for each in folder.iterdir():
        kind = TYPES.get(each.name.rpartition(".")[2])
        if each.is_dir():
            found += _files(each, f"{prefix}{each.name}/")
        elif kind is not None:
            body = each.read_bytes()
            digest = blake2b(body, digest_size=12).hexdigest()
            found.append((prefix + each.name, File(body, gzip.compress(body, mtime=0), kind, digest)))
    return found


async def page(request: web.Request) -> web.Response:
    """The page, or one of its files."""
    name = request.match_info.get("file", "") or START
    file = (await asyncio.to_thread(files)).get(name)
    if file is None:
        raise web.HTTPNotFound(reason="the status page has no such file; it is at /ui/")
    if any(tag.value == file.tag for tag in request.if_none_match or ()):
        return web.Response(status=304, headers={**HEADERS, "ETag": f'"{file.tag}"'})
    packed = "gzip" in request.headers.get("Accept-Encoding", "")
    answer = web.Response(
        body=file.packed if packed else file.body,
        content_type=file.content_type,
        charset=None if file.content_type == "image/svg+xml" else "utf-8",
        headers={**HEADERS, "ETag": f'"{file.tag}"'},
    )
    if packed:
        answer.headers["Content-Encoding"] = "gzip"
    return answer
