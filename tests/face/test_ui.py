"""The files of the status page: what is served, under which policy, and what its code never does."""

from __future__ import annotations

import asyncio
import gzip
import re
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from samplicator.http import app, page
from support.state import make_state

OWN = {name: file.body.decode() for name, file in page.files().items() if not name.startswith("vendor/")}


def get(path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    async def go() -> tuple[int, dict[str, str], bytes]:
        async with TestClient[Any, Any](TestServer(app.make_app(make_state())), auto_decompress=False) as client:
            answer = await client.get(path, headers=headers, allow_redirects=False)
            return answer.status, {name.title(): text for name, text in answer.headers.items()}, await answer.read()

    return asyncio.run(go())


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    status, headers, body = get("/ui/", **{"Accept-Encoding": "identity"})
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["X-Content-Type-Options"], headers["Server"]) == ("nosniff", "samplicator")
    assert b"<main" in body


def test_each_file_once_for_a_browser_that_has_it() -> None:
    for name, file in page.files().items():
        status, headers, body = get(f"/ui/{name}", **{"Accept-Encoding": "gzip"})
        assert (status, headers["Content-Encoding"], gzip.decompress(body)) == (200, "gzip", file.body)
        assert get(f"/ui/{name}", **{"Accept-Encoding": "identity"})[2] == file.body
        status, again, body = get(f"/ui/{name}", **{"If-None-Match": headers["Etag"]})
        assert (status, body, again["Etag"]) == (304, b"", headers["Etag"])


@pytest.mark.parametrize(
    "name", ["x", "../page.py", "..%2fpage.py", "%2e%2e/page.py", "vendor/", "vendor/../main.js/", "uplot-LICENSE"]
)
def test_nothing_else_is_there(name: str) -> None:
    assert get(f"/ui/{name}")[0] == 404


def test_every_file_that_is_named_is_there() -> None:
    for name, text in OWN.items():
        named = re.findall(r'(?:from|import) "\./([^"]+)"', text)
        if name.endswith(".html"):
            named += re.findall(r'(?:src|href)="([^"#/][^"]*)"', text)
        assert set(named) <= set(page.files()), name


def test_no_text_becomes_markup_or_code() -> None:
    for name, text in OWN.items():
        found = re.findall(r"innerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|srcdoc", text)
        assert found == [], name
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert " style=" not in text, name


def test_colors_can_be_read() -> None:
    """Contrast of text on both grounds, light and dark: 4.5 to 1 at least (WCAG 2.2, 1.4.3)."""
    sets = [
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.findall(r"\{([^{}]*--back: #[^{}]*)\}", OWN["style.css"])
    ]
    assert len(sets) == 3
    assert sets[1] == sets[2]
    for colors in sets:
        for name in ("text", "quiet", "link", "good", "warn", "bad", "idle"):
            for ground in ("back", "panel"):
                assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)


def contrast(one: str, two: str) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
