"""The HTTP interface: pages, who may change, limits, and the sockets it is served on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector
from aiohttp.test_utils import TestClient, TestServer
from samplicator.http import app, endpoints, front, listing, rows
from samplicator.readings import FlowField, FlowTemplate, Route, Unmatched
from samplicator.supervisor.reload import ReloadResult
from samplicator.views.service import ServiceState
from support.state import FakeReloader, make_session, make_state

Client = TestClient[Any, Any]


def with_client(state: ServiceState, body: Callable[[Client], Awaitable[None]]) -> None:
    async def go() -> None:
        async with TestClient(TestServer(app.make_app(state))) as client:
            await body(client)

    asyncio.run(go())


def with_sockets(
    state: ServiceState, sockets: list[socket.socket], body: Callable[[], Awaitable[None]], **limits: Any
) -> None:
    async def go() -> None:
        server = front.Front(app.make_app(state), **limits)
        await server.start(sockets)
        try:
            await body()
        finally:
            await server.stop()

    asyncio.run(go())


@pytest.mark.parametrize(
    ("page", "status", "kind"),
    [
        ("/", 200, "text/plain"),
        ("/metrics", 200, "text/plain"),
        ("/healthz", 200, "text/plain"),
        ("/-/healthy", 200, "text/plain"),
        ("/readyz", 200, "text/plain"),
        ("/-/ready", 200, "text/plain"),
        ("/api/v1/status", 200, "application/json"),
        ("/api/v1/receivers", 200, "application/json"),
        ("/api/v1/pools", 200, "application/json"),
        ("/api/v1/listeners", 200, "application/json"),
        ("/api/v1/config", 200, "application/json"),
        ("/api/v1/flow", 200, "application/json"),
        ("/api/v1/exporters", 200, "application/json"),
        ("/api/v1/templates", 200, "application/json"),
        ("/api/v1/domains", 200, "application/json"),
        ("/api/v1/ledger", 200, "application/json"),
        ("/api/v1/export", 200, "application/json"),
        ("/api/v1/history", 200, "application/json"),
        ("/api/v1/openapi.json", 200, "application/json"),
        ("/api/v1/domains?limit=x", 400, "application/json"),
        ("/api/v1/exporters?after=x", 400, "application/json"),
        ("/api/v1/templates?limit=0", 400, "application/json"),
        ("/api/v1/templates?exporter=nobody", 400, "application/json"),
        ("/api/v1/ledger?limit=1_0", 400, "application/json"),
        ("/api/v1/history?kind=all", 400, "application/json"),
        ("/api/v1/history?seconds=901", 400, "application/json"),
        ("/api/v1/history?after=1.2", 400, "application/json"),
        ("/nothing", 404, "application/json"),
        ("/-/reload", 405, "application/json"),
    ],
)
def test_pages(page: str, status: int, kind: str) -> None:
    async def body(client: Client) -> None:
        answer = await client.get(page)
        assert (answer.status, answer.content_type) == (status, kind)
        assert answer.headers["Server"] == "samplicator"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        if status == 405:
            assert answer.headers["Allow"] == "POST,PUT"

    with_client(make_state(), body)


def test_probes_say_why_not() -> None:
    state = make_state(ready=lambda: (False, "starting"), healthy=lambda: (False, "worker 1 is stuck"))

    async def body(client: Client) -> None:
        for page, text in (("/readyz", "starting\n"), ("/healthz", "worker 1 is stuck\n")):
            answer = await client.get(page)
            assert (answer.status, await answer.text()) == (503, text)

    with_client(state, body)


def test_status_adds_up() -> None:
    async def body(client: Client) -> None:
        status = await (await client.get("/api/v1/status")).json()
        receivers = await (await client.get("/api/v1/receivers")).json()
        listeners = await (await client.get("/api/v1/listeners")).json()
        pools = await (await client.get("/api/v1/pools")).json()
        assert [pool["name"] for pool in pools] == ["both"]
        assert pools[0]["members"][1] == {"receiver": "six", "weight": 1, "up": False, "exporters": 100}
        assert (receivers[1]["state"], receivers[1]["state_why"]) == (
            "unreachable",
            "there is no route to the receiver",
        )
        assert (receivers[1]["standby_for"], receivers[1]["waiting"], receivers[1]["takeovers"]) == ("nfdump", False, 2)
        got, sent = status["received"], status["sent"]
        assert got["datagrams"] == got["matched"] + got["truncated"] + got["denied"] + got["unmatched"]
        assert sent["offered"] == sent["sent"] + sent["skipped"] + sent["failed"]
        assert got["datagrams"] == sum(item["counters"]["datagrams"] for item in listeners)
        assert sent["failed"] == sum(item["failed"] for item in receivers)
        assert status["version"] == "9.9.9"
        assert status["config"]["generation"] == 7
        assert [item["name"] for item in receivers] == ["nfdump", "six"]
        assert listeners[0]["sockets"] == ["0.0.0.0:2055", "[::]:2055"]
        assert len(status["workers"]) == 2

    with_client(make_state(), body)


def test_exporters_come_in_pages() -> None:
    async def body(client: Client) -> None:
        after, seen, pages = "0.0", [], 0
        while after:
            answer = await (await client.get(f"/api/v1/exporters?limit=2&after={after}")).json()
            seen += [row["exporter"] for row in answer["exporters"]]
            after, pages = answer["after"], pages + 1
        assert (seen, pages) == ([f"192.0.2.{number}" for number in range(1, 6)], 3)
        row = answer["exporters"][0]
        assert (row["lost"], row["lost_last"], row["unit"]) == (3, 1, "packets")
        assert (row["listener"], row["domain"], row["place"]) == ("netflow", 7, "0.5")
        assert (row["datagrams_per_second"], row["mean_bytes"]) == (2.0, 100.0)
        assert (row["sampling_interval"], row["uptime_seconds"], row["clock_skew_seconds"]) == (512, 1000.0, 2.0)

    with_client(make_state(), body)


def test_shares_are_those_of_one_receiver() -> None:
    async def body(client: Client) -> None:
        assert (await client.get("/api/v1/shares")).status == 400
        assert (await client.get("/api/v1/shares?receiver=nobody")).status == 400
        page = await (await client.get("/api/v1/shares?receiver=six&limit=3")).json()
        assert ([row["exporter"] for row in page["shares"]], page["after"]) == (
            ["192.0.2.1", "192.0.2.2", "192.0.2.3"],
            "0.3",
        )
        page = await (await client.get("/api/v1/shares?receiver=six&after=0.3")).json()
        assert ([row["exporter"] for row in page["shares"]], page["after"]) == (["192.0.2.4"], None)
        row = page["shares"][0]
        assert (row["missing"], row["unit"], row["pool"]) == (3, "packets", "")
        assert page["receiver"]["offered"] == page["receiver"]["skipped"] + page["receiver"]["sent"] + sum(
            page["receiver"]["failed"].values()
        )

    def route(address: bytes, port: int = 0, listener: str = "") -> Route:
        return Route((), (), () if address == bytes((192, 0, 2, 5)) else ("six",), False)

    state = make_state()
    state.view.route = route  # type: ignore[method-assign]
    with_client(state, body)


def test_domains_come_in_pages() -> None:
    async def body(client: Client) -> None:
        first = await (await client.get("/api/v1/domains?limit=2")).json()
        assert (len(first["domains"]), first["after"], first["unlisted"]) == (2, "0.2", 5)
        last = await (await client.get("/api/v1/domains?limit=2&after=0.2")).json()
        assert (len(last["domains"]), last["after"]) == (1, None)
        assert first["domains"][1] == {
            "unique": 4000000001,
            "exporter": "192.0.2.1",
            "port": 2055,
            "protocol": "netflow9",
            "domain": 1,
            "held_by": "session",
            "silent_seconds": 61.0,
        }

    with_client(make_state(), body)


def test_templates_have_names() -> None:
    async def body(client: Client) -> None:
        answer = await (await client.get("/api/v1/templates")).json()
        assert answer["after"] is None
        data, options = answer["domains"][0]["templates"]
        assert [field["name"] for field in data["fields"]] == [
            "sourceIPv4Address", "reverseOctetDeltaCount", "e9/40001",
        ]  # fmt: skip
        assert [field["bytes"] for field in data["fields"]] == [4, 4, None]
        assert [(field["name"], field["scope"]) for field in options["fields"]] == [
            ("interface", True), ("samplingInterval", False),
        ]  # fmt: skip

    with_client(make_state(), body)


def test_sessions_that_could_not_be_listed_in_time() -> None:
    def busy() -> list[Any]:
        raise TimeoutError("gateway sctp did not say")

    async def body(client: Client) -> None:
        for path in ("/api/v1/sessions", "/api/v1/sctp"):
            answer = await client.get(path)
            assert (answer.status, await answer.json()) == (503, {"error": "gateway sctp did not say"})

    state = make_state()
    state.sessions = busy
    with_client(state, body)


class Large:
    """Three exporters of 400 templates of 40 fields each."""

    def __init__(self, state: ServiceState) -> None:
        self.supervisor: Any = state.view
        self.made = 0
        self.supervisor.domains = self.sessions
        self.supervisor.flow_templates = self.templates

    def sessions(self, worker: int = 0, after: int = 0, limit: int = 1000) -> Any:
        numbers = range(after + 1, min(after + limit, 3) + 1) if worker == 0 else ()
        return [make_session(number) for number in numbers], None

    def templates(self, worker: int, number: int, after: int = -1) -> Iterator[FlowTemplate]:
        fields = tuple(FlowField(n, 4, 0, False) for n in range(1, 41))
        for identity in range(max(256, after + 1), 656):
            self.made += 1
            yield FlowTemplate(identity, "template", 1.0, 2.0, 160, fields, b"")


def test_a_page_is_bounded_in_bytes() -> None:
    """It ends in the middle of a domain, and the next page goes on there: each template once."""

    async def body(client: Client) -> None:
        after, found, pages = "0.0", [], 0
        while after:
            answer = await client.get(f"/api/v1/templates?after={after}")
            text = await answer.read()
            assert len(text) < listing.PAGE_BYTES + rows.PIECE_BYTES + 10_000
            value = json.loads(text)
            found += [(row["place"], item["id"]) for row in value["domains"] for item in row["templates"]]
            after, pages = value["after"], pages + 1
        assert found == [(f"0.{number}", identity) for number in (1, 2, 3) for identity in range(256, 656)]
        assert pages > 3
        one = await (await client.get("/api/v1/templates?exporter=192.0.2.2&limit=1")).json()
        assert [row["exporter"] for row in one["domains"]] == ["192.0.2.2"]

    state = make_state()
    Large(state)
    with_client(state, body)


def test_nothing_is_made_for_a_client_that_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "c.sock")
    state = make_state()
    large = Large(state)

    async def body() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /api/v1/templates HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readexactly(2000)
        writer.transport.abort()
        made = -1
        while made != large.made:  # until it stands still
            made = large.made
            await asyncio.sleep(0.2)
        assert made < 150, "a page has about 250 of them"
        large.made = 0
        async with (
            ClientSession(connector=UnixConnector(path)) as client,
            client.get("http://x/api/v1/templates") as answer,
        ):
            assert json.loads(await answer.read())["after"]

    with_sockets(state, [endpoints.open_control(path)], body)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_exporters_without_a_rule() -> None:
    async def body(client: Client) -> None:
        for page in ("status", "flow"):
            value = (await (await client.get(f"/api/v1/{page}")).json())["unmatched"]
            assert value["count"] == 30
            assert len(value["exporters"]) == 20
            assert value["exporters"][0] == {"exporter": "198.18.0.1", "listener": "netflow", "datagrams": 17}

    state = make_state()
    supervisor: Any = state.view
    supervisor.without_rule = [Unmatched(f"198.18.0.{n}", "netflow", 17) for n in range(1, 31)]
    with_client(state, body)


def test_flow_totals() -> None:
    async def body(client: Client) -> None:
        value = await (await client.get("/api/v1/flow")).json()
        assert value["memory_bytes"] == 64 << 20
        assert value["templates"] == 602
        assert value["protocols"]["ipfix"]["unit"] == "records"
        assert value["protocols"]["other"]["restarts"] >= 760

    with_client(make_state(), body)


def test_config_is_the_running_one() -> None:
    async def body(client: Client) -> None:
        value = await (await client.get("/api/v1/config")).json()
        assert value["files"] == ["a.toml"]
        assert value["config"]["datapath"]["max_datagram"] == 65535

    with_client(make_state(), body)


def test_a_failing_page_is_a_500_and_the_next_one_works() -> None:
    state = make_state()
    state.view.error = RuntimeError("boom")  # type: ignore[attr-defined]

    async def body(client: Client) -> None:
        answer = await client.get("/api/v1/status")
        assert (answer.status, await answer.json()) == (
            500,
            {"error": "internal error; the log of the daemon shows the cause"},
        )
        assert (await client.get("/healthz")).status == 200

    with_client(state, body)


# ---------------------------------------------------------------------------------------------------- changing


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        ("", {}, 403),
        ("", {"Authorization": "Bearer "}, 403),
        ("geheim", {}, 401),
        ("geheim", {"Authorization": "Bearer falsch"}, 401),
        ("geheim", {"Authorization": "Basic geheim"}, 401),
        ("geheim", {"Authorization": "Bearer gehe"}, 401),
        ("geheim", {"Authorization": "bearer geheim"}, 200),
        ("geheim", {"Authorization": "Bearer geheim"}, 200),
    ],
)
def test_reload_over_tcp_needs_the_token(token: str, headers: dict[str, str], status: int) -> None:
    state = make_state(tokens=(token, "other") if token else ())

    async def body(client: Client) -> None:
        answer = await client.post("/-/reload", headers=headers)
        assert answer.status == status
        assert (answer.headers.get("WWW-Authenticate") is not None) == (status == 401)

    with_client(state, body)
    assert len(state.reloader.triggers) == (status == 200)  # type: ignore[attr-defined]


def test_reload_over_the_control_socket_needs_nothing(tmp_path: Path) -> None:
    reloader = FakeReloader()
    state = make_state(reloader=reloader)
    path = str(tmp_path / "new" / "control.sock")

    async def body() -> None:
        async with ClientSession(connector=UnixConnector(path)) as session:
            for method in (session.post, session.put):
                async with method("http://localhost/-/reload") as answer:
                    assert (answer.status, (await answer.json())["generation"]) == (200, 8)
            reloader.result = ReloadResult(False, 8, "", ("a.toml:3: listener[0].listen: no",), 0.0)
            async with session.post("http://localhost/-/reload") as answer:
                assert answer.status == 422
                assert (await answer.json())["problems"] == ["a.toml:3: listener[0].listen: no"]

    with_sockets(state, [endpoints.open_control(path)], body)
    assert reloader.triggers == ["api"] * 3


def test_a_client_that_goes_away_does_not_stop_a_reload(tmp_path: Path) -> None:
    reloader = FakeReloader()
    reloader.delay = 0.3
    path = str(tmp_path / "control.sock")

    async def body() -> None:
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(b"POST /-/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.transport.abort()
        await asyncio.sleep(0.5)
        assert reloader.finished == 1

    with_sockets(make_state(reloader=reloader), [endpoints.open_control(path)], body)


# ---------------------------------------------------------------------------------------------------- limits


def test_bodies_and_lines_are_bounded() -> None:
    async def body(client: Client) -> None:
        assert (await client.get("/" + "x" * (front.MAX_LINE * 3))).status in (400, 404, 414)
        assert (await client.get("/healthz")).status == 200

    with_client(make_state(), body)

    async def raw() -> None:
        reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"y" * (front.MAX_FIELD * 2) + b"\r\n\r\n")
        await writer.drain()
        assert (await reader.readline()).split()[1] == b"400"
        writer.close()

    listening = _listen()
    with_sockets(make_state(), [listening], raw)


@pytest.mark.parametrize(
    "sent", [b"no request\r\n\r\n", b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", b"\x16\3\1\0\5"]
)
def test_what_is_no_request_writes_no_log(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reaches the port could fill the log with it."""

    async def raw() -> None:
        reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
        writer.write(sent)
        writer.write_eof()
        await _rest(reader)
        writer.close()

    listening = _listen()
    with caplog.at_level(logging.INFO):
        with_sockets(make_state(), [listening], raw)
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


def _listen() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


def test_silent_and_slow_clients_are_closed() -> None:
    listening = _listen()
    where = listening.getsockname()

    async def body() -> None:
        silent = [await asyncio.open_connection(*where) for _ in range(3)]
        slow_reader, slow = await asyncio.open_connection(*where)
        slow.write(b"GET /healthz HTTP/1.1\r\n")
        await asyncio.sleep(1.0)
        for reader, _ in silent:
            assert await asyncio.wait_for(_rest(reader), 2) == b""
        assert await asyncio.wait_for(_rest(slow_reader), 2) == b""
        reader, writer = await asyncio.open_connection(*where)
        writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        for _, other in silent:
            other.close()
        writer.close()
        slow.close()

    with_sockets(make_state(), [listening], body, idle=0.3)


def test_connections_are_bounded() -> None:
    listening = _listen()
    where = listening.getsockname()

    async def body() -> None:
        opened = []
        for _ in range(20):
            opened.append(await asyncio.open_connection(*where))
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        closed = 0
        for reader, writer in opened:
            with contextlib.suppress(TimeoutError):
                closed += await asyncio.wait_for(_rest(reader), 0.05) == b""
            writer.close()
        assert closed >= 12

    with_sockets(make_state(), [listening], body, connections=8)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


# ---------------------------------------------------------------------------------------------------- sockets


def test_control_socket_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "run" / "control.sock"
    sock = endpoints.open_control(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    sock.close()


def test_control_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    endpoints.open_control(path).close()
    assert os.path.exists(path)
    again = endpoints.open_control(path)
    again.close()
    endpoints.remove_control(path)
    assert not os.path.exists(path)
    endpoints.remove_control(path)


def test_control_socket_of_another_daemon_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    first = endpoints.open_control(path)
    with pytest.raises(OSError, match=rf"another process uses it \(process {os.getpid()}\)"):
        endpoints.open_control(path)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
    first.close()


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("mine")
    with pytest.raises(OSError, match="is not a socket"):
        endpoints.open_control(str(path))
    endpoints.remove_control(str(path))
    assert path.read_text() == "mine"


def test_tcp_socket_says_what_was_wanted() -> None:
    taken = _listen()
    text = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(OSError, match=f"cannot listen on http = '{text}'"):
        endpoints.open_tcp(text)
    taken.close()
    endpoints.open_tcp(text).close()
