#!/usr/bin/env python3
"""Announces the service address of this relay while samplicator is ready, and withdraws it first when samplicator ends.

It asks /readyz on the control socket again and again on one connection. The kernel closes that connection when
samplicator dies, so a death is seen at once. BIRD changes the route: `birdc enable`, `birdc disable`. SIGTERM withdraws
the route and then waits until no datagram arrives here any more: systemd stops this unit before it stops samplicator,
so an orderly leave loses nothing.

Called by samplicator-anycast.service. Standard library only. It must never stop or start samplicator or BIRD.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import select
import shlex
import signal
import socket
import subprocess
import sys
import time

REPEAT_SECONDS = 5.0
"""The command is repeated after this time: BIRD may have been restarted, and forgets what it was told."""
ANSWER_SECONDS = 3.0
"""A daemon that does not answer within this time is not ready."""
LOOK_SECONDS = 0.2


class Control(http.client.HTTPConnection):
    """HTTP on the control socket, one connection for many requests."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def ask(self, page: str) -> tuple[int, str]:
        """(status, text) of a page; (0, why) when there is no answer."""
        try:
            self.request("GET", page)
            answer = self.getresponse()
            return answer.status, answer.read().decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return 0, str(error) or type(error).__name__


def received(control: Control) -> int | None:
    """Datagrams that the listeners have received so far; None = no answer."""
    status, text = control.ask("/api/v1/listeners")
    if status != 200:
        return None
    return sum(listener["counters"]["datagrams"] for listener in json.loads(text))


class Route:
    """The route, as BIRD was told last. announced: None = not known."""

    def __init__(self, announce: str, withdraw: str) -> None:
        self._commands = {True: shlex.split(announce), False: shlex.split(withdraw)}
        self._since = 0.0
        self._failed = False
        self.announced: bool | None = None

    def tell(self, announce: bool, why: str) -> None:
        """Runs the command when the state changes, and again from time to time."""
        now = time.monotonic()
        if announce == self.announced and now - self._since < REPEAT_SECONDS:
            return
        error = run(self._commands[announce])
        if error:
            if not self._failed:
                say(f"cannot {'announce' if announce else 'withdraw'} the route: {error}; trying again")
            self._failed, self.announced = True, None
            return
        if announce != self.announced or self._failed:
            say(f"route {'announced' if announce else 'withdrawn'}: {why}")
        self._failed, self.announced, self._since = False, announce, now


def run(command: list[str]) -> str:
    """Runs a command; the text of its failure, or ""."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr + done.stdout).strip().splitlines()
    return (said[-1] if said else f"status {done.returncode}") if done.returncode else ""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Announcer:
    """See the head of this file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._control = Control(options.control)
        self._route = Route(options.announce, options.withdraw)
        self._wake, self._signal = socket.socketpair()
        self._stopped = False
        self._signal.setblocking(False)
        signal.set_wakeup_fd(self._signal.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        self._stopped = True

    def run(self) -> None:
        good, bad_since, first = 0, 0.0, True
        while not self._stopped:
            status, why = self._control.ask("/readyz")
            now = time.monotonic()
            if status == 200:
                good, bad_since = good + 1, 0.0
                if good >= self._options.rise or self._route.announced:
                    self._route.tell(True, "samplicator is ready")
            else:
                good, bad_since = 0, bad_since or now
                if first or now - bad_since >= self._options.hold or not self._route.announced:
                    self._route.tell(False, f"samplicator is not ready ({why})")
            first = False
            self._rest()
        self._leave()

    def _rest(self) -> None:
        """Waits for the next question; less long when the daemon closes the connection, or at SIGTERM."""
        waits = [self._wake]
        if self._control.sock is not None:
            waits.append(self._control.sock)
        ready, _, _ = select.select(waits, [], [], self._options.interval)
        if self._control.sock in ready:
            self._control.close()  # closed by the daemon: ask at once, on a new connection

    def _leave(self) -> None:
        begun = time.monotonic()
        while self._route.announced is not False:
            self._route.tell(False, "this relay leaves")
            if time.monotonic() - begun > self._options.longest:
                say("the route could not be withdrawn; samplicator ends with the route still announced")
                return
            if self._route.announced is not False:
                time.sleep(LOOK_SECONDS)
        last, since = received(self._control), time.monotonic()
        while last is not None:
            time.sleep(LOOK_SECONDS)
            now, moment = received(self._control), time.monotonic()
            if now != last:
                last, since = now, moment
            elif moment - since >= self._options.quiet:
                say(f"no datagram arrived for {self._options.quiet:g} s; this relay can stop")
                return
            if moment - begun > self._options.longest:
                say(f"datagrams still arrive {self._options.longest:g} s after the route was withdrawn; see the router")
                return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--control", default="/run/samplicator/control.sock", help="the control socket of samplicator")
    parser.add_argument(
        "--announce", default="birdc enable '\"samplicator*\"'", help="command that announces the route"
    )
    parser.add_argument("--withdraw", default="birdc disable '\"samplicator*\"'", help="command that withdraws it")
    parser.add_argument("--interval", type=float, default=0.5, help="seconds between two questions (0.5)")
    parser.add_argument("--rise", type=int, default=3, help="good answers in a row before the route is announced (3)")
    parser.add_argument(
        "--hold",
        type=float,
        default=0.0,
        help="seconds of bad answers before the route is withdrawn (0); see README.md, restarts",
    )
    parser.add_argument("--quiet", type=float, default=2.0, help="at the end: seconds without a datagram (2)")
    parser.add_argument("--longest", type=float, default=30.0, help="at the end: seconds to wait at most (30)")
    announcer = Announcer(parser.parse_args())
    with contextlib.suppress(KeyboardInterrupt):
        announcer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
