"""Pages: the HTTP interface of the service: its listening sockets, opened here or handed over, and the server on them.

Invariants: nothing heavy is imported before something is to be served; a socket that the operator asked for must open,
a default that cannot only degrades the service. Called by service. It must never know what the answers are.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from samplicator.config.model.service import Service
from samplicator.http import endpoints
from samplicator.supervisor.refusal import BuildError

if TYPE_CHECKING:
    from samplicator.http.front import Front
    from samplicator.views.service import ServiceState

SHARED: Final = ("http", "control")
"""The keys of those that a take-over hands over."""
KEYS: Final = (*SHARED, "own_control")


class Pages:
    """One per process. tls: whether it will be spoken. served: addresses, for people; degraded: what could not be
    opened, and why.
    """

    def __init__(self, *, tls: bool = False) -> None:
        self.tls = tls
        self.served: list[str] = []
        self.degraded: list[str] = []
        self._sockets: dict[str, socket.socket] = {}
        self._paths: dict[str, str] = {}
        self._front: Front | None = None

    @property
    def works(self) -> bool:
        """Whether there is a server."""
        return self._front is not None

    def prepare(self, service: Service) -> None:
        """Imports what start() will need. Otherwise start() does: the first plan does not wait for it."""
        if any(getattr(service, key) for key in KEYS):
            from samplicator.http import app, front  # noqa: F401  # heavy, and samplicate mostly goes without

    def open(self, service: Service, given: Mapping[str, socket.socket] | None = None) -> None:
        """given: what another process handed over, which this owns from now on; one that does not fit is closed. Raises
        BuildError.
        """
        rest = dict(given or {})
        try:
            for key in KEYS:
                wanted = getattr(service, key)
                if wanted:
                    self._open(key, wanted, rest.pop(key, None), asked=key in service.model_fields_set)
        finally:
            for sock in rest.values():
                sock.close()

    def _open(self, key: str, wanted: str, given: socket.socket | None, *, asked: bool) -> None:
        try:
            if given is not None and (key == "control" or endpoints.listens_on(given, wanted)):
                given.setblocking(False)
                self._sockets[key] = given
            else:
                if given is not None:
                    given.close()
                self._sockets[key] = endpoints.open_tcp(wanted) if key == "http" else endpoints.open_control(wanted)
        except OSError as error:
            what = "address" if key == "http" else "path"
            alone = "each process needs its own: " if error.errno == errno.EADDRINUSE else ""
            why = f'{error.strerror or error}; {alone}write another {what}, or "" for none'
            if asked:
                raise BuildError(error.errno or 0, why, ("service", key)) from error
            self.degraded.append(f"service.{key}: {why}")
            return
        self.served.append(f"http{'s' * self.tls}://{wanted}" if key == "http" else wanted)
        if key != "http":
            self._paths[key] = wanted

    async def start(self, state: ServiceState) -> None:
        """Answers from now on."""
        if self._sockets:
            from samplicator.http import app, front

            self._front = front.Front(app.make_app(state))
            await self._front.start(list(self._sockets.values()))

    def shared(self) -> dict[str, socket.socket]:
        """The sockets that another process can go on with, by key."""
        return {key: sock for key, sock in self._sockets.items() if key in SHARED}

    def leave(self) -> None:
        """Another process answers on these sockets from now on. Requests under way are still answered."""
        if self._front is not None:
            self._front.leave([self._sockets.pop(key) for key in SHARED if key in self._sockets])
        self.disown()

    def disown(self) -> None:
        """The file of the shared local socket is another process's."""
        for key in SHARED:
            self._paths.pop(key, None)

    async def finish(self, seconds: float) -> None:
        """After leave(): waits until those who had connected before have their answer."""
        if self._front is not None:
            await self._front.finish(seconds)

    async def stop(self) -> None:
        """Closes everything and removes the files of local sockets."""
        if self._front is not None:
            await self._front.stop()
        for sock in self._sockets.values():
            with contextlib.suppress(OSError):
                sock.close()
        if self._paths:
            for path in self._paths.values():
                endpoints.remove_control(path)
        self._sockets.clear()
        self._paths.clear()
