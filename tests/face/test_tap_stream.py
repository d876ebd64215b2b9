"""/api/v1/tap as a stream: what is refused, how it ends, and that a client that reads nothing costs little."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from samplicator.http.routes import described
from samplicator.supervisor.taps import LIMIT
from support.hosts import free_port
from support.process import command, wait_for
from support.state import make_state
from support.taps import tap
from support.web import Client, with_client

DOCUMENT: Any = json.loads(described())


@contextlib.contextmanager
def daemon(directory: Path) -> Iterator[tuple[Path, int]]:
    """A real one: its control socket and port."""
    control, port = directory / "control", free_port()
    text = f"""[service]
control = "{control}"
[[listener]]
name = "in"
listen = ["127.0.0.1:{port}", "[::1]:{port}"]
[[receiver]]
name = "out"
to = "127.0.0.1:{free_port()}"
[[rule]]
to = ["out"]
"""
    (directory / "c.toml").write_text(text)
    process = subprocess.Popen([command("samplicator"), "run", "-c", str(directory / "c.toml")])
    try:
        wait_for(control.exists, "the control socket")
        yield control, port
    finally:
        process.terminate()
        assert process.wait(30) == 0


def send(port: int, payload: bytes, address: str = "127.0.0.1") -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(payload, (address, port))


def test_lines_are_as_documented(tmp_path: Path) -> None:
    content = DOCUMENT["paths"]["/api/v1/tap"]["get"]["responses"]["200"]["content"]["application/x-ndjson"]
    schema = {**content["schema"]["contentSchema"], "components": DOCUMENT["components"]}
    with daemon(tmp_path) as (control, port), tap(control) as found:
        send(port, b"four")
        send(port, b"six", "::1")
        found.wait(4)
        wait_for(lambda: len(found.ticks()) > 1, "two ticks")
        lines = list(found.lines)
    for line in lines:
        assert [error.message for error in Draft202012Validator(schema).iter_errors(line)] == []
    assert {line["event"] for line in lines} >= {"open", "in", "tick"}
    assert sorted((line["exporter"], line["listener"]) for line in lines if line["event"] == "in") == [
        ("127.0.0.1", "in"),
        ("::1", "in"),
    ]


def test_it_ends_with_the_daemon_and_after_a_count(tmp_path: Path) -> None:
    with daemon(tmp_path) as (control, port):
        with tap(control, count=3, exporter="::1") as few:
            for n in range(5):
                send(port, bytes([n]), "::1")
                send(port, bytes([n]))
            wait_for(lambda: few.ended, "the end of the stream")
            assert len(few.events()) == 3
            assert {event["exporter"] for event in few.events()} == {"::1"}
        last = tap(control)
        found = last.__enter__()
    wait_for(lambda: found.ended, "the end of the stream")
    assert found.lines[-1] == {"event": "end", "reason": "the daemon ends"}
    found.close()


def test_a_reload_is_told(tmp_path: Path) -> None:
    with daemon(tmp_path) as (control, port), tap(control) as found:
        path = tmp_path / "c.toml"
        path.write_text(path.read_text().replace('"out"', '"renamed"'))
        wait_for(lambda: sum(line["event"] == "open" for line in found.lines) == 2, "another open line")
        (opened,) = [line for line in found.lines if line["event"] == "open"][1:]
        assert [receiver["name"] for receiver in opened["receivers"]] == ["renamed"]
        send(port, b"x")
        assert {event["receiver"] for event in found.wait(1, "sent", "failed")} == {"renamed"}


def test_a_receiver_that_goes_and_comes_again_is_shown_again(tmp_path: Path) -> None:
    with daemon(tmp_path) as (control, port):
        path = tmp_path / "c.toml"
        with_it, without = path.read_text(), path.read_text().replace('"out"', '"other"')
        with tap(control, receiver="out") as found:
            send(port, b"first")
            found.wait(1)
            for text, opens in ((without, 2), (with_it, 3)):
                path.write_text(text)
                wait_for(lambda n=opens: sum(line["event"] == "open" for line in found.lines) == n, "the reload")

            def again() -> bool:
                send(port, b"again")
                return any(event["payload"] == b"again" for event in found.events())

            wait_for(again, "the receiver to be shown again")


def test_a_token_that_is_taken_away_ends_the_stream() -> None:
    async def body(client: Client) -> None:
        answer = await client.get("/api/v1/tap", headers={"Authorization": "Bearer geheim"})
        assert json.loads(await answer.content.readline())["event"] == "open"
        state.tokens = ("neu",)
        lines = [json.loads(line) for line in (await answer.read()).splitlines()]
        assert lines[-1] == {"event": "end", "reason": "the credentials have changed"}
        taken = [await client.get("/api/v1/tap", headers={"Authorization": "Bearer neu"}) for _ in range(LIMIT - 1)]
        assert [answer.status for answer in taken] == [200] * (LIMIT - 1)
        more = await client.get("/api/v1/tap", headers={"Authorization": "Bearer neu"})
        assert more.status == 503, "one is left to the control socket"
        for answer in taken:
            answer.close()

    state = make_state(tokens=("geheim",))
    with_client(state, body)


def test_too_many_and_what_is_left_of_them(tmp_path: Path) -> None:
    with daemon(tmp_path) as (control, port), contextlib.ExitStack() as stack:
        for _ in range(LIMIT):
            stack.enter_context(tap(control))
        with tap(control) as one_more:
            assert (one_more.status, json.loads(one_more.error)["error"][:12]) == (503, "4 taps are o")
        stack.close()

        def again() -> bool:
            with tap(control) as found:
                if found.status == 200:
                    send(port, b"x")
                    return bool(found.wait(1, "in"))
            return False

        for _ in range(3 * LIMIT):
            wait_for(again, "a tap that is free")


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"exporter": "x"}, "exporter must be"),
        ({"exporter": "fe80::1%lo"}, "exporter must be"),
        ({"exporter": ""}, "exporter must not be empty"),
        ({"receiver": "nobody"}, "receiver must be the name of a receiver"),
        ({"listener": "nobody"}, "listener must be the name of a listener"),
        ({"rate": "0"}, "rate must be"),
        ({"rate": "10001"}, "rate must be"),
        ({"drops": "yes"}, "drops must be true or false"),
        ({"count": "x"}, "count must be"),
    ],
)
def test_what_is_refused(asked: dict[str, str], why: str) -> None:
    async def body(client: Client) -> None:
        answer = await client.get("/api/v1/tap", params=asked, headers={"Authorization": "Bearer geheim"})
        assert answer.status == 400
        assert (await answer.json())["error"].startswith(why)

    with_client(make_state(tokens=("geheim",)), body)


def test_a_client_that_reads_nothing_is_dropped(tmp_path: Path) -> None:
    with daemon(tmp_path) as (control, port), socket.socket(socket.AF_UNIX) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(str(control))
        sock.sendall(b"GET /api/v1/tap?rate=10000 HTTP/1.1\r\nHost: x\r\n\r\n")
        with tap(control, rate=10000) as other:

            def dropped() -> bool:
                for _ in range(200):
                    send(port, bytes(8000))
                with contextlib.suppress(BlockingIOError):
                    sock.setblocking(False)
                    return sock.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == 0
                return False

            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                wait_for(dropped, "the client to be dropped")
            assert other.events("in")
