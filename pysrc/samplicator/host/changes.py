"""Changes: reports when interfaces or addresses of this host have changed, and routes if a user of this module needs
them.

The kernel reports changes (rtnetlink(7), multicast groups of a netlink socket). The content of the messages is not
used; the callback reads the host's state again. Invariants: many events in a row cause one call; the last event of a
series is never missed; lost events (ENOBUFS) count as one event. Called by service, on its loop. It must never block
the loop, and never raise.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from samplicator.host.netlink import NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP, SOL_NETLINK, events

log = logging.getLogger(__name__)

# RTMGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR, include/uapi/linux/rtnetlink.h
GROUPS: Final = 0x1 | 0x10 | 0x100
ROUTE_GROUPS: Final = (7, 11)
"""RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, of the same file."""
SETTLE_SECONDS: Final = 0.1
"""After an event: more of the same come with it."""


class HostWatch:
    """Calls `changed()` on the running loop, SETTLE_SECONDS after an event at the earliest."""

    def __init__(self, changed: Callable[[], None], *, settle_seconds: float = SETTLE_SECONDS) -> None:
        self._changed = changed
        self._settle = settle_seconds
        self._socket: socket.socket | None = None
        self._due: asyncio.TimerHandle | None = None
        self._routes = False

    @property
    def works(self) -> bool:
        """Whether the kernel tells anything."""
        return self._socket is not None

    def start(self) -> None:
        try:
            sock = events(GROUPS)
        except OSError as error:
            log.warning(
                "netlink cannot be used, so changes of interfaces are seen only every few seconds: %s",
                error.strerror,
            )
            return
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._on_events)

    def follow_routes(self, wanted: bool) -> None:
        """Whether routes matter, too: on a router they change all the time."""
        if self._socket is None or wanted == self._routes:
            return
        self._routes = wanted
        option = NETLINK_ADD_MEMBERSHIP if wanted else NETLINK_DROP_MEMBERSHIP
        for group in ROUTE_GROUPS:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(SOL_NETLINK, option, group)

    def stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
        if self._socket is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _on_events(self) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):  # the rest at the next turn of the loop
                try:
                    self._socket.recv(65536)
                except BlockingIOError:
                    raise
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        log.warning(
                            "netlink failed, so changes of interfaces are seen only every few seconds: %s",
                            os.strerror(error.errno or 0),
                        )
                        self.stop()
                        return
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(self._settle, self._tell)

    def _tell(self) -> None:
        self._due = None
        self._changed()
