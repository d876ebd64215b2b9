"""The OpenAPI document against a running daemon: its answers have the documented fields and no others, and what
schemathesis makes up of the document (good and bad parameters, methods, tokens) is answered as the document says.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
from aiohttp.test_utils import TestClient, TestServer
from jsonschema import Draft202012Validator
from samplicator.http.app import make_app
from samplicator.http.routes import described
from samplicator.http.schema import Schemas
from support import flows
from support.hosts import free_port
from support.peers import tcp_port
from support.process import Process, command, wait_for
from support.state import make_state

TOKEN = "made-up"
DOCUMENT: Any = json.loads(described())
STREAM, TAP = "/api/v1/events", "/api/v1/tap"
PAGES = [
    path
    for path, methods in DOCUMENT["paths"].items()
    if "get" in methods and path.startswith("/api/") and path not in (STREAM, TAP)
]


QUERIES = {"/api/v1/shares": "?receiver={receiver}"}
"""What a page is asked for with."""


def query(path: str, receiver: str) -> str:
    return path + QUERIES.get(path, "").format(receiver=receiver)


def closed(schema: Any) -> Any:
    """The same schema, but an object has no other fields than those that it names."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    new = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema.get("required"), list):
        new["additionalProperties"] = False
    return new


def check(path: str, value: object) -> None:
    """An answer is exactly as documented."""
    content = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]
    stream = content.get("text/event-stream") or content.get("application/x-ndjson")
    schema = stream["schema"]["contentSchema"] if stream else content["application/json"]["schema"]
    whole = {**schema, "components": DOCUMENT["components"]}
    errors = [
        f"{error.json_path}: {error.message[:300]}" for error in Draft202012Validator(closed(whole)).iter_errors(value)
    ]
    assert errors == [], path


# ---------------------------------------------------------------------------------------------------- a daemon


class Daemon:
    """The daemon on loopback, with all that has a shape: pools, a standby, unique domains, templates, losses."""

    def __init__(self, place: Path) -> None:
        self.http, self.port = free_port(), free_port(socket.AF_INET)
        self.tcp = tcp_port()
        (place / "token").write_text(TOKEN)
        (place / "token").chmod(0o600)
        receivers = [
            ("one", "spoof = false"),
            ("two", 'domain = "unique"'),
            ("three", 'standby_for = "one"'),
            ("four", ""),
        ]
        self.sinks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in receivers]
        text = f"""
[service]
http = "127.0.0.1:{self.http}"
control = ""
reload_token_file = "{place / "token"}"
[[listener]]
name = "in"
listen = ["127.0.0.1:{self.port}", "tcp://127.0.0.1:{self.tcp}"]
[[pool]]
name = "both"
members = ["two", "four"]
[[rule]]
from = ["127.0.0.0/8"]
to = ["one", "both"]
"""
        for (name, more), sink in zip(receivers, self.sinks, strict=True):
            sink.bind(("127.0.0.1", 0))
            text += f'[[receiver]]\nname = "{name}"\nto = "127.0.0.1:{sink.getsockname()[1]}"\n{more}\n'
        text += '[[receiver]]\nname = "pods"\nto = "k8s://monitoring/collector:flow"\n'
        (place / "a.toml").write_text(text)
        argv = [command("samplicator"), "run", "-c", str(place / "a.toml")]
        self.process = Process(argv, namespace=None, directory=place, label="daemon")

    def get(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        assert answer.status == 200, (path, answer.status, text)
        return json.loads(text)

    def up(self) -> bool:
        assert self.process.alive, self.process.tail()
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            return bool(self.get("/api/v1/status")["ready"])
        return False

    def feed(self) -> None:
        """Templates, options that say how it samples, a gap; and sFlow."""
        exporter = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        exporter.connect(("127.0.0.1", self.port))
        template = flows.a_set(2, flows.template(256, [(8, 4), (82, 65535), (1, 4, 4242)]))
        options = flows.a_set(3, flows.options_template(flows.IPFIX, 257, [(149, 4)], [(34, 4)]))
        exporter.send(flows.ipfix(0, 3, template, options, flows.a_set(257, bytes(3) + b"\3" + bytes(3) + b"\x64")))
        exporter.send(flows.ipfix(40, 3, template))
        exporter.send(flows.v5(1, 1))
        exporter.send(flows.sflow(1))
        exporter.close()
        self.session = socket.create_connection(("127.0.0.1", self.tcp), 30)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("daemon"))
    try:
        wait_for(daemon.up, "the daemon", 30)
        daemon.feed()
        wait_for(lambda: len(daemon.get("/api/v1/exporters")["exporters"]) == 3, "its exporters", 30)
        wait_for(lambda: daemon.get("/api/v1/history")["times_unix"], "two samples", 30)
        wait_for(lambda: daemon.get("/api/v1/sessions")["sessions"], "its session", 30)
        yield daemon
        daemon.session.close()
    finally:
        daemon.process.end()
        for sink in daemon.sinks:
            sink.close()


@pytest.mark.parametrize("path", PAGES)
def test_answers_are_as_documented(daemon: Daemon, path: str) -> None:
    check(path, daemon.get(query(path, "one")))


def test_events_are_as_documented(daemon: Daemon) -> None:
    """The first, whose rates are null, and the next."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.http, timeout=30)
    connection.request("GET", f"{STREAM}?count=2")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    events = [json.loads(line[5:]) for line in answer.read().splitlines() if line.startswith(b"data:")]
    connection.close()
    assert len(events) == 2
    for event in events:
        check(STREAM, event)
    assert {row["exporter"] for row in events[1]["exporters"]} == {"127.0.0.1"}
    assert [(row["receivers"], row["pools"]) for row in events[1]["routes"]] == [
        (["one", "three"], ["both"])
    ]  # the standby waits


def test_rows_are_there(daemon: Daemon) -> None:
    """What was checked was not empty."""
    found = {path: daemon.get(query(path, "four")) for path in PAGES}
    assert [path for path, value in found.items() if not value] == []
    assert {row["protocol"] for row in found["/api/v1/exporters"]["exporters"]} == {"ipfix", "netflow5", "sflow5"}
    assert any(row["samplers"] for row in found["/api/v1/exporters"]["exporters"])
    assert len(found["/api/v1/templates"]["domains"][0]["templates"]) == 2
    assert found["/api/v1/domains"]["domains"]
    assert found["/api/v1/ledger"]["before"].keys() == {"ipfix", "netflow5", "sflow5"}
    assert {row["pool"] for row in found["/api/v1/shares"]["shares"]} == {"both"}
    assert len(found["/api/v1/export"]["receivers"]) == 5
    assert [row["sessions"] for row in found["/api/v1/gateways"]] == [{"connected": 1}]
    for kind in ("listeners", "receivers", "exporters"):
        page = daemon.get(f"/api/v1/history?kind={kind}")
        check("/api/v1/history", page)
        assert page["series"], kind


def test_exporters_in_short_have_the_same_figures(daemon: Daemon) -> None:
    """And `samplicator top` shows them, of a real daemon."""
    short = daemon.get("/api/v1/activity")["activity"]
    whole = {row["place"]: row for row in daemon.get("/api/v1/exporters")["exporters"]}
    assert len(short) == 3
    ages = {"known_seconds", "silent_seconds"}
    for row in short:
        assert {key: whole[row["place"]][key] for key in row.keys() - ages} == {
            key: row[key] for key in row.keys() - ages
        }
        assert row["silent_seconds"] == pytest.approx(whole[row["place"]]["silent_seconds"], abs=5)
    argv = [command("samplicator"), "top", "--url", f"http://127.0.0.1:{daemon.http}", "--json", "-n", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert {row["place"]: row["datagrams"] for row in shown["exporters"]} == {
        row["place"]: row["datagrams"] for row in short
    }
    assert {row["name"] for row in shown["receivers"]} >= {"one", "two", "three", "four"}


def test_made_up_answers_are_as_documented() -> None:
    """The same of readings in which every field has a value."""

    async def go() -> None:
        state = make_state()
        for _ in range(3):
            state.history.sample()
        async with TestClient(TestServer(make_app(state))) as client:
            for path in PAGES:
                check(path, await (await client.get(query(path, "six"))).json())
            check("/api/v1/history", await (await client.get("/api/v1/history?kind=exporters")).json())

    asyncio.run(go())


# ---------------------------------------------------------------------------------------------------- schemathesis


NAMES = """
[parameters]
"query.receiver" = "two"
"path.file" = "main.js"
"""
"""Of things that exist: a made-up name is refused (test_http.py, test_ui.py)."""


def schemathesis(url: str, place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [
        *(command("schemathesis"), "run", f"{url}/api/v1/openapi.json", "--checks", "all"),
        *("--seed", "9", "--max-examples", "2", "--phases", "coverage,fuzzing", "--generation-database", "none"),
        *("--header", f"Authorization: Bearer {TOKEN}", "--exclude-method", "HEAD", "--no-color"),
        *("--exclude-path", "/-/takeover"),  # over TCP it answers 403, whatever is asked: test_http.py
        *("--exclude-path", STREAM, "--exclude-path", TAP),  # they have no end: test_live.py, test_tap_stream.py
        *more,
    ]
    (place / "schemathesis.toml").write_text(NAMES)
    return subprocess.run(argv, capture_output=True, text=True, timeout=240, cwd=place)


def test_schemathesis_finds_nothing(daemon: Daemon, tmp_path: Path) -> None:
    done = schemathesis(f"http://127.0.0.1:{daemon.http}", tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "No issues found" in done.stdout
    assert daemon.get("/api/v1/status")["config"]["reloads"] > 0
    for series in daemon.get("/api/v1/history?kind=receivers")["series"]:  # the reloads have left the history alone
        assert None not in series["rates"]["sent"], series


# ---------------------------------------------------------------------------------------------------- shapes


class Leaf(TypedDict):
    """A leaf.

    Not told.
    """

    size: Annotated[int | None, "Metres."]


class Tree(TypedDict):
    """A tree
    of leaves."""

    kind: Literal["oak", "elm"]
    leaves: list[Leaf]
    by_name: dict[str, Leaf | None]


def test_schemas_of_shapes() -> None:
    schemas = Schemas()
    assert schemas.of(list[Tree]) == {"type": "array", "items": {"$ref": "#/components/schemas/Tree"}}
    leaf = {"$ref": "#/components/schemas/Leaf"}
    assert schemas.components["Tree"] == {
        "type": "object",
        "description": "A tree of leaves.",
        "properties": {
            "kind": {"enum": ["oak", "elm"]},
            "leaves": {"type": "array", "items": leaf},
            "by_name": {"type": "object", "additionalProperties": {"anyOf": [leaf, {"type": "null"}]}},
        },
        "required": ["by_name", "kind", "leaves"],
    }
    assert schemas.components["Leaf"]["description"] == "A leaf."
    assert schemas.components["Leaf"]["properties"]["size"] == {
        "type": ["integer", "null"],
        "description": "Metres.",
    }
    with pytest.raises(TypeError, match="two shapes are called Leaf"):
        schemas.of(TypedDict("Leaf", {"size": int}))


def test_every_schema_is_one() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for methods in DOCUMENT["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                Draft202012Validator.check_schema(parameter["schema"])


def test_a_type_without_a_schema_is_an_error() -> None:
    for shape in (set[int], object, tuple[int, int], dict[int, str]):
        with pytest.raises(TypeError):
            Schemas().of(shape)
