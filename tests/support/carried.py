"""A supervisor in a process of its own that saves and takes up a state file; exporters and collectors that stay when
it goes.

Used by tests/control/test_carry.py. The child does what it is told on stdin, a word a line, and answers in JSON; it
ends with its stdin.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from samplicator.config.toml.load import load_toml
from samplicator.host import abilities
from samplicator.plan.planner import compile
from samplicator.supervisor.supervisor import Supervisor

from support import flows as model
from support.flows import IPFIX, V9

FIELDS = [(8, 4), (12, 4), (1, 4)]
ROWS = 5
PATIENCE_SECONDS = 60.0


def child(config: str, state: str) -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    supervisor = Supervisor(state_file=state)
    supervisor.apply(compile(load_toml(config), {}, abilities.capabilities()))
    answer(supervisor)
    for line in sys.stdin:
        if line.strip() == "save":
            supervisor.save_state()
        elif line.strip() == "stop":
            supervisor.drain_and_stop(5.0)
            supervisor.save_state()
        answer(supervisor)


def answer(supervisor: Supervisor) -> None:
    sessions, _ = supervisor.view.domains()
    said = {"readings": dataclasses.asdict(supervisor.view.readings()), "sessions": []}
    for session in sessions:
        row = dataclasses.asdict(session)
        said["sessions"].append({**row, "header": row["header"].hex()})
    print(json.dumps(said, default=dict), flush=True)


class Relay:
    """The child. log: what it said on stderr."""

    def __init__(self, config: Path, state: Path) -> None:
        tests = Path(__file__).resolve().parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.carried", str(config), str(state)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tests)},
        )
        self.log = ""
        self._ended = False
        self._timer = threading.Timer(PATIENCE_SECONDS, self.process.kill)
        self._timer.start()
        self.begun = self._answer()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self.process.kill()
        self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(BrokenPipeError, ValueError):
            _, rest = self.process.communicate(timeout=PATIENCE_SECONDS)
            self.log += rest

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._end()
            raise AssertionError(f"the child ended: {self.log}")
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> dict[str, Any]:
        """Ends it in order; what it counted at the end."""
        said = self.ask("stop")
        self._end()
        self._timer.cancel()
        return said

    def kill(self) -> None:
        self.process.kill()
        self._end()
        self._timer.cancel()

    def received(self, count: int) -> dict[str, Any]:
        """Its readings when it has received so many datagrams, by its own counters, and is done with them."""
        before: Any = None
        while True:
            said = self.ask("read")
            counted = [listener["counters"] for listener in said["readings"]["listeners"]]
            counted += [receiver["counters"] for receiver in said["readings"]["receivers"]]
            total = sum(c["matched"] + c["unmatched"] for c in counted if "matched" in c)
            if total >= count and lawful(said) and counted == before:
                return said
            before = counted
            time.sleep(0.01)


def lawful(said: dict[str, Any]) -> bool:
    return all(
        c["offered"] == c["skipped"] + c["sent"] + sum(n for name, n in c.items() if name.startswith("failed_"))
        for c in (receiver["counters"] for receiver in said["readings"]["receivers"])
    ) and all(
        c["datagrams"] == c["truncated"] + c["unmatched"] + c["denied"] + c["matched"]
        for c in (listener["counters"] for listener in said["readings"]["listeners"])
    )


class Exporter:
    """Says its templates when it is told to, data else. kind: V9 or IPFIX."""

    def __init__(self, number: int, port: int) -> None:
        self.kind = (V9, IPFIX)[number % 2]
        self.domain = number + 1
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((f"127.0.1.{number + 1}", 0))
        self.target = ("127.0.0.1", port)
        self.sequence = 0
        self.rows = 0

    def _say(self, *sets: bytes, data: int, count: int, lost: bool) -> None:
        make = model.v9 if self.kind == V9 else model.ipfix
        payload = make(self.sequence, self.domain, *sets, **({"count": count} if self.kind == V9 else {}))
        if not lost:
            self.sock.sendto(payload, self.target)
        self.sequence += 1 if self.kind == V9 else data

    def teach(self) -> None:
        options = model.options_template(self.kind, 257, [(1 if self.kind == V9 else 149, 4)], [(34, 4)])
        ids = (0, 1) if self.kind == V9 else (2, 3)
        sets = [model.a_set(ids[0], model.template(256, FIELDS)), model.a_set(ids[1], options, pad=4)]
        self._say(*sets, model.a_set(257, bytes(7) + b"\x64"), data=1, count=3, lost=False)

    def send(self, count: int = 1, *, lost: bool = False) -> None:
        """lost: on the way to us."""
        for _ in range(count):
            body = model.a_set(256, *[(self.rows + k).to_bytes(12, "big") for k in range(ROWS)])
            self.rows += ROWS
            self._say(body, data=ROWS, count=ROWS, lost=lost)

    @property
    def unit(self) -> int:
        """Units of a datagram of data, as its numbers count."""
        return 1 if self.kind == V9 else ROWS


class Sink:
    """A receiver's socket, and the collector behind it."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.port: int = self.sock.getsockname()[1]
        self.collector = model.Collector()
        self.got = 0

    def take(self) -> int:
        """What has come since; how many datagrams."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.collector.take(0, self.sock.recv(65535))
                count += 1
        self.got += count
        return count

    def check(self) -> None:
        """It decodes all that it got, and misses nothing that it should not."""
        assert self.collector.unknown_sets == self.collector.undecodable == 0
        assert self.collector.sequence_errors == 0


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2])
