"""One relay after the other, each taking over from the one before, while exporters go on sending.

Used by tests/deploy. Invariant: a relay that has been taken over from has ended with status 0 before the next one is
asked anything; metrics of the next one never fall below those of the one before.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable

from samplicator.service.talk import FDS, PROTOCOL, Talk, Token, close_all

from support.flows import Collector
from support.lab import Lab, Metrics, Relay
from support.process import Process, wait_for
from support.telemetry import Exporter, flock

PORT, FLOWS, SAMPLED, UNIQUE = 9001, 9002, 9003, 9004
"""Of the collectors: numbered datagrams, flows as they are, flows of a receiver that samples, and of one that gets
unspoofed copies with domains of their own.
"""


def configuration(
    lab: Lab, *, receive: str = "recvmmsg", replicate: str = "off", workers: int = 2, listen: str = "", more: str = ""
) -> str:
    listen = listen or '"0.0.0.0:2055", "[::]:2055"'
    return f"""[service]
http = "127.0.0.1:9420"
control = "{lab.directory}/control.sock"
state_file = "{lab.directory}/state"
[datapath]
workers = {workers}
replicate = "{replicate}"
[[listener]]
name = "in"
listen = [{listen}]
receive = "{receive}"
[[receiver]]
name = "numbered"
to = "{lab.peer4(1)}:{PORT}"
spoof = true
[[receiver]]
name = "flows"
to = "{lab.peer4(1)}:{FLOWS}"
spoof = true
[[receiver]]
name = "sampled"
to = "{lab.peer4(2)}:{SAMPLED}"
spoof = true
freq = 3
[[receiver]]
name = "unique"
to = "{lab.peer4(2)}:{UNIQUE}"
domain = "unique"
[[rule]]
from = ["198.18.64.0/24"]
to = ["numbered"]
[[rule]]
from = ["198.18.100.0/24"]
to = ["flows", "sampled", "unique"]
{more}
"""


class Chain:
    """The relays of one test. relay: the one that runs now."""

    def __init__(self, lab: Lab, text: str, *words: str) -> None:
        self.lab = lab
        self.relay: Relay = lab.samplicator(text, *words)
        self.before: Metrics = self.relay.metrics()
        self.pauses: list[float] = []
        self.queues: list[int] = []

    def over(self, text: str, *words: str) -> Relay:
        """The next relay takes over. Its counters go on from those of the one before."""
        self.before = self.relay.metrics()
        following = self.lab.samplicator(text, "--takeover", *words, ready=False)
        status = self.relay.wait(60)
        assert status == 0, f"{status}\n{self.relay.tail()}\n{following.tail()}"
        following.wait_ready()
        found = re.search(r"has taken over; nobody read the sockets for (\d+) ms", self.relay.stderr())
        assert found is not None, self.relay.tail()
        self.pauses.append(float(found[1]))
        waited = re.search(r"took over .* at most (\d+) KiB", following.stderr())
        assert waited is not None, following.tail()
        self.queues.append(int(waited[1]))
        self.relay = following
        falls = self.falls(following.metrics())
        assert not falls, f"counters that fell: {falls}\n{following.tail()}"
        return following

    def falls(self, now: Metrics) -> list[str]:
        """Counters that are lower than before the take-over. Those of the process itself begin anew."""
        own = ("worker_", "log_messages", "config_", "control_loop", "process_", "collector_")
        return [
            f"{name}{labels}: {value} -> {after}"
            for name, rows in self.before.samples.items()
            if name.endswith("_total") and name.startswith("samplicator_")
            if not name.removeprefix("samplicator_").startswith(own)
            for labels, value in rows
            for after in [now.total(name.removeprefix("samplicator_"), **labels)]
            if after < value
        ]


class Flows:
    """Exporters that send their templates once, then data for ever, from a thread; and what collectors make of it. They
    are sockets, not taps, which would see the numbered datagrams too.
    """

    def __init__(self, lab: Lab, count: int = 4, seconds: float = 0.004) -> None:
        self.exporters: list[Exporter] = flock(lab, count)
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flows", daemon=True)
        self.whole = lab.collector_socket(1, FLOWS)
        self.sampled = lab.collector_socket(2, SAMPLED)
        self.unique = lab.collector_socket(2, UNIQUE)

    @property
    def sent(self) -> int:
        return sum(exporter.sent for exporter in self.exporters)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            for exporter in self.exporters:
                exporter.send()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def judge(self) -> list[Collector]:
        """What the three collectors have made of it, when all relays are at rest. Another source port is another
        session for them: that of unspoofed copies changes with the process, which then sends the templates again.
        """
        found = []
        for sock in (self.whole, self.sampled, self.unique):
            collector = Collector()
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    collector.take(*reversed(sock.recvfrom(65535)))
            found.append(collector)
        return found


def load(lab: Lab, rate: int, *, exporters: int = 16, seconds: float = 600) -> tuple[Process, Process]:
    """Numbered datagrams of several exporters, until killed; and the sink that looks at each number."""
    sink = lab.sink(1, f"{lab.peer4(1)}:{PORT}")
    words = (
        "--to", f"{lab.relay4()}:2055", "--source-base", "198.18.64.1", "--exporters", exporters, "--source-port", 5000,
        "--rate", rate, "--seconds", seconds, "--size", "60-400", "--run", 4, "--catch-up-ms", 50,
    )  # fmt: skip
    return sink, lab.load(*words)


def more(relay: Relay, datagrams: int, timeout: float = 60.0) -> None:
    """Waits until so many more have been received."""
    before = relay.metrics().value("receive_datagrams_total", listener="in")
    wait_for(
        lambda: relay.metrics().value("receive_datagrams_total", listener="in") - before >= datagrams,
        f"{datagrams} datagrams",
        timeout,
    )


class Scraper:
    """Asks for the metrics all the time, each time by a new connection; no answer may fail."""

    def __init__(self, ask: Callable[[], tuple[int, bytes]]) -> None:
        self._ask = ask
        self._ended = threading.Event()
        self.answers = 0
        self.longest = 0.0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run, name="scraper", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            begun = time.monotonic()
            try:
                status, _ = self._ask()
                if status != 200:
                    self.failures.append(f"status {status}")
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            self.answers += 1
            self.longest = max(self.longest, time.monotonic() - begun)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


STEPS = ("connection", "request", "hello", "welcome", "pause", "first socket", "all", "token")
"""How far a process that takes over has come."""


class Visit:
    """A process that takes over, played by the test, from its first step to `step`. Closing it is what the kernel does
    when such a process ends.
    """

    def __init__(self, relay: Relay, control: str, step: str, **hello: object) -> None:
        self.fds: list[int] = []
        self.messages: list[dict[str, object]] = []
        self.token: Token | None = None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(control)
        self.talk = Talk(sock)
        number = STEPS.index(step)
        if number >= 1:
            sock.sendall(b"POST /-/takeover HTTP/1.1\r\nHost: x\r\nUpgrade: samplicator-takeover\r\n\r\n")
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                part = sock.recv(1)
                assert part, head
                head += part
            assert head.startswith(b"HTTP/1.1 101 "), head
        if number >= 2:
            facts = os.stat(f"/proc/{relay.pid}/ns/net")
            said = {"protocol": PROTOCOL, "version": "9", "pid": os.getpid(), "network": [facts.st_dev, facts.st_ino]}
            self.talk.send("hello", **{**said, **hello})
        if number >= 3:
            _, fds = self.talk.expect("welcome", 20, fds=1)
            self.token = Token(fds[0])
        if number >= 4:
            self.talk.send("pause")
        if number >= 5:
            self._receive("sockets")
        if number >= 6:
            while self.messages[-1]["say"] != "all":
                self._receive()
        if number >= 7:
            assert self.token is not None
            assert self.token.take()

    def _receive(self, say: str = "") -> None:
        message, fds = self.talk.receive(20, fds=FDS)
        self.messages.append(message)
        self.fds += fds
        assert say in ("", message["say"])

    def close(self) -> None:
        self.talk.close()
        close_all(self.fds)
        self.fds = []
        if self.token is not None:
            self.token.close()
            self.token = None
