"""A server whose sockets another process goes on with: nobody is refused, and everybody who asked gets an answer."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from samplicator.config.model.service import Service
from samplicator.http import app, endpoints, front
from samplicator.service.pages import Pages
from samplicator.supervisor.refusal import BuildError
from support.hosts import free_port
from support.state import make_state

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def listening() -> Iterator[tuple[socket.socket, socket.socket]]:
    """One socket, as two processes have it."""
    one = endpoints.open_tcp(f"127.0.0.1:{free_port()}")
    other = one.dup()
    yield one, other
    for each in (one, other):
        each.close()


async def connect(to: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = to.getsockname()
    return await asyncio.open_connection(host, port)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(REQUEST)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    return head + await reader.readexactly(length)


def test_everybody_gets_an_answer(listening: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = listening

    async def go() -> None:
        old, new = front.Front(app.make_app(make_state())), front.Front(app.make_app(make_state()))
        await old.start([ours])
        idle, fresh = await connect(theirs), await connect(theirs)
        assert b"200 OK" in await ask(*idle)
        while len(old._open) < 2:  # the fresh one is accepted
            await asyncio.sleep(0.01)
        old.leave([ours])
        assert await asyncio.wait_for(idle[0].read(), 10) == b"", "it asks whoever answers now"
        late = await connect(theirs)
        asked = asyncio.create_task(ask(*late))
        finishing = asyncio.create_task(old.finish(10))
        await asyncio.sleep(0.1)
        assert not finishing.done(), "somebody has connected and not asked yet"
        assert b"200 OK" in await ask(*fresh)
        await asyncio.wait_for(finishing, 10)
        await old.stop()
        assert not asked.done()
        await new.start([theirs])
        assert b"200 OK" in await asked
        await new.stop()

    asyncio.run(go())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("turns", range(8))
def test_a_connection_that_is_accepted_just_then(
    listening: tuple[socket.socket, socket.socket], new_loop: Callable[[], asyncio.AbstractEventLoop], turns: int
) -> None:
    """However many turns of the loop lie between its coming and our leaving, one of the two answers."""
    ours, theirs = listening

    async def go() -> None:
        old, new = front.Front(app.make_app(make_state())), front.Front(app.make_app(make_state()))
        await old.start([ours])
        await asyncio.sleep(0.05)  # it waits for connections
        with socket.create_connection(theirs.getsockname()) as client:
            client.setblocking(False)
            for _ in range(turns):
                await asyncio.sleep(0)
            old.leave([ours])
            await new.start([theirs])
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, REQUEST)
            await old.finish(10)
            assert b"200 OK" in await asyncio.wait_for(loop.sock_recv(client, 4096), 10)
        await old.stop()
        await new.stop()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(go())


def test_it_does_not_wait_for_ever(listening: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = listening

    async def go() -> None:
        old = front.Front(app.make_app(make_state()))
        await old.start([ours])
        await connect(theirs)
        while not old._open:
            await asyncio.sleep(0.01)
        old.leave([ours])
        await asyncio.wait_for(old.finish(0.2), 10)
        await old.stop()

    asyncio.run(go())


def service(**values: Any) -> Service:
    return Service(**{"http": "", "control": "", **values})


def test_pages_of_two_processes(tmp_path: Path) -> None:
    """What fits is taken, what does not is closed and replaced; own_control stays with its process; files of sockets
    that were handed over stay, too.
    """
    port = free_port()
    control, own = str(tmp_path / "control"), str(tmp_path / "own")

    async def go() -> None:
        old, new = Pages(), Pages()
        old.open(service(http=f"127.0.0.1:{port}", control=control, own_control=own))
        await old.start(make_state())
        given = {key: sock.dup() for key, sock in old.shared().items()}
        assert set(given) == {"http", "control"}
        elsewhere = free_port()
        new.open(service(http=f"127.0.0.1:{elsewhere}", control=control), given)
        assert given["http"].fileno() == -1
        assert new.shared()["control"] is given["control"]
        old.leave()
        assert old.shared() == {}
        await new.start(make_state())
        for path in (control, own):
            assert b"200 OK" in await ask(*await asyncio.open_unix_connection(path))
        await old.stop()
        assert (os.path.exists(control), os.path.exists(own)) == (True, False)
        assert b"200 OK" in await ask(*await asyncio.open_unix_connection(control))
        await new.stop()
        assert not os.path.exists(control)

    asyncio.run(go())


def test_two_processes_with_the_same_path(tmp_path: Path) -> None:
    """The second one says where that is written and what to write; the first one keeps its socket."""
    path = str(tmp_path / "control")

    async def go() -> None:
        first, second = Pages(), Pages()
        first.open(service(control=path))
        await first.start(make_state())
        with pytest.raises(BuildError, match="each process needs its own: write another path") as refusal:
            second.open(service(control=path))
        assert refusal.value.where == ("service", "control")
        await second.stop()
        assert b"200 OK" in await ask(*await asyncio.open_unix_connection(path))
        await first.stop()

    asyncio.run(go())


@pytest.mark.parametrize(
    ("bound", "wanted", "fits"),
    [("127.0.0.1", "127.0.0.1", True), ("127.0.0.1", "0.0.0.0", False), ("0.0.0.0", "0.0.0.0", True)],
)
def test_what_fits(bound: str, wanted: str, fits: bool) -> None:
    sock = endpoints.open_tcp(f"{bound}:{free_port()}")
    port = sock.getsockname()[1]
    assert endpoints.listens_on(sock, f"{wanted}:{port}") is fits
    assert not endpoints.listens_on(sock, f"{wanted}:{port % 65535 + 1}")
    sock.close()


def test_a_local_socket_is_no_port(tmp_path: Path) -> None:
    sock = endpoints.open_control(str(tmp_path / "control"))
    assert not endpoints.listens_on(sock, "127.0.0.1:80")
    sock.close()
