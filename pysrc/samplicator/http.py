"""The HTTP interface: metrics, health, status and reload, on a TCP address and on the local control socket.

Purpose: `make_app` builds the application, `open_tcp` and `open_control` its sockets, `Front` serves it on them.
Invariants: reading is free for whoever reaches a socket, changing needs the control socket (its file mode is the
gate) or the bearer token; nothing slow runs on the loop; a client that sends slowly, much or nothing costs a bounded
number of bytes and seconds. Called by service. The only importer of aiohttp and orjson. It must never touch the
datapath's objects: it reads ServiceState.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import logging
import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from samplicator import metrics
from samplicator.config.address import endpoint_text, parse_listen

if TYPE_CHECKING:
    from samplicator.readings import Readings
    from samplicator.service import ServiceState

log = logging.getLogger(__name__)

MAX_BODY: Final = 64 << 10  # bytes of a request's body; nothing here needs one
MAX_LINE: Final = 4096  # bytes of the request line
MAX_FIELD: Final = 8190  # bytes of a header
MAX_CONNECTIONS: Final = 256
IDLE_SECONDS: Final = 30.0  # a connection without a request under way is closed after this
ANSWER_SECONDS: Final = 15.0
RELOAD_SECONDS: Final = 120.0  # a reload may wait for name servers
CONTROL_MODE: Final = 0o660
BACKLOG: Final = 64

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _Shared:
    """What the handlers share."""

    state: ServiceState
    registry: Any
    scrapes: asyncio.Semaphore
    touch: Callable[[object, int], None] = lambda protocol, change: None


SHARED: Final = web.AppKey("shared", _Shared)


def make_app(state: ServiceState) -> web.Application:
    """The application over a state; serve it with Front (or aiohttp's test client)."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[_guard])
    app[SHARED] = _Shared(state, metrics.make_registry(state), asyncio.Semaphore(2))
    get = app.router.add_get
    get("/", _index)
    get("/metrics", _metrics)
    for path in ("/healthz", "/-/healthy"):
        get(path, _health)
    for path in ("/readyz", "/-/ready"):
        get(path, _ready)
    get("/api/v1/status", _status)
    get("/api/v1/receivers", _receivers)
    get("/api/v1/listeners", _listeners)
    get("/api/v1/config", _config)
    app.router.add_post("/-/reload", _reload)
    app.router.add_put("/-/reload", _reload)
    return app


# ---------------------------------------------------------------------------------------------------- every request


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Time limit, error texts as JSON, and the headers that every answer carries."""
    shared = request.app[SHARED]
    limit = RELOAD_SECONDS if request.path == "/-/reload" else ANSWER_SECONDS
    shared.touch(request.protocol, +1)
    response: web.StreamResponse
    try:
        async with asyncio.timeout(limit):
            response = await handler(request)
    except web.HTTPException as error:
        response = _json({"error": error.reason}, status=error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except TimeoutError:
        response = _json({"error": f"no answer within {limit:g} s"}, status=503)
    except Exception:
        log.exception("request %s %s failed", request.method, request.path)
        response = _json({"error": "internal error, see the log"}, status=500)
    finally:
        shared.touch(request.protocol, -1)
    response.headers["Server"] = "samplicator"
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _json(value: object, status: int = 200) -> web.Response:
    body = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=body, status=status, content_type="application/json")


def is_control(request: web.Request) -> bool:
    """Whether the request came over the local socket."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    return sock is not None and sock.family == socket.AF_UNIX


# ---------------------------------------------------------------------------------------------------- reading


async def _index(request: web.Request) -> web.Response:
    pages = sorted({resource.canonical for resource in request.app.router.resources()} - {"/"})
    version = request.app[SHARED].state.version
    return web.Response(text=f"samplicator {version}\n" + "".join(f"{page}\n" for page in pages))


async def _metrics(request: web.Request) -> web.Response:
    shared = request.app[SHARED]
    async with shared.scrapes:
        body, headers = await asyncio.to_thread(
            metrics.render,
            shared.registry,
            accept=request.headers.get("Accept", ""),
            accept_encoding=request.headers.get("Accept-Encoding", ""),
            names=tuple(request.query.getall("name[]", [])),
        )
    return web.Response(body=body, headers=headers)


async def _health(request: web.Request) -> web.Response:
    return _verdict(*request.app[SHARED].state.healthy())


async def _ready(request: web.Request) -> web.Response:
    return _verdict(*request.app[SHARED].state.ready())


def _verdict(good: bool, why: str) -> web.Response:
    return web.Response(text=f"{why or ('ok' if good else 'not ok')}\n", status=200 if good else 503)


async def _status(request: web.Request) -> web.Response:
    state = request.app[SHARED].state
    readings = await asyncio.to_thread(state.supervisor.readings)
    return _json(status_of(state, readings))


async def _receivers(request: web.Request) -> web.Response:
    readings = await asyncio.to_thread(request.app[SHARED].state.supervisor.readings)
    return _json(receivers_of(readings))


async def _listeners(request: web.Request) -> web.Response:
    readings = await asyncio.to_thread(request.app[SHARED].state.supervisor.readings)
    return _json(listeners_of(readings))


async def _config(request: web.Request) -> web.Response:
    loaded = request.app[SHARED].state.loaded
    return _json(
        {
            "origin": loaded.origin,
            "files": list(loaded.files),
            "sha256": loaded.text_hash,
            "warnings": [str(warning) for warning in loaded.warnings],
            "config": loaded.config.model_dump(mode="json", by_alias=True),
        }
    )


def status_of(state: ServiceState, readings: Readings) -> dict[str, Any]:
    """What `/api/v1/status` answers. Counts are totals since the start of what is configured now."""
    ready, ready_why = state.ready()
    healthy, healthy_why = state.healthy()
    reloader = state.reloader
    received = [item.counters for item in readings.listeners]
    sent = [item.counters for item in readings.receivers]
    return {
        "version": state.version,
        "pid": os.getpid(),
        "started_unix": state.started_unix,
        "uptime_seconds": max(0.0, time.time() - state.started_unix),
        "ready": ready,
        "ready_why": ready_why,
        "healthy": healthy,
        "healthy_why": healthy_why,
        "startup": state.startup,
        "config": {
            "origin": state.loaded.origin,
            "files": list(state.loaded.files),
            "sha256": state.loaded.text_hash,
            "generation": readings.generation,
            "reloads": reloader.reloads_total,
            "reload_failures": reloader.failures_total,
            "last_reload_successful": bool(reloader.last_successful),
            "last_reload_success_unix": reloader.last_success_timestamp,
            "warnings": [str(warning) for warning in state.loaded.warnings],
        },
        "received": {
            "datagrams": sum(c["datagrams"] for c in received),
            "bytes": sum(c["bytes"] for c in received),
            "matched": sum(c["matched"] for c in received),
            "truncated": sum(c["truncated"] for c in received),
            "denied": sum(c["denied"] for c in received),
            "unmatched": sum(c["unmatched"] for c in received),
            "kernel_drops": sum(item.kernel_drops for item in readings.listeners),
        },
        "sent": {
            "offered": sum(c["offered"] for c in sent),
            "sent": sum(c["sent"] for c in sent),
            "bytes": sum(c["sent_bytes"] for c in sent),
            "sampled_out": sum(c["sampled_out"] for c in sent),
            "errors": sum(_errors(c) for c in sent),
        },
        "listeners": len(readings.listeners),
        "receivers": len(readings.receivers),
        "workers": [asdict(worker) for worker in readings.workers],
    }


def receivers_of(readings: Readings) -> list[dict[str, Any]]:
    """What `/api/v1/receivers` answers, in the order of the configuration."""
    return [{**asdict(item), "errors": _errors(item.counters)} for item in readings.receivers]


def listeners_of(readings: Readings) -> list[dict[str, Any]]:
    """What `/api/v1/listeners` answers, in the order of the configuration."""
    return [
        {**asdict(item), "sockets": [endpoint_text(address, port) for address, port in item.sockets]}
        for item in readings.listeners
    ]


def _errors(counters: Any) -> int:
    return sum(count for field, count in counters.items() if field.startswith("dropped_"))


# ---------------------------------------------------------------------------------------------------- changing


async def _reload(request: web.Request) -> web.Response:
    state = request.app[SHARED].state
    if not is_control(request):
        if not state.reload_token:
            return _json(
                {
                    "error": "reload over TCP is off: use the control socket (`samplicator reload`) or set "
                    "service.reload_token_file"
                },
                status=403,
            )
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given, wanted = token.strip().encode(errors="replace"), state.reload_token.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, wanted):
            refused = _json({"error": "a bearer token is needed"}, status=401)
            refused.headers["WWW-Authenticate"] = 'Bearer realm="samplicator"'
            return refused
    # shielded: a client that goes away must not stop a reload half-way
    result = await asyncio.shield(state.reloader.reload("api"))
    return _json(asdict(result), status=200 if result.ok else 422)


# ---------------------------------------------------------------------------------------------------- sockets


def open_tcp(text: str) -> socket.socket:
    """A listening TCP socket on HOST:PORT. Raises OSError with a text that says what was wanted."""
    where = parse_listen(text)
    last: OSError | None = None
    for family, kind, proto, _, address in socket.getaddrinfo(
        where.host, where.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setblocking(False)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            last = error
            continue
        return sock
    number = last.errno if last is not None and last.errno else errno.EADDRNOTAVAIL
    raise OSError(number, f"cannot listen on http = {text!r}: {os.strerror(number)}")


def open_control(path: str) -> socket.socket:
    """A listening local socket at `path`, mode 0660. A socket file that nobody serves any more is replaced; one that
    answers is another daemon's, and then this raises OSError (EADDRINUSE). The last directory of the path is made
    when it is missing.
    """
    what = f"cannot make the control socket {path}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path) or "/", 0o755)
        _clear(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            mask = os.umask(0o777 & ~CONTROL_MODE)  # never open to others, not even between bind and chmod
            try:
                sock.bind(path)
            finally:
                os.umask(mask)
            sock.setblocking(False)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror or error}") from error
    return sock


def _clear(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file of that name that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise
        else:
            raise OSError(errno.EADDRINUSE, "another process serves it")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_control(path: str) -> None:
    """Removes the socket file at the end. Never raises."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)


class Front:
    """Serves an application on listening sockets, with a limit on connections and on the time one may be silent.

    aiohttp's own time limits begin with a connection's first request; a client that opens connections and says
    nothing, or a header a minute, would stay for ever. Here each connection is closed IDLE_SECONDS after its last
    request ended.
    """

    def __init__(self, app: web.Application, *, idle: float = IDLE_SECONDS, connections: int = MAX_CONNECTIONS) -> None:
        self._idle = idle
        self._limit = connections
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=idle,
            lingering_time=2.0,
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            shutdown_timeout=3.0,
        )
        self._app = app
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._open: dict[asyncio.Protocol, tuple[int, float]] = {}  # requests under way, time of the last change

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Serves on these sockets, which this now owns."""
        self._app[SHARED].touch = self._touch
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        for sock in sockets:
            self._servers.append(await loop.create_server(self._connection, sock=sock, backlog=BACKLOG))
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Closes the sockets, ends what is under way within seconds."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for server in self._servers:
            server.close()
        await self._runner.cleanup()
        self._open.clear()

    def _connection(self) -> asyncio.Protocol:
        make = self._runner.server
        assert make is not None
        protocol: asyncio.Protocol = make()
        self._open[protocol] = (0, time.monotonic())
        if len(self._open) > self._limit:
            asyncio.get_running_loop().call_soon(self._sweep_once)
        return protocol

    def _touch(self, protocol: object, change: int) -> None:
        if protocol in self._open:
            busy, _ = self._open[protocol]
            self._open[protocol] = (busy + change, time.monotonic())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._idle / 2))
            self._sweep_once()

    def _sweep_once(self) -> None:
        """Forgets closed connections, closes silent ones, and the longest silent ones above the limit."""
        now = time.monotonic()
        silent: list[tuple[float, asyncio.Protocol]] = []
        for protocol, (busy, since) in list(self._open.items()):
            transport = getattr(protocol, "transport", None)
            if transport is None or transport.is_closing():
                if now - since > 1.0 or transport is not None:
                    del self._open[protocol]
            elif not busy:
                silent.append((since, protocol))
        silent.sort(key=lambda entry: entry[0])
        surplus = max(0, len(self._open) - self._limit)
        for index, (since, protocol) in enumerate(silent):
            if index < surplus or now - since > self._idle:
                transport = getattr(protocol, "transport", None)
                if transport is not None:
                    transport.abort()
                self._open.pop(protocol, None)
