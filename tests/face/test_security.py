"""Who may ask over TCP: names, users, tokens, certificates; and what it costs to be refused."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import replace

import bcrypt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from samplicator.config.web.model import WebConfig
from samplicator.http import app, attempts, passwords
from samplicator.http.attempts import Attempts, client_of
from samplicator.http.passwords import Busy, Passwords
from samplicator.http.routes import ROUTES
from samplicator.http.security import host_of
from samplicator.views.service import ServiceState
from support.state import make_state
from support.web import Client, basic, bearer, loaded, with_client

SECRET = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
USERS = WebConfig("web.yml", users=(("prom", SECRET),))


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("relay", "relay"),
        ("Relay.Example.Net:9420", "relay.example.net"),
        ("relay.example.net.", "relay.example.net"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]:9420", "::1"),
        ("[fe80::1%25eth0]", "fe80::1%25eth0"),
        ("::1", ":"),
        ("", ""),
        ("a:b", "a:b"),
    ],
)
def test_the_host_in_a_request(text: str, host: str) -> None:
    assert host_of(text) == host


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9420", 200),
        ("192.0.2.1", 200),
        ("[2001:db8::1]:9420", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("a.localhost", 200),
        (f"{socket.gethostname()}:9420", 200),
        ("bound.example", 200),
        ("relay.example.net:443", 200),
        ("evil.example", 421),
        ("evil.example:9420", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("relay.example.net.evil.example", 421),
        ("xrelay.example.net", 421),
        ("relay", 200),
        ("relay:9420", 200),
        ("evil.", 200),
        ("a:b", 421),
        ("a.b:c", 421),
        (".", 200),
        ("<script>", 421),
    ],
)
def test_a_request_needs_a_name_of_this_host(host: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    state = make_state(loaded=loaded(hosts=["relay.example.net"], http="bound.example:9420"))

    async def body(client: Client) -> None:
        for method in ("GET", "HEAD"):
            answer = await client.request(method, "/api/v1/status", headers={"Host": host})
            assert answer.status == status
        answer = await client.post("/-/reload", headers={"Host": host, **bearer("x")})
        assert answer.status == (403 if status == 200 else 421)
        if status != 200:
            assert "service.http_hosts" in (await answer.json())["error"]

    with_client(state, body)
    assert state.http_refused["host"] == 3 * (status != 200)
    lines = [record.message for record in caplog.records if "host name" in record.message]
    assert len(lines) == (status != 200)


def test_every_name_may_be_allowed() -> None:
    async def body(client: Client) -> None:
        assert (await client.get("/healthz", headers={"Host": "any.example"})).status == 200

    with_client(make_state(loaded=loaded(hosts=["*"])), body)


def test_a_request_without_a_host_comes_from_no_browser() -> None:
    async def body(client: Client) -> None:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"200" in await reader.readline()
        writer.close()

    with_client(make_state(), body)


# ---------------------------------------------------------------------------------------------------- users and tokens

READS = [r for r in ROUTES if "GET" in r.methods and r.path not in ("/api/v1/events", "/api/v1/tap")]


ASKED = {"/api/v1/shares": "/api/v1/shares?receiver=six", "/ui/{file:.+}": "/ui/main.js"}
"""What a page is asked for with."""


@pytest.mark.parametrize("path", [ASKED.get(route.path, route.path) for route in READS] + ["/nothing", "/-/reload"])
def test_reading_needs_a_user_if_there_are_users(path: str) -> None:
    state = make_state(loaded=loaded(USERS), tokens=("geheim",))

    async def body(client: Client) -> None:
        found = [
            (await client.get(path, headers=headers)).status
            for headers in ({}, basic("prom", "wrong"), basic("nobody", "secret"), bearer("x"), basic("", ""))
        ]
        assert found == [401] * 5
        known = {"/nothing": 404, "/-/reload": 405}.get(path, 200)
        assert (await client.get(path, headers=basic("prom", "secret"))).status == known
        assert (await client.get(path, headers=bearer("geheim"))).status == known

    with_client(state, body)


def test_streams_need_a_user_too() -> None:
    async def body(client: Client) -> None:
        assert (await client.get("/api/v1/events?count=1")).status == 401
        answer = await client.get("/api/v1/events?count=1", headers=basic("prom", "secret"))
        assert "event: live" in await answer.text()

    with_client(make_state(loaded=loaded(USERS)), body)


CHANGES = [
    (route.path, method)
    for route in ROUTES
    for method in route.methods
    if method not in ("GET", "HEAD") or route.path == "/api/v1/tap"  # it shows payloads
]


@pytest.mark.parametrize("users", [None, USERS])
@pytest.mark.parametrize(("path", "method"), CHANGES)
def test_nothing_that_changes_something_is_free(path: str, method: str, users: WebConfig | None) -> None:
    """Over TCP, whatever the configuration; routes that somebody adds later too."""
    for tokens in ((), ("geheim", "neu")):
        state = make_state(loaded=loaded(users), tokens=tokens)

        async def body(client: Client, state: ServiceState = state, tokens: tuple[str, ...] = tokens) -> None:
            for headers in (
                {},
                basic("prom", "secret"),
                basic("prom", "geheim"),
                basic("geheim", "geheim"),
                bearer(""),
                bearer("gehei"),
                bearer("geheim geheim"),
                {"Authorization": "geheim"},
            ):
                answer = await client.request(method, path, headers=headers)
                assert answer.status in (401, 403), headers
            assert state.reloader.triggers == []  # type: ignore[attr-defined]
            for token in tokens:
                answer = await client.request(method, path, headers=bearer(token))
                assert answer.status == (403 if path == "/-/takeover" else 200)

        with_client(state, body)


def test_a_new_route_that_changes_something_is_guarded() -> None:
    """Whoever adds one and forgets to say so."""
    state = make_state(tokens=("geheim",))

    async def go() -> None:
        made = app.make_app(state)

        async def change(request: web.Request) -> web.Response:
            return web.Response(text="changed")

        for method in ("POST", "DELETE", "PATCH", "OPTIONS"):
            made.router.add_route(method, "/new", change)
        async with TestClient(TestServer(made)) as client:
            for method in ("POST", "DELETE", "PATCH", "OPTIONS"):
                assert (await client.request(method, "/new")).status == 401
                assert (await client.request(method, "/new", headers=bearer("geheim"))).status == 200

    asyncio.run(go())


def test_the_answer_says_how_to_log_in() -> None:
    async def body(client: Client) -> None:
        asked = (await client.get("/healthz")).headers["WWW-Authenticate"]
        assert asked == 'Basic realm="samplicator", charset="UTF-8"'
        asked = (await client.post("/-/reload")).headers["WWW-Authenticate"]
        assert asked == 'Bearer realm="samplicator"'
        answer = await client.post("/-/reload", headers=basic("prom", "secret"))
        assert (answer.status, "bearer token" in (await answer.json())["error"]) == (401, True)

    with_client(make_state(loaded=loaded(USERS), tokens=("geheim",)), body)


def test_passwords_of_all_kinds() -> None:
    long, strange = "x" * 100, "pässwörd"
    users = {
        name: bcrypt.hashpw(text.encode()[:72], bcrypt.gensalt(4)).decode()
        for name, text in (("long", long), ("strange", strange))
    }
    users["php"] = SECRET.replace("$2b$", "$2y$")

    async def go() -> None:
        known = Passwords(users)
        assert await known.check("long", long.encode())
        assert await known.check("strange", strange.encode())
        assert await known.check("php", b"secret")
        assert not await known.check("php", b"secre\0t")
        assert not await known.check("php", b"")
        assert known.known("php", b"secret")
        assert not known.known("long", b"secret")
        known.close()

    asyncio.run(go())


def test_a_reload_changes_who_may_ask() -> None:
    state = make_state(loaded=loaded(USERS))

    async def body(client: Client) -> None:
        assert (await client.get("/healthz", headers=basic("prom", "secret"))).status == 200
        other = bcrypt.hashpw(b"other", bcrypt.gensalt(4)).decode()
        state.loaded = loaded(replace(USERS, users=(("prom", other),), headers=(("X-Frame-Options", "deny"),)))
        assert (await client.get("/healthz", headers=basic("prom", "secret"))).status == 401
        answer = await client.get("/healthz", headers=basic("prom", "other"))
        assert (answer.status, answer.headers["X-Frame-Options"]) == (200, "deny")
        state.loaded = loaded()
        answer = await client.get("/healthz")
        assert (answer.status, "X-Frame-Options" in answer.headers) == (200, False)

    with_client(state, body)


def test_headers_of_the_file_are_in_every_answer() -> None:
    config = WebConfig("w", headers=(("X-Frame-Options", "deny"), ("X-Content-Type-Options", "")))

    async def body(client: Client) -> None:
        for path in ("/healthz", "/metrics", "/api/v1/exporters", "/nothing", "/api/v1/events?count=1"):
            answer = await client.get(path)
            assert answer.headers["X-Frame-Options"] == "deny", path
            assert "X-Content-Type-Options" not in answer.headers, path
            assert answer.headers["Server"] == "samplicator"

    with_client(make_state(loaded=loaded(config)), body)


# ---------------------------------------------------------------------------------------------------- attempts


def test_who_tries_too_often_must_wait(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(passwords, "PAUSE", 0.0)
    checks: list[bytes] = []
    matches = passwords._matches
    monkeypatch.setattr(
        passwords, "_matches", lambda password, text: checks.append(password) or matches(password, text)
    )
    state = make_state(loaded=loaded(USERS), tokens=("geheim",))

    async def body(client: Client) -> None:
        assert (await client.get("/healthz", headers=basic("prom", "secret"))).status == 200
        found = [(await client.get("/healthz", headers=basic("prom", f"guess{n}"))).status for n in range(30)]
        assert found == [401] * attempts.FREE + [429] * 20
        assert len(checks) == 1 + attempts.FREE
        late = await client.get("/healthz", headers=basic("prom", "secret"))
        assert late.status == 200, "who is known may go on, whoever guesses from the same address"
        answer = await client.post("/-/reload", headers=bearer("geheim"))
        assert (answer.status, int(answer.headers["Retry-After"])) == (429, 6)
        assert (await client.get("/healthz")).status == 401  # a browser that has not asked its user yet

    with caplog.at_level(logging.INFO):
        with_client(state, body)
    assert (state.http_refused["credentials"], state.http_refused["attempts"]) == (attempts.FREE + 1, 21)
    lines = [record.message for record in caplog.records if "credentials" in record.message]
    assert lines == [
        "HTTP requests with wrong credentials: 1, the last one from 127.0.0.1",
        "HTTP requests refused after too many wrong credentials: 1, the last one from 127.0.0.1",
    ]


def test_a_program_with_a_wrong_password_is_no_guesser(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks again and again, costs one check, and does not shut out others that have its address."""
    checks: list[bytes] = []
    matches = passwords._matches
    monkeypatch.setattr(
        passwords, "_matches", lambda password, text: checks.append(password) or matches(password, text)
    )

    async def body(client: Client) -> None:
        found = {(await client.get("/metrics", headers=basic("prom", "old"))).status for _ in range(50)}
        assert (found, checks) == ({401}, [b"old"])
        assert (await client.get("/metrics", headers=basic("prom", "secret"))).status == 200

    with_client(make_state(loaded=loaded(USERS)), body)


def test_attempts_are_forgiven_and_bounded() -> None:
    tries = Attempts(clients=100)
    for n in range(attempts.FREE):
        assert tries.wait("a", 10.0 + n / 100) == 0
        tries.failed("a", 10.0 + n / 100)
    assert 5 < tries.wait("a", 10.1) <= attempts.SECONDS
    assert tries.wait("b", 10.1) == 0
    assert tries.wait("a", 10.1 + attempts.SECONDS) == 0
    tries.failed("a", 10.1 + attempts.SECONDS)
    assert tries.wait("a", 10.2 + attempts.SECONDS) > 0
    for n in range(10_000):
        tries.failed(f"c{n}", 20.0)
    assert len(tries) == 100


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        ("", ""),
        (None, ""),
    ],
)
def test_who_is_one_client(peer: object, client: str) -> None:
    assert client_of(peer) == client


def test_checks_of_passwords_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time, few wait, and a wrong one is followed by a pause of several times its length."""
    monkeypatch.setattr(passwords, "WAITING", 4)
    running: list[int] = []

    def slow(password: bytes, text: str) -> bool:
        running.append(1)
        assert len(running) == 1
        time.sleep(0.05)
        running.pop()
        return password == b"right"

    monkeypatch.setattr(passwords, "_matches", slow)

    async def go() -> None:
        known = Passwords({"prom": SECRET})
        begun = time.monotonic()
        found = await asyncio.gather(*(known.check("prom", b"%d" % n) for n in range(10)), return_exceptions=True)
        assert [each for each in found if each is False] == [False] * 4
        assert sum(isinstance(each, Busy) for each in found) == 6
        assert time.monotonic() - begun >= 4 * 0.05 + 3 * 0.05 * passwords.PAUSE * 0.9
        assert await known.check("prom", b"right")
        known.close()

    asyncio.run(go())


def test_a_name_that_nobody_has_costs_as_much() -> None:
    async def go() -> None:
        cost = 8
        known = Passwords({"prom": bcrypt.hashpw(b"secret", bcrypt.gensalt(cost)).decode()})
        spent = {}
        for user in ("prom", "nobody"):
            times = []
            for n in range(5):
                known._free_at = 0.0
                begun = time.monotonic()
                assert not await known.check(user, b"%d" % n)
                times.append(time.monotonic() - begun)
            spent[user] = min(times)
        assert spent["nobody"] > spent["prom"] / 2
        assert not await known.check("nobody", b"")
        known.close()

    asyncio.run(go())
