"""`samplicator top --url`: HTTP and HTTPS, credentials from the environment or a file, and servers that are slow,
wrong, hostile, or no samplicator at all.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from samplicator.cli import api
from samplicator.cli.api import WrongArguments, at_url, authorization
from samplicator.cli.main import main
from samplicator.cli.top.watch import Watch
from samplicator.errors import Unreachable
from support.process import tool
from support.stage import Stage
from support.state import make_sessions

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Answers every GET as the test says, and remembers the requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.answer: Answer = lambda handler: send(handler, 200, b"{}")
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes, and the second one would wait for 40 ms

            def do_GET(self) -> None:
                server.seen.append((self.path, dict(self.headers.items())))
                server.answer(self)

            def log_message(self, *words: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port: int = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    made.thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    made.thread.join()


# ---------------------------------------------------------------------------------------------------- a daemon


def test_over_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Stage(("127.0.0.1", 0)) as stage:
        url = f"http://{stage.where[0]}:{stage.where[1]}/"  # type: ignore[index]
        assert main(["top", "--url", url, "--json", "-n", "1", "-d", "0.5"]) == 0
        assert json.loads(capsys.readouterr().out)["rates"]["sent"] == pytest.approx(500, rel=0.3)
        stage.play.sessions = dict.fromkeys(make_sessions(), 40.0)
        assert main(["top", "--url", url, "--page", "sessions", "-b", "-n", "1", "-d", "0.5"]) == 0
        text = capsys.readouterr().out
        assert "six uses its backup for 1 of 2 sessions" in text
        assert "NOT CONNECTED" in text
        stage.stop()
        assert main(["top", "--url", url, "--json", "-n", "1"]) == 1
        assert "connection refused" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- credentials


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("text", "header"),
    [("me:se:cret", basic("me:se:cret")), ("mé:ß", basic("mé:ß")), ("abc.DEF-123_~+/==", "Bearer abc.DEF-123_~+/==")],
)
def test_credentials(text: str, header: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMPLICATOR_AUTH", text)
    at_url(server.url).get("/a")
    monkeypatch.setenv("SAMPLICATOR_AUTH", "other")
    (tmp_path / "auth").write_text(text + "\n")
    at_url(server.url + "/relay/", auth_file=str(tmp_path / "auth")).get("/b")
    assert [(path, headers["Authorization"]) for path, headers in server.seen] == [("/a", header), ("/relay/b", header)]


def test_no_credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAMPLICATOR_AUTH", raising=False)
    at_url(server.url).get("/")
    assert "Authorization" not in server.seen[0][1]


@pytest.mark.parametrize("text", ["a blank", "me:x\nX-More: 1", "me:x\ry", "tök", "a\0b", ":\x1b"])
def test_bad_credentials_are_not_sent_nor_shown(text: str, tmp_path: Path) -> None:
    (tmp_path / "auth").write_text(text, newline="")
    with pytest.raises(WrongArguments, match="must be one line") as error:
        authorization(str(tmp_path / "auth"))
    assert text not in str(error.value)


def test_a_redirect_is_not_followed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the named server gets the credentials."""
    monkeypatch.setenv("SAMPLICATOR_AUTH", "me:secret")
    server.answer = lambda handler: send(handler, 302, b"", Location=f"{server.url}/elsewhere")
    with pytest.raises(Unreachable, match="answered 302"):
        at_url(server.url).get("/")
    assert len(server.seen) == 1


def test_refused_credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMPLICATOR_AUTH", "me:secret")
    server.answer = lambda handler: send(handler, 401, b'{"error": "no"}', WWW_Authenticate="Basic")
    with pytest.raises(Unreachable, match="set SAMPLICATOR_AUTH or use --auth-file") as error:
        at_url(server.url).get("/")
    assert "secret" not in str(error.value)


# ---------------------------------------------------------------------------------------------------- TLS


def test_https(server: Server, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        [tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=relay", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    url = f"https://127.0.0.1:{server.port}"
    assert at_url(url, ca_file=str(certificate)).get("/") == {}
    with pytest.raises(Unreachable, match=r"its certificate is not trusted .*--ca-file"):
        at_url(url).get("/")
    with pytest.raises(Unreachable, match="certificate is not trusted"):  # the name counts
        at_url(f"https://localhost:{server.port}", ca_file=str(certificate)).get("/")
    with pytest.raises(Unreachable):  # plain HTTP is not understood there
        at_url(server.url).get("/")


def test_https_to_plain_http(server: Server) -> None:
    with pytest.raises(Unreachable, match="does it speak https there"):
        at_url(f"https://127.0.0.1:{server.port}").get("/")


# ---------------------------------------------------------------------------------------------------- bad servers


def test_a_connection_is_kept_and_made_anew(server: Server) -> None:
    client = at_url(server.url)
    ports = set()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        ports.add(handler.client_address[1])
        send(handler, 200, b"[1]")

    server.answer = answer
    assert [client.get("/") for _ in range(5)] == [[1]] * 5
    assert len(ports) == 1
    server.answer = lambda handler: (answer(handler), setattr(handler, "close_connection", True), None)[-1]
    assert [client.get("/") for _ in range(3)] == [[1]] * 3
    assert len(ports) == 3


@pytest.mark.parametrize(
    ("body", "why"),
    [(b"<html>", "is not JSON"), (b"[" * 200_000, "is not JSON"), (b"\xff\xfe", "is not JSON"),
     (b" " * ((16 << 20) + 1), "more than 16 MiB")],
)  # fmt: skip
def test_answers_that_are_none(server: Server, body: bytes, why: str) -> None:
    server.answer = lambda handler: send(handler, 200, body)
    with pytest.raises(Unreachable, match=why):
        at_url(server.url).get("/")


@pytest.mark.parametrize(
    "value", [{}, [], None, 7, "x", {"latency": None}, {"latency": {"datagrams": "1", "counts": [], "sum_seconds": 0}}]
)
def test_json_of_another_program(server: Server, value: object) -> None:
    server.answer = lambda handler: send(handler, 200, json.dumps(value).encode())
    with pytest.raises(Unreachable, match="unexpected form"):
        Watch(at_url(server.url)).look({"exporters"})


def test_a_list_that_never_ends(server: Server) -> None:
    """Pages that always name another one are asked for a bounded number of times."""
    with Stage(("127.0.0.1", 0)) as stage:
        real = at_url(f"http://127.0.0.1:{stage.where[1]}")  # type: ignore[index]

        row = real.get("/api/v1/activity?limit=1")["activity"][0]

        def answer(handler: BaseHTTPRequestHandler) -> None:
            page = {"activity": [row], "after": "0.1"} if "activity" in handler.path else real.get(handler.path)
            send(handler, 200, json.dumps(page).encode())

        server.answer = answer
        Watch(at_url(server.url)).look({"exporters"})
    assert len(server.seen) < 300


def test_an_answer_that_breaks_off(server: Server) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"{}")
        handler.close_connection = True

    server.answer = answer
    with pytest.raises(Unreachable):
        at_url(server.url).get("/")


def test_a_server_that_does_not_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends a byte now and then, for ever: the time is bounded all the same."""
    monkeypatch.setattr(api, "SECONDS", 0.5)
    left = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not left.wait(0.05):
            handler.wfile.write(b" ")

    server.answer = answer
    with pytest.raises(Unreachable, match="no answer in"):
        at_url(server.url).get("/")
    left.set()


def test_what_a_server_says_is_escaped(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = lambda handler: send(handler, 500, b'{"error": "\\u001b[2J\\u202ex"}')
    assert main(["top", "--url", server.url, "-b", "-n", "1"]) == 1
    error = capsys.readouterr().err
    assert r"\x1b[2J\u202ex" in error
    assert "\x1b" not in error
