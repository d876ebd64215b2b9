"""A service manager for one service, as systemd is: it starts the process, hears its notifications, and holds its
sockets from one process to the next (sd_notify(3), sd_listen_fds(3)).

Invariants: what it holds it holds as systemd does: by name, one socket once, up to a limit; a process gets all of it at
its start. Used by tests of restarts, which do not need systemd for that; tests/deploy has the real one. Must never read
from a socket that it holds.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from support.process import command, wait_for
from support.relay import Relay

if TYPE_CHECKING:
    from support.lab import Lab

SO_COOKIE = 57
HIGH_FD = 300
START = 'n=3; for f in $FDS; do eval "exec $n<&$f $f<&-"; n=$((n+1)); done; unset FDS; export LISTEN_PID=$$; exec "$@"'


class Manager:
    """held: name and socket, in the order in which they came. said: all notifications, as dicts."""

    def __init__(self, lab: Lab, *, limit: int = 512, old: bool = False) -> None:
        """limit: FileDescriptorStoreMax. old: does not say so, as systemd before version 254."""
        self.held: list[tuple[str, socket.socket]] = []
        self.said: list[dict[str, str]] = []
        self._lab = lab
        self._limit = limit
        self._old = old
        self._path = lab.directory / "notify"
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(str(self._path))
        self._channel.settimeout(0.1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        lab.closers.append(self.close)

    def start(self, text: str, *, ready: bool = True, env: dict[str, str] | None = None, **options: Any) -> Relay:
        """A new process of the service, with this configuration and all that is held."""
        lab = self._lab
        label = f"samplicator-{len(lab.relays)}"
        path = lab.directory / f"{label}.toml"
        path.write_text(lab.with_service(text, label))
        passed = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH_FD) for _, sock in self.held]
        environ = {"NOTIFY_SOCKET": str(self._path), "FDS": " ".join(map(str, passed)), **(env or {})}
        if passed:
            environ |= {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": ":".join(name for name, _ in self.held)}
        if not self._old:
            environ["FDSTORE"] = str(self._limit)
        self.said.clear()
        words = ["bash", "-c", START, "bash", command("samplicator"), "run", "-c", str(path)]
        relay = Relay(lab, words, label, env=environ, pass_fds=passed, **options)
        for descriptor in passed:
            os.close(descriptor)
        lab.relays.append(relay)
        if ready:
            self.wait_ready(relay)
        return relay

    def wait_ready(self, relay: Relay) -> None:
        def probe() -> bool:
            assert relay.alive, f"{relay.label} ended with {relay.popen.returncode}:\n{relay.tail()}"
            return any(fields.get("READY") == "1" for fields in list(self.said))

        wait_for(probe, f"{relay.label} to be ready", 40)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.held]

    def _run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                text, rights, _, _ = self._channel.recvmsg(65536, 4096)
                fds = array.array("i")
                for _, _, octets in rights:
                    fds.frombytes(octets[: len(octets) - len(octets) % fds.itemsize])
                fields = dict(line.partition("=")[::2] for line in text.decode().split("\n"))
                self._take(fields, [socket.socket(fileno=fd) for fd in fds])

    def _take(self, fields: dict[str, str], socks: list[socket.socket]) -> None:
        name = fields.get("FDNAME", "stored")
        assert len(name) <= 255
        assert ":" not in name
        if fields.get("FDSTOREREMOVE") == "1":
            for held in [held for held in self.held if held[0] == name]:
                self.held.remove(held)
                held[1].close()
        for sock in socks:
            known = {held.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8) for _, held in self.held}
            full = len(self.held) >= self._limit
            if fields.get("FDSTORE") != "1" or full or sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8) in known:
                sock.close()
            else:
                assert fields.get("FDPOLL") == "0"
                self.held.append((name, sock))
        self.said.append(fields)

    def close(self) -> None:
        self._ended.set()
        self._thread.join(5)
        for _, sock in self.held:
            sock.close()
        self._channel.close()
