"""Intakes: the sockets and rings of a listener, each with its own counters.

Invariants: a counter has one writer, so every socket and every ring has its own; a function either returns a whole
object or raises and has closed what it opened; the ingress rule drops whatever a ring takes, and a datagram is never
missed by both: changeover.py says how it never comes by both either. Called by supervisor. It must never publish, and
never decide what runs.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, field, replace

from samplicator import _fastpath
from samplicator._fastpath import RxCounters, RxSocket
from samplicator.datapath.doors import GONE, DoorIntake
from samplicator.host import bpf, listening, ring, sockets
from samplicator.host.ingress import Ingress
from samplicator.plan.sessions import DoorSpec
from samplicator.plan.spec import RingSpec, SocketSpec
from samplicator.readings import ListenerReading, add_up


class Intake:
    """One bound socket of a listener, its counters, and the worker that reads it (owner, None = none yet). passed_on:
    it goes on for another listener. behind: it was handed in, and what it held then is not read yet.
    """

    __slots__ = (
        "behind",
        "cookie",
        "counters",
        "drops",
        "drops_read",
        "given",
        "granted",
        "label",
        "owner",
        "passed_on",
        "program",
        "requested",
        "rx",
        "sock",
        "spec",
        "turned_away",
    )

    def __init__(
        self,
        sock: socket.socket,
        spec: SocketSpec,
        slot: int,
        requested: int,
        program: bytes | None = b"",
        *,
        label: str = "",
        given: bool = False,
        drops_read: int = 0,
    ) -> None:
        """program: its filter, None = unknown. label: by which other processes know it. given: it was open before this
        process had it. drops_read: drops of the socket that were counted before, 32 bits.
        """
        self.sock = sock
        self.program = program
        self.given = given
        self.behind = given
        self.label = label
        self.passed_on = False
        self.turned_away = False
        self.spec = spec
        self.requested = requested
        self.counters = RxCounters()
        self.rx = RxSocket(sock.fileno(), self.counters, slot)
        self.owner: int | None = None
        self.granted = sockets.granted_receive_buffer(sock)
        self.cookie = sockets.cookie(sock)
        self.drops = 0
        self.drops_read = drops_read

    def again(self, slot: int) -> Intake:
        """The same socket for another listener: its own descriptor and counters. This one is let go of."""
        with contextlib.suppress(OSError):
            self.memory()
        sock = self.sock.dup()
        try:
            other = Intake(
                sock,
                self.spec,
                slot,
                self.requested,
                self.program,
                label=self.label,
                given=self.given,
                drops_read=self.drops_read,
            )
        except BaseException:
            sock.close()
            raise
        other.behind = self.behind
        self.passed_on = True
        return other

    def turn_away(self) -> None:
        """From now on it takes nothing; see listening.turn_away."""
        listening.turn_away(self.sock)
        self.turned_away = True

    def resize(self, receive_buffer: int) -> None:
        """Asks the kernel for another receive buffer."""
        self.requested = receive_buffer
        with contextlib.suppress(OSError):
            self.granted = sockets.set_receive_buffer(self.sock, receive_buffer)

    def filter(self, program: bytes) -> None:
        """From now on it takes what the program (groupcast.Casts) lets in. Raises OSError."""
        if program != self.program:
            bpf.set_filter(self.sock, program)
            self.program = program

    def memory(self) -> sockets.MemInfo:
        """SO_MEMINFO now; adds what the kernel dropped since the last call to `drops`. One caller at a time."""
        info = sockets.meminfo(self.sock)
        self.drops += (info.drops - self.drops_read) & 0xFFFFFFFF
        self.drops_read = info.drops
        return info

    def close(self) -> None:
        self.sock.close()


class RingIntake:
    """One ring of a listener, as Intake."""

    __slots__ = ("counters", "owner", "ring", "rx")

    def __init__(self, opened: ring.Ring, slot: int) -> None:
        self.ring = opened
        self.counters = RxCounters()
        self.rx = ring_socket(opened, self.counters, slot)
        self.owner: int | None = None

    @property
    def drops(self) -> int:
        return self.ring.drops

    def memory(self) -> sockets.MemInfo:
        """The ring as if it were a socket's buffer; adds what the kernel found no room for to `drops`."""
        drops = self.ring.count_drops()
        return sockets.MemInfo(
            queue_bytes=self.ring.waiting_bytes(*self.rx.mark), buffer_bytes=self.ring.bytes, drops=drops & 0xFFFFFFFF
        )

    def close(self) -> None:
        self.ring.close()


def ring_socket(opened: ring.Ring, counters: RxCounters, slot: int) -> RxSocket:
    """The handle of a ring with its doorbell."""
    return RxSocket(
        opened.sock.fileno(),
        counters,
        slot,
        ring=opened.map,
        block_bytes=opened.block_bytes,
        bell=opened.bell_map,
        bell_fd=opened.bell.fileno() if opened.bell is not None else -1,
    )


class RingGroup:
    """The rings of one listener on one interface, and the ingress rule that goes with them. intakes: those that run;
    taking: whether they take what matches, and the rule keeps it from the UDP stack.
    """

    __slots__ = ("_ingress", "_name", "_selected", "fanout", "intakes", "spec", "taking")

    def __init__(self, name: str, spec: RingSpec, ingress: Ingress) -> None:
        """name: of the rule, unique. Raises OSError when one program cannot hold so many addresses, or the kernel
        refuses such a rule.
        """
        ring.socket_filter(spec.matches)
        ingress.put(name, spec.interface, [replace(match, ports=((0, 0),)) for match in spec.matches])  # nobody's port
        ingress.remove(name)
        self.spec = spec
        self.intakes: list[RingIntake] = []
        self.fanout: ring.Fanout | None = None
        self.taking = False
        self._selected = 0
        self._name = name
        self._ingress = ingress

    def open_member(self, slot: int, ring_bytes: int, members: int) -> RingIntake:
        """One more ring. In a new group, which will have `members`, it rests and takes nothing before take(), in one
        that takes it gets nothing before select().
        """
        opened = ring.Ring(self.spec.interface, ring_bytes, self.fanout)
        try:
            if self.fanout is None:
                self.fanout = opened.fanout
                opened.select(members)
                self._selected = members
            if self.taking:
                opened.accept(self.spec.matches)
            intake = RingIntake(opened, slot)
            if not self.taking:
                intake.rx.rest()
            return intake
        except BaseException:
            opened.close()
            raise

    def select(self, sockets: int) -> None:
        """So many rings have their share from now on, or all, if they are fewer: an exporter's ring has the number of
        its socket. sockets: how many share a place. Wake the workers afterwards (Ring.select).
        """
        members = min(sockets or len(self.intakes), len(self.intakes))
        if members and self._selected != members:
            self.intakes[0].ring.select(members)
            self._selected = members

    def take(self) -> None:
        """The rings take what matches; in the moment before the rule is in place the sockets get it too (Changeover).
        Raises OSError; then the rings take nothing.
        """
        try:
            for intake in self.intakes:
                intake.ring.accept(self.spec.matches)
            self._ingress.put(self._name, self.spec.interface, self.spec.matches)
        except OSError:
            self.give_back()
            raise
        self.taking = True

    def give_back(self) -> None:
        """The sockets get what matches; in the moment before the rings refuse it they take it too (Changeover)."""
        if self.taking:
            with contextlib.suppress(OSError):
                self._ingress.remove(self._name)
            self.taking = False
        for intake in self.intakes:
            with contextlib.suppress(OSError):
                intake.ring.reject()


def socket_key(spec: SocketSpec) -> SocketSpec:
    """What makes two socket specs the same socket: all but the listener's position in the file."""
    return replace(spec, listener=0)


AnyIntake = Intake | RingIntake | DoorIntake


@dataclass(slots=True, eq=False)
class ListenerState:
    """A listener that runs. slot: the index its sockets carry in plans, the same as long as it lives. rings: by
    interface; doors: by spec. leaving: what the workers are about to let go. retired_*: what closed ones had counted.
    receive, receive_why: see ListenerSpec. missing: sockets that this host cannot have now, and why; absent: those that
    are open and hear nothing, their address having gone; unresolved: places whose name does not resolve now.
    """

    name: str
    slot: int
    intakes: dict[SocketSpec, list[Intake]] = field(default_factory=dict)
    rings: dict[str, RingGroup] = field(default_factory=dict)
    doors: dict[DoorSpec, list[DoorIntake]] = field(default_factory=dict)
    leaving: list[AnyIntake] = field(default_factory=list)
    receive: str = "recvmmsg"
    receive_why: str = ""
    missing: dict[SocketSpec, str] = field(default_factory=dict)
    absent: dict[SocketSpec, str] = field(default_factory=dict)
    unresolved: tuple[str, ...] = ()
    retired: tuple[int, ...] = (0,) * len(_fastpath.RX_FIELDS)
    retired_batches: tuple[int, ...] = (0,) * (len(_fastpath.BATCH_BOUNDS) + 1)
    retired_drops: int = 0

    def sockets(self) -> list[Intake]:
        return [intake for group in self.intakes.values() for intake in group]

    def all_doors(self) -> list[DoorIntake]:
        return [intake for group in self.doors.values() for intake in group]

    def open(self) -> list[AnyIntake]:
        """Sockets, rings and doors."""
        rings = (intake for group in self.rings.values() for intake in group.intakes)
        return [*self.sockets(), *rings, *self.all_doors()]

    @property
    def lost(self) -> bool:
        """Whether the gateway of a door has ended: the door is to be opened again."""
        return any(intake.rx.shut for group in self.doors.values() for intake in group)

    def down_why(self) -> str:
        """Why sockets are missing, "" = none is: one reason, and the number of sockets."""
        reasons = [why for group in self.doors.values() if group and (why := group[0].down_why())]
        reasons = [GONE] if self.lost else reasons
        reasons += [f"the host name does not resolve: {place}" for place in self.unresolved]
        reasons += [*self.missing.values(), *(why for key, why in self.absent.items() if key in self.intakes)]
        if not reasons:
            return ""
        places = len(self.unresolved) + len(self.missing) + len(self.intakes) + len(self.doors)
        return reasons[0] + (f" ({len(reasons)} of {places} sockets are missing)" if places > 1 else "")

    @property
    def state(self) -> str:
        """up | partly down | down"""
        working = [door for door, group in self.doors.items() if not any(intake.down_why() for intake in group)]
        if not working and not self.intakes.keys() - self.absent.keys():
            return "down"
        return "partly down" if self.down_why() else "up"

    def retire(self) -> list[AnyIntake]:
        """Keeps the counts of the removed intakes; returns them, to be closed."""
        gone, self.leaving = self.leaving, []
        for intake in gone:
            with contextlib.suppress(OSError):
                intake.memory()
            self.retired_drops += intake.drops
        self.retired = add_up([self.retired, *(intake.counters.read() for intake in gone)])
        self.retired_batches = add_up([self.retired_batches, *(intake.counters.batches() for intake in gone)])
        return gone

    def read(self) -> ListenerReading:
        known = [*self.open(), *self.leaving]
        memory = []
        for intake in known:
            with contextlib.suppress(OSError):
                memory.append(intake.memory())
        return ListenerReading(
            name=self.name,
            sockets=tuple((spec.address, spec.port) for spec in self.intakes),
            counters=dict(
                zip(_fastpath.RX_FIELDS, add_up([self.retired, *(i.counters.read() for i in known)]), strict=True)
            ),
            batch_counts=add_up([self.retired_batches, *(i.counters.batches() for i in known)]),
            buffer_bytes=sum(info.buffer_bytes for info in memory),
            queue_bytes=sum(info.queue_bytes for info in memory),
            kernel_drops=self.retired_drops + sum(intake.drops for intake in known),
            up=(self.state == "up" and all(i.owner is not None for i in self.open()) and len(memory) == len(known)),
            state=self.state,
            state_why=self.down_why(),
            receive=self.receive,
            receive_why=self.receive_why,
            rings=tuple(self.rings),
            places=tuple(text for spec in self.doors for text in spec.texts()),
        )
