"""Links: the next hop of frames for a receiver: egress interface, link addresses, MTU.

Purpose: follows route, neighbor and interface of every receiver that gets frames (engine `packet`, or the choice of
"auto") through rtnetlink(7), in its own thread. Where "auto" chose, there is a link only while frames bypass nothing.
Events of the kernel wake the thread, and a slow poll finds what events missed. A packet socket does not tell the kernel
that a neighbor is used, so this thread does so every few seconds (NTF_USE, include/uapi/linux/neighbor.h): the kernel
then probes and resolves as it does for traffic of its own; where that is not permitted (CAP_NET_ADMIN) a stale neighbor
counts as unknown until copies by the raw socket have made the kernel probe it. Invariants: a receiver has a link only
while a frame for it can be expected to arrive; what cannot be followed (this host itself, multicast, tunnels, devices
without link addresses) has none. Called by supervisor and sockets. It must never send a datagram, and never change a
route.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from samplicator.host import bypass
from samplicator.host.ethtool import takes_runs
from samplicator.host.interfaces import Device, Neighbor, devices, ndmsg, neighbor_of
from samplicator.host.netlink import (
    NLM_F_ACK,
    RTA_GATEWAY,
    RTA_VIA,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
    RTMSG_BYTES,
    RTN_UNICAST,
    Conversation,
    attributes,
    events,
    interface_of,
    messages,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

POLL_SECONDS: Final = 4.0
"""Less than delay_first_probe_time (5 s): a neighbor said to be used so often is probed as soon as it is stale."""
SETTLE_SECONDS: Final = 0.005
"""After an event: more of the same come with it."""
LEASE_SECONDS: Final = 20.0
"""How long frames go on while nobody looks. More than one look and its rest take with thousands of receivers."""
REST: Final = 4
"""Looking takes at most one part in so many of the thread's time, whatever storm of events there is."""

RTM_DELNEIGH: Final = 29
RTM_NEWRULE, RTM_DELRULE = 32, 33
RTA_METRICS, RTA_ENCAP_TYPE, RTAX_MTU = 8, 21, 2
# RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, and RTNLGRP_NEXTHOP as a bit,
# include/uapi/linux/rtnetlink.h
GROUPS: Final = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 31
LEAST_MTU: Final = 68
"""RFC 791, section 3.2."""
ETHERNET: Final = 1
IFF_UP, IFF_LOOPBACK, IFF_LOWER_UP = 0x1, 0x8, 0x10000
NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE, NUD_NOARP, NUD_PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x40, 0x80
NUD_USABLE: Final = NUD_REACHABLE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT
NTF_USE, NTF_EXT_LEARNED = 0x1, 0x10
NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400


@dataclass(frozen=True, slots=True)
class Link:
    """The next hop of a receiver. interface: index of the egress interface. header: destination, source, EtherType.
    mtu: of interface and route, bytes. device: name of the interface. cuts: the kernel cuts runs up there and puts the
    pieces where they may not find room, with nothing that waits in front: what does not is lost, and a sender is told
    of the last piece only (__dev_queue_xmit of the kernel).
    """

    interface: int
    header: bytes
    mtu: int
    device: str
    cuts: bool = False

    def __str__(self) -> str:
        more = ", cuts runs up" if self.cuts else ""
        return f"{self.device}, {self.header[:6].hex(':')}, MTU {self.mtu}{more}"


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

    def __init__(self, ruled: Callable[[], None] = lambda: None) -> None:
        """ruled: called from the thread when rules of this host (firewall, IPsec) have changed."""
        self._ruled = ruled
        self._targets: Mapping[str, Target] = {}
        self._fresh = False
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ended = False
        self._known: dict[str, Link | str] = {}
        self._hops: dict[tuple[int, bytes], bytes] = {}
        self._may_probe = True
        self._uses = True
        self._present: tuple[bool, ...] = ()
        self._bypassed = ""
        self._answers: dict[object, Any] = {}
        self._looked = time.monotonic()
        self._telling = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)
        self._thread.start()

    def follow(self, targets: Mapping[str, Target]) -> None:
        """Follows these from now on; every sink gets the current link, also when nothing has changed."""
        with self._lock:
            self._targets = dict(targets)
            self._fresh = True
        self._wake()

    def lapse(self) -> None:
        """To be called once in a while by any thread: frames whose link nobody has looked at for long have an end. The
        kernel may hold up this class's own thread, however short its patience, while another process has its lock on
        all interfaces (rtnl).
        """
        if time.monotonic() - self._looked > LEASE_SECONDS:
            self._withdraw(f"the kernel has not answered for {LEASE_SECONDS:.0f} s")

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
                    self._present = bypass.present()
                    told = [stack.enter_context(sock) for sock in (events(GROUPS), *bypass.watch())]
                    self._loop(stack.enter_context(Conversation()), told)
            except Exception:
                log.exception("link tracking restarted; engine packet keeps the last known next hops")
                self._withdraw("the kernel cannot be asked now")
                self._fresh = True
                time.sleep(1.0)

    def _withdraw(self, why: str) -> None:
        """No frames where it is not known now what they bypass, or where they go."""
        with self._lock:
            targets = self._targets
        for name, target in targets.items():
            if target.careful and isinstance(self._known.get(name), Link):
                self._tell(name, target, why)

    def _tell(self, name: str, target: Target, now: Link | str) -> None:
        with self._telling:
            self._known[name] = now
            log.debug("link of receiver %r: %s", name, now)
            try:
                target.sink(now if isinstance(now, Link) else None, str(now))
            except Exception:
                log.exception("receiver %r does not take its link %s", name, now)

    def _loop(self, kernel: Conversation, told: list[socket.socket]) -> None:
        """Returns when there is more to be told than when it began."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        for source in told:
            poll.register(source, select.POLLIN)
        due = rested = 0.0
        wanted = True
        while not self._ended:
            ready = poll.poll(max(0.0, (rested if wanted else due) - time.monotonic()) * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
            if ready and self._concern(told):
                wanted = True
                if time.monotonic() < rested:
                    self._withdraw("something has changed, and is looked at in a moment")
            now = time.monotonic()
            if not self._fresh and (now < rested or (not wanted and now < due)):
                continue
            time.sleep(SETTLE_SECONDS)
            self._concern(told)  # what came with it is looked at now
            begun = time.thread_time()
            self._look(kernel, uses=now >= due)
            wanted, rested = False, time.monotonic() + (time.thread_time() - begun) * (REST - 1)
            due = time.monotonic() + POLL_SECONDS if now >= due else due
            if bypass.present() != self._present:
                return

    def _concern(self, told: list[socket.socket]) -> bool:
        """Whether anything that the kernel told may have changed a link."""
        found, ruled = self._concerns(told[0])
        for other in told[1:]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        other.recv(65536)
                    except OSError as error:
                        if error.errno != errno.ENOBUFS:
                            raise
                    found = ruled = True
        if ruled:
            self._ruled()
        return found

    def _concerns(self, told: socket.socket) -> tuple[bool, bool]:
        """Empties the event socket; whether anything in it may have changed a link, and whether a routing rule did."""
        found = ruled = False
        while True:
            try:
                data = told.recv(65536)
            except BlockingIOError:
                return found, ruled
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = ruled = True  # events were lost
                continue
            for kind, _, body in messages(data):
                found = found or self._is_ours(kind, body)
                ruled = ruled or kind in (RTM_NEWRULE, RTM_DELRULE)

    def _is_ours(self, kind: int, body: bytes) -> bool:
        """A neighbor that is confirmed is no change."""
        if kind not in (RTM_NEWNEIGH, RTM_DELNEIGH):
            return True
        hop = neighbor_of(body)
        if hop not in self._hops:
            return False
        said = Neighbor.of(body)
        return kind == RTM_DELNEIGH or not said.state & NUD_USABLE or said.address != self._hops[hop]

    def _look(self, kernel: Conversation, *, uses: bool) -> None:
        """Computes every link again and gives changes to the sinks. uses: tells the kernel that neighbors are used."""
        with self._lock:
            targets, fresh, self._fresh = self._targets, self._fresh, False
        self._hops, self._answers, self._uses = {}, {}, uses or fresh
        if any(target.careful for target in targets.values()):
            self._bypassed = bypass.reason()
        for name, target in targets.items():
            now: Link | str
            try:
                if target.careful and self._bypassed:
                    raise NoLink(f"frames would bypass {self._bypassed}")
                place = target.address, target.scope_id, target.careful
                now = self._once(place, partial(self._link, kernel, target))
            except NoLink as why:
                now = str(why)
            if fresh or self._known.get(name) != now:
                self._tell(name, target, now)
        with self._telling:
            self._known = {name: known for name, known in self._known.items() if name in targets}
        self._looked = time.monotonic()

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

    def _link(self, kernel: Conversation, target: Target) -> Link:
        found = kernel.route(target.address, target.scope_id)
        if found is None:
            raise NoLink("there is no route")
        kind, route = found
        if kind != RTN_UNICAST:
            raise NoLink("the receiver is this host, or a group or broadcast address")
        interface = interface_of(route)
        if RTA_ENCAP_TYPE in route or not interface:
            raise NoLink("the route leads into a tunnel")
        device = self._once(interface, partial(self._device, kernel, interface))
        if target.careful and (why := self._why_not(kernel, target, interface)):
            raise NoLink(why)
        hop = route.get(RTA_GATEWAY) or route.get(RTA_VIA, b"")[2:] or target.address
        address = self._once((interface, hop), partial(self._neighbor, kernel, interface, hop))
        limit = int.from_bytes(dict(attributes(route.get(RTA_METRICS, b""), 0)).get(RTAX_MTU, b""), sys.byteorder)
        if min(device.mtu, limit or 65535) < LEAST_MTU:
            raise NoLink(f"packets have less than {LEAST_MTU} bytes there")
        ether_type = b"\x08\x00" if len(target.address) == 4 else b"\x86\xdd"
        cuts = device.queue == "noqueue" and not self._once(("runs", interface), partial(takes_runs, device.name))
        mtu = min(device.mtu, limit or 65535, 65535)
        return Link(interface, address + device.address + ether_type, mtu, device.name, cuts)

    def _why_not(self, kernel: Conversation, target: Target, interface: int) -> str:
        try:
            if bypass.several_hops(kernel, target.address, target.scope_id):
                return "the route has several next hops"
            family = socket.AF_INET if len(target.address) == 4 else socket.AF_INET6
            if why := self._once(("by more", family), partial(bypass.by_more, family)):
                return f"frames would bypass {why}"
            return self._once(("queueing", interface), partial(self._queueing, kernel, interface))
        except OSError as error:
            return f"what frames would bypass cannot be seen: {error.strerror or error}"

    def _queueing(self, kernel: Conversation, interface: int) -> str:
        """What bypass.queueing says of the interface and of those that it sends by."""
        every = devices(kernel)
        if kernel.refused or kernel.changed or interface not in every:
            raise OSError(kernel.refused or errno.EAGAIN, "the interfaces are being changed")
        todo, seen = [interface], set[int]()
        while todo:
            index = todo.pop()
            if index in seen or index not in every:
                continue
            seen.add(index)
            if why := bypass.queueing(index):
                return why
            todo += [every[index].below, *(number for number, device in every.items() if device.master == index)]
        return ""

    def _device(self, kernel: Conversation, index: int) -> Device:
        device = next(iter(devices(kernel, index).values()), None)
        if device is None:
            raise NoLink(f"interface {index} is gone")
        if device.flags & IFF_LOOPBACK or device.kind != ETHERNET or len(device.address) != 6:
            raise NoLink(f"{device.name} has no link addresses")
        if not device.flags & IFF_UP or not device.flags & IFF_LOWER_UP:
            raise NoLink(f"{device.name} is down")
        return device

    def _neighbor(self, kernel: Conversation, interface: int, hop: bytes) -> bytes:
        """Link address of the next hop; tells the kernel that it is used, which resolves or probes it: but not of one
        that the operator or another program keeps (Neighbor.kept), which would be forgotten by that.
        """
        family = socket.AF_INET6 if len(hop) == 16 else socket.AF_INET
        self._hops[interface, hop] = b""
        found = None
        for kind, body in kernel.ask(RTM_GETNEIGH, 0, ndmsg(family, interface, hop)):
            if kind == RTM_NEWNEIGH and len(body) >= RTMSG_BYTES:
                found = Neighbor.of(body)
        if self._may_probe and (found is None or (self._uses and not found.kept)):
            use = ndmsg(family, interface, hop, NTF_USE | (found.flags & NTF_EXT_LEARNED if found is not None else 0))
            list(kernel.ask(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, use))
            # Of what else is refused, e.g. by an interface that has just gone, the next look tells.
            self._may_probe = kernel.refused not in (errno.EPERM, errno.EACCES)
        if found is None:
            raise NoLink(f"the link address of {socket.inet_ntop(family, hop)} is not known")
        usable = NUD_USABLE | (NUD_STALE if self._may_probe else 0)
        if not found.state & usable or len(found.address) != 6:
            raise NoLink(f"{socket.inet_ntop(family, hop)} does not answer, or its link address is not known yet")
        self._hops[interface, hop] = found.address
        return found.address
