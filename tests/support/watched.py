"""Relays under load, and a real Prometheus that scrapes them: what the dashboards and alerts of deploy/ look at.

Two relays as of a fleet, with workers, a pool, a standby and a receiver whose port is closed, fed by the demo's
exporters. All on loopback, on free ports, ended by process id. Used by tests/deploy and by the program that draws the
pictures of the dashboards.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from samplicator.demo.traffic import Feeder, make_exporters

from support.linters import DEPLOY, tool
from support.peers import Collector

T = TypeVar("T")
PATIENCE_SECONDS = 60
"""For what a query asks for: rates need some scrapes, and those come once a second."""
DASHBOARDS = {
    path.stem: json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}
RATE_INTERVAL = "10s"


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str, *, context: Any = None, headers: dict[str, str] | None = None) -> bytes:
    request = urllib.request.Request(url, headers=headers or {})
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        body: bytes = answer.read()
        return body


def wait_for(url: str, process: subprocess.Popen[str], log: Path, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            get(url)
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(f"{url} did not answer:\n{log.read_text()}")


@contextlib.contextmanager
def started(log: Path, *command: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ours, ended by its id at the end of the block."""
    with log.open("w") as out:
        first, *rest = [str(word) for word in command]
        process = subprocess.Popen(
            [tool(first), *rest],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=log.parent,
            env=os.environ | environment,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


WITNESS = tool("samplicator") if "witness" in (DEPLOY / "completions" / "zsh" / "_samplicator").read_text() else ""
"""The command that has `witness`."""

CONFIG = """\
[service]
http = "127.0.0.1:{http}"
control = "{folder}/{name}.sock"
{security}
[datapath]
workers = 2
receive_buffer = "1MiB"
[[listener]]
name = "netflow"
listen = ["127.0.0.1:{listen}"]
flow = "auto"
[[receiver]]
name = "nfdump"
to = "127.0.0.2:{open[2]}"
spoof = {spoof}
[[receiver]]
name = "sampled"
to = "127.0.0.3:{open[3]}"
freq = 4
[[receiver]]
name = "closed"
to = "127.0.0.4:{closed}"
[[receiver]]
name = "spare"
to = "127.0.0.5:{open[5]}"
standby_for = "closed"
[[receiver]]
name = "ipfix"
to = "tcp://127.0.0.1:{tcp}"
[[receiver]]
name = "siem-1"
to = "127.0.0.6:{open[6]}"
[[receiver]]
name = "siem-2"
to = "127.0.0.7:{open[7]}"
[[pool]]
name = "siem"
members = ["siem-1", "siem-2"]
[[rule]]
from = ["127.1.0.0/16"]
to = [{to}]
"""


@dataclass(slots=True)
class Relay:
    """One that runs. http: address and port."""

    name: str
    http: str
    config: Path
    process: subprocess.Popen[str]

    def reload(self, text: str) -> None:
        self.config.write_text(text)
        self.process.send_signal(1)


@dataclass(slots=True)
class Fleet:
    """The relays, and the sockets that take copies. closed: a port of nobody. witness: address and port of the metrics
    of a witness at a collector of the first relay, "" = this host cannot have one.
    """

    folder: Path
    relays: list[Relay]
    closed: int
    sockets: list[socket.socket] = field(default_factory=list)
    witness: str = ""
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def run(self, name: str, http: str) -> Relay:
        """Starts the relay with the configuration of this name, until the end of the fleet."""
        config, log = self.folder / f"{name}.toml", self.folder / f"{name}.log"
        process = self.stack.enter_context(started(log, "samplicator", "run", "-c", config))
        if "web_config" not in config.read_text():
            wait_for(f"http://{http}/readyz", process, log)
        return Relay(name, http, config, process)

    def restart(self, relay: Relay) -> None:
        """Ends the relay and starts it again."""
        relay.process.terminate()
        relay.process.wait(20)
        self.relays[self.relays.index(relay)] = self.run(relay.name, relay.http)

    @property
    def targets(self) -> list[str]:
        return [relay.http for relay in self.relays]


def take(sockets: Sequence[socket.socket], halt: threading.Event) -> None:
    """Reads all, as collectors do."""
    waiter = selectors.DefaultSelector()
    for sock in sockets:
        sock.setblocking(False)
        waiter.register(sock, selectors.EVENT_READ)
    with waiter:
        while not halt.wait(0.02):
            for key, _ in waiter.select(0.2):
                with contextlib.suppress(OSError):
                    while True:
                        key.fileobj.recv(65536)  # type: ignore[union-attr]


@contextlib.contextmanager
def fleet(
    folder: Path, rate: int = 400, *, names: Sequence[str] = ("a", "b"), web_config: Path | None = None
) -> Iterator[Fleet]:
    """Relays with different configurations; each gets `rate` datagrams per second. web_config: for their pages."""
    security = f'web_config = "{web_config}"' if web_config else ""
    with contextlib.ExitStack() as stack:
        taken: list[socket.socket] = []

        def opened(last: int) -> int:
            """Port of a new socket of a collector."""
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind((f"127.0.0.{last}", 0))
            taken.append(sock)
            return sock.getsockname()[1]

        ports = {name: {last: opened(last) for last in (2, 3, 5, 6, 7)} for name in names}
        halt = threading.Event()
        taker = threading.Thread(target=take, args=(taken, halt), daemon=True)
        taker.start()
        stack.callback(taker.join, 5)
        stack.callback(halt.set)
        closed = free_port(socket.SOCK_DGRAM)
        made = Fleet(folder, [], closed, taken, stack=stack)
        by_tcp = Collector()
        stack.callback(by_tcp.close)
        for name in names:
            to = (
                ("nfdump", "sampled", "closed", "siem", "ipfix")
                if name == "a"
                else ("nfdump", "closed", "siem", "ipfix")
            )
            http, listen = free_port(), free_port(socket.SOCK_DGRAM)
            config = folder / f"{name}.toml"
            values = {"http": http, "listen": listen, "open": ports[name], "closed": closed, "security": security}
            values["tcp"] = by_tcp.port
            values["spoof"] = "true" if os.geteuid() == 0 else "false"
            config.write_text(
                CONFIG.format(folder=folder, name=name, to=", ".join(f'"{each}"' for each in to), **values)
            )
            made.relays.append(made.run(name, f"127.0.0.1:{http}"))
            feeder = Feeder(make_exporters(), ("127.0.0.1", listen), rate)
            stack.callback(feeder.join, 5)
            stack.callback(feeder.halt.set)
            feeder.start()
        if WITNESS and os.geteuid() == 0 and web_config is None:
            made.witness = f"127.0.0.1:{free_port()}"
            asked = ("--port", str(ports["a"][2]), "--relay", f"http://{made.targets[0]}", "--seconds", "2")
            log = folder / "witness.log"
            process = stack.enter_context(started(log, WITNESS, "witness", *asked, "--http", made.witness))
            wait_for(f"http://{made.witness}/metrics", process, log)
        yield made


@contextlib.contextmanager
def prometheus(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """The API of a Prometheus with this configuration."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    listen = f"127.0.0.1:{free_port()}"
    command = (
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={listen}",
        "--log.level=warn",
    )
    log = folder / "prometheus.log"
    with started(log, *command, GOMAXPROCS="1") as process:
        wait_for(f"http://{listen}/-/ready", process, log)
        yield f"http://{listen}/api/v1"


def scraping(targets: Sequence[str], witness: str = "", **more: Any) -> dict[str, Any]:
    """A configuration of Prometheus: these targets once a second, with the rules of deploy/. more: of the job."""
    others = [{"job_name": "witness", "static_configs": [{"targets": [witness]}]}] if witness else []
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DEPLOY / "prometheus" / "rules.yaml")],
        "scrape_configs": [
            {"job_name": "samplicator", "static_configs": [{"targets": list(targets)}], **more},
            *others,
        ],
    }


def ask(api: str, path: str, **parameters: str) -> Any:
    try:
        answer = json.loads(get(f"{api}/{path}?{urllib.parse.urlencode(parameters)}"))
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{parameters}: {error.read().decode()}") from None
    return answer["data"]


def query(api: str, expr: str) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = ask(api, "query", query=expr)["result"]
    return result


def eventually(probe: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """The first true answer, or the last of all."""
    until = time.monotonic() + seconds
    while not (answer := probe()) and time.monotonic() < until:
        time.sleep(0.2)
    return answer


def filled_in(expr: str, dashboard: dict[str, Any]) -> str:
    """What Grafana asks when everything is chosen."""
    expr = expr.replace("$__rate_interval", RATE_INTERVAL).replace("$__range", "5m")
    names = "|".join(variable["name"] for variable in dashboard["templating"]["list"])
    return re.sub(rf"\$({names})\b", ".+", expr)


def queries() -> list[tuple[str, str, str]]:
    """(dashboard, panel, PromQL) of every panel, everything chosen."""
    return [
        (name, panel["title"], filled_in(target["expr"], dashboard))
        for name, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]
