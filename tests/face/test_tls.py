"""TLS of the HTTP interface: certificates that change, clients that show theirs; and clients that connect, send or read
without end: bounded, whatever they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, UnixConnector
from samplicator.config.web.model import Tls, WebConfig
from samplicator.http import app, endpoints, events, front
from samplicator.views.service import ServiceState
from support.state import make_state
from support.web import bearer, loaded


def make_authority(place: Path) -> None:
    run = lambda *argv: subprocess.run(argv, check=True, capture_output=True, cwd=place)  # noqa: E731
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("openssl", "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "9", "-subj", "/CN=ca")
    for name, san in (("one", "DNS:relay.example.net,IP:127.0.0.1"), ("two", "IP:127.0.0.1"), ("scraper", "DNS:good")):
        run("openssl", "req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (place / "more").write_text(f"subjectAltName={san}\n")
        run(
            *("openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "9"),
            *("-CAcreateserial", "-extfile", "more", "-out", f"{name}.pem"),
        )


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pki")
    make_authority(place)
    return place


def tls(place: Path, name: str = "one", **more: Any) -> WebConfig:
    return WebConfig("w", Tls(str(place / f"{name}.pem"), str(place / f"{name}.key"), **more), digest=name)


def trusting(place: Path, name: str = "") -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(place / "ca.pem"))
    made.verify_flags &= ~ssl.VERIFY_X509_STRICT  # default since Python 3.13; a small authority has no key usage
    if name:
        made.load_cert_chain(place / f"{name}.pem", place / f"{name}.key")
    return made


def serve(state: ServiceState, body: Callable[[str, int], Awaitable[None]], **limits: Any) -> None:
    async def go() -> None:
        sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        sock.setblocking(False)
        server = front.Front(app.make_app(state), **limits)
        port = sock.getsockname()[1]
        await server.start([sock])
        try:
            await body(f"https://127.0.0.1:{port}", port)
        finally:
            await server.stop()

    asyncio.run(go())


async def get(url: str, context: ssl.SSLContext, path: str = "/healthz", **headers: str) -> tuple[int, str]:
    """Status, and the name that the server's certificate has."""
    async with (
        ClientSession(connector=TCPConnector(ssl=context)) as session,
        session.get(url + path, headers=headers) as answer,
    ):
        transport: Any = answer.connection.transport if answer.connection is not None else None
        shown = transport.get_extra_info("peercert") if transport is not None else {}
        await answer.read()
        return answer.status, dict(part[0] for part in shown.get("subject", ())).get("commonName", "")


def test_a_reload_changes_the_certificate_of_new_connections(pki: Path) -> None:
    state = make_state(loaded=loaded(tls(pki)))

    async def body(url: str, port: int) -> None:
        context = trusting(pki)
        async with ClientSession(connector=TCPConnector(ssl=context)) as old:
            async with old.get(f"{url}/api/v1/status") as answer:
                assert answer.status == 200
            assert (await get(url, context, Host="relay.example.net:1"))[0] == 200, "the certificate has that name"
            assert (await get(url, context, Host="evil.example"))[0] == 421
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            shown = writer.get_extra_info("peercert")["subject"]
            state.loaded = loaded(tls(pki, "two"))
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200" in await reader.readline(), "an open connection goes on"
            writer.close()
            assert shown == ((("commonName", "one"),),)
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            assert writer.get_extra_info("peercert")["subject"] == ((("commonName", "two"),),)
            writer.close()
            state.loaded = loaded()
        plain = url.replace("https", "http")
        async with ClientSession() as session, session.get(f"{plain}/healthz") as answer:
            assert answer.status == 200, "the configuration has no TLS any more"
        state.loaded = loaded(tls(pki))
        assert (await get(url, context))[0] == 200

    serve(state, body)


def test_never_plain_when_the_certificate_cannot_be_opened(pki: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = make_state(loaded=loaded(WebConfig("w", Tls(str(pki / "gone.pem"), str(pki / "gone.key")))))

    async def body(url: str, port: int) -> None:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        state.loaded = loaded(tls(pki))
        assert (await get(url, trusting(pki)))[0] == 200
        state.loaded = loaded(WebConfig("w", Tls(str(pki / "gone.pem"), str(pki / "gone.key"))))
        assert (await get(url, trusting(pki)))[0] == 200, "the previous certificate stays"

    serve(state, body)
    assert len([record for record in caplog.records if "cannot be opened" in record.message]) == 1


def test_clients_show_certificates(pki: Path) -> None:
    wanted = {"client_ca_file": str(pki / "ca.pem"), "client_cert": "required", "min_version": "TLS12"}
    state = make_state(loaded=loaded(tls(pki, **wanted)))

    async def body(url: str, port: int) -> None:
        with pytest.raises(Exception):  # noqa: B017  # with TLS 1.3 the client sees it when it reads
            await get(url, trusting(pki))
        assert (await get(url, trusting(pki, "scraper")))[0] == 200
        state.loaded = loaded(replace(tls(pki, **wanted, names=("bad",)), digest="other"))
        assert (await get(url, trusting(pki, "scraper")))[0] == 403
        state.loaded = loaded(replace(tls(pki, **wanted, names=("bad", "good")), digest="third"))
        assert (await get(url, trusting(pki, "scraper")))[0] == 200

    serve(state, body)


def test_versions_of_tls(pki: Path) -> None:
    async def body(url: str, port: int) -> None:
        old = trusting(pki)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):
            await get(url, old)
        assert (await get(url, trusting(pki)))[0] == 200

    serve(make_state(loaded=loaded(tls(pki, min_version="TLS13"))), body)


def test_the_control_socket_needs_nothing(pki: Path, tmp_path: Path) -> None:
    state = make_state(loaded=loaded(replace(tls(pki), users=(("prom", "$2b$04$" + "." * 21 + "u" + "a" * 31),))))

    async def go() -> None:
        path = str(tmp_path / "c.sock")
        server = front.Front(app.make_app(state))
        await server.start([endpoints.open_control(path)])
        async with ClientSession(connector=UnixConnector(path)) as session:
            async with session.get("http://evil.example/healthz") as answer:
                assert answer.status == 200
            async with session.post("http://evil.example/-/reload") as answer:
                assert answer.status == 200
        await server.stop()

    asyncio.run(go())


def test_unfinished_handshakes_are_bounded(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "GREETINGS", 8)

    async def body(url: str, port: int) -> None:
        silent = []
        for _ in range(40):
            silent.append(await asyncio.open_connection("127.0.0.1", port))
            await asyncio.sleep(0)
        assert (await get(url, trusting(pki)))[0] == 200, "who talks is served meanwhile"
        closed = 0
        for reader, writer in silent:
            with contextlib.suppress(TimeoutError, ConnectionError):
                closed += await asyncio.wait_for(reader.read(), 0.02) == b""
            writer.close()
        assert closed >= 30

    serve(make_state(loaded=loaded(tls(pki))), body)


# ---------------------------------------------------------------------------------------------------- bounds


def test_a_thousand_idle_connections(caplog: pytest.LogCaptureFixture) -> None:
    """Bounded, and who asks is answered."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # both ends of them are in this process

    async def body(url: str, port: int) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(1000)]
        async with ClientSession() as session:
            for _ in range(20):
                async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
                    assert answer.status == 200
        await asyncio.sleep(0.2)
        alive = sum(not reader.at_eof() and reader.exception() is None for reader, _ in idle)
        assert alive <= front.MAX_CONNECTIONS + 1
        for _, writer in idle:
            writer.close()

    with caplog.at_level(logging.INFO):
        serve(make_state(), body)
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize("headers", [{}, bearer("geheim")])
def test_a_request_of_ten_megabytes(headers: dict[str, str]) -> None:
    """Answered without reading it, or while it comes; it is never kept."""
    import tracemalloc

    state = make_state(tokens=("geheim",))

    async def body(url: str, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(
            f"POST /-/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10 << 20}\r\n{lines}\r\n".encode()
        )
        status = asyncio.create_task(reader.readline())
        tracemalloc.start()
        chunk = bytes(64 << 10)
        with contextlib.suppress(ConnectionError):
            for _ in range((10 << 20) // len(chunk)):
                writer.write(chunk)
                await writer.drain()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 << 20
        with contextlib.suppress(ConnectionError):
            assert (await asyncio.wait_for(status, 10)).split()[1] == (b"200" if headers else b"401")
        writer.close()
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200

    serve(state, body)


def test_streams_do_not_keep_others_out() -> None:
    async def body(url: str, port: int) -> None:
        async with ClientSession() as session:
            open_streams = [await session.get(f"http://127.0.0.1:{port}/api/v1/events") for _ in range(events.STREAMS)]
            async with session.get(f"http://127.0.0.1:{port}/api/v1/events") as answer:
                assert answer.status == 503
            async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
                assert answer.status == 200
            for each in open_streams:
                each.close()

    serve(make_state(), body)


def test_connections_that_are_all_busy_are_bounded() -> None:
    """They ask for what takes long; further ones are closed at once, the control socket is not."""

    async def body(url: str, port: int) -> None:
        busy = []
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            busy.append((reader, writer))
            await asyncio.sleep(0.02)
        served = 0
        for reader, writer in busy:
            with contextlib.suppress(ConnectionError, TimeoutError):
                served += (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
            writer.close()
        assert served == 8

    serve(make_state(), body, connections=4)


def test_a_slow_handshake_is_followed_like_others(pki: Path) -> None:
    """A connection that needs seconds for its handshake, and then says nothing, is closed when it was idle."""

    async def body(url: str, port: int) -> None:
        raw = socket.create_connection(("127.0.0.1", port))
        await asyncio.sleep(1.5)  # the sweeper has been there
        raw.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=raw, ssl=trusting(pki), server_hostname="127.0.0.1")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()

    serve(make_state(loaded=loaded(tls(pki))), body, idle=0.5)


def test_streams_end_when_the_users_change() -> None:
    state = make_state()

    async def body(url: str, port: int) -> None:
        async with ClientSession() as session, session.get(f"http://127.0.0.1:{port}/api/v1/events") as answer:
            await answer.content.readline()
            state.loaded = loaded(WebConfig("w", users=(("prom", "$2b$04$" + "." * 21 + "u" + "a" * 31),)))
            await asyncio.wait_for(answer.read(), 10)
            async with session.get(f"http://127.0.0.1:{port}/api/v1/events") as again:
                assert again.status == 401

    serve(state, body)
