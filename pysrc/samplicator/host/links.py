"""Links: the next hop of frames for a receiver: egress interface, link addresses, MTU; and the addresses of this host.

Purpose: follows route, neighbor and interface of every receiver that gets frames (engine `packet`, or the choice of
"auto") through rtnetlink(7), in its own thread. Where "auto" chose, there is a link only while frames bypass nothing.
Events of the kernel wake the thread, and a slow poll finds what events missed. A packet socket does not tell the kernel
that a neighbor is used, so this thread does so every few seconds (NTF_USE, include/uapi/linux/neighbor.h): the kernel
then probes and resolves as it does for traffic of its own; where that is not permitted (CAP_NET_ADMIN) a stale neighbor
counts as unknown until copies by the raw socket have made the kernel probe it. Invariants: a receiver has a link only
while a frame for it can be expected to arrive; what cannot be followed (this host itself, multicast, tunnels, devices
without link addresses) has none. Called by supervisor and sockets. The only importer of pyroute2. It must never send a
datagram, and never change a route.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from samplicator.host import bypass
from samplicator.host.netlink import events
from samplicator.plan.spec import HostAddress

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_SECONDS: Final = 4.0
"""Less than delay_first_probe_time (5 s): a neighbor said to be used so often is probed as soon as it is stale."""
SETTLE_SECONDS: Final = 0.005
"""After an event: more of the same come with it."""
REST: Final = 4
"""Looking takes at most one part in so many of the thread's time, whatever storm of events there is."""

RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
# RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, include/uapi/linux/rtnetlink.h
GROUPS: Final = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400
UNICAST: Final = 1
ETHERNET: Final = 1
IFF_UP, IFF_LOOPBACK, IFF_LOWER_UP = 0x1, 0x8, 0x10000
NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_NOARP, NUD_PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x40, 0x80
NUD_USABLE: Final = NUD_REACHABLE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT
NTF_USE: Final = 1


@dataclass(frozen=True, slots=True)
class Link:
    """The next hop of a receiver. interface: index of the egress interface. header: destination, source, EtherType.
    mtu: of interface and route, bytes. device: name of the interface.
    """

    interface: int
    header: bytes
    mtu: int
    device: str

    def __str__(self) -> str:
        return f"{self.device}, {self.header[:6].hex(':')}, MTU {self.mtu}"


class NoLink(Exception):
    """Why there is none now, in words."""


@dataclass(frozen=True, slots=True)
class Target:
    """A receiver to follow. sink(link, words): called from the thread when its link has changed; None: none now.
    careful: only while a frame bypasses nothing that this host does to packets.
    """

    address: bytes
    scope_id: int
    sink: Callable[[Link | None, str], None]
    careful: bool = False


class Links:
    """Follows a set of receivers. follow() and close() may be called by any thread."""

    def __init__(self) -> None:
        self._targets: Mapping[str, Target] = {}
        self._fresh = False
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ended = False
        self._known: dict[str, Link | str] = {}
        self._hops: set[tuple[int, bytes]] = set()
        self._may_probe = True
        self._bypassed = ""
        self._queueing: dict[int, str] = {}
        self._answers: dict[object, Any] = {}
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)
        self._thread.start()

    def follow(self, targets: Mapping[str, Target]) -> None:
        """Follows these from now on; every sink gets the current link, also when nothing has changed."""
        with self._lock:
            self._targets = dict(targets)
            self._fresh = True
        self._wake()

    def close(self) -> None:
        self._ended = True
        self._wake()
        self._thread.join(5.0)
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._ended:
            try:
                with contextlib.ExitStack() as stack:
                    told = [stack.enter_context(sock) for sock in (events(GROUPS), *bypass.watch())]
                    self._loop(stack.enter_context(IPRoute()), told)
            except Exception:
                log.exception("link tracking restarted; engine packet keeps the last known next hops")
                self._be_careful()
                time.sleep(1.0)

    def _be_careful(self) -> None:
        """Nobody looks now at what frames would bypass."""
        with self._lock:
            targets = self._targets
        for name, target in targets.items():
            if target.careful and isinstance(self._known.pop(name, None), Link):
                target.sink(None, "the kernel cannot be asked now")

    def _loop(self, netlink: IPRoute, told: list[socket.socket]) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for source in told:
            poll.register(source, select.POLLIN)
        due = 0.0
        while not self._ended:
            ready = poll.poll(max(0.0, due - time.monotonic()) * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            if ready and not self._fresh and not self._concern(told) and time.monotonic() < due:
                continue
            time.sleep(SETTLE_SECONDS)
            self._concern(told)  # what came with it is looked at now
            begun = time.monotonic()
            self._look(netlink)
            time.sleep((time.monotonic() - begun) * (REST - 1))
            due = time.monotonic() + POLL_SECONDS

    def _concern(self, told: list[socket.socket]) -> bool:
        """Whether anything that the kernel told may have changed a link."""
        found = self._concerns(told[0])
        for other in told[1:]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        other.recv(65536)
                    except OSError as error:
                        if error.errno != errno.ENOBUFS:
                            raise
                    found = True
        return found

    def _concerns(self, told: socket.socket) -> bool:
        """Empties the event socket; whether anything in it may have changed a link."""
        found = False
        while True:
            try:
                data = told.recv(65536)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True  # events were lost
                continue
            found = found or any(map(self._is_ours, messages(data)))

    def _is_ours(self, message: tuple[int, bytes]) -> bool:
        kind, body = message
        if kind not in (RTM_NEWNEIGH, RTM_DELNEIGH):
            return True
        return neighbor_of(body) in self._hops

    def _look(self, netlink: IPRoute) -> None:
        """Computes every link again and gives changes to the sinks."""
        with self._lock:
            targets, fresh, self._fresh = self._targets, self._fresh, False
        self._hops, self._answers = set(), {}
        if any(target.careful for target in targets.values()):
            self._bypassed, self._queueing = bypass.reason(), {}
        known: dict[str, Link | str] = {}
        for name, target in targets.items():
            try:
                if target.careful and self._bypassed:
                    raise NoLink(f"frames would bypass {self._bypassed}")
                place = target.address, target.scope_id, target.careful
                known[name] = self._once(place, partial(self._link, netlink, target))
            except NoLink as why:
                known[name] = str(why)
            now = known[name]
            if fresh or self._known.get(name) != now:
                target.sink(now if isinstance(now, Link) else None, str(now))
                log.debug("link of receiver %r: %s", name, now)
        self._known = known

    def _once(self, key: object, ask: Callable[[], T]) -> T:
        """What ask() returns, or the NoLink that it raises: asked once a look, however many receivers it concerns."""
        if key not in self._answers:
            try:
                self._answers[key] = ask()
            except NoLink as why:
                self._answers[key] = why
        answer: T | NoLink = self._answers[key]
        if isinstance(answer, NoLink):
            raise NoLink(str(answer))
        return answer

    # ------------------------------------------------------------------ one link

    def _link(self, netlink: IPRoute, target: Target) -> Link:
        family = socket.AF_INET if len(target.address) == 4 else socket.AF_INET6
        text = socket.inet_ntop(family, target.address)
        try:
            found = netlink.route("get", dst=text, **({"oif": target.scope_id} if target.scope_id else {}))
            route = next(iter(found))
        except (NetlinkError, StopIteration) as error:
            raise NoLink("there is no route") from error
        if route["type"] != UNICAST:
            raise NoLink("the receiver is this host, or a group or broadcast address")
        if route.get("encap") or route.get("oif") is None:
            raise NoLink("the route leads into a tunnel")
        device = self._once(route.get("oif"), partial(self._device, netlink, route.get("oif")))
        if target.careful and (why := self._why_not(target, route.get("oif"))):
            raise NoLink(why)
        via = route.get("via") or {}
        hop = str(route.get("gateway") or via.get("addr") or text)
        address = self._once((route.get("oif"), hop), partial(self._neighbor, netlink, route.get("oif"), hop))
        metrics = route.get("metrics")
        limit = metrics.get("mtu") if metrics else None
        kind = b"\x08\x00" if family == socket.AF_INET else b"\x86\xdd"
        mtu = min(device.get("mtu") or 1500, limit or 65535, 65535)
        return Link(route.get("oif"), address + link_address(device) + kind, mtu, str(device.get("ifname")))

    def _why_not(self, target: Target, interface: int) -> str:
        try:
            if bypass.several_hops(target.address, target.scope_id):
                return "the route has several next hops"
            if interface not in self._queueing:
                self._queueing[interface] = bypass.queueing(interface)
            return self._queueing[interface]
        except OSError as error:
            return f"what frames would bypass cannot be seen: {error.strerror or error}"

    def _device(self, netlink: IPRoute, index: int) -> Any:
        try:
            device = next(iter(netlink.get_links(index)))
        except (NetlinkError, StopIteration) as error:
            raise NoLink(f"interface {index} is gone") from error
        name = device.get("ifname")
        if device["flags"] & IFF_LOOPBACK or device["ifi_type"] != ETHERNET or len(link_address(device)) != 6:
            raise NoLink(f"{name} has no link addresses")
        if not device["flags"] & IFF_UP or not device["flags"] & IFF_LOWER_UP:
            raise NoLink(f"{name} is down")
        return device

    def _neighbor(self, netlink: IPRoute, interface: int, hop: str) -> bytes:
        """Link address of the next hop; tells the kernel that it is used, which resolves or probes it."""
        family = socket.AF_INET6 if ":" in hop else socket.AF_INET
        self._hops.add((interface, socket.inet_pton(family, hop)))
        if self._may_probe:
            self._use(netlink, family, interface, hop)
        try:
            entry = next(iter(netlink.neigh("get", family=family, dst=hop, ifindex=interface)))
        except (NetlinkError, StopIteration) as error:
            raise NoLink(f"the link address of {hop} is not known") from error
        address = link_address(entry, "lladdr")
        wanted = NUD_USABLE | (NUD_STALE if self._may_probe else 0)
        if not entry["state"] & wanted or len(address) != 6:
            raise NoLink(f"{hop} does not answer, or its link address is not known yet")
        return address

    def _use(self, netlink: IPRoute, family: int, interface: int, hop: str) -> None:
        try:
            netlink.neigh("replace", family=family, dst=hop, ifindex=interface, flags=NTF_USE, state=0)
        except NetlinkError as error:
            if error.code in (errno.EPERM, errno.EACCES):
                self._may_probe = False
            # anything else: an interface that has just gone; the next look tells


def link_address(message: Any, key: str = "address") -> bytes:
    """The link address in an answer, b"" when there is none."""
    return bytes.fromhex((message.get(key) or "").replace(":", ""))


def messages(data: bytes) -> list[tuple[int, bytes]]:
    """(type, payload) of each netlink message (netlink(7))."""
    found = []
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if not 16 <= length <= len(data):
            break
        found.append((kind, data[16:length]))
        data = data[(length + 3) & ~3 :]
    return found


def neighbor_of(body: bytes) -> tuple[int, bytes]:
    """(interface index, address) that a neighbor message is about: struct ndmsg, then attributes; NDA_DST is 1."""
    (interface,) = struct.unpack_from("=i", body, 4)
    offset = 12
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            break
        if kind == 1:
            return interface, body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return interface, b""


def host_addresses() -> tuple[HostAddress, ...]:
    """Every address of this host, sorted. Raises OSError."""
    with IPRoute() as netlink:
        names = {link["index"]: link.get("ifname") for link in netlink.get_links()}
        found = {
            HostAddress(names[entry["index"]], entry["index"], packed(entry.get("local") or entry.get("address")))
            for entry in netlink.get_addr()
            if entry["index"] in names and (entry.get("local") or entry.get("address"))
        }
    return tuple(sorted(found, key=lambda item: (item.index, len(item.address), item.address)))


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
